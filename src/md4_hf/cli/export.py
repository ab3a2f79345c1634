# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 export` and `md4 convert`."""

from __future__ import annotations

import argparse
import functools
import shutil
from pathlib import Path

import torch

from ..core.pipeline_masked_diffusion import MaskedDiffusionPipeline
from ..data.tokenizers import load_tokenizer
from ..hub.convert import convert as convert_checkpoint
from ..hub.loading import adapter_base, load_config, load_pipeline, make_pipeline
from ..hub.shards import has_shards, load_shards
from ..page.space import write_space
from ..utils.files import is_empty_or_absent, move_files, whole_folder
from ..utils.hub_access import to_hub
from ..utils.options import check_left_out
from .demo import name_of
from .options import ConvertArguments, ExportArguments
from .run_record import FILE_NAME as RECORD_NAME


def export(options: ExportArguments, rest: argparse.Namespace):
    """Write one flat folder with model, tokenizer, scheduler and code; an adapter is merged into its base."""
    if options.space:
        export_space(options, rest)
        return
    folder = Path(rest.folder)
    check_folder(folder, options.overwrite)
    check_left_out(options, ["package"], "without --space")
    if options.push_to_hub is None:
        check_left_out(options, ["private"], "without --push_to_hub")
    pipeline = open_pipeline(options, rest.model)
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


def open_pipeline(options: ExportArguments, model: str):
    """The pipeline of a model, of an adapter merged into its base, or of the shards of a checkpoint."""
    if has_shards(model) and adapter_base(model) is None:  # an adapter is whole in every checkpoint
        check_left_out(options, ["base", "revision"], "for the shards of a checkpoint")
        loaded = load_shards(model).to(getattr(torch, options.dtype or "float32"))
        return make_pipeline(loaded, load_tokenizer(model))
    source = {"base": options.base, "revision": options.revision}
    return load_pipeline(model, **source, dtype=options.dtype, device="cpu")


def export_space(options: ExportArguments, rest: argparse.Namespace):
    """Write a Gradio Space with the page of the model."""
    folder = Path(rest.folder)
    if not is_empty_or_absent(folder):
        raise ValueError(f"`folder` must be empty or absent for a Space, got {folder}, which holds something.")
    check_left_out(options, ["remote_code", "overwrite", "push_to_hub", "private"], "with --space")
    title = name_of(rest.model)
    if Path(rest.model).exists():
        pipeline = open_pipeline(options, rest.model)
        model = functools.partial(pipeline.save_pretrained, remote_code=False)
        write_space(folder, title, model, package=options.package)
    else:
        is_adapter = adapter_base(rest.model, revision=options.revision) is not None
        if not is_adapter:
            load_config(rest.model, revision=options.revision)
        names = {name: getattr(options, name) for name in ("base", "revision", "dtype")}
        given = {name: value for name, value in names.items() if value is not None}
        write_space(folder, title, rest.model, given, options.package, ["peft"] if is_adapter else [])
    print(f"The Space is in {folder}. To upload it: hf upload USER/NAME {folder} . --repo-type space")


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
