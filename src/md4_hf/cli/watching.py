# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The unmasking of a command's samples: on the terminal, as a page or as an animation."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ..evaluation.trajectories import Trajectory
from ..evaluation.trajectory_recorder import TrajectoryRecorder
from ..utils.files import check_can_be_written
from ..utils.processes import Processes, on_first_process
from .draw import Sampling, draw
from .live_text import LiveText, watches
from .options import RECORDED_IMAGES, RECORDED_TEXTS, WatchArguments
from .sample_files import Sink, rule_above


SUFFIXES = {"html": (".html", ".htm"), "gif": (".gif",)}


def check_watching(options: WatchArguments):
    """Refuse files of another kind, or that cannot be written, before a model is loaded."""
    for name, suffixes in SUFFIXES.items():
        path = getattr(options, name)
        if path is None:
            continue
        if Path(path).suffix.lower() not in suffixes:
            raise ValueError(f"`{name}` must end in {suffixes[0]}, got {path}.")
        check_can_be_written(name, path)


class Watcher:
    """Shows texts on the terminal one after the other while they are unmasked, each below a rule with its number.

    Args:
        live: The view.
        stream: The terminal.
        first: Number of the first text.
    """

    def __init__(self, live: LiveText, stream: TextIO, first: int):
        self.live, self.stream, self.next = live, stream, first
        self._current: Trajectory | None = None

    def __call__(self, trajectory: Trajectory):
        """Show a text that has changed."""
        if trajectory is not self._current:
            self._current = trajectory
            self.stream.write(f"{rule_above(self.next)}\n")
            self.next += 1
        self.live.show(trajectory)
        if trajectory.is_finished:
            self.live.finish()


class Unmasking:
    """The unmasking of the samples of a command: on the terminal, and in files.

    Args:
        sampling: The samples.
        watch: The options.
        batch_size: Samples at a time.
        processes: Processes of the command.
        title: Heading of the page.

    Raises:
        ValueError: `watch` is asked for on a terminal, for images or with several processes.
    """

    def __init__(self, sampling: Sampling, watch: WatchArguments, batch_size: int, processes: Processes, title: str):
        self.sampling, self.watch, self.processes, self.title = sampling, watch, processes, title
        is_text = sampling.pipeline.image_shape is None
        self.limit = RECORDED_TEXTS if is_text else RECORDED_IMAGES
        self.is_shown = watch.watch and watches(sys.stdout)
        self.batch_size = 1 if self.is_shown else batch_size
        if watch.watch and not is_text:
            raise ValueError("`watch` must be left out for a model of images: --html and --gif show them.")
        if self.is_shown and processes.world_size > 1:
            raise ValueError(f"`watch` must be left out with several processes, got {processes.world_size}.")

    def draw(self, sink: Sink, quiet: bool) -> list[str]:
        """Draw samples as `draw` does, show them, write the unmasking of the first, and return names of these files.

        Samples that another process, or an earlier and interrupted command, has drawn are drawn again to be recorded.
        """
        num_kept = on_first_process(self.processes, lambda: sink.num_rows)
        records_all = num_kept == 0 and self.processes.world_size == 1 and self.watch.writes_files
        recorder = TrajectoryRecorder(None if self.is_shown else self.limit)
        if self.is_shown:
            recorder.on_change = self._show(recorder, num_kept, keeps=records_all)
        self.sampling.recorder = recorder if self.is_shown or records_all else None
        draw(self.sampling, sink, self.batch_size, self.processes, quiet or self.is_shown)
        if not self.watch.writes_files or self.processes.process_index:
            return []
        self.sampling.recorder = kept = TrajectoryRecorder(self.limit)
        if records_all:
            kept.pipeline, kept.trajectories = recorder.pipeline, recorder.trajectories
        while (first := len(kept.trajectories)) < self.sampling.total and not kept.is_full:
            self.sampling.rows(range(first, min(first + self.batch_size, self.sampling.total)))
        return write_trajectories(kept, self.watch, self.title)

    def _show(self, recorder: TrajectoryRecorder, num_kept: int, keeps: bool) -> Callable[[Trajectory], None]:
        """Function that shows a text, and forgets it when it is finished unless it is kept for a file."""
        pipeline = self.sampling.pipeline
        num_steps = functools.partial(getattr, pipeline, "num_timesteps")
        live = LiveText(pipeline.tokenizer, sys.stdout, self.watch.color_by, num_steps, seconds=self.watch.seconds)
        watcher = Watcher(live, sys.stdout, num_kept + 1)

        def show(trajectory: Trajectory):
            watcher(trajectory)
            if trajectory.is_finished:
                del recorder.trajectories[self.limit if keeps else 0 :]

        return show


def write_trajectories(recorder: TrajectoryRecorder, options: WatchArguments, title: str) -> list[str]:
    """Write the files that are asked for, and return their names."""
    written = []
    if options.html is not None:
        recorder.to_html(options.html, title=title, color_by=options.color_by)
        written.append(options.html)
    if options.gif is not None:
        length: dict[str, Any] = {} if options.seconds is None else {"seconds": options.seconds}
        recorder.to_gif(options.gif, color_by=options.color_by, **length)
        written.append(options.gif)
    return written
