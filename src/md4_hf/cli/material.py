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
    is_local = {
        source: source in ("pydoc", "digits") or Path(source).expanduser().exists() for source in data_args.sources
    }
    names = [Path(source).name if local else source for source, local in is_local.items()]  # no path of this machine
    return {
        "data": f"{' and '.join(names)}, {kind}",
        "datasets": [source for source, local in is_local.items() if not local],
    }
