# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of other groups from the records in `golden/peers`, as their authors publish them."""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def state_of(tensors):
    """State dict of a record as it is published, in float32."""
    return {key.removeprefix("state_dict/"): x.float() for key, x in tensors.items() if key.startswith("state_dict/")}


def publish(folder, state, config, name="model.safetensors"):
    """Write a checkpoint as its authors do; its path, as text."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if name.endswith(".safetensors"):
        save_file(state, folder / name, metadata={"format": "pt"})
    else:
        torch.save(state, folder / name)
    return str(folder)


def words_tokenizer(num_words):
    """A tokenizer of words w0, w1, ... without a mask token."""
    model = models.WordLevel({f"w{i}": i for i in range(num_words)}, unk_token="w0")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")
