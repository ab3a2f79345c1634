# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or not there: a manifest with checksums, and the search for the newest whole one."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
BYTES_AT_A_TIME = 2**22


def commit(staged: Path, final: Path):
    """Give a complete folder its name: everything on disk, then a manifest, then one renaming.

    A process that dies at any moment leaves the folder whole under its final name, or not there.

    Args:
        staged: The folder, on the same file system as `final`.
        final: Its name; must not exist.
    """
    files = {}
    for path in _files(staged):
        _sync(path)
        files[path.relative_to(staged).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in {path.parent for path in _files(staged)} | {manifest, staged}:
        _sync(path)
    os.replace(staged, final)
    _sync(final.parent)


def what_is_wrong(folder: str | os.PathLike) -> str | None:
    """Why a checkpoint cannot be used: its manifest is missing or damaged, or a file is; None if it is whole."""
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so that it may be incomplete"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"its {MANIFEST} names {name!r}, which is outside"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes in place of {size}"
        if _digest(path) != digest:
            return f"{name} does not have its checksum"
    return None


def newest_whole(run_dir: str | os.PathLike) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest whole checkpoint of a run, None if there is none; and those that are newer, each with its reason."""
    skipped = []
    for folder in sorted(_checkpoints(Path(run_dir)), key=step_of, reverse=True):
        reason = what_is_wrong(folder)
        if reason is None:
            return folder, skipped
        skipped.append((folder, reason))
    return None, skipped


def checkpoint_to_resume(asked: str | os.PathLike | bool | None, run_dir: str | os.PathLike) -> str | None:
    """The folder to go on from, None to start anew.

    Args:
        asked: A folder; True or "latest" for the newest whole checkpoint of the run; "auto" for that or, where there is
            none, None; None or False to start anew.
        run_dir: The run's folder.

    Raises:
        ValueError: If the folder asked for is not a whole checkpoint, or the run has none.
    """
    if asked is None or asked is False:
        return None
    if asked is True:
        asked = "latest"
    if asked not in ("latest", "auto"):
        reason = what_is_wrong(asked) if Path(asked).is_dir() else "there is no such folder"
        if reason is not None:
            raise ValueError(f"`resume_from_checkpoint` must be a whole checkpoint, got {asked}: {reason}.")
        return str(asked)
    found, skipped = newest_whole(run_dir)
    for folder, reason in skipped:
        logger.warning(f"Passing over {folder}: {reason}.")
    if found is None and asked != "auto":
        raise ValueError(f"`resume_from_checkpoint` must find a whole checkpoint: there is none in {run_dir}.")
    return None if found is None else str(found)


def step_of(checkpoint: Path) -> int:
    """The number in the name of a checkpoint."""
    return int(CHECKPOINT_NAME.fullmatch(checkpoint.name).group(1))


def _checkpoints(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        return []
    return [path for path in run_dir.iterdir() if path.is_dir() and CHECKPOINT_NAME.fullmatch(path.name)]


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BYTES_AT_A_TIME):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path):
    """Bring a file, or the names in a folder, to the disk; folders where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
