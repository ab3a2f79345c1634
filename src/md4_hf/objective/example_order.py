# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The order of evaluation examples by content, so that their noise does not depend on where they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..utils.libraries import is_instance


NOISE_INDEX = "noise_index"  # the column of an example's place in the order of digests

_COLUMNS = ("input_ids", "labels", "attention_mask", "class_labels", "document_ids")
_ROWS_PER_READ = 256
_SAMPLED_IDS = 2**24


class OrderedExamples(torch.utils.data.Dataset):
    """Examples of a data set, each with its `noise_index`: its rank when all are sorted by their digests.

    An example thus has the same noise wherever it stands in the data set, in any batch and on any process;
    and the indices are 0 ... n - 1, as the even spread of `evaluation_times` needs. Examples that are alike take
    neighbouring indices in the order in which they stand. The data set is one that `can_be_ordered`.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        order = np.argsort(np.array(example_digests(dataset)), kind="stable")
        self._index = np.empty(len(order), dtype=np.int64)
        self._index[order] = np.arange(len(order))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        """Several examples, read at once where the data set can."""
        numbers = self._index[places].tolist()
        return [{**row, NOISE_INDEX: n} for row, n in zip(_rows(self.dataset, places), numbers, strict=True)]


def can_be_ordered(dataset: Any) -> bool:
    """Whether a data set has a length, as a stream has not, and examples with `input_ids`."""
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        return False
    return len(dataset) > 0 and isinstance(dataset[0], Mapping) and "input_ids" in dataset[0]


def data_sha256(dataset: Any) -> str:
    """SHA-256, hexadecimal, of the contents of all examples, in their order."""
    return hashlib.sha256(b"".join(example_digests(dataset))).hexdigest()


def sampled_sha256(dataset: Any) -> str:
    """SHA-256, hexadecimal, of the number of examples and of some of them, spread evenly: all, up to 16M ids.

    Tells data from others in seconds, however many there are.
    """
    count = min(len(dataset), max(_SAMPLED_IDS // max(np.size(dataset[0]["input_ids"]), 1), 1))
    places = np.linspace(0, len(dataset) - 1, count, dtype=np.int64).tolist()
    return hashlib.sha256(b"".join([b"%d\n" % len(dataset), *example_digests(dataset, places)])).hexdigest()


def example_digests(dataset: Any, chosen: Sequence[int] | None = None) -> list[bytes]:
    """A digest of 16 bytes of each example, or of those chosen: its ids, labels, class, padding and documents."""
    if is_instance(dataset, "datasets.Dataset") and dataset.format["type"] in (None, "torch"):
        dataset = dataset.with_format("numpy")  # as lists, each id would be an object of Python
    digests = []
    chosen = range(len(dataset)) if chosen is None else chosen
    for start in range(0, len(chosen), _ROWS_PER_READ):
        places = list(chosen[start : start + _ROWS_PER_READ])
        digests += [_digest(row) for row in _rows(dataset, places)]
    return digests


def _rows(dataset: Any, places: list[int]) -> list[Mapping[str, Any]]:
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(places)
    return [dataset[place] for place in places]


def _digest(row: Mapping[str, Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in _COLUMNS:
        if row.get(name) is not None:
            values = np.asarray(row[name]).astype(np.int64)
            digest.update(f"{name} {values.shape}\n".encode())
            digest.update(values.tobytes())
    return digest.digest()
