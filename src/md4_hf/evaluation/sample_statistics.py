# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Statistics of samples that need no model: entropy of the tokens, different n-grams, repetition, duplicates.

They tell samples that repeat themselves, or each other, from varied ones, and not whether a sample is any good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..utils.integers import as_integer


DISTINCT_ORDERS = (1, 2, 3)
REPETITION_ORDER = 4
Sequences: TypeAlias = Tensor | Sequence[Sequence[int] | Tensor]


def token_entropy(sequences: Sequences) -> dict[str, float | int | list[float]]:
    """Entropy of the tokens within each sequence, averaged over the sequences.

    H(x) = −Σ_v p_v·log p_v in nats, with p_v the share of token v among the tokens of x. It is the entropy that is
    reported beside the generative perplexity of SEDD, MDLM and their successors (arXiv:2409.02908): per sequence, and
    then the mean. It lies in [0, log(length)] and grows with the length: compare sequences of the same length only.

    Args:
        sequences: Token ids, `(sequences, length)` or one list per sequence, without padding.

    Returns:
        `token_entropy`, the mean in nats; `token_entropies`, one per sequence; `num_sequences`.

    Raises:
        ValueError: If there are no sequences, or one is empty or holds anything but integers >= 0.
    """
    counts = [ids.unique(return_counts=True)[1].double() for ids in checked_sequences(sequences)]
    entropies = [torch.special.entr(n / n.sum()).sum().item() for n in counts]
    mean = sum(entropies) / len(entropies)
    return {"token_entropy": mean, "token_entropies": entropies, "num_sequences": len(entropies)}


def distinct_n(sequences: Sequences, n: int) -> dict[str, float | int]:
    """Share of different n-grams among all n-grams (distinct-n of Li et al. 2016, arXiv:1510.03055, section 5).

    With G_n(x) the length(x) − n + 1 n-grams of x, in order and with repetitions, and D the number of different ones,

        distinct_n      = D(∪_x G_n(x)) / Σ_x |G_n(x)|        of all sequences together
        mean_distinct_n = mean over x of D(G_n(x)) / |G_n(x)|  within each sequence

    Both lie in (0, 1] and fall as sequences get longer, the first also as they get more: compare as many sequences of
    the same length. Li et al. count words; here they are whatever the ids stand for.

    Args:
        sequences: As in `token_entropy`. Those of fewer than n tokens have no n-gram, and do not count.
        n: Tokens of an n-gram, >= 1.

    Returns:
        `distinct_n`, `mean_distinct_n`, `num_ngrams`, `num_sequences`.

    Raises:
        ValueError: As `token_entropy`; if n < 1, and if no sequence has n tokens.
    """
    grams = [_ngrams(row, n) for row in _rows_with_ngrams(sequences, n) if len(row) >= n]
    num_ngrams = sum(map(len, grams))
    return {
        "distinct_n": len(set().union(*grams)) / num_ngrams,
        "mean_distinct_n": sum(len(set(row)) / len(row) for row in grams) / len(grams),
        "num_ngrams": num_ngrams,
        "num_sequences": len(grams),
    }


def repetition(sequences: Sequences, n: int = REPETITION_ORDER) -> dict[str, float | int]:
    """Share of each sequence that repeats itself, and number of sequences that repeat another one.

        seq_rep_n       = mean over x of 1 − D(G_n(x)) / |G_n(x)|        (Welleck et al., arXiv:1908.04319, seq-rep-n)
        repeated_tokens = Σ_x |{i : i is in an n-gram of x that x has begun before}| / Σ_x length(x)
        num_duplicates  = number of sequences − number of different sequences

    with G_n and D as in `distinct_n`: `seq_rep_n` is 1 − `mean_distinct_n`. An n-gram may overlap with its repetition:
    of a a a a a, all tokens but the first are repeated, for n <= 4. The first two lie in [0, 1).

    Args:
        sequences, n: As in `distinct_n`, whose errors these are.

    Returns:
        `seq_rep_n`, of the sequences that have n tokens; `repeated_tokens`; `num_duplicates`; `num_sequences`, all.
    """
    rows = _rows_with_ngrams(sequences, n)
    return {
        "seq_rep_n": 1.0 - distinct_n(rows, n)["mean_distinct_n"],
        "repeated_tokens": sum(_num_repeated(row, n) for row in rows) / sum(map(len, rows)),
        "num_duplicates": len(rows) - len(set(map(tuple, rows))),
        "num_sequences": len(rows),
    }


def token_statistics(sequences: Sequences) -> dict[str, Any]:
    """All statistics of this module, at their usual orders, for the sequences of `token_entropy`.

    Returns:
        `num_sequences`, `num_tokens`; `token_entropy` in nats; `distinct_1`, `distinct_2`, `distinct_3` of all
        sequences together; `seq_rep_4` and `repeated_tokens_4`; `num_duplicates`. NaN where no sequence is that long.
    """
    rows = [row.tolist() for row in checked_sequences(sequences)]
    longest, n = max(map(len, rows)), REPETITION_ORDER
    repeats = repetition(rows, min(n, longest))
    return {
        "num_sequences": len(rows),
        "num_tokens": sum(map(len, rows)),
        "token_entropy": token_entropy(rows)["token_entropy"],
        **{f"distinct_{k}": distinct_n(rows, k)["distinct_n"] if k <= longest else math.nan for k in DISTINCT_ORDERS},
        f"seq_rep_{n}": repeats["seq_rep_n"] if n <= longest else math.nan,
        f"repeated_tokens_{n}": repeats["repeated_tokens"] if n <= longest else math.nan,
        "num_duplicates": repeats["num_duplicates"],
    }


def checked_sequences(sequences: Iterable[Sequence[int] | Tensor]) -> list[Tensor]:
    """Each sequence as an integer tensor `(length,)` on the CPU; a ValueError as `token_entropy` says."""
    if not isinstance(sequences, Iterable):
        raise ValueError(f"`sequences` must be sequences of token ids, got {sequences!r}.")
    rows = [_checked_sequence(x, index) for index, x in enumerate(sequences)]
    if not rows:
        raise ValueError("`sequences` must hold at least one sequence of token ids, got none.")
    return rows


def _checked_sequence(sequence: Sequence[int] | Tensor, index: int) -> Tensor:
    try:
        ids = torch.as_tensor(sequence).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`sequences` must hold token ids, got {sequence!r:.60} at index {index}.") from None
    if ids.ndim != 1 or len(ids) == 0:
        shape = tuple(ids.shape)
        raise ValueError(f"`sequences` must hold lists of at least one token id, got shape {shape} at index {index}.")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"`sequences` must hold integers, got {ids.dtype} at index {index}.")
    if ids.min() < 0:
        raise ValueError(f"`sequences` must hold token ids >= 0, got {ids.min().item()} at index {index}.")
    return ids


def _rows_with_ngrams(sequences, n: int) -> list[list[int]]:
    """Sequences as lists, checked: at least one of them has an n-gram."""
    as_integer("n", n, 1)
    rows = [row.tolist() for row in checked_sequences(sequences)]
    longest = max(map(len, rows))
    if longest < n:
        raise ValueError(f"`n` must be at most the tokens of the longest sequence, {longest}, got {n}.")
    return rows


def _ngrams(ids: list[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(ids[start:] for start in range(n)), strict=False))


def _num_repeated(ids: list[int], n: int) -> int:
    """Number of tokens in an n-gram that has occurred before."""
    seen: set[tuple[int, ...]] = set()
    repeated: set[int] = set()
    for start, gram in enumerate(_ngrams(ids, n)):
        if gram in seen:
            repeated.update(range(start, start + n))
        seen.add(gram)
    return len(repeated)
