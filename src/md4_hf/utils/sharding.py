# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The weights of a model in training: unsharded, in FSDP2's DTensors or in DeepSpeed's ZeRO-3."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor


# Prefixes that wrappers (torch.compile, FSDP's activation checkpointing) put into the names of parameters.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def parameter_names(model: torch.nn.Module, trained_only: bool = True) -> list[str]:
    """The names of the (trained) parameters in the model's own code, in order."""
    return [_own_name(name) for name, p in model.named_parameters() if p.requires_grad or not trained_only]


def _own_name(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@torch.no_grad()
def whole_weights(
    model: torch.nn.Module,
    values: Iterable[torch.Tensor] | None = None,
    *,
    keep: bool,
    names: Container[str] | None = None,
) -> dict[str, torch.Tensor]:
    """State dict of an unsharded model, with copies on the CPU where it is sharded. A collective: call it on all ranks.

    One parameter is made whole at a time, so that a rank that keeps nothing needs no memory for it.

    Args:
        model: The model in training.
        values: This rank's parts of other values for the trained parameters, such as their average.
        keep: Whether this rank wants the result; else it gets an empty one.
        names: Names of the parameters to take; by default all, and the buffers.
    """
    trained_values = iter(trainable(model) if values is None else values)
    weights = {}
    for name, parameter in model.named_parameters():
        value = next(trained_values) if parameter.requires_grad else _held(parameter)
        if names is None or _own_name(name) in names:
            gathered = whole_value(value, parameter)
            if keep:
                weights[_own_name(name)] = gathered.detach() if gathered is value else gathered.cpu()
    if keep and names is None:
        for prefix, module in model.named_modules():
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                    weights[_own_name(name)] = buffer
    return weights


def whole_parameter(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The whole value of a parameter, without gradient. A collective where it is sharded."""
    return whole_value(_held(parameter), parameter).detach()


def count_parameters(model: torch.nn.Module, trained_only: bool = False) -> int:
    """Number of scalars in the parameters of a model, sharded or not."""
    counted = trained_parameters(model) if trained_only else model.parameters()
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in counted)


def _held(parameter: torch.nn.Parameter) -> torch.Tensor:
    return zero_part(parameter) if is_zero3(parameter) else parameter


def whole_value(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The unsharded value of a tensor that is sharded as the parameter is. A collective."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    return _gathered(value, parameter) if is_zero3(parameter) else value


def keep_float32(fsdp_plugin: Any, weights: bool = False):
    """Leave what is not a weight to autocast in FSDP2's mixed precision, and add up gradients in float32, as DDP does.

    accelerate's policy would round times, noise, rotary angles and the loss to 16 bits on their way in and out. Call it
    before the model is prepared. With `weights` these are left to autocast too: they are sent in float32 then, and
    GenMD4's exponents, which it leaves alone, are not rounded.
    """
    policy = fsdp_plugin.mixed_precision_policy
    if isinstance(policy, MixedPrecisionPolicy):
        fsdp_plugin.mixed_precision_policy = replace(
            policy,
            param_dtype=None if weights else policy.param_dtype,
            reduce_dtype=torch.float32,
            output_dtype=None,
            cast_forward_inputs=False,
        )


def undivided_classes(model: torch.nn.Module) -> set[str]:
    """Names of the classes of modules that combine the outputs of their parts."""
    return {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}


def block_classes(model: torch.nn.Module) -> set[type[torch.nn.Module]]:
    """Classes of the blocks of a network: items of its lists that are not to be divided."""
    names = undivided_classes(model)
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return {type(block) for blocks in lists for block in blocks if type(block).__name__ in names}


def shard_blocks(fsdp_plugin: Any, model: torch.nn.Module):
    """Have FSDP2 gather a network block by block, unless its configuration names other classes of the model.

    accelerate would take all that `_no_split_modules` names, and fail for names that are not in the model.
    """
    asked, known = (
        fsdp_plugin.transformer_cls_names_to_wrap or (),
        {type(module).__name__ for module in model.modules()},
    )
    names = [name for name in asked if name in known] or sorted(cls.__name__ for cls in block_classes(model))
    fsdp_plugin.transformer_cls_names_to_wrap = names


def trained_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that training changes: of an adapted model, the adapter's."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """This rank's parts of the parameters that training changes, to be read or changed in place."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the outermost stays whole after a forward, as tensors that are not the parameters
    return [torch.nn.Parameter(zero_part(p)) if is_zero3(p) else p for p in trained_parameters(model)]


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
    """Update the small parameters that ZeRO-3 keeps unsharded on all ranks, after their parts have changed."""
    for parameter in trained_parameters(model):
        if is_zero3(parameter) and parameter.ds_status.name == "AVAILABLE":
            parameter.data.copy_(_gathered(zero_part(parameter), parameter))


def _gathered(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The whole of a value of which each rank holds a flat part, as ZeRO-3 does of the parameter."""
    group = parameter.ds_process_group
    parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)


def local_part(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The part of a value that this rank would hold if the value were sharded as the parameter is."""
    if isinstance(parameter, DTensor):
        if isinstance(value, DTensor):
            return value
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)  # each rank has it
    if not is_zero3(parameter):
        return value
    if is_zero3(value):
        return zero_part(value)
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank(parameter.ds_process_group)
    padded = value.new_zeros((rank + 1) * size)  # the last part is filled up
    padded[: value.numel()] = value.flatten()[: len(padded)]
    return padded[rank * size :]
