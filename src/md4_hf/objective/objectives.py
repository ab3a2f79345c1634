# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""How clean batches become a model's inputs, in training and in evaluation: what is noised, scored and left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.masked_diffusion import IGNORE_INDEX, corrupt, discretize_times, rescale_times
from ..core.schedules import MaskingSchedule, make_schedule


@dataclass(frozen=True)
class Diffusion:
    """What training and evaluation need to know of a model's diffusion.

    Args:
        schedule: The masking schedule; None for GenMD4's, which are parameters of the model.
        mask_token_id: The mask id.
        num_train_timesteps: Steps of discrete time, None for continuous time.
        first_time: GenMD4's t_1.
        null_class: The label that stands for no class, if the model has one.
        class_dropout: Probability with which it takes the place of a label in training.
        sees_time: Whether the denoiser is told the time.
    """

    schedule: MaskingSchedule | None
    mask_token_id: int
    num_train_timesteps: int | None = None
    first_time: float = 0.0
    null_class: int | None = None
    class_dropout: float = 0.0
    sees_time: bool = True

    @classmethod
    def of(cls, model) -> Diffusion:
        """The diffusion of an `MD4ForMaskedDiffusion`."""
        return cls.of_config(model.config)

    @classmethod
    def of_config(cls, config) -> Diffusion:
        """The diffusion that an `MD4Config` describes; an `Autoregression` for a causal model."""
        options = {
            "null_class": config.null_class,
            "class_dropout": config.class_dropout,
            "sees_time": config.time_conditioning,
        }
        if config.is_causal:
            return Autoregression(None, config.mask_token_id, **options)
        if config.learn_masking_schedule:
            return cls(None, config.mask_token_id, first_time=config.schedule_first_time, **options)
        schedule = make_schedule(config.masking_schedule, power=config.schedule_power, eps=config.schedule_eps)
        return cls(schedule, config.mask_token_id, config.num_train_timesteps, **options)

    @property
    def learns_schedule(self) -> bool:
        """Whether the schedules are parameters of the model, as GenMD4's are."""
        return self.schedule is None

    @property
    def is_exact(self) -> bool:
        """Whether the likelihood is known without drawing anything."""
        return False

    def noised(self, inputs: Mapping[str, Tensor], timesteps: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Model inputs with x_t, its times and the labels, from a clean batch.

        Args:
            inputs: Clean `input_ids` `(batch, length)`, of images `(batch, channels, height, width)`; `labels` (-100
                where not scored) if there are any, else the tokens that `attention_mask` shows are scored. Tokens that
                are not scored are never masked.
            timesteps: `(batch,)` times in [0, 1).
            noise: Uniform numbers of the shape of `input_ids`; for GenMD4 also with an axis of copies after the first.
                The model itself applies them there, as its schedules may be sharded over devices: the ids stay clean.
        """
        if self.num_train_timesteps is not None:
            timesteps = discretize_times(timesteps, self.num_train_timesteps)
        labels = scored_labels(inputs)
        if self.schedule is None:
            timesteps = rescale_times(timesteps, self.first_time)
            return {**inputs, "timesteps": timesteps, "labels": labels, "mask_noise": noise}
        xt = corrupt(inputs["input_ids"], self.schedule.alpha(timesteps), self.mask_token_id, noise=noise)
        xt = torch.where(labels != IGNORE_INDEX, xt, inputs["input_ids"])
        return {**inputs, "input_ids": xt, "timesteps": timesteps, "labels": labels}

    def drop_classes(self, inputs: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Model inputs that have lost their class with probability `class_dropout`, as guidance needs it.

        Args:
            inputs: A batch, with `class_labels` `(batch,)` if the model has a null class.
            noise: `(batch,)` uniform numbers.
        """
        if self.null_class is None or inputs.get("class_labels") is None:
            return {**inputs}
        labels = inputs["class_labels"]
        return {**inputs, "class_labels": labels.masked_fill(noise < self.class_dropout, self.null_class)}


class Autoregression(Diffusion):
    """The same for a causal model, `MD4ForCausalLM`: nothing is noised, and the NELBO is -log p itself."""

    @property
    def learns_schedule(self) -> bool:
        """False."""
        return False

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    def noised(self, inputs: Mapping[str, Tensor], timesteps: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The clean batch with its labels; times and noise are not used."""
        return {**inputs, "labels": scored_labels(inputs)}


def scored_labels(inputs: Mapping[str, Tensor]) -> Tensor:
    """The given labels, or all tokens that are not padding; -100 elsewhere."""
    if inputs.get("labels") is not None:
        return inputs["labels"]
    if inputs.get("attention_mask") is None:
        return inputs["input_ids"].clone()
    return inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
