# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks before several processes train together, agreement among them, and a lock for the folder of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from filelock import FileLock, Timeout
from transformers import Trainer, TrainingArguments

from .hardware import choose_device


logger = logging.getLogger(__name__)

LOCK = ".lock"


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that work together, in the words of `TrainingArguments`."""

    process_index: int = 0
    world_size: int = 1
    device: torch.device | None = None


@contextlib.contextmanager
def joined_processes(device: str | None) -> Iterator[Processes]:
    """Context in which the processes that a launcher has started know of each other; without one, this one alone.

    Each has an accelerator of its own, or the CPU if there is none or `device` says so.

    Raises:
        ValueError: For a `device` that is not there, or one accelerator for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(device=choose_device(device))
        return
    if device not in (None, "cpu"):
        raise ValueError(f"`device` must be left out or cpu with several processes, got {device!r}.")
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
    try:
        yield Processes(state.process_index, state.num_processes, state.device)
    finally:
        state.destroy_process_group()


def check_launch(trainer: Trainer, expected_processes: int | None = None):
    """Raise a ValueError for a launch that is not what was asked for.

    That is one of processes that do not know of each other, of another number than expected (if it is given), or
    without the FSDP or DeepSpeed that was asked for.
    """
    args = trainer.args
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != args.world_size:
        raise ValueError(
            f"`use_cpu` must be set where there is no accelerator: the launcher started {started} processes, and "
            f"each would train by itself, got use_cpu={args.use_cpu}."
        )
    if expected_processes is not None and expected_processes != args.world_size:
        raise ValueError(
            f"`expected_processes` must be the number of processes that take part, {args.world_size}, got "
            f"{expected_processes}. (On processors, `accelerate launch --cpu` starts one process only: use torchrun, "
            "or scripts/configs/cpu_2proc.yaml.)"
        )
    for name, asked, active in (
        ("FSDP", args.fsdp, trainer.is_fsdp_enabled),
        ("DeepSpeed", args.deepspeed, trainer.is_deepspeed_enabled),
    ):
        if (asked or parse_flag_from_env(f"ACCELERATE_USE_{name.upper()}")) and not active:
            raise ValueError(
                f"{name} must be active where it is asked for, got {args.world_size} process(es) on {args.device} "
                "without it: it needs an accelerator per process. On processors, use scripts/configs/cpu_2proc.yaml."
            )
    if args.world_size > 1 and args.device.type == "cuda" and torch.distributed.get_backend() == "gloo":
        raise ValueError('`ddp_backend` must be "nccl" on GPUs (gloo copies through the host), got "gloo".')


def warn_of_one_process(args: TrainingArguments):
    """Say so where `accelerate launch` started one process, although this machine has not just one accelerator."""
    launched = "ACCELERATE_USE_CPU" in os.environ  # set for a single process only
    if launched and args.world_size == 1 and torch.accelerator.device_count() != 1:
        logger.warning(
            "`accelerate launch` started one process. For more, give it --num_processes (on accelerators), or "
            "--config_file scripts/configs/cpu_2proc.yaml."
        )


def check_agreement(args: TrainingArguments, facts: Mapping[str, Any]):
    """Raise a ValueError on all processes if they have different values of a fact, by its name."""
    of_all = gather(dict(facts), args.world_size)
    for name in facts:
        values = [facts_of_rank[name] for facts_of_rank in of_all]
        if any(value != values[0] for value in values):
            raise ValueError(f"`{name}` must be the same on all processes, got {values}.")


def gather(value: Any, num_ranks: int) -> list[Any]:
    """Values of all processes; without a process group, the own value for each."""
    values = [value] * num_ranks
    if num_ranks > 1 and torch.distributed.is_initialized():
        torch.distributed.all_gather_object(values, value)
    return values


def on_first_process(args: TrainingArguments | Processes, action: Callable[[], Any]) -> Any:
    """Do something on the first process; all return its result, or raise its error. All processes have to call it.

    An error that is no ValueError or OSError becomes a RuntimeError that names it.
    """
    outcome: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error if isinstance(error, (ValueError, OSError)) else RuntimeError(f"{error!r}")
    if args.world_size > 1:
        torch.distributed.broadcast_object_list(outcome, device=args.device)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextlib.contextmanager
def entered_by_first_process(args: TrainingArguments, context: AbstractContextManager) -> Iterator[Any]:
    """Context that the first process enters, and leaves when all are done; all get its value, or its error.

    All processes have to take part. An error of one of them in between does not reach the others.
    """
    value = on_first_process(args, context.__enter__)
    try:
        yield value
        gather(None, args.world_size)
    except BaseException:
        if args.process_index == 0:
            context.__exit__(*sys.exc_info())
        raise
    on_first_process(args, lambda: context.__exit__(None, None, None))


class RunLock:
    """Context in which no other run can write to `args.output_dir`; the system frees it when the process dies.

    A process may enter it again while it holds it. All processes raise a ValueError if another run has the folder, or
    if it is not the same folder for all of them.
    """

    def __init__(self, args: TrainingArguments):
        self.args, self.folder = args, Path(args.output_dir)
        self._lock = FileLock(self.folder / LOCK)

    def __enter__(self):
        on_first_process(self.args, self._acquire)
        if self.args.world_size > 1:
            self._check_shared()

    def __exit__(self, *error):
        if self._lock.is_locked and self._lock.lock_counter == 1:
            with contextlib.suppress(OSError):  # Windows does not remove what is open; the file may stay
                Path(self._lock.lock_file).unlink()
        self._lock.release()

    def _acquire(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"`output_dir` must not be in use by another run, got {self.folder}. (If that run is to be dead, look "
                "for its processes: one may have been left over.)"
            ) from None

    def _check_shared(self):
        mark = self.folder / f"{LOCK}-{on_first_process(self.args, lambda: secrets.token_hex(8))}"
        on_first_process(self.args, mark.touch)
        seen = gather(mark.exists(), self.args.world_size)
        on_first_process(self.args, mark.unlink)
        if not all(seen):
            raise ValueError(
                f"`output_dir` must be a folder that all nodes share, got {self.folder}, which processes "
                f"{[rank for rank, found in enumerate(seen) if not found]} do not see."
            )


def print_on_first(args: TrainingArguments, text: str):
    """Print on the first process, at once."""
    if args.process_index == 0:
        print(text, flush=True)
