# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Layers of the DDiT, the transformer that SEDD, MDLM, RADD and their successors share.

Source: Lou, Meng, Ermon, arXiv:2310.16834, and Sahoo et al., arXiv:2406.07524. Attention, rotary positions and the
modulation of the blocks are those of MD4's transformer: their half-rotation of a head is a rotation of adjacent pairs
once the rows of queries and keys are put in another order, which is done when a checkpoint is converted.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_md4 import MD4Config
from .masked_diffusion import md4_process
from .modeling_md4_body import TransformerBody
from .modeling_md4_layers import MAX_PERIOD, MD4Layer


NUM_FEATURES = 256  # of the noise level, whatever the widths of the network are


def make_ddit_norm(config: MD4Config) -> nn.LayerNorm:
    """LayerNorm with a weight, and with a bias too where no modulation adds one."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=not config.is_conditional)


def noise_features(sigma: Tensor) -> Tensor:
    """Cosines, then sines, of noise levels times 10000^(-i/128), i = 0 .. 127: `(batch,)` -> `(batch, 256)` float32."""
    half = NUM_FEATURES // 2
    exponent = torch.arange(half, dtype=torch.float32, device=sigma.device) / half
    phase = sigma.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponent)
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class MD4NoiseConditioning(nn.Module):
    """Conditioning vector of an example: an MLP of the total noise sigma = -log alpha_t at its time."""

    def __init__(self, config: MD4Config):
        super().__init__()
        self.config = config
        self.dense_in = nn.Linear(NUM_FEATURES, config.conditioning_size)
        self.dense_out = nn.Linear(config.conditioning_size, config.conditioning_size)

    def forward(self, timesteps: Tensor, class_labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Map `(batch,)` times in [0, 1] to `(batch, conditioning_size)` in `dtype`; there are no classes."""
        alpha_t = md4_process(self.config).schedule.alpha(timesteps.float())
        sigma = -alpha_t.clamp(min=torch.finfo(alpha_t.dtype).tiny).log()  # finite where all is masked
        return self.dense_out(F.silu(self.dense_in(noise_features(sigma).to(dtype))))


class MD4DDiTMLP(nn.Module):
    """Feed-forward with biases: down(gelu(up(x))), where the GELU is approximated by tanh."""

    def __init__(self, config: MD4Config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        for linear in (self.up_proj, self.down_proj):
            linear.init_scale = 2.0 / config.num_hidden_layers if config.depth_scaled_init else 1.0

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(..., hidden)` to the same shape."""
        return self.down_proj(F.gelu(self.up_proj(hidden_states), approximate="tanh"))


class MD4DDiTLayer(MD4Layer):
    """DDiT block: MD4's with other norms and feed-forward, and dropout of single values."""

    make_norm = staticmethod(make_ddit_norm)
    mlp_class = MD4DDiTMLP
    dropout_class = nn.Dropout

    def _drop(self, x: Tensor, shape: torch.Size, rows: Tensor | None) -> Tensor:
        return self.residual_dropout(x)


class DDiTBody(TransformerBody):
    """The DDiT, whose modules have the names of those of MD4's transformer, and run in their order."""

    layer_class = MD4DDiTLayer
    conditioning_class = MD4NoiseConditioning
    make_norm = staticmethod(make_ddit_norm)
    head_has_bias = True

    def activate(self, conditioning: Tensor, config: MD4Config) -> Tensor:
        """Apply the activation between the conditioning and the modulation: SiLU."""
        return F.silu(conditioning)
