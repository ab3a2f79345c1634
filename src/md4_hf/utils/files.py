# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Names that can only be paths; files and folders that are never seen half-written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


SUFFIXES = (
    ".txt",
    ".text",
    ".md",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".ndjson",
    ".parquet",
    ".arrow",
    ".gz",
    ".zip",
    ".zst",
)
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json", "adapter_model.safetensors")


def looks_like_path(name: str | os.PathLike) -> bool:
    """Whether a name that does not exist here can only have been meant as a path; a Hub id has at most one slash."""
    name = os.fspath(name).replace(os.sep, "/")
    return name.startswith((".", "~", "/")) or name.lower().endswith(SUFFIXES) or name.count("/") > 1


def check_can_be_written(name: str, path: str | os.PathLike, is_folder: bool = False):
    """Raise a ValueError that names the argument if no file, or no folder, can be made or changed at its path.

    A file has to lie in a folder that is there, a folder need not.
    """
    place, kind = Path(path).absolute(), "folder" if is_folder else "file"
    if not is_folder and not place.parent.is_dir():
        raise ValueError(f"`{name}` must lie in a folder that is there, got {path}.")
    existing = next(parent for parent in (place, *place.parents) if parent.exists())
    wants_folder = is_folder or existing != place
    if not os.access(existing, os.W_OK) or existing.is_dir() != wants_folder:
        raise ValueError(f"`{name}` must be a {kind} that can be written, got {path}: {existing} cannot.")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Name to write a file under, beside its own, which it gets at the end of the context if all went well."""
    staging = staging_name(Path(path))
    remove_any(staging)
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def is_empty_or_absent(folder: Path) -> bool:
    """Whether a folder may be written at this path without anything being there before."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextlib.contextmanager
def whole_folder(
    folder: str | os.PathLike,
    staging: str | os.PathLike | None = None,
    give_name: Callable[[Path, Path], None] | None = None,
) -> Iterator[Path]:
    """Name to fill a folder under, which gets its own at the end of the context if all went well.

    Nothing is under the first name when the context begins, whatever an interrupted run or another program had left
    there, nor when it has ended, whether it failed or not.

    Args:
        folder: Its own name, of an empty folder or none.
        staging: Its first name, on the same file system; hidden and beside its own by default.
        give_name: Called with both names to put the filled folder in its place, if that is more than to rename it.
    """
    folder = Path(folder)
    staging = Path(staging or staging_name(folder))
    remove_any(staging)
    try:
        yield staging
        (give_name or _rename_folder)(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_files(source: Path, target: Path):
    """Move the files of a folder into another, the weights last: where they are, all files are.

    Weights of an earlier model that these do not replace go first: a loader would open them, or look for their parts.
    """
    brings_weights = any(path for pattern in WEIGHTS for path in source.glob(pattern))
    for path in [path for pattern in WEIGHTS for path in target.glob(pattern) if brings_weights]:
        if not (source / path.name).exists():
            path.unlink()
    for path in sorted(source.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(path, target / path.name)


def remove_any(path: Path):
    """Remove a file, a link or a folder with all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def staging_name(path: Path) -> Path:
    """Hidden name beside a path, for what is not complete yet."""
    return path.with_name(f".{path.name}.in-progress")


def _rename_folder(staging: Path, folder: Path):
    if folder.is_dir():
        folder.rmdir()
    os.replace(staging, folder)


def write_whole(path: str | os.PathLike, text: str):
    """Write a file of UTF-8 text that is never seen half-written."""
    with whole_file(path) as staging:
        staging.write_text(text, encoding="utf-8")
