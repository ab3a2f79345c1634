# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The main job (`make demo`): train the tiny preset on text that every Python carries, then sample and infill.

python scripts/demo.py                      # about five minutes on two cores; writes runs/tiny
python scripts/demo.py --max_steps 200      # any option of `md4 train` may follow
"""

import sys
from pathlib import Path

from md4_hf.cli import main


GAP_TEXT = "the value of the <mask:20> is used by the statement"


def demo(options: list[str]):
    """Train, sample and infill with the `md4` command, and say what to type next."""
    if "--output_dir" not in options:
        options = [*options, "--output_dir", "runs/tiny"]
    folder = options[options.index("--output_dir") + 1]
    if Path(folder, "model.safetensors").exists():
        print(f"{folder} holds a trained model already: sampling from it. Remove the folder to train again.")
    else:
        resume = ["--resume_from_checkpoint", "latest"] if [*Path(folder).glob("checkpoint-*")] else []
        main(["train", "--preset", "tiny", *resume, *options])
    print("\nThree samples:")
    main(["sample", folder, "--num_samples", "3", "--seed", "0"])
    print(f"\nOne infilling of: {GAP_TEXT}")
    main(["infill", folder, GAP_TEXT, "--seed", "0"])
    print(
        f"""
Next:
  md4 sample {folder} --prompt "the value of " --num_samples 3 --top_p 0.9
  md4 infill {folder} "the <mask:12> statement is used to <mask:20>"
  md4 evaluate {folder} --draws 32
  md4 train --preset tiny --data YOUR_TEXT.txt --output_dir runs/mine
(after `source .venv/bin/activate`, or as .venv/bin/md4)"""
    )


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        print(__doc__)
    else:
        demo(sys.argv[1:])
