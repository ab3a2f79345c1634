# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Rows and batches of a training on their way to the model: as tensors, numbered within the step, noised."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.input_checks import check_shape, check_tensor
from ..core.masked_diffusion import IGNORE_INDEX
from ..core.modeling_md4_auto import without_padding
from ..objective.figures import SIZE_COLUMNS
from ..objective.noise import (
    TRAIN_CLASS,
    TRAIN_FLIP,
    annealed_attention,
    training_example_noise,
    training_mask_noise,
    training_times,
)
from ..objective.objectives import Objective, scored_labels
from ..utils.libraries import is_instance
from .arguments import MD4TrainingArguments


MOST_MASKED_SHARE = 0.8  # of all tokens: a larger bound on the masked ones is not worth having


@dataclass
class CheckedCollator:
    """Data collator whose batches are checked where they are made: on the CPU, in the workers of the data loader.

    Args:
        collate: The collator.
        columns: Names that a batch may have.
        mask_token_id: Mask id of the model.
    """

    collate: Callable[[list[Any]], Any]
    columns: Collection[str]
    mask_token_id: int

    def __call__(self, features: list[Any]) -> Any:
        """Batch of these examples; a ValueError if it has other columns, or ids that are not clean."""
        batch = self.collate(features)
        unknown = sorted(set(batch).difference(self.columns))
        if unknown or "input_ids" not in batch:
            raise ValueError(
                f"A batch must have `input_ids` and only columns that the model takes, got {sorted(batch)}. Leave "
                "`remove_unused_columns=True`, or let the data collator drop the other ones."
            )
        check_clean(batch, self.mask_token_id)
        return batch


def check_clean(batch: dict[str, Any], mask_token_id: int):
    """Raise a ValueError unless `input_ids` are the clean ids of every token that is scored."""
    ids, labels = batch["input_ids"], scored_labels(batch)
    check_tensor("input_ids", ids, "integers")
    check_shape("labels", labels, ids.shape)
    is_noised = (labels != IGNORE_INDEX) & ((ids != labels) | (ids == mask_token_id))
    if is_noised.any():
        found, label = ids[is_noised][0].item(), labels[is_noised][0].item()
        raise ValueError(
            "`input_ids` must be clean, equal to `labels` and not the mask id where a token is scored, as MD4Trainer "
            f"itself masks them, got the id {found} where the label is {label}. Use a data collator that neither masks "
            "nor shifts."
        )


def input_names(model: nn.Module) -> list[str]:
    """Names of the arguments of a model's forward, without its `**kwargs`."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def number_step_examples(batches: list[dict[str, Any]], rank: int, world_size: int):
    """Number the examples of this rank's batches within the optimizer step over all ranks.

    The micro-batches of a step are dealt to the ranks in turn (rank 0's first, rank 1's first, ..., rank 0's second),
    so that R ranks x A micro-batches number their examples as 1 rank x (R A) does; they have the same sizes on all.
    A batch gains `first_step_example`, the index of its first example, and `num_step_examples`, over all ranks.
    """
    total = 0
    for batch in batches:
        size = len(batch["input_ids"])
        batch["first_step_example"] = total + rank * size
        total += world_size * size
    for batch in batches:
        batch["num_step_examples"] = total


def as_tensors(dataset: Any) -> Any:
    """A data set with rows of tensors; rows of lists would cost an object of Python for each id."""
    is_plain = is_instance(dataset, "datasets.Dataset") and dataset.format["type"] is None
    return dataset.with_format("torch") if is_plain else dataset


def flip_images(inputs: dict[str, Tensor], flip: Tensor) -> dict[str, Tensor]:
    """Mirror images `(batch, channels, height, width)` and their labels where `flip` `(batch,)` is true."""
    flip = flip[:, None, None, None]
    flipped = {name: torch.where(flip, inputs[name].flip(-1), inputs[name]) for name in ("input_ids", "labels")}
    return {**inputs, **flipped}


def noised_batch(batch: dict[str, Any], objective: Objective, args: MD4TrainingArguments, step: int) -> dict[str, Any]:
    """Inputs of the model from a clean micro-batch, with the noise of its examples' places in the step.

    The batch was numbered by `number_step_examples`; its `all_scored` tells whether no token is left out.
    """
    inputs = {name: value for name, value in batch.items() if name not in SIZE_COLUMNS}
    first, total, all_scored = (inputs.pop(k) for k in ("first_step_example", "num_step_examples", "all_scored"))
    ids, key = inputs["input_ids"], (args.seed, step)
    index = torch.arange(first, first + len(ids))  # on the CPU: the times are made there, without a wait
    timesteps = training_times(*key, index, total, objective.num_times(ids.shape)).to(ids.device, non_blocking=True)
    index = index.to(ids.device, non_blocking=True)
    noise = training_mask_noise(*key, index, objective.noise_shape(ids.shape, args.num_copies))
    inputs = objective.drop_classes(inputs, training_example_noise(*key, index, TRAIN_CLASS))
    if args.random_flip:
        inputs = flip_images(inputs, training_example_noise(*key, index, TRAIN_FLIP) < 0.5)
    inputs = objective.noised(inputs, timesteps, noise)
    if step < args.attention_annealing_steps:
        inputs["attention_mask"] = annealed_mask(inputs, args, step, ids.shape[-1])
    bound = most_masked_tokens(ids, objective, args, total, all_scored)
    if bound is not None:
        inputs["max_masked"] = bound
    return inputs


def annealed_mask(inputs: dict[str, Tensor], args: MD4TrainingArguments, step: int, length: int) -> Tensor:
    """Attention mask `(batch, 1, length, length)` of a step of annealing, in which padding is seen by itself only."""
    if inputs.get("document_ids") is not None:
        raise ValueError(
            "`attention_annealing_steps` must be 0 with documents that are kept apart (`document_mask`), got "
            f"{args.attention_annealing_steps}."
        )
    labels, padding = inputs["labels"], inputs.get("attention_mask")
    is_open = annealed_attention(args.seed, step, args.attention_annealing_steps, length, labels.device)
    return without_padding(is_open.expand(len(labels), -1, -1), padding)


def most_masked_tokens(
    ids: Tensor, objective: Objective, args: MD4TrainingArguments, num_step_examples: int, all_scored: bool
) -> int | None:
    """Upper bound on the masked tokens of a micro-batch, None where it costs more than it saves.

    With it, an accelerator need not wait to hear how many there are; but if the bound is far above their number, as
    where few tokens are scored, waiting is cheaper.
    """
    if ids.device.type == "cpu" or not all_scored:
        return None
    examples = -(-len(ids) // max(1, args.n_gpu))  # of each device that DataParallel drives
    length = ids[0].numel()
    bound = objective.most_masked(examples, num_step_examples, length)
    return None if bound is None or bound > MOST_MASKED_SHARE * examples * length else bound
