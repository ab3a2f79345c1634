# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Opens trained models by folder or Hub id: full models, adapters with their base, and pipelines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from ..core.configuration_md4 import MD4Config
from ..core.modeling_md4 import MD4ForMaskedDiffusion
from ..core.modeling_md4_base import has_tokenizer
from ..data.tokenizers import load_tokenizer
from ..utils.errors import file_errors_as_value_errors
from ..utils.files import looks_like_path
from ..utils.hardware import choose_device
from ..utils.hub_access import MODEL_FILES, check_model_name, from_hub
from ..utils.progress_bars import without_progress_bars
from .adapters import load_adapter
from .model_classes import model_class_of
from .shards import has_shards


BYTES_WITHOUT_BAR = 2**30  # of weights, which are loaded in about a second


def load_model(
    name_or_path: str,
    *,
    base: str | None = None,
    merge_adapter: bool = True,
    is_trainable: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
):
    """Open a model, or an adapter together with the base model that it was trained on.

    Args:
        name_or_path: Folder or Hub id of an MD4 model or of a PEFT adapter for one.
        base: Base model in place of the one that the adapter names, for instance if that has moved.
        merge_adapter: Whether to add the adapter to the base's weights, which gives an ordinary model.
        is_trainable: Whether an adapter that is not merged trains further.
        revision, token: Revision and access token of the Hub.
        kwargs: Passed on to `from_pretrained` of the (base) model.

    Returns:
        An `MD4ForMaskedDiffusion`, or with `merge_adapter=False` the `PeftModel` of an adapter; in evaluation mode.

    Raises:
        ConnectionError: If the Hub cannot be reached, and the cache has not all files.
        FileNotFoundError: If the folder holds neither a model nor an adapter.
        ValueError: If it is a model of another type, or an adapter for another base; and for damaged files.
    """
    adapter = adapter_base(name_or_path, revision=revision, token=token)
    if adapter is None:
        if base is not None:
            raise ValueError(f"`base` must be left out where `model` is no adapter, got {base!r}.")
        return _load_full_model(name_or_path, revision=revision, token=token, **kwargs)
    if merge_adapter and is_trainable:
        raise ValueError(
            "`is_trainable` must be False where the adapter is merged, got True: add merge_adapter=False."
        )
    if base is None:
        model = _load_base(name_or_path, adapter, token=token, **kwargs)
    else:
        check_model_name(base, "base")
        model = load_model(base, token=token, **kwargs)
    model = load_adapter(model, name_or_path, revision=revision, token=token, is_trainable=is_trainable)
    if not merge_adapter:
        return model
    with file_errors_as_value_errors("adapter", name_or_path):
        merged = model.merge_and_unload()
    merged.name_or_path = name_or_path  # the base that an adapter on top of this one names
    return merged


def _load_base(adapter: str, name: str, **kwargs):
    """The base of an adapter, which may be an adapter too; an error for one that is not there says what to do."""
    found = _find_folder(adapter, name)
    rule = f"`base` must be given: the adapter {adapter} names its base model {name}, which"
    if found is None and looks_like_path(name):
        raise FileNotFoundError(f"{rule} is not there.")
    if found is not None and Path(found).resolve() == Path(adapter).resolve():
        raise ValueError(f"{rule} is the adapter itself.")
    if found is not None:
        return load_model(found, **kwargs)
    try:
        return load_model(name, **kwargs)
    except OSError as error:
        raise FileNotFoundError(f"{rule} is neither a folder here nor found on the Hub. {error}") from error


def _find_folder(adapter: str, name: str) -> str | None:
    """The folder of a model that an adapter names; a relative path may start here, at the adapter or one above it.

    A path that leads nowhere may stand for the folder of its last name beside the adapter: both have moved together.
    What may be a Hub id, such as runs/base, does so only if the adapter is in a folder of its first name.
    """
    path, folder = Path(name).expanduser(), Path(adapter).expanduser().resolve()
    candidates = [path]
    if folder.is_dir():
        candidates += [start / path for start in (folder, folder.parent)]
        is_beside = looks_like_path(name) or path.parent.name == folder.parent.name
        if is_beside and path.name != folder.name:
            candidates.append(folder.parent / path.name)
    models = (path for path in candidates if any((path / file).is_file() for file in MODEL_FILES))
    return next(map(str, models), None)


def adapter_base(name_or_path: str, *, revision: str | None = None, token: str | bool | None = None) -> str | None:
    """The base model that an adapter's folder or Hub id names; None if it holds no adapter. Errors as `load_model`."""
    check_model_name(name_or_path)
    if Path(name_or_path, CONFIG_NAME).is_file():
        return None
    with from_hub(name_or_path):
        config_file = find_adapter_config_file(name_or_path, revision=revision, token=token)
    if config_file is None:
        return None
    with file_errors_as_value_errors("adapter", name_or_path):
        base = json.loads(Path(config_file).read_text(encoding="utf-8"))["base_model_name_or_path"]
    if not isinstance(base, str):
        raise ValueError(f"`adapter` must name its base model, got {base!r} in {name_or_path}.")
    return base


def _load_full_model(name_or_path: str, **kwargs) -> MD4ForMaskedDiffusion:
    if has_shards(name_or_path) and not any(Path(name_or_path).glob("*.safetensors")):
        raise ValueError(
            f"`model` must be whole, got the shards of a checkpoint in {name_or_path}: write it whole with "
            f"`md4 export {name_or_path} FOLDER`."
        )
    config = load_config(name_or_path, **{name: kwargs[name] for name in ("revision", "token") if name in kwargs})
    if "MD4Model" in (config.architectures or ()):
        raise ValueError(f"`model` must be an MD4ForMaskedDiffusion, got an MD4Model in {name_or_path}.")
    loads_at_once = 0 < bytes_of_weights(name_or_path) < BYTES_WITHOUT_BAR
    bars = without_progress_bars() if loads_at_once else contextlib.nullcontext()
    with bars, from_hub(name_or_path), file_errors_as_value_errors("model", name_or_path):
        model = model_class_of(config).from_pretrained(name_or_path, **kwargs)
    model.config.return_dict = True  # all that opens models here reads outputs by name
    return model


def bytes_of_weights(folder: str) -> int:
    """Size of the weights in a folder; 0 where there are none, or for a Hub id."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def load_config(name_or_path: str, *, argument: str = "model", **hub: Any) -> MD4Config:
    """The configuration of a model's folder or Hub id; errors as those of `load_model`, of this argument."""
    check_model_name(name_or_path, argument)
    with from_hub(name_or_path), file_errors_as_value_errors(argument, name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    if not isinstance(config, MD4Config):
        raise ValueError(f"`{argument}` must be an MD4 model, got a {config.model_type!r} in {name_or_path}.")
    return config


def make_pipeline(model: MD4ForMaskedDiffusion, tokenizer=None, scheduler=None, image_processor=None):
    """Make a pipeline; the default scheduler has the model's masking schedule and the paper's grid for it.

    That of an autoregressive baseline takes the same arguments, and draws token by token.
    The default image processor has the size, channels and levels of the model, where images of these can be shown.
    """
    from ..core.image_processing_md4 import MODES, WHITE, MD4ImageProcessor
    from ..core.pipeline_baselines import CausalPipeline, DiscretePipeline
    from ..core.pipeline_masked_diffusion import MaskedDiffusionPipeline

    config = getattr(model, "config", None)
    if not hasattr(config, "masking_schedule"):
        raise ValueError(
            f"`model` must be an MD4 model, got {type(model).__name__}: another denoiser goes into "
            "`MaskedDiffusionPipeline(model, scheduler, tokenizer)`."
        )
    scheduler = scheduler or default_scheduler(config)
    if config.is_image and image_processor is None:
        (channels, *size), num_levels = config.sample_shape, config.vocab_size - 1
        if channels in MODES and num_levels <= WHITE + 1:
            image_processor = MD4ImageProcessor(size=size, num_channels=channels, num_levels=num_levels)
    pipelines = {kind.model_class: kind for kind in (MaskedDiffusionPipeline, CausalPipeline, DiscretePipeline)}
    pipeline_class = pipelines.get(getattr(config, "model_class", ""), MaskedDiffusionPipeline)
    return pipeline_class(model, scheduler, tokenizer, image_processor)


def default_scheduler(config: MD4Config):
    """Scheduler with the masking schedule of a model's configuration and the paper's grid for it."""
    from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler

    return MaskedDiffusionScheduler.for_model(config)


def load_pipeline(
    name_or_path: str,
    *,
    base: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
):
    """Open the pipeline of a folder or Hub id that holds a pipeline, a model or an adapter.

    A model of text without files of a tokenizer gets a pipeline for ids.

    Args:
        name_or_path, base, revision, token: As in `load_model`.
        dtype: Precision of the weights; that of the files by default.
        device: Device of the model; the accelerator if there is one by default.

    Raises as `load_model`; and a ValueError for a device that is not there.
    """
    from ..core.image_processing_md4 import MD4ImageProcessor

    device = choose_device(device)
    hub: dict[str, Any] = {"revision": revision, "token": token}
    model = load_model(name_or_path, base=base, dtype=dtype, **hub)
    # A model without a scheduler or image processor of its own gets the default one for it.
    scheduler = load_scheduler(name_or_path, **hub)
    tokenizer = image_processor = None
    if model.config.is_image:
        file_name = "preprocessor_config.json"
        opened = (MD4ImageProcessor.from_pretrained, "image_processor", file_name)
        image_processor = _load_if_there(*opened, name_or_path, hub)
    else:
        tokenizer = _tokenizer_beside(name_or_path, base, hub)
    return make_pipeline(model, tokenizer, scheduler, image_processor).to(device)


def _tokenizer_beside(name_or_path: str, base: str | None, hub: dict[str, Any]):
    """The tokenizer of a model's folder or Hub id; of an adapter without one its base's. None if there is none."""
    with from_hub(name_or_path):
        if has_tokenizer(name_or_path, hub):
            return load_tokenizer(name_or_path, **hub)
    named = adapter_base(name_or_path, **hub)
    if named is None:
        return None
    found = base or _find_folder(name_or_path, named) or named
    return _tokenizer_beside(found, None, {**hub, "revision": None})


def load_scheduler(name_or_path: str, *, revision: str | None = None, token: str | bool | None = None):
    """The scheduler that is saved with a model, or None where there is none; arguments as in `load_model`."""
    hub = {"revision": revision, "token": token}
    return _load_if_there(_open_scheduler, "scheduler", "scheduler_config.json", name_or_path, hub)


def _open_scheduler(folder: Path):
    """Scheduler of a folder: of the class of diffusers that its file names, else a `MaskedDiffusionScheduler`."""
    import diffusers

    from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler

    name = MaskedDiffusionScheduler.load_config(folder).get("_class_name")
    named = getattr(diffusers, name, None) if isinstance(name, str) else None
    is_scheduler = isinstance(named, type) and issubclass(named, diffusers.SchedulerMixin)
    return (named if is_scheduler else MaskedDiffusionScheduler).from_pretrained(folder)


def _load_if_there(open_folder: Callable[[Path], Any], name: str, file_name: str, name_or_path: str, hub: dict):
    """A component of a folder or Hub id, opened where this file of it is; None where there is no such file."""
    with from_hub(name_or_path):
        file = cached_file(name_or_path, file_name, **hub, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    with file_errors_as_value_errors(name, name_or_path):
        return open_folder(Path(file).parent)
