# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from md4_hf.utils.plots import figure_file


def plot_lines(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path, x: str, y: str, log: bool = True):
    """Draw curves of points `(x, y)` by name, with these labels on the axes; nothing is written without curves."""
    if not curves:
        return
    with figure_file(path) as (axes,):
        for name, points in curves.items():
            axes.plot([at for at, _ in points], [value for _, value in points], marker="o", markersize=3, label=name)
        if log:
            ticks = sorted({at for points in curves.values() for at, _ in points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
            axes.set_ylim(bottom=0)
        axes.set(xlabel=x, ylabel=y)
