# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Model and data of a training, alike for text and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.arguments import BUILT_IN_TEXTS, DIGITS, DataArguments


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
    is_local = {
        source: source in (*BUILT_IN_TEXTS, DIGITS) or Path(source).expanduser().exists()
        for source in data_args.sources
    }
    validation = data_args.validation_data
    return {
        "data": f"{' and '.join(map(name_without_path, data_args.sources))}, {kind}",
        "validation_data": None if validation is None else f"{name_without_path(validation)}, {kind}",
        "datasets": [source for source, local in is_local.items() if not local],
    }


def name_without_path(source: str) -> str:
    """Name of data for a card, which is to hold no path of this machine."""
    return Path(source).name if Path(source).expanduser().exists() else source
