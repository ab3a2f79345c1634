# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Likelihood of examples under a sampler, by its own run with their tokens forced (DUEL, arXiv:2603.01367)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..core.masked_diffusion import IGNORE_INDEX
from ..core.reverse_steps import PROBABILITIES_AT_A_TIME
from ..core.sampling_runs import start_run
from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler
from .noise import evaluation_order_seeds
from .objectives import scored_labels


POLICY = "policy"


class OrderLikelihood:
    r"""-log p(x) of examples under a sampler that unmasks positions in some order; a sibling of `NelboEstimate`.

    Let an order choose the positions A_1, A_2, ... to unmask, step by step, from the tokens decided before. The sampler
    then draws x with probability

        p(x) = prod_i prod_{n in A_i} mu^n(x_{A_1}, ..., x_{A_{i-1}})[x_n],

    mu being the denoiser's probabilities at temperature 1, without top-p and top-k. The factors are those of the run
    that decides the tokens of x where it would draw: as many forward passes as the sampler takes.

    - An order without noise is a function of the decided tokens: one run leads to x, and the sum of -log mu along it is
      -log p(x) exactly (`is_exact`). Such are the orders by the denoiser's predictions and `"sequential"`, with
      `order_temperature=0` and the quota `"ceil"` or `"floor"`.
    - Otherwise (`order="random"`, a temperature, the quota `"binomial"`) noise z chooses the order, p(x) = E_z p(x|z),
      and a run gives p(x|z). The mean of -log p(x|z) over draws of z estimates E_z[-log p(x|z)] without bias. That is
      an upper bound on -log p(x), by Jensen's inequality; for `"random"` and one position a step, the any-order bound.
      -log of the mean of p(x|z) over K draws estimates -log p(x) itself, but with bias: its expectation lies between
      -log p(x) and that bound, and comes down to -log p(x) as K grows. `nats` has the terms of both.

    Tokens that are not scored are given: the likelihood is that of the scored ones under this condition.

    Args:
        scheduler: The sampler: order, quota, time grid and number of steps. A time-conditioned denoiser is told the
            times of the grid. Temperature, top-p and top-k are not used, and the last step draws all that is left.
        config: The model's `MD4Config`.
        options: Entries of the scheduler's configuration in place of its own, unless they are None.

    Raises:
        ValueError: For a sampler that may replace decided tokens, or ranks positions by the tokens that it draws
            (`"candidate"`); for GenMD4, whose times depend on the tokens; for block models and causal models.
    """

    def __init__(self, scheduler: MaskedDiffusionScheduler, config: Any, **options: Any):
        if not hasattr(scheduler, "plan_step"):
            rule = "a MaskedDiffusionScheduler, for a likelihood"
            raise ValueError(f"`scheduler` must be {rule}, got {type(scheduler).__name__}.")
        fixed = {"mask_token_id": config.mask_token_id, "final_decode": "sample"}
        given = {name: value for name, value in options.items() if value is not None}
        options = {"num_inference_steps": scheduler.num_inference_steps, **given, **fixed}
        self.scheduler = scheduler.with_options(**options)
        check_has_likelihood(self.scheduler, config)

    @property
    def is_exact(self) -> bool:
        """Whether the order has no noise: one run gives -log p(x)."""
        order = self.scheduler.order_policy
        return order is not None and order.temperature == 0.0 and self.scheduler.config.quota != "binomial"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the sampler by which the likelihood is determined."""
        config, order = self.scheduler.config, self.scheduler.order_policy
        names = ["order", "num_inference_steps", "timestep_grid", "masking_schedule"]
        if order is not None:
            own = {"order_temperature" if field.name == "temperature" else field.name for field in fields(order)}
            names += ["quota", *sorted(own)]
        return {name: config[name] for name in names}

    @property
    def facts(self) -> dict[str, Any]:
        """Name and settings, for a report."""
        return {"estimator": POLICY, **self.settings}

    @torch.no_grad()
    def __call__(
        self, model: Callable, inputs: Mapping[str, Tensor], index: Tensor, *, seed: int, num_draws: int
    ) -> tuple[Tensor, Tensor]:
        """-log p(x) of each example, or the mean of -log p(x|z) over draws; numbers of scored tokens.

        Arguments and results as those of `example_nelbo`; an order without noise needs neither `seed` nor draws.
        """
        nats = self.nats(model, inputs, index, seed=seed, num_draws=1 if self.is_exact else num_draws)
        num_tokens = (scored_labels(inputs) != IGNORE_INDEX).flatten(1).sum(dim=1)
        return nats.mean(dim=0).float().to(num_tokens.device), num_tokens.float()

    @torch.no_grad()
    def nats(
        self, model: Callable, inputs: Mapping[str, Tensor], index: Tensor, *, seed: int = 0, num_draws: int = 1
    ) -> Tensor:
        """-log p(x|z) of each draw and example, `(draws, batch)` float64.

        The order is a pure function of (seed, index of the example, draw) and of what the denoiser predicts: batch and
        padding change it by the rounding of the denoiser at most, which may swap positions that are all but tied.

        Args:
            model: The denoiser, called as `MD4ForMaskedDiffusion`, in evaluation mode.
            inputs: A clean batch, as for `example_nelbo`; `attention_mask`, `document_ids` and `class_labels` are
                passed on. A ValueError is raised if it has the mask id.
            index: `(batch,)` indices of the examples in their data set.
            seed: Seed of the noise.
            num_draws: Number of orders per example, >= 1.
        """
        labels = scored_labels(inputs)
        is_scored = labels != IGNORE_INDEX
        x0 = _clean_ids(inputs, torch.where(is_scored, labels, inputs["input_ids"]), self._mask)
        others = {name: x for name, x in inputs.items() if x is not None and name not in ("input_ids", "labels")}
        runs = []
        for draw in range(num_draws):
            seeds = evaluation_order_seeds(seed, index, draw)
            generators = [torch.Generator().manual_seed(number) for number in seeds]
            runs.append(self._nats_of_run(model, x0, is_scored, others, generators))
        return torch.stack(runs)

    @property
    def _mask(self) -> int:
        return self.scheduler.config.mask_token_id

    def _nats_of_run(
        self,
        model: Callable,
        x0: Tensor,
        is_scored: Tensor,
        others: Mapping[str, Tensor],
        generators: list[torch.Generator],
    ) -> Tensor:
        """Sum of -log mu along one run to x0, `(batch,)`, on the CPU where the device has no float64."""
        device = torch.device("cpu") if x0.device.type == "mps" else x0.device
        nats = torch.zeros(len(x0), dtype=torch.float64, device=device)
        run = start_run(self.scheduler, x0.masked_fill(is_scored, self._mask), generators)
        while (look := run.look(until=run.num_steps - 1)) is not None:
            rows, times, candidates = (x.to(x0.device) for x in (look.rows, look.times, look.plan.candidates))
            given = {name: x[rows] for name, x in others.items()}
            output = model(input_ids=look.sample, timesteps=times, position_mask=candidates, **given)
            taken = self.scheduler.step(
                output.logits, look.timesteps, look.sample, temperature=1.0, plan=look.plan, forced_tokens=x0[rows]
            )
            run.take(look, taken)
            decided = taken.committed_mask
            log_mu = log_probabilities(output.logits[decided[candidates]].to(device), x0[rows][decided].to(device))
            owner = rows[decided.flatten(1).nonzero()[:, 0]].to(device)
            nats.index_add_(0, owner, -log_mu)
        return nats


def check_has_likelihood(scheduler: MaskedDiffusionScheduler, config: Any):
    """Raise a ValueError for a sampler or model under which the probability of x is no product along one run."""
    obstacles = {
        "a causal model, whose likelihood is exact": config.is_causal,
        "GenMD4, where the time of a token depends on which it is": config.learn_masking_schedule,
        "a baseline of another process than masking": config.baseline not in (None, "ardm"),
        "a block model, each of whose blocks has a sampler of its own": config.block_size is not None,
    }
    for kind, is_there in obstacles.items():
        if is_there:
            raise ValueError(f"`estimator` must not be {POLICY!r} for {kind}.")
    order = scheduler.order_policy
    if order is not None and order.depends_on_draws:
        raise ValueError(
            "`order` must not depend on the tokens that are drawn, for a likelihood, got "
            f'{scheduler.config.order!r}: "confidence" ranks by the most probable token.'
        )
    for name, none in (("remasking", None), ("corrector_steps", 0)):
        if scheduler.config[name] != none:
            raise ValueError(
                f"`{name}` must be {none} for a likelihood, in which a decided token stays, got "
                f"{scheduler.config[name]!r} in the scheduler."
            )


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-softmax in float64 of tokens `(n,)` under logits `(n, vocab)`; -inf of those that are suppressed."""
    size = max(PROBABILITIES_AT_A_TIME // logits.shape[-1], 1)
    parts = [_log_probabilities(*part) for part in zip(logits.split(size), tokens.split(size), strict=True)]
    return torch.cat(parts)


def _log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    scores = logits.double().masked_fill(logits == torch.finfo(logits.dtype).min, -torch.inf)
    return scores.log_softmax(dim=-1).gather(-1, tokens[:, None]).squeeze(-1)


def _clean_ids(inputs: Mapping[str, Tensor], ids: Tensor, mask_token_id: int) -> Tensor:
    """Ids without the mask, which a run would fill; in padding, which is not seen, another id takes its place."""
    is_mask, seen = ids == mask_token_id, inputs.get("attention_mask")
    if seen is not None and seen.shape == ids.shape:
        ids = ids.masked_fill(is_mask & (seen == 0), 0 if mask_token_id else 1)
    if (ids == mask_token_id).any():
        raise ValueError(
            f"`input_ids` must be clean, for the likelihood of an order, got the mask id {mask_token_id}."
        )
    return ids
