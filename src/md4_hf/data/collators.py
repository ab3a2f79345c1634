# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Collators: clean batches for `MD4Trainer`, or noised ones for a plain `Trainer` or a loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core.configuration_md4 import MD4Config
from ..core.masked_diffusion import IGNORE_INDEX, GenMD4Process, stratified_times
from ..objective.objectives import Objective


@dataclass
class PaddingCollator:
    """Makes a batch of examples; sequences of different lengths are padded on the right.

    `input_ids` are padded with `pad_token_id` (any id but the mask's serves), `labels` with -100, `document_ids` with
    -1, and an `attention_mask` of 0 marks the padding; if all have one length, none is added. Anything else in the
    examples is stacked, as are images, whose `input_ids` are `(channels, height, width)`.
    """

    pad_token_id: int = 0

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Examples, each a dictionary with `input_ids`, to one dictionary of tensors `(batch, ...)`."""
        check_features(features)
        ids = [as_integers("input_ids", feature["input_ids"]) for feature in features]
        if ids[0].dim() > 1:
            return stack_images(features, ids)
        lengths = [len(check_row("input_ids", row)) for row in ids]
        if min(lengths) < max(lengths) and "attention_mask" not in features[0]:
            features = [{**feature, "attention_mask": [1] * n} for feature, n in zip(features, lengths, strict=True)]
        padding = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0, "document_ids": -1}
        batch = {}
        for name in features[0]:
            values = ids if name == "input_ids" else [feature[name] for feature in features]
            if name in padding:
                rows = [check_row(name, as_integers(name, x), n) for x, n in zip(values, lengths, strict=True)]
                batch[name] = torch.nn.utils.rnn.pad_sequence(rows, True, padding[name])
            else:
                batch[name] = stack_column(name, values)
        return batch


def stack_column(name: str, values: list) -> torch.Tensor:
    """Stack a column of numbers of one shape `(batch, ...)`; a ValueError for anything else."""
    try:
        return torch.stack([torch.as_tensor(x) for x in values])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Column `{name}` must hold numbers of one shape, got {values[0]!r}. Remove it.") from error


def check_features(features: list[dict]):
    """Raise a ValueError unless these are examples with the same columns, and `input_ids` among them."""
    are_examples = isinstance(features, Sequence) and all(isinstance(feature, Mapping) for feature in features)
    names = [sorted(feature) for feature in features] if are_examples else f"{features!r:.200}"
    if (
        not are_examples
        or not names
        or any(columns != names[0] for columns in names)
        or "input_ids" not in features[0]
    ):
        raise ValueError(f"`features` must be examples with `input_ids` and the same columns, got {names}.")


def stack_images(features: list[dict], ids: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stack images of one shape, whose `input_ids` are `ids`, to a batch; a ValueError if the shapes differ."""
    shapes = {tuple(image.shape) for image in ids}
    if len(shapes) > 1 or len(min(shapes)) != 3:
        raise ValueError(f"`input_ids` of images must be (channels, height, width), all of one shape, got {shapes}.")
    other_names = [name for name in features[0] if name != "input_ids"]
    columns = {name: [as_integers(name, feature[name]) for feature in features] for name in other_names}
    return {name: torch.stack(rows) for name, rows in {**columns, "input_ids": ids}.items()}


def check_row(name: str, row: torch.Tensor, length: int | None = None) -> torch.Tensor:
    """A column of an example, `(length,)`; a ValueError for other axes, for none and for another length."""
    if row.dim() != 1 or len(row) != (length or max(len(row), 1)):
        raise ValueError(f"`{name}` must be a row of integers, as many as `input_ids`, got {row.tolist()!r}.")
    return row


def as_integers(name: str, values) -> torch.Tensor:
    """Values as a tensor of int64; a ValueError if they are not integers."""
    try:
        integers = torch.as_tensor(values)
        if integers.is_floating_point():
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be integers, got {values!r}.") from error
    return integers.long()


class DataCollatorForMaskedDiffusion(PaddingCollator):
    """Makes batches with the noise of masked diffusion, for a plain `transformers.Trainer` or a loop of one's own.

    A batch holds x_t (`input_ids`), its `timesteps`, stratified over the batch, and the clean `labels`, from which
    `MD4ForMaskedDiffusion` computes the NELBO without noise of its own. Tokens whose label is -100, and padding, are
    neither masked nor scored. A batch has `class_labels` for a model without classes too, which does not read them:
    `Trainer` takes them for targets, by their name, and reports no `eval_loss` without all targets. `MD4Trainer` needs
    no such collator: its noise is stratified over the optimizer step and equal on any number of processes; here it is
    drawn batch by batch, in the workers of the data loader.

    Args:
        config: The configuration of the model: its mask id, masking schedule and training time.
        pad_token_id: Id to pad with; any id but the mask's serves.
        generator: Source of the draws; torch's global one by default, which data loaders seed in each worker.
    """

    def __init__(self, config: MD4Config, pad_token_id: int = 0, generator: torch.Generator | None = None):
        super().__init__(pad_token_id)
        if getattr(config, "model_type", None) != MD4Config.model_type or not hasattr(config, "mask_token_id"):
            raise ValueError(f"`config` must be that of an MD4 model, `model.config`, got {type(config).__name__}.")
        self.objective = Objective.of_config(config)
        self.generator = generator
        # A model without classes does not read its label.
        self.default_class = 0 if config.num_classes is None else config.null_class

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Examples, each a dictionary with `input_ids`, to one dictionary of tensors `(batch, ...)`."""
        batch = super().__call__(features)
        size, shape = len(features), batch["input_ids"].shape
        offset = torch.rand((), generator=self.generator)
        num_times = self.objective.num_times(shape)
        timesteps = stratified_times(offset, torch.arange(size * num_times), size * num_times)
        timesteps = timesteps.view(size, num_times) if num_times > 1 else timesteps
        if self.objective.null_class is not None:
            batch = self.objective.drop_classes(batch, torch.rand(size, generator=self.generator))
        noise = torch.rand(self.objective.noise_shape(shape, GenMD4Process.training_copies), generator=self.generator)
        if self.default_class is not None:
            batch.setdefault("class_labels", torch.full((size,), self.default_class))
        return self.objective.noised(batch, timesteps, noise)
