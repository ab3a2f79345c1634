# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training steps of the paper's networks: tokens per second, share of the device's matrix products, memory."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from measuring import interleaved, matmul_peak, paired_ratio

from md4_hf.core.linear_nelbo import triton_kernel

from .checks_networks import SDPA, kernel_of_sdpa, without_triton
from .loss_alone import losses_alone
from .part import Context, NotAvailable, Row, is_out_of_memory
from .pictures import plot_lines
from .steps import (
    LAYERS,
    WHOLE,
    TrainingStep,
    loss_of_all_logits,
    memory_freed,
    official_loss,
    operator_loss,
    peak_bytes,
    preset_config,
    seconds_per_call,
)


MAIN = "openwebtext-small"
BATCHES = {MAIN: (16, 64), "text8": (64, 256), "openwebtext-medium": (16, 32)}
TINY_BATCHES = (2, 4)
GOAL_TOKENS_PER_SECOND, GOAL_RATIO, GOAL_MEMORY = 450_000, 1.8, 1 / 3


@dataclass
class Speed:
    """Figures of the steps of a preset, gathered while its variants are measured.

    Args:
        context: The run.
        preset: Name of the preset.
        peak: Operations per second of a matrix product in bf16, measured in the run.
    """

    context: Context
    preset: str
    peak: float

    def __post_init__(self):
        self.by_batch: dict[int, float] = {}  # batch -> tokens per second of the eager step

    @property
    def batches(self) -> tuple[int, ...]:
        """Batches to try, in ascending order."""
        return TINY_BATCHES if self.context.tiny else BATCHES[self.preset]

    @property
    def best_batch(self) -> int:
        """Batch at which the eager step was fastest."""
        return max(self.by_batch, key=self.by_batch.__getitem__) if self.by_batch else self.batches[0]

    def step(self, batch: int, **options: Any) -> TrainingStep:
        """A step of the preset."""
        config = preset_config(self.preset, self.context.tiny, attn_implementation="sdpa")
        return TrainingStep(config, batch, self.context.device, output_dir=str(self.context.output), **options)

    def measure(self, batch: int, **options: Any) -> dict[str, Any]:
        """Figures of a variant at a batch."""
        device = self.context.device
        with memory_freed(device):
            step = self.step(batch, **options)
            seconds = seconds_per_call(step, device, repeats=1 if self.context.tiny else 8)
            tokens_per_s = step.tokens / seconds
            if not options:
                self.by_batch[batch] = tokens_per_s
            return {
                "batch": batch,
                "tokens_per_s": tokens_per_s,
                "mfu": step.flops() / seconds / self.peak,
                "ms_per_step": 1e3 * seconds,
                "peak_gib": in_gib(peak_bytes(step, device)),
            }

    def row(self, variant: str, batch: int, seconds: float = 0.0, **options: Any) -> Row:
        """Row of a variant at a batch."""
        name = f"{self.preset}, {variant}, batch {batch}"
        return self.context.measured(name, functools.partial(self.measure, batch, **options), seconds)

    def sweep(self) -> Iterator[Row]:
        """The eager step at each batch that the memory holds."""
        for batch in self.batches:
            row = self.row("eager", batch, seconds=4.0)
            yield row
            if "tokens_per_s" not in row.values:
                break

    def goal(self, row: Row) -> Row:
        """Mark the row that reaches the goal of tokens per second, or does not, on the processor it was set for."""
        if self.context.device.type == "cuda" and "H200" in torch.cuda.get_device_name(self.context.device):
            row.values["goal_tokens_per_s"] = GOAL_TOKENS_PER_SECOND
        return row


def run(context: Context) -> Iterator[Row]:
    """Measure, what is asked most often first."""
    peak = matmul_peak(torch.bfloat16, context.device)
    yield Row("matrix product, bf16", {"tflop_per_s": peak / 1e12})
    of_preset = {name: Speed(context, name, peak) for name in BATCHES}
    main = of_preset[MAIN]
    yield from main.sweep()
    yield main.goal(main.row("compiled by layer", main.best_batch, seconds=15.0, way=LAYERS))
    for name, way, seconds in (("eager", None, 8.0), ("compiled by layer", LAYERS, 30.0)):
        measure = functools.partial(against_official, main, way)
        yield context.measured(f"against the official formulation, {name}", measure, seconds)
    yield from losses_alone(context)
    yield from attention_alone(context)
    for name in ("text8", "openwebtext-medium"):
        speed = of_preset[name]
        yield from speed.sweep()
        yield speed.row("compiled by layer", speed.best_batch, seconds=15.0, way=LAYERS)
    yield main.row("all logits", main.batches[0], seconds=4.0, loss=loss_of_all_logits)
    yield context.measured("Triton against torch's kernels", functools.partial(against_torch, main), seconds=6.0)
    yield main.row("compiled whole", main.best_batch, seconds=50.0, way=WHOLE)
    plot(context, of_preset)


def attention_alone(context: Context) -> Iterator[Row]:
    """Milliseconds of attention without a mask, forward and backward, by each kernel, for a batch of MD4-S."""
    batch, heads, length, width = (1, 2, 32, 16) if context.tiny else (16, 12, 1024, 64)
    shape = (batch, length, heads, width)
    inputs = [torch.randn(shape, device=context.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def call(kernel: str):
        with kernel_of_sdpa(kernel):
            output = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs))
        torch.autograd.grad(output, inputs, torch.ones_like(output))

    def measure(kernel: str) -> dict[str, Any]:
        repeats = 1 if context.tiny else 8
        return {"ms": 1e3 * seconds_per_call(functools.partial(call, kernel), context.device, repeats)}

    for kernel in SDPA:
        yield context.measured(f"attention alone, {kernel}", functools.partial(measure, kernel), seconds=2.0)


def against_official(speed: Speed, way: str | None) -> Row:
    """The step in turns with the official formulation on the same network: how much faster, and memory for it."""
    context, found = speed.context, None
    for batch in reversed(speed.batches):  # the official one holds all logits, several times over
        with memory_freed(context.device):
            try:
                found = turns(speed, batch, way)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
    if found is None:
        raise NotAvailable("the official formulation fits at no batch")
    ok = None if context.device.type != "cuda" else found["times_faster"] >= GOAL_RATIO
    if ok is not None:
        ok = ok and found["share_of_memory"] <= GOAL_MEMORY
    return Row("", found, ok, f"goals: {GOAL_RATIO} times faster, {GOAL_MEMORY:.2f} of the memory above the weights")


def turns(speed: Speed, batch: int, way: str | None) -> dict[str, Any]:
    """Both formulations at a batch, in turns."""
    variants = {"official": official_loss, "md4_hf": operator_loss}
    repeats, used = 1 if speed.context.tiny else 6, {}
    steps = {name: speed.step(batch, loss=loss, way=way) for name, loss in variants.items()}
    for name, step in steps.items():
        for _ in range(3):  # compiles, and makes the state of the optimizer, which is no memory of the step
            step()
        before = allocated(speed.context.device)
        peak = peak_bytes(step, speed.context.device)
        used[name] = None if peak is None else peak - before
    times = interleaved(steps, repeats)
    figures: dict[str, Any] = {"batch": batch, "times_faster": paired_ratio(times, "official", "md4_hf")}
    figures |= {f"{name}_ms": 1e3 * statistics.median(x) for name, x in times.items()}
    if used["official"] is not None:
        figures["share_of_memory"] = used["md4_hf"] / used["official"]
    return figures | {f"{name}_gib": in_gib(x) for name, x in used.items()}


def against_torch(speed: Speed) -> dict[str, Any]:
    """The whole step with Triton's kernel in turns with torch's."""
    if speed.context.device.type != "cuda" or triton_kernel() is None:
        raise NotAvailable("Triton is not installed, or not for this device")
    with memory_freed(speed.context.device):
        step = speed.step(speed.best_batch)

        def plain():
            with without_triton():
                step()

        times = interleaved({"torch": plain, "triton": step}, 6)
        return {"batch": speed.best_batch, "times_faster": paired_ratio(times, "torch", "triton")}


def allocated(device: torch.device) -> int:
    """Bytes that the device holds now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def in_gib(size: int | None) -> float | None:
    """Bytes as GiB."""
    return None if size is None else size / 2**30


def plot(context: Context, of_preset: dict[str, Speed]):
    """Draw tokens per second over the batch."""
    curves = {name: speed.by_batch for name, speed in of_preset.items() if speed.by_batch}
    labels: dict[str, Callable | str] = {"x": "examples of a step", "y": "tokens per second, eager, bf16"}
    plot_lines({name: sorted(x.items()) for name, x in curves.items()}, context.output / "throughput.png", **labels)
