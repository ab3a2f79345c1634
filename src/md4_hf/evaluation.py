# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Likelihood evaluation: Monte-Carlo estimates of the NELBO per example, and the figures made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .masked_diffusion import (
    IGNORE_INDEX,
    MaskingSchedule,
    corrupt,
    discretize_times,
    make_schedule,
    rescale_times,
)
from .noise import evaluation_mask_noise, evaluation_times


@dataclass(frozen=True)
class Diffusion:
    """What training and evaluation need to know of a model's diffusion.

    Args:
        schedule: The masking schedule; None for GenMD4's, which are parameters of the model.
        mask_token_id: The mask id.
        num_train_timesteps: Steps of discrete time, None for continuous time.
        first_time: GenMD4's t_1.
        null_class: The label that stands for no class, if the model has one.
        class_dropout: Probability with which it takes the place of a label in training.
    """

    schedule: MaskingSchedule | None
    mask_token_id: int
    num_train_timesteps: int | None = None
    first_time: float = 0.0
    null_class: int | None = None
    class_dropout: float = 0.0

    @classmethod
    def of(cls, model) -> Diffusion:
        """The diffusion of an `MD4ForMaskedDiffusion`."""
        return cls.of_config(model.config)

    @classmethod
    def of_config(cls, config) -> Diffusion:
        """The diffusion that an `MD4Config` describes."""
        classes = {"null_class": config.null_class, "class_dropout": config.class_dropout}
        if config.learn_masking_schedule:
            return cls(None, config.mask_token_id, first_time=config.schedule_first_time, **classes)
        schedule = make_schedule(config.masking_schedule, power=config.schedule_power, eps=config.schedule_eps)
        return cls(schedule, config.mask_token_id, config.num_train_timesteps, **classes)

    def noised(self, inputs: Mapping[str, Tensor], timesteps: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Model inputs with x_t, its times and the labels, from a clean batch.

        Args:
            inputs: Clean `input_ids` `(batch, length)`, of images `(batch, channels, height, width)`; `labels` (-100
                where not scored) if there are any, else the tokens that `attention_mask` shows are scored. Tokens that
                are not scored are never masked.
            timesteps: `(batch,)` times in [0, 1).
            noise: Uniform numbers of the shape of `input_ids`; for GenMD4 also with an axis of copies after the first.
                The model itself applies them there, as its schedules may be sharded over devices: the ids stay clean.
        """
        if self.num_train_timesteps is not None:
            timesteps = discretize_times(timesteps, self.num_train_timesteps)
        labels = scored_labels(inputs)
        if self.schedule is None:
            timesteps = rescale_times(timesteps, self.first_time)
            return {**inputs, "timesteps": timesteps, "labels": labels, "mask_noise": noise}
        xt = corrupt(inputs["input_ids"], self.schedule.alpha(timesteps), self.mask_token_id, noise=noise)
        xt = torch.where(labels != IGNORE_INDEX, xt, inputs["input_ids"])
        return {**inputs, "input_ids": xt, "timesteps": timesteps, "labels": labels}

    def drop_classes(self, inputs: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Model inputs that have lost their class with probability `class_dropout`, as guidance needs it.

        Args:
            inputs: A batch, with `class_labels` `(batch,)` if the model has a null class.
            noise: `(batch,)` uniform numbers.
        """
        if self.null_class is None or inputs.get("class_labels") is None:
            return {**inputs}
        labels = inputs["class_labels"]
        return {**inputs, "class_labels": labels.masked_fill(noise < self.class_dropout, self.null_class)}


def scored_labels(inputs: Mapping[str, Tensor]) -> Tensor:
    """The given labels, or all tokens that are not padding; -100 elsewhere."""
    if inputs.get("labels") is not None:
        return inputs["labels"]
    if inputs.get("attention_mask") is None:
        return inputs["input_ids"].clone()
    return inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)


def example_nelbo(
    model: Callable, diffusion: Diffusion, inputs: Mapping[str, Tensor], index: Tensor, *, seed: int, num_draws: int
) -> tuple[Tensor, Tensor]:
    """NELBO of each example, reconstruction included, averaged over stratified draws of time and masks.

    The noise is a pure function of (seed, index of the example, draw): the result does not depend on the batch.

    Args:
        model: The denoiser, called as `MD4ForMaskedDiffusion`.
        diffusion: Its diffusion.
        inputs: A clean batch, see `Diffusion.noised`.
        index: `(batch,)` indices of the examples in their data set.
        seed: Seed of the evaluation noise.
        num_draws: Number of draws per example, >= 1.

    Returns:
        `(batch,)` nats and `(batch,)` numbers of scored tokens, both float32.
    """
    shape = inputs["input_ids"].shape
    total = torch.zeros(shape[0], device=index.device)
    for draw in range(num_draws):
        timesteps = evaluation_times(seed, index, draw, num_draws)
        noised = diffusion.noised(inputs, timesteps, evaluation_mask_noise(seed, index, draw, shape))
        output = model(**noised, output_logits=False)
        total += output.token_nelbo.flatten(1).sum(dim=1).to(total.dtype)
    num_tokens = (scored_labels(inputs) != IGNORE_INDEX).flatten(1).sum(dim=1)
    return total / num_draws + output.reconstruction_nelbo.to(total), num_tokens.float()


def nelbo_metrics(
    nelbo: Tensor, num_tokens: Tensor, num_characters: Tensor | None = None, are_dimensions: bool = False
) -> dict[str, float]:
    """Figures of a data set from its examples.

    `loss` is the NELBO in nats per token (a ratio of sums over the examples, so that each token counts once),
    `perplexity` = exp(loss), `bits_per_token` = loss / ln 2, `bits_per_character` where the number of characters is
    known, and `bits_per_dimension` of images. `*_stderr` is the standard error of the ratio over examples: it holds
    both the spread between examples and the Monte-Carlo noise of the draws.

    Args:
        nelbo: `(examples,)` nats.
        num_tokens: `(examples,)` scored tokens.
        num_characters: `(examples,)` characters that the tokens stand for.
        are_dimensions: Whether the tokens are those of images, one for each channel of each pixel.
    """
    nelbo, num_tokens = nelbo.double(), num_tokens.double()
    if num_tokens.sum() == 0:
        raise ValueError("The evaluation data must hold at least one scored token, got none.")
    loss, stderr = ratio_with_stderr(nelbo, num_tokens)
    metrics = {
        "loss": loss,
        "loss_stderr": stderr,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_token": loss / math.log(2),
    }
    if num_characters is not None:
        nats, stderr = ratio_with_stderr(nelbo, num_characters.double())
        metrics["bits_per_character"] = nats / math.log(2)
        metrics["bits_per_character_stderr"] = stderr / math.log(2)
    if are_dimensions:
        metrics["bits_per_dimension"] = loss / math.log(2)
        metrics["bits_per_dimension_stderr"] = stderr / math.log(2)
    metrics["num_tokens"] = int(num_tokens.sum())
    return metrics


def ratio_with_stderr(numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
    """sum(numerator) / sum(denominator) over examples, and its standard error by linearisation (nan if alone)."""
    count = len(numerator)
    ratio = (numerator.sum() / denominator.sum()).item()
    residual = numerator - ratio * denominator
    variance = (residual.square().sum() * count / (count - 1)).item() if count > 1 else math.nan
    return ratio, math.sqrt(variance) / denominator.sum().item()
