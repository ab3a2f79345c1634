# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Count models of text and of images: baselines that a trained model has to beat."""

from __future__ import annotations

import numpy as np


def ngram_bits_per_character(train_ids: np.ndarray, heldout_ids: np.ndarray, order: int, num_symbols: int) -> float:
    """Bits per symbol of an n-gram model on held-out text: the baseline that a trained model has to beat.

    p(x_n | context) = (count(context, x_n) + 1) / (count(context) + num_symbols), with the `order - 1` symbols before
    x_n as context and counts of the training text (add-one smoothing). Held-out symbols without a full context, the
    first `order - 1`, are not scored. With a tokenizer of one id per character the unit is bits per character.

    Args:
        train_ids, heldout_ids: `(length,)` integers in [0, num_symbols).
        order: 1 for unigrams, 2 for bigrams, and so on; the table has `num_symbols ** order` entries.
        num_symbols: Size of the alphabet.

    A ValueError for an array shorter than `order`, an id out of range, and a table of more than 2^28 entries.
    """
    if order < 1:
        raise ValueError(f"`order` must be >= 1, got {order}.")
    if num_symbols**order > 2**28:
        raise ValueError(f"`num_symbols ** order` must be at most 2**28, got {num_symbols}**{order}.")
    train_codes = _ngram_codes("train_ids", train_ids, order, num_symbols)
    heldout_codes = _ngram_codes("heldout_ids", heldout_ids, order, num_symbols)
    counts = np.bincount(train_codes, minlength=num_symbols**order)
    context_counts = counts.reshape(-1, num_symbols).sum(axis=1)
    probabilities = (counts[heldout_codes] + 1) / (context_counts[heldout_codes // num_symbols] + num_symbols)
    return float(-np.log2(probabilities).mean())


def pixel_histogram_bits(train_ids: np.ndarray, heldout_ids: np.ndarray, num_levels: int) -> float:
    """Held-out bits per dimension of independent pixels: a histogram of levels for each place and channel.

    Each level is counted once more than it occurs (add-one smoothing). The ids of both, in [0, num_levels), are
    `(images, channels, height, width)`.
    """
    train, heldout = (ids.reshape(len(ids), -1).astype(np.int64) for ids in (train_ids, heldout_ids))
    place = np.arange(train.shape[1])
    counts = np.ones((train.shape[1], num_levels))
    np.add.at(counts, (place, train), 1)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(bits[place, heldout].mean())


def _ngram_codes(name: str, ids: np.ndarray, order: int, num_symbols: int) -> np.ndarray:
    """Numbers of the n-grams of a text, whose digits in base `num_symbols` are the symbols."""
    ids = np.asarray(ids, dtype=np.int64)
    if len(ids) < order:
        raise ValueError(f"`{name}` must have at least `order` = {order} symbols, got {len(ids)}.")
    if ids.min() < 0 or ids.max() >= num_symbols:
        raise ValueError(f"`{name}` must lie in [0, {num_symbols}), got ids from {ids.min()} to {ids.max()}.")
    codes = np.zeros(len(ids) - order + 1, dtype=np.int64)
    for position in range(order):
        codes = codes * num_symbols + ids[position : position + len(codes)]
    return codes
