# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments of transformers that a release has renamed, under their newer names on older releases too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from ..utils.options import option


# Before 5.23 activation checkpointing has the older names alone; from 5.23 on these are deprecated.
OLDER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}


@dataclass(repr=False)  # `TrainingArguments` has one that hides the token of the Hub
class RenamedArguments(TrainingArguments):
    """`transformers.TrainingArguments` of any release, with `activation_checkpointing`."""

    activation_checkpointing: bool | None = option(
        "Compute activations again in the backward pass.", nargs="?", const=True
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = option(
        "How --activation_checkpointing is done, as JSON: `use_reentrant`, `every_n_layers`, ..."
    )

    def __post_init__(self):
        renamed = {new: old for new, old in OLDER_NAMES.items() if not hasattr(TrainingArguments, new)}
        for new, old in renamed.items():
            if getattr(self, new) is not None:
                setattr(self, old, getattr(self, new))
        super().__post_init__()
        for new, old in renamed.items():
            setattr(self, new, getattr(self, old))
