# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A training step against the official formulation: time, tokens per second, memory, share of the matmul peak.

python benchmarks/training_step.py --output benchmarks/results/training_step.md

The variants take turns in one process, at fixed stratified times; memory is measured in a process each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from flops import training_flops
from measuring import (
    DEVICE,
    has_fast_bf16,
    interleaved,
    log_axes,
    machine,
    matmul_peak,
    paired_ratio,
    peak_memory,
    publish,
    start_watching_memory,
)
from naive import genmd4_loss, md4_loss
from tqdm import tqdm

from md4_hf import MD4Config, MD4ForMaskedDiffusion
from md4_hf.objective.noise import most_masked_tokens


matplotlib.use("agg")
import matplotlib.pyplot as plt


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
    "C": Setting(50258, 1024, 768, 12, 12, 2),
    "GenMD4": Setting(50258, 256, 256, 4, 4, 4, objective="genmd4"),
}


class Step:
    """A whole training step of one variant: forward, backward and optimizer."""

    def __init__(self, setting: Setting, variant: str, compiled: bool = False):
        torch.manual_seed(0)
        self.setting, self.variant = setting, variant
        self.model = MD4ForMaskedDiffusion(setting.config()).to(DEVICE).train()
        for parameter in self.model.parameters():  # a fresh network's head and gates are zero
            torch.nn.init.normal_(parameter, std=0.02)
        self.network = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-5, fused=True if variant == "md4_hf" else None
        )
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

    def loss(self) -> torch.Tensor:
        """The loss, under autocast if asked for."""
        dtype = getattr(torch, self.setting.dtype)
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            if self.variant == "md4_hf":
                return self.network(self.xt, timesteps=self.t, labels=self.x0, max_masked=self.bound).loss
            return {"md4": md4_loss, "genmd4": genmd4_loss}[self.setting.objective](
                self.network, self.xt, self.x0, self.t
            )

    def __call__(self):
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients_only(self):
        """The step without its optimizer."""
        self.loss().backward()
        self.optimizer.zero_grad()

    def model_flops(self) -> float:
        """Floating-point operations that the loss and its gradient need: all of the blocks, the head where masked."""
        masked = int((self.xt == self.model.config.mask_token_id).sum())
        return training_flops(self.model.config, self.xt.numel(), self.setting.length, masked)


def compare(setting: Setting, repeats: int, compiled: bool) -> dict[str, float]:
    """Both variants in turn."""
    steps = {name: Step(setting, name) for name in ("naive", "md4_hf")}
    if compiled:
        steps["compiled"] = Step(setting, "md4_hf", compiled=True)
    peak = matmul_peak(getattr(torch, setting.dtype))
    times = interleaved(steps, repeats)
    without = interleaved({name: step.gradients_only for name, step in steps.items()}, repeats)
    peak = max(peak, matmul_peak(getattr(torch, setting.dtype)))
    best = "compiled" if compiled else "md4_hf"
    median = {name: statistics.median(x) for name, x in times.items()}
    return {
        "naive_seconds": median["naive"],
        "seconds": median["md4_hf"],
        **({"compiled_seconds": median["compiled"]} if compiled else {}),
        "ratio": paired_ratio(times, "naive", best),
        "ratio_without_optimizer": paired_ratio(without, "naive", best),
        "tokens_per_second": steps["md4_hf"].xt.numel() / median[best],
        "utilisation": steps["md4_hf"].model_flops() / statistics.median(without[best]) / peak,
        "peak_gflops": peak / 1e9,
    }


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
    """Memory of both variants, each in a fresh process, in MiB."""
    result = {}
    for variant in ("naive", "md4_hf"):
        command = [sys.executable, __file__, "--memory_of", name, variant]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result[variant] = json.loads(output.splitlines()[-1]) / 2**20
    return result


def growth(settings: dict[int, Setting], repeats: int, label: str) -> dict[str, list[float]]:
    """Seconds of a step of both variants, over settings."""
    found: dict[str, list[float]] = {"x": list(settings), "naive": [], "md4_hf": []}
    for setting in tqdm(settings.values(), desc=f"growth with {label}", leave=False):
        row = compare(setting, repeats, compiled=False)
        found["naive"].append(row["naive_seconds"])
        found["md4_hf"].append(row["seconds"])
    return found


def plot(curves: dict[str, dict[str, list[float]]], path: Path):
    """A panel for each thing that grows."""
    figure, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 4), layout="constrained")
    for axis, (label, curve) in zip(axes, curves.items(), strict=True):
        for variant, name in (("naive", "official formulation"), ("md4_hf", "md4_hf")):
            axis.plot(curve["x"], curve[variant], marker="o", label=name)
        axis.set(xlabel=label, ylabel="seconds per training step")
        log_axes(axis, curve["x"])
    figure.savefig(path, dpi=120)


def report(args: argparse.Namespace) -> str:
    """Measure, and write it up."""
    dtypes = ["float32", *(["bfloat16"] if has_fast_bf16() else [])]
    jobs = list(itertools.product(args.settings, dtypes))
    rows = {
        (name, dtype): compare(replace(SETTINGS[name], dtype=dtype), args.repeats, args.compile)
        for name, dtype in tqdm(jobs, desc="settings")
    }
    lines = [
        "# A training step against the official formulation",
        "",
        machine(),
        f"float32 products: {torch.get_float32_matmul_precision()!r} precision."
        + ("" if len(dtypes) > 1 else " bf16 is left out: this processor emulates it."),
        "",
        "```bash",
        "python benchmarks/training_step.py " + shlex.join(sys.argv[1:]),
        "```",
        "",
        "Both variants have the same network and weights; times are medians of "
        f"{args.repeats} interleaved steps after one of warm-up, ratios medians of the pairs. The official formulation "
        "has torch's default AdamW, md4_hf the fused one; the ratio without optimizer is of forward and backward only. "
        "Utilisation: operations that loss and gradient need (the head at masked tokens) per second of forward and "
        "backward, as a share of the fastest matrix product measured in the run.",
        "",
        "| setting | precision | official, s | md4_hf, s | times faster | without optimizer | tokens/s | utilisation |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, dtype), row in rows.items():
        ours = row.get("compiled_seconds", row["seconds"])
        lines.append(
            f"| {name} | {dtype} | {row['naive_seconds']:.3f} | {ours:.3f} | **{row['ratio']:.2f}** | "
            f"{row['ratio_without_optimizer']:.2f} | {row['tokens_per_second']:,.0f} | {row['utilisation']:.0%} of "
            f"{row['peak_gflops']:,.0f} GFLOP/s |"
        )
    lines += ["", *(f"- {name}: {SETTINGS[name].describe()}" for name in args.settings), ""]
    lines += ["| memory above weights, gradients and optimizer | official, MiB | md4_hf, MiB | share |"]
    lines += ["| --- | --- | --- | --- |"]
    used = {name: memory(name) for name in tqdm(args.settings, desc="memory")}
    for name, row in used.items():
        share = row["md4_hf"] / row["naive"]
        lines.append(f"| {name}, float32 | {row['naive']:,.0f} | {row['md4_hf']:,.0f} | 1/{1 / share:.1f} |")
    if args.growth:
        small = Setting(5000, 256, 256, 4, 4, 4)
        curves = {
            "length": growth({n: replace(small, length=n) for n in (64, 128, 256, 512, 1024)}, 2, "length"),
            "vocabulary": growth(
                {n: replace(small, vocab_size=n) for n in (28, 1000, 10_000, 50_258, 100_000)}, 2, "vocabulary"
            ),
        }
        picture = Path(args.output or "training_step.md").with_suffix(".png")
        plot(curves, picture)
        lines += [
            "",
            f"![Seconds per step over length and vocabulary]({picture.name})",
            "",
            small.describe() + " where not varied.",
        ]
    return "\n".join(lines) + "\n"


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="Also compile the network, and compare that.")
    parser.add_argument("--growth", action="store_true", help="Also plot the growth with length and vocabulary.")
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    parser.add_argument("--memory_of", nargs=2, metavar=("SETTING", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of is not None:
        print(json.dumps(memory_of_a_step(*args.memory_of)))
        return
    publish(report(args), args.output)


if __name__ == "__main__":
    main()
