# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The reference to be faster than: the official formulation, with the same network.

The head runs at all positions, log-softmax and one-hot products over (batch, length, vocab) make the loss, and every
step of the sampler is a call of the whole network and a draw from a table over vocab + 1 at all positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from md4_hf import MD4ForMaskedDiffusion, nelbo_weight, rloo_surrogate
from md4_hf.core.masked_diffusion import log_forward_probability


def md4_loss(model: MD4ForMaskedDiffusion, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """NELBO in nats per token, reconstruction left out: its cost is none."""
    log_mu = F.log_softmax(model(xt, timesteps=t).logits.float(), dim=-1)
    nll = -(F.one_hot(x0, log_mu.shape[-1]) * log_mu).sum(dim=-1)
    is_masked = (xt == model.config.mask_token_id).float()
    return (nelbo_weight(model.masking_schedule, t)[:, None] * is_masked * nll).sum() / x0.numel()


def genmd4_loss(model: MD4ForMaskedDiffusion, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """GenMD4's surrogate: one pass of the network for each of the two copies `xt` `(batch, 2, length)`."""
    w, mask = model.token_schedule.exponents, model.config.mask_token_id
    losses, log_q = [], []
    for copy in xt.unbind(dim=1):
        log_mu = F.log_softmax(model(copy, timesteps=t).logits.float(), dim=-1)
        mu, one_hot = log_mu.exp(), F.one_hot(x0, log_mu.shape[-1])
        integrand = (-w / t[:, None, None] * (one_hot * (log_mu + 1.0) - mu)).sum(dim=-1)
        losses.append(((copy == mask).float() * integrand).sum(dim=1))
        log_q.append(log_forward_probability(model.token_schedule, t, x0, copy, mask).sum(dim=1))
    return rloo_surrogate(torch.stack(losses, dim=1), torch.stack(log_q, dim=1)).sum() / x0.numel()


@torch.no_grad()
def sampling_step(model: MD4ForMaskedDiffusion, xt: Tensor, t: Tensor, unmask_probability: float) -> Tensor:
    """One reverse step of all rows, by Gumbel's trick on [r mu, 1 - r]."""
    mask = model.config.mask_token_id
    mu = model(xt, timesteps=t.expand(len(xt))).logits.float().softmax(dim=-1)
    table = torch.cat([unmask_probability * mu[..., :mask], torch.full_like(mu[..., :1], 1 - unmask_probability)], -1)
    noise = -torch.log(-torch.log(torch.rand_like(table).clamp(min=1e-20)))
    drawn = (table.clamp(min=1e-30).log() + noise).argmax(dim=-1)
    return torch.where(xt == mask, drawn, xt)
