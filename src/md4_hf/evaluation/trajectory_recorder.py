# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Recording of calls of a pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.decisions import Decisions
from .trajectories import Event, Moment, Trajectory
from .trajectory_animation import write_animation
from .trajectory_page import write_page


class TrajectoryRecorder:
    """Callback object that records which positions each step of a pipeline decides, to which token, how surely.

    Given as `callback_on_step_end`, it goes with every option of `MaskedDiffusionPipeline`, changes no draw, and costs
    no network call; rows of text and images, prompts of different lengths, blocks, remasking and correctors are
    recorded alike. Calls add to `trajectories`.

    >>> recorder = TrajectoryRecorder()
    >>> pipeline(prompt="the <mask:8> of", callback_on_step_end=recorder)
    >>> recorder.to_html("trajectory.html")

    Args:
        max_samples: Rows to record at most, in their order; further ones are left out. All by default.
        on_change: Called with the trajectory of each row that a network call has changed, and when it is finished.

    Attributes:
        trajectories: A `Trajectory` for each row so far.
        pipeline: The pipeline of the last call; None before.
    """

    def __init__(
        self, max_samples: int | None = None, on_change: Callable[[Trajectory], Any] = lambda trajectory: None
    ):
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"`max_samples` must be >= 1, got {max_samples}.")
        self.max_samples, self.on_change = max_samples, on_change
        self.trajectories: list[Trajectory] = []
        self.pipeline: Any = None
        self._rows: list[Trajectory] = []  # of the present call, the first ones

    @property
    def is_full(self) -> bool:
        """Whether `max_samples` rows are recorded."""
        return self.max_samples is not None and len(self.trajectories) >= self.max_samples

    def clear(self):
        """Forget all rows."""
        self.trajectories, self._rows = [], []

    def start(self, pipeline: Any, rows: list[Tensor], mask_token_id: int):
        """Begin with the rows of a call, see `Recorder`."""
        self.pipeline = pipeline
        room = None if self.max_samples is None else max(self.max_samples - len(self.trajectories), 0)
        self._rows = [Trajectory(row.flatten().tolist(), tuple(row.shape), mask_token_id) for row in rows[:room]]
        self.trajectories += self._rows

    def record(self, decisions: Decisions):
        """Note what a network call has decided, see `Recorder`."""
        parts = (decisions.before, decisions.after, decisions.decided, decisions.probabilities)
        before, after, decided, probabilities = (part.flatten(1).cpu() for part in parts)
        begin = [0] * len(before) if decisions.begin is None else decisions.begin.tolist()
        for place, row in enumerate(decisions.rows.tolist()):
            if row >= len(self._rows):
                continue
            trajectory = self._rows[row]
            count = len(trajectory.ids)
            own = (x[place, :count] for x in (before, after, decided, probabilities))
            moment = self._moment(trajectory, int(decisions.steps[place]), decisions.is_correction)
            _add_step(trajectory, moment, *own)
            trajectory.num_final, trajectory.end = min(begin[place], count), decisions.end
            self.on_change(trajectory)

    def finish(self, sample: Tensor):
        """Note what was filled in behind the ends of texts, see `Recorder`."""
        for trajectory, ids in zip(self._rows, sample.flatten(1).tolist(), strict=False):
            pairs = enumerate(zip(trajectory.ids, ids[: len(trajectory.ids)], strict=True))
            moment = max(trajectory.events, default=Moment(0))
            trajectory.add(moment, [Event(position, new) for position, (old, new) in pairs if old != new])
            trajectory.num_final, trajectory.end, trajectory.is_finished = len(trajectory.ids), None, True
            self.on_change(trajectory)
        self._rows = []

    def to_html(self, path: str | os.PathLike, *, title: str = "Unmasking", color_by: str = "step"):
        """Write one page that plays the unmasking of all recorded rows, without network access.

        Args:
            path: The file.
            title: Heading of the page.
            color_by: "step", when a token was decided, or "confidence", its probability; the page can change it.

        Raises:
            ValueError: Nothing is recorded, or `color_by` is another word.
        """
        write_page(path, self.pipeline, self.trajectories, title, color_by)

    def to_gif(
        self,
        path: str | os.PathLike,
        *,
        color_by: str = "step",
        seconds: float = 6.0,
        max_samples: int | None = None,
        font: str | os.PathLike | None = None,
    ):
        """Write an animated GIF of the recorded rows: texts one below the other, images side by side.

        Args:
            path: The file.
            color_by: "step" or "confidence", as in `to_html`; images have their own colours.
            seconds: Time of the unmasking, > 0; its end stays for two seconds more.
            max_samples: Rows to show at most; by default 3 texts or 64 images.
            font: TrueType font of the text, fixed in width; DejaVu Sans Mono by default, which lacks East Asian signs.

        Raises:
            ValueError: Nothing is recorded, or an argument is out of range.
        """
        write_animation(path, self.pipeline, self.trajectories, color_by, seconds, max_samples, font)

    @staticmethod
    def _moment(trajectory: Trajectory, step: int, is_correction: bool) -> Moment:
        """Moment of a network call of a row."""
        if not is_correction:
            return Moment(step)
        last = next(reversed(trajectory.events), Moment(step))
        return Moment(step, last.correction + 1 if last.step == step else 1)


def _add_step(
    trajectory: Trajectory, moment: Moment, before: Tensor, after: Tensor, decided: Tensor, probabilities: Tensor
):
    """Add a network call of a row, all of whose tensors are `(length,)`, as in `Decisions`."""
    mask = trajectory.mask_token_id
    now = torch.tensor(trajectory.ids)
    remasked = ((before == mask) & (now != mask)).nonzero().squeeze(1).tolist()  # by steps without a network call
    trajectory.add(_moment_before(trajectory, moment), [Event(position, mask) for position in remasked])
    positions = (decided | (after != before)).nonzero().squeeze(1)
    found = (positions.tolist(), after[positions].tolist(), probabilities[positions].tolist())
    events = [
        Event(place, token, None if token == mask else share) for place, token, share in zip(*found, strict=True)
    ]
    trajectory.add(moment, events)


def _moment_before(trajectory: Trajectory, moment: Moment) -> Moment:
    """Moment of a change before a network call, none before the last one of the row."""
    last = next(reversed(trajectory.events), Moment(0))
    return max(last, Moment(moment.step - 1)) if moment.step > 0 else last
