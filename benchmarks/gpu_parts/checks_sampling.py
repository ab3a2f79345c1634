# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples drawn on the device against the exact distribution of the reverse chain."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4Config, reverse_probabilities

from .comparing import in_float64
from .part import Context, Row
from .steps import random_model


LEAST_P_VALUE = 1e-4  # of a run that is right, one in ten thousand would be below
VOCAB, LENGTH, STEPS = 3, 3, 6
MASK = VOCAB


def planned_sampler(context: Context) -> Row:
    """Chi-square of whole samples, drawn by the planned sampler, against the enumerated step-by-step chain."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    model = random_model(MD4Config(vocab_size=VOCAB + 1, **sizes), context.device, context.options.seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipeline = MaskedDiffusionPipeline(model.eval(), MaskedDiffusionScheduler())
    pipeline.set_progress_bar_config(disable=True)
    expected = exact_distribution(in_float64(model).eval(), pipeline.scheduler)
    num_samples = 2000 if context.tiny else 20_000
    generator = torch.Generator().manual_seed(context.options.seed)
    samples = pipeline(
        num_samples=num_samples, num_inference_steps=STEPS, generator=generator, output_type="ids"
    ).sequences
    number = (samples * VOCAB ** torch.arange(LENGTH)).sum(dim=1)
    found = number.bincount(minlength=VOCAB**LENGTH).double()
    statistic = ((found - num_samples * expected).square() / (num_samples * expected)).sum()
    freedom = torch.tensor(float(len(expected) - 1), dtype=torch.float64)
    p_value = float(torch.special.gammaincc(freedom / 2, statistic / 2))
    figures = {"chi_square": float(statistic), "degrees": int(freedom), "p_value": p_value, "samples": num_samples}
    return Row("", figures, p_value > LEAST_P_VALUE, f"p-value above {LEAST_P_VALUE:g}")


@torch.no_grad()
def exact_distribution(model, scheduler: MaskedDiffusionScheduler) -> Tensor:
    """Probability of each sequence, whose first token counts fastest, at the end of the chain; float64."""
    scheduler.set_timesteps(STEPS)
    states = torch.tensor([state[::-1] for state in itertools.product(range(VOCAB + 1), repeat=LENGTH)])
    distribution = (states == MASK).all(dim=1).double()
    for t, probability in zip(scheduler.timesteps, scheduler.unmask_probabilities(), strict=True):
        table = reverse_probabilities(model(states, timesteps=t.expand(len(states))).logits, probability, MASK)
        stays = torch.nn.functional.one_hot(states, VOCAB + 1).double()
        table = torch.where((states == MASK)[..., None], table, stays)
        kernel = torch.ones(len(states), len(states), dtype=torch.float64)
        for position in range(LENGTH):
            kernel *= table[:, position][:, states[:, position]]
        distribution = distribution @ kernel
    return distribution[(states != MASK).all(dim=1)]
