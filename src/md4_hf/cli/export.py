# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 export` and `md4 convert`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from ..core.pipeline_masked_diffusion import MaskedDiffusionPipeline
from ..data.tokenizers import load_tokenizer
from ..hub.convert import convert as convert_checkpoint
from ..hub.loading import adapter_base, load_pipeline, make_pipeline
from ..hub.shards import has_shards, load_shards
from ..utils.files import is_empty_or_absent, move_files, whole_folder
from ..utils.hub_access import to_hub
from ..utils.options import check_left_out
from .options import ConvertArguments, ExportArguments
from .run_record import FILE_NAME as RECORD_NAME


def export(options: ExportArguments, rest: argparse.Namespace):
    """Write one flat folder with model, tokenizer, scheduler and code; an adapter is merged into its base."""
    folder = Path(rest.folder)
    check_folder(folder, options.overwrite)
    if options.push_to_hub is None:
        check_left_out(options, ["private"], "without --push_to_hub")
    if has_shards(rest.model) and adapter_base(rest.model) is None:  # an adapter is whole in every checkpoint
        check_left_out(options, ["base", "revision"], "for the shards of a checkpoint")
        model = load_shards(rest.model).to(getattr(torch, options.dtype or "float32"))
        pipeline = make_pipeline(model, load_tokenizer(rest.model))
    else:
        source = {"base": options.base, "revision": options.revision}
        pipeline = load_pipeline(rest.model, **source, dtype=options.dtype, device="cpu")
    has_code = options.remote_code and pipeline.model.has_remote_code
    with whole_folder(folder, give_name=move_into) as staging:
        pipeline.save_pretrained(staging, remote_code=has_code)
        card = Path(rest.model, "README.md")
        if card.is_file() and adapter_base(rest.model) is None:
            for path in (card, *card.parent.glob("*.png")):
                shutil.copy2(path, staging)
    parts = ["tokenizer", "image_processor", "scheduler"]
    found = [name.replace("_", " ") for name in parts if getattr(pipeline, name) is not None]
    print(f"Model, {', '.join(found)}{' and code' if has_code else ''} are in {folder}")
    if options.push_to_hub:
        upload = {"push_to_hub": True, "repo_id": options.push_to_hub, "private": options.private}
        with to_hub(options.push_to_hub, folder, f"hf upload {options.push_to_hub} {folder} ."):
            pipeline.save_pretrained(folder, remote_code=has_code, **upload)
        print(f"Uploaded to {options.push_to_hub}")


def check_folder(folder: Path, overwrite: bool):
    """Refuse a folder that holds anything, but for an earlier export that is to be replaced; a run's folder is none."""
    if is_empty_or_absent(folder):
        return
    is_run = (folder / RECORD_NAME).exists() or any(folder.glob("checkpoint-*"))
    is_export = (folder / MaskedDiffusionPipeline.config_name).is_file() and not is_run
    if is_export and overwrite:
        return
    rule = "empty or absent, or an earlier export with --overwrite"
    found = "an earlier export: add --overwrite to replace it" if is_export else "which is no earlier export"
    found = "the folder of a run" if is_run else found
    raise ValueError(f"`folder` must be {rule}, got {folder}, {found}.")


def move_into(staging: Path, folder: Path):
    """Move an export into its folder, which may hold an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    move_files(staging, folder)


def convert(options: ConvertArguments, rest: argparse.Namespace):
    """Write a published checkpoint of another group, or an official one, to a new folder."""
    folders = [folder for folder in (options.output_dir, rest.folder) if folder is not None]
    if len(folders) != 1:
        raise ValueError(f"`output_dir` must be given, once, as an option or after the configuration, got {folders}.")
    family = convert_checkpoint(
        rest.checkpoint,
        folders[0],
        family=options.family,
        config_file=rest.config_file,
        tokenizer=options.tokenizer,
        mask_token=options.mask_token,
        predicts_next=options.predicts_next,
        allow_pickle=options.allow_pickle,
        revision=options.revision,
    )
    print(f"Wrote {folders[0]} ({family})")
