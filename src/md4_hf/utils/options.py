# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Fields with a help text for the dataclasses that the command line fills, and checks of their values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import field, fields
from typing import Any, get_type_hints

from .errors import check_types


def option(help: str, default: Any = None, **metadata: Any) -> Any:
    """A field of a dataclass that is an option of the command line; `metadata` is for the parser, such as `choices`."""
    return field(default=default, metadata={"help": help, **metadata})


def check_left_out(options: Any, names: Iterable[str], where: str):
    """Raise a ValueError for the first of these options that has another value than by default: it would be ignored.

    `where` says in which case they have no effect, such as "without --push_to_hub".
    """
    defaults = {f.name: f.default for f in fields(options)}
    for name in names:
        if (value := getattr(options, name)) != defaults[name]:
            raise ValueError(f"`{name}` must be left out {where}, got {value!r}.")


def check_at_least(options: Any, minimum: int, *names: str):
    """Raise a ValueError for the first of these fields that is below the minimum; None, for a default, passes."""
    for name in names:
        if (value := getattr(options, name)) is not None and value < minimum:
            raise ValueError(f"`{name}` must be >= {minimum}, got {value}.")


def check_options(options: Any, *, may_be_none: tuple[str, ...] = ()):
    """Raise a ValueError for a field of a dataclass whose value is not of its type; YAML and Python may give any.

    Those that a command gives a value later `may_be_none`.
    """
    given = {name: value for name, value in vars(options).items() if not (value is None and name in may_be_none)}
    check_types(given, get_type_hints(type(options)))


@contextlib.contextmanager
def changed(options: Any, **values: Any) -> Iterator[None]:
    """Give fields of a dataclass, or variables of a module, other values within the context."""
    previous = {name: getattr(options, name) for name in values}
    vars(options).update(values)
    try:
        yield
    finally:
        vars(options).update(previous)
