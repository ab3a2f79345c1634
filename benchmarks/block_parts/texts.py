# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts of four times the training length: block models with their exact cache, MD4 with the approximate one."""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from kept_runs import kept, quietly, with_error
from tqdm import tqdm

import md4_hf
from md4_hf.utils.files import write_whole

from .models import BIDIRECTIONAL, LENGTH, TEXT_LENGTH, judge, model


STEPS = 64  # of each block, so that few letters are unmasked together
# Each way: the model, and how it is sampled.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"B = {size}, exact cache": (f"B = {size}", {}) for size in (1, 4, 16)},
    **{f"MD4 in blocks of {size}, approximate cache": (BIDIRECTIONAL, {"block_length": size}) for size in (1, 4, 16)},
}
REAL = "held-out text"
COLUMNS = {
    "generative perplexity": ("judge", "perplexity"),
    "entropy of the letters, nats": ("tokens", "token_entropy"),
    "distinct-3": ("tokens", "distinct_3"),
    "repeated 4-grams": ("tokens", "seq_rep_4"),
    "letters in repeated 4-grams": ("tokens", "repeated_tokens_4"),
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Figures of the texts of each way and seed, and of held-out text, on each data set."""
    found: dict[str, dict[str, list]] = {}
    with tqdm(total=len(args.data) * (1 + len(args.seeds) * len(WAYS)), desc="texts") as bar:
        for data in args.data:
            judge_folder, _ = judge(args, data)
            bar.update()
            of_data: dict[str, list] = {way: [] for way in [*WAYS, REAL]}
            for seed in args.seeds:
                for way, (name, sampler) in WAYS.items():
                    folder, _ = model(args, data, name, seed)
                    options = {"num_samples": args.num_samples, "length": TEXT_LENGTH, "num_inference_steps": STEPS}
                    options |= {"seed": seed, "retokenise": "false", **sampler}
                    scores = scored(args.work_dir, folder, judge_folder, data, options)
                    of_data[way].append(chosen(scores["samples"]))
                    of_data[REAL] = [chosen(scores["references"])]  # the same ones each time
                    bar.update()
            found[Path(data).stem] = of_data
    return {"settings": {"num_samples": args.num_samples, "judge_steps": args.judge_steps}, "data": found}


def scored(work_dir: Path, model: Path, judge: Path, data: str, options: dict[str, Any]) -> dict[str, Any]:
    """Scores of `md4 score` for texts of a model, and for held-out text of its data."""
    facts = {"scores of": model.name, "judge": judge.name, **options}

    def score() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            output, references = Path(folder, "scores.json"), Path(folder, "heldout.jsonl")
            _, heldout = md4_hf.load_train_validation(md4_hf.DataArguments(data=data))
            write_whole(references, "".join(json.dumps({"text": text}) + "\n" for text in heldout["text"]))
            quietly("score", model, judge=judge, references=references, output_file=output, **options)
            return json.loads(output.read_text(encoding="utf-8"))

    return kept(work_dir, facts, score)


def chosen(measures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Figures of the table."""
    return {column: measures[group][name] for column, (group, name) in COLUMNS.items()}


def section(figures: dict[str, Any], picture: Path | None) -> list[str]:
    """Tables of the figures of the texts."""
    settings = figures["settings"]
    description = (
        f"Of the models above, trained on rows of {LENGTH}: {settings['num_samples']} texts of each seed, {STEPS} "
        f"steps a block. A block sees the letters before it that fit into {LENGTH} with it. The judge is an "
        f"autoregressive model of the preset's own size, trained for {settings['judge_steps']} steps on rows of "
        f"{TEXT_LENGTH} letters; ± is one standard error over the seeds. A low perplexity with a low entropy, or with "
        "many repeats, is no quality: compare with the held-out text."
    )
    lines = [f"## Texts of {TEXT_LENGTH} letters", "", *textwrap.wrap(description, 120)]
    for data, ways in figures["data"].items():
        lines += [
            "",
            f"### {data}",
            "",
            "| texts | " + " | ".join(COLUMNS) + " |",
            "| --- " * (1 + len(COLUMNS)) + "|",
        ]
        for way, runs in ways.items():
            cells = (with_error([run[column] for run in runs]) for column in COLUMNS)
            lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return lines
