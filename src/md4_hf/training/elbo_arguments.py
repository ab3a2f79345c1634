# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Options that masked diffusion adds to transformers' `TrainingArguments`, readable without transformers."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.options import option


@dataclass(repr=False)  # `TrainingArguments` has one that hides the token of the Hub
class ElboArguments:
    """Training on the ELBO: average of the weights, noise, evaluation, samples."""

    _argument_group_name = "training"

    ema_decay: float = option(
        "Decay of the moving average of the weights, which is evaluated and saved; 0 turns it off.", default=0.9999
    )
    num_copies: int = option(
        "Noised copies of an example in a step of GenMD4, whose leave-one-out gradient needs two.", default=2
    )
    schedule_lr_multiplier: float = option(
        "Learning rate of GenMD4's exponents, as a multiple of the network's.", default=1.0
    )
    backbone_lr_multiplier: float = option(
        "Learning rate of the layers of a backbone of transformers, as a multiple of that of its embedding and head.",
        default=1.0,
    )
    attention_annealing_steps: int = option(
        "Steps in which later tokens become visible to a backbone that was causal, each with a probability that rises "
        "from 0 to 1; 0 shows all at once.",
        default=0,
    )
    schedule_clip: list[float] | None = option(
        "Lowest and highest share of masks in training, such as 0.3 0.8, drawn uniformly: the loss varies less, and is "
        "no bound (evaluations are). From the schedule if left out."
    )
    eval_draws: int = option("Stratified draws of time and masks per example in an evaluation.", default=1)
    eval_seed: int = option("Seed of the evaluation noise.", default=0)
    eval_estimator: str = option(
        'Kind of draw: a "time", or, for models that do not see it, a number of masked tokens, "any_order".',
        default="time",
        choices=["time", "any_order"],
    )
    random_flip: bool = option("Mirror each training image with probability one half, left to right.", default=False)
    text_samples: int = option(
        "Texts in samples.md, which every evaluation of a training draws; 0 for none.", default=2
    )
    text_sample_steps: int | None = option(
        "Steps of the sampler for samples.md; the scheduler's own number if left out.", default=64
    )
    image_samples: int = option(
        "Images in samples.png, which every evaluation of a training draws; 0 for none.", default=25
    )
    image_sample_steps: int | None = option(
        "Steps of the sampler for samples.png; the scheduler's own number if left out."
    )
    use_muon: bool = option(
        "Optimise the blocks' matrices with torch's Muon (one process or DDP); `optim` then does not count.",
        default=False,
    )
    on_nonfinite: str = option(
        'At a step whose loss or gradient is not finite: "stop" the training, or "skip" the step.',
        default="stop",
        choices=["stop", "skip"],
    )
    matmul_precision: str | None = option(
        "Precision of float32 products for torch.set_float32_matmul_precision; torch's own if left out.",
        choices=["highest", "high", "medium"],
    )
    license: str | None = option('Licence of the weights for the model card, such as "apache-2.0".')
    card_samples: int = option("Samples to draw for the model card at the end.", default=1)
    expected_processes: int | None = option("Processes that must take part; the start fails with another number.")
