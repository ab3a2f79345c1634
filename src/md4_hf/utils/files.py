# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Files: names that can only be paths, and files that are never seen half-written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


SUFFIXES = (".txt", ".text", ".md", ".csv", ".json", ".jsonl", ".parquet", ".gz", ".zip", ".zst")


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist here can only have been meant as a path; a Hub id has at most one slash."""
    return (
        name.startswith((".", "~", "/"))
        or name.endswith(SUFFIXES)
        or name.count("/") > 1
        or (os.sep != "/" and os.sep in name)
    )


def check_can_be_written(name: str, path: str | os.PathLike, is_folder: bool = False):
    """Raise a ValueError that names the argument if no file, or no folder, can be made or changed at its path."""
    path, kind = Path(path).absolute(), "folder" if is_folder else "file"
    existing = next(place for place in (path, *path.parents) if place.exists())
    wants_folder = is_folder or existing != path
    if not os.access(existing, os.W_OK) or existing.is_dir() != wants_folder:
        raise ValueError(f"`{name}` must be a {kind} that can be written, got {path}: {existing} cannot.")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """The name to write a file under, beside its own, which it gets at the end of the context if all went well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.in-progress")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, text: str):
    """Write a file of UTF-8 text that is never seen half-written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
