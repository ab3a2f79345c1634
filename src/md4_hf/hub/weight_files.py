# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Weights of published checkpoints: read one tensor at a time, each once, so that none is lost or held twice."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..core.modeling_md4_base import check_shards
from ..utils.errors import file_errors_as_value_errors


PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_RULE = "pickled ones are opened, for tensors alone, only with `allow_pickle` (--allow_pickle)"
NUM_SHOWN = 8  # keys that an error lists


class WeightFiles:
    """Tensors of a checkpoint by key, which remember the ones that were taken.

    Args:
        shapes: Shape of each tensor, in the order of the file.
        read: Function that gives a tensor by its key.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]):
        self.shapes, self._read, self._left = dict(shapes), read, dict.fromkeys(shapes)

    def without_data(self) -> WeightFiles:
        """The same keys and shapes on the meta device, to see at once whether they fit."""
        return WeightFiles(self.shapes, lambda key: torch.empty(self.shapes[key], device="meta"))

    def take(self, key: str, *shape: int) -> Tensor:
        """Read a tensor of this shape, for the only time; a ValueError if it is missing or has another shape."""
        if key not in self._left:
            raise ValueError(f"`checkpoint` must hold {key!r}, got {shown(self._left)}.")
        if self.shapes[key] != shape:
            raise ValueError(f"`checkpoint` must hold {key!r} of shape {shape} by its config, got {self.shapes[key]}.")
        del self._left[key]
        return self._read(key)

    def skip(self, *keys: str):
        """Leave tensors out that carry nothing, if they are there."""
        for key in keys:
            self._left.pop(key, None)

    def check_empty(self):
        """Raise a ValueError if a tensor was not taken."""
        if self._left:
            raise ValueError(f"`checkpoint` must hold the tensors of its config alone, got also {shown(self._left)}.")


def shown(keys: Iterable[str]) -> str:
    """The first of some keys, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - NUM_SHOWN} more" if len(keys) > NUM_SHOWN else ""
    return f"{keys[:NUM_SHOWN]}{more}"


def has_safetensors(path: Path) -> bool:
    """Whether a path is a file, or a folder with a file, in safetensors format."""
    return any(path.glob("*.safetensors")) if path.is_dir() else path.suffix == ".safetensors"


def open_weights(path: Path, allow_pickle: bool = False) -> WeightFiles:
    """Weights of a folder or of one file; of a training checkpoint the averaged ones (EMA), if there are any.

    Args:
        path: Folder with `model.safetensors`, shards and their index, or another single file; or a file.
        allow_pickle: Whether pickled files may be opened where there is none in safetensors format. Nothing but
            tensors and plain containers is made from them.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: For damaged files, for more than one that is meant, and for pickled ones that are not allowed.
    """
    with file_errors_as_value_errors("checkpoint", path):
        if has_safetensors(path):
            return _open_safetensors(_safetensors_of(path))
        return _open_pickle(_pickle_of(path, allow_pickle))


def _safetensors_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = path / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        check_shards(str(path), None)
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [path / name for name in sorted(names)]
    if (path / SAFE_WEIGHTS_NAME).is_file():
        return [path / SAFE_WEIGHTS_NAME]
    return [_only_one(sorted(path.glob("*.safetensors")), path)]


def _open_safetensors(files: list[Path]) -> WeightFiles:
    handles = {}
    for file in files:
        handle = safe_open(file, framework="pt")
        handles |= dict.fromkeys(handle.keys(), handle)
    shapes = {key: tuple(handle.get_slice(key).get_shape()) for key, handle in handles.items()}
    return WeightFiles(shapes, lambda key: handles[key].get_tensor(key))


def _pickle_of(path: Path, allow_pickle: bool) -> Path:
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in PICKLES)
    if not files:
        allowed = "" if allow_pickle else f" in safetensors format; {_RULE}"
        raise FileNotFoundError(f"`checkpoint` must hold weights, got {path}, where there are none{allowed}.")
    if not allow_pickle:
        found = f"got {files[0].name} in {path}; {_RULE}"
        raise ValueError(f"`checkpoint` must hold weights in safetensors format, {found}.")
    return _only_one(files, path)


def _only_one(files: list[Path], path: Path) -> Path:
    if len(files) > 1:
        names = [file.name for file in files]
        raise ValueError(f"`checkpoint` must name one of the files of weights in {path}, got {names}.")
    return files[0]


def _open_pickle(file: Path) -> WeightFiles:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"`checkpoint` must hold tensors alone, got {file}: {error}") from error
    tensors = state_of(content)
    return WeightFiles({key: tuple(x.shape) for key, x in tensors.items()}, tensors.__getitem__)


def state_of(content: Any) -> dict[str, Tensor]:
    """State dict in a pickled file: the file itself, or the part of a training checkpoint, with its average (EMA)."""
    state = content
    if isinstance(content, Mapping):
        state = content.get("state_dict", content.get("model", content))
    if not (isinstance(state, Mapping) and all(isinstance(x, Tensor) for x in state.values())):
        raise ValueError(f"`checkpoint` must hold a state dict, got a {type(state).__name__} of other objects.")
    average = None if state is content else content.get("ema")
    return dict(state) if average is None else _averaged(dict(state), average)


def _averaged(state: dict[str, Tensor], average: Any) -> dict[str, Tensor]:
    """A state dict with the averages of its parameters, which are listed in the order of the state."""
    values = average.get("shadow_params") if isinstance(average, Mapping) else average
    # Buffers and numbers are not averaged.
    names = [key for key, x in state.items() if x.dim() > 0 and not key.endswith("rotary_emb.inv_freq")]
    shapes = [tuple(x.shape) for x in values] if isinstance(values, list) else []
    if shapes != [tuple(state[key].shape) for key in names]:
        raise ValueError(
            f"`checkpoint` must hold an average (EMA) of each of its {len(names)} parameters, got {len(shapes)}."
        )
    return state | dict(zip(names, values, strict=True))
