# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Plots of a training run, and how every figure is made and written."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import whole_file


def plot_losses(
    log_history: Sequence[Mapping[str, float]], path: str | os.PathLike, baselines: Mapping[str, float] | None = None
):
    """Draw training and held-out loss over optimizer steps as PNG or SVG.

    The unit is bits per character or per dimension of an image, or per token where the log does not say more.

    Args:
        log_history: `trainer.state.log_history`; a ValueError is raised if it has no losses.
        path: Where to write; the suffix gives the format.
        baselines: Horizontal lines, name -> bits.
    """
    heldout = [entry for entry in log_history if "eval_bits_per_token" in entry]
    train = [entry for entry in log_history if "loss" in entry]
    if not heldout and not train:
        raise ValueError("`log_history` must hold losses, got none.")
    last = heldout[-1] if heldout else {}
    unit = next((unit for unit in ("character", "dimension") if f"eval_bits_per_{unit}" in last), "token")
    # Training is logged per token: the held-out data say how many bits per unit that is.
    scale = last[f"eval_bits_per_{unit}"] / last["eval_bits_per_token"] if last else 1.0

    figure, (axes,) = new_figure()
    if train:
        bits = [entry.get("nelbo", entry["loss"]) / math.log(2) * scale for entry in train]
        marker = "." if len(bits) == 1 else None  # one point has no line
        axes.plot(_steps(train), bits, color="tab:gray", linewidth=1.0, marker=marker, label="train")
    if heldout:
        _plot_heldout(axes, heldout, f"eval_bits_per_{unit}")
    for (name, baseline), style in zip((baselines or {}).items(), itertools.cycle(("--", ":", "-.")), strict=False):
        axes.axhline(baseline, color="tab:red", linestyle=style, linewidth=1.0, label=f"{name} {baseline:.2f}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"NELBO, bits per {unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def _steps(entries: Sequence[Mapping[str, float]]) -> list[float]:
    return [entry["step"] for entry in entries]


def _plot_heldout(axes, heldout: Sequence[Mapping[str, float]], key: str):
    # A second evaluation of the last step is the one at the end, with more draws: it stands beside the curve.
    *earlier, final = heldout
    has_final = bool(earlier) and earlier[-1]["step"] == final["step"]
    curve = earlier if has_final else heldout
    bits = [entry[key] for entry in curve]
    axes.plot(_steps(curve), bits, color="tab:blue", marker="o", markersize=3, label="held out")
    if has_final:
        error, label = final.get(f"{key}_stderr"), f"held out, at the end {final[key]:.2f}"
        axes.errorbar(final["step"], final[key], yerr=error, fmt="*", color="tab:blue", markersize=10, label=label)


def new_figure(columns: int = 1):
    """A figure for a file, not for a screen, with its axes side by side: `(figure, list of axes)`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    width = 7.0 if columns == 1 else 5.5 * columns
    figure, axes = plt.subplots(1, columns, figsize=(width, 4.2), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def save_figure(figure, path: str | os.PathLike):
    """Write a figure as PNG or SVG, as the suffix says; the file is never seen half-written."""
    from matplotlib import pyplot as plt

    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(path).suffix.lstrip(".") or "png")
    plt.close(figure)
