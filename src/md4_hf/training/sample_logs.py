# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples in the services for logs that a training reports to: TensorBoard, Weights & Biases and Trackio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from transformers import TrainerCallback


NAME = "samples"


def log_texts(callbacks: Iterable[TrainerCallback], step: int, texts: Sequence[str]):
    """Send texts to each service that a callback of transformers has opened."""
    _log(callbacks, step, TEXT_WRITERS, texts)


def log_pictures(callbacks: Iterable[TrainerCallback], step: int, picture: Path):
    """Send a picture to each service that a callback of transformers has opened."""
    with PIL.Image.open(picture) as image:
        _log(callbacks, step, PICTURE_WRITERS, image.convert("RGB"))


def _log(callbacks: Iterable[TrainerCallback], step: int, writers: dict[str, Callable[..., None]], samples: Any):
    for callback in callbacks:
        for name, (attribute, is_open) in SERVICES.items():
            service = getattr(callback, attribute, None)
            if type(callback).__name__ == name and service is not None and is_open(callback):
                writers[name](service, step, samples)


def _texts_to_tensorboard(writer: Any, step: int, texts: Sequence[str]):
    blocks = ("\n".join(f"    {line}" for line in text.splitlines()) for text in texts)  # code, in Markdown
    writer.add_text(NAME, "\n\n---\n\n".join(blocks), step)
    writer.flush()


def _texts_to_wandb(wandb: Any, step: int, texts: Sequence[str]):
    table = wandb.Table(columns=["step", "text"], data=[[step, text] for text in texts])
    wandb.log({NAME: table, "train/global_step": step})


def _texts_to_trackio(trackio: Any, step: int, texts: Sequence[str]):
    import pandas  # which Trackio needs

    table = trackio.Table(dataframe=pandas.DataFrame({"step": step, "text": list(texts)}))
    trackio.log({NAME: table, "train/global_step": step})


def _picture_to_tensorboard(writer: Any, step: int, picture: PIL.Image.Image):
    writer.add_image(NAME, np.asarray(picture), step, dataformats="HWC")
    writer.flush()


def _picture_to_wandb(wandb: Any, step: int, picture: PIL.Image.Image):
    wandb.log({NAME: wandb.Image(picture), "train/global_step": step})


def _picture_to_trackio(trackio: Any, step: int, picture: PIL.Image.Image):
    trackio.log({NAME: trackio.Image(picture), "train/global_step": step})


# Callbacks of transformers: where each has its service, and whether that is open.
SERVICES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "TensorBoardCallback": ("tb_writer", lambda callback: True),
    "WandbCallback": ("_wandb", lambda callback: callback._wandb.run is not None),
    "TrackioCallback": ("_trackio", lambda callback: callback._initialized),
}
TEXT_WRITERS = {
    "TensorBoardCallback": _texts_to_tensorboard,
    "WandbCallback": _texts_to_wandb,
    "TrackioCallback": _texts_to_trackio,
}
PICTURE_WRITERS = {
    "TensorBoardCallback": _picture_to_tensorboard,
    "WandbCallback": _picture_to_wandb,
    "TrackioCallback": _picture_to_trackio,
}
