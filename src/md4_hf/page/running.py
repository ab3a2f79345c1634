# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A call of a pipeline that is watched while it runs, and ends when nobody watches any more."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from ..evaluation.trajectories import Trajectory
from ..evaluation.trajectory_page import page_of
from ..evaluation.trajectory_recorder import TrajectoryRecorder
from ..objective.noise import sample_seed


T = TypeVar("T")
INTERVAL = 0.15  # seconds between two pictures of a call


@dataclass(frozen=True)
class Frame(Generic[T]):
    """Picture of a call.

    Args:
        shown: What was made of the rows.
        num_calls: Network calls so far, of all rows together.
        seconds: Time since the start of the call.
        output: The pipeline's output, None until the call has ended.
        replay: A page that plays the call once it has ended; empty before.
    """

    shown: T
    num_calls: int
    seconds: float
    output: Any = None
    replay: str = ""


class Unwatched(Exception):
    """Nobody watches the call any more."""


class CountingRecorder(TrajectoryRecorder):
    """A recorder that counts the network calls."""

    num_calls = 0

    def record(self, decisions: Any):
        """Count and record a network call."""
        self.num_calls += 1
        super().record(decisions)


def frames(
    pipeline: Any, show: Callable[[Sequence[Trajectory]], T], interval: float = INTERVAL, **arguments: Any
) -> Iterator[Frame[T]]:
    """Call a pipeline in a thread, and give pictures of its rows until it has ended, the last one with its output.

    A caller that closes the iterator before ends the call with its next network call, and waits for that.

    Args:
        pipeline: The pipeline.
        show: Makes a picture of all rows of the call; runs in the thread, between two network calls.
        interval: Least number of seconds between two pictures.
        arguments: Of the pipeline.

    Raises:
        Exception: Whatever the call has raised.
    """
    pictures: queue.Queue[Frame[T] | BaseException] = queue.Queue()
    is_watched, start, last = True, time.perf_counter(), [0.0]

    def frame(output: Any = None) -> Frame[T]:
        rows, seconds = recorder.trajectories, time.perf_counter() - start
        replay = "" if output is None else page_of(pipeline, rows, "", "step")
        return Frame(show(rows), recorder.num_calls, seconds, output, replay)

    def on_change(trajectory: Trajectory):
        if not is_watched:
            raise Unwatched
        if time.perf_counter() - last[0] >= interval:
            pictures.put(frame())
            last[0] = time.perf_counter()

    def run():
        try:
            pictures.put(frame(pipeline(callback_on_step_end=recorder, **arguments)))
        except BaseException as error:  # which is raised again in the thread that watches
            pictures.put(error)

    recorder = CountingRecorder(on_change=on_change)
    thread = threading.Thread(target=run, name="md4-call", daemon=True)
    thread.start()
    try:
        while True:
            picture = pictures.get()
            if isinstance(picture, BaseException):
                raise picture
            yield picture
            if picture.output is not None:
                return
    finally:
        is_watched = False
        thread.join()


def generators(seed: int, count: int) -> list[torch.Generator]:
    """Sources of the draws of rows, as the command line makes them: sample 3 of seed 0 is the same everywhere."""
    return [torch.Generator().manual_seed(sample_seed(seed, index)) for index in range(count)]
