# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Where samples go: to the console, or to a file that has its name only when it is whole."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from ..utils.files import whole_file, write_whole


Row = dict[str, Any]  # of a sample: `index`, `seed`, `prompt` or `class_label`, `text`, `ids`
RULE_LENGTH = 60


class Sink(Protocol):
    """Place for rows of samples, which come in order."""

    @property
    def num_rows(self) -> int:
        """Number of rows that it has."""

    def add(self, rows: list[Row]):
        """Take the rows that follow those it has."""

    def finish(self):
        """Called when it has all rows."""

    def when_interrupted(self) -> str:
        """Words on what an interruption leaves."""


class Memory:
    """Rows in a list."""

    def __init__(self):
        self.rows: list[Row] = []

    @property
    def num_rows(self) -> int:
        """Number of rows so far."""
        return len(self.rows)

    def add(self, rows: list[Row]):
        """Take rows."""
        self.rows += rows

    def finish(self):
        """There is nothing to do."""

    def when_interrupted(self) -> str:
        """Nothing is left."""
        return ""


class Console(Memory):
    """Texts that are printed as they come."""

    def add(self, rows: list[Row]):
        """Print the texts of rows, above the progress bar if there is one."""
        with tqdm.external_write_mode():
            print_texts([printed(row) for row in rows], first=rows[0]["index"] + 1)
        super().add(rows)


class SampleFile:
    """Samples of one recipe in a file that has its own name only when all are there.

    Until then they are JSON lines of a hidden file beside it, below a line with the recipe, from which a rerun of the
    command resumes. A row that was being written when the process died is drawn again.

    Args:
        path: The file.
        recipe: All that determines the samples besides their number.
        total: Number of samples.
        write: Writes rows to a path, in the form that the file is to have, so that it is never seen half-written.
        argument: Name of the argument that names the file, for errors.

    Raises:
        ValueError: If the hidden file has samples of another recipe.
    """

    def __init__(
        self,
        path: Path,
        recipe: dict[str, Any],
        total: int,
        write: Callable[[Iterable[Row], Path], None],
        argument: str = "output",
    ):
        self.path, self.recipe, self.total, self.write, self.argument = path, recipe, total, write, argument
        self.partial = unfinished(path)
        self.num_rows, self._size = 0, 0  # whole rows of the hidden file, and the bytes up to their end
        if self.partial.is_file():
            header = kept_recipe(path)
            check_recipe(self.partial, header, recipe, argument)
            for _, end in _whole_lines(self.partial):
                self.num_rows, self._size = self.num_rows + 1, end
            self.num_rows -= 1  # the line of the recipe

    def add(self, rows: list[Row]):
        """Append rows to the hidden file."""
        if self.num_rows == 0:
            self.begin_with([])
        with self.partial.open("r+b") as stream:
            stream.truncate(self._size)
            stream.seek(self._size)
            stream.write(to_lines(rows).encode())
            self._size = stream.tell()
        self.num_rows += len(rows)

    def begin_with(self, rows: list[Row]):
        """Make the hidden file anew, with these rows."""
        text = to_lines([{"recipe": self.recipe}, *rows])
        write_whole(self.partial, text)
        self.num_rows, self._size = len(rows), len(text.encode())

    def finish(self):
        """Write the file, and remove the hidden one."""
        kept = (json.loads(line) for line, _ in _whole_lines(self.partial))
        self.write(itertools.islice(kept, 1, 1 + self.total), self.path)
        self.partial.unlink()

    def when_interrupted(self) -> str:
        """Say how many samples are kept."""
        if not self.num_rows:
            return ""
        return f"{self.num_rows:,} of {self.total:,} samples are kept. To resume, run the same command again."


# Forms of a file ------------------------------------------------------------------------------------------------------


def to_lines(rows: Iterable[Row]) -> str:
    """JSON lines, one for each row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json_lines(rows: Iterable[Row], path: Path):
    """Write rows as JSON lines."""
    with whole_file(path) as staging, staging.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(to_lines([row]) for row in rows)


def write_texts(rows: Iterable[Row], path: Path):
    """Write the texts of rows as `md4 sample` prints them."""
    with whole_file(path) as staging, staging.open("w", encoding="utf-8", newline="\n") as stream:
        print_texts((printed(row) for row in rows), stream=stream)


def printed(row: Row) -> str:
    """The text of a row; its ids, where the model has no tokenizer."""
    return row["text"] if "text" in row else " ".join(map(str, row["ids"]))


def rule_above(number: int) -> str:
    """Line above a printed sample."""
    return f"--- {number} {'-' * RULE_LENGTH}"


def print_texts(texts: Iterable[str], first: int = 1, stream=None):
    """Print each text below a rule with its number, of which the first is given."""
    for number, text in enumerate(texts, start=first):
        print(f"{rule_above(number)}\n{text}", file=stream)


def read_printed_texts(printed: str) -> list[str]:
    """The texts that `print_texts` has printed; any other text is one text."""
    if not printed.startswith(f"{rule_above(1)}\n"):
        return [printed]
    texts: list[str] = []
    _, rule, rest = printed.removesuffix("\n").partition(f"{rule_above(1)}\n")
    while rule:
        text, rule, rest = rest.partition(f"\n{rule_above(len(texts) + 2)}\n")
        texts.append(text)
    return texts


def read_rows(file: Path, argument: str = "samples") -> list[Row]:
    """The objects of JSON lines; errors name the argument."""
    rows = []
    for number, line in enumerate(file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"`{argument}` must be JSON lines, got line {number} of {file}: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"`{argument}` must be JSON objects, got {line[:40]!r} in line {number} of {file}.")
        rows.append(row)
    return rows


# The hidden file ------------------------------------------------------------------------------------------------------


def unfinished(path: Path) -> Path:
    """Hidden file beside the samples' own, for as long as some are to be drawn."""
    return path.with_name(f".{path.name}.unfinished")


def kept_recipe(path: Path) -> Any:
    """Recipe of the unfinished samples beside a file, None if there are none or it is no such file."""
    partial = unfinished(path)
    line, _ = next(_whole_lines(partial), (b"{}", 0)) if partial.is_file() else (b"{}", 0)
    try:
        header = json.loads(line)
    except ValueError:
        return None
    return header.get("recipe") if isinstance(header, dict) else None


def check_recipe(file: Path, kept: Any, recipe: dict[str, Any], argument: str):
    """Refuse a file whose samples were drawn in another way."""
    if not isinstance(kept, dict):
        raise ValueError(f"`{argument}` must continue with samples of this command, got another file: {file}.")
    differing = sorted(name for name in {*kept, *recipe} if kept.get(name) != recipe.get(name))
    if differing:
        raise ValueError(
            f"`{argument}` must continue with samples drawn in the same way, got others in {file}, which differ "
            f"in {', '.join(differing)}: name another file, or remove that one."
        )


def _whole_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each line that is whole, and the place of its end; the last one may be torn."""
    end = 0
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                end += len(line)
                yield line, end
