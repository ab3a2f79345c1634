# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Kernels of a training step by time, and the shares of attention, linear layers, loss, optimizer and data."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .part import Context, Row
from .steps import LAYERS, TrainingStep, memory_freed, preset_config, synchronize


TOP, STEPS, BATCH = 20, 3, 16
DATA = "data and noise"
# Category of a kernel by the operators that it runs for, from the outermost; the first that one of them contains.
CATEGORIES = {
    DATA: (DATA,),
    "optimizer": ("Optimizer.step", "Optimizer.zero_grad", "_fused_adamw"),
    "loss operator": ("linear_nelbo",),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention", "cudnn_attention"),
    "linear layers": ("aten::linear", "aten::mm", "aten::addmm", "aten::matmul", "aten::bmm", "AddmmBackward"),
}
COMPILED = {"compiled kernels": ("triton", "CompiledFunction", "Torch-Compiled Region")}


def run(context: Context) -> Iterator[Row]:
    """The step of MD4-S as it is, then compiled layer by layer."""
    for name, way in (("eager", None), ("compiled by layer", LAYERS)):
        measure = functools.partial(shares, context, name, way)
        yield context.measured(f"openwebtext-small, {name}", measure, seconds=6.0 if way is None else 20.0)


def shares(context: Context, name: str, way: str | None) -> Row:
    """Shares of the device's time by category; kernels go to a file."""
    on_gpu = context.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with memory_freed(context.device):
        config = preset_config("openwebtext-small", context.tiny, attn_implementation="sdpa")
        step = TrainingStep(config, 2 if context.tiny else BATCH, context.device, way, output_dir=str(context.output))
        noise = step.inputs

        def inputs(**columns: Any) -> dict[str, Any]:
            with record_function(DATA):
                return noise(**columns)

        step.inputs = inputs
        for _ in range(STEPS):
            step()
        synchronize(context.device)
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(STEPS):
                step()
            synchronize(context.device)
        table = kernels(profiler, on_gpu)
        write_kernels(context, name, table)
        by_category = time_by_category(profiler, on_gpu, COMPILED if way else {})
    total = sum(by_category.values())
    figures: dict[str, Any] = {f"{key} share": value / total for key, value in by_category.most_common()}
    figures["device_ms_per_step"] = total / STEPS / 1e3
    return Row("", figures, None, f"longest: {'; '.join(f'{key} {value / total:.0%}' for key, value in table[:3])}")


def time_by_category(profiler: Any, on_gpu: bool, more: dict[str, tuple[str, ...]]) -> Counter:
    """Microseconds by category, each kernel (on a processor, operator) counted once."""
    found: Counter = Counter()
    for event in profiler.events():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if own <= 0 or (on_gpu and event.device_type == torch.autograd.DeviceType.CUDA):
            continue  # the time of a kernel stands with the operator that started it
        names, parent = [event.name], event.cpu_parent
        while parent is not None:
            names.append(parent.name)
            parent = parent.cpu_parent
        found[category_of(names[::-1], {**CATEGORIES, **more})] += own
    return found


def category_of(names: list[str], categories: dict[str, tuple[str, ...]]) -> str:
    """Category of a kernel from the names of its operators."""
    for category, patterns in categories.items():
        if any(pattern in name for name in names for pattern in patterns):
            return category
    return "the rest"


def kernels(profiler: Any, on_gpu: bool) -> list[tuple[str, float]]:
    """Names and microseconds of the kernels that took longest; on a processor, of operators."""
    found: Counter = Counter()
    for event in profiler.events():
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu == is_kernel and not getattr(event, "is_user_annotation", False):
            found[event.name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return found.most_common(TOP)


def write_kernels(context: Context, name: str, table: list[tuple[str, float]]):
    """Write the kernels as a table of Markdown."""
    lines = ["| kernel | ms per step |", "| --- | --- |"]
    lines += [f"| `{kernel[:100]}` | {microseconds / STEPS / 1e3:.3f} |" for kernel, microseconds in table]
    path = context.output / f"kernels_{name.replace(' ', '_')}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
