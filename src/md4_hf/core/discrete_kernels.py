# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Kernels of discrete diffusion: each token is kept, or drawn anew from a noise distribution; with torch only.

From time s to time t > s a token is kept with probability alpha_t / alpha_s and is drawn from `pi` otherwise:

    q(x_t | x_s) = (alpha_t / alpha_s) x_s + (1 - alpha_t / alpha_s) pi

The noise pi of the absorbing kernel is the mask; that of the uniform kernel is uniform over all S states. Sources:
Austin et al., *Structured Denoising Diffusion Models in Discrete State-Spaces* (D3PM), arXiv:2107.03006; Hoogeboom et
al., *Argmax Flows and Multinomial Diffusion*, arXiv:2102.05379; and, for continuous time, Schiff et al. (UDLM),
arXiv:2412.10193 and Sahoo et al. (Duo), arXiv:2506.10892. Likelihoods are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .masked_diffusion import is_mask
from .schedules import left_broadcast


@dataclass(frozen=True)
class Kernel:
    """Forward kernel over S states with the noise distribution pi.

    Args:
        num_states: S, the number of states.
        mask_state: State that absorbs, whose kernel this is; None for the uniform kernel.
    """

    num_states: int
    mask_state: int | None = None

    def noise(self, like: Tensor) -> Tensor:
        """Noise distribution pi `(states,)`, of the type and device of a tensor."""
        if self.mask_state is None:
            return like.new_full((self.num_states,), 1.0 / self.num_states)
        return is_mask(like.new_empty(self.num_states), self.mask_state).to(like.dtype)

    def draw_noise(self, uniform: Tensor) -> Tensor:
        """States drawn from pi by uniform numbers in [0, 1); same shape."""
        if self.mask_state is not None:
            return torch.full_like(uniform, self.mask_state, dtype=torch.long)
        return (uniform * self.num_states).long().clamp(max=self.num_states - 1)

    def one_hot(self, states: Tensor, like: Tensor) -> Tensor:
        """Distributions `(..., states)` of certain states `(...)`, of the type of a tensor."""
        return like.new_zeros((*states.shape, self.num_states)).scatter_(-1, states[..., None], 1.0)

    def marginal(self, x: Tensor, keep: Tensor) -> Tensor:
        """Distribution after noise that keeps a token with probability `keep` `(batch,)`, of `x` `(batch, ..., S)`."""
        keep = left_broadcast(keep, x.dim())
        return keep * x + (1.0 - keep) * self.noise(x)

    def likelihood(self, xt: Tensor, keep: Tensor, like: Tensor) -> Tensor:
        """Probability of the states `xt` `(batch, ...)` after that noise from each state: `(batch, ..., S)`."""
        keep = left_broadcast(keep, xt.dim() + 1)
        return keep * self.one_hot(xt, like) + (1.0 - keep) * self.noise(like)[xt][..., None]

    def posterior(self, x0: Tensor, xt: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """Distribution of x_s given x_t and a distribution of x_0, normalised: q(x_t | x_s) q(x_s | x_0).

        With a one-hot `x0` that is q(x_s | x_t, x_0); with the denoiser's prediction it is the model's reverse step,
        in the parameterisation of D3PM and multinomial diffusion.

        Args:
            x0: `(batch, ..., S)` distributions.
            xt: `(batch, ...)` states.
            alpha_t, alpha_s: `(batch,)` probabilities that a token is kept until t, and until s < t.
        """
        weights = self.likelihood(xt, _ratio(alpha_t, alpha_s), x0) * self.marginal(x0, alpha_s)
        total = weights.sum(dim=-1, keepdim=True)
        # Given tokens may be in a state that noise never leads to, as unmasked at t = 1: they stay.
        return torch.where(total > 0.0, weights / total.clamp(min=_tiny(total)), self.one_hot(xt, x0))

    def prior_kl(self, alpha_1: float) -> float:
        """KL divergence in nats, per token, of the noised end from pi, where `alpha_1` are still kept.

        Infinite for an absorbing kernel that leaves a share unmasked.
        """
        if alpha_1 == 0.0:
            return 0.0
        if self.mask_state is not None:
            return math.inf
        own, other = alpha_1 + (1.0 - alpha_1) / self.num_states, (1.0 - alpha_1) / self.num_states
        return own * math.log(own * self.num_states) + (self.num_states - 1) * _xlogy(other, other * self.num_states)


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of distributions `(..., S)` in nats, `(...)`; where p is 0, nothing is added."""
    return (torch.xlogy(p, p) - p * q.clamp(min=_tiny(q)).log()).sum(dim=-1)


def uniform_nelbo(logits: Tensor, x0: Tensor, xt: Tensor, alpha_t: Tensor, alpha_prime: Tensor) -> Tensor:
    """Diffusion part of the continuous-time NELBO of the uniform kernel, in nats per token; not negative.

    With X = S alpha x_0 + 1 - alpha, Y = S alpha p + 1 - alpha and i = x_t (Duo, arXiv:2506.10892; the bound of UDLM):

        -alpha' / (S alpha) (S / Y_i - S / X_i + sum_j X_j / X_i log(Y_i X_j / (Y_j X_i)))

    Args:
        logits: `(batch, ..., S)`; p is their softmax.
        x0, xt: `(batch, ...)` states.
        alpha_t, alpha_prime: `(batch,)` probability of being kept, and its time derivative.
    """
    num_states = logits.shape[-1]
    alpha = left_broadcast(alpha_t, x0.dim())
    rest = 1.0 - alpha
    y = num_states * alpha[..., None] * logits.softmax(dim=-1) + rest[..., None]
    log_y, y_i = y.log(), y.gather(-1, xt[..., None]).squeeze(-1)
    # X_j is 1 - alpha but for j = x_0: the sum over j splits into that of all Y_j and the term of x_0.
    x_i = torch.where(xt == x0, num_states * alpha + rest, rest)
    x_own = num_states * alpha + rest
    log_y_own = log_y.gather(-1, x0[..., None]).squeeze(-1)
    relative = y_i.log() - x_i.log()
    others = rest * ((num_states - 1) * relative - log_y.sum(dim=-1) + log_y_own)
    others = others + (num_states - 1) * torch.xlogy(rest, rest)
    own = x_own * (relative + x_own.log() - log_y_own)
    weight = -left_broadcast(alpha_prime, x0.dim()) / (num_states * alpha)
    return weight * (num_states / y_i - num_states / x_i + (others + own) / x_i)


def score_entropy(log_score: Tensor, x0: Tensor, xt: Tensor, alpha_t: Tensor, mask_state: int) -> Tensor:
    """Score entropy of the absorbing kernel, per token, 0 where x_t is not masked (SEDD: Lou et al., arXiv:2310.16834).

    With r = alpha / (1 - alpha), the true score of x_0: sum_y s_y - r log s_x0 + r (log r - 1), the mask left out.
    Times the forward rate -alpha' / alpha, it is the diffusion part of the NELBO.

    Args:
        log_score: `(batch, ..., S)` logarithms of the concrete score s; the mask's is not used.
        x0, xt: `(batch, ...)` states.
        alpha_t: `(batch,)` probability of being unmasked.
        mask_state: State of the mask.
    """
    total = log_score.masked_fill(is_mask(log_score, mask_state), -torch.inf).exp().sum(dim=-1)
    ratio = left_broadcast(alpha_t / (1.0 - alpha_t), x0.dim())
    own = log_score.gather(-1, x0[..., None]).squeeze(-1)
    return torch.where(xt == mask_state, total - ratio * own + ratio * (ratio.log() - 1.0), 0.0)


def _ratio(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    return alpha_t / alpha_s.clamp(min=_tiny(alpha_s))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _xlogy(x: float, y: float) -> float:
    return x * math.log(y) if x else 0.0
