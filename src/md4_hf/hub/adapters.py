# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA adapters (PEFT) on masked diffusion models: adding, saving with a record of their base, and loading safely."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open

from ..utils.errors import did_you_mean, file_errors_as_value_errors
from ..utils.hub_access import from_hub
from ..utils.sharding import parameter_names, whole_parameter
from .lora_arguments import LoraArguments, import_peft


BASE_RECORD = "base_model.json"
FINGERPRINT_ROWS, FINGERPRINT_COLUMNS = 64, 16


def is_adapted(model) -> bool:
    """Whether a model is a `PeftModel`."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def add_adapter(model, arguments: LoraArguments):
    """A `PeftModel` whose adapter is all that trains; an adapter that has not been trained changes nothing.

    Raises:
        ImportError: Without peft.
        ValueError: If the model has no layer of the given names.
    """
    peft = import_peft()
    if is_adapted(model):
        raise ValueError(
            "`model` must be without an adapter, got one with: train that further (`load_model(..., "
            "merge_adapter=False, is_trainable=True)`), or put another on the merged model (`load_model(...)`)."
        )
    _check_layers(model, arguments)
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model)
    model = peft.get_peft_model(model, arguments.config(model))
    untie_adapted_weights(model)
    return model


def _check_layers(model, arguments: LoraArguments):
    """Refuse names of layers that the model has not, each by itself: peft passes over them beside others."""
    paths = [f".{path}" for path, _ in model.named_modules()]
    for option in ("target_modules", "modules_to_save"):
        for layer in arguments.layers(option):
            if layer == "all-linear" == arguments.target_modules.strip() and option == "target_modules":
                continue
            if not any(path.endswith(f".{layer}") for path in paths):
                known = {path.rpartition(".")[2] for path in paths}
                raise ValueError(
                    f"`{option}` must be names of layers of the model, got {layer!r}.{did_you_mean(layer, known)}"
                )


def untie_adapted_weights(model):
    """Give the head of a `PeftModel` a weight of its own where it shares the embedding's and an adapter changes either.

    Merged into a shared weight, the change of one would be a change of both, and a trained copy of one would be lost.
    """
    import_peft()  # its version: the adapter may be one of the caller's own
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    is_changed = any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in (embedding, head))
    if not (base.config.tie_word_embeddings and is_changed):
        return
    own = next((getattr(head, name) for name in ("base_layer", "original_module") if hasattr(head, name)), head)
    own.weight = torch.nn.Parameter(own.weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings, base.all_tied_weights_keys = False, {}


def folder_of_adapter(adapter: str) -> str:
    """Folder, within that of a `PeftModel`, in which peft saves the adapter of this name."""
    return "" if adapter == "default" else adapter


def save_base_record(base_fingerprint: str, folder: str | os.PathLike):
    """Record beside an adapter the weights that it belongs to."""
    Path(folder, BASE_RECORD).write_text(json.dumps({"fingerprint": base_fingerprint}) + "\n", encoding="utf-8")


def fingerprint(model) -> str:
    """Hash of a sample of a model's token embedding, which tells its weights from others.

    The embedding is sampled in bfloat16, so that the precision a model is loaded in does not change it. Where the model
    is sharded this is a collective: call it on all ranks.
    """
    embedding = model.get_input_embeddings()
    weight = whole_parameter(getattr(embedding, "original_module", embedding).weight)  # not a trained copy
    rows = torch.linspace(0, len(weight) - 1, FINGERPRINT_ROWS).long()
    sample = weight[rows.to(weight.device), :FINGERPRINT_COLUMNS].to("cpu", torch.bfloat16).view(torch.int16)
    shape = (tuple(weight.shape), model.config.num_hidden_layers, model.config.hidden_size)
    return hashlib.sha256(f"{shape}".encode() + sample.numpy().tobytes()).hexdigest()[:16]


def load_adapter(
    base,
    folder: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    is_trainable: bool = False,
):
    """Put the adapter of a folder or Hub id on its base: a `PeftModel` in evaluation mode, trainable or not.

    Raises:
        ImportError: Without peft.
        OSError: If its weights are not in safetensors format.
        ValueError: If the adapter was trained on other weights, does not fit the base, or has damaged files.
    """
    from transformers.utils import cached_file

    peft, hub = import_peft(), {"revision": revision, "token": token}
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    with from_hub(folder):
        record = cached_file(folder, BASE_RECORD, **hub, **quiet)
    if record is not None:
        with file_errors_as_value_errors("adapter", folder):
            expected = json.loads(Path(record).read_text(encoding="utf-8"))["fingerprint"]
        found = fingerprint(base)
        if expected != found:
            weights = f"other weights ({expected}, the base has {found})"
            raise ValueError(f"`adapter` must belong to the base model, got {folder}, which was trained on {weights}.")
    files = _checked_files(folder, **hub)
    with file_errors_as_value_errors("adapter", folder):
        try:
            model = peft.PeftModel.from_pretrained(base, str(files), is_trainable=is_trainable).eval()
        except RuntimeError as error:
            raise ValueError(f"`adapter` must fit the base model, got {folder}: {error}") from error
    _check_all_there(model, files, folder)
    untie_adapted_weights(model)
    model.active_peft_config.base_model_name_or_path = base.name_or_path  # where it was found
    return model


def _checked_files(folder: str, **hub) -> Path:
    """Folder here of an adapter's files, without those that peft would run.

    These are pickled weights, and a Python module that the configuration names.
    """
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
    from transformers.utils import cached_file

    with from_hub(folder):
        weights = cached_file(folder, SAFETENSORS_WEIGHTS_NAME, **hub, _raise_exceptions_for_missing_entries=False)
        config_file = Path(cached_file(folder, CONFIG_NAME, **hub))
    if weights is None:
        raise OSError(f"`adapter` must have weights in {SAFETENSORS_WEIGHTS_NAME}, got {folder} without.")
    with file_errors_as_value_errors("adapter", folder):
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if config.get("megatron_config") is not None:
            raise ValueError(f"`megatron_config` must be null in an adapter, got {config['megatron_config']!r}.")
    return config_file.parent


def _check_all_there(model, files: Path, folder: str):
    """Refuse an adapter whose file lacks weights, which peft leaves as they were drawn, with a warning."""
    from peft import get_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    with safe_open(files / SAFETENSORS_WEIGHTS_NAME, framework="pt") as weights:
        missing = get_peft_model_state_dict(model, save_embedding_layers=False).keys() - weights.keys()
    if missing:
        raise ValueError(f"`adapter` must have all of its weights, got {folder} without {min(missing)}.")


def stored_names(model) -> list[str]:
    """Names of the trainable parameters of a `PeftModel` in a file of its adapter, in order."""
    names = parameter_names(model)
    stored_name_of = _stored_names_of(model, names, model.active_adapter)
    return [stored_name_of[name] for name in names]


def adapter_parameters(model) -> set[str]:
    """Names of the parameters of all adapters of a `PeftModel`, of those that are not trained too."""
    names = parameter_names(model, trained_only=False)
    return {name for adapter in model.peft_config for name in _stored_names_of(model, names, adapter)}


def _stored_names_of(model, names: list[str], adapter: str) -> dict[str, str]:
    """Name in the file of an adapter of each of its parameters, by its name in the model."""
    from peft import get_peft_model_state_dict

    # peft renames the keys of a state dict and leaves its values alone: each value here is its own name.
    options = {"state_dict": {name: name for name in names}, "save_embedding_layers": False}
    stored = get_peft_model_state_dict(model, adapter_name=adapter, **options)
    return {name: stored_name for stored_name, name in stored.items()}
