# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Train a LoRA adapter for a model: `md4 finetune` as a file for launchers.

accelerate launch scripts/finetune_lora.py runs/tiny --data my.txt --output_dir runs/adapter
accelerate launch scripts/finetune_lora.py BASE --data pairs.jsonl --prompt_column prompt --response_column response \
    --output_dir runs/adapter
"""

import sys

from md4_hf.cli import main


if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
