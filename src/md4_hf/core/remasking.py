# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Remasking and correction: reverse processes in which decided tokens may be masked again.

A step from t to s < t masks a decided token again with probability sigma, and unmasks a masked position with

    r = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t) = (alpha_s - alpha_t) / (1 - alpha_t)
        + sigma alpha_t / (1 - alpha_t),

so that the marginals q(x_s) are those of the forward process for any sigma in [0, min(1, (1 - alpha_s) / alpha_t)]
(ReMDM: Wang, Schiff, Sahoo, Kuleshov, arXiv:2503.00307). With alpha_s = alpha_t the step goes nowhere in time: a
corrector, which leaves q(x_t) as it is. GenMD4's alpha depends on the token, and so do sigma and r.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from .opening_orders import check_number, fields_of, ranked
from .schedules import MaskingSchedule, TokenPolynomialSchedule


@dataclass(frozen=True)
class StepRates:
    """Probabilities of the steps of a time grid, float64 of shape `(steps,)`, with GenMD4 `(steps, vocab)`.

    Args:
        opens: Probability r that a masked position is unmasked.
        remasks: Probability sigma that a decided token is masked again.
        by_confidence: Whether sigma is shared out among the decided tokens of a row, by their confidence.
    """

    opens: Tensor
    remasks: Tensor
    by_confidence: bool = False

    def at(self, steps: Tensor) -> StepRates:
        """Probabilities of these steps `(n,)`, on their device."""
        return StepRates(self.opens.to(steps.device)[steps], self.remasks.to(steps.device)[steps], self.by_confidence)


@dataclass(frozen=True)
class Remasking:
    """No remasking: the ancestral sampler. Subclasses say with which probability sigma a token is masked again.

    Args:
        eta: Strength in [0, 1], where a subclass has one; 0 is the ancestral sampler.
    """

    name: ClassVar[str] = "none"
    by_confidence: ClassVar[bool] = False  # sigma is shared out among the tokens of a row
    is_per_token: ClassVar[bool] = True  # also defined where alpha depends on the token
    eta: float = 0.0

    def __post_init__(self):
        check_number("eta", self.eta, 0.0, 1.0)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Probability of remasking before its bound, for alphas and times that broadcast."""
        return torch.zeros_like(alpha_t)

    def alpha(self, schedule: MaskingSchedule, grid: Tensor) -> Tensor:
        """Probability that a token is unmasked at the times of a grid `(steps + 1,)`."""
        return schedule.alpha(grid)

    def times(self, schedule: MaskingSchedule, grid: Tensor) -> Tensor:
        """Times `(steps,)` that the denoiser is told at the steps of a grid `(steps + 1,)`."""
        return grid[:-1]

    def rates(self, schedule: MaskingSchedule, grid: Tensor) -> StepRates:
        """Probabilities `(steps,)` of each step of a grid `(steps + 1,)`, with one schedule for all tokens."""
        alpha = self.alpha(schedule, grid)
        alpha_t, alpha_s = alpha[:-1], alpha[1:]
        sigma = self._bounded_sigma(alpha_t, alpha_s, grid[:-1], grid[1:])
        return StepRates(rates_between(alpha_t, alpha_s, self._made_up_for(sigma)).opens, sigma, self.by_confidence)

    def token_rates(self, schedule: TokenPolynomialSchedule, t: Tensor, s: Tensor) -> StepRates:
        """Probabilities `(n, vocab)` of steps between times `(n,)` with GenMD4's schedules."""
        alpha_t, alpha_s = schedule.alpha(t).double(), schedule.alpha(s).double()
        sigma = self._bounded_sigma(alpha_t, alpha_s, t[:, None], s[:, None])
        opens = schedule.unmask_probabilities(t, s)  # exact where 1 - alpha loses digits
        opens = (opens + gained_by(self._made_up_for(sigma), alpha_t)).clamp(0.0, 1.0)
        return StepRates(opens, sigma, self.by_confidence)

    def _made_up_for(self, sigma: Tensor) -> Tensor:
        """Probability of remasking for which more is unmasked: none if sigma is that of a row as one."""
        return torch.zeros_like(sigma) if self.by_confidence else sigma

    def _bounded_sigma(self, alpha_t: Tensor, alpha_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        sigma = torch.minimum(self.sigma(alpha_t, alpha_s, t, s), most_remasked(alpha_t, alpha_s))
        return torch.where(s > 0.0, sigma, 0.0)  # nothing is masked again by the step that ends the process


@dataclass(frozen=True)
class CapRemasking(Remasking):
    """sigma = min(eta, (1 - alpha_s) / alpha_t) (ReMDM-cap)."""

    name: ClassVar[str] = "cap"
    eta: float = 0.02

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The constant eta, see `Remasking.sigma`."""
        return torch.full_like(alpha_t, self.eta)


@dataclass(frozen=True)
class RescaleRemasking(Remasking):
    """sigma = eta min(1, (1 - alpha_s) / alpha_t) (ReMDM-rescale)."""

    name: ClassVar[str] = "rescale"
    eta: float = 0.05

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The share eta of the largest probability, see `Remasking.sigma`."""
        return self.eta * most_remasked(alpha_t, alpha_s)


@dataclass(frozen=True)
class ConfidenceRemasking(Remasking):
    """sigma = eta min(1, (1 - alpha_s) / alpha_t), times a softmax over the row of minus the confidences (ReMDM-conf).

    The confidence of a token is the probability mu it had when it was drawn, before temperature, top-p and top-k.
    Unlikely tokens are masked again more often. A masked position has a share of 0, so that it is unmasked as by the
    ancestral sampler: a heuristic, which leaves more masks than the forward process.
    """

    name: ClassVar[str] = "confidence"
    by_confidence: ClassVar[bool] = True
    eta: float = 1.0

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The share eta of the largest probability, of the row as one, see `Remasking.sigma`."""
        return self.eta * most_remasked(alpha_t, alpha_s)


@dataclass(frozen=True)
class LoopRemasking(Remasking):
    """Unmask up to a share of the tokens, replace tokens at that share for a while, unmask the rest (ReMDM-loop).

    alpha rises to `loop_alpha` until t = `loop_start`, stays there until t = `loop_end` while sigma = eta, and then
    rises to its end. The denoiser is told the time at which its own schedule has this alpha.

    Args:
        loop_start, loop_end: Times, 0 < loop_end < loop_start < 1.
        loop_alpha: Share of unmasked tokens in between, in (0, 1).
    """

    name: ClassVar[str] = "loop"
    is_per_token: ClassVar[bool] = False
    eta: float = 0.02
    loop_start: float = 0.55
    loop_end: float = 0.05
    loop_alpha: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        for name in ("loop_start", "loop_end", "loop_alpha"):
            check_number(name, getattr(self, name), 0.0, 1.0, is_open=True)
        if not self.loop_end < self.loop_start < 1.0:
            found = f"{self.loop_end} and {self.loop_start}"
            raise ValueError(f"`loop_end` must be less than `loop_start`, and that less than 1, got {found}.")
        if self.loop_alpha == 1.0:
            raise ValueError("`loop_alpha` must be in (0, 1), got 1.0.")

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """eta within the loop, see `Remasking.sigma`."""
        return torch.where((t <= self.loop_start) & (t > self.loop_end), self.eta, 0.0).to(alpha_t)

    def alpha(self, schedule: MaskingSchedule, grid: Tensor) -> Tensor:
        """Piecewise linear from the schedule's alpha at t = 1 to that at t = 0, see `Remasking.alpha`."""
        first, last = schedule.alpha(torch.tensor([1.0, 0.0], dtype=grid.dtype))
        before = first + (self.loop_alpha - first) * (1.0 - grid) / (1.0 - self.loop_start)
        after = last - (last - self.loop_alpha) * grid / self.loop_end
        return torch.where(grid >= self.loop_start, before, torch.where(grid < self.loop_end, after, self.loop_alpha))

    def times(self, schedule: MaskingSchedule, grid: Tensor) -> Tensor:
        """Times `(steps,)` at which the schedule has the alpha of the step, see `Remasking.times`."""
        return time_of_alpha(schedule, self.alpha(schedule, grid)[:-1])


@dataclass(frozen=True)
class FlowRemasking(Remasking):
    """The corrector of discrete flow matching: sigma = B (alpha_s / alpha_t - 1) (Gat et al., arXiv:2407.15595).

    B = 10 t^(1/4) (1 - t)^(1/4), so that most is replaced in the middle of the process. `eta` scales B.
    """

    name: ClassVar[str] = "flow"
    eta: float = 1.0

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """eta B (alpha_s - alpha_t) / alpha_t, see `Remasking.sigma`."""
        strength = 10.0 * self.eta * (t * (1.0 - t)).clamp(min=0.0) ** 0.25
        return strength * (alpha_s - alpha_t) / alpha_t.clamp(min=torch.finfo(alpha_t.dtype).tiny)


REMASKINGS: dict[str, type[Remasking]] = {
    cls.name: cls for cls in (CapRemasking, RescaleRemasking, ConfidenceRemasking, LoopRemasking, FlowRemasking)
}


def make_remasking(name: str | None, **options) -> Remasking:
    """Create the remasking of a name, with those of the options that it has and that are not None.

    A ValueError for unknown names, and for options out of range, also of other remaskings.
    """
    if not (name is None or (isinstance(name, str) and name in REMASKINGS)):
        raise ValueError(f"`remasking` must be None or one of {sorted(REMASKINGS)}, got {name!r}.")
    given = {key: value for key, value in options.items() if value is not None}
    made = {key: cls(**fields_of(cls, given)) for key, cls in REMASKINGS.items()}
    return Remasking() if name is None else made[name]


# Correctors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForwardBackwardCorrector:
    """Noise and denoise at one time: sigma = min(eta, (1 - alpha) / alpha), r = sigma alpha / (1 - alpha).

    The forward and the reverse process with equal rates leave q(x_t) invariant (Campbell et al., arXiv:2205.14987;
    Gat et al., arXiv:2407.15595). No token is masked at the end of the process.

    Args:
        eta: Probability in [0, 1] that a decided token is masked.
    """

    name: ClassVar[str] = "forward_backward"
    by_confidence: ClassVar[bool] = False
    is_per_token: ClassVar[bool] = True
    eta: float = 0.1

    def __post_init__(self):
        check_number("corrector_eta", self.eta, 0.0, 1.0)

    def rates(self, alpha: Tensor, times: Tensor) -> StepRates:
        """Probabilities at times that broadcast with the alphas `(n,)`, or `(n, vocab)` with GenMD4."""
        sigma = torch.where(times > 0.0, most_remasked(alpha, alpha).clamp(max=self.eta), 0.0)
        return rates_between(alpha, alpha, sigma)


@dataclass(frozen=True)
class GibbsCorrector:
    """Mask a number of decided tokens and draw them anew (k-Gibbs, arXiv:2407.21243).

    Not with GenMD4, where the denoiser predicts tokens that are masked at this time, and others are decided by it.

    Args:
        size: Number of tokens of each row, >= 1.
        by_confidence: Whether the tokens that were least probable when they were drawn are taken (the informed
            corrector, a heuristic, as the choice depends on the tokens), not random ones (which leaves q(x_t)
            invariant).
    """

    is_per_token: ClassVar[bool] = False
    size: int = 1
    by_confidence: bool = False

    def __post_init__(self):
        if not (isinstance(self.size, Integral) and not isinstance(self.size, bool) and self.size >= 1):
            raise ValueError(f"`corrector_size` must be >= 1, got {self.size!r}.")

    def chosen(self, may_change: Tensor, confidence: Tensor, noise: Tensor) -> Tensor:
        """Booleans `(rows, tokens)` of the tokens to draw anew, among those that may change.

        Confidences and uniform noise in [0, 1) are `(rows, tokens)`.
        """
        rank_by = confidence if self.by_confidence else noise
        order = ranked(-rank_by.masked_fill(~may_change, torch.inf))
        rank = torch.arange(order.shape[-1], device=order.device).expand_as(order)
        return torch.zeros_like(may_change).scatter(-1, order, rank < self.size) & may_change


CORRECTORS = ("forward_backward", "gibbs", "informed")


def make_corrector(name: str, eta: float, size: int) -> ForwardBackwardCorrector | GibbsCorrector:
    """Create the corrector of a name; a ValueError for unknown names, and for options out of range."""
    if not (isinstance(name, str) and name in CORRECTORS):
        raise ValueError(f"`corrector` must be one of {sorted(CORRECTORS)}, got {name!r}.")
    by_rates, by_number = ForwardBackwardCorrector(eta), GibbsCorrector(size, by_confidence=name == "informed")
    return by_rates if name == ForwardBackwardCorrector.name else by_number


# Probabilities --------------------------------------------------------------------------------------------------------


def rates_between(alpha_t: Tensor, alpha_s: Tensor, sigma: Tensor) -> StepRates:
    """Probabilities of steps between alphas, all of one shape; r is 1 where no token can be masked (alpha_t = 1)."""
    opens = (alpha_s - alpha_t) / (1.0 - alpha_t) + gained_by(sigma, alpha_t)
    return StepRates(torch.where(alpha_t < 1.0, opens, 1.0).clamp(0.0, 1.0), sigma)


def gained_by(sigma: Tensor, alpha_t: Tensor) -> Tensor:
    """Probability sigma alpha_t / (1 - alpha_t) by which more is unmasked, to make up for what is remasked."""
    return torch.where(sigma > 0.0, sigma * alpha_t / (1.0 - alpha_t), 0.0)


def most_remasked(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """Largest probability of remasking that keeps the marginals: min(1, (1 - alpha_s) / alpha_t)."""
    return ((1.0 - alpha_s) / alpha_t.clamp(min=torch.finfo(alpha_t.dtype).tiny)).clamp(0.0, 1.0)


def time_of_alpha(schedule: MaskingSchedule, alpha: Tensor) -> Tensor:
    """Times in [0, 1] at which a schedule has the alphas, float64 of any shape, by bisection."""
    low, high = torch.zeros_like(alpha), torch.ones_like(alpha)
    for _ in range(60):
        middle = (low + high) / 2.0
        is_late = schedule.alpha(middle) < alpha
        low, high = torch.where(is_late, low, middle), torch.where(is_late, middle, high)
    return (low + high) / 2.0
