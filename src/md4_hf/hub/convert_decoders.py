# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Converters of LLaDA and Dream, whose networks are decoders of transformers that attend both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from ..core.configuration_md4 import MD4Config
from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler
from ..utils.errors import check_types
from .families import Family, required
from .weight_files import WeightFiles


HEAD, EMBEDDING = "lm_head.weight", "model.backbone.model.embed_tokens.weight"
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
LINEAR = {"masking_schedule": "linear", "schedule_eps": 0.0}
NORMS = ("input_layernorm", "post_attention_layernorm")
# Types of the fields that are read, but for those that have to be integers.
TYPES: dict[str, Any] = {
    **dict.fromkeys(("pad_token_id", "bos_token_id", "n_kv_heads", "mlp_hidden_size", "embedding_size"), int | None),
    **dict.fromkeys(("rope_theta", "rms_norm_eps"), float),
    **dict.fromkeys(("weight_tying", "tie_word_embeddings"), bool),
    "eos_token_id": int | list | None,
    "mlp_ratio": int,
}
# Parameters of a layer of Qwen2.
QWEN2_PARTS = (
    *(f"self_attn.{x}_proj.{part}" for x in "qkv" for part in ("weight", "bias")),
    "self_attn.o_proj.weight",
    *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
    *(f"{name}.weight" for name in NORMS),
)


class DecoderFamily(Family):
    """Masked diffusion models with the network of a decoder of transformers."""

    predicts_next = False
    # Names of the parts in the checkpoint: all around the layers, a layer by its number, and those in a layer by ours.
    embedding = norm = head = layer = ""
    parts: Mapping[str, str] = {}

    def body(self, source: Mapping[str, Any]) -> PreTrainedConfig:
        """Configuration of the decoder; a ValueError for what it cannot be."""
        raise NotImplementedError(f"{type(self).__name__} must define `body`.")

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """Configuration of the converted model; a ValueError for missing fields, and for another network."""
        body = self.body(source)
        return MD4Config(
            backbone="auto",
            backbone_config=body,
            predicts_next=self.predicts_next,
            mask_token_id=required(source, "mask_token_id"),
            max_position_embeddings=body.max_position_embeddings,
            **LINEAR,
        )

    def scheduler(self, source: Mapping[str, Any], config: MD4Config) -> MaskedDiffusionScheduler:
        """Equal steps on the linear schedule."""
        return MaskedDiffusionScheduler(config.mask_token_id, **LINEAR, timestep_grid="uniform")

    def state(self, weights: WeightFiles, config: MD4Config) -> dict[str, Tensor]:
        """State dict of the converted model, in the precision of the checkpoint."""
        body: Any = config.backbone_config
        vocab, hidden = body.vocab_size, body.hidden_size
        state = {EMBEDDING: weights.take(self.embedding, vocab, hidden)}
        state["model.backbone.model.norm.weight"] = weights.take(self.norm, hidden)
        if body.tie_word_embeddings:
            weights.skip(self.head)
            state[HEAD] = state[EMBEDDING]
        else:
            state[HEAD] = weights.take(self.head, vocab, hidden)
        shapes = layer_shapes(body)
        for index in range(body.num_hidden_layers):
            for name, theirs in self.parts.items():
                ours = f"model.backbone.model.layers.{index}.{name}"
                state[ours] = weights.take(f"{self.layer.format(index)}.{theirs}", *shapes[name])
        return state


def layer_shapes(body: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of one layer of a decoder, by name."""
    hidden, wide = body.hidden_size, body.intermediate_size
    head = getattr(body, "head_dim", None) or hidden // body.num_attention_heads
    query, key = body.num_attention_heads * head, body.num_key_value_heads * head
    widths = {"q": query, "k": key, "v": key}
    return {
        **{f"{name}.weight": (hidden,) for name in NORMS},
        **{f"self_attn.{x}_proj.weight": (width, hidden) for x, width in widths.items()},
        **{f"self_attn.{x}_proj.bias": (width,) for x, width in widths.items()},
        "self_attn.o_proj.weight": (hidden, query),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }


def check_values(source: Mapping[str, Any], expected: Mapping[str, Any]):
    """Raise a ValueError for a field of a configuration whose value, if there is one, is another."""
    for name, value in expected.items():
        if source.get(name, value) not in (value, None):
            raise ValueError(f"`{name}` must be {value!r} to be converted, got {source[name]!r}.")


def check_heads(source: Mapping[str, Any], width: str, heads: str):
    """Raise a ValueError unless the width in the field of this name is a multiple of the heads in the other."""
    if required(source, heads) < 1 or required(source, width) % source[heads]:
        raise ValueError(f"`{width}` must be a multiple of `{heads}`, got {source[width]} and {source[heads]}.")


class LLaDA(DecoderFamily):
    """LLaDA (Nie et al., arXiv:2502.09992): the network of Llama."""

    name = "llada"
    title = "LLaDA"
    model_types = ("llada",)
    embedding, norm = "model.transformer.wte.weight", "model.transformer.ln_f.weight"
    head, layer = "model.transformer.ff_out.weight", "model.transformer.blocks.{}"
    parts = {
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "ff_norm.weight",
        **{f"self_attn.{x}_proj.weight": f"{x}_proj.weight" for x in "qkv"},
        "self_attn.o_proj.weight": "attn_out.weight",
        "mlp.gate_proj.weight": "ff_proj.weight",
        "mlp.up_proj.weight": "up_proj.weight",
        "mlp.down_proj.weight": "ff_out.weight",
    }
    integers = ("d_model", "n_layers", "n_heads", "max_sequence_length", "vocab_size", "mask_token_id")
    as_llama: Mapping[str, Any] = {
        **dict.fromkeys(("include_bias", "include_qkv_bias", "input_emb_norm", "scale_logits"), False),
        **{"attention_layer_norm": False, "alibi": False, "rope": True},
        **{"layer_norm_type": "rms", "activation_type": "silu", "block_type": "llama"},
    }

    def recognises_keys(self, keys: set[str]) -> bool:
        """Whether the keys are those of a LLaDA."""
        return {self.embedding, "model.transformer.blocks.0.ff_proj.weight"} <= keys

    def body(self, source: Mapping[str, Any]) -> LlamaConfig:
        """Configuration of the Llama; a ValueError for a network that is none."""
        check_types(source, TYPES | dict.fromkeys(self.integers, int))
        check_values(source, self.as_llama)
        check_heads(source, "d_model", "n_heads")
        width, heads = source["d_model"], source["n_heads"]
        return LlamaConfig(
            vocab_size=source.get("embedding_size") or required(source, "vocab_size"),
            hidden_size=width,
            intermediate_size=source.get("mlp_hidden_size") or source.get("mlp_ratio", 4) * width,
            num_hidden_layers=required(source, "n_layers"),
            num_attention_heads=heads,
            num_key_value_heads=source.get("n_kv_heads") or heads,
            max_position_embeddings=required(source, "max_sequence_length"),
            rms_norm_eps=source.get("rms_norm_eps", 1e-5),
            rope_parameters={"rope_type": "default", "rope_theta": source.get("rope_theta", 10000.0)},
            tie_word_embeddings=source.get("weight_tying", False),
            is_causal=False,
            **{name: source.get(name) for name in SPECIAL_IDS},
        )


class Dream(DecoderFamily):
    """Dream (Ye et al., arXiv:2508.15487): the network of Qwen2, whose state at a token predicts the next one."""

    name = "dream"
    title = "Dream"
    model_types = ("dream",)
    predicts_next = True
    tokenizer_type = "qwen2"
    embedding, norm, head, layer = "model.embed_tokens.weight", "model.norm.weight", HEAD, "model.layers.{}"
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    integers = (*sizes, "num_key_value_heads", "max_position_embeddings", "mask_token_id")
    parts = dict(zip(QWEN2_PARTS, QWEN2_PARTS, strict=True))

    def body(self, source: Mapping[str, Any]) -> Qwen2Config:
        """Configuration of the Qwen2; a ValueError for missing fields and for options that it does not have here."""
        check_types(source, TYPES | dict.fromkeys(self.integers, int))
        check_values(source, {"rope_scaling": None, "use_sliding_window": False, "hidden_act": "silu"})
        check_heads(source, "hidden_size", "num_attention_heads")
        return Qwen2Config(
            **{name: required(source, name) for name in self.integers if name != "mask_token_id"},
            rms_norm_eps=source.get("rms_norm_eps", 1e-6),
            rope_parameters={"rope_type": "default", "rope_theta": source.get("rope_theta", 10000.0)},
            tie_word_embeddings=source.get("tie_word_embeddings", False),
            is_causal=False,
            **{name: source.get(name) for name in SPECIAL_IDS},
        )
