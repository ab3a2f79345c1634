# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Objects that a user gives."""

from __future__ import annotations

from typing import Any


def check_instance(name: str, value: Any, *classes: type, hint: str = ""):
    """Raise a ValueError for a value of the argument `name` that is of none of the classes.

    `hint` is a sentence that says where to get one.
    """
    if isinstance(value, classes):
        return
    rule = " or ".join(f"`{cls.__name__}`" for cls in classes)
    found = repr(value) if value is None or isinstance(value, str) else type(value).__name__
    raise ValueError(f"`{name}` must be a {rule}, got {found}." + (hint and f" {hint}"))
