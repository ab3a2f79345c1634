# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs of the reverse process over the rows of a batch: where the denoiser is needed next, whatever the sampler.

A run is asked where to look (`look`), gets the step that was taken there (`take`), and holds the sample. Rows go at
their own pace, so that the denoiser runs as often as the busiest row needs it, and on no row that needs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .foreign_scheduler import ForeignOutput, ForeignPlan, ForeignScheduler
from .reverse_steps import RowMemory, StepPlan
from .row_generators import reseed_all
from .scheduling_masked_diffusion import MaskedDiffusionScheduler, MaskedDiffusionSchedulerOutput


@dataclass
class Look:
    """Where the denoiser is needed next.

    Args:
        rows: `(n,)` rows of the sample, on the CPU.
        times: `(n,)` float32 times that the denoiser is told, on the CPU.
        steps: `(n,)` steps of the grid, from 0, on the CPU.
        timesteps: `(n,)` times of the scheduler's grid.
        sample: `(n, ...)` ids before the step.
        plan: Plan of the step for these rows.
        is_correction: Whether the step is a corrector's, which does not move the rows on in the grid.
    """

    rows: Tensor
    times: Tensor
    steps: Tensor
    timesteps: Tensor
    sample: Tensor
    plan: StepPlan
    is_correction: bool = False


class PlannedRun:
    """Run whose openings are all drawn at its start: each row goes directly to its next step that unmasks something."""

    def __init__(self, scheduler: MaskedDiffusionScheduler, sample: Tensor, generators: list[torch.Generator]):
        self.scheduler, self.generators, self.sample = scheduler, generators, sample.clone()
        self.num_steps = scheduler.num_inference_steps
        self.plan = scheduler.plan_openings(sample, reseed_all(generators))
        self.pending = self.plan.steps
        self._times, self._timesteps = scheduler.denoiser_times, scheduler.timesteps.cpu()

    @property
    def step(self) -> int:
        """Least next step of any row, `num_steps` when all are done."""
        return int(self.pending.min()) if self.pending.numel() else self.num_steps

    def look(self, until: int) -> Look | None:
        """Next step of each row that has one up to this step of the grid; None if no row has."""
        steps = self.pending.flatten(1).amin(dim=1)
        rows = (steps <= until).nonzero().squeeze(1)
        if not len(rows):
            return None
        steps = steps[rows]
        plan = self.plan.at(steps, rows)
        self.pending = self.pending.index_put((rows,), self.pending[rows].masked_fill(plan.candidates, self.num_steps))
        sample = self.sample[rows.to(self.sample.device, non_blocking=True)]
        return Look(rows, self._times[steps], steps, self._timesteps[steps], sample, plan)

    def take(self, look: Look, output: MaskedDiffusionSchedulerOutput):
        """Put the rows after their step into the sample."""
        self.sample[look.rows.to(self.sample.device, non_blocking=True)] = output.prev_sample

    def stop(self, rows: Tensor, sample: Tensor):
        """Take rows `(n,)` to the end, with ids `(n, ...)`."""
        self.sample[rows.to(self.sample.device)] = sample
        self.pending[rows] = self.num_steps

    def replace(self, sample: Tensor, step: int):
        """Continue from another sample, given after a step: tokens put in are kept, and new masks open later."""
        self.sample = sample.clone()
        masked = (sample == self.scheduler.config.mask_token_id).cpu()
        plan, num_steps = self.plan, self.num_steps
        self.pending = self.pending.where(masked, num_steps)
        is_late = masked & (self.pending == num_steps)
        if is_late.any() and step + 1 < num_steps:
            later = self.scheduler.plan_openings(sample, reseed_all(self.generators), first_step=step + 1)
            self.pending = torch.where(is_late, later.steps, self.pending)
            plan.noise = torch.where(is_late[..., None], later.noise, plan.noise)
            plan.left_over = torch.where(is_late, later.left_over, plan.left_over)
        plan.steps = self.pending


class SteppedRun:
    """Run whose steps are drawn when their turn comes: orders, remasking, correctors and GenMD4's thinning.

    Steps of a row in which the denoiser is not needed are taken without it.
    """

    def __init__(self, scheduler: MaskedDiffusionScheduler, sample: Tensor, generators: list[torch.Generator]):
        self.scheduler, self.generators, self.sample = scheduler, generators, sample.clone()
        self.num_steps = scheduler.num_inference_steps
        self.memory = RowMemory.of_start(self._masked(self.sample))
        self.next_step = torch.zeros(len(sample), dtype=torch.long)
        self.corrections = torch.zeros(len(sample), dtype=torch.long)  # still to do before the next step
        self._times, self._timesteps = scheduler.denoiser_times, scheduler.timesteps.cpu()

    @property
    def step(self) -> int:
        """Least next step of any row, `num_steps` when all are done."""
        return int(self.next_step.min())

    def look(self, until: int) -> Look | None:
        """Next steps of rows up to this step of the grid, or corrections of steps taken; None if there are none."""
        while True:
            rows = (self.corrections > 0).nonzero().squeeze(1)
            is_correction = len(rows) > 0
            if not is_correction:
                self._finish()
                rows = (self.next_step <= until).nonzero().squeeze(1)
                if not len(rows):
                    return None
            look = self._plan(rows, is_correction)
            if len(look.rows):
                return look

    def _plan(self, rows: Tensor, is_correction: bool) -> Look:
        """Plan the next step of these rows, take it in rows that need no denoiser, and return the rest."""
        scheduler = self.scheduler
        steps = self.next_step[rows] - int(is_correction)
        there = rows.to(self.sample.device)
        sample, memory = self.sample[there], self.memory.rows(there)
        plan_of = scheduler.plan_correction if is_correction else scheduler.plan_step
        generators = reseed_all([self.generators[row] for row in rows.tolist()])
        plan = plan_of(self._timesteps[steps], sample, generators, memory=memory)
        if is_correction:
            self.corrections[rows] -= 1
            times = torch.cat([self._times, self._times.new_zeros(1)])[steps + 1]
        else:
            self.next_step[rows] += 1
            times = self._times[steps]
            self.corrections[rows] = scheduler.config.corrector_steps
        if plan.remasked is not None:  # before the denoiser runs, which sees the tokens all the same
            self.sample[there] = sample.masked_fill(plan.remasked.to(sample.device), scheduler.config.mask_token_id)
        needed = plan.candidates.flatten(1).any(dim=1).cpu()
        where = needed.nonzero().squeeze(1)
        if not is_correction and scheduler.order_policy is not None:
            self.corrections[rows[~needed]] = 0  # nothing has changed
        sample = sample[where.to(sample.device)]
        steps = steps[where]
        return Look(rows[where], times[where], steps, self._timesteps[steps], sample, plan.rows(where), is_correction)

    def take(self, look: Look, output: MaskedDiffusionSchedulerOutput):
        """Put the rows after their step into the sample, and into the memory."""
        there = look.rows.to(self.sample.device)
        self.sample[there] = output.prev_sample
        remembered = look.plan.remembered(output.committed_mask, output.sampled_probs)
        self.memory.put(there, remembered)
        order = self.scheduler.order_policy
        if order is not None and order.is_adaptive and not look.is_correction:
            masked, fillable = (
                x.flatten(1).sum(dim=1).cpu() for x in (self._masked(output.prev_sample), remembered.fillable)
            )
            self.next_step[look.rows] = self.scheduler.caught_up(self.next_step[look.rows], masked, fillable)

    def stop(self, rows: Tensor, sample: Tensor):
        """Take rows `(n,)` to the end, with ids `(n, ...)`, unless corrections of their last step are to come."""
        is_between_steps = self.corrections[rows] == 0
        rows = rows[is_between_steps]
        self.sample[rows.to(self.sample.device)] = sample[is_between_steps.to(sample.device)]
        self.next_step[rows] = self.num_steps

    def replace(self, sample: Tensor, step: int):
        """Continue from another sample, given after a step: tokens put in are kept, and new masks open later."""
        is_new = self._masked(sample) & ~self._masked(self.sample)
        self.next_step[is_new.flatten(1).any(dim=1).cpu()] = step + 1
        self.memory = self.memory.with_given(sample != self.sample, self._masked(sample))
        self.sample = sample.clone()

    def _finish(self):
        """Take rows to the end whose masks are filled, unless their tokens may still change."""
        if not self.scheduler.changes_decided_tokens:
            is_done = ~self._masked(self.sample).flatten(1).any(dim=1).cpu()
            self.next_step[is_done] = self.num_steps

    def _masked(self, sample: Tensor) -> Tensor:
        return sample == self.scheduler.config.mask_token_id


class ForeignRun:
    """Run by the steps of another scheduler: all rows go through all of its times, until it has nothing left to do.

    The denoiser is told the share of a row's masks that are left.
    """

    def __init__(self, scheduler: ForeignScheduler, sample: Tensor, generators: list[torch.Generator]):
        self.scheduler, self.generators, self.sample = scheduler, generators, sample.clone()
        self.num_steps = scheduler.num_inference_steps
        self.fillable = self._masked(sample)
        self.schedulers = [scheduler.for_row(count, sample.device) for count in _counts(self.fillable).tolist()]
        self.next_step = torch.zeros(len(sample), dtype=torch.long)
        self._timesteps = scheduler.timesteps.cpu()
        self.stop((_counts(self.fillable) == 0).nonzero().squeeze(1).cpu())

    @property
    def step(self) -> int:
        """Least next step of any row, `num_steps` when all are done."""
        return int(self.next_step.min())

    def look(self, until: int) -> Look | None:
        """Next step of each row that has one up to this step of the grid; None if no row has."""
        rows = (self.next_step <= until).nonzero().squeeze(1)
        if not len(rows):
            return None
        steps, there = self.next_step[rows], rows.to(self.sample.device)
        self.next_step[rows] += 1
        sample, fillable = self.sample[there], self.fillable[there]
        share = _counts(self._masked(sample)) / _counts(fillable)
        seeds = [generator.initial_seed() for generator in reseed_all([self.generators[row] for row in rows.tolist()])]
        noise = torch.empty(0, dtype=torch.float64)
        schedulers = [self.schedulers[row] for row in rows.tolist()]
        plan = ForeignPlan(fillable, noise, schedulers=schedulers, seeds=seeds)
        return Look(rows, share.float().cpu(), steps, self._timesteps[steps], sample, plan)

    def take(self, look: Look, output: ForeignOutput):
        """Put the rows after their step into the sample."""
        self.sample[look.rows.to(self.sample.device)] = output.prev_sample
        self.stop(look.rows[output.is_done])

    def stop(self, rows: Tensor, sample: Tensor | None = None):
        """Take rows `(n,)` to the end, with ids `(n, ...)` if they are given."""
        if sample is not None:
            self.sample[rows.to(self.sample.device)] = sample
        self.next_step[rows] = self.num_steps

    def replace(self, sample: Tensor, step: int):
        """Continue from another sample, given after a step: tokens put in are kept, and new masks may be filled."""
        masked = self._masked(sample)
        self.fillable = (self.fillable & (sample == self.sample)) | masked
        self.sample = sample.clone()
        self.next_step[masked.flatten(1).any(dim=1).cpu()] = step + 1

    def _masked(self, sample: Tensor) -> Tensor:
        return sample == self.scheduler.mask_token_id


def _counts(x: Tensor) -> Tensor:
    """Number of true entries of each row `(rows, ...)`."""
    return x.flatten(1).sum(dim=1)


Run: TypeAlias = PlannedRun | SteppedRun | ForeignRun


def start_run(
    scheduler: MaskedDiffusionScheduler | ForeignScheduler, sample: Tensor, generators: list[torch.Generator]
) -> Run:
    """Begin a run that fills the masks of ids `(rows, ...)`, with one generator per row."""
    if isinstance(scheduler, ForeignScheduler):
        return ForeignRun(scheduler, sample, generators)
    return (PlannedRun if scheduler.is_planned else SteppedRun)(scheduler, sample, generators)
