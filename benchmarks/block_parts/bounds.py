# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Held-out bound of block models against the size of a block, beside autoregression and MD4."""

from __future__ import annotations

import argparse
import math
import statistics
import textwrap
from pathlib import Path
from typing import Any

from kept_runs import mean_and_error, with_error
from tqdm import tqdm

from md4_hf.utils.plots import figure_file

from .models import ALL_MASKED, AUTOREGRESSIVE, BIDIRECTIONAL, LENGTH, MODELS, NETWORK, SIZES, model


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Bits of each model and seed on each data set, the error of an estimate, and seconds of a training."""
    jobs = [(seed, data, name) for seed in args.seeds for data in args.data for name in MODELS]
    runs: dict[str, dict[str, list]] = {data: {name: [] for name in MODELS} for data in args.data}
    for seed, data, name in tqdm(jobs, desc="bounds"):
        runs[data][name].append(model(args, data, name, seed)[1])
    return {
        "settings": {"max_steps": args.max_steps, "draws": args.draws, "seeds": len(args.seeds)},
        "data": {
            Path(data).stem: {
                name: {
                    "bits": [figures["eval_bits_per_token"] for figures in found],
                    "error_of_estimate": max(figures["eval_loss_stderr"] for figures in found) / math.log(2),
                    "seconds": statistics.median(figures["seconds"] for figures in found),
                }
                for name, found in of_data.items()
            }
            for data, of_data in runs.items()
        },
    }


def section(figures: dict[str, Any], picture: Path | None) -> list[str]:
    """Table of the bits, and a plot of them over the sizes."""
    settings, data = figures["settings"], figures["data"]
    network = ", ".join(f"{name} {value}" for name, value in NETWORK.items())
    description = (
        f"Bits per letter, a token of text8, of one network ({network}) after {settings['max_steps']} steps of the "
        f"preset `tiny`; ± is one standard error over {settings['seeds']} seeds. Bounds are estimated with "
        f"{settings['draws']} draws of the times; in brackets the largest standard error of an estimate, most of which "
        f"is the spread between texts, which are alike for all models. {ALL_MASKED}: trained with "
        "`--num_train_timesteps 1`, so that each step scores every letter, as autoregression does; its bound is "
        "−log p, and nothing is drawn."
    )
    lines = [
        "## Held-out bound",
        "",
        *textwrap.wrap(description, 120),
        "",
        "| model | " + " | ".join(data) + " |",
        "| --- " * (1 + len(data)) + "|",
    ]
    for name in MODELS:
        found = [of_data[name] for of_data in data.values()]
        cells = [f"{with_error(f['bits'])} ({f['error_of_estimate']:.3f})" for f in found]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if picture is not None:
        path = picture.with_name(f"{picture.name}_bounds.png")
        plot(path, data)
        lines += ["", f"![held-out bits against the size of a block]({path.name})"]
    return lines


def plot(path: Path, data: dict[str, Any]):
    """Draw bits over the size of a block, a panel for each data set, with autoregression and MD4 as lines across."""
    with figure_file(path, panels=len(data)) as panels:
        for panel, (title, of_data) in zip(panels, data.items(), strict=True):
            means, errors = zip(*(mean_and_error(of_data[f"B = {size}"]["bits"]) for size in SIZES), strict=True)
            panel.errorbar(SIZES, means, yerr=errors, marker="o", capsize=3, label="blocks of B")
            mean, error = mean_and_error(of_data[ALL_MASKED]["bits"])
            panel.errorbar([1], [mean], yerr=[error], marker="s", capsize=3, label=ALL_MASKED)
            for name, style in ((BIDIRECTIONAL, "--"), (AUTOREGRESSIVE, ":")):
                panel.axhline(mean_and_error(of_data[name]["bits"])[0], color="grey", linestyle=style, label=name)
            panel.set_xscale("log", base=2)
            panel.set_xticks(SIZES, SIZES)
            panel.set(
                title=title, xlabel=f"B, letters per block (rows have {LENGTH})", ylabel="held-out bits per letter"
            )
