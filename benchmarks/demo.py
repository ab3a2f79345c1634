# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Choices of the preset `demo`: held-out bits per character of recipes that need equally many operations.

python benchmarks/demo.py --output benchmarks/results/demo.md

Every training is kept in the work folder under the hash of its settings: an interrupted benchmark resumes there.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

from flops import training_flops
from kept_runs import trained
from measuring import machine, publish
from tqdm import tqdm

from md4_hf import PRESETS, MD4Config


PRESET = PRESETS["demo"]
CLIPPED = {"schedule_clip": [0.2, 0.7]}  # as `scripts/demo.py` trains
NUM_SPECIAL = 2  # tokens behind those of the BPE
# What differs from the preset, by what is chosen.
CHOICES: dict[str, list[dict[str, Any]]] = {
    "preset": [{}],
    "tokenizer": [{"tokenizer": "bpe:2048"}, {"tokenizer": "bpe:4096"}],
    "mask rates": [CLIPPED, {"schedule_clip": [0.3, 0.8]}, {"schedule_clip": [0.1, 0.5]}],
    "objective": [{"objective": "genmd4"}],
    "learning rate": [{"learning_rate": 1e-2}],
    "batch": [{"total_batch_size": 32}],
    "network": [{"num_hidden_layers": 2}, {"hidden_size": 192, "num_attention_heads": 6}, {"block_size": 128}],
    "autoregression": [{"objective": "ar"}],
}

IN_FULL = {"MD4": {}, "MD4, as in `make demo`": CLIPPED, "autoregression": {"objective": "ar"}}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.15, help="Part of the preset's operations that a search has.")
    parser.add_argument("--choices", nargs="+", default=[*CHOICES], choices=[*CHOICES])
    parser.add_argument("--draws", type=int, default=8, help="Draws of the bound at the end.")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/demo-search"))
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    return parser.parse_args(argv)


def step_flops(options: dict[str, Any]) -> float:
    """Operations of a training step: autoregression scores all tokens, and half of them are masked elsewhere."""
    recipe = {**PRESET.model, **PRESET.data, "tokenizer": PRESET.tokenizer, "total_batch_size": PRESET.batch_size}
    recipe |= options
    sizes = {name: recipe[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_type")}
    rows, length = int(recipe["tokenizer"].removeprefix("bpe:")) + NUM_SPECIAL, recipe["block_size"]
    config = MD4Config(vocab_size=rows, mask_token_id=rows - 1, max_position_embeddings=length, **sizes)
    objective = options.get("objective", "md4")
    tokens = recipe["total_batch_size"] * length * (2 if objective == "genmd4" else 1)  # copies
    return training_flops(config, tokens, length, tokens if objective == "ar" else tokens // 2)


def run(args: argparse.Namespace, options: dict[str, Any], share: float) -> dict[str, float]:
    """Figures of a recipe after as many steps as this share of the preset's operations allows."""
    steps = round(share * PRESET.training["max_steps"] * step_flops({}) / step_flops(options))
    schedule = {"max_steps": steps, "warmup_steps": max(steps // 20, 1), "final_eval_draws": args.draws}
    batch = {"per_device_train_batch_size": options.get("total_batch_size", PRESET.batch_size)}
    folder, metrics = trained(args.work_dir, {"preset": "demo", **batch, **schedule, **options})
    return {**metrics, "steps": steps, "folder": str(folder)}


def row(name: str, options: dict[str, Any], figures: dict[str, float]) -> str:
    """Row of the table."""
    words = ", ".join(f"`{name} {_typed(value)}`" for name, value in options.items()) or "the preset"
    bits, error = figures["eval_bits_per_character"], figures["eval_bits_per_character_stderr"]
    characters = figures["eval_bits_per_token"] / bits
    return f"| {name} | {words} | {figures['steps']:,} | {characters:.2f} | {bits:.3f} ± {error:.3f} |"


def _typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def report(args: argparse.Namespace, argv: list[str]) -> str:
    """Train all that is not trained, and write it up."""
    jobs = [(name, options) for name in args.choices for options in CHOICES[name]]
    table = [row(name, options, run(args, options, args.share)) for name, options in tqdm(jobs, desc="search")]
    finals = [row(name, options, run(args, options, 1.0)) for name, options in IN_FULL.items()]
    total = PRESET.training["max_steps"] * step_flops({})
    words = (
        f"Held-out bits per character of the corpus `docstrings`, which all tokenizers keep: of MD4 an upper bound, "
        f"estimated with {args.draws} draws for each sequence, of autoregression exact. ± is the standard error over "
        f"sequences. All recipes of a table have equally many floating-point operations, and so about the same time: "
        f"{args.share:g} of the preset's {total / 1e12:.1f} · 10¹² in the first, all in the second. Each has its "
        f"own cosine schedule over its steps, and one seed."
    )
    header = [
        "| choice | other than the preset | steps | characters per token | bits per character |",
        "| --- " * 5 + "|",
    ]
    parts = ["# The demo's recipe", "", machine(), "", *textwrap.wrap(words, 120), "", *header, *table, ""]
    parts += [
        "## In full",
        "",
        *header,
        *finals,
        "",
        "```bash",
        f"python benchmarks/demo.py {shlex.join(argv)}",
        "```",
    ]
    return "\n".join([*parts, ""])


if __name__ == "__main__":
    arguments = parse_arguments(sys.argv[1:])
    publish(report(arguments, sys.argv[1:]), arguments.output)
