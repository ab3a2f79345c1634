# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""State of a training in a checkpoint's files: read with an error that names the file, and never as a pickle."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import numpy as np
import torch
from huggingface_hub.dataclasses import type_validator
from safetensors import safe_open
from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import SAFE_WEIGHTS_NAME


STREAM_FILES = "stream-rank-*.json"  # positions of streams, one file for each process
RUNNING_SUMS = "running_sums.json"
SIZES_RULE = "`resume_from_checkpoint` must have weights of the sizes of the model in training"
NUMBER = int | float
TRAINER_STATE = {
    **{name: NUMBER if kind in (int, float) else kind for name, kind in get_type_hints(TrainerState).items()},
    **{"eval_steps": NUMBER | None, "best_metric": NUMBER | None, "trial_params": dict | None},
    **{"num_input_tokens_seen": int, "log_history": list[dict]},
}
SCHEDULER = {"_step_count": int, "base_lrs": list[NUMBER], "_last_lr": list[NUMBER]}
SCALER = dict.fromkeys(("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"), NUMBER)
SUMS = {"loss": list[NUMBER], "nelbo": list[NUMBER], "num_steps": int, "num_left_out": int}
STREAM = {"num_processes": int, "fingerprint": Any, "position": Any}
RANDOM = {"python": tuple, "numpy": tuple, "cpu": torch.Tensor}


@contextlib.contextmanager
def state_errors(path: Path) -> Iterator[None]:
    """Turn what is raised within the context on a damaged file into a ValueError that names it."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"`resume_from_checkpoint` must hold a well-formed training state, got {path}, which cannot be used: "
            f"{type(error).__name__}: {error}"
        ) from error


def read_state(path: Path, required: Mapping[str, Any], optional: Mapping[str, Any] = MappingProxyType({})) -> dict:
    """Values by name of a JSON file, or of one of torch's, without code in it.

    Args:
        path: The file; its name ends in .json if it is one.
        required: Types of the values that have to be there.
        optional: Types of values that may be there; others are not looked at.

    Raises:
        ValueError: If the file cannot be read so.
    """
    with state_errors(path):
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
        else:
            with safe_globals():
                values = torch.load(path, map_location="cpu", weights_only=True)
        type_validator("the state", values, dict)
        for name in [*required, *(optional.keys() & values.keys())]:
            type_validator(name, values[name], required.get(name, optional.get(name)))
    return values


def step_reached(checkpoint: str | Path) -> int:
    """Number of optimizer steps before a checkpoint, whatever its name is."""
    return read_state(Path(checkpoint, TRAINER_STATE_NAME), {"global_step": int})["global_step"]


def read_running_sums(checkpoint: Path) -> dict[str, Any] | None:
    """Sums since the last line of the log, for each process; None from a checkpoint that has none."""
    path = checkpoint / RUNNING_SUMS
    if not path.is_file():
        return None
    sums = read_state(path, SUMS)
    with state_errors(path):
        if not len(sums["loss"]) == len(sums["nelbo"]) > 0:
            raise ValueError("it must have a number for each process.")
    return sums


@contextlib.contextmanager
def weight_errors(checkpoint: str) -> Iterator[None]:
    """Turn errors for weights of other sizes or modules, of torch in many lines, into a ValueError with the first."""
    try:
        yield
    except KeyError as error:  # of peft, for a module of the adapter that is trained in full and not stored
        raise ValueError(f"{SIZES_RULE}, got {checkpoint}, in which {error.args[0]} is not there.") from error
    except RuntimeError as error:
        mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        if not mismatches:
            raise
        raise ValueError(f"{SIZES_RULE}, got {checkpoint}: {mismatches[0]}") from error


def check_weights_fit(checkpoint: Path, model: nn.Module):
    """Refuse a checkpoint whose whole weights are those of a model of other sizes.

    Raises:
        ValueError: Naming a weight and both shapes.
    """
    path = checkpoint / SAFE_WEIGHTS_NAME
    if not path.is_file():  # of an adapter, or in shards
        return
    with state_errors(path), safe_open(path, "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    weights = model.state_dict()
    shared = {weights[name].data_ptr() for name in stored.keys() & weights.keys()}
    own = {
        name: tuple(weight.shape)
        for name, weight in weights.items()
        if name in stored or weight.data_ptr() not in shared  # a tied weight is stored once
    }
    for name in sorted(stored.keys() | own.keys()):
        if stored.get(name) != own.get(name):
            here, there = (shapes.get(name, "not there") for shapes in (own, stored))
            raise ValueError(f"{SIZES_RULE}, got {checkpoint}, in which {name} is {there}; the model's is {here}.")


def check_state_files(checkpoint: Path):
    """Refuse a checkpoint that has values of wrong kinds in one of its files of state.

    Raises:
        ValueError: Naming the file.
    """
    trainer_state = checkpoint / TRAINER_STATE_NAME
    values = read_state(trainer_state, {"global_step": int, "stateful_callbacks": dict}, TRAINER_STATE)
    with state_errors(trainer_state):
        TrainerState(**values)
        values["stateful_callbacks"]["TrainerControl"]
    read_state(checkpoint / "scheduler.pt", {"last_epoch": int}, SCHEDULER)
    read_running_sums(checkpoint)
    for path in checkpoint.glob(STREAM_FILES):
        read_state(path, STREAM)
    if (checkpoint / "scaler.pt").is_file():
        read_state(checkpoint / "scaler.pt", {}, SCALER)
    for path in checkpoint.glob("rng_state*.pth"):
        states = read_state(path, RANDOM)
        with state_errors(path):
            random.Random().setstate(states["python"])
            np.random.RandomState().set_state(states["numpy"])
            torch.Generator().set_state(states["cpu"])
