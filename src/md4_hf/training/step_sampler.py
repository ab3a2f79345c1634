# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Orders of the examples of a map-style data set, as functions of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler


class StepSampler(Sampler[int]):
    """Indices of an epoch, as many as make whole optimizer steps, in an order that is a function of (seed, epoch).

    Every step then has the same examples however it is cut into ranks and micro-batches, at the end of an epoch too.

    Args:
        num_examples: Examples of the data set, >= 1, with `drop_last` enough for a step; else a ValueError is raised.
        step_examples: Examples of an optimizer step, over all ranks and micro-batches.
        seed: Seed of the order.
        shuffle: Whether each epoch has an order of its own; else all have that of the data set.
        drop_last: Leave out the examples that do not fill a step; otherwise the last step of an epoch is filled up with
            examples from the beginning of its order.
    """

    def __init__(
        self, num_examples: int, step_examples: int, seed: int, shuffle: bool = True, drop_last: bool = False
    ):
        if num_examples < (step_examples if drop_last else 1):
            least = f"at least the {step_examples} examples of a step (`dataloader_drop_last`)"
            raise ValueError(f"`train_dataset` must have {least if drop_last else 'examples'}, got {num_examples}.")
        self.num_examples, self.seed, self.shuffle, self.epoch = num_examples, seed, shuffle, 0
        steps = num_examples // step_examples if drop_last else -(-num_examples // step_examples)
        self._length = steps * step_examples

    def set_epoch(self, epoch: int):
        """Choose the order of this epoch, from 0, for the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = torch.arange(self.num_examples)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.num_examples, generator=generator)
        return iter(order[torch.arange(self._length) % self.num_examples].tolist())


class SeededOrder:
    """Makes the order of another sampler, which draws it from its `generator`, a pure function of (seed, epoch)."""

    def __init__(self, sampler: Any, seed: int):
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)
        sampler.generator = self.generator

    def set_epoch(self, epoch: int):
        """Choose the order of this epoch, from 0, for the next iteration."""
        self.generator.manual_seed(self.seed + epoch)
