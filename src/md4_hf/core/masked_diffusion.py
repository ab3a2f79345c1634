# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The mathematics of masked diffusion (MD4), with torch and the standard library only.

Source: Shi, Han, Wang, Doucet, Titsias, *Simplified and Generalized Masked Diffusion for Discrete Data*,
arXiv:2406.04329. Symbols are the paper's: time `t` in [0, 1] runs from data (0) to all masked (1), `alpha_t` is the
probability that a token is still unmasked at `t`, `x0` are clean ids, `xt` noised ids and `m` is the mask id. All
likelihoods are in nats.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedules import MaskingSchedule, TokenPolynomialSchedule, left_broadcast, make_schedule


IGNORE_INDEX = -100


def stratified_times(offset: float | Tensor, index: Tensor, total: int) -> Tensor:
    """Times t_i = (offset + i / total) mod 1 (the paper's low-discrepancy sampler): one per stratum of width 1/total.

    The uniform `offset` in [0, 1) is shared by all `total` examples; those at hand have indices `(n,)` in [0, total).
    Returns `(n,)` times in [0, 1) in the dtype of `offset`, float32 if it is a Python number.
    """
    dtype = offset.dtype if isinstance(offset, Tensor) else torch.float32
    return (offset + index.to(dtype) / total) % 1.0


def discretize_times(t: Tensor, num_timesteps: int) -> Tensor:
    """Map times in [0, 1), of any shape, to the ends 1/T, ..., 1 of their cells: the times of discrete-time MD4."""
    return (torch.floor(t * num_timesteps) + 1.0) / num_timesteps


def rescale_times(t: Tensor, first_time: float) -> Tensor:
    """Map times in [0, 1) to [t_1, 1), the times that GenMD4 trains on."""
    return (1.0 - first_time) * t + first_time


def corrupt(
    x0: Tensor,
    alpha_t: Tensor,
    mask_token_id: int,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Draw xt from q(x_t | x_0): each token stays with probability `alpha_t` and is masked otherwise (paper, eq. 3).

    Clean ids are `(batch, ...)`, as is the result; `alpha_t` is `(batch,)` or broadcasts from the left. Tokens
    stay where `noise`, uniform in [0, 1) and of the shape of `x0`, is below alpha_t; `generator` draws it by default.
    """
    if noise is None:
        device = generator.device if generator is not None else x0.device
        noise = torch.rand(x0.shape, generator=generator, device=device).to(x0.device)
    elif noise.shape != x0.shape:
        raise ValueError(f"`noise` must have the shape of `x0` {tuple(x0.shape)}, got {tuple(noise.shape)}.")
    return torch.where(noise < left_broadcast(alpha_t, x0.dim()), x0, mask_token_id)


# The negative evidence lower bound ------------------------------------------------------------------------------------


def nelbo_weight(schedule: MaskingSchedule, t: Tensor, num_timesteps: int | None = None) -> Tensor:
    """Weight of the cross entropy at time `t` in the NELBO; positive.

    Continuous time: -alpha'_t / (1 - alpha_t) (paper, eq. 5). Discrete time with T steps:
    T (alpha_s - alpha_t) / (1 - alpha_t) with s = t - 1/T (paper, eq. 4), which tends to the former as T grows.
    Times of any shape in [0, 1], multiples of 1/T for discrete time, give weights of that shape.
    """
    if num_timesteps is None:
        return -schedule.alpha_prime(t) / (1.0 - schedule.alpha(t))
    s = (t - 1.0 / num_timesteps).clamp(min=0.0)
    return num_timesteps * unmask_probability(schedule, t, s)


# All lengths up to 4096 fit into the cache: 4096 vectors of 2048 float64 on average, 64 MiB.
@functools.lru_cache(maxsize=4096)
def masked_count_weights(schedule: MaskingSchedule, num_tokens: int, num_timesteps: int | None = None) -> Tensor:
    """Weights w_n of the NELBO as a sum over the number n of masked tokens, `(num_tokens + 1,)` float64, w_0 = 0.

    Given n, any n of the N tokens are masked with equal probability, whatever the time and the schedule. Where the
    denoiser does not see the time, the diffusion part of the NELBO is therefore

        Σ_{n=1}^N w_n E[Σ_{masked} -log mu(x_t)[x_0]],  w_n = ∫ (-alpha'_t / (1 - alpha_t)) Bin(n; N, 1 - alpha_t) dt

    With u = 1 - alpha_t as the variable, w_n = (P(Bin(N, u_1) >= n) - P(Bin(N, u_0) >= n)) / n, which depends
    on the schedule only through its ends u_0 = 1 - alpha_0 and u_1 = 1 - alpha_1. With eps = 0 it is 1/n, the bound of
    order-agnostic autoregression (Uria, Murray, Larochelle 2014; Hoogeboom et al., arXiv:2110.02037). In discrete time
    the integral is a sum over the T times.

    `num_tokens` is N >= 1, the number of tokens that may be masked, `num_timesteps` is T, or None for continuous time.
    """
    if num_timesteps is None:
        ends = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
        at_least = _binomial(num_tokens, 1.0 - ends).flip(-1).cumsum(-1).flip(-1)
        n = torch.arange(num_tokens + 1, dtype=torch.float64)
        weights = (at_least[1] - at_least[0]) / n.clamp(min=1.0)
    else:
        t = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        weight = nelbo_weight(schedule, t, num_timesteps) / num_timesteps
        weights = weight @ _binomial(num_tokens, 1.0 - schedule.alpha(t))
    weights[0] = 0.0
    return weights


def _binomial(num_trials: int, probability: Tensor) -> Tensor:
    """Bin(n; num_trials, p) for n = 0 ... num_trials, `(len(probability), num_trials + 1)` float64."""
    n = torch.arange(num_trials + 1, dtype=torch.float64)
    p = probability[:, None].double()
    log_choose = torch.lgamma(n[-1] + 1.0) - torch.lgamma(n + 1) - n.flip(0).add(1).lgamma()
    return (log_choose + torch.xlogy(n, p) + torch.special.xlog1py(n.flip(0), -p)).exp()


def mask_lowest(
    x0: Tensor,
    is_scored: Tensor,
    num_masked: Tensor,
    mask_token_id: int,
    noise: Tensor,
    blocks: Tensor | None = None,
) -> Tensor:
    """Draw x_t with exactly `num_masked` masked tokens, the scored ones of lowest noise: all choices equally likely.

    Clean ids, booleans and uniform numbers are `(batch, ...)`; `num_masked` is `(batch,)`, at most the scored tokens.
    With the numbers of the blocks of the tokens, `(batch, length)`, it is `(batch, blocks)`: so many in each.
    """
    order = noise.masked_fill(~is_scored, math.inf).flatten(1).argsort(dim=1, stable=True)
    rank = torch.arange(order.shape[1], device=order.device)
    if blocks is None:
        is_low = rank < num_masked[:, None]
    else:
        order = order.gather(1, blocks.gather(1, order).argsort(dim=1, stable=True))  # block by block
        of_rank = blocks.gather(1, order)
        sizes = torch.zeros_like(num_masked).scatter_add(1, blocks, torch.ones_like(blocks))
        is_low = rank - (sizes.cumsum(dim=1) - sizes).gather(1, of_rank) < num_masked.gather(1, of_rank)
    chosen = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, is_low)
    return torch.where(chosen.view_as(x0), mask_token_id, x0)


def token_nelbo(logits: Tensor, x0: Tensor, xt: Tensor, weight: Tensor, mask_token_id: int) -> Tensor:
    """Diffusion part of the NELBO, in nats per token: weight * -log mu_theta(xt)[x0] where xt = m, else 0.

    Args:
        logits: `(batch, ..., vocab)` logits of the denoiser; the mask's own logit has to be suppressed by the caller.
        x0, xt: `(batch, ...)` clean and noised ids; -100 in `x0` marks tokens that are not scored.
        weight: `(batch,)` weights from `nelbo_weight`. The result is `(batch, ...)`, in at least float32.
        mask_token_id: The mask id m.
    """
    target = torch.where(xt == mask_token_id, x0, IGNORE_INDEX)
    nll = cross_entropy_nats(logits.flatten(0, -2), target.flatten()).view_as(x0)
    # `where`, not a product: the weight is infinite at t=0 when eps=0.
    return torch.where(target != IGNORE_INDEX, left_broadcast(weight, x0.dim()) * nll, 0.0)


def cross_entropy_nats(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy -log softmax(logits)[target] of each row, in at least float32; 0 where the target is -100."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, target.long(), ignore_index=IGNORE_INDEX, reduction="none")


def reconstruction_nelbo(schedule: MaskingSchedule, num_tokens: int | Tensor, vocab_size: int) -> Tensor:
    """Reconstruction term N (1 - alpha_0) log V in nats: tokens still masked at t=0 are guessed uniformly.

    `num_tokens` is N, the number of scored tokens, `vocab_size` is V, the number of data tokens (without the mask).
    """
    alpha_0 = schedule.alpha(torch.zeros((), device=num_tokens.device if isinstance(num_tokens, Tensor) else None))
    return num_tokens * (1.0 - alpha_0) * math.log(vocab_size)


# GenMD4: a masking schedule for each token, learned with the denoiser (paper, section on state-dependent schedules) ---


def genmd4_cross_entropy_nats(logits: Tensor, target: Tensor, exponents: Tensor) -> Tensor:
    """GenMD4's w_x (-log mu[x] - 1) + sum_v w_v mu_v of each row, in at least float32; 0 where the target is -100.

    Divided by t, this is the diffusion part of GenMD4's NELBO at a masked position (paper, the limit T -> infinity):
    the sum over v of (alpha'_t / (1 - alpha_t))_v (x_v (log mu_v + 1) - mu_v), where alpha'/(1 - alpha) = -w / t.
    Logits are `(rows, vocab)`, with the mask's own suppressed, targets `(rows,)`, and exponents w `(vocab,)`.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = cross_entropy_nats(logits, target)
    scored = target != IGNORE_INDEX
    own = exponents[torch.where(scored, target, 0)]
    value = own * (nll - 1.0) + (exponents * logits.softmax(dim=-1)).sum(dim=-1)
    return torch.where(scored, value, 0.0)


def genmd4_token_nelbo(
    logits: Tensor, x0: Tensor, xt: Tensor, exponents: Tensor, t: Tensor, mask_token_id: int
) -> Tensor:
    """Diffusion part of GenMD4's NELBO in nats per token, 0 where xt is not masked; it may be negative.

    Arguments and result as in `token_nelbo`, but with the exponents w of the tokens' schedules, `(vocab,)`, and times
    `(batch,)` in [t_1, 1] in place of weights.
    """
    target = torch.where(xt == mask_token_id, x0, IGNORE_INDEX)
    value = genmd4_cross_entropy_nats(logits.flatten(0, -2), target.flatten(), exponents).view_as(x0)
    return value / left_broadcast(t, x0.dim())


def genmd4_reconstruction_nelbo(
    x0: Tensor,
    schedule: TokenPolynomialSchedule,
    first_time: float,
    mask_token_id: int,
    unused_token_ids: list[list[int]] | None = None,
) -> Tensor:
    """Reconstruction part of GenMD4's NELBO in nats per token: tokens masked at t_1 are guessed from the schedules.

    Token x is masked with probability (1 - eps) t_1^{w_x} and guessed with probability t_1^{w_x} / sum_v t_1^{w_v},
    without the mask and ids without a token. Clean ids are `(batch, ...)`; -100 marks tokens that are not scored, which
    get 0.
    """
    log_survival = schedule.exponents.to(x0.device) * math.log(first_time)
    is_no_data = _is_no_data(log_survival, mask_token_id, unused_token_ids)
    log_total = torch.logsumexp(log_survival.masked_fill(is_no_data, -torch.inf), dim=0)
    scored = x0 != IGNORE_INDEX
    own = log_survival[torch.where(scored, x0, 0)]
    return torch.where(scored, (1.0 - schedule.eps) * own.exp() * (log_total - own), 0.0)


def log_forward_probability(
    schedule: TokenPolynomialSchedule, t: Tensor, x0: Tensor, xt: Tensor, mask_token_id: int
) -> Tensor:
    """log q(x_t | x_0) of GenMD4 per token, `(batch, ...)` nats <= 0, with gradient in the exponents.

    Times are `(batch,)` in (0, 1], ids `(batch, ...)`; -100 in `x0` marks tokens that are never masked, which get 0.
    """
    scored = x0 != IGNORE_INDEX
    x0 = torch.where(scored, x0, 0)
    t = left_broadcast(t, x0.dim())
    log_masked = math.log1p(-schedule.eps) + schedule.exponents.to(x0.device)[x0] * t.log()
    log_q = torch.where(xt == mask_token_id, log_masked, torch.log1p(-log_masked.exp()))
    return torch.where(scored, log_q, 0.0)


def rloo_surrogate(losses: Tensor, log_probabilities: Tensor) -> Tensor:
    """Surrogate whose gradient is an unbiased estimate of that of E_q[loss], where the parameters also shape q.

    The surrogate, `(...)`, is the mean loss of K samples plus the REINFORCE leave-one-out term: the log probability of
    each sample, times the amount by which its loss exceeds the mean loss of the remaining samples (Kool, van Hoof,
    Welling, 2019; Salimans and Knowles, 2014).

    Args:
        losses: `(..., copies)` losses of K independent samples from q; a ValueError for fewer than 2.
        log_probabilities: `(..., copies)` log q of the samples, with gradient.
    """
    copies = losses.shape[-1]
    if copies < 2:
        raise ValueError(f"`losses` must hold at least 2 copies, got {copies}.")
    baseline = (losses.sum(dim=-1, keepdim=True) - losses) / (copies - 1)
    return (losses + (losses - baseline).detach() * log_probabilities).mean(dim=-1)


# The reverse process, and its score and Markov chain views ------------------------------------------------------------


def unmask_probability(schedule: MaskingSchedule, t: Tensor, s: Tensor) -> Tensor:
    """Probability (alpha_s - alpha_t) / (1 - alpha_t) that a token masked at `t` is unmasked by `s` <= `t`.

    Times broadcast; the result lies in [0, 1], and is 1 where no token can be masked at `t` (alpha_t = 1).
    """
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    probability = (alpha_s - alpha_t) / (1.0 - alpha_t)
    return torch.where(alpha_t < 1.0, probability, 1.0).clamp(0.0, 1.0)


def reverse_probabilities(logits: Tensor, unmask_probability: Tensor, mask_token_id: int) -> Tensor:
    """Table p(x_s | x_t = m) of a reverse step: token j with probability r mu_j, the mask with 1 - r; float64.

    Logits are `(batch, ..., vocab)`, the mask's own is not used; r is `(batch,)` or a scalar. The mask's column of the
    table is the probability of staying masked.
    """
    r = left_broadcast(unmask_probability.double(), logits.dim())
    return torch.where(is_mask(logits, mask_token_id), 1.0 - r, r * denoiser_probabilities(logits, mask_token_id))


def genmd4_reverse_probabilities(logits: Tensor, unmask_probabilities: Tensor, mask_token_id: int) -> Tensor:
    """Table p(x_s | x_t = m) of GenMD4: token j with probability r_j mu_j, the mask with the rest; float64.

    Arguments as in `reverse_probabilities`, but `unmask_probabilities` r is `(vocab,)`, or broadcasts with `logits`.
    """
    table = unmask_probabilities.double() * denoiser_probabilities(logits, mask_token_id)
    return torch.where(is_mask(logits, mask_token_id), 1.0 - table.sum(dim=-1, keepdim=True), table)


def denoiser_probabilities(logits: Tensor, mask_token_id: int) -> Tensor:
    """Denoiser probabilities mu, the softmax of the logits in float64 without the mask; same shape as `logits`."""
    return torch.softmax(logits.double().masked_fill(is_mask(logits, mask_token_id), -torch.inf), dim=-1)


def suppress_mask(logits: Tensor, mask_token_id: int, unused_token_ids: list[list[int]] | None = None) -> Tensor:
    """Set the logits of the mask and of ids without a token, which no model predicts, to finfo.min; `(..., vocab)`."""
    return logits.masked_fill(_is_no_data(logits, mask_token_id, unused_token_ids), torch.finfo(logits.dtype).min)


def is_unused(vocab_size: int, unused_token_ids: list[list[int]], device: torch.device) -> Tensor:
    """Booleans `(vocab,)` that are true at the ids in ascending ranges `[first, end)`, which have no token."""
    unused = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    for first, end in unused_token_ids:
        unused[first:end] = True
    return unused


def _is_no_data(x: Tensor, mask_token_id: int, unused_token_ids: list[list[int]] | None) -> Tensor:
    """Booleans `(vocab,)` that are true at the mask and at ids without a token, for the last axis of `x`."""
    masked = is_mask(x, mask_token_id)
    return masked | is_unused(x.shape[-1], unused_token_ids, x.device) if unused_token_ids else masked


def is_mask(x: Tensor, mask_token_id: int) -> Tensor:
    """Booleans `(vocab,)` that are true at the mask, for the last axis of `x`."""
    return torch.arange(x.shape[-1], device=x.device) == mask_token_id


def score_from_mean(mean: Tensor, alpha_t: Tensor) -> Tensor:
    """Concrete score s(m, t)_j = alpha_t / (1 - alpha_t) mu_j of a masked position (paper, section 4).

    `mean` is mu, the denoiser's probabilities `(batch, ..., vocab)`, and `alpha_t` is `(batch,)` or a scalar.
    """
    return left_broadcast(alpha_t / (1.0 - alpha_t), mean.dim()) * mean


def mean_from_score(score: Tensor, alpha_t: Tensor) -> Tensor:
    """Denoiser probabilities from the concrete score of a masked position: the inverse of `score_from_mean`.

    `score` is `(batch, ..., vocab)`, >= 0, and `alpha_t` is `(batch,)` or a scalar, in (0, 1).
    """
    return left_broadcast((1.0 - alpha_t) / alpha_t, score.dim()) * score


def forward_rate(schedule: MaskingSchedule, t: Tensor) -> Tensor:
    """Rate beta(t) = -alpha'_t / alpha_t at which an unmasked token jumps to the mask.

    The generator of the forward Markov chain is Q(t) = beta(t) (1 m^T - I). Times of any shape in [0, 1] give rates of
    the same shape, >= 0; infinite where alpha_t is 0, as at t = 1 without eps.
    """
    return -schedule.alpha_prime(t) / schedule.alpha(t)


def reverse_rate(schedule: MaskingSchedule, t: Tensor) -> Tensor:
    """Rate -alpha'_t / (1 - alpha_t) at which a masked token is unmasked in reverse time.

    A token becomes j at this rate times mu_j. The rate is also the weight of the continuous-time NELBO: see
    `nelbo_weight`. It is infinite where alpha_t is 1, as at t = 0 without eps.
    """
    return nelbo_weight(schedule, t)


# Categorical draws ----------------------------------------------------------------------------------------------------


def draw_categorical(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw of one category per row.

    Draws are in float64: float32 Gumbel noise cuts off the tail, which in effect lowers the temperature
    (arXiv:2409.02908). A category of probability 0 is never drawn.

    `probabilities` `(..., categories)` need not sum to one. `uniform` `(...)` are float64 numbers in [0, 1), and the
    indices that are drawn have their shape.
    """
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform.unsqueeze(-1) * cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    # Rounding can raise the threshold to the total: the last category with any weight is then the draw.
    last = (probabilities > 0).cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(drawn, last)


def top_p_logits(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches `top_p`; the others get finfo.min.

    Tokens tied with the last one kept are kept too. `top_p` in (0, 1]; 1 keeps everything.
    """
    check_top_p(top_p)
    if top_p == 1.0:
        return logits
    ordered = logits.sort(dim=-1, descending=True).values
    probabilities = ordered.softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    num_kept = (mass_before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)  # the sum is 0 for nan
    return _below_to_min(logits, ordered.gather(-1, num_kept - 1))


def top_k_logits(logits: Tensor, top_k: int) -> Tensor:
    """Keep the `top_k` >= 1 most probable tokens (and ties with the last of them); the others get finfo.min."""
    check_top_k(top_k)
    if top_k >= logits.shape[-1]:
        return logits
    return _below_to_min(logits, logits.topk(int(top_k), dim=-1).values[..., -1:])


def check_top_p(top_p: float):
    """Raise a ValueError unless `top_p` is a number in (0, 1]."""
    if not (isinstance(top_p, Real) and 0.0 < top_p <= 1.0):
        raise ValueError(f"`top_p` must be in (0, 1], got {top_p!r}.")


def check_top_k(top_k: int):
    """Raise a ValueError unless `top_k` is an integer >= 1."""
    if not (isinstance(top_k, Integral) and top_k >= 1):
        raise ValueError(f"`top_k` must be >= 1, got {top_k!r}.")


def _below_to_min(logits: Tensor, threshold: Tensor) -> Tensor:
    return logits.masked_fill(logits < threshold, torch.finfo(logits.dtype).min)


# Forward processes with the terms of their bound ----------------------------------------------------------------------


class MaskingProcess:
    """Forward process q(x_t | x_0) with the masking `schedule` and the mask id m.

    MD4's, with one schedule for all tokens, and GenMD4's have the same methods: others need not know which they use.
    """

    schedule: MaskingSchedule | TokenPolynomialSchedule
    mask_token_id: int

    def draw_xt(self, x0: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t of clean ids at times `(batch,)`; tokens with the label -100 are never masked."""
        xt = corrupt(x0, self.schedule.alpha_of(t, x0).detach(), self.mask_token_id, noise=noise)
        return torch.where(labels != IGNORE_INDEX, xt, x0)


@dataclass(frozen=True)
class MD4Process(MaskingProcess):
    """Forward process of MD4: one fixed schedule for V data tokens (without the mask), and T steps or None."""

    schedule: MaskingSchedule
    mask_token_id: int
    num_data_tokens: int
    num_timesteps: int | None = None

    training_copies: ClassVar[int | None] = None  # one x_t of each example, without an axis of copies

    def times(self, uniform: Tensor) -> Tensor:
        """Training times from uniform numbers in [0, 1), of any shape."""
        return uniform if self.num_timesteps is None else discretize_times(uniform, self.num_timesteps)

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the term of a masked token, at times of any shape."""
        return nelbo_weight(self.schedule, t, self.num_timesteps)

    def exponents(self, device: torch.device) -> Tensor | None:
        """Learned exponents of the tokens' schedules: None, as there are none."""
        return None

    def token_nelbo(self, logits: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Diffusion part of the NELBO in nats of each token, from all logits; same shape as the ids."""
        return token_nelbo(logits, x0, xt, self.weight(t), self.mask_token_id)

    def reconstruction(self, labels: Tensor) -> Tensor:
        """Reconstruction part of the NELBO of each example, `(batch,)` nats."""
        num_scored = (labels != IGNORE_INDEX).flatten(1).sum(dim=1)
        return reconstruction_nelbo(self.schedule, num_scored, self.num_data_tokens)

    def surrogate(self, nelbo: Tensor, labels: Tensor, xt: Tensor, t: Tensor) -> Tensor | None:
        """Term that carries the gradient of learned schedules: None, as the schedule is fixed."""
        return None


@dataclass(frozen=True)
class GenMD4Process(MaskingProcess):
    """Forward process of GenMD4: each token has a learned schedule of its own; times start at `first_time`, t_1."""

    schedule: TokenPolynomialSchedule
    mask_token_id: int
    first_time: float
    unused_token_ids: list[list[int]] | None = None

    training_copies: ClassVar[int | None] = 2  # noised copies of each example: the leave-one-out gradient needs two

    def times(self, uniform: Tensor) -> Tensor:
        """Training times in [t_1, 1) from uniform numbers in [0, 1), of any shape."""
        return rescale_times(uniform, self.first_time)

    def weight(self, t: Tensor) -> Tensor:
        """Weight 1/t of the term of a masked token, at times of any shape."""
        return 1.0 / t

    def exponents(self, device: torch.device) -> Tensor | None:
        """Learned exponents `(vocab,)` of the tokens' schedules."""
        return self.schedule.exponents.to(device)

    def token_nelbo(self, logits: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Diffusion part of the NELBO in nats of each token, from all logits; same shape as the ids."""
        return genmd4_token_nelbo(logits, x0, xt, self.exponents(logits.device), t, self.mask_token_id)

    def reconstruction(self, labels: Tensor) -> Tensor:
        """Reconstruction part of the NELBO of each example, `(batch,)` nats."""
        tokens = (self.mask_token_id, self.unused_token_ids)
        nelbo = genmd4_reconstruction_nelbo(labels, self.schedule, self.first_time, *tokens)
        return nelbo.flatten(1).sum(dim=1)

    def surrogate(self, nelbo: Tensor, labels: Tensor, xt: Tensor, t: Tensor) -> Tensor | None:
        """REINFORCE leave-one-out surrogate of the diffusion part, summed over the examples.

        `nelbo` (nats) and `xt` are `(batch, copies, ...)` with K >= 2 copies, `labels` `(batch, ...)`, `t` `(batch,)`.
        """
        batch, copies = xt.shape[:2]
        t, x0 = (x.repeat_interleave(copies, dim=0) for x in (t, labels))
        log_q = log_forward_probability(self.schedule, t, x0, xt.flatten(0, 1), self.mask_token_id)
        log_q = log_q.flatten(1).sum(dim=1).view(batch, copies)
        return rloo_surrogate(nelbo.detach().flatten(2).sum(dim=2), log_q).sum()


def md4_process(config) -> MD4Process:
    """Forward process with the fixed schedule that an `MD4Config` names."""
    schedule = make_schedule(config.masking_schedule, power=config.schedule_power, eps=config.schedule_eps)
    return MD4Process(schedule, config.mask_token_id, config.num_data_tokens, config.num_train_timesteps)
