# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The repository of a trained model: one flat folder with all that belongs to it, here and on the Hub."""

from __future__ import annotations

import functools
import os
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from torch import nn
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..hub.adapters import adapter_parameters, fingerprint, folder_of_adapter, is_adapted, save_base_record
from ..utils.files import remove_any
from ..utils.options import changed
from ..utils.processes import on_first_process
from ..utils.progress_bars import without_progress_bars
from ..utils.sharding import whole_weights
from .checkpoints import MANIFEST
from .ema import EMA_FOLDER, average_folder
from .loss_plot import plot_losses
from .model_card import CardFacts, make_model_card
from .samples import PICTURE_NAME
from .training_state import RUNNING_SUMS, STREAM_FILES


TRAINING_ARGS_NAME = "training_args.bin"
PLOT_NAME = "loss.png"
UPLOAD_FOLDER = ".upload-in-progress"
# Files of a checkpoint that do not belong to the model, and the average, which is a model of its own.
NOT_SHARED = ("*.pt", "*.pth", "*.bin", "trainer_state.json", RUNNING_SUMS, STREAM_FILES, MANIFEST, EMA_FOLDER)
# `CardFacts` has other names for these arguments of `Trainer.create_model_card`.
CARD_NAMES = {"model_name": "title", "finetuned_from": "base_model", "dataset": "datasets"}


class Repository:
    """Writes and uploads the model of an `MD4Trainer` with its tokenizer or image processor, scheduler, plot and card.

    Its model, log and `card_facts` are those of the moment of each call.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.args = trainer, trainer.args
        self.base_fingerprint = fingerprint(self.base_model)

    @property
    def model(self) -> nn.Module:
        """The model or adapter itself, without the wrappers of a training."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)

    @property
    def base_model(self) -> nn.Module:
        """The model itself, or that under the adapter."""
        return self.model.get_base_model() if is_adapted(self.model) else self.model

    # Writing ----------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike, **facts: Any):
        """Write all that belongs to the trained model. See `MD4Trainer.save_repository`."""
        self.write_model(folder, averaged=True)
        self.describe(folder, **facts)

    def describe(self, folder: str | os.PathLike, **facts: Any):
        """Write what belongs to the trained model beside its weights and tokenizer. Call it on all processes."""
        samples = self.trainer.samples.texts_for_card()
        if self.trainer.is_image:
            self.trainer.samples.draw_images(Path(folder) / PICTURE_NAME)
        self.complete(Path(folder), samples=samples, **facts)
        self.trainer.accelerator.wait_for_everyone()

    def write_model(self, folder: str | os.PathLike, averaged: bool):
        """Write the model or adapter, wherever its parts are, and the tokenizer. Call it on all processes."""
        trainer, is_writer = self.trainer, self.args.should_save
        values = trainer.ema.values if averaged and trainer.ema is not None else None
        names = adapter_parameters(self.model) if is_adapted(self.model) else None
        weights = whole_weights(trainer.model, values, keep=is_writer, names=names)
        if not is_writer:  # transformers 5.17 would write the nothing that this process has over the model
            return
        with without_progress_bars():  # which would tear the training's own apart
            trainer._save(str(folder), state_dict=weights)
        (Path(folder) / TRAINING_ARGS_NAME).unlink()  # a pickle, which may hold a token of the Hub

    def write_configuration(self, folder: str | os.PathLike):
        """Write the configuration and the tokenizer or image processor, on the first process."""
        if self.args.should_save:
            self.model.config.save_pretrained(folder)
            if self.trainer.processing_class is not None:
                self.trainer.processing_class.save_pretrained(folder)

    def complete(self, folder: Path, **facts: Any):
        """Write scheduler, plot and card for a saved model, or the record of an adapter's base; on one process."""
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        model, history = self.model, self.trainer.state.log_history
        if is_adapted(model):
            for adapter in model.peft_config:
                save_base_record(self.base_fingerprint, folder / folder_of_adapter(adapter))
        elif self.trainer.objective.is_masking:
            pipeline = self.trainer.samples.make_pipeline(model)
            pipeline.scheduler.save_pretrained(folder)
            pipeline.save_config(folder)
        if any("loss" in entry or "eval_loss" in entry for entry in history):
            facts["plot"] = PLOT_NAME
            plot_losses(history, folder / PLOT_NAME, facts.get("baselines", self.trainer.card_facts.baselines))
        if (folder / PICTURE_NAME).exists():
            facts["sample_grid"] = PICTURE_NAME
        self.write_card(folder, **{"location": self.trainer.hub_model_id or str(folder), **facts})

    def write_card(self, folder: str | os.PathLike | None = None, **facts: Any):
        """Write `README.md`, on the first process. See `MD4Trainer.create_model_card`."""
        if not self.args.should_save:
            return
        facts = {CARD_NAMES.get(name, name): value for name, value in facts.items()}
        model, card_facts = self.model, self.trainer.card_facts
        if is_adapted(model):
            facts.setdefault("base_model", next(iter(model.peft_config.values())).base_model_name_or_path)
        if card_facts.title == CardFacts.title:
            facts.setdefault("title", Path(self.trainer.hub_model_id or Path(self.args.output_dir).resolve()).name)
        card = make_model_card(model, self.args, self.trainer.state, replace(card_facts, **facts))
        card.save(Path(folder or self.args.output_dir) / "README.md")

    # The Hub ----------------------------------------------------------------------------------------------------------

    def push(
        self, message: str | None, token: str | None, revision: str | None, private: bool | None, **facts: Any
    ) -> Future[CommitInfo] | None:
        """Begin to upload what `save` writes, as one commit. See `MD4Trainer.push_to_hub`."""
        trainer, folder = self.trainer, Path(self.args.output_dir) / UPLOAD_FOLDER
        trainer.callback_handler.on_push_begin(self.args, trainer.state, trainer.control)
        if trainer.hub_model_id is None:
            private = self.args.hub_private_repo if private is None else private
            with changed(self.args, hub_private_repo=private):  # 5.17 has no argument for it
                trainer.init_hf_repo(token=token or self.args.hub_token)
        trainer._finish_current_push()
        on_first_process(self.args, functools.partial(remove_any, folder))
        self.save(folder, **facts)
        if not self.args.should_save:
            return None
        return self._upload_and_remove(folder, commit_message=message, token=token, revision=revision)

    def push_checkpoint(self, checkpoint: Path):
        """Start to upload the model of a checkpoint, as `args.hub_strategy` asks; on the first process."""
        trainer, strategy, under_way = self.trainer, self.args.hub_strategy, self.trainer.push_in_progress
        if strategy == HubStrategy.END:
            return
        if under_way is not None and not under_way.is_done() and not self.args.hub_always_push:
            return
        trainer.callback_handler.on_push_begin(self.args, trainer.state, trainer.control)
        trainer._finish_current_push()
        averaged, folder = checkpoint / average_folder(self.model), checkpoint.parent / UPLOAD_FOLDER
        remove_any(folder)
        source = averaged if averaged.is_dir() else checkpoint
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*NOT_SHARED))
        self.complete(folder)
        message = f"Training in progress, step {trainer.state.global_step}"
        uploads = [self._upload_and_remove(folder, commit_message=message)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            uploads.append(self._upload(checkpoint, commit_message=f"{message}, checkpoint", path_in_repo=name))
        trainer.push_in_progress = PushInProgress(uploads)

    def _upload_and_remove(self, folder: Path, **options: Any) -> Future[CommitInfo]:
        def upload() -> CommitInfo:
            try:
                return self._upload(folder, run_as_future=False, **options)
            finally:
                remove_any(folder)

        return HfApi().run_as_future(upload)

    def _upload(
        self,
        folder: Path,
        token: str | None = None,
        revision: str | None = None,
        run_as_future: bool = True,
        **options,
    ) -> Any:
        access = {"token": token or self.args.hub_token, "revision": revision or self.args.hub_revision}
        options |= {"repo_id": self.trainer.hub_model_id, "folder_path": folder, "run_as_future": run_as_future}
        return HfApi().upload_folder(**access, **options)
