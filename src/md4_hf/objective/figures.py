# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Measured values with their standard errors, and the one way in which they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


# Columns of examples of text: the sizes of what their scored tokens stand for.
SIZE_COLUMNS = ("num_characters", "num_bytes")


@dataclass(frozen=True)
class Figure:
    """A measured value and its standard error.

    `str(figure)` writes both with as many digits as give the value five significant ones, at most four after the point:
    "5.3823 ± 0.0731". A format such as `f"{figure:.2f}"` asks for other digits.

    """

    name: str  # in a table, such as "perplexity" or "bits per character"
    value: float  # an integer is a count and has no digits after the point
    error: float = math.nan  # NaN if there is none
    unit: str = ""  # behind the value in running text, such as "bits/character"

    @property
    def digits(self) -> int:
        """Digits after the point."""
        return 0 if isinstance(self.value, int) else max(0, 5 - len(f"{abs(self.value):.0f}"))

    @property
    def rounded(self) -> float:
        """The value with these digits."""
        return round(float(self.value), self.digits)

    def __format__(self, spec: str) -> str:
        spec = spec or f",.{self.digits}f"
        error = "" if math.isnan(self.error) else f" ± {self.error:{spec}}"
        return f"{self.value:{spec}}{error}"

    def __str__(self) -> str:
        return format(self)


def figures_of(metrics: Mapping[str, float], prefix: str = "", is_bound: bool = True) -> dict[str, Figure]:
    """Figures of an evaluation by their keys in `nelbo_metrics`: nats, perplexity of text, bits; the headline first.

    A `prefix`, such as "eval_", begins each key; nats that are no bound, the NELBO, are −log p.
    """
    loss, error = metrics[f"{prefix}loss"], metrics[f"{prefix}loss_stderr"]
    figures = {"loss": Figure(f"{'NELBO' if is_bound else '−log p'}, nats per token", loss, error, "nats/token")}
    if f"{prefix}bits_per_dimension" not in metrics:  # nobody asks for the perplexity of an image's tokens
        perplexity = metrics[f"{prefix}perplexity"]
        figures["perplexity"] = Figure("perplexity", perplexity, perplexity * error)
    found = {bits.name.replace(" ", "_"): bits for bits in all_bits(metrics, prefix)}
    return figures | (found or {"bits_per_token": headline(metrics, prefix)})


def headline(metrics: Mapping[str, float], prefix: str = "") -> Figure:
    """Bits per character or per dimension where they are known, or else per token; arguments as in `figures_of`."""
    for bits in all_bits(metrics, prefix):
        return bits
    error = metrics[f"{prefix}loss_stderr"] / math.log(2)
    return Figure("bits per token", metrics[f"{prefix}bits_per_token"], error, "bits/token")


def all_bits(metrics: Mapping[str, float], prefix: str = "") -> list[Figure]:
    """Bits per character, byte and dimension, those that are known; arguments as in `figures_of`."""
    units = {f"{prefix}bits_per_{unit}": unit for unit in ("character", "byte", "dimension")}
    return [
        Figure(f"bits per {unit}", metrics[key], metrics[f"{key}_stderr"], f"bits/{unit}")
        for key, unit in units.items()
        if key in metrics
    ]


def counted(count: int, noun: str) -> str:
    """A count with its noun, "1 document" or "2,000 documents"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
