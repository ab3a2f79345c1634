# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Tokens that a model has never been trained on, as its head shows, and an adapter that learns them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..core.masked_diffusion import is_unused
from .lora_arguments import LoraArguments


RELATIVE_DISTANCE = 1e-3  # between rows that a training has moved alike; rounding parts them by less
NUM_DIRECTIONS = 4


def untrained_ids(model: nn.Module, ids: Iterable[int]) -> list[int]:
    """Those of some ids that a model cannot tell from another token, whatever its hidden states are.

    A head begins with rows of zeros, and a training moves the rows of all tokens that are never its target alike. They
    stay equal, so that such tokens always have the same probability, and no adapter below the head parts them.
    """
    head, config = model.get_output_embeddings(), model.config
    is_drawn = ~is_unused(len(head.weight), config.unused_token_ids or [], torch.device("cpu"))
    is_drawn[config.mask_token_id] = False
    candidates = is_drawn.nonzero().flatten()
    rows = head.weight.detach().float().cpu()[candidates]
    if head.bias is not None:
        rows = torch.cat([rows, head.bias.detach().float().cpu()[candidates, None]], dim=1)
    return sorted({*candidates[_equal_rows(rows)].tolist()} & set(ids))


def _equal_rows(rows: Tensor) -> Tensor:
    """Whether each row `(rows, width)` has an equal among the others, up to rounding: `(rows,)`, bool.

    Equal rows are neighbours when all are sorted by a random projection.
    """
    directions = torch.randn(rows.shape[1], NUM_DIRECTIONS, generator=torch.Generator().manual_seed(0))
    has_equal = torch.zeros(len(rows), dtype=torch.bool)
    for order in (rows @ directions).argsort(dim=0).T:
        first, second = rows[order[:-1]], rows[order[1:]]
        is_equal = (first - second).norm(dim=1) <= RELATIVE_DISTANCE * first.norm(dim=1)
        has_equal[order[:-1][is_equal]] = has_equal[order[1:][is_equal]] = True
    return has_equal


def train_head_too(model: nn.Module, lora: LoraArguments) -> LoraArguments:
    """Options of an adapter with which head and embedding train in full, and are saved with it."""
    layers = (model.get_output_embeddings(), model.get_input_embeddings())
    names = [name for layer in layers for name, module in model.named_modules() if module is layer]
    asked = lora.layers("modules_to_save")
    added = [name for name in names if not any(name == other or name.endswith(f".{other}") for other in asked)]
    return replace(lora, modules_to_save=",".join([*asked, *added]))
