# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Clear errors for damaged files and for values of a wrong type."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from huggingface_hub.errors import HTTPError


@contextlib.contextmanager
def file_errors_as_value_errors(name: str, source: object) -> Iterator[None]:
    """Turn what a library raises on damaged files within the context into a ValueError that names them.

    Libraries expect well-formed files, and fail in others with a KeyError, an AttributeError or errors of their own.
    `name` is the argument that names the files, `source` its value.
    """
    try:
        yield
    except (OSError, HTTPError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, (UnicodeError, json.JSONDecodeError)):
            raise  # it says what is wrong by itself
        raise ValueError(
            f"`{name}` must have well-formed files, got {source}, which cannot be read: {type(error).__name__}: {error}"
        ) from error


def check_types(values: Mapping[str, Any], types: Mapping[str, Any]):
    """Raise a ValueError for a value that is not of its type; an integer may stand for a float.

    The types are those of `typing.get_type_hints`, classes or unions of classes; names without one are not checked.
    """
    for name in values.keys() & types.keys():
        union, value = types[name], values[name]
        kinds = get_args(union) if get_origin(union) in (Union, UnionType) else (union,)
        allowed = tuple(get_origin(kind) or kind for kind in kinds)
        is_other_bool = isinstance(value, bool) and bool not in allowed  # which is an int to Python
        if is_other_bool or not isinstance(value, (*allowed, int) if float in allowed else allowed):
            expected = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"`{name}` must be {expected}, got {value!r}.")


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """A question for the end of an error, " Did you mean 'train'?", with the nearest known word; "" if none is near.

    Letter case, dashes in front, and whether words are joined by a hyphen or an underscore, do not matter.
    """

    def plain(name: object) -> str:
        return str(name).lower().lstrip("-").replace("-", "_")

    by_plain = {plain(name): str(name) for name in known}
    close = difflib.get_close_matches(plain(word), [*by_plain], n=1, cutoff=0.6)
    return f" Did you mean {by_plain[close[0]]!r}?" if close else ""
