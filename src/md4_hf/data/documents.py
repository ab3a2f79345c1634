# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text for training and evaluation: load documents, and hold some out. `packing` makes blocks of them.

    documents, held_out = load_train_validation(DataArguments(data="pydoc"))
    blocks, report = pack(documents, tokenizer, block_size=256)

In a distributed run, call these inside `TrainingArguments.main_process_first()`: the first process fills the cache
of `datasets`, and the others read it.
"""

import glob
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from ..utils.errors import file_errors_as_value_errors
from ..utils.files import looks_like_path
from .arguments import PYDOC, DataArguments


TABLE_FORMATS = {".jsonl": "json", ".parquet": "parquet"}
MAX_TEXT_FILE_BYTES = 2**31 - 1  # Arrow addresses the characters of a string column with 32 bits


def pydoc_documents() -> list[str]:
    """The built-in corpus: Python's language reference in English, sorted by topic (79 topics in Python 3.11).

    It comes with every Python (the text behind `help("for")`), and differs a little between versions.
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
    argument: str = "data",
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
        config, split: configuration and split of the data set (in a folder or on the Hub).
        revision: branch, tag or commit (data sets on the Hub).
        text_column: column that holds the text (all but text files).
        streaming: returns an `IterableDataset` that reads the data as it goes.
        argument: the name of `data` in errors.

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
        return _load_text_files([path], streaming, argument)
    if path.is_dir() and not _files(path, *TABLE_FORMATS):
        text_files = _files(path, ".txt")
        if not text_files:
            raise ValueError(f"`{argument}` must be a folder with .txt, .jsonl or .parquet files, got {data!r}.")
        return _load_text_files(text_files, streaming, argument)
    documents = load_table(data, config=config, split=split, revision=revision, streaming=streaming, argument=argument)
    return _select_text(documents, text_column)


def load_table(
    data: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    argument: str = "data",
) -> Dataset | IterableDataset:
    """Loads a .jsonl or .parquet file, a folder in the layout of the Hub, or a data set on the Hub, with all columns.

    The other arguments and the errors are those of `load_documents`.
    """
    path = Path(data).expanduser()
    if path.is_file():
        if path.suffix not in TABLE_FORMATS:
            raise ValueError(f"`{argument}` must be a .jsonl or .parquet file, got {data!r}.")
        file, kind = glob.escape(str(path)), TABLE_FORMATS[path.suffix]
        try:
            return load_dataset(kind, data_files=file, split="train", streaming=streaming)
        except Exception as error:  # of many kinds, and seldom with the name of the file
            rule = f"a well-formed {path.suffix} file"
            raise ValueError(f"`{argument}` must be {rule}, got {data!r}: {error}") from error
    with file_errors_as_value_errors(argument, data):
        if path.is_dir():
            return load_dataset(str(path), config, split=split, streaming=streaming)
        not_found = f'"{PYDOC}", an existing file or folder, or a data set on the Hub'
        try:
            if looks_like_path(data):
                raise DatasetNotFoundError
            return load_dataset(data, config, split=split, revision=revision, streaming=streaming)
        except DatasetNotFoundError as error:
            raise FileNotFoundError(f"`{argument}` must be {not_found}, got {data!r}.") from error


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
    the last documents are held out, uncut, as many as bring their share of the characters closest to
    `validation_fraction` (at least one, not all). Only a corpus of a single document is cut, at that fraction of
    its characters.

    Args:
        load: function that loads a data set, with the keywords of `load_table`; by default `load_documents`, for the
            column `args.text_column`.
        divide: function that divides a data set at a fraction; `hold_out` by default.

    Raises:
        ValueError: validation and training would read the same split, a stream has no validation data of its own,
            `validation_fraction` is not between 0 and 1, or a corpus to be divided has no text.
    """
    load = load or partial(load_documents, text_column=args.text_column)
    options = {"config": args.data_config, "revision": args.data_revision, "streaming": args.streaming}
    validation = None
    if args.validation_data is not None:
        validation = load_validation(args, load_one=load)
    elif args.validation_split is not None:
        if args.data == PYDOC or Path(args.data).expanduser().is_file():
            rule = f"None where `data` ({args.data!r}) has no splits"
            raise ValueError(f"`validation_split` must be {rule}, got {args.validation_split!r}.")
        if args.validation_split == args.data_split:
            raise ValueError(f"`validation_split` must differ from `data_split`, got {args.validation_split!r} twice.")
        validation = load(args.data, split=args.validation_split, **options)
    elif args.streaming:
        reason = "the end of a stream cannot be held out"
        raise ValueError(
            f"`validation_data` or `validation_split` must be given with `streaming`, got None: {reason}."
        )
    train = load(args.data, split=args.data_split, **options)
    if validation is not None:
        return train, validation
    return (divide or hold_out)(train, args.validation_fraction)


def load_validation(
    args: DataArguments,
    load_both: Callable[[DataArguments], tuple[Dataset | IterableDataset, ...]] = load_train_validation,
    load_one: Callable[..., Dataset | IterableDataset] | None = None,
) -> Dataset | IterableDataset:
    """Loads validation documents alone: `validation_data` where it is given, or else the held-out part of `data`.

    `load_both` loads training and validation data, such as `load_images` or `load_pairs`; `load_one` is the `load` of
    `load_train_validation`, whose errors these are.
    """
    if args.validation_data is None:
        return load_both(args)[1]
    return (load_one or partial(load_documents, text_column=args.text_column))(
        args.validation_data,
        config=args.validation_config,
        split=args.validation_split or args.data_split,
        streaming=args.streaming,
        argument="validation_data",
    )


def hold_out(documents: Dataset, validation_fraction: float) -> tuple[Dataset, Dataset]:
    """Divides documents into `(train, validation)` as `load_train_validation` describes; raises as it does."""
    check_fraction(validation_fraction)
    batches = documents.with_format("arrow").iter(1000)
    counts = [pc.fill_null(pc.utf8_length(batch["text"]), 0).to_numpy() for batch in batches]
    lengths = np.concatenate(counts or [np.empty(0, int)])
    if not lengths.any():
        raise ValueError(f"`data` must contain text, got {len(lengths)} empty documents.")
    if not lengths.all():
        documents, lengths = documents.select(np.flatnonzero(lengths)), lengths[lengths > 0]

    if len(documents) == 1:
        end = round((1 - validation_fraction) * int(lengths[0]))
        train = documents.map(_slice_text, fn_kwargs={"start": 0, "stop": end}, desc="Training text")
        return train, documents.map(_slice_text, fn_kwargs={"start": end, "stop": None}, desc="Validation text")
    ends = np.cumsum(lengths)
    num_train = 1 + int(np.abs(ends[:-1] - (1 - validation_fraction) * ends[-1]).argmin())
    return documents.select(range(num_train)), documents.select(range(num_train, len(documents)))


def check_fraction(validation_fraction: float):
    """Raise a ValueError unless the fraction is in (0, 1)."""
    if not 0 < validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must lie between 0 and 1, got {validation_fraction}.")


def num_heldout(count: int, validation_fraction: float, rows: str) -> int:
    """Number to hold out of `count` rows, which errors call `rows`: the fraction, with at least one on either side."""
    check_fraction(validation_fraction)
    if count < 2:
        raise ValueError(f"`data` must hold at least two {rows} to hold some out, got {count}.")
    return min(max(round(validation_fraction * count), 1), count - 1)


def _load_text_files(files: list[Path], streaming: bool, argument: str) -> Dataset | IterableDataset:
    for file in files:
        _check_text_file(file, argument)
    names = [glob.escape(str(file)) for file in files]
    return load_dataset("text", data_files=names, sample_by="document", split="train", streaming=streaming)


def _check_text_file(file: Path, argument: str):
    num_bytes, name = file.stat().st_size, str(file)
    if num_bytes == 0:
        raise ValueError(f"`{argument}` must contain text, got the empty file {name!r}.")
    if num_bytes > MAX_TEXT_FILE_BYTES:
        raise ValueError(
            f"`{argument}` must be text files of at most {MAX_TEXT_FILE_BYTES} bytes, got {name!r} with "
            f"{num_bytes}: divide it, or use .jsonl or .parquet."
        )
    try:
        with file.open(encoding="utf-8") as stream:
            while stream.read(2**20):
                pass
    except UnicodeDecodeError as error:
        raise ValueError(f"`{argument}` must be UTF-8 text, got {name!r}: {error}.") from error


def _select_text(documents: Dataset | IterableDataset, text_column: str) -> Dataset | IterableDataset:
    features = documents.features or next(iter(documents), {})  # a stream may not know its columns before it is read
    check_text_column("text_column", text_column, features)
    documents = documents.select_columns(text_column)
    return documents if text_column == "text" else documents.rename_column(text_column, "text")


def check_text_column(argument: str, column: str, features: Mapping[str, Any]):
    """Raise a ValueError unless these features of `datasets`, or a first row, have this column, with strings in it."""
    if column not in features:
        raise ValueError(f"`{argument}` must be one of the columns {sorted(features)}, got {column!r}.")
    dtype = getattr(features[column], "dtype", None)
    if isinstance(features, Features) and dtype not in ("string", "large_string"):
        raise ValueError(f"`{argument}` must hold strings, got {column!r} with {features[column]}.")


def _slice_text(document: dict[str, str], start: int, stop: int | None) -> dict[str, str]:
    return {"text": document["text"][start:stop]}
