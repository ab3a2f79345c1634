# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The frontier of quality and speed: samplers of one model by perplexity, entropy and network calls.

A low perplexity is worth nothing where the entropy is low too, and any sampler trades one for the other by its
temperature. Samplers are therefore compared at equal entropy, with the curve that a baseline draws over its
temperatures.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import numpy as np
import torch

from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler
from ..utils.errors import check_types, did_you_mean
from ..utils.plots import figure_file


# Entries of the scheduler's configuration that are the model's, and those that are swept.
OF_THE_MODEL = ("self", "mask_token_id", "masking_schedule", "schedule_power", "schedule_eps")
SWEPT = ("num_inference_steps",)
TEMPERATURE = "temperature"
MARKERS = "os^vDP*X<>hpd"
# Columns of the table: name of the figure, heading, format.
COLUMNS = (
    ("calls", "calls", ".1f"),
    ("seconds", "seconds", ".3f"),
    ("perplexity", "perplexity", ".2f"),
    ("perplexity_stderr", "±", ".2f"),
    ("token_entropy", "entropy", ".3f"),
    ("relative_perplexity", "at equal entropy", ".3f"),
    ("distinct_2", "distinct-2", ".3f"),
    ("seq_rep_4", "repeated 4-grams", ".3f"),
    ("num_duplicates", "duplicates", "d"),
    ("mauve", "MAUVE", ".3f"),
)


# Settings -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A sampler at a number of network calls and a temperature.

    Args:
        sampler: Name in tables and plots, the sampler's own words without its temperature.
        steps: Network calls of a sample at most.
        temperature: Temperature of the draws, >= 0.
        scheduler: The sampler, whose `num_inference_steps` are as many as `steps` allow.
    """

    sampler: str
    steps: int
    temperature: float
    scheduler: MaskedDiffusionScheduler = field(compare=False, repr=False)


def read_sampler(text: str) -> tuple[str, dict[str, Any]]:
    """Name and entries of the scheduler's configuration of `name[:key=value,...]`, where `name` may be `key=value`.

    A name alone is an order. The temperature is no part of the name that is returned. Values are not checked but for
    their type; a ValueError for others and for keys that are no entries of a sampler.
    """
    parameters = inspect.signature(MaskedDiffusionScheduler.__init__).parameters
    known = [name for name in parameters if name not in (*OF_THE_MODEL, *SWEPT)]
    head, _, rest = text.partition(":")
    entries = [head if "=" in head else f"order={head}", *filter(None, rest.split(","))]
    options: dict[str, Any] = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if not (sign and name in known and name not in options):
            rule = "an order or key=value, then :key=value,... with each key once, of " + ", ".join(known)
            raise ValueError(f"`samplers` must be {rule}, got {text!r}.{did_you_mean(name, known)}")
        options[name] = _value(value)
    check_types(options, get_type_hints(MaskedDiffusionScheduler.__init__))
    tail = [entry for entry in entries[1:] if not entry.startswith(f"{TEMPERATURE}=")]
    return ":".join([head, ",".join(tail)] if tail else [head]), options


def make_settings(
    samplers: Sequence[str],
    steps: Sequence[int],
    temperatures: Sequence[float],
    scheduler: MaskedDiffusionScheduler,
) -> list[Setting]:
    """All settings, each once: every sampler at its own temperature or else at all, and at all numbers of steps.

    Args:
        samplers: Samplers as `read_sampler` reads them; entries that they do not name are those of `scheduler`.
        scheduler: The model's scheduler, with its token schedule if it has one.

    Raises:
        ValueError: For a sampler that is malformed, or not defined for the model, or needs more steps; and for a
            temperature out of range.
    """
    settings: dict[Setting, None] = {}
    for text in samplers:
        name, options = read_sampler(text)
        own = options.pop(TEMPERATURE, None)
        for count in steps:
            made = _scheduler_of(text, options, count, scheduler)
            for temperature in temperatures if own is None else [own]:
                made.check_sampling_arguments(temperature, None, None)
                settings[Setting(name, count, float(temperature), made)] = None
    return [*settings]


def _scheduler_of(
    text: str, options: dict[str, Any], steps: int, scheduler: MaskedDiffusionScheduler
) -> MaskedDiffusionScheduler:
    """The model's scheduler with the entries of a sampler, tried on two tokens."""
    try:
        made = scheduler.with_options(**options, num_inference_steps=steps)
        per_step = 1 + made.config.corrector_steps
        if steps < per_step:
            raise ValueError(f"`steps` must be >= {per_step}, the network calls of a step, got {steps}.")
        made = scheduler.with_options(**options, num_inference_steps=steps // per_step)
        learned = made.token_schedule
        device = torch.device("cpu") if learned is None else learned.exponents.device
        masks = torch.full((1, 2), made.config.mask_token_id, device=device)
        made.plan_step(made.timesteps[0], masks, torch.Generator())  # an error if it is not defined for the model
    except ValueError as error:
        raise ValueError(f"`samplers` must be samplers of this model, got {text!r}: {error}") from error
    return made


def _value(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


# Figures --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A setting and its measured figures, by the names of `COLUMNS`; NaN or absent where there is none."""

    sampler: str
    steps: int
    temperature: float
    figures: Mapping[str, float]


def perplexity_stderr(text_nats: Sequence[float], text_num_tokens: Sequence[int]) -> float:
    """Standard error of exp(sum of nats / sum of tokens) that the spread between texts gives; NaN of a single text."""
    nats, tokens = np.asarray(text_nats, dtype=np.float64), np.asarray(text_num_tokens, dtype=np.float64)
    if len(nats) < 2:
        return math.nan
    mean = nats.sum() / tokens.sum()
    error = np.sqrt(((nats - mean * tokens) ** 2).sum() * len(nats) / (len(nats) - 1)) / tokens.sum()
    return float(np.exp(mean) * error)


def relative_perplexities(points: Sequence[Point], baseline: str) -> list[float]:
    """Perplexity of each point divided by that of the baseline at the same steps and the same entropy.

    Between two temperatures of the baseline, the logarithm of its perplexity is taken to be linear in the entropy. NaN
    where the baseline has no samples of that entropy at any of its temperatures.
    """
    curve = [point for point in points if point.sampler == baseline]
    return [_relative(point, [other for other in curve if other.steps == point.steps]) for point in points]


def _relative(point: Point, curve: Sequence[Point]) -> float:
    pairs = sorted((p.figures["token_entropy"], math.log(p.figures["perplexity"])) for p in curve if _is_measured(p))
    if not (pairs and _is_measured(point)):
        return math.nan
    entropies, nats = zip(*pairs, strict=True)
    expected = np.interp(point.figures["token_entropy"], entropies, nats, left=math.nan, right=math.nan)
    return float(point.figures["perplexity"] / np.exp(expected))


def best_points(points: Sequence[Point], baseline: str) -> dict[int, Point]:
    """For each number of steps at which a sampler can be compared with the baseline, the best at equal entropy."""
    best = {}
    for steps in sorted({point.steps for point in points}):
        compared = [p for p in points if p.steps == steps and not math.isnan(p.figures["relative_perplexity"])]
        if any(point.sampler != baseline for point in compared):
            best[steps] = min(compared, key=lambda p: p.figures["relative_perplexity"])
    return best


def _is_measured(point: Point) -> bool:
    return not math.isnan(point.figures["perplexity"])


# Table and plot -------------------------------------------------------------------------------------------------------


def frontier_table(points: Sequence[Point], references: Mapping[str, float] | None = None) -> str:
    """Markdown table of the points, ordered by steps, and of real text; columns without any figure are left out."""
    rows = [(p.sampler, f"{p.steps}", f"{p.temperature:g}", p.figures) for p in sorted(points, key=lambda p: p.steps)]
    if references is not None:
        rows.append(("real text", "", "", references))
    columns = [c for c in COLUMNS if any(not math.isnan(figures.get(c[0], math.nan)) for *_, figures in rows)]
    lines = [["sampler", "steps", "temperature", *(heading for _, heading, _ in columns)]]
    lines += [[*words, *(_cell(f.get(name, math.nan), spec) for name, _, spec in columns)] for *words, f in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    aligned = (
        [words[0].ljust(widths[0]), *(word.rjust(n) for word, n in zip(words[1:], widths[1:], strict=True))]
        for words in lines
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in aligned)


def frontier_summary(points: Sequence[Point], references: Mapping[str, float] | None = None) -> str:
    """The table and, for each number of steps, the best sampler, in Markdown; the first point's is the baseline."""
    baseline, lines = points[0].sampler, []
    for steps, point in best_points(points, baseline).items():
        relative, entropy = (point.figures[name] for name in ("relative_perplexity", "token_entropy"))
        sampler = f"{point.sampler} at temperature {point.temperature:g}"
        lines.append(f"- at most {steps} calls: {sampler}, {relative:.3f} at an entropy of {entropy:.3f}")
    rule = (
        '± is one standard error of the perplexity; entropies are in nats. "At equal entropy" is the perplexity '
        f"divided by that of {baseline} at as many steps and the same entropy, between its temperatures; – where "
        "it has no such samples."
    )
    best = ["The lowest at equal entropy:", "\n".join(lines)] if lines else []
    return "\n\n".join([frontier_table(points, references), rule, *best])


def plot_frontier(path: str | os.PathLike, points: Sequence[Point], references: Mapping[str, float] | None = None):
    """Draw perplexity over entropy, a panel for each number of steps, a line for each sampler over its temperatures."""
    samplers, steps = list(dict.fromkeys(p.sampler for p in points)), sorted({p.steps for p in points})
    with figure_file(path, panels=len(steps)) as panels:
        for axes, count in zip(panels, steps, strict=True):
            for index, sampler in enumerate(samplers):
                own = [p for p in points if (p.sampler, p.steps) == (sampler, count) and _is_measured(p)]
                own.sort(key=lambda p: p.temperature)
                x, y = ([p.figures[name] for p in own] for name in ("token_entropy", "perplexity"))
                style = {"marker": MARKERS[index % len(MARKERS)], "color": f"C{index % 10}", "markersize": 6}
                axes.plot(x, y, label=sampler, linewidth=1.0, alpha=0.8, **style)
            if references is not None:
                place = (references["token_entropy"], references["perplexity"])
                axes.plot(*place, "k*", markersize=13, label="real text", linestyle="none")
            axes.set(title=f"at most {count} network calls", xlabel="entropy of the tokens, nats")
            axes.set(ylabel="generative perplexity", yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")


def _cell(value: float, spec: str) -> str:
    return "–" if math.isnan(value) else format(value, spec)
