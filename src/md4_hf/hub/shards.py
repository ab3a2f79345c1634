# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The model of a checkpoint whose weights are in shards: of FSDP2, or of DeepSpeed with its float32 masters.

Both formats pickle. Nothing but the classes named here is ever made from such a file.
"""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate.utils import patch_environment
from torch.distributed.checkpoint.metadata import Metadata
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers.utils import CONFIG_NAME

from ..core.configuration_md4 import MD4Config
from ..core.modeling_md4_base import MD4PreTrainedModel
from .model_classes import model_class_of


FSDP_FOLDER = "pytorch_model_fsdp_0"
DEEPSPEED_FOLDERS = "global_step*"
DCP_NAMES = {
    "torch.distributed.checkpoint.metadata": "BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex "
    "StorageMeta TensorProperties TensorStorageMetadata _MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.serialization": "_get_layout",
    "torch": "Size float32 bfloat16 float16",
    "pathlib": "PosixPath WindowsPath",
    "collections": "OrderedDict",
}


def has_shards(folder: str | os.PathLike) -> bool:
    """Whether a folder is a training checkpoint with its weights, or their float32 masters, in shards."""
    folder = Path(folder)
    return (folder / FSDP_FOLDER).is_dir() or any(folder.glob(DEEPSPEED_FOLDERS))


def load_shards(folder: str | os.PathLike) -> MD4PreTrainedModel:
    """Put the model of a checkpoint of FSDP2 (`SHARDED_STATE_DICT`) or DeepSpeed together, on one process, in float32.

    Raises:
        ValueError: If the files are damaged, do not fit the checkpoint's configuration, or hold anything but weights.
        ImportError: For DeepSpeed's, if deepspeed is not installed.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"`checkpoint` must have its {CONFIG_NAME}, got {folder}.")
    config = MD4Config.from_pretrained(folder)
    model = model_class_of(config)(config).float()
    try:
        if (folder / FSDP_FOLDER).is_dir():
            weights = model.state_dict()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as intended here
                dcp.load({"model": weights}, storage_reader=_Reader(folder / FSDP_FOLDER), no_dist=True)
        else:
            weights = _deepspeed_weights(folder)
        model.load_state_dict(weights)
    except (dcp.api.CheckpointException, pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError) as error:
        raise ValueError(f"`checkpoint` must hold the whole model in its shards, got {folder}: {error}") from error
    return model.eval()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if name not in DCP_NAMES.get(module, "").split():
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is no part of a checkpoint")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """Torch's reader, restricted to the classes of a checkpoint and to the files of its folder."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        """The index of the checkpoint, checked."""
        folder = Path(self.path)
        with open(folder / ".metadata", "rb") as file:
            metadata = _Unpickler(file).load()
        for stored in metadata.storage_data.values():
            if Path(stored.relative_path).name != stored.relative_path:
                raise pickle.UnpicklingError(f"it names the file {stored.relative_path!r}, which is outside")
        return metadata


def _deepspeed_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The float32 masters of ZeRO-1, -2 or -3, which DeepSpeed puts together."""
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise ImportError("The shards of DeepSpeed need deepspeed: pip install 'md4_hf[deepspeed]'") from error
    allowed = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in allowed}
    for path in sorted(folder.glob(f"{DEEPSPEED_FOLDERS}/*.pt")):
        unknown = sorted(set(get_unsafe_globals_in_checkpoint(path)) - names)
        if unknown:
            others = ", ".join(unknown)
            raise pickle.UnpicklingError(f"{path.name} refers to {others}, which is no part of a checkpoint")
    # Within the patch `torch.load` makes no objects but weights, whatever its caller says.
    with safe_globals(allowed), patch_environment(torch_force_weights_only_load="1"):
        return get_fp32_state_dict_from_zero_checkpoint(str(folder))
