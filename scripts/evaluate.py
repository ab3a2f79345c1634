# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Bound the likelihood of text: `md4 evaluate` as a file for launchers.

accelerate launch scripts/evaluate.py runs/tiny --draws 32
"""

import sys

from md4_hf.cli import main


if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
