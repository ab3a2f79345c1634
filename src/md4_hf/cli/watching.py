# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The unmasking of a command's samples as a page or an animation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..evaluation.trajectory_recorder import TrajectoryRecorder
from ..utils.files import check_can_be_written
from ..utils.processes import Processes, on_first_process
from .draw import Sampling, draw
from .options import RECORDED_IMAGES, RECORDED_TEXTS, SampleArguments, WatchArguments
from .sample_files import Sink


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


def recorder_of(options: WatchArguments, pipeline: Any) -> TrajectoryRecorder | None:
    """Recorder for the files that are asked for; None if there are none."""
    if not options.writes_files:
        return None
    return TrajectoryRecorder(RECORDED_TEXTS if pipeline.image_shape is None else RECORDED_IMAGES)


def draw_watched(
    sampling: Sampling,
    sink: Sink,
    options: SampleArguments,
    watch: WatchArguments,
    processes: Processes,
    title: str,
) -> list[str]:
    """Draw samples as `draw` does, write the unmasking of the first ones, and return the names of these files.

    Samples that another process, or an earlier and interrupted command, has drawn are drawn again to be recorded.
    """
    recorder = recorder_of(watch, sampling.pipeline)
    draws_all = on_first_process(processes, lambda: sink.num_rows == 0) and processes.world_size == 1
    sampling.recorder = recorder if draws_all else None
    draw(sampling, sink, options.batch_size, processes, options.quiet)
    if recorder is None or processes.process_index:
        return []
    sampling.recorder = recorder
    while (first := len(recorder.trajectories)) < sampling.total and not recorder.is_full:
        sampling.rows(range(first, min(first + options.batch_size, sampling.total)))
    return write_trajectories(recorder, watch, title)


def write_trajectories(recorder: TrajectoryRecorder, options: WatchArguments, title: str) -> list[str]:
    """Write the files that are asked for, and return their names."""
    written = []
    if options.html is not None:
        recorder.to_html(options.html, title=title, color_by=options.color_by)
        written.append(options.html)
    if options.gif is not None:
        recorder.to_gif(options.gif, color_by=options.color_by)
        written.append(options.gif)
    return written
