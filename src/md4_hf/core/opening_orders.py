# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Orders of unmasking: which masked positions are decided in a step, by what the denoiser predicts there.

An order ranks the masked positions by a score. The most highly ranked ones are unmasked, as many as the time grid asks
for (the quota); an adaptive order unmasks further ones where the predictions allow. Ties go to the position that comes
first, and scores that differ by the rounding of float32 are ties (`ranked`). Scores are computed in float64 from the
denoiser's own probabilities mu, before temperature, top-p and top-k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor


TINY = 1e-300
TIE = 1e-6  # difference of scores up to which they are taken as equal
MIN_TEMPERATURE = 1e-100  # below, where quotients overflow, the highest score or most probable token is taken


@dataclass(frozen=True)
class OpeningOrder:
    """Unmask the positions of highest score; subclasses say what the score is.

    Args:
        temperature: Temperature of the ranking, >= 0. Above 0 positions are drawn without replacement with weights
            exp(score / temperature), by Gumbel noise (`alg_temp` of Dream); 0 takes the highest scores.
    """

    name: ClassVar[str] = ""
    is_adaptive: ClassVar[bool] = False  # more positions than the quota may be unmasked
    keeps_predictions: ClassVar[bool] = False  # compares predictions with those of the row's step before
    num_comparisons: ClassVar[int] = 0  # after how many without change they are stable
    depends_on_draws: ClassVar[bool] = False  # the score is that of a token which is drawn first
    temperature: float = 0.0

    def __post_init__(self):
        check_number("order_temperature", self.temperature, 0.0)

    def score(self, mu: Tensor, place: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Scores `(n,)` of positions with probabilities mu `(n, vocab)` at places `(n,)` of their rows.

        `drawn` `(n,)` are the tokens drawn there, for an order that depends on them.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `score`.")

    def selected(self, scores: Tensor, quota: Tensor, noise: Tensor, stable: Tensor | None = None) -> Tensor:
        """Booleans `(rows, tokens)`: the positions to unmask.

        Args:
            scores: `(rows, tokens)` float64, -inf where no position may be unmasked.
            quota: `(rows,)` numbers of positions; a row with fewer of them unmasks all.
            noise: `(rows, tokens)` uniform numbers in [0, 1) for the temperature.
            stable: `(rows, tokens)` booleans of `keeps_predictions`: predictions that have stopped changing.
        """
        ranking = scores
        if self.temperature >= MIN_TEMPERATURE:
            gumbel = -(-noise.clamp(min=TINY).log()).clamp(min=TINY).log()
            ranking = torch.where(scores == -math.inf, scores, scores / self.temperature + gumbel)
        order = ranked(ranking)
        rank = torch.arange(order.shape[-1], device=order.device)
        taken = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, rank < quota[:, None])
        if self.is_adaptive:
            taken |= self._further(scores, order, stable) & (quota > 0)[:, None]
        return taken & (scores > -math.inf)

    def is_close(self, mu: Tensor, before: Tensor) -> Tensor:
        """Whether predictions `(n, vocab)` are close to those of the step before, for `keeps_predictions`; `(n,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `is_close`.")

    def _further(self, scores: Tensor, order: Tensor, stable: Tensor | None) -> Tensor:
        """Booleans `(rows, tokens)`: the positions that an adaptive order unmasks beside the quota.

        `order` `(rows, tokens)` are the positions as they are ranked, with the noise of a temperature.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `_further`.")


@dataclass(frozen=True)
class ConfidenceOrder(OpeningOrder):
    """Highest probability of the most probable token first (MaskGIT, arXiv:2202.04200; LLaDA, arXiv:2502.09992)."""

    name: ClassVar[str] = "confidence"

    def score(self, mu: Tensor, place: Tensor, drawn: Tensor | None = None) -> Tensor:
        """max mu, see `OpeningOrder.score`."""
        return mu.amax(dim=-1)


@dataclass(frozen=True)
class CandidateOrder(OpeningOrder):
    """Highest probability of the token drawn first, as LLaDA and MaskGIT have it above temperature 0.

    A token is drawn at every masked position, and its probability under mu is the score. Draws that the denoiser finds
    likely are favoured, so that the text is less varied than the temperature says.
    """

    name: ClassVar[str] = "candidate"
    depends_on_draws: ClassVar[bool] = True

    def score(self, mu: Tensor, place: Tensor, drawn: Tensor | None = None) -> Tensor:
        """mu of the drawn token, see `OpeningOrder.score`."""
        return mu.gather(-1, drawn[:, None]).squeeze(-1)


@dataclass(frozen=True)
class MarginOrder(OpeningOrder):
    """Largest difference between the two highest probabilities first (Kim et al., arXiv:2502.06768)."""

    name: ClassVar[str] = "margin"

    def score(self, mu: Tensor, place: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Largest minus second largest mu, see `OpeningOrder.score`."""
        highest = mu.topk(2, dim=-1).values
        return highest[..., 0] - highest[..., 1]


@dataclass(frozen=True)
class EntropyOrder(OpeningOrder):
    """Lowest entropy of the prediction first (Dream, arXiv:2508.15487)."""

    name: ClassVar[str] = "entropy"

    def score(self, mu: Tensor, place: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Negative entropy in nats, see `OpeningOrder.score`."""
        return torch.xlogy(mu, mu).sum(dim=-1)


@dataclass(frozen=True)
class SequentialOrder(OpeningOrder):
    """First masked position first."""

    name: ClassVar[str] = "sequential"

    def score(self, mu: Tensor, place: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Negative place in the row, see `OpeningOrder.score`."""
        return -place.double()


@dataclass(frozen=True)
class ThresholdOrder(ConfidenceOrder):
    """Every position whose confidence reaches a threshold, and at least the quota (Fast-dLLM, arXiv:2505.22618).

    Args:
        threshold: Confidence in (0, 1].
    """

    name: ClassVar[str] = "threshold"
    is_adaptive: ClassVar[bool] = True
    threshold: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        check_number("threshold", self.threshold, 0.0, 1.0, is_open=True)

    def _further(self, scores: Tensor, order: Tensor, stable: Tensor | None) -> Tensor:
        return scores >= self.threshold


@dataclass(frozen=True)
class FactorOrder(ConfidenceOrder):
    """The most confident n positions for the largest n with c_n >= 1 - factor / (n + 1) (Fast-dLLM, arXiv:2505.22618).

    c_1 >= c_2 >= ... are the sorted confidences, and all of c_2 to c_n have to pass. As a temperature ranks positions
    in another order, c_n is the least confidence of the first n.

    Args:
        factor: Number > 0; larger ones unmask more positions.
    """

    name: ClassVar[str] = "factor"
    is_adaptive: ClassVar[bool] = True
    factor: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_number("factor", self.factor, 0.0, is_open=True)

    def _further(self, scores: Tensor, order: Tensor, stable: Tensor | None) -> Tensor:
        n = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
        least = scores.gather(-1, order).cummin(dim=-1).values
        return _prefix((least >= 1.0 - self.factor / (n + 1)) | (n == 1), order)


@dataclass(frozen=True)
class EntropyBoundOrder(EntropyOrder):
    """Positions in order of entropy while their sum minus the largest is at most a bound (arXiv:2505.24857).

    The left-hand side bounds the mutual information of the tokens decided together; 0 unmasks one position a step.

    Args:
        entropy_bound: Bound gamma in nats, >= 0.
    """

    name: ClassVar[str] = "entropy_bound"
    is_adaptive: ClassVar[bool] = True
    entropy_bound: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_number("entropy_bound", self.entropy_bound, 0.0)

    def _further(self, scores: Tensor, order: Tensor, stable: Tensor | None) -> Tensor:
        entropy = -scores.gather(-1, order)
        largest_before = entropy.cummax(dim=-1).values[..., :-1]
        # The sum minus the largest, without a difference: each position adds itself, or the largest so far.
        of_lower = torch.nn.functional.pad(torch.minimum(entropy[..., 1:], largest_before), (1, 0)).cumsum(dim=-1)
        return _prefix(of_lower <= self.entropy_bound, order)


@dataclass(frozen=True)
class KlassOrder(ThresholdOrder):
    """Every position that is confident and stable, and at least the quota (KLASS, arXiv:2511.05664).

    Stable means that the KL divergence of the prediction from that of the row's step before has been below a bound in
    each of the last two comparisons.

    Args:
        kl_bound: Bound in nats, > 0.
    """

    name: ClassVar[str] = "klass"
    keeps_predictions: ClassVar[bool] = True
    num_comparisons: ClassVar[int] = 2
    kl_bound: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        check_number("kl_bound", self.kl_bound, 0.0, is_open=True)

    def is_close(self, mu: Tensor, before: Tensor) -> Tensor:
        """Whether KL(mu || before) is below the bound, `(n,)`, for probabilities `(n, vocab)`; not where NaN."""
        kl = (torch.xlogy(mu, mu) - torch.xlogy(mu, before.double().clamp(min=TINY))).sum(dim=-1)
        return kl < self.kl_bound

    def _further(self, scores: Tensor, order: Tensor, stable: Tensor | None) -> Tensor:
        return (scores >= self.threshold) & stable


ORDERS: dict[str, type[OpeningOrder]] = {
    cls.name: cls
    for cls in (
        *(ConfidenceOrder, CandidateOrder, MarginOrder, EntropyOrder, SequentialOrder),
        *(ThresholdOrder, FactorOrder, EntropyBoundOrder, KlassOrder),
    )
}
RANDOM = "random"  # the ancestral sampler, which ranks nothing
QUOTAS = ("ceil", "floor", "binomial")


def make_order(name: str, **options) -> OpeningOrder | None:
    """Create the order of a name, with those of the options that it has; None for "random".

    A ValueError for unknown names, and for options out of range, also of other orders.
    """
    choices = [RANDOM, *ORDERS]
    if not (isinstance(name, str) and name in choices):
        raise ValueError(f"`order` must be one of {sorted(choices)}, got {name!r}.")
    made = {key: cls(**fields_of(cls, options)) for key, cls in ORDERS.items()}
    return made.get(name)


def fields_of(cls: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a dataclass has as fields."""
    names = {field.name for field in fields(cls)}
    return {key: value for key, value in options.items() if key in names}


def opening_quota(rule: str, num_masked: Tensor, probability: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Number of positions to unmask in a step, of `num_masked` `(rows,)` with the step's probability r `(rows,)`.

    "ceil" and "floor" round num_masked * r: on an even grid "ceil" gives m // T tokens a step and one more in the first
    m % T steps (LLaDA), "floor" is Dream's rule. "binomial" draws the number that the ancestral sampler would unmask,
    by the uniform `noise` `(rows, tokens)`. With r = 1 all are unmasked.

    Returns:
        The numbers `(rows,)`, and uniform noise `(rows, tokens)` that does not depend on them.
    """
    if rule == "binomial":
        place, r = torch.arange(noise.shape[-1], device=noise.device), probability[:, None]
        opens = noise < r
        left = torch.where(opens, noise / r.clamp(min=TINY), (noise - r) / (1.0 - r).clamp(min=TINY))
        return (opens & (place < num_masked[:, None])).sum(dim=-1), left
    expected = num_masked * probability
    # Products that are whole but for their last bits are taken as whole.
    return ((expected - 1e-9).ceil() if rule == "ceil" else (expected + 1e-9).floor()).long(), noise


def ranked(scores: Tensor) -> Tensor:
    """Positions `(rows, tokens)` from the highest score to the lowest; of ties, the first position first.

    Neighbours in the sorted scores are ties if they differ by at most `TIE`. A network that sees nothing but masks may
    predict alike everywhere, as with rotary positions: rounding, which depends on the batch, must not choose there.
    """
    ordered = scores.sort(dim=-1, descending=True, stable=True)
    falls = ordered.values[..., :-1] - ordered.values[..., 1:] > TIE
    group = torch.nn.functional.pad(falls.long().cumsum(dim=-1), (1, 0))
    return torch.zeros_like(group).scatter(-1, ordered.indices, group).sort(dim=-1, stable=True).indices


def _prefix(passes: Tensor, indices: Tensor) -> Tensor:
    """Booleans of the sorted positions up to the first one that does not pass, in the order of the row."""
    up_to = passes.long().cumprod(dim=-1).bool()
    return torch.zeros_like(up_to).scatter(-1, indices, up_to)


def check_number(name: str, value: float, low: float, high: float = math.inf, is_open: bool = False):
    """Raise a ValueError unless low <= value <= high, with `is_open` low < value."""
    if not (
        isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high and value != math.inf
    ) or (is_open and value == low):
        left = "(" if is_open else "["
        rule = f"in {left}{low:g}, {high:g}]" if high < math.inf else f"finite and {'>' if is_open else '>='} {low:g}"
        raise ValueError(f"`{name}` must be {rule}, got {value!r}.")
