# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Devices of this machine and their speed in bfloat16."""

from __future__ import annotations

import torch


def choose_device(device: str | torch.device | None) -> torch.device:
    """A device of this machine, by default the accelerator if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if device is None:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        chosen = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # one for each kind of device
        raise ValueError(f"`device` must be a device of this machine, got {device!r}: {error}") from error
    if chosen.type == "meta":
        raise ValueError(f"`device` must be a device of this machine, got {device!r}, which holds no numbers.")
    return chosen


def has_fast_bf16() -> bool:
    """Whether the processor multiplies in bfloat16; others emulate it, more slowly than float32 by far."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and supported()
