# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""What the dataclasses are made of that the command line fills: fields with a help text, and their check."""

from __future__ import annotations

from dataclasses import field
from typing import Any, get_type_hints

from .errors import check_types


def option(help: str, default: Any = None, **metadata: Any) -> Any:
    """A field of a dataclass for `HfArgumentParser`.

    Args:
        help: What `--help` says of it.
        default: Its value when it is left out.
        metadata: What else the parser is to know, such as `choices`.
    """
    return field(default=default, metadata={"help": help, **metadata})


def check_options(options: Any, *, may_be_none: tuple[str, ...] = ()):
    """Raise a ValueError for a field of a dataclass whose value is not of its type; YAML and Python may give any.

    Args:
        options: The instance.
        may_be_none: Fields that a command gives a value later.
    """
    given = {name: value for name, value in vars(options).items() if not (value is None and name in may_be_none)}
    check_types(given, get_type_hints(type(options)))
