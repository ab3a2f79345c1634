# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Mixed precision under FSDP2."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import BertConfig, GPT2Config, LlamaConfig

from md4_hf import MD4Config, MD4ForMaskedDiffusion
from md4_hf.utils.sharding import keep_float32, shard_blocks


def test_fsdp2_leaves_times_and_losses_in_float32():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.cast_forward_inputs
    keep_float32(plugin)
    expected = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    assert plugin.mixed_precision_policy == expected
    without = SimpleNamespace(mixed_precision_policy=None)
    keep_float32(without)
    assert without.mixed_precision_policy is None


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({}, ["MD4Layer"]),
        ({"backbone": "ddit", "conditioning_size": 8}, ["MD4DDiTLayer"]),
        (BertConfig(**SIZES, vocab_size=30), ["BertLayer"]),
        (GPT2Config(**SIZES, vocab_size=30), ["GPT2Block"]),
        (LlamaConfig(**SIZES, vocab_size=30), ["LlamaDecoderLayer"]),
    ],
)
def test_fsdp2_gathers_every_network_block_by_block(backbone, expected):
    """Also where the launch file names blocks of another network; those of the model that it names stay."""
    options = backbone if isinstance(backbone, dict) else {"backbone": "auto", "backbone_config": backbone}
    sizes = SIZES if isinstance(backbone, dict) else {}
    model = MD4ForMaskedDiffusion(MD4Config(vocab_size=30, **sizes, **options))
    other = next(name for name in ("MD4Layer", "BertLayer") if name not in expected)
    for asked, found in ((None, expected), ([other], expected), (["Embedding"], ["Embedding"])):
        plugin = SimpleNamespace(transformer_cls_names_to_wrap=asked)
        shard_blocks(plugin, model)
        assert plugin.transformer_cls_names_to_wrap == found
