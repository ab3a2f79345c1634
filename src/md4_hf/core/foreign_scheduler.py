# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Schedulers of diffusers and of others in the pipeline: any one with the `step` of diffusers' discrete schedulers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .reverse_steps import StepPlan
from .scheduler_base import SchedulerMixin
from .schedules import LinearSchedule, MaskingSchedule, TokenPolynomialSchedule
from .scheduling_masked_diffusion import MaskedDiffusionScheduler


@dataclass
class ForeignOutput:
    """Result of a step: ids `(n, ...)`, and booleans `(n,)` of the rows that need no further step."""

    prev_sample: Tensor
    is_done: Tensor


@dataclass
class ForeignPlan(StepPlan):
    """Plan of a step of another scheduler: the denoiser is needed wherever a row was masked at the start.

    Args:
        schedulers (`list[SchedulerMixin]`): The scheduler of each row.
        seeds (`list[int]`): The seed of each row's draws.
    """

    schedulers: list[SchedulerMixin] = field(kw_only=True)
    seeds: list[int] = field(kw_only=True)

    @property
    def hidden(self) -> Tensor:
        """Positions where the denoiser sees a mask besides those that are masked, see `StepPlan.hidden`: none."""
        return torch.zeros_like(self.candidates)


class ForeignScheduler:
    """A scheduler of another kind, with what the pipeline asks of a `MaskedDiffusionScheduler`.

    Its `step(model_output, timestep, sample, mask_token_id=..., ...)` is given logits `(1, tokens, vocab)`, ids `(1,
    tokens)` and a time of its `timesteps`, and returns an output with `prev_sample`. Each row has a copy of the
    scheduler, so that no row depends on others, whatever the scheduler keeps. `step` gets `generator`, `prompt_mask`
    (booleans `(tokens,)`) and the options of a call if it takes them; `set_timesteps` gets the number of masks of the
    row as `block_length` if it takes that. A prompt is kept, and masks that the scheduler leaves stay.

    Args:
        scheduler: The scheduler.
        mask_token_id: The mask id.
        options: Arguments of each `step`.

    Raises:
        ValueError: If its `step` takes no `mask_token_id`: such a scheduler is for another process, without masks.
    """

    def __init__(self, scheduler: SchedulerMixin, mask_token_id: int, options: dict[str, Any] | None = None):
        self.scheduler, self.mask_token_id, self.options = scheduler, mask_token_id, options or {}
        self.name = type(scheduler).__name__
        step = getattr(scheduler, "step", None)
        self.arguments = set() if step is None else set(inspect.signature(step).parameters)
        if "mask_token_id" not in self.arguments:
            raise ValueError(
                "`scheduler` must be a MaskedDiffusionScheduler, or another one for masked tokens, whose `step` takes "
                f"`mask_token_id`, got {self.name}."
            )

    @property
    def config(self):
        """Configuration of the scheduler."""
        return self.scheduler.config

    @property
    def timesteps(self) -> Tensor:
        """Times of the scheduler's own grid."""
        return self.scheduler.timesteps

    @property
    def num_inference_steps(self) -> int:
        """Number of steps."""
        return len(self.timesteps)

    @property
    def schedule(self) -> MaskingSchedule:
        """Schedule by which the denoiser is told a time: the share of tokens that are masked."""
        return LinearSchedule(0.0)

    def with_options(self, **options: Any) -> ForeignScheduler:
        """Scheduler with those of the options that are not None; a ValueError for one that its `step` does not take."""
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            if name not in self.arguments:
                raise ValueError(f"`{name}` must be left out for {self.name}, which does not take it, got {value!r}.")
        MaskedDiffusionScheduler.check_sampling_arguments(
            given.get("temperature", 1.0), given.get("top_p"), given.get("top_k")
        )
        return ForeignScheduler(self.scheduler, self.mask_token_id, {**self.options, **given})

    def set_token_schedule(self, token_schedule: TokenPolynomialSchedule | None):
        """Raise a ValueError for the learned schedules of a GenMD4 model, which this scheduler knows nothing of."""
        if token_schedule is not None:
            raise ValueError(f"`scheduler` must be a MaskedDiffusionScheduler for a GenMD4 model, got {self.name}.")

    def set_timesteps(self, num_inference_steps: int | None, device: str | torch.device | None = None):
        """Set the scheduler's own times; a ValueError unless their number is given."""
        if not (isinstance(num_inference_steps, Integral) and num_inference_steps >= 1):
            raise ValueError(
                f"`num_inference_steps` must be >= 1 where the config of {self.name} has none, got "
                f"{num_inference_steps!r}."
            )
        self.scheduler.set_timesteps(num_inference_steps, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Input of the denoiser, by default the sample itself."""
        scale: Callable | None = getattr(self.scheduler, "scale_model_input", None)
        return sample if scale is None else scale(sample, timestep)

    def for_row(self, num_masked: int, device: torch.device) -> SchedulerMixin:
        """Copy of the scheduler for a row with this number of masks, at its first step."""
        scheduler = copy.deepcopy(self.scheduler)
        takes_length = "block_length" in inspect.signature(scheduler.set_timesteps).parameters
        length = {"block_length": max(num_masked, 1)} if takes_length else {}
        scheduler.set_timesteps(self.num_inference_steps, device=device, **length)
        return scheduler

    def step(self, model_output: Tensor, timesteps: Tensor, sample: Tensor, plan: ForeignPlan) -> ForeignOutput:
        """Take a step of each row, from the logits at the candidates of the plan, in row-major order."""
        flat, candidates = sample.flatten(1), plan.candidates.flatten(1).to(sample.device)
        logits = model_output.new_zeros(*flat.shape, model_output.shape[-1])
        logits[candidates.to(logits.device)] = model_output
        results = []
        for row, scheduler in enumerate(plan.schedulers):
            generator = torch.Generator(logits.device).manual_seed(plan.seeds[row])
            own = {"mask_token_id": self.mask_token_id, "generator": generator, "prompt_mask": ~candidates[row]}
            own = {name: value for name, value in own.items() if name in self.arguments}
            output = scheduler.step(logits[row, None], timesteps[row], flat[row, None], **own, **self.options)
            new = torch.where(candidates[row], output.prev_sample[0], flat[row])
            edited = getattr(output, "editing_transfer_index", None)  # of a scheduler that says what it has replaced
            is_done = edited is not None and not edited.any() and not (new == self.mask_token_id).any()
            results.append((new, is_done))
        ids, done = zip(*results, strict=True)
        return ForeignOutput(torch.stack(ids).view_as(sample), torch.tensor(done))


def as_sampler(scheduler: SchedulerMixin, mask_token_id: int) -> MaskedDiffusionScheduler | ForeignScheduler:
    """Scheduler as the pipeline asks for it, with a mask id: this one, or a `ForeignScheduler` around it."""
    if not hasattr(scheduler, "plan_step"):
        return ForeignScheduler(scheduler, mask_token_id)
    if scheduler.config.mask_token_id is None:
        scheduler.register_to_config(mask_token_id=mask_token_id)
    return scheduler


def scheduler_of_call(
    scheduler: SchedulerMixin,
    model: Any,
    num_inference_steps: int | None,
    options: dict[str, Any],
    device: str | torch.device,
) -> MaskedDiffusionScheduler | ForeignScheduler:
    """Scheduler of a call, with its times: the one given, or one with those of the options that are not None."""
    own = as_sampler(scheduler, model.config.mask_token_id)
    own.set_token_schedule(None)
    made = own.with_options(**options)
    made.set_token_schedule(getattr(model, "token_schedule", None))
    if num_inference_steps is None:
        num_inference_steps = made.config.get("num_inference_steps")
    made.set_timesteps(num_inference_steps, device=device)
    if made is not own:  # of which callbacks read the times
        scheduler.set_timesteps(num_inference_steps, device=device)
    return made
