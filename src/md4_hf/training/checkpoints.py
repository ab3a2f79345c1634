# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are complete or not there: a manifest with checksums, and the search for the newest one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import logging

from ..utils.files import whole_folder


logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
STAGING_FOLDER = ".checkpoint-in-progress"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
BYTES_AT_A_TIME = 2**22
DIGESTS_AT_ONCE = 8
# Kinds of training, and where a checkpoint of each has its optimizer.
PLAIN = "plain or DDP"
FSDP_WHOLE = "FSDP with whole checkpoints"
FSDP_SHARDED = "FSDP with sharded checkpoints"
DEEPSPEED = "DeepSpeed"
OPTIMIZERS = {
    PLAIN: "optimizer.pt",
    FSDP_WHOLE: "optimizer.bin",
    FSDP_SHARDED: "optimizer_0",
    DEEPSPEED: "global_step*",
}


@contextlib.contextmanager
def staged_checkpoint(checkpoint: Path) -> Iterator[Path]:
    """Name to write a checkpoint under, which gets its own at the end of the context if all went well.

    Args:
        checkpoint: Its own name; replaced if it is there.
    """

    def give_name(staging: Path, checkpoint: Path):
        shutil.rmtree(checkpoint, ignore_errors=True)
        commit(staging / checkpoint.name, checkpoint)

    with whole_folder(checkpoint, checkpoint.with_name(STAGING_FOLDER), give_name) as staging:
        yield staging / checkpoint.name


def commit(staged: Path, final: Path):
    """Give a complete folder its name: everything on disk, then a manifest, then one renaming.

    A process that dies at any moment leaves the folder whole under its final name, or not there.

    Args:
        staged: The folder, on the same file system as `final`.
        final: Its name; must not exist.
    """
    paths = list(_files(staged))
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
    for path in {path.parent for path in _files(staged)} | {manifest, staged}:
        _sync(path)
    os.replace(staged, final)
    _sync(final.parent)


def checkpoint_problem(folder: str | os.PathLike, digests: bool = True) -> str | None:
    """Reason why a checkpoint cannot be used, a missing or damaged file or manifest; None if there is none.

    Args:
        folder: The checkpoint.
        digests: Whether to read the files and compare their checksums; else only their sizes are compared.
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


def newest_whole(run_dir: str | os.PathLike, digests: bool = True) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest whole checkpoint of a run, None if there is none; and newer ones, each with what is wrong with it."""
    skipped = []
    for folder in sorted(_checkpoints(Path(run_dir)), key=step_of, reverse=True):
        reason = checkpoint_problem(folder, digests)
        if reason is None:
            return folder, skipped
        skipped.append((folder, reason))
    return None, skipped


def checkpoint_to_resume(
    asked: str | os.PathLike | bool | None, run_dir: str | os.PathLike, *, digests: bool = True
) -> str | None:
    """Checkpoint to go on from, None to start anew.

    Args:
        asked: A folder; True or "latest" for the newest whole checkpoint of the run; "auto" for that or, where there is
            none, None; None or False to start anew.
        run_dir: The run's folder.
        digests: As for `checkpoint_problem`.

    Raises:
        ValueError: If the folder asked for is not a whole checkpoint, or the run has none.
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
    """Refuse a checkpoint from which a training would go on with a fresh optimizer or other random states.

    Args:
        checkpoint: Its folder.
        kind: Kind of the training that is to go on, a key of `OPTIMIZERS`.
        world_size: Number of its processes.

    Raises:
        ValueError: If the state of the optimizer, the learning rate or a random generator is missing; or if another
            kind of training, or under DeepSpeed another number of processes, wrote the checkpoint.
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
        f"{folder} was written by {processes} process(es), and {world_size} go on: times, masks and the order of the "
        "data are as they would have been, but dropout is drawn anew."
    )


def stored_tensors(folder: str | os.PathLike, names: Iterable[str]) -> Iterator[torch.Tensor]:
    """Tensors of a saved model or adapter, one read after the other.

    Args:
        folder: With one or several safetensors files.
        names: Names of the tensors.

    Raises:
        ValueError: If a tensor is not there.
    """
    files = [safe_open(path, framework="pt") for path in sorted(Path(folder).glob("*.safetensors"))]
    file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name in names:
        if name not in file_of:
            raise ValueError(f"`resume_from_checkpoint` must hold the tensor {name!r}: it is not in {folder}.")
        yield file_of[name].get_tensor(name)


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
    """Write a file, or the names in a folder, through to the disk; folders only where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
