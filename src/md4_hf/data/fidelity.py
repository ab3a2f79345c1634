# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Share of a text that a tokenizer keeps: normalisers rewrite case, digits and punctuation, and unknown characters go.

share = check_text_is_kept(documents, tokenizer)  # of a sample; a ValueError if most is lost
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from .pieces import tokenize_texts


NUM_WINDOWS = 64
WINDOW_CHARACTERS = 1024
MIN_SHARE_KEPT = 0.5


def check_text_is_kept(
    documents: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    name: str = "data",
    columns: Sequence[str] = ("text",),
) -> float:
    """Measures the share of the characters that a tokenizer keeps, see `share_kept`, in a sample of documents.

    Args:
        documents: data set; of a stream the first documents are read.
        tokenizer: tokenizer with any normaliser.
        name: name of the data for the error, such as "training data".
        columns: columns with texts, or with messages.

    Returns:
        the share, in [0.5, 1].

    Raises:
        ValueError: less than half of the characters are kept.
    """
    share = share_kept(_sample(documents, columns), tokenizer)
    if share < MIN_SHARE_KEPT:
        raise ValueError(
            f"The tokenizer must keep most of the text, got one that keeps {share:.1%} of the characters of the "
            f"{name} (in a sample) and rewrites or drops the others. Train with "
            "--tokenizer bytes or --tokenizer bpe:2048, which keep every text, or with a tokenizer of this language."
        )
    return share


def share_kept(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the characters of texts that are still there, in their order, in the decoded ids; 1 without characters.

    The text8 tokenizer keeps 10 of the 12 characters of "Hello, world", all but the capital and the comma.
    """
    texts = [text for text in texts if text]
    if not texts:
        return 1.0
    decoded = [
        tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        for ids, _ in tokenize_texts(texts, tokenizer)
    ]
    kept = sum(longest_common_subsequence(*pair) for pair in zip(texts, decoded, strict=True))
    return kept / sum(map(len, texts))


def longest_common_subsequence(a: str, b: str) -> int:
    """Length of the longest common subsequence of two strings.

    The rows of the dynamic programme are bits of integers (Hyyrö 2004, *Bit-parallel LCS-length computation
    revisited*): a row's zero bits count the characters in common.
    """
    if a == b:
        return len(a)
    places: dict[str, int] = {}
    for place, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << place
    all_ones = row = (1 << len(a)) - 1
    for character in b:
        matches = row & places.get(character, 0)
        row = ((row + matches) | (row - matches)) & all_ones
    return len(a) - row.bit_count()


def _sample(documents: Dataset | IterableDataset, columns: Sequence[str]) -> list[str]:
    """Windows of texts, evenly spread over the documents and within each."""
    if isinstance(documents, IterableDataset):
        rows = list(documents.take(NUM_WINDOWS))
    else:
        chosen = np.unique(np.linspace(0, max(len(documents) - 1, 0), NUM_WINDOWS).astype(int))
        rows = list(documents.select(chosen[: len(documents)]))
    texts = [text for row in rows for column in columns for text in _texts(row[column]) if text]
    per_text = math.ceil(NUM_WINDOWS / max(len(texts), 1))
    return [window for text in texts for window in _windows(text, per_text)]


def _texts(value: str | list | None) -> list[str]:
    """A text, or the contents of messages; what is malformed is for others to report."""
    if not isinstance(value, list):
        return [value or ""]
    contents = [message.get("content") for message in value if isinstance(message, dict)]
    return [content for content in contents if isinstance(content, str)]


def _windows(text: str, count: int) -> list[str]:
    """Windows of a text, no more than fit into it side by side."""
    count = min(count, math.ceil(len(text) / WINDOW_CHARACTERS))
    starts = np.linspace(0, max(len(text) - WINDOW_CHARACTERS, 0), count).astype(int).tolist()
    return [text[start : start + WINDOW_CHARACTERS] for start in starts]
