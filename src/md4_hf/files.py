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
