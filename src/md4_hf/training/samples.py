# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples of a training's model: at each evaluation, for the model card, and as a picture."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..hub.loading import make_pipeline
from ..objective.figures import headline
from ..utils.files import whole_file, write_whole
from ..utils.image_grid import save_image_grid
from ..utils.progress_bars import shows_bars
from .sample_logs import log_pictures, log_texts


logger = logging.get_logger(__name__)

PICTURE_NAME, PAGE_NAME, FOLDER_NAME = "samples.png", "samples.md", "samples"
SAMPLE_FILES = (PICTURE_NAME, PAGE_NAME, FOLDER_NAME)  # of a training, beside its checkpoints
PICTURE_WIDTH, GAP = 512, 2  # pixels of the picture, at least about, and between its images
TITLE = "# Samples of the training, by optimizer step\n\n"
SECTION = re.compile(r"^(?=## Step [\d,]+)", re.MULTILINE)  # texts are indented, and begin no section
STEP = re.compile(r"## Step ([\d,]+)")


class Samples:
    """Draws samples of an `MD4Trainer`'s model from its averaged weights, always from the same noise.

    Only the first process draws, where it has all of the model, and the random state stays as it is.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.args = trainer, trainer.args

    def make_pipeline(self, model: nn.Module):
        """A pipeline of the model and what reads and writes its data."""
        name = "image_processor" if self.trainer.is_image else "tokenizer"
        return make_pipeline(model, **{name: self.trainer.processing_class})

    def _sample(self, model: nn.Module, progress_bar: dict[str, Any], **options: Any):
        pipeline = self.make_pipeline(model)
        pipeline.set_progress_bar_config(**progress_bar)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with self.trainer.ema_weights(), torch.random.fork_rng(devices):
            return pipeline(generator=torch.Generator().manual_seed(self.args.seed), **options)

    @property
    def _can_sample(self) -> bool:
        """Whether this process draws samples: the first does, if it has all of the model and a tokenizer."""
        trainer = self.trainer
        is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        has_pipeline = trainer.processing_class is not None and not trainer.objective.is_autoregressive
        return has_pipeline and not is_sharded and self.args.should_save

    def begin(self):
        """Forget the samples of an earlier training in the folder, if this one begins anew."""
        page = Path(self.args.output_dir) / PAGE_NAME
        if self.args.should_save and self.trainer.state.global_step == 0:
            page.unlink(missing_ok=True)

    def at_evaluation(self, metrics: dict[str, float] | None):
        """Draw samples, add them to `samples.md`, and send them to the services of `report_to`."""
        state, folder = self.trainer.state, Path(self.args.output_dir)
        callbacks = self.trainer.callback_handler.callbacks
        if self.trainer.is_image:
            name = f"{FOLDER_NAME}/step-{state.global_step}.png"
            if self.draw_images(folder / name):
                with whole_file(folder / PICTURE_NAME) as staging:
                    shutil.copyfile(folder / name, staging)
                add_section(folder / PAGE_NAME, state.global_step, metrics, f"![Samples]({name})\n")
                log_pictures(callbacks, state.global_step, folder / name)
        elif texts := self._draw_texts(self.args.text_samples, {"disable": True}, self.args.text_sample_steps):
            add_section(folder / PAGE_NAME, state.global_step, metrics, markdown_of(texts))
            log_texts(callbacks, state.global_step, texts)

    def draw_images(self, path: Path) -> bool:
        """Draw images into a picture, and return whether any are to be drawn here.

        Classes of a class-conditional model take turns, a column each.
        """
        num_samples, model = self.args.image_samples, self.trainer.repository.model
        if not (num_samples and self._can_sample):
            return False
        num_classes = model.config.num_classes
        columns = math.ceil(math.sqrt(num_samples)) if num_classes is None else min(num_classes, num_samples)
        options = {"num_samples": num_samples, "num_inference_steps": self.args.image_sample_steps}
        labels = range(0 if num_classes is None else columns)
        if labels:
            options |= {"num_samples": 1, "class_labels": [i % columns for i in range(num_samples)]}
        images = self._sample(model, {"disable": True}, **options).images
        enlarge = max(1, PICTURE_WIDTH // (columns * images[0].width))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image_grid(images, path, columns=columns, enlarge=enlarge, gap=GAP, column_labels=labels)
        return True

    def texts_for_card(self) -> list[str]:
        """Samples of text for the card."""
        bar = {"desc": "Sampling for the model card", "leave": False, "disable": not shows_bars()}
        return self._draw_texts(self.args.card_samples, bar, None)

    def _draw_texts(self, count: int, progress_bar: dict[str, Any], steps: int | None) -> list[str]:
        """Samples of text, which begin with the prompt of the card; none of models with classes, or elsewhere."""
        model = self.trainer.repository.base_model
        if self.trainer.is_image or model.config.num_classes is not None or not (count and self._can_sample):
            return []
        options = {"prompt": self.trainer.card_facts.sample_prompt, "num_samples": count}
        return self._sample(model, progress_bar, num_inference_steps=steps, **options).texts


class SamplesCallback(TrainerCallback):
    """Draws samples at each evaluation of a training, and not at those before and after it."""

    def __init__(self, trainer: Any):
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Begin a new page of samples, unless the training resumes."""
        self._trainer.samples.begin()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics=None, **kwargs
    ):
        """Draw samples while training."""
        if self._trainer.is_in_train:
            self._trainer.samples.at_evaluation(metrics)


def add_section(path: Path, step: int, metrics: dict[str, float] | None, body: str):
    """Add a section for a step to a page of samples, in place of those of this and later steps, before a resumption.

    The page is never seen half-written.
    """
    title, *sections = SECTION.split(path.read_text(encoding="utf-8")) if path.is_file() else [TITLE]
    kept = [section for section in sections if int(STEP.match(section)[1].replace(",", "")) < step]
    bits = headline(metrics, "eval_") if metrics and "eval_bits_per_token" in metrics else None
    figure = "" if bits is None else f": {bits:.3f} {bits.unit}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join([title, *kept, f"## Step {step:,}{figure}\n\n{body}\n"]))


def markdown_of(texts: Sequence[str]) -> str:
    """Texts as indented code, which no character of them can end, with their numbers between them."""
    blocks = []
    for number, text in enumerate(texts, start=1):
        lines = "".join(f"    {line}\n" for line in text.splitlines() or [""])
        blocks.append(f"{number}.\n\n{lines}" if len(texts) > 1 else lines)
    return "\n".join(blocks)
