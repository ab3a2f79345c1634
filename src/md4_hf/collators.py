# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Examples to batches: clean ones for `MD4Trainer`, or noised ones for a plain `Trainer` or a loop of one's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .configuration_md4 import MD4Config
from .evaluation import Diffusion
from .masked_diffusion import IGNORE_INDEX, stratified_times
from .modeling_md4 import GENMD4_COPIES


@dataclass
class PaddingCollator:
    """Makes a batch of examples; sequences of different lengths are padded on the right.

    `input_ids` are padded with `pad_token_id`, `labels` with -100, `document_ids` with -1, and an `attention_mask` of 0
    tells the padding; if all are as long, none is added. Anything else in the examples is stacked.

    Args:
        pad_token_id: Id to pad with. Padding is never scored, so that any id but the mask's serves.
    """

    pad_token_id: int = 0

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Examples, each a dictionary with `input_ids`, to one dictionary of tensors `(batch, ...)`."""
        lengths = [len(feature["input_ids"]) for feature in features]
        if min(lengths) < max(lengths) and "attention_mask" not in features[0]:
            features = [{**feature, "attention_mask": [1] * n} for feature, n in zip(features, lengths, strict=True)]
        padding = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0, "document_ids": -1}
        batch = {}
        for name in features[0]:
            rows = [torch.as_tensor(feature[name]) for feature in features]
            if name in padding:
                rows = torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], True, padding[name])
            else:
                rows = torch.stack(rows)
            batch[name] = rows
        return batch


class DataCollatorForMaskedDiffusion(PaddingCollator):
    """Makes batches with the noise of masked diffusion, for a plain `transformers.Trainer` or a loop of one's own.

    A batch holds x_t (`input_ids`), its `timesteps`, stratified over the batch, and the clean `labels`: what
    `MD4ForMaskedDiffusion` computes the NELBO from without drawing noise of its own. Tokens whose label is -100, and
    padding, are neither masked nor scored.

    `MD4Trainer` needs no such collator. Its noise is stratified over the whole optimizer step and the same on any
    number of processes; here it is drawn batch by batch, in the workers of the data loader.

    Args:
        config: The configuration of the model: its mask id, masking schedule and training time.
        pad_token_id: Id to pad with; any id but the mask's serves.
        generator: Source of the draws; torch's global one by default, which data loaders seed in each worker.

    Example:

    ```python
    collator = DataCollatorForMaskedDiffusion(model.config)
    trainer = transformers.Trainer(model, args, train_dataset=blocks, data_collator=collator)
    ```
    """

    def __init__(self, config: MD4Config, pad_token_id: int = 0, generator: torch.Generator | None = None):
        super().__init__(pad_token_id)
        self.diffusion = Diffusion.of_config(config)
        self.generator = generator

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Examples, each a dictionary with `input_ids`, to one dictionary of tensors `(batch, ...)`."""
        batch = super().__call__(features)
        size, shape = len(features), batch["input_ids"].shape
        offset = torch.rand((), generator=self.generator)
        timesteps = stratified_times(offset, torch.arange(size), size)
        if self.diffusion.schedule is None:
            shape = (size, GENMD4_COPIES, shape[1])
        return self.diffusion.noised(batch, timesteps, torch.rand(shape, generator=self.generator))
