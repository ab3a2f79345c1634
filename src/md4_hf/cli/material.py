# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Model and data of a training, alike for text and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.arguments import DataArguments


@dataclass(frozen=True)
class Material:
    """Model and data of a training."""

    model: Any
    processor: Any  # its tokenizer or image processor
    train_examples: Any
    heldout_examples: Any
    facts: dict[str, Any]  # fields of `CardFacts`
    measure_baselines: Callable[[], dict[str, float]] = dict  # bits per unit of models without a network, by name


def describe_data(data_args: DataArguments, kind: str) -> dict:
    """Facts of the model card about the data, whose examples are of this kind."""
    is_local = data_args.data in ("pydoc", "digits") or Path(data_args.data).expanduser().exists()
    name = Path(data_args.data).name if is_local else data_args.data  # not the path on this machine
    return {"data": f"{name}, {kind}", "datasets": [] if is_local else [data_args.data]}
