# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Changes to the rows and batches of a training on their way to the model."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from torch import Tensor


def number_step_examples(batches: list[dict[str, Any]], rank: int, world_size: int):
    """Number the examples of this rank's batches within the optimizer step over all ranks.

    The micro-batches of a step are dealt to the ranks in turn (rank 0's first, rank 1's first, ..., rank 0's second),
    so that R ranks x A micro-batches number their examples as 1 rank x (R A) does.

    Args:
        batches: This rank's micro-batches; gain `first_step_example`, the index of their first example (the others
            follow), and `num_step_examples`, over all ranks and micro-batches.
        rank: This process.
        world_size: Number of processes, which all have micro-batches of the same sizes.
    """
    sizes = [len(batch["input_ids"]) for batch in batches]
    first = 0
    for batch, size in zip(batches, sizes, strict=True):
        batch["first_step_example"] = first + rank * size
        batch["num_step_examples"] = world_size * sum(sizes)
        first += world_size * size


def as_tensors(dataset: Any) -> Any:
    """A data set with rows of tensors; rows of lists would cost an object of Python for each id."""
    is_plain = isinstance(dataset, datasets.Dataset) and dataset.format["type"] is None
    return dataset.with_format("torch") if is_plain else dataset


def flip_images(inputs: dict[str, Tensor], flip: Tensor) -> dict[str, Tensor]:
    """Mirror images `(batch, channels, height, width)` and their labels where `flip` `(batch,)` is true."""
    flip = flip[:, None, None, None]
    flipped = {name: torch.where(flip, inputs[name].flip(-1), inputs[name]) for name in ("input_ids", "labels")}
    return {**inputs, **flipped}
