# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""GenMD4 against MD4 on real text: the same network, data, steps and seeds; held-out bits per letter, a token of text8.

python benchmarks/genmd4.py --data pydoc my.txt --output benchmarks/results/genmd4.md

Every run is a `md4 train` whose result is kept in the work folder: an interrupted benchmark resumes where it was.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
from pathlib import Path

import torch
from kept_runs import mean_and_error, trained
from measuring import machine, publish
from tqdm import tqdm

import md4_hf


OBJECTIVES = ("md4", "genmd4")
NETWORK = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "block_size": 64}
TRAINING = {"learning_rate": 2e-3, "warmup_steps": 50, "use_muon": "false", "bf16": "false", "total_batch_size": 32}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", nargs="+", default=["pydoc"], help="Texts, in any of the forms of `md4 train --data`."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=1500)
    parser.add_argument("--work_dir", default="runs/genmd4-benchmark")
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    return parser.parse_args()


def train(folder: Path, data: str, objective: str, seed: int, max_steps: int) -> tuple[Path, dict[str, float]]:
    """Folder and held-out figures of one run, with the seconds that it took; read if it has been done."""
    chosen = {"preset": "tiny", "tokenizer": "text8", "data": data, "objective": objective, "seed": seed}
    chosen |= {"max_steps": max_steps, "final_eval_draws": 16, "ema_decay": 0.99}
    return trained(folder, {**chosen, **NETWORK, **TRAINING})


def exponents(folder: Path) -> tuple[float, float]:
    """The smallest and the largest exponent of a trained GenMD4 model."""
    model = md4_hf.load_model(str(folder))
    learned = model.token_schedule.exponents.detach()
    data_tokens = torch.arange(len(learned)) != model.config.mask_token_id
    return learned[data_tokens].min().item(), learned[data_tokens].max().item()


def table(data: str, runs: dict[str, list[dict]], folders: dict[str, list[Path]]) -> list[str]:
    """One data set's part of the report."""
    lines = [
        f"## {Path(data).name}",
        "",
        "| objective | held-out bits per letter | each seed | exponents | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for objective, results in runs.items():
        bits = [result["eval_bits_per_token"] for result in results]
        mean, error = mean_and_error(bits)
        each = ", ".join(
            f"{r['eval_bits_per_token']:.4f} ± {r['eval_loss_stderr'] / math.log(2):.4f}" for r in results
        )
        ranges = [exponents(folder) for folder in folders[objective]] if objective == "genmd4" else []
        learned = ", ".join(f"{low:.2f} to {high:.2f}" for low, high in ranges) or "–"
        seconds = statistics.median(result["seconds"] for result in results)
        lines.append(f"| {objective} | {mean:.4f} ± {error:.4f} | {each} | {learned} | {seconds:.0f} |")
    pairs = zip(*(runs[objective] for objective in OBJECTIVES), strict=True)
    differences = [new["eval_bits_per_token"] - old["eval_bits_per_token"] for old, new in pairs]
    mean, spread = mean_and_error(differences)
    lines += [
        "",
        f"GenMD4 − MD4, paired by seed: {mean:+.4f} ± {spread:.4f} bits per letter.",
        "",
    ]
    return lines


def report(args: argparse.Namespace) -> str:
    """Run what has not been run, and write it up."""
    settings = ", ".join(f"{name} {value}" for name, value in {**NETWORK, **TRAINING}.items())
    lines = [
        "# GenMD4 against MD4",
        "",
        machine(),
        "",
        f"{args.max_steps} steps; {settings}. GenMD4 draws two copies of each example, and starts from w = 1.",
        "± is one standard error: over seeds in the second column, of each estimate (16 draws) in the third.",
        "",
        "```bash",
        "python benchmarks/genmd4.py " + shlex.join(sys.argv[1:]),
        "```",
        "",
    ]
    jobs = [(data, objective, seed) for data in args.data for objective in OBJECTIVES for seed in args.seeds]
    runs: dict[str, dict[str, list[dict]]] = {data: {objective: [] for objective in OBJECTIVES} for data in args.data}
    folders: dict[str, dict[str, list[Path]]] = {
        data: {objective: [] for objective in OBJECTIVES} for data in args.data
    }
    for data, objective, seed in tqdm(jobs, desc="runs"):
        folder, figures = train(Path(args.work_dir), data, objective, seed, args.max_steps)
        runs[data][objective].append(figures)
        folders[data][objective].append(folder)
    for data in args.data:
        lines += table(data, runs[data], folders[data])
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = parse_arguments()
    publish(report(arguments), arguments.output)
