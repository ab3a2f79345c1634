# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Seconds per token against the length of a text: exact cache, none, approximate cache; and bytes of the cache."""

from __future__ import annotations

import argparse
import statistics
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import clock_of, interleaved, log_axes
from sampling import random_model
from tqdm import tqdm

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4Config
from md4_hf.utils.plots import figure_file


NETWORK = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_type": "swiglu"}
VOCAB_SIZE, BLOCK, STEPS = 28, 16, 16
EXACT, NONE, APPROXIMATE = "exact cache", "no cache", "approximate cache, of MD4"


class CacheMeter:
    """The most bytes in the cache that a model is given.

    The keys and values of a call's own tokens, which it adds to the cache, are not counted.
    """

    def __init__(self, model: torch.nn.Module):
        self.bytes = 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        cache = kwargs.get("past_key_values")
        tensors = [x for layer in (cache.layers if cache else []) for x in (layer.keys, layer.values) if x is not None]
        self.bytes = max(self.bytes, sum(x.numel() * x.element_size() for x in tensors))


def make_pipeline(length: int, block_size: int | None) -> MaskedDiffusionPipeline:
    """Pipeline of a network with random weights, for texts of up to this length."""
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": length, **NETWORK}
    config = MD4Config(**sizes, time_conditioning=False, block_size=block_size)
    pipeline = MaskedDiffusionPipeline(random_model(config, torch.float32), MaskedDiffusionScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per token of each way at each length, and bytes of the exact cache of a row."""
    clock, longest = clock_of(args.threads), max(args.lengths)
    blocks, bidirectional = make_pipeline(longest, BLOCK), make_pipeline(longest, None)
    meter, rows = CacheMeter(blocks.model), []

    def draw(pipeline: MaskedDiffusionPipeline, length: int, batch: int = 1, **options: Any):
        arguments = {"num_samples": batch, "length": length, "num_inference_steps": STEPS, "output_type": "ids"}
        pipeline(**arguments, generator=torch.Generator().manual_seed(0), **options)

    for length in tqdm(args.lengths, desc="speed"):
        meter.bytes = 0
        variants: dict[str, Callable[[], None]] = {
            EXACT: partial(draw, blocks, length),
            NONE: partial(draw, blocks, length, use_cache=False),
            APPROXIMATE: partial(draw, bidirectional, length, block_length=BLOCK),
        }
        times = interleaved(variants, args.repeats, clock)
        cache = meter.bytes
        batched = interleaved({EXACT: partial(draw, blocks, length, args.batch)}, args.repeats, clock)[EXACT]
        rows.append(
            {
                "length": length,
                **{name: statistics.median(values) / length for name, values in times.items()},
                "batched_tokens_per_second": args.batch * length / statistics.median(batched),
                "cache_bytes": cache,
            }
        )
    parameters = sum(x.numel() for x in blocks.model.parameters())
    settings = {"repeats": args.repeats, "batch": args.batch, "parameters": parameters}
    return {"settings": {**settings, "is_processor_time": clock is time.process_time}, "rows": rows}


def section(figures: dict[str, Any], picture: Path | None) -> list[str]:
    """Table of the seconds and bytes, and a plot of the seconds over the length."""
    settings, rows = figures["settings"], figures["rows"]
    kind = "Processor" if settings["is_processor_time"] else "Wall"
    description = (
        f"{kind} time of one text, medians of the timed turns ({settings['repeats']}); a network of "
        f"{settings['parameters']:,} parameters with random weights in float32, blocks of {BLOCK}, {STEPS} steps a "
        "block, a window of the longest text. Without a cache the network runs on the whole row at each step; the "
        "texts are those of the exact cache. Bytes are those of the cache's tensors when the last block is written."
    )
    lines = [
        "## Speed and memory",
        "",
        *textwrap.wrap(description, 120),
        "",
        f"| tokens | {EXACT}, ms per token | {NONE} | {APPROXIMATE} | tokens per second with the exact cache | "
        f"with {settings['batch']} texts at a time | cache of a text, KiB |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        cells = [f"{1e3 * row[name]:.2f}" for name in (EXACT, NONE, APPROXIMATE)]
        cells += [
            f"{1 / row[EXACT]:.0f}",
            f"{row['batched_tokens_per_second']:.0f}",
            f"{row['cache_bytes'] / 1024:.0f}",
        ]
        lines.append(f"| {row['length']} | " + " | ".join(cells) + " |")
    if picture is not None:
        path = picture.with_name(f"{picture.name}_speed.png")
        plot(path, rows)
        lines += ["", f"![milliseconds per token against the length]({path.name})"]
    return lines


def plot(path: Path, rows: list[dict[str, float]]):
    """Draw the milliseconds per token over the length."""
    lengths = [row["length"] for row in rows]
    with figure_file(path) as (panel,):
        for name, marker in ((NONE, "^"), (EXACT, "o"), (APPROXIMATE, "x")):
            panel.plot(lengths, [1000.0 * row[name] for row in rows], marker=marker, label=name)
        log_axes(panel, [int(length) for length in lengths])
        panel.get_legend().remove()  # the figure has one
        panel.set(xlabel="tokens of a text", ylabel="ms per token")
