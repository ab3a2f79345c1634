# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Integers that a user gives."""

from __future__ import annotations

import operator
from typing import Any


def as_integer(name: str, value: Any, at_least: int | None = None, at_most: int | None = None) -> int:
    """An integer of Python, NumPy or torch as one of Python, in [`at_least`, `at_most`].

    Args:
        name: The argument, for the error.
        value: Its value.
        at_least, at_most: The range; None for no limit.

    Raises:
        ValueError: For a value that is no integer, a boolean among them, or out of range.
    """
    rule = "an integer"
    if at_least is not None:
        rule += f" >= {at_least}" if at_most is None else f" in [{at_least}, {at_most}]"
    error = ValueError(f"`{name}` must be {rule}, got {value!r}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise error from None
    is_below, is_above = at_least is not None and number < at_least, at_most is not None and number > at_most
    if isinstance(value, bool) or is_below or is_above:
        raise error
    return number
