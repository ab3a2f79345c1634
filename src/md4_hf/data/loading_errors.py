# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Errors of `datasets` that say what is at fault: a data file, or the cache that cannot be written."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import datasets


Kind = TypeVar("Kind", bound=BaseException)
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}


class DataFileError(ValueError):
    """Raised for a file that is not well-formed, or has other columns than those asked for; the message names it."""


@contextlib.contextmanager
def cache_errors() -> Iterator[None]:
    """Turn what `datasets` raises within the context for a full or read-only cache into an OSError that says so."""
    try:
        yield
    except Exception as error:
        cause = find_cause(error, OSError)
        cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
        in_cache = cause is not None and (cause.filename is None or Path(str(cause.filename)).is_relative_to(cache))
        if cause is None or not (cause.errno in NO_ROOM or (cause.errno in NOT_WRITABLE and in_cache)):
            raise
        raise OSError(
            cause.errno,
            f"the cache of `datasets` cannot be written ({cause.strerror or cause}): make room, or name another folder "
            "in the environment variable HF_DATASETS_CACHE",
            str(cache),
        ) from error


@contextlib.contextmanager
def data_errors(argument: str) -> Iterator[None]:
    """Turn what `datasets` raises within the context into an error of the file or the cache that is at fault.

    Args:
        argument: the argument that names the data.
    """
    try:
        with cache_errors():
            yield
    except Exception as error:
        cause = find_cause(error, DataFileError)
        if cause is None:
            raise
        raise ValueError(f"`{argument}` must have well-formed files, got {cause}.") from error


def find_cause(error: BaseException | None, kind: type[Kind]) -> Kind | None:
    """The first error of this kind among an error and its causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
