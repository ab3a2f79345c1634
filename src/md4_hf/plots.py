# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a training run."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_losses(
    log_history: Sequence[Mapping[str, float]], path: str | os.PathLike, baselines: Mapping[str, float] | None = None
):
    """Draw training and held-out loss over optimizer steps, in bits per character (or per token) as PNG or SVG.

    Args:
        log_history: `trainer.state.log_history`.
        path: Where to write; the suffix gives the format.
        baselines: Horizontal lines, name -> bits.

    Raises:
        ValueError: If nothing was logged.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # Of several evaluations at one step the last counts: the one at the end has more draws.
    heldout = list({entry["step"]: entry for entry in log_history if "eval_bits_per_token" in entry}.values())
    train = [entry for entry in log_history if "loss" in entry]
    if not heldout and not train:
        raise ValueError("`log_history` must hold losses, got none.")
    per_character = bool(heldout) and "eval_bits_per_character" in heldout[-1]
    unit = "character" if per_character else "token"
    # Training is logged per token: the held-out text says how many bits per character that is.
    scale = heldout[-1]["eval_bits_per_character"] / heldout[-1]["eval_bits_per_token"] if per_character else 1.0

    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    if train:
        bits = [entry["loss"] / math.log(2) * scale for entry in train]
        axes.plot([entry["step"] for entry in train], bits, color="tab:gray", linewidth=1.0, label="train")
    if heldout:
        key = f"eval_bits_per_{unit}"
        steps, bits = [entry["step"] for entry in heldout], [entry[key] for entry in heldout]
        label = f"held out, last {bits[-1]:.2f}"
        axes.plot(steps, bits, color="tab:blue", linewidth=2.0, marker="o", markersize=3, label=label)
    for (name, baseline), style in zip((baselines or {}).items(), itertools.cycle(("--", ":", "-.")), strict=False):
        axes.axhline(baseline, color="tab:red", linestyle=style, linewidth=1.0, label=f"{name} {baseline:.2f}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"NELBO, bits per {unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    path = Path(path)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)
    os.replace(temporary, path)
