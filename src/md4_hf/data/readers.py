# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Readers of data files, one for each format, that read only the columns of text or messages that are asked for.

    documents = load_columns(DataFiles("JSON lines", {"train": ("a.jsonl",)}), {"text": "string"}, split="train")

`datasets` gives every column a type, and fails where another column changes it late in a file, or has a type that it
does not know (a map, a string_view).
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, List, SplitGenerator, Value
from datasets.builder import Key
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.file_utils import xopen

from .files import ARROW, CSV, JSON, JSON_LINES, PARQUET, TEXT, TSV, DataFiles, compression_of
from .loading_errors import DataFileError
from .progress import advance, progress_bar


ROWS_PER_TABLE = 1000
CHARACTERS_PER_TABLE = 2**23
ROWS_TO_LOOK_AT = 1000  # for the columns of a file whose format has no schema
STRING, MESSAGES = "string", "messages"  # what a column may hold: texts, or lists of messages {role, content}
FEATURES = {STRING: Value("string"), MESSAGES: List({"role": Value("string"), "content": Value("string")})}
ARROW_TYPES = {kind: Features({"x": feature}).arrow_schema.field("x").type for kind, feature in FEATURES.items()}


def _open(path: str) -> BinaryIO:
    """A file on the Hub, or one on this machine, whatever characters its name has."""
    # `datasets` replaces `open` in the module of a builder by one that takes "a::b" for two files.
    return xopen(path, "rb") if "://" in path else io.open(path, "rb")  # noqa: UP020


@contextlib.contextmanager
def open_file(name: str) -> Iterator[BinaryIO]:
    """Bytes of a file, unpacked as its suffix says; a damaged one is a DataFileError."""
    with _open(name) as file:
        try:
            yield _decompressed(file, name)
        except (EOFError, zlib.error, OSError, pa.ArrowException) as error:
            if _is_of_system(error):
                raise
            raise DataFileError(f"{name!r}: {error}") from error


def _decompressed(file: BinaryIO, name: str) -> Any:
    """Bytes of a file, unpacked as its suffix says; gzip may have several members."""
    compression = compression_of(name)
    if compression is None:
        return file
    if compression == "gzip":
        return gzip.GzipFile(fileobj=file)
    return io.BufferedReader(pa.CompressedInputStream(file, compression))


def _as_text(file: BinaryIO, newline: str | None = "\n") -> io.TextIOWrapper:
    """UTF-8 text without a byte order mark; a line ends in a line break alone, or as `open` says of `newline`."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)


# Formats --------------------------------------------------------------------------------------------------------------
# `columns(file)` gives the columns, each with its type in words, of which `STRING` and `MESSAGES` can be read;
# `tables(file, columns)` yields the columns asked for, given with their types in words.


class TextReader:
    """Reader of text: a file is one row."""

    def columns(self, file: BinaryIO) -> dict[str, str]:
        """The one column `text`."""
        return {"text": STRING}

    def tables(self, file: BinaryIO, columns: Mapping[str, str]) -> Iterator[pa.Table]:
        """Yield a table of one row; line ends become line breaks."""
        yield _table(columns, [{"text": _as_text(file, newline=None).read()}])


class JsonReader:
    """Reader of JSON: an object in each line, or a list of objects."""

    def columns(self, file: BinaryIO) -> dict[str, str]:
        """Keys of the first rows."""
        found: dict[str, str] = {}
        for row in itertools.islice(self._rows(file), ROWS_TO_LOOK_AT):
            for name, value in row.items():
                found[name] = _kind_of(value) if found.get(name, STRING) == STRING else found[name]
        return found

    def tables(self, file: BinaryIO, columns: Mapping[str, str]) -> Iterator[pa.Table]:
        """Yield rows; one without a column has None there."""
        waiting: list[dict[str, Any]] = []
        characters = 0
        for number, row in enumerate(self._rows(file), start=1):
            waiting.append({name: _checked(row.get(name), kind, name, number) for name, kind in columns.items()})
            characters += sum(_num_characters(value) for value in waiting[-1].values())
            if len(waiting) == ROWS_PER_TABLE or characters > CHARACTERS_PER_TABLE:
                yield _table(columns, waiting)
                waiting, characters = [], 0
        yield _table(columns, waiting)

    def _rows(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        lines = enumerate(_as_text(file), start=1)
        for number, line in lines:
            if not line.strip():
                continue
            if line.lstrip().startswith("["):
                rows = json.loads(line + "".join(rest for _, rest in lines))
            else:
                rows = [self._parse(number, line)]
            for row in rows:
                if not isinstance(row, dict):
                    raise DataFileError(f"line {number} must be an object, got {row!r:.80}")
                yield row

    def _parse(self, number: int, line: str) -> Any:
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            raise DataFileError(
                f"line {number} must be JSON, got {line.strip()!r:.80}: {error.msg} (an object has one line)"
            ) from error


class CsvReader:
    """Reader of tables with a line of names: all values are strings, "NA" and an empty one too."""

    def __init__(self, separator: str):
        self.separator = separator

    def columns(self, file: BinaryIO) -> dict[str, str]:
        """Names in the first line."""
        return dict.fromkeys(next(self._rows(file), []), STRING)

    def tables(self, file: BinaryIO, columns: Mapping[str, str]) -> Iterator[pa.Table]:
        """Yield rows; one that ends before a column has None there."""
        rows = self._rows(file)
        names = next(rows, [])
        while batch := list(itertools.islice(rows, ROWS_PER_TABLE)):
            yield _table(columns, [dict(zip(names, row, strict=False)) for row in batch])

    def _rows(self, file: BinaryIO) -> Iterator[list[str]]:
        csv.field_size_limit(2**31 - 1)  # documents are longer than the module's 131,072 characters
        rows = csv.reader(_as_text(file, newline=""), delimiter=self.separator, strict=True)
        width = None
        try:
            for row in filter(None, rows):
                width = width or len(row)
                if len(row) > width:
                    raise DataFileError(f"line {rows.line_num} must have at most {width} values, got {len(row)}")
                yield row
        except csv.Error as error:
            rule = "a value with quotes begins and ends with one and doubles those within"
            raise DataFileError(f"line {rows.line_num}: {error}; {rule}") from error


class ParquetReader:
    """Reader of Parquet."""

    def columns(self, file: BinaryIO) -> dict[str, str]:
        """Columns of the schema."""
        return columns_of_schema(pq.read_schema(file))

    def tables(self, file: BinaryIO, columns: Mapping[str, str]) -> Iterator[pa.Table]:
        """Yield row groups, or parts of them."""
        yield from _cast(pq.ParquetFile(file).iter_batches(ROWS_PER_TABLE, columns=list(columns)), columns)


class ArrowReader:
    """Reader of Arrow's two formats, for streams and for files."""

    def columns(self, file: BinaryIO) -> dict[str, str]:
        """Columns of the schema."""
        return columns_of_schema(_open_arrow(file)[0])

    def tables(self, file: BinaryIO, columns: Mapping[str, str]) -> Iterator[pa.Table]:
        """Yield record batches."""
        yield from _cast(map(_validated, _open_arrow(file)[1]), columns)


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)
    return batch


def _open_arrow(file: BinaryIO) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    try:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    except pa.ArrowInvalid:
        file.seek(0)
        table = pa.ipc.open_file(file)
        return table.schema, (table.get_batch(index) for index in range(table.num_record_batches))


def columns_of_schema(schema: pa.Schema) -> dict[str, str]:
    """Columns of an Arrow schema, each with its type in words."""
    return {field.name: _kind_of_type(field.type) for field in schema}


def _kind_of_type(kind: pa.DataType) -> str:
    """Type of an Arrow column in words."""
    if _holds_strings(kind):
        return STRING
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list and pa.types.is_struct(kind.value_type):
        fields = {field.name: field.type for field in kind.value_type}
        if all(name in fields and _holds_strings(fields[name]) for name in ("role", "content")):
            return MESSAGES
    return f"Value('{kind}')"


def _holds_strings(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in tests)


def _cast(batches: Iterable[pa.RecordBatch], columns: Mapping[str, str]) -> Iterator[pa.Table]:
    """Yield the columns of batches in the types that they are read as."""
    first = 1
    for batch in batches:
        arrays = {}
        for name, kind in columns.items():
            column = batch.column(name)
            if kind == MESSAGES:  # whose order of fields is free
                rows = enumerate(column.to_pylist(), start=first)
                arrays[name] = pa.array([_checked(row, kind, name, number) for number, row in rows], ARROW_TYPES[kind])
            else:
                arrays[name] = column.cast(ARROW_TYPES[kind])
        first += batch.num_rows
        yield pa.table(arrays)


def _table(columns: Mapping[str, str], rows: list[dict[str, Any]]) -> pa.Table:
    arrays = {name: pa.array([row.get(name) for row in rows], ARROW_TYPES[kind]) for name, kind in columns.items()}
    return pa.table(arrays)


def _kind_of(value: Any) -> str:
    """Type of a value of JSON in words."""
    if isinstance(value, str | None):
        return STRING
    is_messages = isinstance(value, list) and all(
        isinstance(x, dict) and {"role", "content"} <= x.keys() for x in value
    )
    return MESSAGES if is_messages else type(value).__name__


def _checked(value: Any, kind: str, name: str, number: int) -> Any:
    """A value of this type in words, or None; of messages, role and content.

    Raises:
        DataFileError: the value of row `number`, counted from 1, in the column `name` is another.
    """
    if value is None or (kind == STRING and isinstance(value, str)):
        return value
    if kind == MESSAGES and _kind_of(value) == MESSAGES:
        messages = [{key: message[key] for key in ("role", "content")} for message in value]
        if all(isinstance(text, str) for message in messages for text in message.values()):
            return messages
    rule = "a string" if kind == STRING else "a list of messages {role, content}, both strings,"
    raise DataFileError(f"row {number} must have {rule} in the column {name!r}, got {value!r:.80}")


def _num_characters(value: Any) -> int:
    """Characters of a string, or of the contents of messages."""
    if isinstance(value, list):
        return sum(len(message["content"]) for message in value)
    return len(value or "")


READERS: dict[str, Any] = {
    TEXT: TextReader(),
    JSON_LINES: JsonReader(),
    JSON: JsonReader(),
    CSV: CsvReader(","),
    TSV: CsvReader("\t"),
    PARQUET: ParquetReader(),
    ARROW: ArrowReader(),
}


def columns_of_file(name: str, format: str) -> dict[str, str]:
    """Columns of a file, each with its type in words: `STRING`, `MESSAGES`, or one that is not read.

    Raises:
        DataFileError: the file is not well-formed.
    """
    with _open(name) as file:
        return _naming(name, lambda: READERS[format].columns(_decompressed(file, name)))


def _naming(name: str, read: Callable[[], Any]) -> Any:
    """Result of a function; what it raises for a file that is not well-formed names the file.

    Libraries have errors of many kinds for these.
    """
    try:
        return read()
    except DataFileError as error:
        raise DataFileError(f"{name!r}: {error}") from error.__cause__
    except Exception as error:
        if _is_of_system(error):
            raise
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise DataFileError(f"{name!r}: {kind}{error}") from error


def _is_of_system(error: Exception) -> bool:
    """Whether an error is the machine's, not the file's: pyarrow and gzip raise OSErrors without a number for those."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


# Data sets ------------------------------------------------------------------------------------------------------------


FORMATS_OF_BUILDERS = {Json: JSON_LINES, Parquet: PARQUET, Arrow: ARROW}


def files_of_builder(builder: datasets.DatasetBuilder) -> DataFiles | None:
    """Files that a builder of `datasets` would read; None where it does more than read them."""
    for kind, format in FORMATS_OF_BUILDERS.items():
        if isinstance(builder, kind) and getattr(builder.config, "field", None) is None:
            splits = {str(split): tuple(names) for split, names in builder.config.data_files.items()}
            return DataFiles(format, splits)
    return None


@dataclass
class ColumnsConfig(datasets.BuilderConfig):
    """Files and columns to read; the cache of `datasets` goes by all of these values."""

    format: str = TEXT
    splits: dict[str, tuple[str, ...]] | None = None
    columns: tuple[tuple[str, str], ...] = ()  # with their types in words
    versions: tuple = ()


class ColumnsBuilder(datasets.ArrowBasedBuilder):
    """Builder of a data set with some columns of text or messages."""

    BUILDER_CONFIG_CLASS = ColumnsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=Features({name: FEATURES[kind] for name, kind in self.config.columns}))

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        generators = []
        for split, names in self.config.splits.items():
            is_remote = "://" in names[0]
            files = dl_manager.download(list(names)) if is_remote else list(names)
            gen_kwargs = {"files": files, "names": list(names)}
            generators.append(SplitGenerator(name=split, gen_kwargs=gen_kwargs))
        return generators

    def _prepare_split(self, *args, **kwargs):
        with progress_bar("Reading", "rows"):
            return super()._prepare_split(*args, **kwargs)

    def _generate_shards(self, files: list[str], names: list[str]) -> Iterator[str]:
        yield from names

    def _generate_tables(self, files: list[str], names: list[str]) -> Iterator[tuple[Key, pa.Table]]:
        reader, columns = READERS[self.config.format], dict(self.config.columns)
        for file_index, (path, name) in enumerate(zip(files, names, strict=True)):
            self._check_columns(path, name)
            with _open(path) as file:
                tables = reader.tables(_decompressed(file, name), columns)
                read_next = partial(next, tables, None)
                for index, table in enumerate(iter(partial(_naming, name, read_next), None)):
                    advance(table.num_rows)
                    yield Key(file_index, index), table

    def _check_columns(self, path: str, name: str):
        """Raise a DataFileError where a file lacks a column: its rows would all be empty."""
        with _open(path) as file:
            found = _naming(name, lambda: READERS[self.config.format].columns(_decompressed(file, name)))
        missing = [column for column, _ in self.config.columns if column not in found]
        if found and missing:
            raise DataFileError(f"{name!r} must have the column {missing[0]!r}, got {sorted(found)}")


def load_columns(
    files: DataFiles, columns: Mapping[str, str], split: str = "train", streaming: bool = False, **options: Any
) -> Dataset | IterableDataset:
    """Loads some columns of text or messages of files as a data set.

    Args:
        files: files of one format, on this machine or on the Hub (`hf://`).
        columns: names of the columns, with `STRING` or `MESSAGES` for what they hold.
        split: one of the splits; slices and sums of them for `datasets`.
        streaming: returns an `IterableDataset` that reads the files as it goes.
        options: more for the builder of `datasets`.

    Raises:
        DataFileError: a file is not well-formed or lacks a column; of a stream when it comes to it.
        datasets.exceptions.DatasetGenerationError: for such a file within the cause.
    """
    local = [name for names in files.splits.values() for name in names if "://" not in name]
    builder = ColumnsBuilder(
        format=files.format,
        splits=dict(files.splits),
        columns=tuple(columns.items()),
        versions=tuple((os.path.getsize(name), os.stat(name).st_mtime_ns) for name in local),
        **{"dataset_name": "columns", **options},
    )
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    if not sum(part.num_examples for part in builder.info.splits.values()):
        raise DataFileError(f"{next(iter(files.splits.values()))[0]!r} without rows")
    return builder.as_dataset(split=split)
