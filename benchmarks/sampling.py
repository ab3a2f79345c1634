# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling against the official sampler, which calls the whole network at every step: seconds and calls per sample.

python benchmarks/sampling.py --output benchmarks/results/sampling.md

All its steps cost the same, so that the official sampler is timed over some of them; ours draws whole samples. The two
take turns in one process.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from measuring import DEVICE, log_axes, machine, publish, seconds
from naive import sampling_step
from tqdm import tqdm
from training_step import SETTINGS

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4ForMaskedDiffusion


matplotlib.use("agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Job:
    """A network, and how it is sampled."""

    setting: str
    steps: int
    batch: int


JOBS = [
    *(Job("A", steps, batch) for steps in (256, 1000) for batch in (1, 4, 16)),
    Job("B", 256, 1),
    Job("B", 1000, 1),
]


class CallCounter:
    """Counts the calls of a model, and the rows in them."""

    def __init__(self, model: torch.nn.Module):
        self.calls = self.rows = 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.calls += 1
        self.rows += len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])


def make_pipeline(setting: str) -> MaskedDiffusionPipeline:
    """A pipeline around a network with random weights."""
    torch.manual_seed(0)
    model = MD4ForMaskedDiffusion(SETTINGS[setting].config()).to(DEVICE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    pipeline = MaskedDiffusionPipeline(model, MaskedDiffusionScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def official_seconds(pipeline: MaskedDiffusionPipeline, job: Job, timed_steps: int) -> float:
    """Seconds of all steps, from some of them, evenly spread over the process."""
    pipeline.scheduler.set_timesteps(job.steps)
    model, scheduler = pipeline.model, pipeline.scheduler
    sample = torch.full((job.batch, SETTINGS[job.setting].length), model.config.mask_token_id, device=DEVICE)
    unmask = scheduler.unmask_probabilities()
    chosen = torch.linspace(0, job.steps - 1, timed_steps).long().tolist()

    def run():
        for step in chosen:
            sampling_step(model, sample, scheduler.timesteps[step].to(DEVICE), unmask[step].item())

    return seconds(run) * job.steps / timed_steps


def measure(job: Job, repeats: int, timed_steps: int) -> dict[str, float]:
    """Both samplers in turn, ours with a seed of its own each time."""
    pipeline = make_pipeline(job.setting)
    naive, ours, calls, rows = [], [], [], []
    official_seconds(pipeline, job, 1)
    for repeat in range(repeats):
        naive.append(official_seconds(pipeline, job, timed_steps))
        counter = CallCounter(pipeline.model)
        arguments = {"num_samples": job.batch, "num_inference_steps": job.steps, "output_type": "ids"}
        arguments["generator"] = torch.Generator().manual_seed(repeat)
        ours.append(seconds(functools.partial(pipeline, **arguments)))
        calls.append(counter.calls)
        rows.append(counter.rows / job.batch)
    return {
        "naive": statistics.median(naive),
        "ours": statistics.median(ours),
        "ratio": statistics.median(a / b for a, b in zip(naive, ours, strict=True)),
        "calls": statistics.median(calls),
        "rows": statistics.median(rows),
    }


def plot(results: dict[int, dict[str, float]], path: Path):
    """Seconds and calls over the number of steps."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = list(results)
    for name, label in (("naive", "official sampler"), ("ours", "md4_hf")):
        axes[0].plot(steps, [row[name] for row in results.values()], marker="o", label=label)
    axes[0].set(ylabel="seconds per sample")
    axes[1].plot(steps, steps, marker="o", label="official sampler")
    axes[1].plot(steps, [row["calls"] for row in results.values()], marker="o", label="md4_hf")
    axes[1].axhline(SETTINGS["A"].length, color="grey", linestyle=":", label="positions")
    axes[1].set(ylabel="calls of the network per sample")
    for axis in axes:
        axis.set(xlabel="steps T")
        log_axes(axis, steps)
    figure.savefig(path, dpi=120)


def report(args: argparse.Namespace) -> str:
    """Measure, and write it up."""
    lines = [
        "# Sampling against the official sampler",
        "",
        machine(),
        "",
        "```bash",
        "python benchmarks/sampling.py " + shlex.join(sys.argv[1:]),
        "```",
        "",
        f"Random weights; cosine grid, linear schedule; medians of {args.repeats} runs. The official sampler is timed "
        f"over {args.timed_steps} of its T equal steps. Calls: of the network, for the whole batch; rows: of the "
        "network's input, per sample.",
        "",
        "| setting | T | batch | official, s | md4_hf, s | times faster | calls (official: T) | rows per sample |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    jobs = [job for job in JOBS if job.setting in args.settings and job.batch <= args.largest_batch]
    for job in tqdm(jobs, desc="jobs"):
        row = measure(job, args.repeats, args.timed_steps)
        lines.append(
            f"| {job.setting} | {job.steps} | {job.batch} | {row['naive']:.1f} | {row['ours']:.2f} | "
            f"**{row['ratio']:.1f}** | {row['calls']:.0f} | {row['rows']:.0f} |"
        )
    lines += ["", *(f"- {name}: {SETTINGS[name].describe().rsplit(',', 1)[0]}" for name in args.settings)]
    if args.growth:
        steps = (16, 64, 256, 1000, 4000)
        results = {n: measure(Job("A", n, 1), 1, min(n, args.timed_steps)) for n in tqdm(steps, desc="growth with T")}
        picture = Path(args.output or "sampling.md").with_suffix(".png")
        plot(results, picture)
        lines += ["", f"![Seconds and calls over the number of steps]({picture.name})", "", "Setting A, batch 1."]
    return "\n".join(lines) + "\n"


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=["A", "B"], choices=["A", "B"])
    parser.add_argument("--largest_batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timed_steps", type=int, default=8)
    parser.add_argument("--growth", action="store_true", help="Also plot the growth with the number of steps.")
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    args = parser.parse_args()
    publish(report(args), args.output)


if __name__ == "__main__":
    main()
