# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Train a masked diffusion model: `md4 train` as a file for launchers.

accelerate launch scripts/train.py --preset text8 --output_dir runs/text8
accelerate launch scripts/train.py --preset tiny --data my.txt --output_dir runs/mine
"""

import sys

from md4_hf.cli import main


if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
