# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling against the official sampler and MDLM's: seconds and calls per sample.

python benchmarks/sampling.py --threads 1 --output benchmarks/results/sampling.md

The official sampler calls the whole network at every step; MDLM's, whose network sees no time, only after a step that
has changed a token of the batch. Their steps cost the same, so that both are timed over some of them; ours draws whole
samples. All take turns in one process. The report is written again after each job.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from mdlm import CachedNetwork, cached_calls, mdlm_config
from measuring import DEVICE, clock_of, has_fast_bf16, log_axes, machine, publish, seconds
from naive import sampling_step
from tqdm import tqdm
from training_step import LABELS, MDLM, OFFICIAL, OURS, SETTINGS

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4Config, MD4ForMaskedDiffusion


matplotlib.use("agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Job:
    """A network, and how it is sampled."""

    setting: str
    steps: int
    batch: int


JOBS = [Job("A", 256, 1), *(Job("A", 1000, batch) for batch in (1, 4, 16)), Job("B", 1000, 1)]


CALLS = {MDLM: "mdlm_calls", OURS: "calls"}  # of the network, in the figures of a job


class CallCounter:
    """Counts the calls of a model, and the rows in them."""

    def __init__(self, model: torch.nn.Module):
        self.calls = self.rows = 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.calls += 1
        self.rows += len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])


def random_model(config: MD4Config, dtype: torch.dtype) -> MD4ForMaskedDiffusion:
    """A network with random weights."""
    torch.manual_seed(0)
    model = MD4ForMaskedDiffusion(config).to(DEVICE, dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


class Samplers:
    """The three ways to draw samples for a job in one precision.

    Each method gives the seconds of a batch, by the clock.
    """

    def __init__(self, job: Job, dtype: torch.dtype, timed_steps: int, clock: Callable[[], float]):
        self.job, self.timed_steps, self.clock = job, timed_steps, clock
        config = SETTINGS[job.setting].config()
        self.scheduler = MaskedDiffusionScheduler(mask_token_id=config.mask_token_id)
        self.scheduler.set_timesteps(job.steps)
        self.model, self.mdlm = random_model(config, dtype), random_model(mdlm_config(config), dtype)
        self.pipeline = MaskedDiffusionPipeline(self.model, MaskedDiffusionScheduler())
        self.pipeline.set_progress_bar_config(disable=True)
        self.masks = torch.full((job.batch, config.max_position_embeddings), config.mask_token_id, device=DEVICE)
        self.mdlm_calls = cached_calls(self.scheduler, *self.masks.shape, config.mask_token_id)

    def seconds_of_a_step(self, network: Callable) -> float:
        """Mean over some steps, evenly spread over the process."""
        unmask = self.scheduler.unmask_probabilities()
        chosen = torch.linspace(0, self.job.steps - 1, self.timed_steps).long().tolist()

        def run():
            for step in chosen:
                t = self.scheduler.timesteps[step].to(DEVICE)
                sampling_step(network, self.masks, t, unmask[step].item())

        return seconds(run, self.clock) / self.timed_steps

    def official(self, seed: int) -> float:
        """Step by step."""
        return self.job.steps * self.seconds_of_a_step(self.model)

    def mdlms(self, seed: int) -> float:
        """Step by step, with the logits of the last call as long as they hold."""
        cached = CachedNetwork(self.mdlm)
        sampling_step(cached, self.masks, self.scheduler.timesteps[0].to(DEVICE), 0.0)
        replays = (self.job.steps - self.mdlm_calls) * self.seconds_of_a_step(cached)
        return self.mdlm_calls * self.seconds_of_a_step(self.mdlm) + replays

    def ours(self, seed: int) -> float:
        """Whole samples by the pipeline; counts its calls, and the rows in them."""
        self.counter = CallCounter(self.model)
        arguments = {"num_samples": self.job.batch, "num_inference_steps": self.job.steps, "output_type": "ids"}
        arguments["generator"] = torch.Generator().manual_seed(seed)
        return seconds(functools.partial(self.pipeline, **arguments), self.clock)

    def warm_up(self):
        """Call each network once."""
        for network in (self.model, self.mdlm):
            sampling_step(network, self.masks, self.scheduler.timesteps[0].to(DEVICE), 0.0)


def measure(
    job: Job, dtypes: list[str], repeats: int, timed_steps: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Figures of each precision, all samplers and precisions in turn, ours with a seed of its own each time."""
    samplers = {dtype: Samplers(job, getattr(torch, dtype), timed_steps, clock) for dtype in dtypes}
    times: dict[tuple[str, str], list[float]] = {(v, dtype): [] for v in LABELS for dtype in dtypes}
    for sampler in samplers.values():
        sampler.warm_up()
    for repeat in range(repeats):
        for dtype, sampler in samplers.items():
            for variant, draw in zip(LABELS, (sampler.official, sampler.mdlms, sampler.ours), strict=True):
                times[variant, dtype].append(draw(repeat))

    def ratio(variant: str, dtype: str, ours: str) -> float:
        return statistics.median(a / b for a, b in zip(times[variant, dtype], times[OURS, ours], strict=True))

    return {
        dtype: {
            **{variant: statistics.median(times[variant, dtype]) for variant in LABELS},
            "official_ratio": ratio(OFFICIAL, dtype, dtype),
            "mdlm_ratio": ratio(MDLM, dtype, dtype),
            "official_ratio_first": ratio(OFFICIAL, dtypes[0], dtype),
            "mdlm_ratio_first": ratio(MDLM, dtypes[0], dtype),
            "calls": sampler.counter.calls,
            "mdlm_calls": sampler.mdlm_calls,
            "rows": sampler.counter.rows / job.batch,
        }
        for dtype, sampler in samplers.items()
    }


def plot(results: dict[int, dict[str, float]], path: Path):
    """Seconds and calls over the number of steps."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = list(results)
    calls = {OFFICIAL: steps, **{v: [row[key] for row in results.values()] for v, key in CALLS.items()}}
    for variant, label in LABELS.items():
        axes[0].plot(steps, [row[variant] for row in results.values()], marker="o", label=label)
        axes[1].plot(steps, calls[variant], marker="o", label=label)
    axes[0].set(ylabel="seconds per sample")
    axes[1].axhline(SETTINGS["A"].length, color="grey", linestyle=":", label="positions")
    axes[1].set(ylabel="calls of the network per sample")
    for axis in axes:
        axis.set(xlabel="steps T")
        log_axes(axis, steps)
    figure.savefig(path, dpi=120)


def opening(args: argparse.Namespace) -> list[str]:
    """Lines before the table's rows."""
    return [
        "# Sampling against the official sampler and MDLM's",
        "",
        machine(),
        "",
        "```bash",
        "python benchmarks/sampling.py " + shlex.join(sys.argv[1:]),
        "```",
        "",
        f"Random weights; cosine grid, linear schedule; {'processor' if args.threads == 1 else 'wall'} time, medians "
        f"of {args.repeats} turns at batch 1, else of one. The official sampler, and MDLM's with its own network and "
        f"its cache, are timed over {args.timed_steps} of their T equal steps. Ratios: how many times as long they "
        f"take, in the same precision and in {args.dtypes[0]}. Calls: of the network, for the whole batch (official: "
        "T); rows: of md4_hf's input, per sample.",
        "",
        "| setting | T | batch | precision | official, s | MDLM, s | md4_hf, s | official / md4_hf | MDLM / md4_hf | "
        f"the two in {args.dtypes[0]} / md4_hf | calls of MDLM | of md4_hf | rows per sample |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]


def table_rows(job: Job, found: dict[str, dict[str, float]]) -> list[str]:
    """Rows of the table for a job."""
    return [
        f"| {job.setting} | {job.steps} | {job.batch} | {dtype} | {row[OFFICIAL]:.1f} | {row[MDLM]:.1f} | "
        f"{row[OURS]:.2f} | **{row['official_ratio']:.1f}** | **{row['mdlm_ratio']:.2f}** | "
        f"{row['official_ratio_first']:.1f}, {row['mdlm_ratio_first']:.2f} | "
        f"{row['mdlm_calls']} | {row['calls']} | {row['rows']:.0f} |"
        for dtype, row in found.items()
    ]


def growth_section(args: argparse.Namespace, clock: Callable[[], float]) -> list[str]:
    """Draw the growth with the number of steps, and show it."""
    results, dtype = {}, args.dtypes[-1]
    for steps in tqdm((16, 64, 256, 1000, 4000), desc="growth with T"):
        results[steps] = measure(Job("A", steps, 1), [dtype], 1, min(steps, args.timed_steps), clock)[dtype]
    picture = Path(args.output or "sampling.md").with_suffix(".png")
    plot(results, picture)
    return ["", f"![Seconds and calls over the number of steps]({picture.name})", "", f"Setting A, batch 1, {dtype}."]


def run(args: argparse.Namespace):
    """Measure, and write the report anew after each job."""
    clock = clock_of(args.threads)
    lines = opening(args)
    chosen = {Job(*choice) for choice in itertools.product(args.settings, args.steps, args.batches)}
    jobs = [job for job in JOBS if job in chosen]
    for job in tqdm(jobs, desc="jobs"):
        repeats = args.repeats if job.batch == 1 else 1
        lines += table_rows(job, measure(job, args.dtypes, repeats, args.timed_steps, clock))
        if args.output is not None:
            publish("\n".join(lines) + "\n", args.output)
    lines += ["", *(f"- {name}: {SETTINGS[name].describe().rsplit(',', 1)[0]}" for name in args.settings)]
    if args.growth:
        lines += growth_section(args, clock)
    publish("\n".join(lines) + "\n", args.output)


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=["A", "B"], choices=["A", "B"])
    parser.add_argument("--steps", nargs="+", type=int, default=sorted({job.steps for job in JOBS}))
    parser.add_argument("--batches", nargs="+", type=int, default=sorted({job.batch for job in JOBS}))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], help="Where fast, both by default.")
    parser.add_argument("--threads", type=int, help="Threads of the processor; with 1, processor time is measured.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timed_steps", type=int, default=8)
    parser.add_argument("--growth", action="store_true", help="Also plot the growth with the number of steps.")
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    args = parser.parse_args()
    args.dtypes = args.dtypes or ["float32", *(["bfloat16"] if has_fast_bf16() else [])]
    run(args)


if __name__ == "__main__":
    main()
