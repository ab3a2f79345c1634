# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Initialisation, loading and saving of all MD4 models."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, cached_file, logging

from .compat import commit_of
from .configuration_md4 import MD4Config
from .input_checks import unused_ranges
from .modeling_md4_layers import MD4Attention, MD4Layer
from .modeling_md4_unet import MD4DiT, MD4ResnetBlock, position_table
from .schedules import TokenPolynomialSchedule, inverse_softplus


logger = logging.get_logger(__name__)

# Standard deviation of a standard normal truncated at +-2, by which the initial draws are divided, as in JAX.
TRUNCATED_NORMAL_STD = 0.87962566103423978
HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.json", "vocab.txt"),
)


class MD4PreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving of MD4 models."""

    config_class = MD4Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Modules that combine the outputs of their parts: a device map must keep each on one device.
    _no_split_modules = [
        *("MD4Layer", "MD4DDiTLayer", "MD4Conditioning", "MD4NoiseConditioning"),
        *("MD4ResnetBlock", "MD4AttentionBlock", "MD4DiTLayer", "MD4DiT"),
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": [MD4Layer, MD4ResnetBlock], "attentions": MD4Attention}
    # Class that opens a saved folder, for each Auto class. Written out, as FSDP2 renames the classes that it wraps.
    _auto_map: dict[str, str] = {}

    @property
    def has_remote_code(self) -> bool:
        """Whether a saved folder opens without this package; a baseline's does not."""
        return bool(self._auto_map)

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, push_to_hub: bool = False, **kwargs
    ):
        """Save as transformers does, with the code beside the weights, for `trust_remote_code=True`."""
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs} if push_to_hub else {}
        repo_id = hub.pop("repo_id", Path(save_directory).name)
        self.config.auto_map = dict(self._auto_map)
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        is_first_rank = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        if not (is_main_process and is_first_rank):
            return
        # An adapter is saved without configuration and code.
        if self.has_remote_code and Path(save_directory, CONFIG_NAME).is_file():
            copy_code(Path(__file__).with_name("modeling_md4.py"), save_directory)
        if push_to_hub:
            self.push_to_hub(repo_id, **hub)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, use_safetensors=None, **kwargs):
        """Load as transformers does, but open pickled weights only on request: with `use_safetensors=False`.

        Raises:
            OSError: If there are no weights in safetensors format.
            ValueError: As `check_shards`.
        """
        if use_safetensors is False:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, use_safetensors=False, **kwargs)
        # A commit in place of "main", for which transformers would ask a server to convert pickled weights.
        hub = {name: kwargs[name] for name in ("revision", "token", "local_files_only", "cache_dir") if name in kwargs}
        revision = commit_of(pretrained_model_name_or_path, **hub)
        if revision is not None:
            kwargs["revision"] = hub["revision"] = revision
        if pretrained_model_name_or_path is not None:
            subfolder, variant = kwargs.get("subfolder", ""), kwargs.get("variant")
            check_shards(str(pretrained_model_name_or_path), variant, subfolder=subfolder, **hub)
        try:
            opened = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, use_safetensors=True, **kwargs
            )
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise OSError(
                f"{error} Weights are opened in safetensors format; pickled weights, which can run any code, are "
                "opened only with `use_safetensors=False`."
            ) from error
        if is_deepspeed_zero3_enabled():  # transformers takes all of its renamings for used then, and saves by them
            (opened[0] if isinstance(opened, tuple) else opened)._weight_conversions = []
        return opened

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True):
        """Tie the head to the embedding if the configuration says so, also within accelerate's `init_empty_weights`.

        There, a parameter is replaced by a new one whenever a module is given it.
        """
        tied = self.get_expanded_tied_weights_keys(all_submodels=True).items()
        places = [(self.get_submodule(target.rpartition(".")[0])._parameters, source) for target, source in tied]
        before = [parameters.get("weight") for parameters, _ in places]
        super().tie_weights(missing_keys, recompute_mapping)
        for (parameters, source), old in zip(places, before, strict=True):
            if parameters.get("weight") is not old:  # then tied: transformers leaves weights alone while it loads
                parameters["weight"] = self.get_parameter(source)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise as the official code: truncated normals of variance init_scale / fan_in, normal embeddings."""
        super()._init_weights(module)
        if isinstance(module, TokenPolynomialSchedule):
            init.constant_(module.free_exponents, inverse_softplus(self.config.schedule_power))
        elif isinstance(module, MD4DiT):
            init.copy_(module.position_embedding, position_table(module.grid, self.config.dit_hidden_size))
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            scale, fan_in = getattr(module, "init_scale", 1.0), module.weight[0].numel()
            if scale == 0.0:
                init.zeros_(module.weight)
            else:
                std = math.sqrt(scale / fan_in) / TRUNCATED_NORMAL_STD
                init.trunc_normal_(module.weight, mean=0.0, std=std, a=-2.0 * std, b=2.0 * std)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=module.embedding_dim**-0.5)

    def is_asked_for(self, name: str, options: dict) -> bool:
        """Whether the states of an option such as `output_attentions` are asked for, in a call or in general."""
        return bool(options.get(name, getattr(self.config, name)))

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any layer is checkpointed. peft reads this property, of which transformers' own version warns."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize as transformers does; if the mask's row is cut off, the last row becomes the mask's, with a warning.

        For a model of images, whose head has outputs for every level, this is a ValueError.
        """
        if self.config.is_image:
            raise ValueError(f"`new_num_tokens` must be left out for a model of images, got {new_num_tokens}.")
        rows_before = self.config.vocab_size
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if (head := self.get_output_embeddings()) is not None:  # left out by transformers 5.4
            head._is_hf_initialized, head.out_features = True, embeddings.num_embeddings
        if self.config.backbone_config is not None:
            self.config.backbone_config.vocab_size = self.config.vocab_size
        if self.config.learn_masking_schedule and hasattr(self, "token_schedule"):
            self.token_schedule.resize(self.config.vocab_size, self.config.schedule_power)
        cut_off, last = self.config.mask_token_id, self.config.vocab_size - 1
        if cut_off > last:
            self.config.mask_token_id = last
            logger.warning(
                f"The vocabulary of {last + 1} tokens has no row for the mask token {cut_off}: the mask token is now "
                f"{last}, with the embedding of the token that was there. Train the model before you sample from it."
            )
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            self._update_unused_ids(new_num_tokens, rows_before)
        return embeddings

    def _update_unused_ids(self, new_num_tokens: int | None, rows_before: int):
        """Record after a resizing which ids have no token: rows above the tokens, and the gaps that there were.

        A new number of tokens takes in the padding at the end of the rows before.
        """
        config, num_tokens = self.config, new_num_tokens or rows_before
        gaps = [pair for pair in config.unused_token_ids or () if new_num_tokens is None or pair[1] < rows_before]
        ranges = [*([first, min(end, num_tokens)] for first, end in gaps), [num_tokens, config.vocab_size]]
        unused = {token for first, end in ranges for token in range(first, end)} - {config.mask_token_id}
        config.unused_token_ids = unused_ranges(set(range(config.vocab_size)) - unused, config.vocab_size)


def copy_code(module_file: str | os.PathLike, folder: str | os.PathLike):
    """Copy a file of this folder, and all files that it imports from here, into a saved folder."""
    for path in (module_file, *get_relative_import_files(module_file)):
        shutil.copyfile(path, Path(folder, Path(path).name))


def check_shards(name_or_path: str, variant: str | None, **hub):
    """Raise a ValueError if the index of weights in several files is damaged or names a file outside its folder."""
    name = f"model.safetensors.index.{variant}.json" if variant else SAFE_WEIGHTS_INDEX_NAME
    hub |= {f"_raise_exceptions_for_{case}": False for case in ("gated_repo", "missing_entries", "connection_errors")}
    index_file = cached_file(name_or_path, name, **hub)
    if index_file is None:
        return
    index = json.loads(Path(index_file).read_text(encoding="utf-8"))
    files = index.get("weight_map") if isinstance(index, dict) and isinstance(index.get("metadata"), dict) else None
    if not isinstance(files, dict) or not all(isinstance(x, str) and Path(x).name == x for x in files.values()):
        raise ValueError(f"`weight_map` in {name} must name files beside it, got {files} in {name_or_path}.")


def has_tokenizer(name_or_path: str, hub: dict[str, Any]) -> bool:
    """Whether there are files of a tokenizer beside a model; without them, transformers would make an empty one.

    `hub` are arguments of `cached_file`, such as the revision.
    """
    options = {**hub, "_raise_exceptions_for_missing_entries": False}
    return any(cached_file(name_or_path, name, **options) is not None for name in TOKENIZER_FILES)
