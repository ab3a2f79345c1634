# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Fill the gaps of a text: `md4 infill` as a file.

python scripts/infill.py runs/tiny "the <mask:12> statement"
"""

import sys

from md4_hf.cli import main


if __name__ == "__main__":
    main(["infill", *sys.argv[1:]])
