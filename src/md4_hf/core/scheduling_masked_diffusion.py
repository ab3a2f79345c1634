# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Reverse process of masked diffusion as a diffusers scheduler: time grids and samplers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .input_checks import check_range, check_shape, check_tensor
from .masked_diffusion import check_top_k, check_top_p, corrupt
from .opening_orders import QUOTAS, make_order, opening_quota
from .remasking import GibbsCorrector, StepRates, make_corrector, make_remasking
from .reverse_steps import OrderedPlan, RowMemory, StepPlan, ThinnedPlan, TokenDraw, ancestral_sampler, sent
from .scheduler_base import BaseOutput, ConfigMixin, SchedulerMixin, register_to_config
from .schedules import MaskingSchedule, TokenPolynomialSchedule, left_broadcast, make_schedule


Generators: TypeAlias = torch.Generator | list[torch.Generator] | None
MAX_INFERENCE_STEPS = 2**20  # the times of more steps would coincide in float32


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):
    """
    Result of one reverse step.

    Args:
        prev_sample (`torch.LongTensor` of shape `(batch, ...)`): The state x_s at the earlier time.
        sampled_tokens (`torch.LongTensor` of shape `(batch, ...)`): Tokens decided in this step, else the mask id.
        sampled_probs (`torch.FloatTensor` of shape `(batch, ...)`): The decided tokens' probabilities, else 0.
        pred_logits (`torch.FloatTensor`): The denoiser's output, as given.
        committed_mask (`torch.BoolTensor` of shape `(batch, ...)`): Positions decided in this step.
        remasked (`torch.BoolTensor` of shape `(batch, ...)`): Decided tokens that this step has masked again.
    """

    prev_sample: torch.LongTensor
    sampled_tokens: torch.LongTensor
    sampled_probs: torch.FloatTensor
    pred_logits: torch.FloatTensor
    committed_mask: torch.BoolTensor
    remasked: torch.BoolTensor


@dataclass
class OpeningPlan(BaseOutput):
    """
    Step of a reverse process at which each masked position is unmasked.

    Args:
        steps (`torch.LongTensor` of shape `(batch, ...)`):
            Index into `timesteps` of the step that unmasks the position; the number of steps if it is not masked.
        noise (`torch.DoubleTensor` of shape `(batch, ..., 2)`): The uniform numbers; the second one draws the token.
        left_over (`torch.BoolTensor` of shape `(batch, ...)`): Positions that the last step decodes by arg max.
    """

    steps: torch.LongTensor
    noise: torch.DoubleTensor
    left_over: torch.BoolTensor

    def at(self, step: int | Tensor, rows: Tensor | slice = slice(None)) -> StepPlan:
        """Plan of a step, for all rows or for some; `step` is one for all of these rows, or `(rows,)`."""
        steps = self.steps[rows]
        step = left_broadcast(torch.as_tensor(step, device=steps.device), steps.dim())
        return StepPlan(candidates=steps == step, noise=self.noise[rows], left_over=self.left_over[rows])


# Time grids: T + 1 times from 1 down to 0, `(steps + 1,)` float64 -----------------------------------------------------


def uniform_grid(num_inference_steps: int) -> Tensor:
    """Uniform times t_i = 1 - i/T."""
    return torch.arange(num_inference_steps, -1, -1, dtype=torch.float64) / num_inference_steps


def cosine_grid(num_inference_steps: int) -> Tensor:
    """Cosine times t_i = cos(pi/2 (i/T)): the linear schedule then opens tokens as the cosine one at uniform times."""
    grid = torch.cos(math.pi / 2.0 * (1.0 - uniform_grid(num_inference_steps)))
    grid[-1] = 0.0
    return grid


GRIDS: dict[str, Callable[[int], Tensor]] = {"uniform": uniform_grid, "cosine": cosine_grid}


class MaskedDiffusionScheduler(SchedulerMixin, ConfigMixin):
    r"""
    Reverse process of masked diffusion (MD4, arXiv:2406.04329, section 2 and App. G).

    A step from time t to s < t opens each masked position with probability r = (alpha_s - alpha_t) / (1 - alpha_t) and
    puts a token drawn from the denoiser's softmax there; decided tokens are never rewritten. The last step opens all
    positions that are left. Categorical draws are made in float64.

    With one schedule for all tokens, the step that unmasks a position can be drawn before the denoiser runs at all
    (`plan_openings`), which is then needed only where something opens. Samples have the same distribution.

    With GenMD4's schedules (`set_token_schedule`, which the pipeline calls) r depends on the token: the position
    becomes token j with probability r_j mu_j. A step can be planned when its turn comes (`plan_step`), by thinning:
    candidates are drawn with the largest r_j, and open with the ratio of their own r_j to it. The sample is exactly
    that of a step without a plan.

    Args:
        mask_token_id (`int`, *optional*): The mask id; the pipeline fills in the model's if it is `None`.
        masking_schedule (`str`, defaults to `"linear"`):
            `"linear"`, `"cosine"`, `"poly"`, `"geometric"` or `"loglinear"`.
        schedule_power, schedule_eps (`float`, default to 1.0 and 1e-4): See `MD4Config`.
        timestep_grid (`str`, defaults to `"cosine"`):
            `"uniform"` or `"cosine"`; the paper uses cosine with the linear schedule, uniform with the cosine one.
        sampler (`str`, defaults to `"ancestral"`): `"ancestral"`, or `"mean"`, the paper's name for the same law.
        top_p (`float`, *optional*): Nucleus used by `step` when the call gives none, in (0, 1].
        final_decode (`str`, defaults to `"sample"`):
            How the last step fills positions that the schedule would leave masked (alpha_0 = 1 - eps): with a draw, or
            with the most probable token (`"argmax"`; the official code calls the network once more, at t=0, for it).
        num_inference_steps (`int`, defaults to 256): Steps of the initial time grid.
    """

    order = 1
    init_noise_sigma = 1.0  # by which pipelines scale their initial state; ids are not scaled

    @register_to_config
    def __init__(
        self,
        mask_token_id: int | None = None,
        masking_schedule: str = "linear",
        schedule_power: float = 1.0,
        schedule_eps: float = 1e-4,
        timestep_grid: str = "cosine",
        sampler: str = "ancestral",
        top_p: float | None = None,
        final_decode: str = "sample",
        num_inference_steps: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        order: str = "random",
        order_temperature: float = 0.0,
        quota: str = "ceil",
        threshold: float = 0.9,
        factor: float = 1.0,
        entropy_bound: float = 0.1,
        kl_bound: float = 0.01,
        remasking: str | None = None,
        eta: float | None = None,
        loop_start: float = 0.55,
        loop_end: float = 0.05,
        loop_alpha: float = 0.9,
        corrector: str = "forward_backward",
        corrector_steps: int = 0,
        corrector_eta: float = 0.1,
        corrector_size: int = 1,
    ):
        if mask_token_id is not None and not (isinstance(mask_token_id, Integral) and mask_token_id >= 0):
            raise ValueError(f"`mask_token_id` must be an id >= 0 or None, got {mask_token_id!r}.")
        self.check_sampling_arguments(temperature, top_p, top_k)
        _check_choice("timestep_grid", timestep_grid, GRIDS)
        _check_choice("sampler", sampler, ("ancestral", "mean"))
        _check_choice("final_decode", final_decode, ("sample", "argmax"))
        _check_choice("quota", quota, QUOTAS)
        if isinstance(corrector_steps, bool) or not (isinstance(corrector_steps, Integral) and corrector_steps >= 0):
            raise ValueError(f"`corrector_steps` must be an integer >= 0, got {corrector_steps!r}.")
        orders = {"threshold": threshold, "factor": factor, "entropy_bound": entropy_bound, "kl_bound": kl_bound}
        self.order_policy = make_order(order, temperature=order_temperature, **orders)
        loop = {"loop_start": loop_start, "loop_end": loop_end, "loop_alpha": loop_alpha}
        self.remasking = make_remasking(remasking, eta=eta, **loop)
        self.corrector = make_corrector(corrector, corrector_eta, corrector_size)
        if remasking is not None and self.order_policy is not None:
            raise ValueError(f'`remasking` must be None with `order="{order}"`: it has an order of its own, "random".')
        self.schedule: MaskingSchedule = make_schedule(masking_schedule, power=schedule_power, eps=schedule_eps)
        self.token_schedule: TokenPolynomialSchedule | None = None
        self.set_timesteps(num_inference_steps)

    @classmethod
    def for_model(cls, config: Any, **entries: Any) -> MaskedDiffusionScheduler:
        """Scheduler with the masking schedule of a model's configuration and the paper's grid for it, and `entries`."""
        own = {name: getattr(config, name) for name in ("masking_schedule", "schedule_power", "schedule_eps")}
        grid = "cosine" if config.masking_schedule == "linear" else "uniform"
        return cls(**{"mask_token_id": config.mask_token_id, "timestep_grid": grid, **own, **entries})

    def with_options(self, **options: Any) -> MaskedDiffusionScheduler:
        """Scheduler with entries of the configuration replaced by those given that are not None; itself if none is."""
        options = {name: value for name, value in options.items() if value is not None}
        if not options:
            return self
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        scheduler = type(self)(**{**config, **options})
        scheduler.schedule = self.schedule
        scheduler.set_token_schedule(self.token_schedule)
        return scheduler

    def set_token_schedule(self, token_schedule: TokenPolynomialSchedule | None):
        """Sample with the learned schedules of a GenMD4 model; None restores the schedule of the configuration."""
        if token_schedule is not None and self.order_policy is not None:
            raise ValueError(
                f'`order` must be "random" with the schedules of GenMD4, in which each token has its own time, got '
                f"{self.config.order!r}."
            )
        of_corrector = self.config.corrector_steps == 0 or self.corrector.is_per_token
        for name, is_defined in (("remasking", self.remasking.is_per_token), ("corrector", of_corrector)):
            if token_schedule is not None and not is_defined:
                raise ValueError(
                    f"`{name}` must be one for tokens that each have their own time with the schedules of GenMD4, got "
                    f"{self.config[name]!r}."
                )
        self.token_schedule = token_schedule

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        """Set the time grid: `timesteps` `(num_inference_steps,)` float32, decreasing from 1, without the final 0."""
        if not (isinstance(num_inference_steps, Integral) and num_inference_steps >= 1):
            raise ValueError(f"`num_inference_steps` must be >= 1, got {num_inference_steps!r}.")
        if num_inference_steps > MAX_INFERENCE_STEPS:
            raise ValueError(f"`num_inference_steps` must be <= {MAX_INFERENCE_STEPS}, got {num_inference_steps}.")
        self.num_inference_steps = num_inference_steps
        self._grid = GRIDS[self.config.timestep_grid](num_inference_steps)
        self.timesteps = self._grid[:-1].float().to(device)
        self._memory: RowMemory | None = None  # of a loop over `step` without plans

    @property
    def denoiser_times(self) -> Tensor:
        """Times `(num_inference_steps,)` float32 that the denoiser is told, on the CPU; `timesteps` but for loops."""
        return self.remasking.times(self.schedule, self._grid).float()

    @property
    def is_planned(self) -> bool:
        """Whether all steps of a run can be drawn before the denoiser runs at all, by `plan_openings`."""
        is_plain = self.order_policy is None and self.config.corrector_steps == 0
        return is_plain and self.token_schedule is None and not self._remasks

    @property
    def _remasks(self) -> bool:
        """Whether a decided token may be masked again by a reverse step."""
        return self.config.remasking is not None and self.remasking.eta > 0.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """Return the sample itself, as masked diffusion does not scale its inputs."""
        return sample

    def add_noise(
        self, original_samples: torch.LongTensor, timesteps: Tensor, generator: torch.Generator | None = None
    ) -> torch.LongTensor:
        """Draw x_t from q(x_t | x_0) for ids `(batch, ...)` at times `(batch,)` in [0, 1]; a ValueError for others."""
        mask_token_id = self._mask_token_id()
        check_tensor("original_samples", original_samples, "integers")
        check_tensor("timesteps", timesteps, "floating-point numbers")
        check_shape("timesteps", timesteps, (), (1,), original_samples.shape[:1])
        check_range("timesteps", timesteps, 1)
        alpha_t = (self.token_schedule or self.schedule).alpha_of(timesteps, original_samples).detach()
        return corrupt(original_samples, alpha_t, mask_token_id, generator)

    def unmask_probabilities(self) -> Tensor:
        """Probability r that a masked position is unmasked by a draw at each step, `(num_inference_steps,)` float64.

        The last one is 1 with `final_decode="sample"`; with "argmax", positions that it leaves masked are decoded.
        """
        return self._rates().opens

    def _rates(self) -> StepRates:
        """Probabilities of each step, with one schedule for all tokens."""
        rates = self.remasking.rates(self.schedule, self._grid)
        if self.config.final_decode == "sample":
            rates.opens[-1] = 1.0
        return rates

    @torch.no_grad()
    def plan_openings(
        self, sample: torch.LongTensor, generator: Generators = None, first_step: int = 0
    ) -> OpeningPlan:
        """Draw the step, from `first_step` on, that unmasks each masked position of `sample` `(batch, ...)`.

        A position is unmasked at step i with probability r_i (1 - r_{i-1}) (1 - r_{i-2}) ...: one uniform number
        decides. Not with GenMD4's schedules, where r depends on the tokens: a ValueError.
        """
        if self.token_schedule is not None:
            raise ValueError("`plan_openings` needs one schedule for all tokens: with GenMD4's use `plan_step`.")
        if not self.is_planned:
            raise ValueError('`plan_openings` needs `order="random"` without remasking or corrector: use `plan_step`.')
        if not 0 <= first_step < self.num_inference_steps:
            raise ValueError(f"`first_step` must be in [0, {self.num_inference_steps}), got {first_step}.")
        state = sample.cpu()  # generators usually are there, and no kernel has to be waited for
        noise = _uniform(state.shape, generator, state.device)
        opened_by = 1.0 - (1.0 - self.unmask_probabilities()[first_step:]).cumprod(dim=0)
        steps = first_step + torch.searchsorted(opened_by, noise[..., 0].contiguous(), right=True)
        masked = state == self._mask_token_id()
        left_over = masked & (steps == self.num_inference_steps)
        steps = steps.clamp(max=self.num_inference_steps - 1)
        return OpeningPlan(steps.where(masked, self.num_inference_steps), noise, left_over)

    @torch.no_grad()
    def plan_step(
        self,
        timestep: float | Tensor,
        sample: torch.LongTensor,
        generator: Generators = None,
        memory: RowMemory | None = None,
    ) -> StepPlan:
        """Draw the noise of a step, and thus the positions where the denoiser is needed.

        Arguments as in `step`, and the memory of the rows, by default that of the loop that calls `step`.
        """
        return self._plan(*self._state_of(timestep, sample, generator, memory, begins=True))

    @torch.no_grad()
    def plan_correction(
        self,
        timestep: float | Tensor,
        sample: torch.LongTensor,
        generator: Generators = None,
        memory: RowMemory | None = None,
    ) -> StepPlan:
        """Draw the noise of a corrector step, at the time that the step from `timestep` has reached; see `plan_step`.

        The denoiser has to see the mask at the candidates of the plan, which `sample` may not have. A ValueError with
        `corrector_steps=0`.
        """
        if self.config.corrector_steps == 0:
            raise ValueError("`corrector_steps` must be >= 1 in the scheduler's config for corrections, got 0.")
        state, index, noise, memory = self._state_of(timestep, sample, generator, memory, begins=False)
        if isinstance(self.corrector, GibbsCorrector):
            may_change = memory.fillable & (state != self._mask_token_id())
            flat = (x.flatten(1) for x in (may_change, memory.confidence, noise[..., 0]))
            return StepPlan(self.corrector.chosen(*flat).view_as(state), noise, memory=memory)
        s = self._grid.to(index.device)[index + 1]
        if self.token_schedule is None:
            rates = self.corrector.rates(self.remasking.alpha(self.schedule, self._grid).to(s.device)[index + 1], s)
        else:
            rates = self.corrector.rates(self.token_schedule.alpha(s).double(), s[:, None])
        return self._plan_by_rates(state, rates, torch.zeros_like(index, dtype=torch.bool), noise, memory)

    def _state_of(
        self, timestep: float | Tensor, sample: Tensor, generator: Generators, memory: RowMemory | None, begins: bool
    ) -> tuple[Tensor, Tensor, Tensor, RowMemory | None]:
        """Ids, indices of the steps `(batch,)`, noise and memory of a step; the first step `begins` a memory."""
        state = sample.cpu() if sample.device.type == "mps" else sample  # mps has no float64
        index = self._step_index(timestep, state.shape[0])
        if memory is None:
            memory = self._own_memory(state, is_start=begins and bool((index == 0).all()))
        return state, index.to(state.device), _uniform(state.shape, generator, state.device), memory

    def _plan(self, state: Tensor, index: Tensor, noise: Tensor, memory: RowMemory | None) -> StepPlan:
        """Plan of a reverse step for ids `(batch, ...)`, at the steps `(batch,)`."""
        is_last = index == self.num_inference_steps - 1
        if self.order_policy is not None:
            return self._plan_by_order(state, index, is_last, noise, memory)
        if self.token_schedule is None:
            rates = self._rates().at(index)
        else:
            grid = self._grid.to(index.device)
            steps, inverse = index.unique(return_inverse=True)
            rates = self.remasking.token_rates(self.token_schedule, grid[steps], grid[steps + 1]).at(inverse)
        return self._plan_by_rates(state, rates, is_last, noise, memory)

    def _plan_by_rates(
        self, state: Tensor, rates: StepRates, is_last: Tensor, noise: Tensor, memory: RowMemory | None
    ) -> StepPlan:
        """Plan of a step with these probabilities of each row, `(batch,)` or `(batch, vocab)`."""
        masked = state == self._mask_token_id()
        last = left_broadcast(is_last, state.dim())
        given = {"memory": memory, "remasked": self._remasked(state, masked, rates, noise, memory)}
        if rates.opens.dim() == 1:
            opens, uniform = ancestral_sampler(left_broadcast(rates.opens, state.dim()), noise)
            noise = torch.stack([noise[..., 0], uniform], dim=-1)
            return StepPlan(masked & (opens | last), noise, left_over=last & ~opens, **given)
        opens = rates.opens.index_fill(-1, torch.tensor([self._mask_token_id()], device=state.device), 0.0)
        may_open = noise[..., 0] < left_broadcast(opens.amax(dim=-1), state.dim())
        return ThinnedPlan(masked & (may_open | last), noise, opens=opens, is_last=is_last, **given)

    def _remasked(
        self, state: Tensor, masked: Tensor, rates: StepRates, noise: Tensor, memory: RowMemory | None
    ) -> Tensor | None:
        """Decided tokens of no prompt that the step masks again; None if it cannot."""
        if memory is None or not self._keeps_memory:
            return None
        may_change = memory.fillable & ~masked
        if rates.remasks.dim() == 2:
            sigma = rates.remasks.gather(-1, state.flatten(1)).view_as(noise[..., 0])
        else:
            sigma = left_broadcast(rates.remasks, state.dim())
        if rates.by_confidence:
            scores = (-memory.confidence).masked_fill(~may_change, -torch.inf).flatten(1)
            sigma = sigma * scores.softmax(dim=-1).nan_to_num().view_as(noise[..., 0])
        return may_change & (noise[..., 0] < sigma)

    def _plan_by_order(
        self, state: Tensor, index: Tensor, is_last: Tensor, noise: Tensor, memory: RowMemory | None
    ) -> OrderedPlan:
        masked = state == self._mask_token_id()
        count = masked.flatten(1).sum(dim=-1)
        opens = self._rates().opens.to(index.device)[index]
        quota, left = opening_quota(self.config.quota, count, opens, noise[..., 0].flatten(1))
        noise = torch.stack([left.view_as(noise[..., 0]), noise[..., 1]], dim=-1)
        if self.order_policy.is_adaptive:
            quota = quota.clamp(min=1)
        quota = torch.where(is_last, count, quota)
        candidates = masked & left_broadcast(quota > 0, state.dim())
        return OrderedPlan(candidates, noise, memory=memory, order=self.order_policy, quota=quota)

    def caught_up(self, step: Tensor, num_masked: Tensor, num_fillable: Tensor) -> Tensor:
        """Next steps `(rows,)` of rows for an adaptive order: the latest by which no fewer masks are expected."""
        masked_share = (1.0 - self.schedule.alpha(self._grid[:-1])) / (1.0 - self.schedule.alpha(self._grid[:1]))
        expected = num_fillable[:, None] * masked_share  # decreasing in the step
        latest = (expected >= num_masked[:, None] - 1e-6).sum(dim=-1) - 1
        return torch.maximum(step, latest)

    @property
    def changes_decided_tokens(self) -> bool:
        """Whether a token may be replaced after it has been decided, by remasking or a corrector."""
        return self._remasks or self.config.corrector_steps > 0

    @property
    def _ranks_by_confidence(self) -> bool:
        """Whether decided tokens are ranked by the probabilities they had."""
        return self.changes_decided_tokens and (self.remasking.by_confidence or self.corrector.by_confidence)

    @property
    def _keeps_memory(self) -> bool:
        """Whether steps depend on those before them."""
        keeps = self.order_policy is not None and self.order_policy.keeps_predictions
        return self.changes_decided_tokens or keeps

    def _own_memory(self, state: Tensor, is_start: bool) -> RowMemory | None:
        """Memory of a loop over `step`, new at the first step, of whose sample the tokens are the prompt."""
        if not self._keeps_memory:
            return None
        memory = self._memory
        if memory is None or memory.fillable.shape != state.shape or is_start:
            self._memory = RowMemory.of_start(state == self._mask_token_id())
        return self._memory

    @torch.no_grad()
    def step(
        self,
        model_output: torch.FloatTensor,
        timestep: float | Tensor,
        sample: torch.LongTensor,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        generator: Generators = None,
        plan: StepPlan | None = None,
        forced_tokens: torch.LongTensor | None = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple:
        """
        Take a reverse step, from `timestep` to the next time of the grid.

        Args:
            model_output: `(*sample.shape, vocab)` logits of the denoiser, or `(masked, vocab)`: those of the masked
                positions only (with a `plan`, of its candidates), in row-major order. The mask's own logit is ignored.
            timestep: A time of `timesteps`, or one per row `(batch,)`.
            sample: `(batch, ...)` ids of x_t. It is not modified.
            temperature: Divides the logits; 0 takes the most probable token. >= 0, `config.temperature` by default.
            top_p: Nucleus in (0, 1]; `config.top_p` by default.
            top_k: Keep the k >= 1 most probable tokens; `config.top_k` by default.
            generator: One generator, or one per row (the draws of a row then do not depend on other rows).
            plan: Plan of `plan_step` for this time and sample, or of `plan_openings` for this step (`OpeningPlan.at`);
                its noise is used instead of a new draw.
            forced_tokens: `(batch, ...)` ids that are put where the step decides, in place of draws; `sampled_probs`
                are then their probabilities.
            return_dict: Whether to return a `MaskedDiffusionSchedulerOutput` or a tuple of its fields.

        Raises:
            ValueError: For a time off the grid, wrong shapes, values out of range and, on the CPU, logits not finite.
        """
        config = self.config
        temperature = config.temperature if temperature is None else temperature
        top_p, top_k = (config.top_p if top_p is None else top_p), (config.top_k if top_k is None else top_k)
        self.check_sampling_arguments(temperature, top_p, top_k)
        check_tensor("sample", sample, "integers")
        check_tensor("model_output", model_output, "floating-point numbers")
        mask_token_id, device = self._mask_token_id(), sample.device
        if sample.dim() < 1 or model_output.dim() < 2 or model_output.shape[-1] <= mask_token_id:
            raise ValueError(
                f"`model_output` must have shape (*sample.shape, vocab), vocab above the mask id {mask_token_id}, got "
                f"{tuple(model_output.shape)} for `sample` of shape {tuple(sample.shape)}."
            )
        logits, state = model_output, sample
        if device.type == "mps":  # has no float64: draw on the CPU
            logits, state = logits.cpu(), state.cpu()
        masked = None if plan is not None else state == mask_token_id
        if plan is None:
            plan = self.plan_step(timestep, state, generator)
        logits = _at_candidates(logits, plan.candidates, masked)
        candidates = sent(plan.candidates, state.device)
        forced = None
        if forced_tokens is not None:
            check_tensor("forced_tokens", forced_tokens, "integers")
            check_shape("forced_tokens", forced_tokens, state.shape)
            forced = forced_tokens.to(state.device)[candidates]
            check_range("forced_tokens", forced, model_output.shape[-1] - 1)
        how = TokenDraw(mask_token_id, temperature, top_p, top_k, forced)
        drawn = plan.draw(logits, how)

        sampled_tokens = torch.full_like(state, mask_token_id).masked_scatter(candidates, drawn.tokens.to(state.dtype))
        sampled_probs = torch.zeros(state.shape, device=state.device).masked_scatter(candidates, drawn.probs.float())
        prev_sample, committed = torch.where(candidates, sampled_tokens, state), sampled_tokens != mask_token_id
        if self._ranks_by_confidence and not how.is_plain:
            belief = how.belief(logits, drawn.tokens).float()
            plan.belief = torch.zeros_like(sampled_probs).masked_scatter(candidates, belief)
        remasked = torch.zeros_like(committed)
        if plan.remasked is not None:
            remasked = sent(plan.remasked, state.device)
            prev_sample = prev_sample.masked_fill(remasked, mask_token_id)
        if plan.memory is not None and plan.memory is self._memory:
            self._memory = plan.remembered(committed, sampled_probs)
        output = MaskedDiffusionSchedulerOutput(
            *(x.to(device) for x in (prev_sample, sampled_tokens, sampled_probs)),
            pred_logits=model_output,
            committed_mask=committed.to(device),
            remasked=remasked.to(device),
        )
        return output if return_dict else output.to_tuple()

    @staticmethod
    def check_sampling_arguments(temperature: float, top_p: float | None, top_k: int | None):
        """Raise a ValueError for a value that `step` does not accept."""
        if not (isinstance(temperature, Real) and 0.0 <= temperature <= sys.float_info.max):
            raise ValueError(f"`temperature` must be finite and >= 0, got {temperature!r}.")
        if top_p is not None:
            check_top_p(top_p)
        if top_k is not None:
            check_top_k(top_k)

    def _mask_token_id(self) -> int:
        if self.config.mask_token_id is None:
            raise ValueError("`mask_token_id` must be set in the scheduler's config, got None.")
        return self.config.mask_token_id

    def _step_index(self, timestep: float | Tensor, batch: int) -> Tensor:
        """Indices `(batch,)` of the given times in the grid, on the CPU."""
        if not isinstance(timestep, (Real, Tensor)):
            raise ValueError(f"`timestep` must be a number or a tensor, got {timestep!r}.")
        timestep = torch.as_tensor(timestep, dtype=torch.float32).cpu()
        if timestep.shape not in ((), (1,), (batch,)):
            raise ValueError(f"`timestep` must be one time or have shape ({batch},), got {tuple(timestep.shape)}.")
        distance, index = (self._grid[:-1].float()[None] - timestep.reshape(-1, 1)).abs().min(dim=-1)
        if not (distance <= 1e-6).all():  # false for nan too
            worst = timestep.reshape(-1)[distance.argmax()].item()
            steps = self.num_inference_steps
            raise ValueError(f"`timestep` must be one of the {steps} times of `timesteps`, got {worst}.")
        return index.expand(batch)

    @classmethod
    def _get_compatibles(cls) -> list[type[MaskedDiffusionScheduler]]:
        # diffusers looks for compatible schedulers by name among its own, which do not include this one.
        return [cls]

    def __len__(self) -> int:
        return self.num_inference_steps


def _uniform(shape: torch.Size, generator: Generators, device: torch.device) -> Tensor:
    """Draw two uniform float64 numbers per position, `(*shape, 2)`, on the device of the generator."""
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(f"`generator` must hold one generator per row, {shape[0]}, got {len(generator)}.")
        return torch.cat([_uniform((1, *shape[1:]), row_generator, device) for row_generator in generator])
    source = generator.device if generator is not None else device
    return torch.rand((*shape, 2), generator=generator, device=source, dtype=torch.float64).to(device)


def _check_choice(name: str, value: str, choices):
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"`{name}` must be one of {sorted(choices)}, got {value!r}.")


def _at_candidates(logits: Tensor, candidates: Tensor, masked: Tensor | None) -> Tensor:
    """Logits of the candidates `(n, vocab)`, from those of all positions, of the masked ones, or of the candidates."""
    given = candidates if masked is None else masked
    if logits.shape[:-1] == candidates.shape:
        return logits[sent(candidates, logits.device)]
    count = int(given.sum())
    if logits.shape[:-1] != (count,):
        raise ValueError(
            f"`model_output` must have shape {(*candidates.shape, 'vocab')}, or ({count}, vocab) for the masked "
            f"positions, got {tuple(logits.shape)}."
        )
    return logits if masked is None else logits[candidates[masked]]
