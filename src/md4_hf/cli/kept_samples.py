# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples that are drawn once and kept in a file with their recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..utils.processes import Processes, on_first_process
from .draw import Sampling, draw
from .sample_files import Memory, Row, SampleFile, Sink, check_recipe, read_rows, write_json_lines


def drawn_rows(
    sampling: Sampling,
    recipe: dict[str, Any],
    batch_size: int,
    path: Path | None,
    processes: Processes | None = None,
    bar: tqdm | None = None,
) -> list[Row]:
    """The samples of `md4 sample` with the same options, which are kept in a file with their recipe if there is one.

    Samples of the same recipe that are in the file are not drawn again; a ValueError for those of another. All
    processes have to call it; those other than the first, which has the file, get no rows. A `bar` counts the samples.
    """
    processes = processes or Processes()
    memory = Memory()
    if path is None:
        draw(sampling, memory, batch_size, processes, bar=bar)
        return memory.rows
    sink: Sink = memory  # of the processes that have no file

    def write(rows: Iterable[Row], path: Path):
        write_json_lines(({**row, "recipe": recipe} for row in rows), path)

    def open_file() -> int:
        """Open the file for the samples that are missing, and return their number."""
        nonlocal sink
        kept = kept_rows(path, recipe)
        if len(kept) < sampling.total:
            sink = file = SampleFile(path, recipe, sampling.total, write, "samples_file")
            if len(kept) > file.num_rows:
                file.begin_with([{name: value for name, value in row.items() if name != "recipe"} for row in kept])
            return sampling.total - file.num_rows
        return 0

    num_missing = on_first_process(processes, open_file)
    if bar is not None:
        bar.update(sampling.total - num_missing)
    if num_missing:
        draw(sampling, sink, batch_size, processes, bar=bar)
    return read_rows(path)[: sampling.total] if processes.process_index == 0 else []


def kept_rows(path: Path, recipe: dict[str, Any]) -> list[Row]:
    """The samples of a file, none if it is not there; a ValueError for those of another recipe."""
    rows = read_rows(path) if path.is_file() else []
    for index, row in enumerate(rows):
        if row.get("index") != index or "ids" not in row:
            raise ValueError(f"`samples_file` must be a file of this version of `md4 score`, got another one: {path}.")
        check_recipe(path, row.get("recipe"), recipe, "samples_file")
    return rows
