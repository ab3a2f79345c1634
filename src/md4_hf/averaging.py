# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The moving average of the weights while they train, whole or sharded (FSDP2, DeepSpeed's ZeRO-3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EmaCallback(TrainerCallback):
    """Keeps an exponential moving average of the weights with diffusers' `EMAModel`.

    The decay is warmed up as (1 + step) / (10 + step) until it reaches `decay`.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.average: Any = None
        self._initial: list[torch.Tensor] | None = None

    def resume_from(self, parameters: list[torch.Tensor]):
        """Start the next training from these averaged weights, in the order of the trainable parameters."""
        self._initial = parameters

    @torch.no_grad()
    def set_average(self, model: torch.nn.Module, parameters: list[torch.Tensor]):
        """Replace the averaged weights by these, whole or sharded as the model is, in the order of its parameters."""
        for shadow, value, own in zip(self.average.shadow_params, parameters, trained_parameters(model), strict=True):
            shadow.copy_(local_part(value, own))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Start the average at the weights, or where it was."""
        from diffusers.training_utils import EMAModel

        model = kwargs["model"]
        parameters = trainable(model)
        whole = all(type(parameter.data) is torch.Tensor for parameter in parameters)  # sharded ones have no foreach
        self.average = EMAModel(parameters, decay=self.decay, foreach=whole)
        # In 16 bits the average would stand still: what a step adds to it is below their precision.
        self.average.shadow_params = [
            shadow.float() if shadow.element_size() < 4 else shadow for shadow in self.average.shadow_params
        ]
        if self._initial is not None:
            self.set_average(model, self._initial)
            self.average.optimization_step = state.global_step
            self._initial = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Move the average towards the new weights."""
        self.average.step(trainable(kwargs["model"]))

    @contextlib.contextmanager
    def applied_to(self, model: torch.nn.Module) -> Iterator[None]:
        """Within the context the model has the averaged weights."""
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


def trained_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that training changes: of an adapted model, the adapter's."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What this rank holds of the parameters that training changes, to be read or changed in place."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the outermost stays whole after a forward, as tensors that are not the parameters
    return [
        torch.nn.Parameter(zero_part(parameter)) if is_zero3(parameter) else parameter
        for parameter in trained_parameters(model)
    ]


def is_zero3(parameter: torch.Tensor) -> bool:
    """Whether DeepSpeed's ZeRO-3 has dealt this parameter out to the ranks; it is empty then."""
    return hasattr(parameter, "ds_tensor")


def zero_part(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's flat part of a parameter under ZeRO-3."""
    part = parameter.ds_tensor
    if part.final_location is not None and part.final_location.value == "nvme":
        raise ValueError("`ema_decay` must be 0 with parameters offloaded to NVMe: they cannot be averaged there.")
    return part.data


def refresh_gathered(model: torch.nn.Module):
    """Bring up to date what ZeRO-3 keeps whole on all ranks (small parameters), after the parts have changed."""
    for parameter in trained_parameters(model):
        if is_zero3(parameter) and parameter.ds_status.name == "AVAILABLE":
            group, own = parameter.ds_process_group, zero_part(parameter)
            parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
            torch.distributed.all_gather(parts, own, group=group)
            parameter.data.copy_(torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape))


def local_part(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """What of a value this rank would hold if the value was sharded as the parameter is."""
    if isinstance(parameter, DTensor):
        if isinstance(value, DTensor):
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    if not is_zero3(parameter):
        return value
    if is_zero3(value):
        return zero_part(value)
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank(parameter.ds_process_group)
    whole = value.new_zeros((rank + 1) * size)  # the last part is filled up
    whole[: value.numel()] = value.flatten()[: len(whole)]
    return whole[rank * size :]
