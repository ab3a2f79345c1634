# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Does a training step wait for the device, does a compiled one break its graph or compile again?"""

from __future__ import annotations

import collections
import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from .checks_training import make_trainer
from .part import Context, NotAvailable, Row
from .sampling_speed import make_pipeline, whole_samples
from .steps import LAYERS, WHOLE, TrainingStep, compiled, preset_config


WARM_UP, STEPS = 3, 5
BATCH = 64  # with fewer, the bound on the masked tokens is too loose to be used
SYNC_MESSAGE = "synchronizing CUDA operation"


def run(context: Context) -> Iterator[Row]:
    """Steps under `set_sync_debug_mode`, a whole trainer's steps, and the graphs of compiled steps."""
    torch.backends.cuda.matmul.allow_tf32 = True
    expected = {"MD4": ({}, True), "GenMD4": ({"masking_schedule": "poly", "learn_masking_schedule": True}, False)}
    for name, (changes, never_waits) in expected.items():
        make = functools.partial(make_step, context, **changes)
        yield context.measured(f"bare step, {name}", functools.partial(waits, context, make, never_waits))
    ragged = functools.partial(make_step, context)
    measure = functools.partial(waits, context, ragged, False, ragged_rows)
    yield context.measured("bare step on ragged rows, MD4", measure)
    yield context.measured("steps of MD4Trainer", functools.partial(waits_of_the_trainer, context))
    yield context.measured("planned sampler", functools.partial(waits_of_the_sampler, context))
    for way in (LAYERS, WHOLE):
        for name, columns in (("all scored", no_columns), ("ragged rows", ragged_rows)):
            measure = functools.partial(graphs, context, way, columns)
            yield context.measured(f"graphs, compiled ({way}), {name}", measure, seconds=4.0)


def make_step(context: Context, **changes: Any) -> TrainingStep:
    """A step of a small model on text."""
    config = preset_config("openwebtext-small", tiny=True, attn_implementation="sdpa", **changes)
    return TrainingStep(config, BATCH, context.device, output_dir=str(context.output))


def no_columns(context: Context, step: TrainingStep, number: int) -> dict[str, Tensor]:
    """Rows of full length."""
    return {}


def ragged_rows(context: Context, step: TrainingStep, number: int) -> dict[str, Tensor]:
    """Rows of other lengths at each step."""
    batch, length = step.x0.shape
    lengths = length - (torch.arange(batch, device=context.device) * (number + 1)) % (length // 2)
    mask = (torch.arange(length, device=context.device) < lengths[:, None]).long()
    return {"attention_mask": mask, "labels": step.x0.masked_fill(mask == 0, -100)}


class Watch:
    """Counts the calls that wait for the device, by the line that makes them, between `begin` and `end`.

    Only CUDA tells of them: elsewhere nothing is counted.
    """

    def __init__(self, device: torch.device):
        self.is_on = device.type == "cuda"
        self.lines: collections.Counter = collections.Counter()

    def begin(self):
        """Begin to count."""
        self._warnings = warnings.catch_warnings(record=True)
        self._caught = self._warnings.__enter__()
        warnings.simplefilter("always")
        self._set("warn")

    def end(self):
        """Stop counting."""
        self._set("default")
        self._warnings.__exit__(None, None, None)
        for warning in self._caught:
            if SYNC_MESSAGE in str(warning.message):
                self.lines["/".join(warning.filename.split("/")[-3:]) + f":{warning.lineno}"] += 1

    def figures(self, steps: int) -> dict[str, Any]:
        """Waits per step, and the lines that make most of them; `NotAvailable` where nothing is counted."""
        if not self.is_on:
            raise NotAvailable("only CUDA tells of waits; the steps ran")
        lines = ", ".join(f"{line} ×{count}" for line, count in self.lines.most_common(8))
        return {"waits_per_step": sum(self.lines.values()) / steps, **({"lines": lines} if lines else {})}

    def _set(self, mode: str):
        if self.is_on:
            torch.cuda.set_sync_debug_mode(mode)


def waits(
    context: Context, make: Callable[[], TrainingStep], never_waits: bool, columns: Callable = no_columns
) -> Row:
    """Number of waits per step; where there must be none, a step runs under the mode that makes each an error."""
    step, watch = make(), Watch(context.device)
    given = [columns(context, step, number) for number in range(WARM_UP + STEPS)]
    for number in range(WARM_UP):
        step(**given[number])
    watch.begin()
    for number in range(WARM_UP, WARM_UP + STEPS):
        step(**given[number])
    watch.end()
    figures = watch.figures(STEPS)
    error = error_of_a_wait(step) if never_waits else None
    return Row("", figures, figures["waits_per_step"] == 0 and error is None if never_waits else None, error)


def error_of_a_wait(step: TrainingStep) -> str | None:
    """Take a step in which a wait is an error, and return that error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


class WatchCallback(TrainerCallback):
    """Watches some steps of a trainer."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def on_step_begin(self, args, state, control, **kwargs):
        """Begin after the warm-up, and end some steps later."""
        if state.global_step == WARM_UP:
            self.watch.begin()
        if state.global_step == WARM_UP + STEPS:
            self.watch.end()


def waits_of_the_trainer(context: Context) -> Row:
    """Waits per step of a whole `MD4Trainer`, between its logs."""
    options = {"max_steps": WARM_UP + STEPS + 1, "save_strategy": "no", "logging_steps": 1000}
    options["per_device_train_batch_size"] = BATCH
    watch = Watch(context.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(context, Path(folder), **options)
        trainer.add_callback(WatchCallback(watch))
        trainer.train()
    figures = watch.figures(STEPS)
    return Row("", figures, figures["waits_per_step"] == 0, "none is expected between logs")


def waits_of_the_sampler(context: Context) -> dict[str, Any]:
    """Waits of the planned sampler for each call of its network, which itself waits once, to count positions."""
    pipeline, watch = make_pipeline(context), Watch(context.device)
    draw = functools.partial(whole_samples, pipeline, context.device, 2, 16)
    draw()
    watch.begin()
    _, calls = draw()
    watch.end()
    figures = watch.figures(calls.calls)
    return {"waits_per_call": figures.pop("waits_per_step"), **figures}


def graphs(context: Context, way: str, columns: Callable) -> Row:
    """Graph breaks and recompilations of steps whose rows differ at each step."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    step = make_step(context)
    step.network = compiled(step.model, way, only_traced=True)
    given = [columns(context, step, number) for number in range(WARM_UP + STEPS)]
    for number in range(WARM_UP):
        step(**given[number])
    before = counters["stats"]["unique_graphs"]
    for number in range(WARM_UP, WARM_UP + STEPS):
        step(**given[number])
    breaks, again = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"] - before
    torch.compiler.reset()
    figures = {"graph_breaks": breaks, "recompilations": again, "graphs": before}
    return Row("", figures, breaks == 0 and again == 0, f"after {WARM_UP} steps of warm-up")
