# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets that a user gives: one split each, with the columns that are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ..utils.instances import check_instance


TEXT_TYPES = ("string", "large_string", "null")  # the last of a column without values


def check_table(name: str, data: Any, *, may_be_stream: bool = True):
    """Raise a ValueError for data that are no `Dataset` nor, if it may be one, an `IterableDataset`."""
    if isinstance(data, (DatasetDict, IterableDatasetDict)):
        raise ValueError(
            f"`{name}` must be one split of the data, got all of them, {[*data]}: choose one by its name."
        )
    classes = (Dataset, IterableDataset) if may_be_stream else (Dataset,)
    check_instance(name, data, *classes, hint="`datasets.Dataset.from_list` makes one of a list of dictionaries.")


def check_texts(name: str, data: Dataset | IterableDataset, column: str = "text"):
    """Raise a ValueError if a column of texts is missing or holds something else, as far as it is known unread."""
    features = data.features
    if features is None:
        return
    if column not in features:
        raise ValueError(f"`{name}` must have a column {column!r}, got {sorted(features)}.")
    if getattr(features[column], "dtype", None) not in TEXT_TYPES:
        raise ValueError(f"`{name}` must hold strings in the column {column!r}, got {features[column]}.")


def texts_of(name: str, batch: Mapping[str, list], column: str = "text") -> list[str | None]:
    """Texts of a batch of a stream, whose columns are known only now; a ValueError as of `check_texts`."""
    if column not in batch:
        raise ValueError(f"`{name}` must have a column {column!r}, got {sorted(batch)}.")
    for text in batch[column]:
        if not isinstance(text, (str, type(None))):
            raise ValueError(f"`{name}` must hold strings in the column {column!r}, got {text!r}.")
    return batch[column]
