# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Picture of a training run: its losses over the optimizer steps."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..objective.figures import Figure, headline
from ..utils.plots import figure_file


Log = Sequence[Mapping[str, float]]
EVALUATION, DRAWS = "eval_bits_per_token", "eval_num_draws"


def plot_losses(log_history: Log, path: str | os.PathLike, baselines: Mapping[str, float] | None = None):
    """Draw training and held-out loss over optimizer steps as PNG or SVG.

    The unit is bits per character or per dimension of an image, or per token where the log does not say more. Held-out
    losses have a bar of one standard error, and the last one has a star.

    Args:
        log_history: `trainer.state.log_history`; a ValueError is raised if it has no losses.
        path: Where to write; the suffix gives the format.
        baselines: Horizontal lines, name -> bits.
    """
    heldout = [entry for entry in log_history if EVALUATION in entry]
    train = [entry for entry in log_history if "loss" in entry]
    if not heldout and not train:
        raise ValueError("`log_history` must hold losses, got none.")
    bits = headline(heldout[-1], "eval_") if heldout else Figure("bits per token", 1.0)
    # Training is logged per token: the held-out data say how many bits per unit that is.
    scale = bits.value / heldout[-1][EVALUATION] if heldout else 1.0
    with figure_file(path) as (axes,):
        _plot_training(axes, train, scale)
        _plot_heldout(axes, heldout)
        for (name, baseline), style in zip(
            (baselines or {}).items(), itertools.cycle(("--", ":", "-.")), strict=False
        ):
            axes.axhline(baseline, color="tab:red", linestyle=style, linewidth=1.0, label=f"{name} {baseline:.2f}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="optimizer step", ylabel=f"NELBO, {bits.name}")


def _plot_training(axes: Any, train: Log, scale: float):
    if not train:
        return
    bits = [entry.get("nelbo", entry["loss"]) / math.log(2) * scale for entry in train]
    marker = "." if len(bits) == 1 else None  # one point has no line
    label = "train" if all("bits_per_token" in entry for entry in train) else "train (no bound)"
    axes.plot(_steps(train), bits, color="tab:gray", linewidth=1.0, marker=marker, label=label)


def _plot_heldout(axes: Any, heldout: Log):
    curve, more = _split_by_draws(heldout)
    if not curve:
        return
    style = {"color": "tab:blue"}
    steps, figures = _steps(curve), [headline(entry, "eval_") for entry in curve]
    bits = [figure.value for figure in figures]
    axes.errorbar(steps, bits, [figure.error for figure in figures], fmt="none", capsize=2, linewidth=0.8, **style)
    axes.plot(steps, bits, marker="o", markersize=3, label="held out", **style)
    axes.plot(steps[-1], bits[-1], "*", markersize=10, label=f"step {steps[-1]:,}: {figures[-1]:.2f}", **style)
    for entry in more:  # words alone: a point of other times and masks would look like a jump of the loss
        axes.plot([], [], " ", label=f"with {entry[DRAWS]} draws: {headline(entry, 'eval_'):.2f}")


def _split_by_draws(heldout: Log) -> tuple[Log, Log]:
    """The evaluations of the curve, and apart from them the last one if it had another number of draws."""
    has_others = len(heldout) > 1 and heldout[-1].get(DRAWS) != heldout[-2].get(DRAWS)
    return (heldout[:-1], heldout[-1:]) if has_others else (heldout, [])


def _steps(entries: Log) -> list[int]:
    return [int(entry["step"]) for entry in entries]
