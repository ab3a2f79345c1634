# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Versions of libraries, and optional ones, which are imported only by what needs them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterable
from typing import Any


# Distributions that this package needs.
LIBRARIES = (
    *("torch", "transformers", "diffusers", "accelerate", "datasets", "huggingface_hub", "tokenizers", "safetensors"),
    *("filelock", "fsspec", "matplotlib", "numpy", "pillow", "pyarrow", "pyyaml", "tqdm"),
)


def is_instance(value: Any, class_name: str) -> bool:
    """Whether a value is an instance of a class such as "datasets.Dataset", whose library is not imported for it.

    Who has such a value has imported the library.
    """
    module, _, name = class_name.rpartition(".")
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def check_version(name: str, oldest: str, users: str):
    """Raise an ImportError that names both versions if an installed library is older than its `users` need."""
    from accelerate.utils import compare_versions  # late: imports torch

    if not compare_versions(name, ">=", oldest):
        found = importlib.metadata.version(name)
        raise ImportError(f"{users} need {name} {oldest} or later, got {found}: pip install '{name}>={oldest}'.")


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed, none of which is imported."""
    found = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
