# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Measuring: variants in turn in one process, against a matrix product of the same run; memory; what the machine is."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

import md4_hf
from md4_hf.utils.files import write_whole
from md4_hf.utils.libraries import installed_versions


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize():
    """Wait for the accelerator, if there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, wall time by default."""
    synchronize()
    start = clock()
    function()
    synchronize()
    return clock() - start


def interleaved(
    variants: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each variant, which take turns: what disturbs the machine disturbs all. The first turn is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, function in variants.items():
            elapsed = seconds(function, clock)
            if repeat > 0:
                times[name].append(elapsed)
    return times


def paired_ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the turns of how many times faster `fast` was than `slow`."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def clock_of(threads: int | None) -> Callable[[], float]:
    """Clock for so many threads of the processor: of one, its own time, which other work does not disturb."""
    if threads is not None:
        torch.set_num_threads(threads)
    return time.process_time if torch.get_num_threads() == 1 and DEVICE.type == "cpu" else time.perf_counter


def matmul_peak(
    dtype: torch.dtype, device: torch.device = DEVICE, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, clock) for _ in range(12))


def has_fast_bf16() -> bool:
    """Whether bf16 products are made in hardware."""
    return DEVICE.type == "cuda" or matmul_peak(torch.bfloat16) > matmul_peak(torch.float32)


def start_watching_memory() -> int:
    """Bytes in use now; the peak is counted from here."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes in use since the watch began."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def versions() -> dict[str, str | None]:
    """Versions of what a measurement depends on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "md4_hf": md4_hf.__version__}
    names = ("torch", "transformers", "diffusers", "accelerate", "triton", "liger-kernel", "flash-attn", "peft")
    found |= dict.fromkeys(names) | installed_versions(names)
    return found | {"cuda": torch.version.cuda, "torch": torch.__version__}


def machine(device: torch.device | str = DEVICE) -> str:
    """A line on hardware and versions."""
    if torch.device(device).type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = names[0].split(":")[1].strip() if names else platform.machine()
        hardware = f"{name} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
    libraries = {name: versions()[name] for name in ("torch", "transformers", "diffusers", "md4_hf")}
    listed = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return f"{time.strftime('%Y-%m-%d')}, {hardware}; {listed}."


def log_axes(axis, ticks: list[int], log_y: bool = True):
    """Logarithmic axes with numbers that can be read, and one tick on the x axis for each measurement."""
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{x // 1000}k" if x % 1000 < 300 and x >= 1000 else str(x) for x in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    if log_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)
    axis.legend()


def publish(text: str, output: str | None):
    """Print a report, or write it to a file that is never seen half-written."""
    if output is None:
        print(text)
        return
    write_whole(output, text)
