# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Masking schedules: the probability alpha_t that a token is still unmasked at time t, fixed or learned per token.

Source: Shi et al., *Simplified and Generalized Masked Diffusion for Discrete Data*, arXiv:2406.04329, section 2, the
appendix on schedules, and the section on state-dependent schedules. torch and the standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


MAX_POWER = 1e6  # far above, the weight of the loss overflows float32


@dataclass(frozen=True)
class MaskingSchedule:
    """A masking schedule `alpha_t = (1 - 2 eps) a_t + eps`, where `a_t` falls from 1 at t=0 to 0 at t=1.

    Args:
        eps: Distance that `alpha` keeps from 0 and 1, in [0, 0.5). It bounds the weight of the loss near t=0; 0 is the
            exact schedule.
    """

    name: ClassVar[str] = ""
    eps: float = 1e-4

    def __post_init__(self):
        _check_eps(self.eps)

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is unmasked at time `t`; `t` of any shape in [0, 1], result of the same shape."""
        return (1.0 - 2.0 * self.eps) * self._a(t) + self.eps

    def alpha_prime(self, t: Tensor) -> Tensor:
        """Time derivative of `alpha`, at most 0; same shape as `t`."""
        return (1.0 - 2.0 * self.eps) * self._a_prime(t)

    def alpha_of(self, t: Tensor, tokens: Tensor) -> Tensor:
        """Probability that `tokens` `(batch, ...)` are unmasked at the times `(batch,)`, in a shape that broadcasts."""
        return left_broadcast(self.alpha(t), tokens.dim())

    def _a(self, t: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define `_a`.")

    def _a_prime(self, t: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define `_a_prime`.")


@dataclass(frozen=True)
class LinearSchedule(MaskingSchedule):
    """Linear schedule a_t = 1 - t."""

    name: ClassVar[str] = "linear"

    def _a(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def _a_prime(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)


@dataclass(frozen=True)
class CosineSchedule(MaskingSchedule):
    """Cosine schedule a_t = 1 - cos(pi/2 (1 - t))."""

    name: ClassVar[str] = "cosine"

    def _a(self, t: Tensor) -> Tensor:
        return 1.0 - torch.cos(math.pi / 2.0 * (1.0 - t))

    def _a_prime(self, t: Tensor) -> Tensor:
        return -math.pi / 2.0 * torch.sin(math.pi / 2.0 * (1.0 - t))


@dataclass(frozen=True)
class PolynomialSchedule(MaskingSchedule):
    """Polynomial schedule a_t = 1 - t^power, power in (0, 1e6]."""

    name: ClassVar[str] = "poly"
    power: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _check_power(self.power)

    def _a(self, t: Tensor) -> Tensor:
        return 1.0 - t**self.power

    def _a_prime(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1.0)


@dataclass(frozen=True)
class GeometricSchedule(MaskingSchedule):
    """Geometric schedule a_t = exp(-beta_min^(1-t) beta_max^t) of the paper's appendix, with ends near 1 and 0 only."""

    name: ClassVar[str] = "geometric"
    beta_min: float = 1e-5
    beta_max: float = 20.0

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.beta_min < self.beta_max:
            raise ValueError(f"`beta_min` and `beta_max` must be 0 < min < max, got {self.beta_min}, {self.beta_max}.")

    def _a(self, t: Tensor) -> Tensor:
        return torch.exp(-(self.beta_min ** (1.0 - t)) * self.beta_max**t)

    def _a_prime(self, t: Tensor) -> Tensor:
        beta_bar = self.beta_min ** (1.0 - t) * self.beta_max**t
        return -torch.exp(-beta_bar) * beta_bar * math.log(self.beta_max / self.beta_min)


@dataclass(frozen=True)
class LogLinearSchedule(MaskingSchedule):
    """Schedule of SEDD, MDLM and RADD: alpha_t = 1 - (1 - eps) t, exactly 1 at t=0 and `eps` at t=1.

    The weight of the loss is 1 / t whatever `eps` is, and nothing is left to reconstruct at t=0. The name is of the
    noise -log alpha_t = -log(1 - (1 - eps) t); theirs has eps=1e-3.
    """

    name: ClassVar[str] = "loglinear"

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is unmasked at time `t`, see `MaskingSchedule.alpha`."""
        return 1.0 - (1.0 - self.eps) * t

    def alpha_prime(self, t: Tensor) -> Tensor:
        """Time derivative of `alpha`: the constant -(1 - eps)."""
        return torch.full_like(t, self.eps - 1.0)


SCHEDULES = {
    cls.name: cls for cls in (LinearSchedule, CosineSchedule, PolynomialSchedule, GeometricSchedule, LogLinearSchedule)
}


def make_schedule(name: str, *, power: float = 1.0, eps: float = 1e-4) -> MaskingSchedule:
    """Create the masking schedule of a name.

    Args:
        name: "linear", "cosine", "poly", "geometric" or "loglinear"; a ValueError for any other.
        power: Exponent of "poly", in (0, 1e6]; the other schedules do not use it.
        eps: See `MaskingSchedule`.
    """
    if not (isinstance(name, str) and name in SCHEDULES):
        raise ValueError(f"`masking_schedule` must be one of {sorted(SCHEDULES)}, got {name!r}.")
    return PolynomialSchedule(eps, power) if name == PolynomialSchedule.name else SCHEDULES[name](eps)


class TokenPolynomialSchedule(nn.Module):
    """Masking schedules of GenMD4: (alpha_t)_i = 1 - (1 - eps) t^{w_i} for each token i, w = softplus(parameter).

    A token with a large exponent w stays unmasked for long and is generated early. alpha is 1 at t=0 and eps
    at t=1. Exponents and probabilities are computed in at least float32.

    Args:
        num_tokens: Number of ids, including the mask, whose exponent is not used.
        power: Initial exponent of every token, in (0, 1e6].
        eps: Probability that a token is still unmasked at t=1, in [0, 0.5).
    """

    def __init__(self, num_tokens: int, power: float = 1.0, eps: float = 1e-4):
        super().__init__()
        if not (isinstance(num_tokens, Integral) and num_tokens >= 1):
            raise ValueError(f"`num_tokens` must be an integer >= 1, got {num_tokens!r}.")
        _check_power(power)
        _check_eps(eps)
        self.eps = eps
        self.free_exponents = nn.Parameter(torch.full((num_tokens,), inverse_softplus(power)))

    def resize(self, num_tokens: int, power: float):
        """Keep the exponents of the first `num_tokens` ids; new ids start with the exponent `power`."""
        old = self.free_exponents.data
        new = old.new_full((num_tokens,), inverse_softplus(power))
        num_kept = min(num_tokens, len(old))
        new[:num_kept] = old[:num_kept]
        self.free_exponents = nn.Parameter(new)

    def forward(self) -> Tensor:
        """Exponents w, `(num_tokens,)`, as a call of the module, so that the hooks of offloaded weights run."""
        free = self.free_exponents
        return F.softplus(free if free.dtype == torch.float64 else free.float())

    @property
    def exponents(self) -> Tensor:
        """Exponents w, `(num_tokens,)`, positive."""
        return self()

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that each token is unmasked at `t`: times of any shape in [0, 1] -> `(*t.shape, num_tokens)`."""
        return 1.0 - (1.0 - self.eps) * t[..., None] ** self.exponents.to(t.device)

    def alpha_prime(self, t: Tensor) -> Tensor:
        """Time derivative of `alpha`, same shape."""
        exponents = self.exponents.to(t.device)
        return -(1.0 - self.eps) * exponents * t[..., None] ** (exponents - 1.0)

    def alpha_of(self, t: Tensor, tokens: Tensor) -> Tensor:
        """Probability that each of `tokens` `(batch, ...)` is unmasked at its example's time `(batch,)`."""
        return 1.0 - (1.0 - self.eps) * left_broadcast(t, tokens.dim()) ** self.exponents.to(t.device)[tokens]

    def unmask_probabilities(self, t: Tensor, s: Tensor) -> Tensor:
        """Float64 r_j = (alpha_s - alpha_t)_j / (1 - alpha_t)_j = 1 - (s/t)^{w_j}, s <= t, `(*t.shape, num_tokens)`."""
        ratio = (s.double() / t.double())[..., None]
        return 1.0 - ratio ** self.exponents.to(ratio)


def inverse_softplus(value: float) -> float:
    """Solve log(1 + exp(x)) = value for x, where value > 0."""
    return value + math.log(-math.expm1(-value))


def left_broadcast(value: Tensor, dim: int) -> Tensor:
    """Append axes of length 1 until `value` has `dim` axes."""
    return value.reshape(value.shape + (1,) * (dim - value.dim()))


def _check_eps(eps: float):
    if not (isinstance(eps, Real) and 0.0 <= eps < 0.5):
        raise ValueError(f"`eps` must be in [0, 0.5), got {eps!r}.")


def _check_power(power: float):
    if not (isinstance(power, Real) and power > 0.0):
        raise ValueError(f"`power` must be > 0, got {power!r}.")
    if power > MAX_POWER:
        raise ValueError(f"`power` must be at most {MAX_POWER:g}, got {power}.")
