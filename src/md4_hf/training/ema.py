# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Moving average of the weights while they train, whole or sharded (see `sharding`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..hub.adapters import folder_of_adapter, is_adapted, stored_names
from ..utils.sharding import local_part, parameter_names, refresh_gathered, trainable, trained_parameters
from .checkpoints import stored_tensors


EMA_FOLDER = "ema"


class EmaCallback(TrainerCallback):
    """Exponential moving average of the weights, by diffusers' `EMAModel`.

    The decay is warmed up as (1 + step) / (10 + step) until it reaches `decay`.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.average: Any = None
        self.initial: Iterable[torch.Tensor] | None = None  # for the start of the next training

    @property
    def values(self) -> list[torch.Tensor] | None:
        """This rank's part of the averaged weights, in the order of the trained parameters; None before training."""
        return None if self.average is None else self.average.shadow_params

    @torch.no_grad()
    def set_average(self, model: torch.nn.Module, parameters: Iterable[torch.Tensor]):
        """Replace the averaged weights by these, in the order of the model's parameters, and sharded as they are."""
        for shadow, value, own in zip(self.average.shadow_params, parameters, trained_parameters(model), strict=True):
            shadow.copy_(local_part(value, own))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Start the average at the weights, or at those in `initial`."""
        from diffusers.training_utils import EMAModel

        model = kwargs["model"]
        parameters = trainable(model)
        are_plain = all(type(parameter.data) is torch.Tensor for parameter in parameters)  # sharded: no foreach
        self.average = EMAModel(parameters, decay=self.decay, foreach=are_plain)
        # In 16 bits the average would stand still: what a step adds to it is below their precision.
        self.average.shadow_params = [s.float() if s.element_size() < 4 else s for s in self.average.shadow_params]
        if self.initial is not None:
            self.set_average(model, self.initial)
            self.average.optimization_step, self.initial = state.global_step, None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Move the average towards the new weights."""
        self.average.step(trainable(kwargs["model"]))

    @contextlib.contextmanager
    def applied_to(self, model: torch.nn.Module) -> Iterator[None]:
        """Give the model the averaged weights within the context."""
        if self.average is None or self.average.temp_stored_params is not None:  # nothing to apply, or applied already
            yield
            return
        parameters = trainable(model)
        self.average.store(parameters)
        self.average.copy_to(parameters)
        refresh_gathered(model)
        try:
            yield
        finally:
            self.average.restore(trainable(model))
            refresh_gathered(model)


def average_folder(model: torch.nn.Module) -> str:
    """Where a checkpoint holds its averaged weights; `Trainer` takes an adapter one level up for a second one."""
    return os.path.join(EMA_FOLDER, "adapter") if is_adapted(model) else EMA_FOLDER


def stored_average(checkpoint: str, model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The averaged weights in a checkpoint, if it has any, in the order of the trainable parameters of the model."""
    folder = Path(checkpoint) / average_folder(model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`resume_from_checkpoint` must hold the averaged weights in {average_folder(model)!r} (or set "
            f"`ema_decay=0`), got {checkpoint}."
        )
    if not is_adapted(model):
        return stored_tensors(folder, parameter_names(model))
    return stored_tensors(folder / folder_of_adapter(model.active_adapter), stored_names(model))
