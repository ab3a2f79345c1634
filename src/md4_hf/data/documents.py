# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text for training and evaluation: load documents, and hold some out. `packing` makes blocks of them.

    documents, held_out = load_train_validation(DataArguments(data="pydoc"))
    blocks, report = pack(documents, tokenizer, block_size=256)

In a distributed run, call these inside `TrainingArguments.main_process_first()`: the first process fills the cache
of `datasets`, and the others read it.
"""

import codecs
import contextlib
import glob
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..utils.errors import file_errors_as_value_errors
from ..utils.files import looks_like_path
from ..utils.hub_access import from_hub
from ..utils.instances import check_instance
from .arguments import BUILT_IN_TEXTS, DataArguments
from .files import (
    ARROW,
    CSV,
    FORMATS,
    IMAGE,
    JSON,
    JSON_LINES,
    PARQUET,
    TEXT,
    TSV,
    DataFiles,
    describe_files,
    files_under,
    find_files,
    is_text,
    option_name,
)
from .loading_errors import data_errors, find_cause
from .progress import without_bars
from .python_texts import CORPORA
from .readers import (
    MESSAGES,
    STRING,
    columns_of_file,
    columns_of_schema,
    files_of_builder,
    load_columns,
    open_file,
)


# Builders of `datasets` and their options, which load all columns.
MODULES: dict[str, tuple[str, dict[str, str]]] = {
    JSON_LINES: ("json", {}),
    JSON: ("json", {}),
    CSV: ("csv", {}),
    TSV: ("csv", {"sep": "\t"}),
    PARQUET: ("parquet", {}),
    ARROW: ("arrow", {}),
    IMAGE: ("imagefolder", {}),
}
SUFFIXES_OF_DATA = " ".join(suffix for suffix, kind in FORMATS.items() if kind != IMAGE)
# What the columns of options may hold, strings where nothing else is said; and in words.
HELD = {"messages_column": (MESSAGES,), "prompt_column": (STRING, MESSAGES), "response_column": (STRING, MESSAGES)}
WORDS = {STRING: "strings", MESSAGES: "lists of messages {role, content}"}
NAMES_OF_TEXTS = ", ".join(f'"{name}"' for name in BUILT_IN_TEXTS)
MAX_TEXT_FILE_BYTES = 2**31 - 1  # Arrow addresses the characters of a string column with 32 bits


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
            - "pydoc" or "docstrings": see `pydoc_documents` and `docstring_documents`;
            - a .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow file: one document per row;
            - any other file: one document, UTF-8 (line ends become "\\n");
            - a folder of such tables, of one format: a data set in the layout of the Hub;
            - a folder of .txt files: one document per file at any depth, sorted by path;
            - the id of a data set on the Hub.
            Text, JSON and CSV may be compressed (.gz, .zst). Suffixes count in any letter case; hidden files and
            folders, and what tools leave, do not.
        config: configuration of the data set (data sets in a folder or on the Hub).
        split: split of the data set, or part of one, such as "train[:1%]" (but for streams).
        revision: branch, tag or commit (data sets on the Hub).
        text_column: column that holds the text (all but text files).
        streaming: returns an `IterableDataset` that reads the data as it goes.
        argument: the name of `data` in errors.

    Raises:
        FileNotFoundError: `data` is neither a file, a folder nor a data set on the Hub.
        ValueError: a file is empty, too large, damaged or not UTF-8, a folder has nothing to load or several formats,
            `text_column` is missing or holds no strings, or an option has no effect on such data.
    """
    check_instance(argument, data, str, os.PathLike)
    if not is_text(data):
        documents = load_table(
            data,
            columns={"text_column": text_column},
            config=config,
            split=split,
            revision=revision,
            streaming=streaming,
            argument=argument,
        )
        return _select_text(documents, text_column)
    if text_column != "text":
        raise ValueError(f"`text_column` must be left out for text, which has no columns, got {text_column!r}.")
    _check_no_revision(revision, data, argument)
    if data in BUILT_IN_TEXTS:
        return _built_in(data, config, split, streaming, argument)
    _check_whole_split(split, streaming, argument)
    files = find_files(data, config, argument)
    for names in files.splits.values():
        for name in names:
            _check_text_file(name, argument)
    return _load_files(files, {"text_column": "text"}, split, streaming, argument)


def load_table(
    data: str,
    *,
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    argument: str = "data",
) -> Dataset | IterableDataset:
    """Loads a data set with all its columns, or those columns of strings or messages that are asked for.

    Args:
        data: a table, a folder of tables of one format or of images, or the id of a data set on the Hub.
        columns: names of the columns to read, by the names of their options for errors; by default all.
        config, split, revision, streaming, argument: as in `load_documents`.

    Raises:
        FileNotFoundError, ValueError: as `load_documents`; and for text.
    """
    check_instance(argument, data, str, os.PathLike)
    _check_whole_split(split, streaming, argument)
    with file_errors_as_value_errors(argument, data), data_errors(argument):
        path = Path(data).expanduser()
        if not path.exists():
            with from_hub(data):
                return _load_from_hub(data, columns, config, split, revision, streaming, argument)
        _check_no_revision(revision, data, argument)
        files = find_files(data, config, argument)
        if files is None and columns is None:  # archives of images, for example
            return load_dataset(str(path), config, split=split, streaming=streaming)
        if files is None or (files.format == IMAGE and columns is not None):
            found = describe_files(
                files_under(path) if path.is_dir() else [path], path if path.is_dir() else path.parent
            )
            raise ValueError(
                f"`{argument}` must be a folder with {SUFFIXES_OF_DATA} files, got {data!r} with {found}."
            )
        if files.format == TEXT:
            raise ValueError(
                f"`{argument}` must be a .jsonl or .parquet file, or another table ({SUFFIXES_OF_DATA}), got {data!r}."
            )
        return _load_files(files, columns, split, streaming, argument)


def _load_files(
    files: DataFiles, columns: Mapping[str, str] | None, split: str, streaming: bool, argument: str
) -> Dataset | IterableDataset:
    """Loads local files: columns of strings, or all columns, to which `datasets` gives types."""
    first = _first_file(files, split, argument)
    if columns is None:
        module, options = MODULES[files.format]
        escaped = {part: [glob.escape(name) for name in found] for part, found in files.splits.items()}
        with without_bars():  # "Generating train split", of a list of files
            return load_dataset(module, data_files=escaped, split=split, streaming=streaming, **options)
    with data_errors(argument):
        kinds = _kinds_of_columns(columns, columns_of_file(first, files.format))
        return load_columns(files, kinds, split, streaming)


def _check_whole_split(split: str, streaming: bool, argument: str):
    """Refuse a part of a stream, whose length is not known, before anything is read or looked up."""
    if streaming and "[" in split:
        raise ValueError(f"`{option_name(argument, 'split')}` must be a whole split with `streaming`, got {split!r}.")


def _first_file(files: DataFiles, split: str, argument: str) -> str:
    """The first file of a split, which may be part of one or the sum of several."""
    names = [part.partition("[")[0].strip() for part in split.split("+")]
    unknown = [name for name in names if name not in (*files.splits, "all")]
    with contextlib.suppress(ValueError):
        if not unknown and ReadInstruction.from_spec(split):
            return next(found[0] for name, found in files.splits.items() if name in names or "all" in names)
    raise ValueError(
        f"`{option_name(argument, 'split')}` must be one of the splits {sorted(files.splits)} or a part of one, "
        f'such as "train[:10%]", got {unknown[0] if unknown else split!r}.'
    )


def _load_from_hub(
    data: str,
    columns: Mapping[str, str] | None,
    config: str | None,
    split: str,
    revision: str | None,
    streaming: bool,
    argument: str,
) -> Dataset | IterableDataset:
    """Loads a data set on the Hub.

    `datasets` gives every column a type; where another than those asked for has none, or changes it, only these are
    read. Of a stream, whose first rows do not tell, always.
    """

    def load_only() -> Dataset | IterableDataset | None:
        """The columns asked for, read by our own readers; None where `datasets` has to read them all."""
        builder = load_dataset_builder(data, config, revision=revision)
        files = files_of_builder(builder)
        if columns is None or files is None:
            return None
        kinds = _kinds_of_columns(columns, columns_of_file(_first_file(files, split, argument), files.format))
        facts = {"dataset_name": builder.dataset_name, "repo_id": builder.repo_id, "hash": builder.hash}
        return load_columns(files, kinds, split, streaming, **facts)

    with _not_found_on_hub(data, argument):
        try:
            if streaming and columns is not None and (stream := load_only()) is not None:
                return stream
            return load_dataset(data, config, split=split, revision=revision, streaming=streaming)
        except (DatasetGenerationError, ValueError) as error:
            if columns is None or streaming or find_cause(error, OSError) or (table := load_only()) is None:
                raise
            return table


@contextlib.contextmanager
def _not_found_on_hub(data: str, argument: str) -> Iterator[None]:
    """Turn an error within the context for data that are not on the Hub into one that names the argument."""
    rule = (
        f"`{argument}` must be {NAMES_OF_TEXTS}, an existing file or folder, or a data set on the Hub, got {data!r}."
    )
    if looks_like_path(data):
        raise FileNotFoundError(rule)
    try:
        yield
    except DatasetNotFoundError as error:
        raise FileNotFoundError(rule) from error


def _kinds_of_columns(columns: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """Types in words of the columns to read, from those `found`; a ValueError for one that is missing or not read."""
    for option, column in columns.items():
        if found and column not in found:
            raise ValueError(f"`{option}` must be one of the columns {sorted(found)}, got {column!r}.")
        held = HELD.get(option, (STRING,))
        if found and found[column] not in held:
            rule = " or ".join(WORDS[kind] for kind in held)
            raise ValueError(f"`{option}` must hold {rule}, got {column!r} with {found[column]}.")
    return {column: found.get(column, HELD.get(option, (STRING,))[0]) for option, column in columns.items()}


def columns_of_data(
    data: str, config: str | None, split: str, revision: str | None, argument: str
) -> dict[str, str] | None:
    """Columns of a data set, each with its type in words; None for text, and where they are not known beforehand.

    Raises:
        FileNotFoundError, ValueError: as `load_table`.
    """
    if is_text(data):
        return None
    with file_errors_as_value_errors(argument, data), data_errors(argument):
        if Path(data).expanduser().exists():
            files = find_files(data, config, argument)
            if files is None or files.format == IMAGE:
                return None
            return columns_of_file(_first_file(files, split, argument), files.format)
        with from_hub(data), _not_found_on_hub(data, argument):
            builder = load_dataset_builder(data, config, revision=revision)
            files = files_of_builder(builder)
            if files is not None:
                return columns_of_file(_first_file(files, split, argument), files.format)
            features = builder.info.features
            return None if features is None else columns_of_schema(features.arrow_schema)


def _check_no_revision(revision: str | None, data: str, argument: str):
    if revision is not None:
        name = option_name(argument, "revision")
        raise ValueError(f"`{name}` must be left out for {data!r}, which is not on the Hub, got {revision!r}.")


def _built_in(data: str, config: str | None, split: str, streaming: bool, argument: str) -> Dataset | IterableDataset:
    if config is not None:
        raise ValueError(f'`{option_name(argument, "config")}` must be left out for "{data}", got {config!r}.')
    documents = Dataset.from_dict({"text": CORPORA[data]()})
    if split != "train":
        try:
            parts = ReadInstruction.from_spec(split).to_absolute({"train": len(documents)})
        except ValueError as error:
            raise ValueError(
                f'`{option_name(argument, "split")}` must be "train" or a part of it for "{data}", got {split!r}.'
            ) from error
        documents = documents.select([index for part in parts for index in range(part.from_ or 0, part.to)])
    return documents.to_iterable_dataset() if streaming else documents


def load_train_validation(
    args: DataArguments,
    load: Callable[..., Dataset | IterableDataset] | None = None,
    divide: Callable[[Dataset, float], tuple[Dataset, Dataset]] | None = None,
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """Loads training and validation documents.

    Validation documents come from `validation_data` and `validation_split` where one of them is given. Otherwise
    the last documents are held out, uncut, as many as bring their share of the characters closest to
    `validation_fraction` (at least one, not all). Only a corpus of a single document is cut, at that fraction of
    its characters. Several sources are divided each by itself, and joined one after the other.

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
    check_instance("args", args, DataArguments)
    train, heldout = load_sources(args, load, divide)
    return join(train), heldout


def load_sources(
    args: DataArguments,
    load: Callable[..., Dataset | IterableDataset] | None = None,
    divide: Callable[[Dataset, float], tuple[Dataset, Dataset]] | None = None,
) -> tuple[list[Dataset | IterableDataset], Dataset | IterableDataset]:
    """Loads the training documents of each source, and the validation documents of all; as `load_train_validation`."""
    parts = [_load_source(source, load, divide) for source in sources_of(args)]
    train, heldout = (list(side) for side in zip(*parts, strict=True))
    if args.validation_data is not None:
        heldout = [load_validation(_with_validation_column(args), load_one=load)]
    return train, join(heldout)


def join(parts: list[Dataset | IterableDataset]) -> Dataset | IterableDataset:
    """Data sets one after the other."""
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _with_validation_column(args: DataArguments) -> DataArguments:
    """Arguments that name the text column of the validation data, by default that of the data if these have columns."""
    if args.validation_data is None:
        return args
    column = args.validation_text_column or ("text" if is_text(args.validation_data) else args.text_column)
    return replace(args, validation_text_column=column)


def sources_of(args: DataArguments) -> list[DataArguments]:
    """Arguments of each source of the data; an option goes to the sources that have such a thing, if any has."""
    if len(args.sources) == 1:
        return [args]
    args = _with_validation_column(args)  # of the options of all sources, before one source loses its own
    has_option = {
        "text_column": lambda source: not is_text(source),
        "data_config": lambda source: source not in BUILT_IN_TEXTS and not Path(source).expanduser().is_file(),
        "data_revision": lambda source: source not in BUILT_IN_TEXTS and not Path(source).expanduser().exists(),
    }
    defaults = DataArguments()
    split_args = []
    for source in args.sources:
        without = {
            name: getattr(defaults, name)
            for name, has in has_option.items()
            if not has(source) and any(map(has, args.sources))
        }
        split_args.append(replace(args, data=source, data_weights=None, **without))
    return split_args


def _load_source(
    args: DataArguments,
    load: Callable[..., Dataset | IterableDataset] | None,
    divide: Callable[[Dataset, float], tuple[Dataset, Dataset]] | None,
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """Loads the training part of one source, and its validation part where there are no other validation data."""
    (data,) = args.sources
    load_one: Callable[..., Dataset | IterableDataset] = load or partial(load_documents, text_column=args.text_column)
    load_data = partial(load_one, data, config=args.data_config, revision=args.data_revision, streaming=args.streaming)
    has_splits = not (data in BUILT_IN_TEXTS or Path(data).expanduser().is_file())
    validation = None
    if args.validation_data is None and args.validation_split is not None:
        if not has_splits and args.validation_split.partition("[")[0] != "train":
            raise ValueError(
                f"`validation_split` must be None where `data` ({data!r}) has no splits, or a part of the one split, "
                f'such as "train[90%:]", got {args.validation_split!r}.'
            )
        if args.validation_split == args.data_split:
            raise ValueError(f"`validation_split` must differ from `data_split`, got {args.validation_split!r} twice.")
        validation = load_data(split=args.validation_split)
    elif args.validation_data is None and args.streaming:
        raise ValueError(
            "`validation_data` or `validation_split` must be given with `streaming`, got None: the end of a stream "
            "cannot be held out."
        )
    train = load_data(split=args.data_split)
    if validation is None and args.validation_data is None:
        return (divide or hold_out)(train, args.validation_fraction)
    return train, validation


def load_validation(
    args: DataArguments,
    load_both: Callable[[DataArguments], tuple[Dataset | IterableDataset, ...]] = load_train_validation,
    load_one: Callable[..., Dataset | IterableDataset] | None = None,
) -> Dataset | IterableDataset:
    """Loads validation documents alone: `validation_data` where it is given, or else the held-out part of `data`.

    `load_both` loads training and validation data, such as `load_images` or `load_pairs`; `load_one` is the `load` of
    `load_train_validation`, whose errors these are; its default reads the column `args.validation_text_column`, or else
    `args.text_column`.
    """
    if args.validation_data is None:
        return load_both(args)[1]
    column = args.validation_text_column or args.text_column
    return (load_one or partial(load_documents, text_column=column))(
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


def _check_text_file(name: str, argument: str):
    """Refuse text that is too large or not UTF-8, before hours of training."""
    decoder, num_bytes = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with open_file(name) as file:
            while chunk := file.read(2**20):
                decoder.decode(chunk)
                num_bytes += len(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"`{argument}` must be UTF-8 text, got {name!r}: {error}.") from error
    if num_bytes > MAX_TEXT_FILE_BYTES:
        raise ValueError(
            f"`{argument}` must be text files of at most {MAX_TEXT_FILE_BYTES} bytes, got {name!r} with "
            f"{num_bytes}: divide it, or use .jsonl or .parquet."
        )


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
