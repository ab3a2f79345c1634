# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Origin of a figure, to be recorded beside it: versions, hardware and the digest of the weights."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import torch

from ..utils.libraries import installed_versions


PACKAGES = (
    *("md4_hf", "torch", "transformers", "diffusers", "datasets", "accelerate", "tokenizers", "numpy"),
    *("torchmetrics", "torch-fidelity"),
)


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that are installed."""
    return installed_versions(PACKAGES)


def environment(device: torch.device, num_processes: int = 1) -> dict[str, Any]:
    """Versions, the device that was used, and the number of processes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"
    facts = {"python": platform.python_version(), "device": name}
    return {**facts, "num_processes": num_processes, "versions": versions()}


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights, which tells two runs under one name apart."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def known_tokens(tokenizer: Any) -> str | None:
    """Name of published tokens that a tokenizer has, "gpt2", whatever its name and its special tokens; else None."""
    return "gpt2" if tokenizer.encode("Hello world the", add_special_tokens=False) == [15496, 995, 262] else None
