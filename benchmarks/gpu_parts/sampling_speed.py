# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Whole samples by the planned sampler, step by step, by MDLM's cached rule, and block by block with a cache."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mdlm import CachedNetwork, cached_calls
from naive import sampling_step
from torch import Tensor

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler

from .part import Context, Row
from .steps import preset_config, random_model, seconds_per_call, synchronize


STEPS = 1000
LARGEST_NAIVE_BATCH = 8  # which holds several float32 tables of batch × length × vocabulary


def run(context: Context) -> Iterator[Row]:
    """Batch 1 and 64; what takes long runs for as many steps as there is time."""
    batches = (1, 4) if context.tiny else (1, 64)
    for batch in batches:
        yield context.measured(
            f"batch {batch}, {STEPS} steps if there is time", functools.partial(compare, context, batch), seconds=8.0
        )
    yield context.measured("blocks with a cache", functools.partial(blocks, context), seconds=5.0)


def make_pipeline(context: Context, **changes: Any) -> MaskedDiffusionPipeline:
    """Pipeline of the small network of OpenWebText, with random weights in bf16."""
    config = preset_config("openwebtext-small", context.tiny, attn_implementation="sdpa", **changes)
    model = random_model(config, context.device, context.options.seed).to(torch.bfloat16).eval()
    pipeline = MaskedDiffusionPipeline(model, MaskedDiffusionScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Calls:
    """Counts the calls of a model, and the rows in them."""

    def __init__(self, model: torch.nn.Module):
        self.calls = self.rows = 0
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.calls += 1
        self.rows += len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])


def compare(context: Context, batch: int) -> dict[str, Any]:
    """Seconds of a batch of samples by all three; the two others from the time of single steps, which cost alike."""
    pipeline, device = make_pipeline(context), context.device
    steps = 20 if context.tiny else STEPS
    naive = naive_seconds_per_step(pipeline, min(batch, LARGEST_NAIVE_BATCH), device, 1 if context.tiny else 4)
    naive = {name: value * max(1.0, batch / LARGEST_NAIVE_BATCH) for name, value in naive.items()}
    draw = functools.partial(whole_samples, pipeline, device, batch)
    draw(min(steps, 4))  # warm-up
    trial, _ = draw(max(1, steps // 50))
    affordable = max(1, int(steps * min(1.0, 0.7 * context.seconds_left / max(1e-9, 50 * trial))))
    steps = steps if context.tiny else affordable
    seconds, calls = draw(steps)
    pipeline.scheduler.set_timesteps(steps)
    length = pipeline.model.config.max_position_embeddings
    mdlm_calls = cached_calls(pipeline.scheduler, batch, length, pipeline.mask_token_id)
    step_by_step = naive["whole step"] * steps
    mdlm = naive["whole step"] * mdlm_calls + naive["draw"] * (steps - mdlm_calls)
    return {
        "steps": steps,
        "seconds": seconds,
        "calls": calls.calls,
        "rows_per_sample": calls.rows / batch,
        "tokens_per_s": batch * pipeline.model.config.max_position_embeddings / seconds,
        "step_by_step_s": step_by_step,
        "mdlm_cached_s": mdlm,
        "times_faster": step_by_step / seconds,
        "times_faster_than_mdlm": mdlm / seconds,
    }


def whole_samples(pipeline: MaskedDiffusionPipeline, device: torch.device, batch: int, steps: int, **options: Any):
    """Seconds of a call of the pipeline, and the calls of its model."""
    calls = Calls(pipeline.model)
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_samples": batch, "num_inference_steps": steps, "output_type": "ids", "generator": generator}
    synchronize(device)
    begin = time.perf_counter()
    pipeline(**arguments, **options)
    synchronize(device)
    calls.handle.remove()
    return time.perf_counter() - begin, calls


def naive_seconds_per_step(
    pipeline: MaskedDiffusionPipeline, batch: int, device: torch.device, repeats: int
) -> dict[str, float]:
    """Seconds of a step of the official sampler, and of its draw alone, which MDLM's rule makes of cached logits."""
    model, mask = pipeline.model, pipeline.mask_token_id
    sample = torch.full((batch, model.config.max_position_embeddings), mask, device=device)
    t = torch.tensor(0.5, device=device)
    cached = CachedNetwork(model)
    timed: dict[str, Callable[[], Tensor]] = {
        "whole step": lambda: sampling_step(model, sample, t, 0.01),
        "draw": lambda: sampling_step(cached, sample, t, 0.01),
    }
    return {name: seconds_per_call(step, device, repeats, warm_up=1) for name, step in timed.items()}


def blocks(context: Context) -> dict[str, Any]:
    """Text of the model's length block by block, with keys and values kept, and at once; without time conditioning."""
    pipeline = make_pipeline(context, time_conditioning=False)
    length = pipeline.model.config.max_position_embeddings
    steps, block = (4, length // 4) if context.tiny else (128, 128)
    whole_samples(pipeline, context.device, 1, 4)
    at_once, _ = whole_samples(pipeline, context.device, 1, steps * length // block)
    in_blocks, calls = whole_samples(pipeline, context.device, 1, steps, block_length=block, length=length)
    return {
        "block": block,
        "steps_per_block": steps,
        "seconds": in_blocks,
        "calls": calls.calls,
        "at_once_s": at_once,
        "times_faster": at_once / in_blocks,
    }
