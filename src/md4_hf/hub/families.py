# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Interface of the converters of published checkpoints: one `Family` for each kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.configuration_md4 import MD4Config
from ..data.tokenizers import ensure_mask_token
from .model_classes import model_class_of
from .weight_files import WeightFiles, open_weights


class Family:
    """Published models of one kind: how they are recognised, and what they are in terms of MD4."""

    name = ""  # on the command line
    title = ""  # in the card
    model_types: tuple[str, ...] = ()  # of `config.json`, in lower case
    tokenizer_type: str | None = None  # of transformers, where the checkpoint's own is code of its authors

    def recognises_config(self, source: Mapping[str, Any]) -> bool:
        """Whether these are the fields of the family's configuration."""
        return str(source.get("model_type")).lower() in self.model_types

    def recognises_keys(self, keys: set[str]) -> bool:
        """Whether these are keys of the family's weights; asked where no family recognises the configuration."""
        return False

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """Configuration of the converted model from that of the checkpoint; a ValueError if there is none."""
        raise NotImplementedError(f"{type(self).__name__} must define `configuration`.")

    def state(self, weights: WeightFiles, config: MD4Config) -> dict[str, Tensor]:
        """State dict of `empty_model`; takes every tensor of the checkpoint, or skips it."""
        raise NotImplementedError(f"{type(self).__name__} must define `state`.")

    def fitted(self, tokenizer: PreTrainedTokenizerBase, config: MD4Config) -> PreTrainedTokenizerBase:
        """The tokenizer with the mask of the converted model, changed in place."""
        return ensure_mask_token(tokenizer, config.mask_token_id)

    def scheduler(self, source: Mapping[str, Any], config: MD4Config):
        """Scheduler with the settings of the checkpoint's sampler; None for that of the masking schedule."""
        return None

    def load(self, path: Path, config: MD4Config, allow_pickle: bool) -> PreTrainedModel:
        """Model with the weights of a folder or file, of which there is never more than one copy.

        Raises:
            ValueError: If tensors are missing, too many or of other shapes than the configuration says.
        """
        weights = open_weights(path, allow_pickle)
        shapes = weights.without_data()
        found = {name: x.shape for name, x in self.state(shapes, config).items()}
        shapes.check_empty()  # all fits, before a model is made and a tensor is read
        model = self.empty_model(config)
        assert found == {name: x.shape for name, x in model.state_dict().items()}, self.name
        model.load_state_dict(self.state(weights, config), assign=True)
        model.tie_weights()
        return self.finished(model.eval(), config, path)

    def empty_model(self, config: MD4Config) -> PreTrainedModel:
        """Model without data that takes the state dict."""
        with init_empty_weights():
            return model_class_of(config)(config)

    def finished(self, model: PreTrainedModel, config: MD4Config, path: Path) -> PreTrainedModel:
        """The converted model, from the one that has taken the state dict."""
        return model


def required(source: Mapping[str, Any], name: str) -> Any:
    """The value of a field of a checkpoint's configuration; a ValueError if it is missing."""
    if source.get(name) is None:
        raise ValueError(f"`{name}` must be in the config of the checkpoint, got only {sorted(source)}.")
    return source[name]
