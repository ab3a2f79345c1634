# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Layers of the MD4 transformer: norms, conditioning and modulation, rotary attention, feed-forward, head.

Source: Shi et al., arXiv:2406.04329, and the official implementation's network, which checkpoints convert to exactly.
"""

import importlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_md4 import MD4Config
from .linear_nelbo import linear_nelbo
from .masked_diffusion import cross_entropy_nats, genmd4_cross_entropy_nats, is_unused, suppress_mask


MAX_PERIOD = 10000.0
PLAIN_CPU_LENGTH = 1024  # up to it, plain products in bf16 take half as long on a CPU as torch's kernel (torch 2.13)
FLEX_CPU_HEAD_DIM = 24  # with narrower heads, flex attention on a CPU may read keys beyond the last (torch 2.13)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": torch.sigmoid,
    "swiglu": F.silu,
    "geglu": lambda x: F.gelu(x, approximate="tanh"),
}


def make_norm(config: MD4Config, width: int | None = None) -> nn.Module:
    """LayerNorm without parameters where a modulation follows, else RMSNorm; `width` defaults to `hidden_size`."""
    width = config.hidden_size if width is None else width
    if config.is_conditional:
        return nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=False)
    return nn.RMSNorm(width, eps=config.norm_eps)


def modulate(hidden_states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift hidden states: x (1 + scale) + shift."""
    return torch.addcmul(shift, hidden_states, 1.0 + scale)


def zero_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Create a linear layer whose initial weight is zero."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    linear.init_scale = 0.0
    return linear


def time_embedding(t: Tensor, size: int) -> Tensor:
    """Sinusoidal embedding of 1000 t, sines first: `(batch,)` -> `(batch, size)` in float32.

    The frequencies run from 1 to 1/10000 over `size // 2` steps; an odd size gets one zero at the end.
    """
    half = size // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1)
    phase = 1000.0 * t.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponent)
    embedding = torch.cat([phase.sin(), phase.cos()], dim=-1)
    return F.pad(embedding, (0, size % 2))


class MD4Conditioning(nn.Module):
    """Conditioning vector of an example: an MLP of its time (and class) embedding, or its class embedding alone."""

    def __init__(self, config: MD4Config):
        super().__init__()
        self.config = config
        size = config.conditioning_size
        if config.num_classes is not None:
            self.class_embedding = nn.Embedding(config.num_classes + (config.null_class is not None), size)
        if config.time_conditioning:
            self.dense_in = nn.Linear(size if config.num_classes is None else 2 * size, 4 * size)
            self.dense_out = nn.Linear(4 * size, size)

    def forward(self, timesteps: Tensor | None, class_labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Map `(batch,)` times and class labels, if the model uses them, to `(batch, conditioning_size)` in `dtype`."""
        classes = [] if self.config.num_classes is None else [self.class_embedding(class_labels)]
        if not self.config.time_conditioning:
            return classes[0]
        # Not the dtype of the weight, which is an integer in a quantised layer.
        times = time_embedding(timesteps, self.config.conditioning_size).to(dtype)
        return self.dense_out(F.silu(self.dense_in(torch.cat([times, *classes], dim=-1))))


class MD4Modulation(nn.Module):
    """Shift, scale and gate for every block and the output, from one linear layer."""

    def __init__(self, config: MD4Config):
        super().__init__()
        # Shift, scale and gate before attention and before the feed-forward of each block; the output has no gate.
        self.widths = [6 * config.hidden_size] * config.num_hidden_layers + [2 * config.hidden_size]
        self.dense = nn.Linear(config.conditioning_size, sum(self.widths))
        self.dense.init_scale = 0.0 if config.modulation == "adaln_zero" else 1.0

    def forward(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        """Map activated `(batch, conditioning_size)` to `(batch, 1, 6 hidden)` per block and `(batch, 1, 2 hidden)`."""
        return self.dense(conditioning)[:, None].split(self.widths, dim=-1)


class MD4RotaryEmbedding(nn.Module):
    """Angles of the rotary embedding, in float32."""

    def __init__(self, config: MD4Config):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        try:
            is_default = self.rope_type == "default"
            rope_init = self.compute_default_rope_parameters if is_default else ROPE_INIT_FUNCTIONS[self.rope_type]
            inv_freq, self.attention_scaling = rope_init(config)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"`rope_parameters` must be those of a rotary embedding, got {config.rope_parameters}: {error!r}."
            ) from error
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """Move with the model, but stay in float32: rounded frequencies give wrong angles at distant positions."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self

    @staticmethod
    def compute_default_rope_parameters(config: MD4Config, device=None, seq_len=None) -> tuple[Tensor, float]:
        """Inverse frequencies theta^(-2k / head_dim), k = 0 .. head_dim/2 - 1, and the (unused) scaling 1."""
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponent, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Cosines and sines `(batch, length, head_dim / 2, 2)` for the positions `(batch, length)`."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float32)
        return torch.stack([angles.cos(), angles.sin()], dim=-1) * self.attention_scaling


def apply_rotary(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs (2k, 2k+1) of queries or keys `(batch, length, ..., head_dim)` by the angles of their positions.

    `rotation` is an output of `MD4RotaryEmbedding`. The products are in float32.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    rotation = rotation.reshape(*rotation.shape[:2], *(1,) * (x.dim() - 3), *rotation.shape[2:])
    if x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    else:  # the compiler makes no kernels for complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def eager_attention_forward(
    module: nn.Module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs
) -> tuple[Tensor, Tensor]:
    """Plain attention that returns its probabilities; the signature is that of transformers' attention functions."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = F.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


def bf16_attention_on_a_cpu(
    module: nn.Module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs
) -> tuple[Tensor, None]:
    """Plain attention without a mask, with a softmax whose sums are in float32; the signature is transformers'."""
    probabilities = F.softmax(torch.matmul(query * scaling, key.transpose(2, 3)), dim=-1)
    return torch.matmul(F.dropout(probabilities, dropout), value).transpose(1, 2), None


def for_flex_attention_on_a_cpu(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prepare inputs for torch's CPU kernel, which fails on narrow heads and on views; the attention is unchanged.

    In a compiled model, the kernel reads a view from the beginning of its storage; `contiguous` would leave the view of
    a single position as it is.
    """
    query, key, value = (x.clone(memory_format=torch.contiguous_format) for x in (query, key, value))
    missing = FLEX_CPU_HEAD_DIM - query.shape[-1]
    if missing > 0:
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))  # zeros add nothing to the scores
    return query, key, value


class MD4Attention(nn.Module):
    """Self-attention with rotary positions and no biases; bidirectional unless the configuration is causal."""

    def __init__(self, config: MD4Config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.scaling = config.head_dim**-0.5
        self.is_causal = config.is_causal  # for the attention functions of transformers
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, hidden_states: Tensor, rotation: Tensor, attention_mask=None, rows=None, past_key_values=None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """Map `(batch, length, hidden)` to the same shape, and return the attention probabilities if there are any.

        With flat indices `rows`, the output is that of these positions only, `(rows, hidden)`.
        """
        batch, length, _ = hidden_states.shape
        qkv = self.qkv_proj(hidden_states).view(batch, length, 3, -1, self.config.head_dim)
        to_rotate, value = qkv.split((2, 1), dim=2)
        query, key = apply_rotary(to_rotate, rotation).permute(2, 0, 3, 1, 4).unbind(0)
        value = value.squeeze(2).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        if implementation == "flex_attention" and query.device.type == "cpu":
            query, key, value = for_flex_attention_on_a_cpu(query, key, value)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if implementation == "sdpa" and attention_mask is None and self._is_short_on_a_cpu(query, key):
            attention = bf16_attention_on_a_cpu
        dropout = self.config.attention_dropout if self.training else 0.0
        output, probabilities = attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(at_rows(output.reshape(batch, length, -1), rows)), probabilities

    def _is_short_on_a_cpu(self, query: Tensor, key: Tensor) -> bool:
        is_short = not self.is_causal and key.shape[2] <= PLAIN_CPU_LENGTH
        return is_short and query.device.type == "cpu" and query.dtype == torch.bfloat16


class MD4MLP(nn.Module):
    """Gated feed-forward: down(activation(gate(x)) * up(x))."""

    def __init__(self, config: MD4Config):
        super().__init__()
        self.activation = ACTIVATIONS[config.mlp_type]
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        for linear in (self.gate_up_proj, self.down_proj):
            linear.init_scale = 2.0 / config.num_hidden_layers if config.depth_scaled_init else 1.0

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(batch, length, hidden)` to the same shape."""
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


class MD4Layer(GradientCheckpointingLayer):
    """Transformer block, modulated by a conditioning vector if the model has one: see `residual_block`."""

    make_norm: Callable[[MD4Config], nn.Module] = staticmethod(make_norm)
    mlp_class: type[nn.Module] = MD4MLP
    # One draw per (example, channel), shared by all positions: Dropout1d over (batch, channels, length).
    dropout_class: type[nn.Module] = nn.Dropout1d

    def __init__(self, config: MD4Config, layer_idx: int):
        super().__init__()
        self.attention_norm = self.make_norm(config)
        self.attention = MD4Attention(config, layer_idx)
        self.mlp_norm = self.make_norm(config)
        self.mlp = self.mlp_class(config)
        self.residual_dropout = self.dropout_class(config.residual_dropout)

    def forward(
        self, hidden_states: Tensor, modulation: Tensor | None, rows: Tensor | None = None, **kwargs
    ) -> Tensor:
        """Map `(batch, length, hidden)` to the same shape; `modulation` is the block's, `(batch, 1, 6 hidden)`.

        With flat indices `rows`, only these positions continue after the attention: the output is `(rows, hidden)`.
        `kwargs` go to the attention.
        """
        shape = hidden_states.shape

        def attend(x: Tensor) -> Tensor:
            return self._drop(self.attention(x, rows=rows, **kwargs)[0], shape, rows)

        def feed(x: Tensor) -> Tensor:
            return self._drop(self.mlp(x), shape, rows)

        return residual_block(self, hidden_states, modulation, attend, feed, rows)

    def _drop(self, x: Tensor, shape: torch.Size, rows: Tensor | None) -> Tensor:
        if self.residual_dropout.p == 0.0 or not self.training:
            return x
        batch, length, channels = shape
        factor = self.residual_dropout(x.new_ones(batch, channels, 1)).transpose(1, 2)
        return x * of_examples(factor, length, rows)


def residual_block(block: nn.Module, x: Tensor, modulation: Tensor | None, attend, feed, rows=None) -> Tensor:
    """x + gate * f(LN(x) (1 + scale) + shift), for f attention, then feed-forward; unmodulated, x + f(RMSNorm(x)).

    `modulation` is `(batch, 1, 6 hidden)`. With flat indices `rows`, only these positions continue after the attention.
    """
    if modulation is None:
        x = at_rows(x, rows) + attend(block.attention_norm(x))
        return x + feed(block.mlp_norm(x))
    length, width = x.shape[1:]
    shift, scale = modulation[..., : 2 * width].chunk(2, dim=-1)
    attended = attend(modulate(block.attention_norm(x), shift, scale))
    gate_a, shift_m, scale_m, gate_m = of_examples(modulation[..., 2 * width :], length, rows).chunk(4, dim=-1)
    x = torch.addcmul(at_rows(x, rows), gate_a, attended)
    return torch.addcmul(x, gate_m, feed(modulate(block.mlp_norm(x), shift_m, scale_m)))


def at_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Select flat indices `(rows,)` of `(batch, length, ...)`: `(rows, ...)`; without indices, `x` unchanged."""
    return x if rows is None else x.flatten(0, 1).index_select(0, rows.to(x.device))


def of_examples(x: Tensor, length: int, rows: Tensor | None) -> Tensor:
    """Select from `(batch, 1, width)` the examples of flat indices `(rows,)`: `(rows, width)`; without, `x` itself.

    From `(batch, length, width)`, which differ in a row, the tokens are selected.
    """
    if rows is None:
        return x
    index = rows // length if x.shape[1] == 1 else rows
    return x.flatten(0, 1).index_select(0, index.to(x.device))


class MD4Head(nn.Linear):
    """Linear head from hidden states to logits, or directly to the loss without all logits in memory."""

    @classmethod
    def with_parameters_of(cls, linear: nn.Linear) -> "MD4Head":
        """Create a head that shares the parameters of a linear layer."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        head._is_hf_initialized = getattr(linear, "_is_hf_initialized", False)  # else they would be initialised again
        if hasattr(linear, "_hf_hook"):  # accelerate's, of a model on several devices
            importlib.import_module("accelerate.hooks").add_hook_to_module(head, linear._hf_hook)
        return head

    def forward(
        self, hidden_states: Tensor, *loss_arguments, unused_token_ids: list[list[int]] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits `(..., vocab)`; with the arguments of `linear_nelbo` after the bias, its outputs.

        The loss leaves ids without a token out; in logits they are for the caller to suppress.
        """
        if not loss_arguments:
            return super().forward(hidden_states)
        bias = self.bias
        if unused_token_ids:
            bias = self.weight.new_zeros(self.out_features) if bias is None else bias
            bias = bias.masked_fill(is_unused(len(bias), unused_token_ids, bias.device), -torch.inf)
        return linear_nelbo(hidden_states, self.weight, bias, *loss_arguments)


def nelbo_of_rows(
    head: nn.Module,
    hidden_states: Tensor,
    target: Tensor,
    weight: Tensor,
    config: MD4Config,
    exponents=None,
    rows=None,
) -> tuple[Tensor, Tensor]:
    """Sum `()` and values `(rows,)` of the weighted cross entropies of tokens in nats, from their hidden states.

    An `MD4Head` avoids the logits of all rows. Other heads compute them: that of images, where logits are no wider than
    what the blocks keep for their gradients, and any that an adapter or a quantiser has put in place of an `MD4Head`.
    Arguments as in `linear_nelbo`, with the mask and the ids without a token in `config`; a head of images takes the
    hidden states of all pixels, and the tokens' flat `rows`.
    """
    if isinstance(head, MD4Head):
        unused = {"unused_token_ids": config.unused_token_ids}
        total, values = head(hidden_states, target, weight, config.mask_token_id, exponents, **unused)
        return total.to(hidden_states.device), values.to(hidden_states.device)
    logits = logits_of(head, hidden_states, config, rows).flatten(0, -2)
    if exponents is None:
        values = weight * cross_entropy_nats(logits, target)
    else:
        values = weight * genmd4_cross_entropy_nats(logits, target, exponents)
    return values.sum(), values


def logits_of(head: nn.Module, hidden_states: Tensor, config: MD4Config, rows: Tensor | None = None) -> Tensor:
    """Logits `(..., vocab)` on the device of the hidden states; with `rows`, a head of images selects these."""
    logits = head(hidden_states) if rows is None else head(hidden_states, rows)
    return suppress_mask(logits.to(hidden_states.device), config.mask_token_id, config.unused_token_ids)


def number_of_items(scored: Tensor, num_items: Tensor | int | None, device: torch.device) -> Tensor | int:
    """Divisor of a loss: the given number, on this device, or by default the number of scored tokens, at least 1."""
    num_items = scored.sum().clamp(min=1) if num_items is None else num_items
    return num_items.to(device) if isinstance(num_items, Tensor) else num_items


def indices_of(is_chosen: Tensor, at_most: int | None) -> Tensor | None:
    """Indices of the true elements of `(n,)`; None stands for all `n`.

    On the CPU, or without the bound `at_most`, the true elements are counted, for which an accelerator is waited for.
    Otherwise the indices are padded with zeros to the bound. A compiled graph has a fixed size: the bound, or all `n`.
    """
    if not torch.compiler.is_compiling() and (at_most is None or is_chosen.device.type == "cpu"):
        indices = is_chosen.nonzero().squeeze(1)
        if at_most is not None and len(indices) > at_most:
            raise ValueError(f"`max_masked` must be at least the {len(indices)} masked tokens, got {at_most}.")
        return indices
    if at_most is None or at_most >= len(is_chosen):
        return None
    torch._assert_async(
        is_chosen.sum() <= at_most, "`max_masked` must not be smaller than the number of masked tokens"
    )
    return torch.nonzero_static(is_chosen, size=at_most, fill_value=0).squeeze(1)
