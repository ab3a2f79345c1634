# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts to ids, long texts in pieces, with the characters and bytes that each id stands for.

pieces = Pieces.of_texts(["a document", "another"], tokenizer)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..core.text_encoding import encode_texts


CHARACTERS_PER_CALL = 2**20  # for which a tokenizer call takes about 100 MB
PIECE_CHARACTERS = 2**14
PIECE_END = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
PIECE_FEATURES = Features(
    input_ids=List(Value("int32")), sizes_per_token=List(Value("float64"), length=2), starts_document=Value("bool")
)
PIECE_SCHEMA = PIECE_FEATURES.arrow_schema


@dataclass(frozen=True)
class Pieces:
    """Documents as ids: most are one piece, long ones several, and those without tokens none.

    Arrays rather than lists, since a piece may be a line of few tokens.

    Attributes:
        input_ids: ids of all pieces, one after the other (int32).
        num_tokens: `(pieces,)` number of ids of each.
        sizes_per_token: `(pieces, 2)` characters and bytes that each id of a piece stands for: those of the document
            over its tokens.
        starts_document: `(pieces,)` whether a piece is the first of its document.
    """

    input_ids: np.ndarray
    num_tokens: np.ndarray
    sizes_per_token: np.ndarray
    starts_document: np.ndarray

    @classmethod
    def of_texts(cls, texts: Sequence[str | None], tokenizer: PreTrainedTokenizerBase) -> Pieces:
        """Pieces of documents, of which None has no text."""
        ids, num_tokens, owners, sizes_per_token = _encode(texts, tokenizer)
        has_tokens = num_tokens > 0
        owners = owners[has_tokens]
        return cls(ids, num_tokens[has_tokens], sizes_per_token[owners], np.diff(owners, prepend=-1) > 0)

    @classmethod
    def of_table(cls, table: pa.Table) -> Pieces:
        """Pieces of a table with the columns `PIECE_FEATURES`."""
        return cls(
            pc.list_flatten(table["input_ids"]).to_numpy(),
            pc.list_value_length(table["input_ids"]).to_numpy(),
            pc.list_flatten(table["sizes_per_token"]).to_numpy().reshape(-1, 2),
            table["starts_document"].to_numpy(),
        )

    def table(self) -> pa.Table:
        """A row of `PIECE_FEATURES` for each piece."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.num_tokens)]), pa.int32())
        columns = {
            "input_ids": pa.ListArray.from_arrays(offsets, self.input_ids),
            "sizes_per_token": pa.FixedSizeListArray.from_arrays(self.sizes_per_token.ravel(), 2),
            "starts_document": self.starts_document,
        }
        return pa.table(columns, schema=PIECE_SCHEMA)

    def __len__(self) -> int:
        return len(self.num_tokens)

    def parts(self, max_tokens: int) -> Iterator[Pieces]:
        """Yield consecutive pieces that have about so many tokens together, or one that has more."""
        ends = np.cumsum(self.num_tokens)
        for part in _slices(self.num_tokens, max_tokens):
            begin, end = ends[part.start] - self.num_tokens[part.start], ends[part.stop - 1]
            per_piece = (x[part] for x in (self.num_tokens, self.sizes_per_token, self.starts_document))
            yield Pieces(self.input_ids[begin:end], *per_piece)


def tokenize_texts(
    texts: Sequence[str | None], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids (int32) of each text, as `pack` makes them, and the characters and bytes that each of them stands for."""
    ids, num_tokens, owners, sizes_per_token = _encode(texts, tokenizer)
    ends = np.cumsum(np.bincount(owners, weights=num_tokens)).astype(int)
    return zip(np.split(ids, ends[:-1]), sizes_per_token, strict=True)


def sizes_of(text: str) -> tuple[int, int]:
    """Characters and UTF-8 bytes of a text."""
    return len(text), len(text.encode("utf-8", "surrogatepass"))


def _encode(
    texts: Sequence[str | None], tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids of all pieces; for each piece its number of ids and the index of its text; `(texts, 2)` sizes of an id."""
    owned = [(owner, piece) for owner, text in enumerate(texts) for piece in split_long_text(text or "")]
    owners = np.array([owner for owner, _ in owned])
    pieces = [piece for _, piece in owned]
    after = ["" if step == 0 else None for step in np.diff(owners, prepend=-1).tolist()]  # later ones continue a text
    ids, lengths = [], []
    for call in _slices([*map(len, pieces)], CHARACTERS_PER_CALL):
        rows = encode_texts(tokenizer, pieces[call], after=after[call])
        ids.append(np.fromiter(itertools.chain.from_iterable(rows), np.int32))
        lengths += map(len, rows)

    num_tokens = np.array(lengths)
    tokens_of_text = np.bincount(owners, weights=num_tokens)
    sizes = np.array([sizes_of(text or "") for text in texts])
    return np.concatenate(ids), num_tokens, owners, sizes / np.maximum(tokens_of_text, 1)[:, None]


def _slices(sizes: Sequence[int] | np.ndarray, limit: int) -> Iterator[slice]:
    """Consecutive slices of things of these sizes, each of about `limit` together, or of one that is larger."""
    steps = np.diff(np.cumsum(sizes) // limit)
    bounds = [0, *(np.flatnonzero(steps) + 1).tolist(), len(sizes)]
    return (slice(*pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1])


def split_long_text(text: str, max_characters: int = PIECE_CHARACTERS) -> list[str]:
    """Cuts a text into pieces that are tokenised one by one, so that memory does not grow with the document.

    Cuts fall before a space between two ASCII letters, once a piece has `max_characters`. Tokenizers split words
    there anyway, so the tokens are those of the whole text. A text without such places is not cut.
    """
    pieces, start = [], 0
    while len(text) - start > max_characters and (end := PIECE_END.search(text, start + max_characters)):
        pieces.append(text[start : end.start()])
        start = end.start()
    return [*pieces, text[start:]]
