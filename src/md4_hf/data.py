# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text for training and evaluation: load documents, hold some out, pack them into blocks of equal length.

    documents, held_out = load_train_validation(DataArguments(data="pydoc"))
    blocks, report = pack(documents, tokenizer, block_size=256)

In a distributed run, call these inside `TrainingArguments.main_process_first()`: the first process fills the cache
of `datasets`, and the others read it.
"""

import codecs
import glob
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetNotFoundError
from transformers import PreTrainedTokenizerBase

from .errors import check_types, reading


logger = logging.getLogger(__name__)

PYDOC = "pydoc"
TABLE_FORMATS = {".jsonl": "json", ".parquet": "parquet"}
FILE_SUFFIXES = (".txt", ".text", ".md", ".csv", ".json", ".gz", ".zip", ".zst", *TABLE_FORMATS)
MAX_TEXT_FILE_BYTES = 2**31 - 1  # Arrow addresses the characters of a string column with 32 bits

DOCUMENTS_PER_BATCH = 64
PIECES_PER_CALL = 64
PIECE_CHARACTERS = 2**14  # 64 pieces are 1M characters, for which a tokenizer call takes about 100 MB
PIECE_END = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")

PIECE_FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "characters_per_token": Value("float64"),
        "starts_document": Value("bool"),
    }
)


@dataclass
class DataArguments:
    """Where the text comes from and how it is cut, for `HfArgumentParser`."""

    _argument_group_name = "data"

    data: str = field(
        default=PYDOC,
        metadata={
            "help": 'Training text: "pydoc" (the reference manual that comes with Python), a text, .jsonl or .parquet '
            "file, a folder, or the id of a data set on the Hub."
        },
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, where it has several."}
    )
    data_split: str = field(
        default="train",
        metadata={"help": 'Split of the data set for training; slices such as "train[:1%%]" work too.'},
    )
    data_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the data set on the Hub."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the data set that holds the text."})
    validation_data: str | None = field(
        default=None, metadata={"help": "Validation text, in any of the forms of `data`."}
    )
    validation_config: str | None = field(
        default=None, metadata={"help": "Configuration of `validation_data`, where it has several."}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of `validation_data`, or else of `data`, for validation."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Part of the characters, the last ones, held out when no validation data is named."},
    )
    block_size: int = field(default=256, metadata={"help": "Tokens per training example."})
    document_mask: bool = field(
        default=False,
        metadata={"help": "Let tokens attend within their own document only, where positions start at 0."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the data while training instead of preparing it on disk first."}
    )
    num_proc: int | None = field(default=None, metadata={"help": "Number of processes that tokenise."})

    def __post_init__(self):
        given = {name: value for name, value in vars(self).items() if (name, value) != ("block_size", None)}
        check_types(given, get_type_hints(type(self)))  # commands replace the None by the length of the model
        if self.num_proc is not None and self.num_proc < 1:
            raise ValueError(f"`num_proc` must be >= 1, got {self.num_proc}.")


@dataclass(frozen=True)
class PackingReport:
    """What became of a corpus in `pack`. Separators are included in the tokens and characters.

    Attributes:
        num_documents: documents with at least one token.
        num_tokens: tokens of the whole corpus, the dropped ones included.
        num_characters: characters of the whole corpus as the tokenizer sees them (see `pack`).
        num_blocks: blocks of `block_size` tokens.
        num_dropped_tokens: tokens at the end of the corpus that do not fill a block.
    """

    num_documents: int
    num_tokens: int
    num_characters: int
    num_blocks: int
    num_dropped_tokens: int


@dataclass(frozen=True)
class Separator:
    """What `pack` puts between two documents: token ids, and the characters of text that each stands for."""

    input_ids: tuple[int, ...]
    characters_per_token: float

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Separator":
        """The eos token, or else the sep token, or else a line break as the tokenizer writes it."""
        for token_id in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            if token_id is not None:
                return cls((token_id,), characters_per_token=0.0)
        return cls.of_text("\n", tokenizer)

    @classmethod
    def of_text(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> "Separator":
        """A text; nothing if it is empty."""
        input_ids = tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()
        return cls(input_ids, characters_per_token=len(text) / max(len(input_ids), 1))


# ---------------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------------


def pydoc_documents() -> list[str]:
    """The built-in corpus: Python's language reference in English, sorted by topic (79 topics in Python 3.11).

    It comes with every Python (`pydoc_data.topics`, the text behind `help("for")`), hence needs no download; the
    text differs a little between Python versions.
    """
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def load_documents(
    data: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_column: str = "text",
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Loads documents as a data set with the one column `text`.

    Args:
        data: one of
            - "pydoc": see `pydoc_documents`;
            - a .jsonl or .parquet file: one document per row;
            - any other file: one document, UTF-8 (line ends become "\\n");
            - a folder with .jsonl or .parquet files: a data set in the layout of the Hub;
            - any other folder: one document per .txt file at any depth, sorted by path;
            - the id of a data set on the Hub.
        config: configuration of the data set (data sets in a folder or on the Hub).
        split: split of the data set (likewise).
        revision: branch, tag or commit (data sets on the Hub).
        text_column: column that holds the text (all but text files).
        streaming: returns an `IterableDataset` that reads the data as it goes.

    Raises:
        FileNotFoundError: `data` is neither a file, a folder nor a data set on the Hub.
        ValueError: a text file is empty, too large or not UTF-8, a folder has nothing to load, or `text_column` is
            missing or holds no strings.
    """
    if data == PYDOC:
        documents = Dataset.from_dict({"text": pydoc_documents()})
        return documents.to_iterable_dataset() if streaming else documents
    path = Path(data).expanduser()
    if path.is_file() and path.suffix not in TABLE_FORMATS:
        return _load_text_files([path], streaming)
    if path.is_dir() and not _files(path, *TABLE_FORMATS):
        text_files = _files(path, ".txt")
        if not text_files:
            raise ValueError(f"`data` must be a folder with .txt, .jsonl or .parquet files, got {data!r}.")
        return _load_text_files(text_files, streaming)
    documents = load_table(data, config=config, split=split, revision=revision, streaming=streaming)
    return _select_text(documents, text_column)


def load_table(
    data: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Loads a data set with all its columns.

    Args:
        data: a .jsonl or .parquet file, a folder in the layout of the Hub, or the id of a data set on the Hub.
        config, split, revision, streaming: as in `load_documents`.

    Raises:
        FileNotFoundError: `data` is neither a file, a folder nor a data set on the Hub.
        ValueError: it is a file of another kind, or one that is damaged.
    """
    with reading("data", data):
        return _load_table(data, config, split, revision, streaming)


def _load_table(
    data: str, config: str | None, split: str, revision: str | None, streaming: bool
) -> Dataset | IterableDataset:
    path = Path(data).expanduser()
    if path.is_file():
        if path.suffix not in TABLE_FORMATS:
            raise ValueError(f"`data` must be a .jsonl or .parquet file, got {data!r}.")
        try:
            return load_dataset(
                TABLE_FORMATS[path.suffix], data_files=glob.escape(str(path)), split="train", streaming=streaming
            )
        except Exception as error:  # of many kinds, and seldom with the name of the file
            raise ValueError(f"`data` must be a well-formed {path.suffix} file, got {data!r}: {error}") from error
    if path.is_dir():
        return load_dataset(str(path), config, split=split, streaming=streaming)
    not_found = f'`data` must be "{PYDOC}", an existing file or folder, or a data set on the Hub, got {data!r}.'
    if looks_like_path(data):
        raise FileNotFoundError(not_found)
    try:
        return load_dataset(data, config, split=split, revision=revision, streaming=streaming)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(not_found) from error


def _files(folder: Path, *suffixes: str) -> list[Path]:
    """The files under a folder with one of the suffixes, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes)


def load_train_validation(
    args: DataArguments,
    load: Callable[..., Dataset | IterableDataset] | None = None,
    divide: Callable[[Dataset, float], tuple[Dataset, Dataset]] | None = None,
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """Loads training and validation documents.

    Validation documents come from `validation_data` and `validation_split` where one of them is given. Otherwise
    the last documents are held out, whole, as many as bring their share of the characters closest to
    `validation_fraction` (at least one, not all). Only a corpus of a single document is cut, at that fraction of
    its characters.

    Args:
        args: where they come from.
        load: function that loads a data set, with the keywords of `load_table`; by default `load_documents`, for the
            column `args.text_column`.
        divide: function that divides a data set at a fraction; `hold_out` by default.

    Returns:
        `(train, validation)`, each with the one column `text` (or what `load` gives).

    Raises:
        ValueError: validation and training would read the same split, a stream has no validation data of its own,
            `validation_fraction` is not between 0 and 1, or a corpus to be divided has no text.
    """
    if load is None:
        load = partial(load_documents, text_column=args.text_column)
    load_any = partial(load, streaming=args.streaming)
    load_data = partial(load_any, args.data, config=args.data_config, revision=args.data_revision)

    if args.validation_data is not None:
        validation = load_any(
            args.validation_data, config=args.validation_config, split=args.validation_split or args.data_split
        )
    elif args.validation_split is not None:
        if args.data == PYDOC or Path(args.data).expanduser().is_file():
            raise ValueError(
                f"`validation_split` must be None where `data` ({args.data!r}) has no splits, "
                f"got {args.validation_split!r}."
            )
        if args.validation_split == args.data_split:
            raise ValueError(f"`validation_split` must differ from `data_split`, got {args.validation_split!r} twice.")
        validation = load_data(split=args.validation_split)
    elif args.streaming:
        raise ValueError(
            "`validation_data` or `validation_split` must be given with `streaming`, got None: the end of a stream "
            "cannot be held out."
        )
    else:
        validation = None

    train = load_data(split=args.data_split)
    if validation is not None:
        return train, validation
    return (divide or hold_out)(train, args.validation_fraction)


def hold_out(documents: Dataset, validation_fraction: float) -> tuple[Dataset, Dataset]:
    """Divides documents into `(train, validation)` as `load_train_validation` describes."""
    if not (isinstance(validation_fraction, Real) and 0 < validation_fraction < 1):
        raise ValueError(f"`validation_fraction` must lie between 0 and 1, got {validation_fraction}.")
    lengths = np.concatenate(
        [_num_characters(batch["text"]) for batch in documents.with_format("arrow").iter(1000)] or [np.empty(0, int)]
    )
    if not lengths.any():
        raise ValueError(f"`data` must contain text, got {len(lengths)} empty documents.")
    if not lengths.all():
        documents, lengths = documents.select(np.flatnonzero(lengths)), lengths[lengths > 0]

    if len(documents) == 1:
        cut = round((1 - validation_fraction) * int(lengths[0]))
        train = documents.map(_slice_text, fn_kwargs={"start": 0, "stop": cut}, desc="Training text")
        validation = documents.map(_slice_text, fn_kwargs={"start": cut, "stop": None}, desc="Validation text")
        return train, validation
    ends = np.cumsum(lengths)
    num_train = 1 + int(np.abs(ends[:-1] - (1 - validation_fraction) * ends[-1]).argmin())
    return documents.select(range(num_train)), documents.select(range(num_train, len(documents)))


def looks_like_path(data: str) -> bool:
    """Whether a name that does not exist here can only have been meant as a path; a Hub id has at most one slash."""
    return (
        data.startswith((".", "~", "/"))
        or data.endswith(FILE_SUFFIXES)
        or data.count("/") > 1
        or (os.sep != "/" and os.sep in data)
    )


def _load_text_files(files: list[Path], streaming: bool) -> Dataset | IterableDataset:
    for file in files:
        _check_text_file(file)
    return load_dataset(
        "text",
        data_files=[glob.escape(str(file)) for file in files],
        sample_by="document",
        split="train",
        streaming=streaming,
    )


def _check_text_file(file: Path) -> None:
    num_bytes = file.stat().st_size
    if num_bytes == 0:
        raise ValueError(f"`data` must contain text, got the empty file {str(file)!r}.")
    if num_bytes > MAX_TEXT_FILE_BYTES:
        raise ValueError(
            f"`data` must be text files of at most {MAX_TEXT_FILE_BYTES} bytes, got {str(file)!r} with {num_bytes}: "
            "divide it, or use .jsonl or .parquet."
        )
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(2**20):
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"`data` must be UTF-8 text, got {str(file)!r}: {error}.") from error


def _select_text(documents: Dataset | IterableDataset, text_column: str) -> Dataset | IterableDataset:
    features = documents.features or next(iter(documents), {})  # a stream may not know its columns before it is read
    if text_column not in features:
        raise ValueError(f"`text_column` must be one of the columns {sorted(features)}, got {text_column!r}.")
    if isinstance(features, Features) and getattr(features[text_column], "dtype", None) not in (
        "string",
        "large_string",
    ):
        raise ValueError(f"`text_column` must hold strings, got {text_column!r} with {features[text_column]}.")
    documents = documents.select_columns(text_column)
    return documents if text_column == "text" else documents.rename_column(text_column, "text")


def _num_characters(texts: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.utf8_length(texts), 0).to_numpy()


def _slice_text(document: dict[str, str], start: int, stop: int | None) -> dict[str, str]:
    return {"text": document["text"][start:stop]}


# ---------------------------------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------------------------------


def pack(
    documents: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    num_proc: int | None = None,
    document_ids: bool = False,
) -> tuple[Dataset | IterableDataset, PackingReport | None]:
    """Tokenises documents, joins them with one separator each, and cuts the stream into blocks.

    Only the last tokens of the whole corpus, too few for a block, are dropped. The separator is the eos token, or
    else the sep token, or else a line break as the tokenizer writes it (a space in text8). Documents are plain
    text: the tokenizer adds no special tokens, and the name of one inside a document ("[MASK]") is spelled out.
    Documents without tokens are skipped together with their separator.

    A `Dataset` is prepared on disk, in the cache of `datasets`, and found there by the next call; memory holds 64
    documents at a time (of a `Dataset` that was built in memory, also all tokens). An `IterableDataset` gives an
    `IterableDataset` of the same blocks in the same order, a `PackedStream`.

    Args:
        documents: data set with a column `text` of strings.
        tokenizer: any tokenizer.
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
          Characters are those that the tokenizer sees, after its normaliser: in text8 one per token.
        `report` is None for a stream, which logs it at the end of every pass.

    Raises:
        ValueError: `block_size` is below 1, or the corpus is empty or shorter than one block. Of a stream, the latter
            is known, and raised, at its end.
    """
    if not (isinstance(block_size, Integral) and block_size >= 1):
        raise ValueError(f"`block_size` must be >= 1, got {block_size!r}.")
    block_size, separator = int(block_size), Separator.of(tokenizer)

    if isinstance(documents, IterableDataset):
        return PackedStream(documents, tokenizer, separator, block_size, document_ids), None

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
            batch["characters_per_token"].to_numpy(),
            batch["starts_document"].to_numpy(),
        )
    report = counter.report(block_size)
    blocks = Dataset.from_generator(
        _generate_from_pieces,
        features=_block_features(block_size, document_ids),
        gen_kwargs={
            "pieces": pieces,
            "separator": separator,
            "block_size": block_size,
            "document_ids": document_ids,
        },
    )
    return blocks, report


def ngram_bits_per_character(train_ids: np.ndarray, heldout_ids: np.ndarray, order: int, num_symbols: int) -> float:
    """Bits per symbol of an n-gram model on held-out text: the baseline that a trained model has to beat.

    p(x_n | context) = (count(context, x_n) + 1) / (count(context) + num_symbols), with the `order - 1` symbols before
    x_n as context and counts of the training text (add-one smoothing). Held-out symbols without a whole context, the
    first `order - 1`, are not scored. With a tokenizer of one id per character the unit is bits per character.

    Args:
        train_ids: `(train_length,)` integers in [0, num_symbols).
        heldout_ids: `(heldout_length,)` integers likewise.
        order: 1 for unigrams, 2 for bigrams, and so on; the table has `num_symbols ** order` entries.
        num_symbols: size of the alphabet.

    Raises:
        ValueError: an array is shorter than `order` or has an id out of range, or the table is too large (2^28).
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


def _block_features(block_size: int, document_ids: bool) -> Features:
    per_token = ["input_ids", "document_ids"] if document_ids else ["input_ids"]
    features = {name: List(Value("int32"), length=block_size) for name in per_token}
    return Features({**features, "num_characters": Value("float64")})


def _tokenize(batch: dict[str, list[str | None]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Turns documents into pieces, the rows of `PIECE_FEATURES`: most documents are one, long ones several."""
    owners, ids, characters_per_token = _tokenize_pieces(batch["text"], tokenizer)
    kept = np.array([index for index, piece_ids in enumerate(ids) if len(piece_ids)], dtype=int)
    return {
        "input_ids": [ids[index] for index in kept],
        "characters_per_token": characters_per_token[owners[kept]],
        "starts_document": np.diff(owners[kept], prepend=-1) > 0,
    }


def tokenize_texts(texts: list[str | None], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[np.ndarray, float]]:
    """Of each text its ids (int32), as `pack` makes them, and how many characters each of them stands for."""
    owners, ids, characters_per_token = _tokenize_pieces(texts, tokenizer)
    for document, pieces in itertools.groupby(zip(owners, ids, strict=True), key=lambda pair: pair[0]):
        yield np.concatenate([piece_ids for _, piece_ids in pieces]), float(characters_per_token[document])


def _tokenize_pieces(
    texts: list[str | None], tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Pieces of texts: the index of the text of each, its ids, and by text the characters that a token stands for."""
    pieces = [(document, piece) for document, text in enumerate(texts) for piece in _split_long_text(text or "")]
    owners = np.array([document for document, _ in pieces])
    texts = [piece for _, piece in pieces]
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), PIECES_PER_CALL):
        encoding = tokenizer(
            texts[start : start + PIECES_PER_CALL],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,  # no warning that documents are longer than the model: they are cut into blocks
        )
        ids.extend(np.array(piece_ids, dtype=np.int32) for piece_ids in encoding["input_ids"])

    num_tokens = np.array([len(piece_ids) for piece_ids in ids])
    characters_per_token = np.bincount(owners, weights=_normalized_lengths(texts, tokenizer)) / np.maximum(
        np.bincount(owners, weights=num_tokens), 1
    )
    return owners, ids, characters_per_token


def _split_long_text(text: str, max_characters: int = PIECE_CHARACTERS) -> list[str]:
    """Cuts a text into pieces that are tokenised one by one, so that memory does not grow with the document.

    Cuts fall before a space between two ASCII letters, once a piece has `max_characters`. Tokenizers split words
    there anyway, so the tokens are those of the whole text. A text without such places is not cut.
    """
    pieces, start = [], 0
    while len(text) - start > max_characters and (cut := PIECE_END.search(text, start + max_characters)):
        pieces.append(text[start : cut.start()])
        start = cut.start()
    return [*pieces, text[start:]]


def _normalized_lengths(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    backend = getattr(tokenizer, "backend_tokenizer", None)  # slow tokenizers have none
    if backend is None or backend.normalizer is None:
        return [len(text) for text in texts]
    return [len(backend.normalizer.normalize_str(text)) for text in texts]


def _generate_from_pieces(
    pieces: Dataset, separator: Separator, block_size: int, document_ids: bool
) -> Iterator[dict]:
    cutter = BlockCutter(separator, block_size, document_ids)
    for piece in _iterate_pieces(pieces):
        yield from cutter.cut(*piece)


def _generate_from_stream(
    documents: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    separator: Separator,
    block_size: int,
    document_ids: bool,
) -> Iterator[dict]:
    packer = StreamPacker(tokenizer, separator, block_size, document_ids)
    for batch in documents.iter(DOCUMENTS_PER_BATCH):
        yield from packer.examples(batch)
    packer.counter.report(block_size)


def _iterate_pieces(pieces: Dataset) -> Iterator[tuple[np.ndarray, float, bool]]:
    for batch in pieces.with_format("arrow").iter(DOCUMENTS_PER_BATCH):
        for ids, characters_per_token, starts_document in zip(*(batch[name] for name in PIECE_FEATURES), strict=True):
            yield ids.values.to_numpy(), characters_per_token.as_py(), starts_document.as_py()


class BlockCutter:
    """Joins pieces of documents, with a separator between documents, and cuts off blocks as they become full.

    Its state is what waits for a full block: fewer than `block_size` tokens, their characters, the numbers of their
    documents, and the number of the last document.
    """

    def __init__(self, separator: Separator, block_size: int, document_ids: bool):
        self.separator, self.block_size, self.document_ids = separator, block_size, document_ids
        self.load_state_dict({"input_ids": [], "characters": [], "documents": [], "document": -1})

    def cut(self, piece_ids: np.ndarray, characters_per_token: float, starts_document: bool) -> Iterator[dict]:
        """The blocks that become full with this piece."""
        if starts_document:
            if self.document >= 0:
                separator_ids = np.array(self.separator.input_ids, dtype=np.int32)
                self._append(separator_ids, self.separator.characters_per_token)
            self.document += 1
        self._append(piece_ids, characters_per_token)
        end = len(self.waiting[0]) - len(self.waiting[0]) % self.block_size
        for start in range(0, end, self.block_size):
            ids, characters, documents = (x[start : start + self.block_size] for x in self.waiting)
            per_document = {"document_ids": (documents - documents[0]).astype(np.int32)} if self.document_ids else {}
            yield {"input_ids": ids, **per_document, "num_characters": characters.sum()}
        self.waiting = [x[end:] for x in self.waiting]

    def _append(self, ids: np.ndarray, characters_per_token: float):
        added = (ids, np.full(len(ids), characters_per_token), np.full(len(ids), self.document))
        self.waiting = [np.concatenate(pair) for pair in zip(self.waiting, added, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """What waits, for JSON."""
        ids, characters, documents = (x.tolist() for x in self.waiting)
        return {"input_ids": ids, "characters": characters, "documents": documents, "document": self.document}

    def load_state_dict(self, state: dict[str, Any]):
        """Go on from a `state_dict`."""
        names_and_types = (("input_ids", np.int32), ("characters", np.float64), ("documents", np.int64))
        self.waiting = [np.array(state[name], dtype=dtype) for name, dtype in names_and_types]
        self.document = state["document"]


class StreamPacker:
    """Turns documents into blocks as they come, and counts them. Its state is that of its `BlockCutter`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: Separator, block_size: int, document_ids: bool):
        self.tokenizer = tokenizer
        self.cutter, self.counter = BlockCutter(separator, block_size, document_ids), _Counter(separator)
        self.state_dict, self.load_state_dict = self.cutter.state_dict, self.cutter.load_state_dict

    def examples(self, documents: dict[str, list]) -> Iterator[dict]:
        """The blocks that become full with a batch of documents."""
        rows = _tokenize(documents, self.tokenizer)
        lengths = np.array([len(ids) for ids in rows["input_ids"]], dtype=int)
        self.counter.add(lengths, rows["characters_per_token"], rows["starts_document"])
        for piece in zip(*(rows[name] for name in PIECE_FEATURES), strict=True):
            yield from self.cutter.cut(*piece)


class PackedStream(IterableDataset):
    """The blocks of a stream of documents, tokenised while they are read: what `pack` makes of a stream.

    A training divides its documents among the processes, and resumes among them, rather than among the blocks. What
    `map` and the like make of it is an `IterableDataset` as any other.

    Attributes:
        documents: the stream that is packed.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        separator: Separator,
        block_size: int,
        document_ids: bool,
    ):
        self.documents = documents
        self._packing = {
            "tokenizer": tokenizer,
            "separator": separator,
            "block_size": block_size,
            "document_ids": document_ids,
        }
        blocks = IterableDataset.from_generator(
            _generate_from_stream,
            features=_block_features(block_size, document_ids),
            gen_kwargs={"documents": documents, **self._packing},
        )
        super().__init__(blocks._ex_iterable, info=blocks.info)

    def make_packer(self) -> StreamPacker:
        """A packer that has seen no document yet."""
        return StreamPacker(**self._packing)

    def share_of_documents(self, rank: int, num_ranks: int) -> IterableDataset:
        """The documents of one process: whole shards, or every `num_ranks`-th document, or a part of each.

        Fewer documents than processes, as in a single text file, are cut into parts of equal length.
        """
        if num_ranks > 1 and len(list(itertools.islice(self.documents, num_ranks))) < num_ranks:
            return self.documents.map(_part_of_text, fn_kwargs={"part": rank, "num_parts": num_ranks})
        return split_dataset_by_node(self.documents, rank, num_ranks)


def _part_of_text(document: dict[str, str | None], part: int, num_parts: int) -> dict[str, str]:
    text = document["text"] or ""
    return {"text": text[len(text) * part // num_parts : len(text) * (part + 1) // num_parts]}


class _Counter:
    """Adds up what `PackingReport` reports."""

    def __init__(self, separator: Separator):
        self.separator = separator
        self.num_documents = self.num_tokens = 0
        self.num_characters = 0.0

    def add(self, num_tokens: np.ndarray, characters_per_token: np.ndarray, starts_document: np.ndarray) -> None:
        self.num_documents += int(starts_document.sum())
        self.num_tokens += int(num_tokens.sum())
        self.num_characters += float(num_tokens @ characters_per_token)

    def report(self, block_size: int) -> PackingReport:
        """The sums so far, for blocks of `block_size` tokens; an error if they do not fill one."""
        if self.num_documents == 0:
            raise ValueError("`documents` must contain text, got none.")
        num_separator_tokens = (self.num_documents - 1) * len(self.separator.input_ids)
        num_tokens = self.num_tokens + num_separator_tokens
        if num_tokens < block_size:
            raise ValueError(f"`block_size` must be at most the {num_tokens} tokens of `documents`, got {block_size}.")
        num_characters = self.num_characters + num_separator_tokens * self.separator.characters_per_token
        report = PackingReport(
            num_documents=self.num_documents,
            num_tokens=num_tokens,
            num_characters=round(num_characters),
            num_blocks=num_tokens // block_size,
            num_dropped_tokens=num_tokens % block_size,
        )
        logger.info("Packed %s", report)
        return report


def _ngram_codes(name: str, ids: np.ndarray, order: int, num_symbols: int) -> np.ndarray:
    """Numbers the n-grams of a text: the digits of the number, in base `num_symbols`, are the symbols."""
    ids = np.asarray(ids, dtype=np.int64)
    if len(ids) < order:
        raise ValueError(f"`{name}` must have at least `order` = {order} symbols, got {len(ids)}.")
    if ids.min() < 0 or ids.max() >= num_symbols:
        raise ValueError(f"`{name}` must lie in [0, {num_symbols}), got ids from {ids.min()} to {ids.max()}.")
    codes = np.zeros(len(ids) - order + 1, dtype=np.int64)
    for position in range(order):
        codes = codes * num_symbols + ids[position : position + len(codes)]
    return codes
