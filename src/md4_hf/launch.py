# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""What has to hold before several processes begin to train together, and one folder for one run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import Trainer, TrainingArguments


LOCK = ".lock"


def check_launch(trainer: Trainer, expected_processes: int | None = None):
    """Refuse a launch that is not what was asked for.

    Args:
        trainer: Just made.
        expected_processes: How many processes must take part; None to take what the launcher started.

    Raises:
        ValueError: If processes were started that do not know of each other, or others than expected; or if FSDP or
            DeepSpeed was asked for and is not active.
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
    _check_backend(args)
    for name, asked, active in (
        ("FSDP", args.fsdp or _is_set("ACCELERATE_USE_FSDP"), trainer.is_fsdp_enabled),
        ("DeepSpeed", args.deepspeed or _is_set("ACCELERATE_USE_DEEPSPEED"), trainer.is_deepspeed_enabled),
    ):
        if asked and not active:
            raise ValueError(
                f"{name} must be active where it is asked for, got {args.world_size} process(es) on {args.device} "
                "without it: it needs an accelerator per process. On processors, use scripts/configs/cpu_2proc.yaml."
            )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def _check_backend(args: TrainingArguments):
    if args.world_size == 1 or not torch.distributed.is_initialized():
        return
    backend = str(torch.distributed.get_backend())
    if args.device.type == "cpu" and backend == "nccl":
        raise ValueError(f'`ddp_backend` must be "gloo" on processors, got {backend!r}.')
    if args.device.type == "cuda" and backend == "gloo":
        raise ValueError(f'`ddp_backend` must be "nccl" on GPUs (gloo copies through the host), got {backend!r}.')


def check_agreement(args: TrainingArguments, facts: Mapping[str, Any]):
    """Refuse processes that were started with different values.

    Args:
        args: Of the run.
        facts: What must be the same on all processes, by name.

    Raises:
        ValueError: On all of them, naming the first fact that differs and each process's value.
    """
    if args.world_size == 1:
        return
    everyone: list[Any] = [None] * args.world_size
    torch.distributed.all_gather_object(everyone, dict(facts))
    for name in facts:
        values = [other[name] for other in everyone]
        if any(value != values[0] for value in values):
            raise ValueError(f"`{name}` must be the same on all processes, got {values}.")


def on_first_process(args: TrainingArguments, action: Callable[[], Any]) -> Any:
    """Do something on the first process; all return its result, or raise its error."""
    outcome: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    if args.world_size > 1:
        torch.distributed.broadcast_object_list(outcome, device=args.device)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextlib.contextmanager
def locked(args: TrainingArguments) -> Iterator[None]:
    """Within the context no other run can write to `args.output_dir`; the system frees it when the process dies.

    Raises:
        ValueError: On all processes, if another run has the folder.
    """
    lock = FileLock(Path(args.output_dir) / LOCK)

    def acquire():
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"`output_dir` must not be in use by another run, got {args.output_dir}. (If that run is to be dead, "
                "look for its processes: one may have been left over.)"
            ) from None

    on_first_process(args, acquire)
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows does not remove what is open; the file may stay
                Path(lock.lock_file).unlink()
            lock.release()
