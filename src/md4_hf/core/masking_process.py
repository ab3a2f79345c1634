# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Forward processes and the terms of their NELBO: MD4, with one schedule for all tokens, and GenMD4, with one for each.

Both have the same methods, so that models, objectives and samplers need not know which one they use. Needs torch only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .masked_diffusion import (
    IGNORE_INDEX,
    corrupt,
    discretize_times,
    genmd4_reconstruction_nelbo,
    genmd4_token_nelbo,
    log_forward_probability,
    nelbo_weight,
    reconstruction_nelbo,
    rescale_times,
    rloo_surrogate,
    token_nelbo,
)
from .schedules import MaskingSchedule, TokenPolynomialSchedule, make_schedule


class MaskingProcess:
    """Forward process q(x_t | x_0) with the masking `schedule` and the mask id m."""

    schedule: MaskingSchedule | TokenPolynomialSchedule
    mask_token_id: int

    def draw_xt(self, x0: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t of clean ids at times `(batch,)`; tokens with the label -100 are never masked."""
        xt = corrupt(x0, self.schedule.alpha_of(t, x0).detach(), self.mask_token_id, noise=noise)
        return torch.where(labels != IGNORE_INDEX, xt, x0)


@dataclass(frozen=True)
class MD4Process(MaskingProcess):
    """Forward process of MD4: one fixed schedule masks all tokens.

    Args:
        num_data_tokens: V, the number of data tokens (without the mask).
        num_timesteps: T of discrete time, None for continuous time.
    """

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
        nelbo = genmd4_reconstruction_nelbo(labels, self.schedule, self.first_time, self.mask_token_id)
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
    return MD4Process(schedule, config.mask_token_id, config.vocab_size - 1, config.num_train_timesteps)
