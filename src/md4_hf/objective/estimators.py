# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Likelihood evaluation: Monte-Carlo estimates of the NELBO per example, and the figures made of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.masked_diffusion import IGNORE_INDEX, discretize_times, mask_lowest, masked_count_weights, nelbo_weight
from ..core.schedules import MaskingSchedule
from .noise import evaluation_mask_noise, evaluation_times
from .objectives import FixedScheduleObjective, Objective, scored_labels


TIME, ANY_ORDER = "time", "any_order"


def example_nelbo(
    model: Callable,
    objective: Objective,
    inputs: Mapping[str, Tensor],
    index: Tensor,
    *,
    seed: int,
    num_draws: int,
    estimator: str = TIME,
) -> tuple[Tensor, Tensor]:
    """NELBO of each example, reconstruction included, averaged over stratified draws of noise.

    The noise is a pure function of (seed, index of the example, draw): the result does not depend on the batch. There
    are two estimators of the same bound:

    - `"time"`: a draw is a time, and each token is masked with its probability;
    - `"any_order"`: a draw is a number n of masked tokens, uniform in 1 ... N, and which they are; its term has the
      weight N·w_n (`masked_count_weights`). The number of masked tokens does not vary at a given weight, so that the
      variance is smaller. It needs a model that does not see the time and has a fixed schedule. In a block model, each
      block has a number of its own.

    The first step of D3PM's chain, a T-th of the times, predicts every token, noised or not. Each example has one draw
    of it besides `num_draws` of the others, where draws of all times alike would find it once in T, with the weight T.

    For a causal model the result is -log p, and nothing is drawn.

    Args:
        model: The denoiser, called as `MD4ForMaskedDiffusion`.
        objective: Its objective.
        inputs: A clean batch, see `Objective.noised`.
        index: `(batch,)` indices of the examples in their data set; best on the CPU, where the times are made.
        seed: Seed of the evaluation noise.
        num_draws: Number of draws per example, >= 1.
        estimator: `"time"` or `"any_order"`; a ValueError is raised for one that does not fit the model.

    Returns:
        `(batch,)` nats and `(batch,)` numbers of scored tokens, both float32.
    """
    inputs = {**inputs, "labels": scored_labels(inputs)}
    shape, device = inputs["input_ids"].shape, inputs["input_ids"].device
    num_draws = 1 if objective.is_autoregressive else num_draws
    total = torch.zeros(shape[0], device=device)

    def drawn(draw: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
        noise = evaluation_mask_noise(seed, index.to(device), draw, objective.noise_shape(shape))
        return nelbo_given_noise(model, objective, inputs, uniform.to(device), noise, estimator)

    for draw in range(num_draws):
        times = evaluation_times(seed, index, draw, num_draws, objective.num_times(shape))
        nelbo, reconstruction = drawn(draw, objective.beyond_first(times))
        total += nelbo.to(total.dtype)
    total /= num_draws
    if objective.first_share > 0.0:
        first, _ = drawn(num_draws, torch.zeros(shape[0]))
        total = torch.lerp(total, first.to(total.dtype), objective.first_share)
    num_tokens = (inputs["labels"] != IGNORE_INDEX).flatten(1).sum(dim=1)
    return total + reconstruction.to(total), num_tokens.float()


@dataclass(frozen=True)
class NelboEstimate:
    """Estimate of an evaluation: `example_nelbo` with this estimator; `OrderLikelihood` is its sibling."""

    objective: Objective
    estimator: str = TIME
    num_timesteps: int | None = None  # steps of discrete time; None for continuous time

    def __post_init__(self):
        check_estimator(self.estimator, self.objective)

    @property
    def is_exact(self) -> bool:
        """Whether the result is -log p itself, with nothing drawn."""
        return self.objective.is_autoregressive

    @property
    def facts(self) -> dict[str, Any]:
        """Name and settings, for a report."""
        if self.is_exact:
            return {"estimator": "exact"}
        facts = {"estimator": self.estimator, "timesteps": self.num_timesteps or "continuous"}
        return facts if self.objective.first_share == 0.0 else {**facts, "first_step_draws": 1}

    def __call__(
        self, model: Callable, inputs: Mapping[str, Tensor], index: Tensor, *, seed: int, num_draws: int
    ) -> tuple[Tensor, Tensor]:
        """Nats and scored tokens of each example, see `example_nelbo`."""
        estimator = self.estimator
        return example_nelbo(model, self.objective, inputs, index, seed=seed, num_draws=num_draws, estimator=estimator)


def nelbo_given_noise(
    model: Callable,
    objective: Objective,
    inputs: Mapping[str, Tensor],
    uniform: Tensor,
    noise: Tensor,
    estimator: str = TIME,
) -> tuple[Tensor, Tensor]:
    """One draw of the NELBO, a deterministic function of its noise; see `example_nelbo`.

    Args:
        model, objective, inputs, estimator: As for `example_nelbo`.
        uniform: In [0, 1), `(batch,)` or `(batch, objective.num_times(...))`: the times, or as `"any_order"` the shares
            of the scored tokens, of a row or of each block, that are masked.
        noise: In [0, 1), of the shape that `objective.noise_shape` gives, for MD4 that of `input_ids`: at a time t a
            token is masked if its number is at least alpha_t; as `"any_order"` those with the lowest numbers are.

    Returns:
        The diffusion part and the reconstruction, each `(batch,)` nats; their sum estimates the bound without bias.
    """
    check_estimator(estimator, objective)
    return _ESTIMATORS[estimator](model, objective, {**inputs, "labels": scored_labels(inputs)}, uniform, noise)


def check_estimator(estimator: str, objective: Objective | None = None):
    """Raise a ValueError for an unknown estimator, and for one that this objective does not allow."""
    if estimator not in _ESTIMATORS:
        raise ValueError(f"`estimator` must be one of {sorted(_ESTIMATORS)}, got {estimator!r}.")
    if estimator == ANY_ORDER and objective is not None and objective.any_order_obstacle is not None:
        raise ValueError(f"`estimator` must be {TIME!r} for {objective.any_order_obstacle}, got {estimator!r}.")


def _draw_by_time(
    model: Callable, objective: Objective, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """One draw of the diffusion part, and the reconstruction, `(batch,)` nats."""
    output = model(**objective.noised(inputs, uniform, noise), output_logits=False)
    return output.token_nelbo.flatten(1).sum(dim=1), output.reconstruction_nelbo


def _draw_by_count(
    model: Callable, objective: FixedScheduleObjective, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """One draw of both by the number of masked tokens, a uniform share of the scored ones of a row or of each block."""
    process, is_scored = objective.process, inputs["labels"] != IGNORE_INDEX
    blocks, num_tokens = objective.blocks(inputs), is_scored.flatten(1).sum(dim=1)
    if blocks is not None:
        num_blocks = int(blocks.max()) + 1
        num_tokens = blocks.new_zeros(len(blocks), num_blocks).scatter_add(1, blocks, is_scored.long())
        uniform = uniform.view(len(blocks), -1)
        uniform = uniform[:, torch.arange(num_blocks, device=uniform.device) % uniform.shape[1]]
    num_masked = 1 + (uniform.double() * num_tokens).long().clamp(max=num_tokens - 1)
    xt = mask_lowest(inputs["input_ids"], is_scored, num_masked, process.mask_token_id, noise, blocks)
    weight = torch.zeros_like(num_masked, dtype=torch.float64)
    for count in num_tokens[num_tokens > 0].unique().tolist():
        at, weights = num_tokens == count, masked_count_weights(process.schedule, count, process.num_timesteps)
        weight[at] = count * weights.to(weight.device)[num_masked[at]]
    # The model, which does not see the time, gives weight(t)·(-log mu): that weight is taken out again.
    t, given = _time_of_moderate_weight(process.schedule, process.num_timesteps)
    times = uniform.new_full(uniform.shape[:1], t)
    output = model(**{**inputs, "input_ids": xt, "timesteps": times}, output_logits=False)
    nats = output.token_nelbo.flatten(1).double() / given
    weight = weight[:, None] if blocks is None else weight.gather(1, blocks)
    return (weight.to(nats.device) * nats).sum(dim=1), output.reconstruction_nelbo


@functools.lru_cache(maxsize=16)
def _time_of_moderate_weight(schedule: MaskingSchedule, num_timesteps: int | None) -> tuple[float, float]:
    """A time whose weight in the NELBO is neither 0 nor infinite but as near to 1 as possible, and that weight."""
    times = torch.arange(1, 129) / 128.0
    if num_timesteps is not None:
        times = discretize_times(times, num_timesteps).clamp(max=1.0)
    weights = nelbo_weight(schedule, times, num_timesteps)
    distance = weights.double().log().abs().nan_to_num(nan=math.inf)
    best = int(distance.argmin())
    return times[best].item(), weights[best].item()


_ESTIMATORS: dict[str, Callable] = {TIME: _draw_by_time, ANY_ORDER: _draw_by_count}


def nelbo_metrics(
    nelbo: Tensor,
    num_tokens: Tensor,
    num_characters: Tensor | None = None,
    are_dimensions: bool = False,
    num_bytes: Tensor | None = None,
) -> dict[str, float]:
    """Figures of a data set from its examples.

    `loss` is the NELBO in nats per token (a ratio of sums over the examples, so that each token counts once),
    `perplexity` = exp(loss), `bits_per_token` = loss / ln 2, `bits_per_character` and `bits_per_byte` where the numbers
    of characters and bytes are known, and `bits_per_dimension` of images. `*_stderr` is the standard error of the ratio
    over examples: it holds both the spread between examples and the Monte-Carlo noise of the draws.

    Args:
        nelbo: `(examples,)` nats.
        num_tokens: `(examples,)` scored tokens; a ValueError is raised if there is none.
        num_characters: `(examples,)` characters that the tokens stand for.
        are_dimensions: Whether the tokens are those of images, one for each channel of each pixel.
        num_bytes: `(examples,)` bytes in UTF-8 that the tokens stand for.
    """
    nelbo, num_tokens = nelbo.double(), num_tokens.double()
    if num_tokens.sum() == 0:
        raise ValueError("The evaluation data must hold at least one scored token, got none.")
    loss, stderr = ratio_with_stderr(nelbo, num_tokens)
    metrics = {"loss": loss, "loss_stderr": stderr, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    metrics["bits_per_token"] = loss / math.log(2)
    counts = {"character": num_characters, "byte": num_bytes, "dimension": num_tokens if are_dimensions else None}
    for unit, count in counts.items():
        if count is not None:
            nats, stderr = ratio_with_stderr(nelbo, count.double())
            metrics[f"bits_per_{unit}"] = nats / math.log(2)
            metrics[f"bits_per_{unit}_stderr"] = stderr / math.log(2)
    metrics["num_tokens"] = int(num_tokens.sum())
    return metrics


def ratio_with_stderr(numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
    """sum(numerator) / sum(denominator) over examples, and its standard error by linearisation (nan if alone)."""
    count = len(numerator)
    ratio = (numerator.sum() / denominator.sum()).item()
    residual = numerator - ratio * denominator
    variance = (residual.square().sum() * count / (count - 1)).item() if count > 1 else math.nan
    return ratio, math.sqrt(variance) / denominator.sum().item()
