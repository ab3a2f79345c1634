# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Is it right on this device? Every row is a check with its tolerance; what takes longest comes last."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from . import checks_networks, checks_sampling, checks_training
from .part import Context, Row


def run(context: Context) -> Iterator[Row]:
    """Run all checks."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield context.measured("keyed noise", functools.partial(checks_training.keyed_noise, context))
    yield from checks_networks.golden_networks(context)
    yield from checks_networks.attention_backends(context, checks_networks.ATTENTION)
    yield from checks_networks.loss_operator(context)
    yield context.measured("planned sampler", functools.partial(checks_sampling.planned_sampler, context))
    yield context.measured("moving average", functools.partial(checks_training.moving_average, context))
    yield from checks_networks.gradients_made_otherwise(context)
    for deterministic in (True, False):
        name = f"resumption, {'deterministic' if deterministic else 'default'} kernels"
        yield context.measured(name, functools.partial(checks_training.resumption, context, deterministic))
    yield from checks_networks.compiled_networks(context)
    yield from checks_networks.attention_backends(context, [checks_networks.FLEX], seconds=8.0)
