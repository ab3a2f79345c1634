# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation and sampling in bf16 on a processor: seconds, the share of matrix products, and how exact they are.

python benchmarks/evaluation.py --threads 1 --output benchmarks/results/evaluation.md

Evaluation under autocast, as `md4 evaluate --bf16 true` runs it; sampling with weights in bf16, as `md4 sample --dtype
bfloat16` does. How exact they are is measured on a network that is first trained for some steps on Python's reference
manual, with the same noise in both precisions.
"""

from __future__ import annotations

import argparse
import copy
import math
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gpu_parts.learning import Corpus
from gpu_parts.part import Context, Options
from gpu_parts.steps import TrainingStep
from measuring import DEVICE, clock_of, interleaved, machine, paired_ratio, publish
from sampling import random_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from training_step import SETTINGS

from md4_hf import (
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForMaskedDiffusion,
    Objective,
    example_nelbo,
)


FLOAT32, BFLOAT16 = "float32", "bfloat16"
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear"}
SMALL = {"vocab_size": 28, "max_position_embeddings": 128, "hidden_size": 128, "num_hidden_layers": 4}
LEARNING_RATE, TRAINING_BATCH = 2e-3, 16
STEPS = 256  # of the sampler
CHECKED_ROWS, DRAWS = 64, 4


def evaluation(model: MD4ForMaskedDiffusion, ids: Tensor, dtype: str, num_draws: int = 1) -> Tensor:
    """Nats per token of rows of ids, with the noise of evaluation, `(rows,)`."""
    index = torch.arange(len(ids))
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == BFLOAT16):
        nats, tokens = example_nelbo(
            model, Objective.of(model), {"input_ids": ids}, index, seed=0, num_draws=num_draws
        )
    return nats / tokens


def sampling(model: MD4ForMaskedDiffusion, batch: int) -> Tensor:
    """Ids of a batch of samples."""
    pipeline = MaskedDiffusionPipeline(model, MaskedDiffusionScheduler())
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(num_samples=batch, num_inference_steps=STEPS, output_type="ids", generator=generator).sequences


def share_of_products(function: Callable[[], object]) -> float:
    """Share of the time of a call that is spent in matrix products."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(times.get(name, 0.0) for name in PRODUCTS) / sum(times.values())


def speed_rows(name: str, repeats: int, clock: Callable[[], float]) -> list[str]:
    """Rows of the table of times for a setting."""
    setting = SETTINGS[name]
    models = {dtype: random_model(setting.config(), getattr(torch, dtype)) for dtype in (FLOAT32, BFLOAT16)}
    ids = torch.randint(setting.vocab_size - 1, (setting.batch, setting.length), device=DEVICE)
    tasks: dict[str, dict[str, Callable[[], object]]] = {
        f"bound of {setting.batch} rows": {
            dtype: lambda dtype=dtype: evaluation(models[FLOAT32], ids, dtype) for dtype in models
        },
        f"a sample, T = {STEPS}": {dtype: lambda model=model: sampling(model, 1) for dtype, model in models.items()},
    }
    rows = []
    for task, variants in tasks.items():
        times = interleaved(variants, repeats, clock)
        seconds = [f"{statistics.median(times[dtype]):.2f}" for dtype in variants]
        shares = [f"{share_of_products(function):.0%}" for function in variants.values()]
        ratio = f"**{paired_ratio(times, FLOAT32, BFLOAT16):.2f}**"
        rows.append(f"| {name} | {task} | {' | '.join([*seconds, ratio, *shares])} |")
    return rows


def trained(corpus: Corpus, steps: int) -> MD4ForMaskedDiffusion:
    """A small network after some steps on the corpus."""
    config = MD4Config(num_attention_heads=4, **SMALL)
    torch.manual_seed(0)
    model = MD4ForMaskedDiffusion(config).to(DEVICE)
    step = TrainingStep(config, TRAINING_BATCH, DEVICE, dtype=torch.float32, model=model)
    length, train = config.max_position_embeddings, torch.from_numpy(corpus.train.astype(np.int64)).to(DEVICE)
    for number in tqdm(range(steps), desc="training"):
        for group in step.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (number + 1) / 50) * (1.0 - number / steps)
        begin = torch.randint(len(train) - length, (TRAINING_BATCH, 1), device=DEVICE)
        step.x0 = train[begin + torch.arange(length, device=DEVICE)]
        step()
    return model.eval()


def exactness(steps: int) -> list[str]:
    """Lines on the differences between the precisions."""
    corpus = Corpus.load(Context(Options(DEVICE.type, Path("runs")), deadline=math.inf))
    model = trained(corpus, steps)
    length = model.config.max_position_embeddings
    ids = torch.from_numpy(corpus.held_out[: CHECKED_ROWS * length].astype(np.int64)).view(-1, length).to(DEVICE)
    nats = {dtype: evaluation(model, ids, dtype, DRAWS).double() for dtype in (FLOAT32, BFLOAT16)}
    difference = nats[BFLOAT16] - nats[FLOAT32]
    error = nats[FLOAT32].std() / CHECKED_ROWS**0.5
    xt = ids.masked_fill(torch.rand(ids.shape, device=DEVICE) < 0.5, model.config.mask_token_id)
    t, masked = torch.full((len(ids),), 0.5, device=DEVICE), xt == model.config.mask_token_id
    with torch.no_grad():
        exact = model(xt, timesteps=t).logits[masked].double().softmax(dim=-1)
        rounded = copy.deepcopy(model).to(torch.bfloat16)(xt, timesteps=t).logits[masked].double().softmax(dim=-1)
    distance = 0.5 * (exact - rounded).abs().sum(dim=-1)
    return [
        "",
        f"Of a network of {SMALL['num_hidden_layers']} × {SMALL['hidden_size']} after {steps} steps: "
        f"{nats[FLOAT32].mean() / math.log(2.0):.4f} bits per character of {len(ids)} held-out rows (standard error "
        f"{error / math.log(2.0):.4f}) in float32, and {difference.mean() / math.log(2.0):+.5f} ± "
        f"{difference.std() / CHECKED_ROWS**0.5 / math.log(2.0):.5f} under autocast, with the same noise. Total "
        f"variation between the distributions of a masked token, half of the row masked: mean {distance.mean():.4f}, "
        f"largest of {len(distance)} {distance.max():.3f}.",
    ]


def report(args: argparse.Namespace) -> str:
    """Measure, and write it up."""
    clock = clock_of(args.threads)
    lines = [
        "# Evaluation and sampling in bf16",
        "",
        machine(),
        "",
        "```bash",
        "python benchmarks/evaluation.py " + shlex.join(sys.argv[1:]),
        "```",
        "",
        f"Random weights; {'processor' if args.threads == 1 else 'wall'} time, medians of {args.repeats} turns after "
        "one of warm-up. Shares: of matrix products in the time of a call.",
        "",
        "| setting | | float32, s | bf16, s | times faster | products, float32 | products, bf16 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in tqdm(args.settings, desc="settings"):
        lines += speed_rows(name, args.repeats, clock)
    lines += ["", *(f"- {name}: {SETTINGS[name].describe()}" for name in args.settings)]
    return "\n".join([*lines, *exactness(args.training_steps)]) + "\n"


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=["A", "B"], choices=["A", "B"])
    parser.add_argument("--threads", type=int, help="Threads of the processor; with 1, processor time is measured.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--training_steps", type=int, default=600)
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    args = parser.parse_args()
    publish(report(args), args.output)


if __name__ == "__main__":
    main()
