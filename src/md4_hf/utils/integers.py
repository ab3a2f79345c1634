# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Integers that a user gives."""

from __future__ import annotations

import contextlib
import operator
from typing import Any


def as_integer(name: str, value: Any, at_least: int | None = None, at_most: int | None = None) -> int:
    """An integer of Python, NumPy or torch as one of Python; a ValueError for any other value of the argument `name`.

    Booleans and integers outside [`at_least`, `at_most`] (None is no limit) are refused too.
    """
    with contextlib.suppress(TypeError):
        number = operator.index(value)
        is_below, is_above = at_least is not None and number < at_least, at_most is not None and number > at_most
        if not (isinstance(value, bool) or is_below or is_above):
            return number
    rule = "an integer"
    if at_least is not None:
        rule += f" >= {at_least}" if at_most is None else f" in [{at_least}, {at_most}]"
    raise ValueError(f"`{name}` must be {rule}, got {value!r}.")
