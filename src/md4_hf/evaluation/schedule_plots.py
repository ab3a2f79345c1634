# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Plots of masking schedules: the known ones, and those that GenMD4 has learned."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.masked_diffusion import nelbo_weight
from ..core.schedules import MaskingSchedule, make_schedule
from ..core.scheduling_masked_diffusion import GRIDS
from ..utils.plots import figure_file


KNOWN_SCHEDULES: dict[str, MaskingSchedule] = {
    **{name: make_schedule(name, eps=0.0) for name in ("linear", "cosine")},
    **{f"polynomial, power {power}": make_schedule("poly", power=float(power), eps=0.0) for power in (2, 3)},
    "geometric": make_schedule("geometric", eps=0.0),
}
LARGEST_WEIGHT = 20.0  # the axis of the weights, which go to infinity at t=0, ends there


def plot_masking_schedules(path: str | os.PathLike):
    """Draw alpha_t of the known schedules, and the weight -alpha'_t / (1 - alpha_t) of their loss, over time."""
    t = torch.linspace(1e-3, 1.0, 500, dtype=torch.float64)
    with figure_file(path, panels=2) as (left, right):
        for name, schedule in KNOWN_SCHEDULES.items():
            left.plot(t, schedule.alpha(t), label=name)
            right.plot(t, nelbo_weight(schedule, t), label=name)
        left.set(xlabel="t", ylabel="αₜ, probability of being unmasked")
        right.set(xlabel="t", ylabel="−αₜ′ / (1 − αₜ), weight of the loss")
        right.set_ylim(0.0, LARGEST_WEIGHT)


def plot_unmasked_per_step(path: str | os.PathLike, num_tokens: int = 1024, num_steps: int = 128):
    """Draw how many of `num_tokens` a sampler unmasks per step on average, for schedules and time grids."""
    with figure_file(path, panels=2) as panels:
        for axes, (grid_name, make_grid) in zip(panels, GRIDS.items(), strict=True):
            for name in ("linear", "cosine"):
                num_unmasked = num_tokens * KNOWN_SCHEDULES[name].alpha(make_grid(num_steps)).diff()
                axes.plot(range(1, num_steps + 1), num_unmasked, label=f"{name} schedule")
            axes.set(title=f"{grid_name} grid", xlabel=f"step, of {num_steps}")
            axes.set(ylabel=f"tokens unmasked, of {num_tokens:,}")


def plot_exponents(exponents: Tensor, path: str | os.PathLike):
    """Draw a histogram of learned exponents `(tokens,)`."""
    with figure_file(path) as (axes,):
        axes.hist(exponents.tolist(), bins=min(60, max(5, len(exponents) // 3)), color="tab:blue")
        axes.axvline(1.0, color="black", linestyle="--", linewidth=1.0, label="linear schedule, w = 1")
        axes.set(xlabel="exponent w: a larger one is masked later, and generated earlier", ylabel="tokens")


def plot_token_schedules(exponents: Mapping[str, float], path: str | os.PathLike):
    """Draw the learned schedules of some tokens, by name, as differences from the linear one: t - t^w."""
    t = torch.linspace(0.0, 1.0, 300, dtype=torch.float64)
    with figure_file(path) as (axes,):
        for name, w in exponents.items():
            axes.plot(t, t - t**w, label=f"{name}  w = {w:.2f}")
        axes.axhline(0.0, color="tab:gray", linestyle="--", linewidth=1.0, label="linear, w = 1")
        axes.set(xlabel="t", ylabel="αₜ − (1 − t); above 0, masked later")
