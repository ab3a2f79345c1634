# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Convert published checkpoints of discrete diffusion models, each to one flat folder of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, logging

from ..core.configuration_md4 import MD4Config
from ..core.input_checks import match_tokenizer
from ..core.modeling_md4_base import has_tokenizer
from ..data.tokenizers import load_tokenizer
from ..utils.errors import did_you_mean, file_errors_as_value_errors
from ..utils.files import check_can_be_written, is_empty_or_absent, looks_like_path, whole_folder
from ..utils.hub_access import from_hub
from .convert_ddit import BD3LM, MDLM, RADD, SEDD, Duo
from .convert_decoders import Dream, LLaDA
from .convert_md4 import Official
from .convert_transformers import RECOGNISED_BY_KEYS, SDAR, Redressed
from .converted_card import make_converted_card
from .families import Family
from .loading import make_pipeline
from .weight_files import PICKLES, has_safetensors, open_weights, shown


logger = logging.get_logger(__name__)

KINDS = (MDLM, SEDD, RADD, BD3LM, Duo, LLaDA, Dream, SDAR, Official, Redressed)
FAMILIES: dict[str, Family] = {kind.name: kind() for kind in KINDS}
AUTO = "auto"
DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")


def convert(
    checkpoint: str,
    output_dir: str | Path,
    *,
    family: str = AUTO,
    config_file: str | Path | None = None,
    tokenizer: str | None = None,
    mask_token: str | int | None = None,
    predicts_next: bool | None = None,
    allow_pickle: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Write a published checkpoint as one flat folder: model and code, scheduler, tokenizer, and a card.

    Args:
        checkpoint: Folder, file of weights or Hub id; of the official implementation an Orbax folder, or a safetensors
            file of flat parameters.
        output_dir: Folder to write; empty or absent.
        family: A name of `FAMILIES`, or "auto" to recognise the family by its configuration or its keys.
        config_file: JSON file of the configuration, in place of the checkpoint's `config.json`.
        tokenizer: Tokenizer in place of the checkpoint's own, see `load_tokenizer`. Without any, the model is converted
            alone, with a warning.
        mask_token: Mask token or its id, where neither the configuration nor the tokenizer names it.
        predicts_next: Whether the state of the token before predicts a token, of a checkpoint of the family
            "transformers", whose configuration does not say it; by default False.
        allow_pickle: Whether pickled weights may be opened, see `open_weights`.
        revision, token: Revision and access token of the Hub.

    Returns:
        The name of the family.

    Raises:
        FileExistsError: If there is anything in `output_dir`.
        FileNotFoundError: If there is no checkpoint, or a file of it is missing.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If the family is not known, or has no equivalent here; if tensors are missing, too many or of other
            shapes than the configuration says; if the tokenizer has more ids than the model, or another mask.
    """
    output_dir = Path(output_dir)
    if family not in (AUTO, *FAMILIES):
        known = [AUTO, *FAMILIES]
        raise ValueError(f"`family` must be one of {known}, got {family!r}.{did_you_mean(family, known)}")
    if not is_empty_or_absent(output_dir):
        raise FileExistsError(f"`output_dir` must be empty, got {output_dir}.")
    check_can_be_written("output_dir", output_dir, is_folder=True)
    path = local_path(checkpoint, allow_pickle, revision, token)
    source = read_configuration(path, config_file)
    converter = recognise(path, source, allow_pickle) if family == AUTO else FAMILIES[family]
    processor = open_tokenizer(tokenizer, path, converter.tokenizer_type)
    config = complete_configuration(converter, source, processor, mask_token, predicts_next)
    processor = None if config.is_image else processor
    if processor is not None:
        match_tokenizer(converter.fitted(processor, config), config)
    model = converter.load(path, config, allow_pickle)
    if processor is None:
        logger.warning(f"{checkpoint} has no tokenizer: its model is converted alone. --tokenizer NAME adds one.")
    pipeline = make_pipeline(model, processor, converter.scheduler(source, config))
    card = make_converted_card(pipeline, converter.title, checkpoint, folder_of(path), output_dir.name)
    with whole_folder(output_dir) as staging:
        pipeline.save_pretrained(staging, remote_code=model.has_remote_code)
        card.save(staging / "README.md")
    return converter.name


def local_path(checkpoint: str, allow_pickle: bool, revision: str | None, token: str | bool | None) -> Path:
    """Folder or file of a checkpoint, whose files are downloaded if it is a Hub id; code never, pickles if allowed."""
    if Path(checkpoint).exists():
        return Path(checkpoint)
    if looks_like_path(checkpoint) or "/" not in checkpoint:
        raise FileNotFoundError(f"`checkpoint` must exist, got {checkpoint}.")
    hub: dict[str, Any] = {"revision": revision, "token": token, "ignore_patterns": ["*/*"]}
    with from_hub(checkpoint):
        folder = Path(snapshot_download(checkpoint, allow_patterns=[*DOWNLOADED], **hub))
        if allow_pickle and not has_safetensors(folder):
            patterns = [*DOWNLOADED, *(f"*{suffix}" for suffix in PICKLES)]
            folder = Path(snapshot_download(checkpoint, allow_patterns=patterns, **hub))
    return folder


def folder_of(path: Path) -> Path:
    """The folder of a checkpoint, which may be a file in it."""
    return path if path.is_dir() else path.parent


def read_configuration(path: Path, config_file: str | Path | None) -> Mapping[str, Any]:
    """Fields of the configuration file, by default `config.json` beside the weights; those of a record's `config`."""
    file = Path(config_file) if config_file is not None else folder_of(path) / CONFIG_NAME
    if not file.is_file():
        raise FileNotFoundError(f"`config_file` must be a JSON file of the checkpoint's configuration, got {file}.")
    with file_errors_as_value_errors("config_file", file):
        source = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(source, dict) and isinstance(source.get("config"), dict):
        source = source["config"]
    if not isinstance(source, dict):
        raise ValueError(f"`config_file` must hold the fields of a configuration, got {file}.")
    return source


def recognise(path: Path, source: Mapping[str, Any], allow_pickle: bool) -> Family:
    """The family of a checkpoint, by its configuration, else by its keys; a ValueError if it is of none."""
    by_config = [family for family in FAMILIES.values() if family.recognises_config(source)]
    if by_config:
        return by_config[0]
    keys = open_weights(path, allow_pickle).shapes.keys()
    networks = map(Redressed, RECOGNISED_BY_KEYS)
    by_keys = next((family for family in (*FAMILIES.values(), *networks) if family.recognises_keys(set(keys))), None)
    if by_keys is not None:
        return by_keys
    known, model_type = [*FAMILIES], source.get("model_type")
    raise ValueError(
        f"`family` must be given for what is not recognised as one of {known}, got a checkpoint of model type "
        f"{model_type!r} with the keys {shown(keys)}."
    )


def names_code(folder: Path) -> bool:
    """Whether the tokenizer of a folder is said to be code of its authors."""
    file = folder / TOKENIZER_CONFIG_FILE
    if not file.is_file():
        return False
    with file_errors_as_value_errors("checkpoint", file):
        return "AutoTokenizer" in json.loads(file.read_text(encoding="utf-8")).get("auto_map", {})


def open_tokenizer(name_or_path: str | None, path: Path, tokenizer_type: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer that is named, else that of the checkpoint, None if it has none; `tokenizer_type` if it is code."""
    folder = folder_of(path)
    if name_or_path is not None:
        return load_tokenizer(name_or_path, argument="tokenizer", adds_mask=False)
    if not has_tokenizer(str(folder), {}):
        return None
    kind = tokenizer_type if names_code(folder) else None
    return load_tokenizer(str(folder), argument="tokenizer", adds_mask=False, tokenizer_type=kind)


def complete_configuration(
    converter: Family,
    source: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    mask_token: str | int | None,
    predicts_next: bool | None,
) -> MD4Config:
    """Configuration of the converted model, with what that of the checkpoint does not say; a ValueError if it does."""
    mask = id_of_mask(mask_token, source, tokenizer)
    found = {"mask_token_id": mask, "predicts_next": predicts_next}
    config = converter.configuration({**source, **{name: x for name, x in found.items() if x is not None}})
    given = {
        "mask_token": (None if mask_token is None else mask, config.mask_token_id),
        "predicts_next": (predicts_next, config.predicts_next),
    }
    for name, (value, own) in given.items():
        if value not in (None, own):
            raise ValueError(f"`{name}` must be {own} for a checkpoint of the family {converter.name!r}, got {value}.")
    return config


def id_of_mask(
    mask_token: str | int | None, source: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> Any:
    """Id of the mask: of the token that is given, by itself or as its id, else the configuration's or tokenizer's."""
    if mask_token is None:
        own = None if tokenizer is None else tokenizer.mask_token_id
        return source.get("mask_token_id") if source.get("mask_token_id") is not None else own
    if str(mask_token).isdecimal():
        return int(mask_token)
    known = {} if tokenizer is None else tokenizer.get_vocab()
    if mask_token not in known:
        raise ValueError(f"`mask_token` must be a token of the tokenizer, or an id, got {mask_token!r}.")
    return known[mask_token]
