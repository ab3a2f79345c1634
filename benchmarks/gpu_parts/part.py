# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Parts of a run on a GPU, the rows they measure, and what they are told. Imports nothing heavy."""

from __future__ import annotations

import functools
import importlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Args:
        device: Device to measure, such as "cuda".
        output: Folder for results and pictures.
        tiny: Whether to take small networks and few repeats, to try the script itself out.
        corpus: File of `gpu_corpus.py` to learn from; None for the reference manual of Python.
        seed: Seed of weights and data.
    """

    device: str
    output: Path
    tiny: bool = False
    corpus: Path | None = None
    seed: int = 0


@dataclass
class Row:
    """A measurement, which is on disk as soon as it is made.

    Args:
        name: Name of the case.
        values: Figures by name; a name ends with the unit.
        ok: Whether a check holds; None where nothing was checked.
        note: Remark, or why there is no figure.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    ok: bool | None = None
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class Context:
    """Options of a run and the time that its part may take."""

    options: Options
    deadline: float  # of `time.time()`

    @functools.cached_property
    def device(self):
        """Device to measure."""
        import torch

        return torch.device(self.options.device)

    @property
    def tiny(self) -> bool:
        """Whether to take small networks and few repeats."""
        return self.options.tiny

    @property
    def output(self) -> Path:
        """Folder for pictures and other files."""
        return self.options.output

    @property
    def seconds_left(self) -> float:
        """Seconds until the part should have ended."""
        return self.deadline - time.time()

    def measured(self, name: str, measure: Callable[[], Row | dict[str, Any]], seconds: float = 0.0) -> Row:
        """Row of a measurement; one that fails becomes a row with its error, and the part continues.

        Args:
            name: Name of the row.
            measure: Gives the row, or its figures.
            seconds: Time that it is thought to take on a GPU: with less left, it is left out.
        """
        if self.seconds_left < (0.0 if self.tiny else seconds):
            return Row(name, note=f"left out: {self.seconds_left:.0f} s were left, it may take {seconds:.0f} s")
        begin = time.time()
        try:
            found = measure()
        except NotAvailable as reason:
            return Row(name, note=f"not available: {reason}")
        except Exception as error:
            if is_out_of_memory(error):
                return Row(name, note="out of memory")
            return Row(name, ok=False, note=traceback.format_exc(limit=-3))
        row = found if isinstance(found, Row) else Row(name, found)
        row.name = name
        row.values.setdefault("took_s", round(time.time() - begin, 2))
        return row


class NotAvailable(Exception):
    """Something that the machine or an installed library does not have: no failure."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an accelerator had no memory left."""
    return "out of memory" in str(error).lower()


@dataclass(frozen=True)
class Part:
    """A part of the run: a module whose `run(context)` yields rows.

    Args:
        name: Name of the module.
        title: What it shows.
        minutes: Share of the run's time.
        environment: Variables to set before torch is imported.
        module: Module with its `run(context)`; of its name in this package by default.
    """

    name: str
    title: str
    minutes: float
    environment: dict[str, str] = field(default_factory=dict)
    module: str | None = None

    def run(self, context: Context) -> Iterator[Row]:
        """Measure, row by row."""
        return self.prepared()(context)

    def prepared(self) -> Callable[[Context], Iterator[Row]]:
        """Import what is needed, without touching the device."""
        return importlib.import_module(self.module or f"{__package__}.{self.name}").run
