# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A training step against the official formulation and MDLM: time, tokens per second, memory, share of the matmul peak.

python benchmarks/training_step.py --threads 1 --output benchmarks/results/training_step.md

The variants take turns in one process, at fixed stratified times; memory is measured in a process each. The report is
written again after each setting.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from flops import training_flops
from mdlm import mdlm_config, mdlm_loss
from measuring import (
    DEVICE,
    clock_of,
    has_fast_bf16,
    interleaved,
    log_axes,
    machine,
    matmul_peak,
    paired_ratio,
    peak_memory,
    publish,
    seconds,
    start_watching_memory,
)
from naive import genmd4_loss, md4_loss
from tqdm import tqdm

from md4_hf import MD4Config, MD4ForMaskedDiffusion, MD4TrainingArguments
from md4_hf.objective.noise import most_masked_tokens
from md4_hf.training.compilation import compile_blocks


matplotlib.use("agg")
import matplotlib.pyplot as plt


OFFICIAL, MDLM, OURS, COMPILED = "official", "MDLM", "md4_hf", "md4_hf, compiled"
LABELS = {OFFICIAL: "official formulation", MDLM: "MDLM", OURS: "md4_hf"}


@dataclass(frozen=True)
class Setting:
    """A network and a batch."""

    vocab_size: int
    length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    batch: int
    objective: str = "md4"
    dtype: str = "float32"

    def config(self) -> MD4Config:
        """The model's configuration."""
        genmd4 = {"masking_schedule": "poly", "learn_masking_schedule": True} if self.objective == "genmd4" else {}
        return MD4Config(
            vocab_size=self.vocab_size,
            max_position_embeddings=self.length,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            **genmd4,
        )

    def describe(self) -> str:
        """In words."""
        return (
            f"{self.vocab_size} tokens, length {self.length}, {self.hidden_size} wide, {self.num_layers} layers, "
            f"batch {self.batch}"
        )


SETTINGS = {
    "A": Setting(28, 256, 384, 6, 6, 16),
    "B": Setting(50258, 256, 256, 4, 4, 4),
    "B16": Setting(50258, 256, 256, 4, 4, 16),
    "C": Setting(50258, 1024, 768, 12, 12, 1),
    "GenMD4": Setting(50258, 256, 256, 4, 4, 4, objective="genmd4"),
}


class Step:
    """A whole training step of one variant: forward, backward and optimizer."""

    def __init__(self, setting: Setting, variant: str, clock: Callable[[], float] = time.perf_counter):
        torch.manual_seed(0)
        self.setting, self.variant, self.clock = setting, variant, clock
        config = setting.config()
        self.model = MD4ForMaskedDiffusion(mdlm_config(config) if variant == MDLM else config).to(DEVICE).train()
        for parameter in self.model.parameters():  # a fresh network's head and gates are zero
            torch.nn.init.normal_(parameter, std=0.02)
        self.network = compiled(self.model) if variant == COMPILED else self.model
        is_ours = variant in (OURS, COMPILED)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True if is_ours else None)
        self.t = ((0.37 + torch.arange(setting.batch) / setting.batch) % 1.0).to(DEVICE)
        self.x0 = torch.randint(setting.vocab_size - 1, (setting.batch, setting.length), device=DEVICE)
        copies = (2,) if setting.objective == "genmd4" else ()
        self.noise = torch.rand(setting.batch, *copies, setting.length, device=DEVICE)
        alpha = (1.0 - self.t).view(-1, *(1,) * (self.noise.dim() - 1))
        clean = self.x0[:, None].expand(self.noise.shape) if copies else self.x0
        self.xt = torch.where(self.noise < alpha, clean, setting.vocab_size - 1)
        self.bound = None
        if setting.objective == "md4":
            schedule = self.model.masking_schedule
            self.bound = most_masked_tokens(schedule, None, setting.batch, setting.batch, setting.length)
        self.without_optimizer: list[float] = []  # seconds of each call

    def loss(self) -> torch.Tensor:
        """The loss, under autocast if asked for."""
        dtype = getattr(torch, self.setting.dtype)
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            if self.variant in (OURS, COMPILED):
                return self.network(self.xt, timesteps=self.t, labels=self.x0, max_masked=self.bound).loss
            official = {"md4": md4_loss, "genmd4": genmd4_loss}[self.setting.objective]
            return (mdlm_loss if self.variant == MDLM else official)(self.network, self.xt, self.x0, self.t)

    def __call__(self):
        self.without_optimizer.append(seconds(lambda: self.loss().backward(), self.clock))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def model_flops(self) -> float:
        """Floating-point operations that the loss and its gradient need: all of the blocks, the head where masked."""
        masked = int((self.xt == self.model.config.mask_token_id).sum())
        return training_flops(self.model.config, self.xt.numel(), self.setting.length, masked)


def compiled(model: MD4ForMaskedDiffusion) -> torch.nn.Module:
    """Compile a model as MD4Trainer does with `--torch_compile true`: block by block on a processor."""
    if DEVICE.type != "cpu":
        return torch.compile(model)
    compile_blocks(model, MD4TrainingArguments(use_cpu=True, torch_compile=True, report_to="none"))
    return model


def variants_of(setting: Setting) -> list[str]:
    """Variants that a setting has: MDLM learns no schedule."""
    return [OFFICIAL, *([MDLM] if setting.objective == "md4" else []), OURS, COMPILED]


def compare(setting: Setting, repeats: int, clock: Callable[[], float], variants: list[str]) -> list[dict]:
    """Figures of each variant, which take turns."""
    steps = {name: Step(setting, name, clock) for name in variants}
    peak = functools.partial(matmul_peak, getattr(torch, setting.dtype), clock=clock)
    before = peak()
    times = interleaved(steps, repeats, clock)
    best_peak = max(before, peak())
    rows = []
    for name, step in steps.items():
        elapsed, gradients = statistics.median(times[name]), statistics.median(step.without_optimizer[1:])
        flops = step.model_flops()
        rows.append(
            {
                "variant": name,
                "seconds": elapsed,
                "without_optimizer": gradients,
                "slower": {ours: paired_ratio(times, name, ours) for ours in (OURS, COMPILED) if ours in times},
                "tokens_per_second": step.x0.numel() / elapsed,
                "utilisation": flops / elapsed / best_peak,
                "utilisation_without_optimizer": flops / gradients / best_peak,
                "peak_gflops": best_peak / 1e9,
            }
        )
    return rows


def memory_of_a_step(name: str, variant: str) -> int:
    """Bytes above weights, gradients and optimizer state at the peak of a step; run in a process of its own."""
    step = Step(SETTINGS[name], variant)
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step()
    before = start_watching_memory()
    step.loss().backward()
    return peak_memory() - before


def memory(name: str) -> dict[str, float]:
    """Memory of the variants, each in a fresh process, in MiB."""
    result = {}
    for variant in variants_of(SETTINGS[name])[:-1]:
        command = [sys.executable, __file__, "--memory_of", name, variant]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result[variant] = json.loads(output.splitlines()[-1]) / 2**20
    return result


def growth(settings: dict[int, Setting], clock: Callable[[], float], label: str) -> dict[str, list[float]]:
    """Seconds of a step of the variants, over settings."""
    found: dict[str, list[float]] = {"x": list(settings), **{name: [] for name in LABELS}}
    for setting in tqdm(settings.values(), desc=f"growth with {label}", leave=False):
        for row in compare(setting, 2, clock, list(LABELS)):
            found[row["variant"]].append(row["seconds"])
    return found


def plot(curves: dict[str, dict[str, list[float]]], path: Path):
    """A panel for each thing that grows."""
    figure, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 4), layout="constrained")
    for axis, (label, curve) in zip(axes, curves.items(), strict=True):
        for variant, name in LABELS.items():
            axis.plot(curve["x"], curve[variant], marker="o", label=name)
        axis.set(xlabel=label, ylabel="seconds per training step")
        log_axes(axis, curve["x"])
    figure.savefig(path, dpi=120)


def opening(args: argparse.Namespace) -> list[str]:
    """Lines before the tables."""
    clock = "Processor time of one thread" if args.threads == 1 else "Wall time"
    return [
        "# A training step against the official formulation and MDLM",
        "",
        machine(),
        f"float32 products: {torch.get_float32_matmul_precision()!r} precision."
        + ("" if has_fast_bf16() else " bf16 is left out: this processor emulates it."),
        "",
        "```bash",
        "python benchmarks/training_step.py " + shlex.join(sys.argv[1:]),
        "```",
        "",
        "The official formulation has the network and the weights of md4_hf; MDLM has its own network (the DDiT "
        "without a time input), torch's attention in one call, and log-probabilities of all positions. Compiled: as "
        f"`--torch_compile true` does it. {clock}, medians of {args.repeats} interleaved steps after one of warm-up; "
        "the columns of ratios are medians of those within a turn: how many times as long the variant takes as md4_hf "
        "does, and as that does compiled. The others have torch's default AdamW, md4_hf the fused one. Utilisation: "
        "operations that loss and gradient need (the head at masked tokens) per second of the step, and of forward "
        "and backward alone, as a share of the fastest matrix product measured in the run.",
    ]


def time_table(rows: dict[tuple[str, str], list[dict]]) -> list[str]:
    """Lines of the table of times."""
    lines = [
        "",
        "| setting | precision | variant | seconds | without optimizer | × md4_hf | × compiled | tokens/s | "
        "utilisation | without optimizer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, dtype), found in rows.items():
        for row in found:
            lines.append(
                f"| {name} | {dtype} | {row['variant']} | {row['seconds']:.3f} | {row['without_optimizer']:.3f} | "
                + "".join(f"**{ratio:.2f}** | " for ratio in row["slower"].values())
                + f"{row['tokens_per_second']:,.0f} | {row['utilisation']:.0%} of {row['peak_gflops']:,.0f} GFLOP/s | "
                f"{row['utilisation_without_optimizer']:.0%} |"
            )
    return [
        *lines,
        "",
        *(f"- {name}: {SETTINGS[name].describe()}" for name in dict.fromkeys(name for name, _ in rows)),
    ]


def memory_table(used: dict[str, dict[str, float]]) -> list[str]:
    """Lines of the table of memory."""
    lines = ["", "| memory above weights, gradients and optimizer | official, MiB | MDLM, MiB | md4_hf, MiB | share |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name, row in used.items():
        mdlm = f"{row[MDLM]:,.0f}" if MDLM in row else "–"
        share = f"1/{row[OFFICIAL] / row[OURS]:.1f} of the official"
        lines.append(f"| {name}, float32 | {row[OFFICIAL]:,.0f} | {mdlm} | {row[OURS]:,.0f} | {share} |")
    return lines


def growth_section(args: argparse.Namespace, clock: Callable[[], float]) -> list[str]:
    """Draw the growth with length and vocabulary, and show it."""
    small = Setting(5000, 256, 256, 4, 4, 4)
    lengths = {n: replace(small, length=n) for n in (64, 128, 256, 512, 1024)}
    vocabularies = {n: replace(small, vocab_size=n) for n in (28, 1000, 10_000, 50_258, 100_000)}
    curves = {
        "length": growth(lengths, clock, "length"),
        "vocabulary": growth(vocabularies, clock, "vocabulary"),
    }
    picture = Path(args.output or "training_step.md").with_suffix(".png")
    plot(curves, picture)
    return [
        "",
        f"![Seconds per step over length and vocabulary]({picture.name})",
        "",
        small.describe() + ", float32, where not varied.",
    ]


def measure(args: argparse.Namespace):
    """Measure, and write the report anew after each setting."""
    clock = clock_of(args.threads)
    lines, rows, used = opening(args), {}, {}

    def write(*more: str):
        tables = [*(time_table(rows) if rows else []), *(memory_table(used) if used else [])]
        publish("\n".join([*lines, *tables, *more]) + "\n", args.output)

    for name, dtype in tqdm(list(itertools.product(args.settings, args.dtypes)), desc="settings"):
        setting = replace(SETTINGS[name], dtype=dtype)
        rows[name, dtype] = compare(setting, args.repeats, clock, variants_of(setting))
        torch.compiler.reset()
        if args.output is not None:
            write()
    for name in tqdm(args.settings, desc="memory"):
        used[name] = memory(name)
    write(*(growth_section(args, clock) if args.growth else []))


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], help="Where fast, both by default.")
    parser.add_argument("--threads", type=int, help="Threads of the processor; with 1, processor time is measured.")
    parser.add_argument("--growth", action="store_true", help="Also plot the growth with length and vocabulary.")
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    parser.add_argument("--memory_of", nargs=2, metavar=("SETTING", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of is not None:
        print(json.dumps(memory_of_a_step(*args.memory_of)))
        return
    args.dtypes = args.dtypes or ["float32", *(["bfloat16"] if has_fast_bf16() else [])]
    measure(args)


if __name__ == "__main__":
    main()
