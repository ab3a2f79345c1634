# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks of a model's inputs: each raises a ValueError that names the argument, the rule and the value.

Values on an accelerator are not read, as that would wait for the device at every call.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .configuration_md4 import MD4Config


def check_tensor(name: str, x: Any, kind: str):
    """Raise a ValueError unless `x` is a tensor of this kind: "integers", "booleans" or "floating-point numbers"."""
    found = "integers"
    if not isinstance(x, Tensor):
        found = type(x).__name__
    elif x.dtype == torch.bool:
        found = "booleans"
    elif x.dtype.is_floating_point or x.dtype.is_complex:
        found = "floating-point numbers"
    if found != kind:
        raise ValueError(f"`{name}` must be a tensor of {kind}, got {found}.")


def can_check_values(x: Tensor) -> bool:
    """Whether reading the values of `x` is free: on the CPU, and not while a graph is traced."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def check_range(name: str, x: Tensor, largest: int):
    """Raise a ValueError unless all values of `x` lie in [0, largest]."""
    if not can_check_values(x) or x.numel() == 0:
        return
    low, high = (value.item() for value in x.aminmax())
    if not (low >= 0 and high <= largest):
        raise ValueError(f"`{name}` must be in [0, {largest}], got values from {low} to {high}.")


def given_tokens(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Ids or embeddings; a ValueError unless exactly one is given, as a non-empty tensor of the right kind."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
    if inputs_embeds is None:
        name, tokens, kind = "input_ids", input_ids, "integers"
    else:
        name, tokens, kind = "inputs_embeds", inputs_embeds, "floating-point numbers"
    check_tensor(name, tokens, kind)
    if not tokens.numel():
        raise ValueError(f"`{name}` must hold at least one token, got shape {tuple(tokens.shape)}.")
    return tokens


def check_shape(name: str, x: Tensor, *allowed: Iterable[int | None]):
    """Raise a ValueError unless `x` is a tensor of one of these shapes, in which None stands for any length."""
    shapes = [tuple(shape) for shape in allowed]
    found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    if not isinstance(x, Tensor) or not any(
        len(shape) == x.dim() and all(n in (None, m) for n, m in zip(shape, found, strict=True)) for shape in shapes
    ):
        raise ValueError(f"`{name}` must have shape {' or '.join(map(str, shapes))}, got {found}.")


def check_image(input_ids: Tensor, config: MD4Config):
    """Raise a ValueError unless the network can take images of this shape."""
    is_fixed = config.backbone == "uvit"  # by its position embedding
    shape = config.sample_shape if is_fixed else (config.num_channels, None, None)
    check_shape("input_ids", input_ids, (None, *shape))
    multiple = 2 ** (len(config.channel_multipliers) - 1)
    if any(size % multiple for size in input_ids.shape[2:]):
        raise ValueError(
            f"`input_ids` must have a height and width that are multiples of {multiple}, got {tuple(input_ids.shape)}."
        )


def check_left_out(**arguments: object):
    """Raise a ValueError if one of these arguments, which images do not have, is given."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` must be None for images, got {type(value).__name__}.")


def check_options(
    tokens: Tensor,
    inputs_embeds: Tensor | None,
    labels: Tensor | None,
    position_mask: Tensor | None,
    mask_noise: Tensor | None,
    max_masked: int | None,
):
    """Raise a ValueError for options of `MD4ForMaskedDiffusion.forward` that do not fit its inputs."""
    if position_mask is not None:
        check_shape("position_mask", position_mask, tokens.shape if inputs_embeds is None else tokens.shape[:2])
    if labels is None and mask_noise is not None:
        raise ValueError("`mask_noise` needs `labels`: it is for the loss.")
    if max_masked is not None and not (isinstance(max_masked, Integral) and max_masked >= 0):
        raise ValueError(f"`max_masked` must be an integer >= 0, got {max_masked!r}.")


def check_num_items(num_items: Tensor | int | None):
    """Raise a ValueError unless the number is None or positive; the sign of a tensor is checked on the CPU only."""
    if num_items is None:
        return
    is_number = num_items.numel() == 1 if isinstance(num_items, Tensor) else isinstance(num_items, Real)
    is_seen = not isinstance(num_items, Tensor) or can_check_values(num_items)
    if not is_number or (is_seen and not 0 < num_items < math.inf):
        raise ValueError(f"`num_items_in_batch` must be a number > 0, got {num_items!r}.")


def check_at_least_one(name: str, number: Any):
    """Raise a ValueError unless this is an integer >= 1."""
    if isinstance(number, bool) or not (isinstance(number, int) and number >= 1):
        raise ValueError(f"`{name}` must be >= 1, got {number!r}.")


def check_loss_weights(loss_weights: Tensor | None, labels: Tensor | None, timesteps: Tensor | None, config):
    """Raise a ValueError for weights of a loss that is GenMD4's, without times, or of another shape than they."""
    if loss_weights is None:
        return
    if config.learn_masking_schedule:
        raise ValueError("`loss_weights` must be None for GenMD4, whose loss is no weighted cross entropy.")
    if labels is None or timesteps is None:
        missing = "labels" if labels is None else "timesteps"
        raise ValueError(
            f"`loss_weights` need `labels` and the `timesteps` at which they are masked, got no `{missing}`."
        )
    check_tensor("timesteps", timesteps, "floating-point numbers")
    check_shape("loss_weights", loss_weights, timesteps.shape)
    check_tensor("loss_weights", loss_weights, "floating-point numbers")


def check_per_example(name: str, x: Tensor | None, batch: int, largest: int, reason: str):
    """Raise a ValueError unless `x` is given, has shape `(batch,)`, and lies in [0, largest]."""
    if x is None:
        raise ValueError(f"`{name}` must be given: {reason}.")
    if not isinstance(x, Tensor) or x.shape != (batch,):
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"`{name}` must have shape ({batch},), one per example, got {found}.")
    check_range(name, x, largest)


def match_tokenizer(tokenizer: Any, config: Any):
    """Record in a model's configuration which of its ids have no token of the tokenizer.

    Raises:
        ValueError: If the tokenizer has ids beyond the model's rows, or another mask token.
    """
    rows, ids = config.vocab_size, set(tokenizer.get_vocab().values())
    if max(ids, default=-1) >= rows:
        raise ValueError(f"`tokenizer` must have ids below the model's number of rows, {rows}, got up to {max(ids)}.")
    if tokenizer.mask_token_id != config.mask_token_id:
        rule, found = f"the model's mask id {config.mask_token_id}", tokenizer.mask_token_id
        raise ValueError(f"`tokenizer` must have {rule}, got {found} ({tokenizer.mask_token!r}).")
    config.unused_token_ids = unused_ranges(ids, rows)


def unused_ranges(used_ids: set[int], vocab_size: int) -> list[list[int]] | None:
    """Ascending ranges `[first, end)` of the ids below `vocab_size` that are not used, None if there are none."""
    bounds = sorted({-1, *used_ids, vocab_size})
    return [[a + 1, b] for a, b in pairwise(bounds) if b > a + 1] or None


def integers(name: str, values) -> Tensor:
    """Convert a number, list or tensor of integers to an int64 tensor; other numbers are not rounded."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be integers, got {values!r}.") from error
    if tensor.numel() and (tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool):
        raise ValueError(f"`{name}` must be integers, got {values!r}.")
    return tensor.long()
