# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""One self-contained page that plays the unmasking of texts or images."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch

from ..core.image_processing_md4 import MD4ImageProcessor
from ..data.token_pieces import TokenPieces
from ..utils.files import write_whole
from .trajectories import Moment, Trajectory, moments_of


TEMPLATE = "trajectory_page.html"
COLORS = ("step", "confidence")
# Characters that could end a script element, or a line of one, within a JSON string.
ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
DIGITS = 4  # decimals of a probability


def write_page(path: str | os.PathLike, pipeline: Any, trajectories: Sequence[Trajectory], title: str, color_by: str):
    """Write the page of rows of a pipeline. See `TrajectoryRecorder.to_html`."""
    write_whole(path, page_of(pipeline, trajectories, title, color_by))


def page_of(pipeline: Any, trajectories: Sequence[Trajectory], title: str, color_by: str) -> str:
    """HTML of the page; a ValueError without rows, for rows of several kinds, or another word for the colours."""
    check_drawable(trajectories, color_by)
    template = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    data = {"colorBy": color_by, **page_data(pipeline, trajectories)}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(ESCAPES)
    before, _, after = template.replace("@TITLE@", html.escape(title)).rpartition("@DATA@")
    return before + text + after


def check_drawable(trajectories: Sequence[Trajectory], color_by: str):
    """Raise a ValueError for no rows, for texts beside images, or another word for the colours."""
    if not trajectories:
        raise ValueError("The recorder must have recorded a call of a pipeline, got none.")
    if len({row.shape if len(row.shape) > 1 else () for row in trajectories}) != 1:
        raise ValueError("The recorder must have recorded texts, or images of one size, got several kinds of them.")
    if color_by not in COLORS:
        raise ValueError(f"`color_by` must be one of {COLORS}, got {color_by!r}.")


def page_data(pipeline: Any, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Rows in the form that the page's script reads.

    Frame 0 is the start, and each further frame a moment at which any row changed. A sample has its `start`, and
    `changes`: for each frame, entries `[place, value, probability]`, in which the value of a mask is null, and `[place,
    text]` for a token whose text changes with its neighbours', as that of bytes does.
    """
    moments = moments_of(trajectories)
    frames = {moment: number for number, moment in enumerate(moments, start=1)}
    num_steps = max(pipeline.num_timesteps, moments[-1].step + 1 if moments else 0)
    labels = ["start", *(label_of(moment, num_steps) for moment in moments)]
    data: dict[str, Any] = {"labels": labels, "shape": list(trajectories[0].shape)}
    if len(trajectories[0].shape) > 1:
        data["levels"] = levels_of(pipeline.model.config)
        data["grey"] = data["levels"][len(data["levels"]) // 2]
        data["samples"] = [_image_sample(row, frames) for row in trajectories]
    else:
        pieces = TokenPieces(pipeline.tokenizer, pipeline.mask_token_id)
        data["samples"] = [_text_sample(row, frames, pieces) for row in trajectories]
    return data


def label_of(moment: Moment, num_steps: int) -> str:
    """Words for a moment of a call of so many steps."""
    correction = f", correction {moment.correction}" if moment.correction else ""
    return f"step {moment.step + 1} of {num_steps}{correction}"


def levels_of(config: Any) -> list[int]:
    """Value in [0, 255] of each level of an image."""
    ids = torch.arange(config.vocab_size - 1).expand(1, config.num_channels, 1, -1)
    (picture,) = MD4ImageProcessor.for_config(config).postprocess(ids)
    return list(picture.getchannel(0).tobytes())


def _image_sample(trajectory: Trajectory, frames: dict[Moment, int]) -> dict[str, Any]:
    mask = trajectory.mask_token_id

    def value(token: int) -> int | None:
        return None if token == mask else token

    changes = [
        [frames[moment], [[event.position, value(event.token), _rounded(event.probability)] for event in events]]
        for moment, events in trajectory.events.items()
    ]
    return {"start": [value(token) for token in trajectory.start], "changes": changes}


def _text_sample(trajectory: Trajectory, frames: dict[Moment, int], pieces: TokenPieces) -> dict[str, Any]:
    count = trajectory.num_drawn
    shown = start = pieces(trajectory.start[:count])
    changes = []
    for moment, ids in trajectory.states():
        before, shown = shown, pieces(ids[:count])
        entries: list[list[Any]] = [
            [
                event.position,
                None if event.token == trajectory.mask_token_id else shown[event.position],
                _rounded(event.probability),
            ]
            for event in trajectory.events[moment]
            if event.position < count
        ]
        decided = {entry[0] for entry in entries}
        entries += [
            [place, new]
            for place, (old, new) in enumerate(zip(before, shown, strict=True))
            if new != old and place not in decided
        ]
        changes.append([frames[moment], entries])
    return {"start": start, "changes": changes}


def _rounded(probability: float | None) -> float | None:
    return None if probability is None else round(probability, DIGITS)
