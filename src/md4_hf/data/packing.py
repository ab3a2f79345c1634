# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Documents to blocks of equal length: tokenise, join with separators, cut; of a data set on disk, or of a stream.

blocks, report = pack(documents, tokenizer, block_size=256)
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.distributed import split_dataset_by_node
from transformers import PreTrainedTokenizerBase

from ..core.text_encoding import encode_texts
from ..objective.figures import SIZE_COLUMNS
from ..utils.integers import as_integer
from .arrow_cache import cached_tables
from .loading_errors import cache_errors
from .pieces import PIECE_FEATURES, Pieces, sizes_of
from .progress import advance, progress_bar
from .tables import check_table, check_texts, texts_of
from .tokenizers import check_tokenizer


logger = logging.getLogger(__name__)

DOCUMENTS_PER_BATCH = 64  # of a stream
MAX_DOCUMENTS_PER_BATCH, BYTES_PER_BATCH = 1000, 2**20  # of a data set, whose documents may be lines or books
PIECES_PER_READ, TOKENS_PER_CUT = 1000, 2**16
WAITING = {"input_ids": np.int32, "sizes": np.float64, "documents": np.int64}  # of tokens, in a `BlockCutter`


@dataclass(frozen=True)
class PackingReport:
    """Counts of a corpus in `pack`. Separators are included in tokens, characters and bytes."""

    num_documents: int  # with at least one token
    num_tokens: int  # of the entire corpus, the dropped ones included
    num_characters: int  # of the entire corpus, before any normaliser of the tokenizer
    num_bytes: int  # of these characters in UTF-8
    num_blocks: int
    num_dropped_tokens: int  # at the end of the corpus, too few for a block


@dataclass(frozen=True)
class Separator:
    """Token ids that `pack` puts after each document, or only between two, and the text that each stands for."""

    input_ids: tuple[int, ...]
    sizes_per_token: tuple[float, float] = (0.0, 0.0)  # characters and bytes
    ends_documents: bool = False  # whether it follows the last document too, as the special tokens for an end do

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Separator:
        """The eos token, or else the sep token, after each document; or a line break as the tokenizer writes it."""
        for token_id in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            if token_id is not None:
                return cls((token_id,), ends_documents=True)
        return cls.of_text("\n", tokenizer)

    @classmethod
    def of_text(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> Separator:
        """A text as separator; no token if it is empty."""
        input_ids = tuple(encode_texts(tokenizer, [text], after=[""])[0])
        num_characters, num_bytes = (size / max(len(input_ids), 1) for size in sizes_of(text))
        return cls(input_ids, (num_characters, num_bytes))

    def count(self, num_documents: int) -> int:
        """Number of tokens that it adds to so many documents."""
        return len(self.input_ids) * (num_documents if self.ends_documents else max(num_documents - 1, 0))


@cache_errors()
def pack(
    documents: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    num_proc: int | None = None,
    document_ids: bool = False,
) -> tuple[Dataset | IterableDataset, PackingReport | None]:
    """Tokenises documents, joins them with separators, and cuts the stream into blocks.

    Only the last tokens of the whole corpus, too few for a block, are dropped. After each document, the last one too,
    comes the eos token, or else the sep token; of a tokenizer with neither, a line break as it writes it (a space in
    text8) comes between documents. Documents have the ids of `encode_texts`: nothing is added, names of special tokens
    are these tokens, and that of the mask is spelled out.
    Documents without tokens are skipped together with their separator.

    A `Dataset` is prepared on disk, in the cache of `datasets`, and found there by the next call; memory holds 1 MB
    of documents at a time (of a `Dataset` that was built in memory, also all tokens). An `IterableDataset` gives an
    `IterableDataset` of the same blocks in the same order, a `PackedStream`.

    Args:
        documents: data set with a column `text` of strings.
        block_size: tokens per block, at least 1.
        num_proc: processes that tokenise; None for this one only. Streams ignore it.
        document_ids: also tell which document of the block each token belongs to, for models to keep them apart.

    Returns:
        `(blocks, report)`. The columns of `blocks` are
        - `input_ids`: `block_size` ids (int32);
        - `document_ids`, on request: for each of them the number of its document in the block, from 0 (int32); a
          separator belongs to the document that it ends;
        - `num_characters` (float64): characters of text that the block stands for. Every token of a document counts
          (characters of the document) / (tokens of the document); a separator counts 0, the line break 1.
          Characters are those of the text as it was loaded, before any normaliser of the tokenizer;
        - `num_bytes` (float64): their bytes in UTF-8, in the same way.
        `report` is None for a stream, which logs it at the end of every pass.

    Raises:
        ValueError: `documents` is no such data set, `block_size` is below 1, or the corpus is empty or shorter than one
            block. Of a stream, the latter is known, and raised, at its end.
    """
    check_table("documents", documents)
    check_texts("documents", documents)
    check_tokenizer(tokenizer)
    block_size, separator = as_integer("block_size", block_size, 1), Separator.of(tokenizer)
    cutting = {"separator": separator, "block_size": block_size, "document_ids": document_ids}
    if isinstance(documents, IterableDataset):
        return PackedStream(documents, {"tokenizer": tokenizer, **cutting}), None
    pieces = documents.with_format("arrow").map(
        _tokenize,
        batched=True,
        batch_size=_documents_per_batch(documents),
        fn_kwargs={"tokenizer": tokenizer},
        features=PIECE_FEATURES,
        num_proc=num_proc,
        desc="Tokenising",
    )
    counter = _Counter(separator)
    for table in pieces.iter(PIECES_PER_READ):
        counter.add(Pieces.of_table(table))
    report = counter.report(block_size)
    features = _block_features(block_size, document_ids)
    with progress_bar("Packing", "blocks"):
        return cached_tables(_tables_of_blocks, features, {"pieces": pieces, **cutting}), report


def _block_features(block_size: int, document_ids: bool) -> Features:
    per_token = ["input_ids", "document_ids"] if document_ids else ["input_ids"]
    features = {name: List(Value("int32"), length=block_size) for name in per_token}
    return Features({**features, **{name: Value("float64") for name in SIZE_COLUMNS}})


def _documents_per_batch(documents: Dataset) -> int:
    """Number of documents to tokenise at a time, by the mean of their bytes."""
    bytes_per_document = documents.data.nbytes / max(documents.data.num_rows, 1)
    return int(np.clip(BYTES_PER_BATCH / max(bytes_per_document, 1), 1, MAX_DOCUMENTS_PER_BATCH))


def _tokenize(documents: pa.Table, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
    return Pieces.of_texts(documents["text"].to_pylist(), tokenizer).table()


def size_columns(sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Characters and bytes of all tokens together, from those of each, `(..., tokens, 2)`, as columns `(...)`."""
    return dict(zip(SIZE_COLUMNS, np.moveaxis(sizes.sum(axis=-2), -1, 0), strict=True))


def _tables_of_blocks(pieces: Dataset, **cutting: Any) -> Iterator[pa.Table]:
    cutter = BlockCutter(**cutting)
    schema = _block_features(cutter.block_size, cutter.document_ids).arrow_schema
    batches = (cutter.cut(Pieces.of_table(table)) for table in pieces.iter(PIECES_PER_READ))
    for blocks in itertools.chain(itertools.chain.from_iterable(batches), cutter.finish()):
        advance(len(blocks["input_ids"]))
        yield pa.table({name: _arrow(column) for name, column in blocks.items()}, schema=schema)


def _arrow(column: np.ndarray) -> pa.Array:
    """A column of numbers `(rows,)`, or of lists of equal length `(rows, length)`."""
    return pa.array(column) if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(column.ravel(), column.shape[1])


def _generate_from_stream(documents: IterableDataset, **packing: Any) -> Iterator[dict]:
    packer = StreamPacker(**packing)
    for batch in documents.iter(DOCUMENTS_PER_BATCH):
        yield from packer.examples(batch)
    yield from _rows(packer.finish())
    packer.counter.report(packer.block_size)


class BlockCutter:
    """Joins pieces of documents, with a separator between documents, and cuts off blocks as they become full.

    Fewer than `block_size` tokens wait: their ids, their characters and bytes, and the numbers of their documents.
    """

    def __init__(self, separator: Separator, block_size: int, document_ids: bool):
        self.separator, self.block_size, self.document_ids = separator, block_size, document_ids
        self.load_state_dict({"input_ids": [], "sizes": [], "documents": [], "document": -1})

    def cut(self, pieces: Pieces) -> Iterator[dict[str, np.ndarray]]:
        """Yield the blocks that become full with these pieces, some at a time, as columns `(blocks, ...)`."""
        for part in pieces.parts(TOKENS_PER_CUT):
            self._append_pieces(part)
            yield from self._full_blocks()

    def _append_pieces(self, pieces: Pieces):
        """Append the pieces, with a separator before each new document."""
        documents = self.document + np.cumsum(pieces.starts_document)
        ends = pieces.starts_document & (documents > 0)
        ids, sizes = self._separators(int(ends.sum()))
        places = np.repeat((np.cumsum(pieces.num_tokens) - pieces.num_tokens)[ends], len(self.separator.input_ids))
        added = (
            (pieces.input_ids, ids),
            (np.repeat(pieces.sizes_per_token, pieces.num_tokens, axis=0), sizes),
            (np.repeat(documents, pieces.num_tokens), np.repeat(documents[ends] - 1, len(self.separator.input_ids))),
        )
        self._append(*(np.insert(tokens, places, separators, axis=0) for tokens, separators in added))
        self.document += int(pieces.starts_document.sum())

    def finish(self) -> Iterator[dict[str, np.ndarray]]:
        """End the last document, and yield the block that becomes full with that; once, after all pieces."""
        if self.separator.ends_documents and self.document >= 0:
            ids, sizes = self._separators(1)
            self._append(ids, sizes, np.full(len(ids), self.document))
        yield from self._full_blocks()

    def ends_with_block(self) -> bool:
        """Whether the end of the last document fills a block."""
        num_separators = int(self.separator.ends_documents and self.document >= 0)
        return len(self.waiting[0]) + num_separators * len(self.separator.input_ids) >= self.block_size

    def _separators(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and sizes of so many separators."""
        ids = np.tile(np.array(self.separator.input_ids, np.int32), count)
        return ids, np.tile(self.separator.sizes_per_token, (len(ids), 1))

    def _append(self, *added: np.ndarray):
        self.waiting = [np.concatenate(pair) for pair in zip(self.waiting, added, strict=True)]

    def _full_blocks(self) -> Iterator[dict[str, np.ndarray]]:
        num_blocks = len(self.waiting[0]) // self.block_size
        if num_blocks == 0:
            return
        end = num_blocks * self.block_size
        ids, sizes, documents = (x[:end].reshape(num_blocks, self.block_size, *x.shape[1:]) for x in self.waiting)
        per_document = {"document_ids": (documents - documents[:, :1]).astype(np.int32)} if self.document_ids else {}
        self.waiting = [x[end:] for x in self.waiting]
        yield {"input_ids": ids, **per_document, **size_columns(sizes)}

    def state_dict(self) -> dict[str, Any]:
        """The tokens that wait for a full block, for JSON."""
        waiting = {name: x.tolist() for name, x in zip(WAITING, self.waiting, strict=True)}
        return {**waiting, "document": self.document}

    def load_state_dict(self, state: dict[str, Any]):
        """Resume from a `state_dict`; one of version 0.1.0 has no bytes, which a training does not need."""
        if "sizes" not in state:
            state = {**state, "sizes": [[characters, math.nan] for characters in state["characters"]]}
        ids, sizes, documents = (np.array(state[name], dtype=dtype) for name, dtype in WAITING.items())
        self.waiting = [ids, sizes.reshape(-1, 2), documents]
        self.document = state["document"]


class StreamPacker(BlockCutter):
    """Turns documents into blocks as they come, and counts them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: Separator, block_size: int, document_ids: bool):
        super().__init__(separator, block_size, document_ids)
        self.tokenizer, self.counter = tokenizer, _Counter(separator)

    def examples(self, documents: dict[str, list]) -> Iterator[dict]:
        """Yield the blocks that become full with a batch of documents."""
        pieces = Pieces.of_texts(texts_of("documents", documents), self.tokenizer)
        self.counter.add(pieces)
        yield from _rows(self.cut(pieces))


def _rows(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """The rows of columns, one by one."""
    for columns in batches:
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


class PackedStream(IterableDataset):
    """The blocks that `pack` makes of a stream of documents, tokenised while they are read.

    A training divides its documents among the processes, and resumes among them, rather than among the blocks. Its
    `map` and similar methods give an ordinary `IterableDataset`. The stream that is packed is `documents`.
    """

    def __init__(self, documents: IterableDataset, packing: dict[str, Any]):
        self.documents, self._packing = documents, packing
        blocks = IterableDataset.from_generator(
            _generate_from_stream,
            features=_block_features(packing["block_size"], packing["document_ids"]),
            gen_kwargs={"documents": documents, **packing},
        )
        super().__init__(blocks._ex_iterable, info=blocks.info)

    def make_packer(self) -> StreamPacker:
        """A packer that has seen no document yet."""
        return StreamPacker(**self._packing)

    def share_of_documents(self, rank: int, num_ranks: int) -> IterableDataset:
        """The documents of one process: entire shards, or every `num_ranks`-th; too few are cut into equal parts."""
        if num_ranks > 1 and len(list(itertools.islice(self.documents, num_ranks))) < num_ranks:
            return self.documents.map(_part_of_text, fn_kwargs={"part": rank, "num_parts": num_ranks})
        return split_dataset_by_node(self.documents, rank, num_ranks)


def _part_of_text(document: dict[str, str | None], part: int, num_parts: int) -> dict[str, str]:
    text = document["text"] or ""
    return {"text": text[len(text) * part // num_parts : len(text) * (part + 1) // num_parts]}


class _Counter:
    """Running sums for `PackingReport`."""

    def __init__(self, separator: Separator):
        self.separator = separator
        self.num_documents, self.num_tokens, self.sizes = 0, 0, np.zeros(2)

    def add(self, pieces: Pieces) -> None:
        self.num_documents += int(pieces.starts_document.sum())
        self.num_tokens += len(pieces.input_ids)
        self.sizes += pieces.num_tokens @ pieces.sizes_per_token

    def report(self, block_size: int) -> PackingReport:
        """Report of the sums so far, for blocks of `block_size` tokens; an error if they do not fill one."""
        if self.num_documents == 0:
            raise ValueError("`documents` must contain text, got none.")
        num_separator_tokens = self.separator.count(self.num_documents)
        num_tokens = self.num_tokens + num_separator_tokens
        if num_tokens < block_size:
            raise ValueError(f"`block_size` must be at most the {num_tokens} tokens of `documents`, got {block_size}.")
        sizes = self.sizes + num_separator_tokens * np.array(self.separator.sizes_per_token)
        blocks_and_rest = divmod(num_tokens, block_size)
        num_characters, num_bytes = map(round, sizes.tolist())
        report = PackingReport(self.num_documents, num_tokens, num_characters, num_bytes, *blocks_and_rest)
        logger.info("Packed %s", report)
        return report
