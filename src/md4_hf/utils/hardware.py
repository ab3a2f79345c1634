# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Devices of this machine, their speed in bfloat16, and reading from them without a wait."""

from __future__ import annotations

import torch


def choose_device(device: str | torch.device | None) -> torch.device:
    """A device of this machine, by default the accelerator if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # one for each kind of device
        raise ValueError(f"`device` must be a device of this machine, got {device!r}: {error}") from error
    if chosen.type == "meta":
        raise ValueError(f"`device` must be a device of this machine, got {device!r}, which holds no numbers.")
    return chosen


class HostCopy:
    """Copy of a tensor on the host that is under way: nothing waits for the device until it is read.

    Reading waits for the copy alone, not for the work that the device was given after it: `tensor.item()` would wait
    for all of it.
    """

    def __init__(self, tensor: torch.Tensor):
        self._is_done: torch.cuda.Event | None = None
        self._tensor = tensor.detach()
        if tensor.device.type == "cuda":
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor = host.copy_(self._tensor, non_blocking=True)
            self._is_done = torch.cuda.Event()
            self._is_done.record()

    def read(self) -> torch.Tensor:
        """The copy, when it is there."""
        if self._is_done is not None:
            self._is_done.synchronize()
        return self._tensor


def has_fast_bf16() -> bool:
    """Whether the processor multiplies in bfloat16; others emulate it, more slowly than float32 by far."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and supported()
