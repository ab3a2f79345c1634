# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Converter of checkpoints whose network is a language model of transformers under its own names of tensors.

Masked diffusion models are often published so, behind code of their authors that only opens the attention: those of
dLLM are of type "a2d-qwen3", for instance. The network is then that of `Qwen3ForCausalLM` with `is_causal=False`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..core.configuration_md4 import MD4Config
from ..core.modeling_md4 import MD4ForMaskedDiffusion
from ..core.modeling_md4_auto import AUTO_CLASSES, language_model_class, model_around
from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler
from ..utils.errors import check_types
from .convert_decoders import LINEAR
from .families import Family, required
from .weight_files import WeightFiles


# Types of networks that are recognised by the names of their tensors, where the configuration names none.
RECOGNISED_BY_KEYS = ("llama", "qwen2", "qwen3", "modernbert", "bert", "roberta", "gpt2")
TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "tie_word_embeddings": True}
BLOCKS = "block_size"  # field of a model whose attention is block-causal
OF_SAMPLERS = ("bd_size", "block_length")  # fields for blocks that do not say what the attention is
# Fields of a checkpoint's configuration that are not its network's.
OF_THE_CHECKPOINT = (
    "model_type",
    "auto_map",
    "attn_implementation",
    "dtype",  # that of the files' weights is kept
    "torch_dtype",
    "mask_token_id",
    "predicts_next",
    BLOCKS,
    *OF_SAMPLERS,
)
TYPES: dict[str, Any] = {
    **dict.fromkeys(("mask_token_id", "vocab_size", BLOCKS, *OF_SAMPLERS), int | None),
    "predicts_next": bool,
    "architectures": list | None,
}
OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"embeddings\.position_ids$")  # of earlier versions of transformers


class Redressed(Family):
    """A language model of transformers that attends both ways; of the type `network`, or the one that it names."""

    name = "transformers"
    title = "masked diffusion"

    def __init__(self, network: str | None = None):
        self.network = network

    def recognises_config(self, source: Mapping[str, Any]) -> bool:
        """Whether the configuration names a language model of transformers."""
        return network_named(source) is not None

    def recognises_keys(self, keys: set[str]) -> bool:
        """Whether the keys are those of the network, whatever its number of layers is."""
        return self.network is not None and are_keys_of(self.network, keys)

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """Configuration of the converted model, with the blocks of the checkpoint; a ValueError for missing fields."""
        check_types(source, TYPES)
        network = self.network or network_named(source)
        if network is None:
            found = source.get("model_type")
            raise ValueError(
                f"`model_type` must be a type of transformers in the config, or hold one as a2d-qwen3, got {found}."
            )
        body = body_of(network, source)
        if source.get("mask_token_id") is None:
            raise ValueError(
                "`mask_token` must be given (--mask_token) for a checkpoint whose config and tokenizer name none, got "
                f"one of type {source.get('model_type')!r}. A model that was not trained to fill masks is made one by "
                "`md4 train --backbone_name_or_path`."
            )
        length = getattr(body, "max_position_embeddings", None) or MD4Config.max_position_embeddings
        return MD4Config(
            backbone="auto",
            backbone_config=body,
            predicts_next=source.get("predicts_next", False),
            mask_token_id=source["mask_token_id"],
            max_position_embeddings=length,
            block_size=shorter_block_size(source, length),
            **LINEAR,
        )

    def scheduler(self, source: Mapping[str, Any], config: MD4Config) -> MaskedDiffusionScheduler:
        """Equal steps on the linear schedule."""
        return MaskedDiffusionScheduler(config.mask_token_id, **LINEAR, timestep_grid="uniform")

    def empty_model(self, config: MD4Config) -> PreTrainedModel:
        """The language model itself, without data."""
        return empty_language_model(config.backbone_config)

    def state(self, weights: WeightFiles, config: MD4Config) -> dict[str, Tensor]:
        """State dict of the language model; of tensors that are tied the first one that is there counts."""
        model = self.empty_model(config)
        shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        state: dict[str, Tensor] = {}
        for names in tied_names(model):
            held = next((name for name in names if name in weights.shapes), names[0])
            state |= dict.fromkeys(names, weights.take(held, *shapes[held]))
            weights.skip(*names)
        patterns = [*OLD_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())]
        others = weights.shapes.keys() - shapes.keys()
        weights.skip(*(key for key in others if any(re.search(pattern, key) for pattern in patterns)))
        return state

    def finished(self, model: PreTrainedModel, config: MD4Config, path: Path) -> MD4ForMaskedDiffusion:
        """The language model as the network of an MD4 model; a ValueError for one that cannot be."""
        return model_around(MD4ForMaskedDiffusion, model, config, str(path))


class SDAR(Redressed):
    """SDAR (Cheng et al., arXiv:2510.06303): the network of Qwen3, which decodes block by block."""

    name = "sdar"
    title = "SDAR"
    model_types = ("sdar",)

    def __init__(self):
        super().__init__("qwen3")

    def recognises_config(self, source: Mapping[str, Any]) -> bool:
        """Whether these are the fields of an SDAR."""
        return Family.recognises_config(self, source)

    def recognises_keys(self, keys: set[str]) -> bool:
        """False: its keys are Qwen3's, and the config tells."""
        return False

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """As for Qwen3; a ValueError where the length of a block is not said."""
        required(source, BLOCKS)
        return super().configuration(source)


def network_named(source: Mapping[str, Any]) -> str | None:
    """Type of transformers that a configuration names, as a part of its own type or of the name of its class."""
    own, classes = str(source.get("model_type")).lower(), [str(name) for name in source.get("architectures") or ()]
    names = {kind: name for mapping in AUTO_CLASSES.values() for kind, name in mapping.items()}
    stems = {kind: re.sub("(For|LMHead).*", "", name) for kind, name in names.items()}  # Qwen3 of Qwen3ForCausalLM
    by_type = [kind for kind in stems if re.search(rf"(^|[-_]){re.escape(kind)}([-_]|$)", own)]
    by_class = [kind for kind, stem in stems.items() if any(stem in name for name in classes)]
    longest = max(by_type, key=len, default=None)  # modernbert before bert
    return longest or max(by_class, key=lambda kind: len(stems[kind]), default=None)


def body_of(network: str, source: Mapping[str, Any]) -> PreTrainedConfig:
    """Configuration of the language model, which attends both ways; a ValueError for fields that it cannot have."""
    fields = {name: value for name, value in source.items() if name not in OF_THE_CHECKPOINT}
    try:
        body = CONFIG_MAPPING[network].from_dict(fields)
        auto = language_model_class(body)
    except (KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"`checkpoint` must have the config of a {network!r}: {error}") from error
    if auto is AutoModelForCausalLM:
        body.is_causal = False
    return body


def shorter_block_size(source: Mapping[str, Any], length: int) -> int | None:
    """Tokens of a block, None where one is all of the text; a ValueError for fields that leave the attention open."""
    for name in OF_SAMPLERS:
        if source.get(BLOCKS) is None and source.get(name) is not None and source[name] < length:
            raise ValueError(
                f"`{name}` must be the length of the text, {length}, or be joined by `{BLOCKS}` in the config, got "
                f"{source[name]}: it does not say whether tokens see later blocks. Give `{BLOCKS}` if they do not."
            )
    block_size = source.get(BLOCKS)
    return None if block_size is None or block_size >= length else block_size


def empty_language_model(body: PreTrainedConfig) -> PreTrainedModel:
    """The language model of a configuration, with its buffers and without data."""
    with init_empty_weights():
        return language_model_class(body).from_config(body, dtype=torch.get_default_dtype())


def tied_names(model: PreTrainedModel) -> list[list[str]]:
    """Names in the state dict of a model, those of one tensor together."""
    source_of = dict(model.all_tied_weights_keys)
    groups: dict[str, list[str]] = {}
    for name in model.state_dict():
        groups.setdefault(source_of.get(name, name), []).append(name)
    return list(groups.values())


def are_keys_of(network: str, keys: set[str]) -> bool:
    """Whether keys are those of a network of any number of layers; of tensors that are tied, one has to be there."""
    model = empty_language_model(CONFIG_MAPPING[network](**TINY))
    groups = [without_numbers(names) for names in tied_names(model)]
    found = without_numbers(key for key in keys if not any(re.search(pattern, key) for pattern in OLD_BUFFERS))
    return found <= set().union(*groups) and all(found & names for names in groups)


def without_numbers(keys: Iterable[str]) -> set[str]:
    """Keys with 0 in place of the number of a layer."""
    return {re.sub(r"\.\d+\.", ".0.", key) for key in keys}
