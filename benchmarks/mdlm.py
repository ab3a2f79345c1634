# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""MDLM as a reference to be faster than: its network, the formulation of its loss, and its cached sampling rule.

Source: Sahoo et al., arXiv:2406.07524. The DDiT without a time input, with torch's attention in one call;
log-probabilities of all positions, where an unmasked one is sure of its token ("SUBS"), with weights 1/t; a sampler in
which all rows go from step to step together, and the network runs again only if a token has changed. Written for the
comparison, from the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from md4_hf import MaskedDiffusionScheduler, MD4Config, MD4ForMaskedDiffusion


TORCHS = "sdpa_of_torch"  # a name for torch's attention that the package does not replace by an attention of its own
AttentionInterface.register(TORCHS, sdpa_attention_forward)
AttentionMaskInterface.register(TORCHS, sdpa_mask)


def mdlm_config(config: MD4Config) -> MD4Config:
    """MDLM's network of the size of another, without a time input."""
    sizes = ("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads")
    size = {name: getattr(config, name) for name in sizes}
    return MD4Config(backbone="ddit", time_conditioning=False, attn_implementation=TORCHS, **size)


def mdlm_loss(model: MD4ForMaskedDiffusion, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """NELBO in nats per token under the linear schedule, in continuous time."""
    logits = model(xt, timesteps=t).logits.float()
    log_mu = logits - logits.logsumexp(dim=-1, keepdim=True)
    decided = xt != model.config.mask_token_id
    log_mu[decided] = torch.finfo(log_mu.dtype).min
    log_mu[decided, xt[decided]] = 0.0
    nll = -log_mu.gather(-1, x0[..., None]).squeeze(-1)
    return (nll / t[:, None]).sum() / x0.numel()


class CachedNetwork:
    """A network that sees no time, which runs again only for other ids than the last; called as the network is."""

    def __init__(self, model: MD4ForMaskedDiffusion):
        self.model, self.config = model, model.config
        self.xt: Tensor | None = None

    def __call__(self, xt: Tensor, timesteps: Tensor):
        if self.xt is None or not torch.equal(xt, self.xt):
            self.xt, self.output = xt.clone(), self.model(xt, timesteps=timesteps)
        return self.output


def cached_calls(scheduler: MaskedDiffusionScheduler, batch: int, length: int, mask_token_id: int) -> int:
    """Calls of a `CachedNetwork` for a batch of samples: the first, and one after each step that unmasks a position."""
    masks = torch.full((batch, length), mask_token_id)
    opening = scheduler.plan_openings(masks, torch.Generator().manual_seed(0), first_step=0).steps.unique()
    last = len(scheduler.timesteps) - 1
    return 1 + int((opening < last).sum())
