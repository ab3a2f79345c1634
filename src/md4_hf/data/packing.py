# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Documents to blocks of equal length: tokenise, join with separators, cut; of a data set on disk, or of a stream.

blocks, report = pack(documents, tokenizer, block_size=256)
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.distributed import split_dataset_by_node
from transformers import PreTrainedTokenizerBase

from ..core.text_encoding import encode_texts
from ..objective.figures import SIZE_COLUMNS
from ..utils.integers import as_integer
from .loading_errors import cache_errors
from .progress import advance, progress_bar


logger = logging.getLogger(__name__)

DOCUMENTS_PER_BATCH = 64
PIECES_PER_CALL = 64
PIECE_CHARACTERS = 2**14  # 64 pieces are 1M characters, for which a tokenizer call takes about 100 MB
PIECE_END = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")

WAITING = {"input_ids": np.int32, "sizes": np.float64, "documents": np.int64}  # of tokens, in a `BlockCutter`
PIECE_FEATURES = Features(
    input_ids=List(Value("int32")), sizes_per_token=List(Value("float64"), length=2), starts_document=Value("bool")
)


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

    A `Dataset` is prepared on disk, in the cache of `datasets`, and found there by the next call; memory holds 64
    documents at a time (of a `Dataset` that was built in memory, also all tokens). An `IterableDataset` gives an
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
        ValueError: `block_size` is below 1, or the corpus is empty or shorter than one block. Of a stream, the latter
            is known, and raised, at its end.
    """
    block_size, separator = as_integer("block_size", block_size, 1), Separator.of(tokenizer)
    cutting = {"separator": separator, "block_size": block_size, "document_ids": document_ids}
    if isinstance(documents, IterableDataset):
        return PackedStream(documents, {"tokenizer": tokenizer, **cutting}), None
    pieces = documents.map(
        _tokenize,
        batched=True,
        batch_size=DOCUMENTS_PER_BATCH,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=documents.column_names,
        features=PIECE_FEATURES,
        num_proc=num_proc,
        desc="Tokenising",
    )
    counter = _Counter(separator)
    for batch in pieces.with_format("arrow").iter(1000):
        counter.add(
            pc.list_value_length(batch["input_ids"]).to_numpy(),
            pc.list_flatten(batch["sizes_per_token"]).to_numpy().reshape(-1, 2),
            batch["starts_document"].to_numpy(),
        )
    report = counter.report(block_size)
    features = _block_features(block_size, document_ids)
    gen_kwargs = {"pieces": pieces, **cutting}
    with progress_bar("Packing", "blocks"):
        return Dataset.from_generator(_generate_from_pieces, features=features, gen_kwargs=gen_kwargs), report


def _block_features(block_size: int, document_ids: bool) -> Features:
    per_token = ["input_ids", "document_ids"] if document_ids else ["input_ids"]
    features = {name: List(Value("int32"), length=block_size) for name in per_token}
    return Features({**features, **{name: Value("float64") for name in SIZE_COLUMNS}})


def _tokenize(batch: dict[str, list[str | None]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Turns documents into pieces, the rows of `PIECE_FEATURES`: most documents are one, long ones several."""
    owners, ids, sizes_per_token = _tokenize_pieces(batch["text"], tokenizer)
    has_tokens = [len(piece_ids) > 0 for piece_ids in ids]
    owners = owners[has_tokens]
    return {
        "input_ids": list(itertools.compress(ids, has_tokens)),
        "sizes_per_token": sizes_per_token[owners].tolist(),
        "starts_document": np.diff(owners, prepend=-1) > 0,
    }


def tokenize_texts(
    texts: list[str | None], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids (int32) of each text, as `pack` makes them, and the characters and bytes that each of them stands for."""
    owners, ids, sizes_per_token = _tokenize_pieces(texts, tokenizer)
    for document, pieces in itertools.groupby(zip(owners, ids, strict=True), key=lambda pair: pair[0]):
        yield np.concatenate([piece_ids for _, piece_ids in pieces]), sizes_per_token[document]


def sizes_of(text: str) -> tuple[int, int]:
    """Characters and UTF-8 bytes of a text."""
    return len(text), len(text.encode("utf-8", "surrogatepass"))


def size_columns(sizes: np.ndarray) -> dict[str, float]:
    """Characters and bytes of all tokens together, from those of each, `(tokens, 2)`, as columns of an example."""
    return dict(zip(SIZE_COLUMNS, sizes.sum(axis=0), strict=True))


def _tokenize_pieces(
    texts: list[str | None], tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Pieces of texts: the index of the text of each, its ids, and `(texts, 2)` characters and bytes of a token."""
    pieces = [(document, piece) for document, text in enumerate(texts) for piece in split_long_text(text or "")]
    owners = np.array([document for document, _ in pieces])
    texts = [piece for _, piece in pieces]
    after = ["" if step == 0 else None for step in np.diff(owners, prepend=-1)]  # later pieces continue a text
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), PIECES_PER_CALL):
        call = slice(start, start + PIECES_PER_CALL)
        encoded = encode_texts(tokenizer, texts[call], after=after[call])
        ids.extend(np.array(piece_ids, dtype=np.int32) for piece_ids in encoded)

    num_tokens = np.bincount(owners, weights=[len(piece_ids) for piece_ids in ids])
    sizes = np.array([*map(sizes_of, texts)])
    by_text = [np.bincount(owners, weights=counts) for counts in sizes.T]
    return owners, ids, np.stack(by_text, axis=1) / np.maximum(num_tokens, 1)[:, None]


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


def _generate_from_pieces(pieces: Dataset, **cutting: Any) -> Iterator[dict]:
    cutter = BlockCutter(**cutting)
    for batch in pieces.with_format("arrow").iter(DOCUMENTS_PER_BATCH):
        columns = batch["input_ids"], batch["sizes_per_token"], batch["starts_document"]
        for ids, sizes_per_token, starts_document in zip(*columns, strict=True):
            for block in cutter.cut(ids.values.to_numpy(), sizes_per_token.as_py(), starts_document.as_py()):
                advance()
                yield block
    yield from cutter.finish()


def _generate_from_stream(documents: IterableDataset, **packing: Any) -> Iterator[dict]:
    packer = StreamPacker(**packing)
    for batch in documents.iter(DOCUMENTS_PER_BATCH):
        yield from packer.examples(batch)
    yield from packer.finish()
    packer.counter.report(packer.block_size)


class BlockCutter:
    """Joins pieces of documents, with a separator between documents, and cuts off blocks as they become full.

    Fewer than `block_size` tokens wait: their ids, their characters and bytes, and the numbers of their documents.
    """

    def __init__(self, separator: Separator, block_size: int, document_ids: bool):
        self.separator, self.block_size, self.document_ids = separator, block_size, document_ids
        self.load_state_dict({"input_ids": [], "sizes": [], "documents": [], "document": -1})

    def cut(self, piece_ids: np.ndarray, sizes_per_token: Sequence[float], starts_document: bool) -> Iterator[dict]:
        """Yield the blocks that become full with this piece."""
        if starts_document:
            if self.document >= 0:
                self._append(self.separator.input_ids, self.separator.sizes_per_token)
            self.document += 1
        self._append(piece_ids, sizes_per_token)
        yield from self._full_blocks()

    def finish(self) -> Iterator[dict]:
        """End the last document, and yield the block that becomes full with that; once, after all pieces."""
        if self.separator.ends_documents and self.document >= 0:
            self._append(self.separator.input_ids, self.separator.sizes_per_token)
        yield from self._full_blocks()

    def _full_blocks(self) -> Iterator[dict]:
        end = len(self.waiting[0]) - len(self.waiting[0]) % self.block_size
        for start in range(0, end, self.block_size):
            ids, sizes, documents = (x[start : start + self.block_size] for x in self.waiting)
            per_document = {"document_ids": (documents - documents[0]).astype(np.int32)} if self.document_ids else {}
            yield {"input_ids": ids, **per_document, **size_columns(sizes)}
        self.waiting = [x[end:] for x in self.waiting]

    def _append(self, ids: np.ndarray | tuple[int, ...], sizes_per_token: Sequence[float]):
        sizes = np.tile(sizes_per_token, (len(ids), 1))
        added = (np.asarray(ids, np.int32), sizes, np.full(len(ids), self.document))
        self.waiting = [np.concatenate(pair) for pair in zip(self.waiting, added, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The tokens that wait for a full block, for JSON."""
        waiting = {name: x.tolist() for name, x in zip(WAITING, self.waiting, strict=True)}
        return {**waiting, "document": self.document}

    def load_state_dict(self, state: dict[str, Any]):
        """Go on from a `state_dict`; one of version 0.1.0 has no bytes, which a training does not need."""
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
        rows = _tokenize(documents, self.tokenizer)
        ids, sizes, starts = rows["input_ids"], rows["sizes_per_token"], rows["starts_document"]
        num_tokens = np.array([len(piece_ids) for piece_ids in ids], dtype=int)
        self.counter.add(num_tokens, np.reshape(sizes, (-1, 2)), starts)
        for piece in zip(ids, sizes, starts, strict=True):
            yield from self.cut(*piece)


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

    def add(self, num_tokens: np.ndarray, sizes_per_token: np.ndarray, starts_document: np.ndarray) -> None:
        self.num_documents += int(starts_document.sum())
        self.num_tokens += int(num_tokens.sum())
        self.sizes += num_tokens @ sizes_per_token

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
