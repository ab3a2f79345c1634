# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Entire examples side by side in rows, each of which attends to itself alone; `packing` cuts text into blocks instead.

rows = pack_rows(examples, block_size=512)
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from ..utils.integers import as_integer
from .arrow_cache import cached_tables
from .loading_errors import cache_errors
from .progress import advance, progress_bar


EXAMPLES_PER_READ, ROWS_PER_TABLE = 10_000, 1000
COLUMNS = ("input_ids", "labels")
FEATURES = Features({name: List(Value("int32")) for name in (*COLUMNS, "document_ids")})


@cache_errors()
def pack_rows(examples: Dataset, block_size: int) -> Dataset:
    """Puts entire examples into rows of at most `block_size` tokens, on disk in the cache of `datasets`.

    Args:
        examples: data set with `input_ids` and `labels`, as `encode_pairs` makes them.
        block_size: largest number of tokens of a row.

    Returns:
        Rows with `input_ids`, `labels` and `document_ids`, the number of the example that each token belongs to, from
        0; few of them, since each example goes into the fullest row that has room, the longest first.

    Raises:
        ValueError: an example has more tokens than `block_size`.
    """
    block_size = as_integer("block_size", block_size, 1)
    with progress_bar("Packing", "rows"):
        return cached_tables(_tables, FEATURES, {"examples": examples.select_columns([*COLUMNS]), "size": block_size})


def rows_of_lengths(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of examples with these lengths, row by row, by best fit in decreasing order of length.

    Raises:
        ValueError: a length exceeds `size`.
    """
    if len(lengths) and max(lengths) > size:
        raise ValueError(f"`block_size` must be at least the {max(lengths)} tokens of an example, got {size}.")
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # numbers of the rows with so much room
    rooms: list[int] = []  # in increasing order
    for index in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        place = bisect.bisect_left(rooms, lengths[index])
        if place < len(rooms):
            room = rooms[place]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        else:
            room, number = size, len(rows)
            rows.append([])
        rows[number].append(index)
        if (left := room - lengths[index]) not in by_room:
            bisect.insort(rooms, left)
        by_room.setdefault(left, []).append(number)
    return rows


def _tables(examples: Dataset, size: int) -> Iterator[pa.Table]:
    arrow = examples.with_format("arrow")
    batches = [pc.list_value_length(batch["input_ids"]).to_numpy() for batch in arrow.iter(EXAMPLES_PER_READ)]
    rows = rows_of_lengths(np.concatenate(batches).tolist(), size)
    rows.sort(key=min)  # about in the order of the examples
    for start in range(0, len(rows), ROWS_PER_TABLE):
        part = rows[start : start + ROWS_PER_TABLE]
        yield _joined(arrow[[index for row in part for index in row]], [len(row) for row in part])
        advance(len(part))


def _joined(examples: pa.Table, counts: list[int]) -> pa.Table:
    """Rows of so many consecutive examples each."""
    lengths = pc.list_value_length(examples["input_ids"]).to_numpy()
    ends = np.cumsum(lengths)[np.cumsum(counts) - 1]
    offsets = pa.array([0, *ends.tolist()], pa.int32())
    numbers = np.concatenate([np.arange(count) for count in counts])
    tokens = {name: pc.list_flatten(examples[name]).combine_chunks() for name in COLUMNS}
    tokens["document_ids"] = pa.array(np.repeat(numbers, lengths), pa.int32())
    lists = {name: pa.ListArray.from_arrays(offsets, column) for name, column in tokens.items()}
    return pa.table(lists, schema=FEATURES.arrow_schema)
