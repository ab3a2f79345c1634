# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Examples of several sources in given shares, in an order that follows from the shares alone.

    train = mix([blocks_of_a, blocks_of_b], weights=[0.7, 0.3])

The j-th example of source i, counted from 0, is due at (j + 1/2) / w_i: the next example is the one that is due first.
So the first n examples hold n w_i of each source, to within less than one per source, for every n.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets

from .arguments import DataArguments
from .documents import join


def prepare_sources(
    args: DataArguments,
    load: Callable[[DataArguments], tuple[list[Dataset | IterableDataset], Dataset | IterableDataset]],
    prepare: Callable[[str, Dataset | IterableDataset], Any],
) -> tuple[Any, Any]:
    """Training and held-out examples of the data: of several sources joined, or of each and then mixed.

    Args:
        args: the sources, and their shares.
        load: function such as `load_sources`, that loads the training part of each source, and what is held out.
        prepare: function that makes examples of a part, whose name it gets too.

    Returns:
        `(training, held_out)`.
    """
    parts, heldout = load(args)
    if args.data_weights is None:
        train = prepare("training data", join(parts))
    else:
        named = zip(args.sources, parts, strict=True)
        train = mix([prepare(f"training data ({name})", part) for name, part in named], args.data_weights)
    return train, prepare("held-out data", heldout)


def mix(sources: Sequence[Dataset | IterableDataset], weights: Sequence[float]) -> Dataset | IterableDataset:
    """Mixes examples of several sources.

    A map-style mixture ends when each source has been seen in whole: examples of the others come again. Streams have no
    end.

    Args:
        sources: data sets with the same columns, all map-style, or all streams.
        weights: positive shares of the sources among the examples; their sum does not matter.

    Raises:
        ValueError: a map-style source is empty.
    """
    if all(isinstance(source, IterableDataset) for source in sources):
        return MixedStream(list(sources), weights)
    lengths = np.array([len(source) for source in sources])
    if not lengths.all():
        raise ValueError(f"`data` must have examples in each source to mix them, got {lengths.tolist()}.")
    return concatenate_datasets(list(sources)).select(mixed_indices(lengths, weights))


def mixed_indices(lengths: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Indices of a mixture into the concatenated sources, each of which occurs in whole at least once."""
    shares = np.asarray(weights, dtype=float) / np.sum(weights)
    end = (lengths / shares).max()
    counts = np.maximum(np.ceil(end * shares - 0.5), 1).astype(int)
    due = np.concatenate([(np.arange(count) + 0.5) / share for count, share in zip(counts, shares, strict=True)])
    starts = np.cumsum(lengths) - lengths
    indices = [start + np.arange(count) % length for start, count, length in zip(starts, counts, lengths, strict=True)]
    return np.concatenate(indices)[np.argsort(due, kind="stable")]


def next_source(counts: Sequence[int], weights: Sequence[float]) -> int:
    """Source of the next example, after so many of each."""
    total = sum(weights)
    due = [(count + 0.5) / (weight / total) for count, weight in zip(counts, weights, strict=True)]
    return due.index(min(due))


class MixedStream(IterableDataset):
    """A mixture of streams, which a training divides, repeats and resumes each by itself.

    Attributes:
        streams: the streams that are mixed.
        weights: their shares.
    """

    def __init__(self, streams: list[IterableDataset], weights: Sequence[float]):
        self.streams, self.weights = streams, list(weights)
        examples = IterableDataset.from_generator(
            _generate_mixture,
            features=streams[0].features,
            gen_kwargs={"streams": tuple(streams), "weights": tuple(weights)},  # lists would be shards
        )
        super().__init__(examples._ex_iterable, info=examples.info)


def _generate_mixture(streams: tuple[IterableDataset, ...], weights: tuple[float, ...]) -> Iterator[dict]:
    examples = [itertools.chain.from_iterable(itertools.repeat(stream)) for stream in streams]
    counts = [0] * len(streams)
    while True:
        number = next_source(counts, weights)
        counts[number] += 1
        yield next(examples[number])
