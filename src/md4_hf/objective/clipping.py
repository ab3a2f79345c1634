# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Clipped mask rates: times of a training whose loss varies less than the bound's (BD3-LM, arXiv:2503.09573)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from ..core.remasking import time_of_alpha
from ..core.schedules import MaskingSchedule


HEAVY = 0.5  # where all mask rates are above it, all tokens count alike


@dataclass(frozen=True)
class ClippedRates:
    """Mask rates 1 - alpha_t that are uniform in [low, high], whatever the schedule is.

    Few masks give losses of large weight, and all masks say nothing of the text: without either end, the gradient
    varies less. The loss is then no bound. As a schedule of its own, `alpha` is that at a uniform number.

    Args:
        low, high: The range, 0 <= low <= high <= 1 and high > 0.
    """

    low: float
    high: float

    def alpha(self, uniform: Tensor) -> Tensor:
        """Probabilities that a token stays, from uniform numbers in [0, 1) of any shape."""
        return 1.0 - self.low - (self.high - self.low) * uniform

    def times(self, schedule: MaskingSchedule, uniform: Tensor) -> Tensor:
        """Times at which a schedule has these rates, float32 of the shape of the uniform numbers.

        Computed on the CPU: some accelerators have no float64, and on others it takes a call for each of its steps.
        """
        return time_of_alpha(schedule, self.alpha(uniform.cpu().double())).float().to(uniform.device)

    def weights(self, schedule: MaskingSchedule, t: Tensor) -> Tensor:
        """Weights of masked tokens, of the shape of the times: 1 over the rate, or 1 if all rates are above a half."""
        rate = 1.0 - schedule.alpha(t)
        return torch.ones_like(rate) if self.low > HEAVY else 1.0 / rate.clamp(min=torch.finfo(rate.dtype).tiny)


def clipped_rates(schedule_clip: Sequence[float] | None) -> ClippedRates | None:
    """Range of the argument `schedule_clip`, None without one; a ValueError for what is no range."""
    if schedule_clip is None:
        return None
    is_pair = isinstance(schedule_clip, (list, tuple)) and len(schedule_clip) == 2
    are_numbers = is_pair and all(isinstance(x, Real) and not isinstance(x, bool) for x in schedule_clip)
    low, high = schedule_clip if are_numbers else (math.nan, math.nan)
    if not (0.0 <= low <= high <= 1.0 and high > 0.0):
        raise ValueError(
            "`schedule_clip` must be two mask rates, 0 <= low <= high <= 1 and high > 0, or None, got "
            f"{schedule_clip!r}."
        )
    return ClippedRates(float(low), float(high))
