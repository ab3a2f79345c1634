# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Mixed precision under FSDP2."""

from types import SimpleNamespace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy

from md4_hf.utils.sharding import keep_float32


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
