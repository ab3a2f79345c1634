# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Converters of the checkpoints whose network is the DDiT: MDLM, SEDD, RADD, BD3-LM and Duo.

Their weights become those of `backbone="ddit"`. Queries and keys are put in the order of adjacent rotary pairs. Where
the network is modulated but sees no time, its modulation is a constant, which is multiplied into the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..core.configuration_md4 import MD4Config
from ..core.modeling_md4_ddit import NUM_FEATURES, noise_features
from ..data.tokenizers import num_rows
from ..utils.errors import check_types
from .families import Family, required
from .weight_files import WeightFiles


LOG_LINEAR = {"masking_schedule": "loglinear", "schedule_eps": 1e-3}
# Types of the fields that are read of an MDLM or BD3-LM, and of the network of a SEDD or RADD.
TYPES = {
    **dict.fromkeys(
        ("hidden_dim", "n_blocks", "n_heads", "cond_dim", "model_length", "vocab_size", "block_size"), int
    ),
    **dict.fromkeys(("time_conditioning", "causal", "adaln"), bool),
    "dropout": float,
}
NETWORK_TYPES = {**dict.fromkeys(("hidden_size", "n_blocks", "n_heads", "cond_dim", "length"), int), "dropout": float}
EMBEDDING = "vocab_embed.embedding"


class DDiTFamily(Family):
    """Checkpoints with the keys of the DDiT, behind a prefix."""

    prefix = ""
    is_modulated = True

    def state(self, weights: WeightFiles, config: MD4Config) -> dict[str, Tensor]:
        """State dict of the converted model, in float32."""
        weights.skip(f"{self.prefix}rotary_emb.inv_freq")  # the formula's
        network = _Network(weights, config, self.prefix)
        state = network.plain(has_bias=not self.is_modulated)
        if self.is_modulated:
            modulations = network.modulations()
            conditioning = network.conditioning()
            if config.time_conditioning:
                state |= conditioning | _stacked(modulations)
            else:
                _fold(state, [_constant(conditioning, *modulation) for modulation in modulations])
        return state


class _Network:
    """Tensors of a DDiT, taken by the names of its modules."""

    def __init__(self, weights: WeightFiles, config: MD4Config, prefix: str):
        self.weights, self.config, self.prefix = weights, config, prefix
        self.parts = [*(f"blocks.{index}" for index in range(config.num_hidden_layers)), "output_layer"]

    def take(self, name: str, *shape: int) -> Tensor:
        return self.weights.take(self.prefix + name, *shape).float()

    def linear(self, name: str, target: str, out_features: int, in_features: int, has_bias: bool = True):
        state = {f"{target}.weight": self.take(f"{name}.weight", out_features, in_features)}
        return state | ({f"{target}.bias": self.take(f"{name}.bias", out_features)} if has_bias else {})

    def norm(self, name: str, target: str, has_bias: bool) -> dict[str, Tensor]:
        return {
            f"{target}.{part}": self.take(f"{name}.{part}", self.config.hidden_size)
            for part in (("weight", "bias") if has_bias else ("weight",))
        }

    def plain(self, has_bias: bool) -> dict[str, Tensor]:
        """All but conditioning and modulation; `has_bias` tells of the norms."""
        vocab, hidden = self.config.vocab_size, self.config.hidden_size
        state = {"model.embed_tokens.weight": self.take(EMBEDDING, vocab, hidden)}
        for index, block in enumerate(self.parts[:-1]):
            state |= self.block(block, f"model.layers.{index}", has_bias)
        state |= self.norm("output_layer.norm_final", "model.norm", has_bias)
        return state | self.linear("output_layer.linear", "lm_head", vocab, hidden)

    def block(self, block: str, layer: str, has_bias: bool) -> dict[str, Tensor]:
        hidden, wide = self.config.hidden_size, self.config.intermediate_size
        state = self.norm(f"{block}.norm1", f"{layer}.attention_norm", has_bias)
        state |= self.norm(f"{block}.norm2", f"{layer}.mlp_norm", has_bias)
        qkv = self.take(f"{block}.attn_qkv.weight", 3 * hidden, hidden)
        state[f"{layer}.attention.qkv_proj.weight"] = adjacent_pairs(qkv, self.config.num_attention_heads)
        state |= self.linear(f"{block}.attn_out", f"{layer}.attention.o_proj", hidden, hidden, has_bias=False)
        state |= self.linear(f"{block}.mlp.0", f"{layer}.mlp.up_proj", wide, hidden)
        return state | self.linear(f"{block}.mlp.2", f"{layer}.mlp.down_proj", hidden, wide)

    def conditioning(self) -> dict[str, Tensor]:
        """The MLP of the noise level."""
        size, target = self.config.conditioning_size, "model.conditioning"
        state = self.linear("sigma_map.mlp.0", f"{target}.dense_in", size, NUM_FEATURES)
        return state | self.linear("sigma_map.mlp.2", f"{target}.dense_out", size, size)

    def modulations(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of the modulation of each block, and of the output."""
        size, hidden = self.config.conditioning_size, self.config.hidden_size
        widths = [6 * hidden] * self.config.num_hidden_layers + [2 * hidden]
        layers = [
            self.linear(f"{part}.adaLN_modulation", "", width, size)
            for part, width in zip(self.parts, widths, strict=True)
        ]
        return [(layer[".weight"], layer[".bias"]) for layer in layers]


def adjacent_pairs(qkv: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of queries and keys `(3 hidden, hidden)`: from halves of each head to adjacent rotary pairs."""
    query, key, value = qkv.chunk(3)
    order = (num_heads, 2, -1)
    rotated = [x.unflatten(0, order).transpose(1, 2).flatten(0, 2) for x in (query, key)]
    return torch.cat([*rotated, value])


def _stacked(modulations: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    weights, biases = zip(*modulations, strict=True)
    return {"model.modulation.dense.weight": torch.cat(weights), "model.modulation.dense.bias": torch.cat(biases)}


def _constant(conditioning: Mapping[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Modulation `(width,)` of a network that is always given the noise level 0, in float64."""
    dense_in, dense_out = (
        [conditioning[f"model.conditioning.{name}.{part}"].double() for part in ("weight", "bias")]
        for name in ("dense_in", "dense_out")
    )
    features = noise_features(torch.zeros(1, device=weight.device)).double()
    hidden = F.silu(F.linear(F.silu(F.linear(features, *dense_in)), *dense_out))
    return F.linear(hidden, weight.double(), bias.double()).squeeze(0)


def _fold(state: dict[str, Tensor], modulations: list[Tensor]):
    """Multiply constant modulations into a state: scale and shift into the norms, gates into the layers after them."""

    def scale(name: str, factor: Tensor):
        weight = state[name]
        state[name] = (weight * factor.reshape(-1, *(1,) * (weight.dim() - 1))).float()

    def modulate(norm: str, shift: Tensor, amount: Tensor):
        scale(f"{norm}.weight", 1.0 + amount)
        state[f"{norm}.bias"] = shift.float()

    for index, modulation in enumerate(modulations[:-1]):
        layer = f"model.layers.{index}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6)
        modulate(f"{layer}.attention_norm", shift_a, scale_a)
        modulate(f"{layer}.mlp_norm", shift_m, scale_m)
        scale(f"{layer}.attention.o_proj.weight", gate_a)
        scale(f"{layer}.mlp.down_proj.weight", gate_m)
        scale(f"{layer}.mlp.down_proj.bias", gate_m)
    modulate("model.norm", *modulations[-1].chunk(2))


def check_fixed(source: Mapping[str, Any], title: str, **fields: Any):
    """Raise a ValueError for fields of a configuration that have another value than the only one known here."""
    for name, value in fields.items():
        if source.get(name, value) != value:
            raise ValueError(f"`{name}` must be {value} in the config of a {title}, got {source[name]}.")


class MDLM(DDiTFamily):
    """MDLM (Sahoo et al., arXiv:2406.07524)."""

    name = "mdlm"
    title = "MDLM"
    model_types = ("mdlm",)
    prefix = "backbone."
    process: ClassVar[Mapping[str, Any]] = LOG_LINEAR  # fields of the configuration that say how texts are noised

    def recognises_keys(self, keys: set[str]) -> bool:
        """Whether the keys are those of an MDLM, with nothing beside its backbone."""
        return f"{self.prefix}{EMBEDDING}" in keys and all(key.startswith(self.prefix) for key in keys)

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """Configuration of the converted model; a ValueError for a field that is missing or of a wrong type."""
        check_types(source, TYPES)
        return MD4Config(
            backbone="ddit",
            vocab_size=required(source, "vocab_size"),
            hidden_size=required(source, "hidden_dim"),
            num_hidden_layers=required(source, "n_blocks"),
            num_attention_heads=required(source, "n_heads"),
            conditioning_size=required(source, "cond_dim"),
            max_position_embeddings=required(source, "model_length"),
            residual_dropout=source.get("dropout", 0.0),
            time_conditioning=required(source, "time_conditioning"),
            **self.process,
        )


class BD3LM(MDLM):
    """BD3-LM (Arriola et al., arXiv:2503.09573): MDLM's network, in blocks."""

    name = "bd3lm"
    title = "BD3-LM"
    model_types = ("bd3lm",)
    times = ("sampling_eps_min", "sampling_eps_max")  # range of the times of training

    def recognises_keys(self, keys: set[str]) -> bool:
        """Whether the keys are those of a BD3-LM."""
        return f"{self.prefix}{EMBEDDING}" in keys and self.times[0] in keys

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """As MDLM's, with blocks unless one is all of the text."""
        config = super().configuration(source)
        block_size = required(source, "block_size")
        config.block_size = block_size if block_size < config.max_position_embeddings else None
        config.check()
        check_fixed(source, self.title, causal=False, adaln=True)
        return config

    def state(self, weights: WeightFiles, config: MD4Config) -> dict[str, Tensor]:
        """As MDLM's, without the range of the times of training."""
        weights.skip(*self.times)
        return super().state(weights, config)


class SEDD(DDiTFamily):
    """SEDD (Lou, Meng, Ermon, arXiv:2310.16834) on the absorbing graph: its normalised scores are the prediction."""

    name = "sedd"
    title = "SEDD"
    model_types = ("sedd",)
    sees_time = True

    def recognises_keys(self, keys: set[str]) -> bool:
        """Whether the keys are those of a SEDD."""
        return {EMBEDDING, "sigma_map.mlp.0.weight"} <= keys

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """Configuration of the converted model; a ValueError for another graph or noise, and for missing fields."""
        check_types(source, {"tokens": int, "model": dict, "graph": dict, "noise": dict})
        graph = source.get("graph", {}).get("type", "absorb")
        if graph != "absorb":
            raise ValueError(f"`graph.type` must be 'absorb', the graph of masked diffusion, got {graph!r}.")
        noise = source.get("noise", {}).get("type", "loglinear")
        if noise != "loglinear":
            raise ValueError(f"`noise.type` must be 'loglinear', got {noise!r}.")
        network = required(source, "model")
        check_types(network, NETWORK_TYPES)
        return MD4Config(
            backbone="ddit",
            vocab_size=required(source, "tokens") + 1,
            hidden_size=required(network, "hidden_size"),
            num_hidden_layers=required(network, "n_blocks"),
            num_attention_heads=required(network, "n_heads"),
            conditioning_size=required(network, "cond_dim") if self.sees_time else None,
            max_position_embeddings=required(network, "length"),
            residual_dropout=network.get("dropout", 0.0),
            time_conditioning=self.sees_time,
            **LOG_LINEAR,
        )


class RADD(SEDD):
    """RADD (Ou et al., arXiv:2406.03736), which sees no time and is not modulated."""

    name = "radd"
    title = "RADD"
    model_types = ("radd",)
    sees_time = is_modulated = False

    def recognises_keys(self, keys: set[str]) -> bool:
        """Whether the keys are those of a RADD."""
        return {EMBEDDING, "blocks.0.norm1.bias"} <= keys


class Duo(MDLM):
    """Duo (Sahoo et al., arXiv:2506.10892): MDLM's network, which sees the time, with the uniform kernel.

    All its V rows are states of the process, GPT-2's padding among them. The mask that stands for tokens to be drawn
    here has a row behind them, which the network never sees.
    """

    name = "duo"
    title = "Duo"
    model_types = ("duo",)
    process: ClassVar[Mapping[str, Any]] = {**LOG_LINEAR, "baseline": "uniform"}

    def recognises_keys(self, keys: set[str]) -> bool:
        """False: its keys are MDLM's, and the config tells."""
        return False

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """As MDLM's, with a row for the mask; a ValueError for a causal network."""
        check_types(source, TYPES)
        check_fixed(source, self.title, causal=False, time_conditioning=True)
        own = {"time_conditioning": True, "vocab_size": required(source, "vocab_size") + 1}
        return super().configuration({**source, **own})

    def state(self, weights: WeightFiles, config: MD4Config) -> dict[str, Tensor]:
        """As MDLM's, with the mask's rows, of zeros."""
        without_mask = copy.copy(config)
        without_mask.vocab_size = config.vocab_size - 1
        state = super().state(weights, without_mask)
        for name in ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
            state[name] = torch.cat([state[name], torch.zeros_like(state[name][:1])])
        return state

    def fitted(self, tokenizer: PreTrainedTokenizerBase, config: MD4Config) -> PreTrainedTokenizerBase:
        """The tokenizer with `[PAD]` behind its ids, as Duo's authors add it, and with a new mask behind that."""
        if tokenizer.pad_token is None and num_rows(tokenizer) == config.mask_token_id - 1:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        if tokenizer.mask_token is not None and num_rows(tokenizer) == config.mask_token_id:
            tokenizer.add_special_tokens({"mask_token": "[NOISE]"})  # the other one is a token like all
        return super().fitted(tokenizer, config)
