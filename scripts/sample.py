# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sample text: `md4 sample` as a file.

python scripts/sample.py runs/tiny --num_samples 3 --prompt "the "
"""

import sys

from md4_hf.cli import main


if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
