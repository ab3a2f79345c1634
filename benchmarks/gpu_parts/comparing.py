# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Comparisons with the processor in float64, within stated tolerances."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .part import Row


# Largest relative errors, by norms. float32 sums differ by their order; bfloat16 has 8 bits, of which some cancel.
FLOAT32, BFLOAT16 = "float32", "bf16 autocast"
TOLERANCES = {
    FLOAT32: {"logits": 2e-5, "loss": 2e-5, "gradients": 2e-4},
    BFLOAT16: {"logits": 4e-2, "loss": 2e-2, "gradients": 6e-2},
}


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Norm of the difference over that of the reference, in float64; infinite where a number is not finite."""
    found, reference = (x.detach().to("cpu", torch.float64).flatten() for x in (found, reference))
    if not found.isfinite().all():
        return float("inf")
    return float((found - reference).norm() / reference.norm().clamp(min=1e-30))


def compared(
    found: Mapping[str, Tensor], reference: Mapping[str, Tensor], tolerances: Mapping[str, float], **figures: Any
) -> Row:
    """Row with the relative error of each tensor, each of which must be within its tolerance."""
    errors = {name: relative_error(x, reference[name]) for name, x in found.items()}
    ok = all(error <= tolerances[name] for name, error in errors.items())
    listed = ", ".join(f"{name} {tolerances[name]:g}" for name in errors)
    return Row("", {**{f"{name}_error": e for name, e in errors.items()}, **figures}, ok, f"tolerances: {listed}")


def outcome(model: torch.nn.Module, inputs: Mapping[str, Any], dtype: torch.dtype, network=None) -> dict[str, Tensor]:
    """Loss and gradients of a training batch, under autocast if the precision is below float32.

    Args:
        model: The model, whose parameters' gradients are taken.
        inputs: Inputs with labels.
        dtype: Precision.
        network: The compiled model, if it is.
    """
    model.train()
    model.zero_grad()
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = (model if network is None else network)(**inputs)
    output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    flat = torch.cat([g.detach().to("cpu", torch.float64).flatten() for g in gradients if g is not None])
    return {"loss": output.nelbo.detach(), "gradients": flat}


def logits_of(model: torch.nn.Module, inputs: Mapping[str, Any], dtype: torch.dtype, network=None) -> Tensor:
    """Logits of the data tokens of a batch; the mask's are left out."""
    model.eval()
    names = ("input_ids", "timesteps", "class_labels", "attention_mask", "document_ids")
    inputs = {name: inputs[name] for name in names if name in inputs}
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return (model if network is None else network)(**inputs).logits[..., : model.config.mask_token_id]


def in_float64(model: torch.nn.Module) -> torch.nn.Module:
    """Copy of a model on the processor in float64."""
    return copy.deepcopy(model).to("cpu", torch.float64)


def moved(inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Inputs on another device."""
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
