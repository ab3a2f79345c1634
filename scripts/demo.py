# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The main job (`make demo`): train a model on the English of the installed libraries, sample from it and fill a gap.

python scripts/demo.py                      # about five minutes on two cores; writes runs/demo
python scripts/demo.py --max_steps 200      # any option of `md4 train` may follow
"""

import contextlib
import re
import sys
import textwrap
from pathlib import Path

import torch

import md4_hf
from md4_hf.cli import main


# Words of the tokenizer begin with their space: none stands before a gap or at the end of a beginning.
BEGINNINGS = ("Returns the", "If the", "This method is used to", "The default is")
CONTINUED = 24  # tokens
GAP_TEXT = "Returns the<mask:2> of the given<mask:1>. If the<mask:1> is not<mask:1>, the<mask:1> is used."
MASK_RATES = ("0.2", "0.7")  # in training, by benchmarks/demo.py: texts nearly all masked teach a small network little
SAMPLER = {"order": "confidence", "temperature": 0.7, "top_p": 0.9}
SECONDS = 6  # of the infilling on the terminal
WIDTH = 100


def demo(options: list[str]):
    """Train, sample and infill, and say what to type next."""
    if "--output_dir" not in options:
        options = [*options, "--output_dir", "runs/demo"]
    folder = options[options.index("--output_dir") + 1]
    if Path(folder, "model.safetensors").exists():
        print(f"{folder} holds a trained model already: sampling from it. Remove the folder to train again.")
    else:
        resume = ["--resume_from_checkpoint", "latest"] if [*Path(folder).glob("checkpoint-*")] else []
        rates = [] if "--objective" in options else ["--schedule_clip", *MASK_RATES]
        main(["train", "--preset", "demo", *rates, *resume, *options])
    sampler = [word for name, value in SAMPLER.items() for word in (f"--{name}", str(value))]
    show_samples(folder)
    print("\nA text with gaps, filled in any order:\n")
    with contextlib.suppress(SystemExit):  # its error is printed: the text may be too long for a model of other data
        main(["infill", folder, GAP_TEXT, *sampler, "--seed", "0", "--watch", "--seconds", str(SECONDS)])
    print(
        f"""
Next:
  md4 sample {folder} --prompt "The value of" --num_samples 3 {" ".join(sampler)} --watch --seconds 5
  md4 infill {folder} "The<mask:3> is used to<mask:6>." {" ".join(sampler)} --html unmasking.html
  md4 evaluate {folder} --draws 32
  md4 train --preset demo --data YOUR_TEXT.txt --output_dir runs/mine
(after `source .venv/bin/activate`, or as .venv/bin/md4)"""
    )


def show_samples(folder: str):
    """Print a sample for each beginning, up to its last whole sentence."""
    pipeline = md4_hf.load_pipeline(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    texts = pipeline(prompt=list(BEGINNINGS), generator=generator, gen_length=CONTINUED, **SAMPLER).texts
    print("\nSamples, which begin with " + ", ".join(f'"{text}"' for text in BEGINNINGS) + ":")
    for text in texts:
        print()
        print(
            "\n".join(textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="  ") for line in whole(text))
        )


def whole(text: str) -> list[str]:
    """Lines of a text without the sentence that is cut off at its end; all of it if it has no other."""
    ends = [found.end() for found in re.finditer(r"[.!?](?=\s|$)", text)]
    return (text[: ends[-1]] if ends else text).splitlines()


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        print(__doc__)
    else:
        demo(sys.argv[1:])
