# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are complete or not there: a manifest with checksums, and the search for the newest one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import logging

from ..utils.files import whole_folder
from .training_state import check_state_files


logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
STAGING_FOLDER = ".checkpoint-in-progress"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
DIGESTS_AT_ONCE = 8
# Kinds of training, and where a checkpoint of each has its optimizer.
PLAIN, DEEPSPEED = "plain or DDP", "DeepSpeed"
FSDP_WHOLE, FSDP_SHARDED = "FSDP with whole checkpoints", "FSDP with sharded checkpoints"
OPTIMIZERS = {
    PLAIN: "optimizer.pt",
    FSDP_WHOLE: "optimizer.bin",
    FSDP_SHARDED: "optimizer_0",
    DEEPSPEED: "global_step*",
}


@contextlib.contextmanager
def staged_checkpoint(checkpoint: Path) -> Iterator[Path]:
    """Name to write a checkpoint under, which gets its own, of an older one too, at the end if all went well."""

    def give_name(staging: Path, checkpoint: Path):
        if checkpoint.exists():
            os.replace(checkpoint, staging / "replaced")
        commit(staging / checkpoint.name, checkpoint)

    with whole_folder(checkpoint, checkpoint.with_name(STAGING_FOLDER), give_name) as staging:
        yield staging / checkpoint.name


def commit(staged: Path, final: Path):
    """Give a complete folder its name: everything on disk, then a manifest, then one renaming.

    A process that dies at any moment leaves the folder whole under its final name, or not there.
    """
    paths = [path for path in sorted(staged.rglob("*")) if path.is_file()]
    for path in paths:
        _sync(path)
    with ThreadPoolExecutor(DIGESTS_AT_ONCE) as pool:
        digests = pool.map(_digest, paths)
    files = {
        path.relative_to(staged).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in {path.parent for path in paths} | {manifest, staged}:
        _sync(path)
    os.replace(staged, final)
    _sync(final.parent)


def checkpoint_problem(folder: str | os.PathLike, digests: bool = True) -> str | None:
    """Reason why a checkpoint cannot be used, a missing or damaged file or manifest; None if there is none.

    With `digests` the files are read and their checksums compared, otherwise only their sizes.
    """
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
        if digests and _digest(path) != digest:
            return f"{name} does not have its checksum"
    return None


def steps_of_checkpoints(run_dir: str | os.PathLike) -> dict[Path, int]:
    """Steps of a run's checkpoints by folder, in their order."""
    names = {
        path: CHECKPOINT_NAME.fullmatch(path.name) for path in Path(run_dir).glob("checkpoint-*") if path.is_dir()
    }
    steps = {path: int(name.group(1)) for path, name in names.items() if name}
    return dict(sorted(steps.items(), key=lambda item: item[1]))


def newest_whole(run_dir: str | os.PathLike, digests: bool = True) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest whole checkpoint of a run, None if there is none; and newer ones, each with what is wrong with it."""
    skipped = []
    for folder in reversed(steps_of_checkpoints(run_dir)):
        reason = checkpoint_problem(folder, digests)
        if reason is None:
            return folder, skipped
        skipped.append((folder, reason))
    return None, skipped


def rotate(run_dir: str | os.PathLike, limit: int | None, kept: Iterable[str | os.PathLike | None]):
    """Remove checkpoints of a run until no more than a limit are left: damaged ones first, then those of early steps.

    Args:
        run_dir: The run's folder.
        limit: Number to leave; None or 0 to remove none.
        kept: Checkpoints that stay in any case, the newest and the best; None for one that there is not.
    """
    folders = steps_of_checkpoints(run_dir)
    excess = len(folders) - limit if limit and limit > 0 else 0
    if excess <= 0:
        return
    protected = {Path(checkpoint).resolve() for checkpoint in kept if checkpoint is not None}
    removable = [folder for folder in folders if folder.resolve() not in protected]
    removable.sort(key=lambda folder: checkpoint_problem(folder, digests=False) is None)
    for folder in removable[:excess]:
        remove(folder)


def remove(checkpoint: Path):
    """Remove a checkpoint; a process that dies meanwhile leaves no part of it under its name."""
    with whole_folder(checkpoint, checkpoint.with_name(STAGING_FOLDER), lambda *_: None) as staging:
        staging.mkdir()
        os.replace(checkpoint, staging / checkpoint.name)


def set_aside(run_dir: str | os.PathLike, step: int):
    """Move the checkpoints of later steps into a folder `abandoned-N`: a run that resumes from this step replaces them.

    Otherwise the run would be resumed from them the next time, and its new checkpoints counted as older.
    """
    later = [folder for folder, reached in steps_of_checkpoints(run_dir).items() if reached > step]
    if not later:
        return
    names = (Path(run_dir) / f"abandoned-{number}" for number in itertools.count(1))
    aside = next(folder for folder in names if not folder.exists())
    aside.mkdir()
    for folder in later:
        os.replace(folder, aside / folder.name)
    logger.warning(f"Set aside {[folder.name for folder in later]} of {run_dir}, after step {step}, in {aside}.")


def checkpoint_to_resume(
    asked: str | os.PathLike | bool | None, run_dir: str | os.PathLike, *, digests: bool = True
) -> str | None:
    """Checkpoint to resume from, None to start anew.

    Args:
        asked: A folder; True or "latest" for the newest whole checkpoint of the run; "auto" for that or, where there is
            none, None; None or False to start anew. A ValueError is raised if there is no whole checkpoint.
        run_dir: The run's folder.
        digests: As for `checkpoint_problem`.
    """
    if asked is None or asked is False:
        return None
    if asked is True:
        asked = "latest"
    if asked not in ("latest", "auto"):
        reason = checkpoint_problem(asked, digests) if Path(asked).is_dir() else "there is no such folder"
        if reason is not None:
            raise ValueError(f"`resume_from_checkpoint` must be a whole checkpoint, got {asked}: {reason}.")
        return str(asked)
    found, skipped = newest_whole(run_dir, digests)
    for folder, reason in skipped:
        logger.warning(f"Passing over {folder}: {reason}.")
    if found is None and asked != "auto":
        raise ValueError(f"`resume_from_checkpoint` must find a whole checkpoint: there is none in {run_dir}.")
    return None if found is None else str(found)


def check_training_state(checkpoint: str | os.PathLike, kind: str, world_size: int):
    """Raise a ValueError for a checkpoint from which a training would continue with a fresh optimizer or random state.

    In it the state of the optimizer, the learning rate or a random generator is missing; or another kind of training
    than `kind` (a key of `OPTIMIZERS`), or under DeepSpeed another number of processes, wrote it.
    """
    folder = Path(checkpoint)
    kinds = [name for name, pattern in OPTIMIZERS.items() if any(folder.glob(pattern))]
    if not kinds:
        raise ValueError(
            f"`resume_from_checkpoint` must hold the optimizer's state (`save_only_model` leaves it out), got {folder}."
            " To begin a new training with its weights, use `--model_name_or_path`."
        )
    if kind not in kinds:
        raise ValueError(
            f"`resume_from_checkpoint` must have been written by a training of the same kind, {kind}, got {folder} of "
            f"{kinds[0]}. To begin a new training with its weights, write them with `md4 export`."
        )
    if not (folder / "scheduler.pt").is_file():
        raise ValueError(f"`resume_from_checkpoint` must hold scheduler.pt, the learning rate's, got {folder}.")
    check_state_files(folder)
    states = {path.name for path in folder.glob("rng_state*.pth")}
    processes = len(states)
    if states != {"rng_state.pth"} and states != {f"rng_state_{rank}.pth" for rank in range(max(processes, 1))}:
        raise ValueError(
            "`resume_from_checkpoint` must hold the random state of each process, rng_state*.pth, got "
            f"{sorted(states)} in {folder}."
        )
    if processes == world_size:
        return
    if kind == DEEPSPEED:
        raise ValueError(
            f"`resume_from_checkpoint` must be of as many processes as train under DeepSpeed, {world_size}, got "
            f"{folder} of {processes}."
        )
    logger.warning(
        f"{folder} was written by {processes} process(es), and {world_size} resume: times, masks and the order of the "
        "data are as they would have been, but dropout is drawn anew."
    )


def stored_tensors(folder: str | os.PathLike, names: Iterable[str]) -> Iterator[torch.Tensor]:
    """Tensors of these names of a saved model or adapter, one read after the other; a ValueError if one is missing."""
    files = [safe_open(path, framework="pt") for path in sorted(Path(folder).glob("*.safetensors"))]
    file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name in names:
        if name not in file_of:
            raise ValueError(f"`resume_from_checkpoint` must hold the tensor {name!r}: it is not in {folder}.")
        yield file_of[name].get_tensor(name)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path):
    """Write a file, or the names in a folder, through to the disk; folders only where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
