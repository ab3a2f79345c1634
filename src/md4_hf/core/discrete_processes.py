# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The baselines of MD4 as discrete diffusion processes: how a text is noised, its bound, and the step back.

Siblings that answer the same calls: D3PM and multinomial diffusion, chains of T steps; SEDD, which predicts the score;
and the uniform kernel in continuous time. Time runs from 0 (data) to 1; a chain's step k ends at the time k / T. Bounds
are in nats per token and computed in float64. Sources: see `discrete_kernels`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .discrete_kernels import Kernel, categorical_kl, score_entropy, uniform_nelbo
from .masked_diffusion import IGNORE_INDEX, discretize_times, is_mask, is_unused
from .schedules import LogLinearSchedule, MaskingSchedule, left_broadcast


FIRST_TIME = 2.0**-24  # continuous times are at least this: at 0, terms are 0 times infinity
COSINE_OFFSET = 0.008  # of the cosine schedule, which begins a little later than at its peak


@dataclass(frozen=True)
class DiscreteProcess:
    """Noise process with the terms of its bound. States are numbers in [0, S), times those of a batch, `(batch,)`."""

    kernel: Kernel

    is_absorbing: ClassVar[bool] = False  # whether a mask is among the states
    predicts_tokens: ClassVar[bool] = True  # whether logits are those of tokens, of which only differences matter

    @classmethod
    def from_config(cls, kernel: Kernel, config) -> DiscreteProcess:
        """Process with a kernel and the settings of an `MD4Config`."""
        raise NotImplementedError(f"{cls.__name__} must define `from_config`.")

    @property
    def loss_is_bound(self) -> bool:
        """Whether the training loss is the bound itself."""
        return True

    @property
    def first_share(self) -> float:
        """Share of the times whose term of the bound outweighs the others by far, from 0 on: 0 in continuous time."""
        return 0.0

    def times(self, uniform: Tensor) -> Tensor:
        """Training times from uniform numbers in [0, 1), of any shape."""
        return uniform.clamp(min=FIRST_TIME)

    def beyond_first(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [`first_share`, 1) from those in [0, 1)."""
        return uniform

    def alpha(self, t: Tensor) -> Tensor:
        """Probability in float64 that a token was kept until `t`."""
        raise NotImplementedError(f"{type(self).__name__} must define `alpha`.")

    def draw_xt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw noised states of `x0` `(batch, ...)`, by uniform numbers `(batch, ..., 2)` in [0, 1).

        A token is kept where the first number is below alpha_t, and the second one draws the noise.
        """
        is_kept = noise[..., 0] < left_broadcast(self.alpha(t), x0.dim())
        return torch.where(is_kept, x0, self.kernel.draw_noise(noise[..., 1]))

    def token_nelbo(self, logits: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Estimate of the bound's part that depends on time, `(batch, ...)` nats, from logits `(batch, ..., S)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `token_nelbo`.")

    def token_loss(self, nelbo: Tensor, logits: Tensor, x0: Tensor) -> Tensor:
        """Training loss of each token, from the bound: the bound itself by default."""
        return nelbo

    @property
    def prior_nats(self) -> float:
        """Part of the bound that no denoiser changes, in nats per token: the KL divergence of x_1 from the noise."""
        return 0.0

    def reverse(self, logits: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Distribution of x_s given x_t, `(batch, ..., S)` in float64; s = 0 is the last step."""
        raise NotImplementedError(f"{type(self).__name__} must define `reverse`.")


@dataclass(frozen=True)
class ChainProcess(DiscreteProcess):
    """Chain of T steps, which predicts x_0 (D3PM).

    The bound is a sum over the steps k of KL(q(x_{k-1} | x_k, x_0) || p(x_{k-1} | x_k)), where p averages q over the
    prediction; its first term, k = 1, is -log p(x_0 | x_1) at every token, noised or not.

    Args:
        num_timesteps: T.
        hybrid_weight: Lambda, the weight of the cross entropy -log p(x_0 | x_t) that is added to each step's term in
            training.
    """

    num_timesteps: int
    hybrid_weight: float = 0.0

    @classmethod
    def from_config(cls, kernel: Kernel, config) -> DiscreteProcess:
        """Process with the steps and the weight of a configuration."""
        return cls(kernel, config.num_train_timesteps, config.hybrid_weight)

    @property
    def loss_is_bound(self) -> bool:
        """False where the cross entropy is added."""
        return self.hybrid_weight == 0.0

    @property
    def first_share(self) -> float:
        """Share of the first step, 1 / T."""
        return 1.0 / self.num_timesteps

    def times(self, uniform: Tensor) -> Tensor:
        """Ends of steps, k / T."""
        return discretize_times(uniform, self.num_timesteps).clamp(max=1.0)

    def beyond_first(self, uniform: Tensor) -> Tensor:
        """Middles of the steps 2 ... T: a number at the border of two might be rounded into the other."""
        steps = (uniform * (self.num_timesteps - 1)).floor()
        return (steps + 1.5) / self.num_timesteps

    def token_nelbo(self, logits: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """T times the term of the step that ends at `t`."""
        logits, s = logits.double(), t.double() - 1.0 / self.num_timesteps
        s = torch.where(s < 0.5 / self.num_timesteps, 0.0, s)
        exact = self.kernel.one_hot(x0, logits)
        posterior = self.kernel.posterior(exact, xt, self.alpha(t), self.alpha(s))
        # At s = 0 the posterior is x_0 itself, and the divergence -log p(x_0 | x_1).
        return self.num_timesteps * categorical_kl(posterior, self.reverse(logits, xt, t, s))

    def token_loss(self, nelbo: Tensor, logits: Tensor, x0: Tensor) -> Tensor:
        """Bound and cross entropy, weighted 1 : T lambda, with weights that sum to 1: D3PM's loss up to a factor."""
        if self.loss_is_bound:
            return nelbo
        weight = self.num_timesteps * self.hybrid_weight
        cross_entropy = F.cross_entropy(logits.flatten(0, -2).double(), x0.flatten(), reduction="none").view_as(nelbo)
        return (nelbo + weight * cross_entropy) / (1.0 + weight)

    @property
    def prior_nats(self) -> float:
        """KL divergence of x_T from the noise."""
        return self.kernel.prior_kl(self.alpha(torch.ones((), dtype=torch.float64)).item())

    def reverse(self, logits: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Posterior averaged over the prediction; at s = 0 the prediction itself."""
        prediction = logits.double().softmax(dim=-1)
        posterior = self.kernel.posterior(prediction, xt, self.alpha(t), self.alpha(s))
        return torch.where(left_broadcast(s > 0.0, logits.dim()), posterior, prediction)


class AbsorbingChain(ChainProcess):
    """D3PM with the absorbing kernel and beta_k = 1 / (T - k + 1): the mask's share grows by 1/T at each step."""

    is_absorbing = True

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1.0 - t.double()


class UniformChain(ChainProcess):
    """D3PM with the uniform kernel and the cosine schedule: alpha_t = f(t) / f(0), f(t) = cos(pi/2 (t + o) / (1 + o)).

    In the last step, where f is 0, a token is kept with the probability `last_keep`.
    """

    last_keep: ClassVar[float] = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        """Product of the steps' probabilities."""
        before_last = torch.full_like(t, 1.0 - 1.0 / self.num_timesteps, dtype=torch.float64)
        is_last = t > 1.0 - 0.5 / self.num_timesteps
        return torch.where(is_last, self.last_keep * _cosine(before_last), _cosine(t.double()))


class MultinomialChain(UniformChain):
    """Multinomial diffusion (Hoogeboom et al.): as D3PM's uniform chain, whose first step looks at x_1 too."""

    last_keep: ClassVar[float] = math.sqrt(1e-3)

    @property
    def first_share(self) -> float:
        """0: a step that looks at x_1, which is x_0 but for a few tokens, costs no more than the others."""
        return 0.0

    def beyond_first(self, uniform: Tensor) -> Tensor:
        """The numbers themselves."""
        return uniform

    def reverse(self, logits: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Posterior averaged over the prediction, also at s = 0."""
        prediction = logits.double().softmax(dim=-1)
        return self.kernel.posterior(prediction, xt, self.alpha(t), self.alpha(s))


@dataclass(frozen=True)
class ContinuousProcess(DiscreteProcess):
    """Process in continuous time with a schedule alpha_t that is 1 at t = 0."""

    schedule: MaskingSchedule

    @classmethod
    def from_config(cls, kernel: Kernel, config) -> DiscreteProcess:
        """Process with the log-linear schedule of a configuration's `schedule_eps`."""
        return cls(kernel, LogLinearSchedule(eps=config.schedule_eps))

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that the schedule gives."""
        return self.schedule.alpha(t.double())


class UniformProcess(ContinuousProcess):
    """Uniform kernel in continuous time (UDLM, Duo), which predicts x_0."""

    def token_nelbo(self, logits: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """See `uniform_nelbo`."""
        return uniform_nelbo(logits.double(), x0, xt, self.alpha(t), self.schedule.alpha_prime(t.double()))

    @property
    def prior_nats(self) -> float:
        """KL divergence of x_1 from the uniform distribution."""
        return self.kernel.prior_kl(self.alpha(torch.ones((), dtype=torch.float64)).item())

    def reverse(self, logits: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Posterior given the prediction."""
        return self.kernel.posterior(logits.double().softmax(dim=-1), xt, self.alpha(t), self.alpha(s))


@dataclass(frozen=True)
class ScoreProcess(ContinuousProcess):
    """SEDD: the absorbing kernel in continuous time, with the concrete score as prediction, which need not be normal.

    The network gives log s + log((1 - alpha) / alpha) + log(S - 1), so that its exponentials sum to S - 1 where the
    score is one of a distribution. As in MD4, the share alpha_1 that is never masked is left out of the bound.

    Args:
        is_euler: Whether the step back is an Euler step, and not the analytic one (Tweedie).
    """

    is_euler: bool = False

    is_absorbing = True
    predicts_tokens = False

    def log_score(self, logits: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the score s(m, t), `(batch, ..., S)` in float64; the mask's entry means nothing."""
        alpha = self.alpha(t)
        shift = (alpha / (1.0 - alpha)).log() - math.log(self.kernel.num_states - 1)
        return logits.double() + left_broadcast(shift, logits.dim())

    def total_score(self, logits: Tensor) -> Tensor:
        """Sum of the score over all tokens, in units of alpha / (1 - alpha), `(batch, ...)`: 1 for a consistent one."""
        masked = is_mask(logits, self.kernel.mask_state)
        return logits.double().masked_fill(masked, -torch.inf).exp().sum(dim=-1) / (self.kernel.num_states - 1)

    def token_nelbo(self, logits: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Forward rate times score entropy."""
        alpha = self.alpha(t)
        rate = -self.schedule.alpha_prime(t.double()) / alpha
        entropy = score_entropy(self.log_score(logits, t), x0, xt, alpha, self.kernel.mask_state)
        return left_broadcast(rate, x0.dim()) * entropy

    def reverse(self, logits: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Step of the score; where its probabilities exceed 1 they are scaled, and at s = 0 the mask is left out."""
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        factor = alpha_s / alpha_t - 1.0
        if self.is_euler:
            factor = -self.schedule.alpha_prime(t.double()) / alpha_t * (t - s).double()
        opened = left_broadcast(factor, logits.dim()) * self.log_score(logits, t).exp()
        masked = is_mask(logits, self.kernel.mask_state)
        opened = opened.masked_fill(masked, 0.0)
        total = opened.sum(dim=-1, keepdim=True)
        opened = opened / torch.where(left_broadcast(s > 0.0, logits.dim()), total.clamp(min=1.0), total)
        table = torch.where(masked, 1.0 - opened.sum(dim=-1, keepdim=True), opened).clamp(min=0.0)
        return torch.where((xt == self.kernel.mask_state)[..., None], table, self.kernel.one_hot(xt, table))


def _cosine(t: Tensor) -> Tensor:
    angle = math.pi / 2.0 / (1.0 + COSINE_OFFSET)
    return torch.cos(angle * (t + COSINE_OFFSET)) / math.cos(angle * COSINE_OFFSET)


PROCESSES: dict[str, type[DiscreteProcess]] = {
    "d3pm-absorb": AbsorbingChain,
    "d3pm-uniform": UniformChain,
    "multinomial": MultinomialChain,
    "sedd-absorb": ScoreProcess,
    "uniform": UniformProcess,
}


class TokenStates:
    """The states that a baseline's process counts, and the ids of a vocabulary that they stand for.

    States are the tokens in the order of their ids, without ids that have no token, and with an absorbing kernel the
    mask after them.
    """

    def __init__(self, config):
        self.is_absorbing = PROCESSES[config.baseline].is_absorbing
        is_token = torch.ones(config.vocab_size, dtype=torch.bool)
        if config.unused_token_ids:
            is_token = ~is_unused(config.vocab_size, config.unused_token_ids, is_token.device)
        is_token[config.mask_token_id] = False
        ids = is_token.nonzero().squeeze(1)
        self.ids = torch.cat([ids, torch.tensor([config.mask_token_id])]) if self.is_absorbing else ids
        self.of_ids = torch.zeros(config.vocab_size, dtype=torch.long).scatter(
            0, self.ids, torch.arange(len(self.ids))
        )

    def states(self, ids: Tensor) -> Tensor:
        """States of ids; 0 for those without one, such as padding that is not scored."""
        return self.of_ids.to(ids.device)[ids.clamp(min=0)]

    def tokens(self, states: Tensor) -> Tensor:
        """Ids of states."""
        return self.ids.to(states.device)[states]

    def columns(self, logits: Tensor) -> Tensor:
        """Logits `(..., S)` of the states from those of all ids."""
        return logits.index_select(-1, self.ids.to(logits.device))


def discrete_process(config) -> DiscreteProcess:
    """Process of the baseline that an `MD4Config` names: its tokens are states, and for an absorbing one the mask."""
    process, num_tokens = PROCESSES[config.baseline], config.num_data_tokens
    kernel = Kernel(num_tokens + 1, num_tokens) if process.is_absorbing else Kernel(num_tokens)
    return process.from_config(kernel, config)


def noised_ids(
    process: DiscreteProcess, states: TokenStates, input_ids: Tensor, labels: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Ids of x_t from clean ids `(batch, length)`, times `(batch,)` and noise `(batch, length, 2)`.

    Tokens with the label -100 are never noised.
    """
    drawn = states.tokens(process.draw_xt(states.states(input_ids), t, noise))
    return torch.where(labels != IGNORE_INDEX, drawn, input_ids)
