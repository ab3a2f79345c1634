# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Reverse process of masked diffusion as a diffusers scheduler: time grids and samplers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeAlias

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from .input_checks import check_range, check_shape, check_tensor
from .masked_diffusion import (
    check_top_k,
    check_top_p,
    corrupt,
    denoiser_probabilities,
    draw_categorical,
    top_k_logits,
    top_p_logits,
    unmask_probability,
)
from .schedules import MaskingSchedule, TokenPolynomialSchedule, left_broadcast, make_schedule


Generators: TypeAlias = torch.Generator | list[torch.Generator] | None
# Number of float64 probabilities that exist at a time while tokens are drawn.
PROBABILITIES_AT_A_TIME = 2**22
MIN_TEMPERATURE = 1e-100  # below, where quotients overflow, the most probable token is taken
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
    """

    prev_sample: torch.LongTensor
    sampled_tokens: torch.LongTensor
    sampled_probs: torch.FloatTensor
    pred_logits: torch.FloatTensor


@dataclass
class StepPlan(BaseOutput):
    """
    Noise of a reverse step, drawn before the denoiser runs, and the positions where the denoiser is needed.

    Args:
        candidates (`torch.BoolTensor` of shape `(batch, ...)`): Positions that may open, where the denoiser is needed.
        noise (`torch.DoubleTensor` of shape `(batch, ..., 2)`): The uniform numbers that the step will use.
        left_over (`torch.BoolTensor` of shape `(batch, ...)`, *optional*):
            Candidates decoded by arg max, while all others open; `None` if the step has yet to decide which open.
    """

    candidates: torch.BoolTensor
    noise: torch.DoubleTensor
    left_over: torch.BoolTensor | None = None


@dataclass
class OpeningPlan(BaseOutput):
    """
    Step of a reverse process at which each masked position opens.

    Args:
        steps (`torch.LongTensor` of shape `(batch, ...)`):
            Index into `timesteps` of the step that opens the position; the number of steps if it is not masked.
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


def ancestral_sampler(probability: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-CDF draw from the table [r mu, 1 - r]: a position opens if u < r, and u / r then draws its token.

    From r `(n,)` and uniform noise `(n, 2)`, float64: booleans `(n,)`, and the numbers u / r, meaningful where open.
    """
    u = noise[:, 0]
    return u < probability, u / probability.clamp(min=torch.finfo(torch.float64).tiny)


class MaskedDiffusionScheduler(SchedulerMixin, ConfigMixin):
    r"""
    Reverse process of masked diffusion (MD4, arXiv:2406.04329, section 2 and App. G).

    A step from time t to s < t opens each masked position with probability r = (alpha_s - alpha_t) / (1 - alpha_t) and
    puts a token drawn from the denoiser's softmax there; decided tokens are never rewritten. The last step opens all
    positions that are left. Categorical draws are made in float64.

    With one schedule for all tokens, the step that opens a position can be drawn before the denoiser runs at all
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
    ):
        if mask_token_id is not None and not (isinstance(mask_token_id, Integral) and mask_token_id >= 0):
            raise ValueError(f"`mask_token_id` must be an id >= 0 or None, got {mask_token_id!r}.")
        if top_p is not None:
            check_top_p(top_p)
        _check_choice("timestep_grid", timestep_grid, GRIDS)
        _check_choice("sampler", sampler, ("ancestral", "mean"))
        _check_choice("final_decode", final_decode, ("sample", "argmax"))
        self.schedule: MaskingSchedule = make_schedule(masking_schedule, power=schedule_power, eps=schedule_eps)
        self.token_schedule: TokenPolynomialSchedule | None = None
        self.set_timesteps(num_inference_steps)

    def set_token_schedule(self, token_schedule: TokenPolynomialSchedule | None):
        """Sample with the learned schedules of a GenMD4 model; None restores the schedule of the configuration."""
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
        """Probability r that a masked position opens by a draw at each step, `(num_inference_steps,)` float64.

        The last one is 1 with `final_decode="sample"`; with "argmax", positions that it leaves masked are decoded.
        """
        probability = unmask_probability(self.schedule, self._grid[:-1], self._grid[1:])
        if self.config.final_decode == "sample":
            probability[-1] = 1.0
        return probability

    @torch.no_grad()
    def plan_openings(
        self, sample: torch.LongTensor, generator: Generators = None, first_step: int = 0
    ) -> OpeningPlan:
        """Draw the step, from `first_step` on, that opens each masked position of `sample` `(batch, ...)`.

        A position opens at step i with probability r_i (1 - r_{i-1}) (1 - r_{i-2}) ...: one uniform number decides. Not
        with GenMD4's schedules, where r depends on the tokens: a ValueError.
        """
        if self.token_schedule is not None:
            raise ValueError("`plan_openings` needs one schedule for all tokens: with GenMD4's use `plan_step`.")
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
    def plan_step(self, timestep: float | Tensor, sample: torch.LongTensor, generator: Generators = None) -> StepPlan:
        """Draw the noise of a step, and thus the positions where the denoiser is needed. Arguments as in `step`."""
        state = sample.cpu() if sample.device.type == "mps" else sample  # mps has no float64
        noise = _uniform(state.shape, generator, state.device)
        index = self._step_index(timestep, state.shape[0]).to(state.device)
        if self.token_schedule is None:
            largest = self.unmask_probabilities().to(index.device)[index]
        else:
            largest = self._token_unmask_probabilities(index).amax(dim=-1)
        is_last = left_broadcast(index == self.num_inference_steps - 1, state.dim())
        may_open = (noise[..., 0] < left_broadcast(largest, state.dim())) | is_last
        return StepPlan(candidates=(state == self._mask_token_id()) & may_open, noise=noise)

    def _token_unmask_probabilities(self, index: Tensor) -> Tensor:
        """Probabilities r_j of GenMD4 for steps `(n,)`: `(n, vocab)` float64, 0 for the mask."""
        steps, inverse = index.unique(return_inverse=True)
        grid = self._grid.to(index.device)
        r = self.token_schedule.unmask_probabilities(grid[steps], grid[steps + 1])
        return r.index_fill(-1, torch.tensor([self._mask_token_id()], device=r.device), 0.0)[inverse]

    @torch.no_grad()
    def step(
        self,
        model_output: torch.FloatTensor,
        timestep: float | Tensor,
        sample: torch.LongTensor,
        *,
        temperature: float = 1.0,
        top_p: float | None = None,
        top_k: int | None = None,
        generator: Generators = None,
        plan: StepPlan | None = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple:
        """
        Take a reverse step, from `timestep` to the next time of the grid.

        Args:
            model_output: `(*sample.shape, vocab)` logits of the denoiser, or `(masked, vocab)`: those of the masked
                positions only (with a `plan`, of its candidates), in row-major order. The mask's own logit is ignored.
            timestep: A time of `timesteps`, or one per row `(batch,)`.
            sample: `(batch, ...)` ids of x_t. It is not modified.
            temperature: Divides the logits; 0 takes the most probable token. >= 0.
            top_p: Nucleus in (0, 1]; `config.top_p` by default.
            top_k: Keep the k >= 1 most probable tokens.
            generator: One generator, or one per row (the draws of a row then do not depend on other rows).
            plan: Plan of `plan_step` for this time and sample, or of `plan_openings` for this step (`OpeningPlan.at`);
                its noise is used instead of a new draw.
            return_dict: Whether to return a `MaskedDiffusionSchedulerOutput` or a tuple of its fields.

        Raises:
            ValueError: For a time off the grid, wrong shapes, values out of range and, on the CPU, logits not finite.
        """
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
        if plan is None:
            plan = StepPlan(state == mask_token_id, _uniform(state.shape, generator, state.device))
        masked = plan.candidates  # on the CPU, if the plan is: to select there waits for no kernel
        row = masked.nonzero()[:, 0]
        index = self._step_index(timestep, state.shape[0]).to(masked.device)[row]
        left_over = None if plan.left_over is None else plan.left_over[masked]
        masked, index, noise = (_sent(x, state.device) for x in (masked, index, plan.noise[masked]))
        if logits.shape[:-1] != row.shape:
            if logits.shape[:-1] != masked.shape:
                raise ValueError(
                    f"`model_output` must have shape {(*masked.shape, 'vocab')}, or ({len(row)}, vocab) for the masked "
                    f"positions, got {tuple(logits.shape)}."
                )
            logits = logits[masked]
        left_over = None if left_over is None else _sent(left_over, state.device)
        options = (temperature, self.config.top_p if top_p is None else top_p, top_k)
        tokens, probs = self._draw_in_parts(logits, index, noise, left_over, options)

        sampled_tokens = torch.full_like(state, mask_token_id).masked_scatter(masked, tokens.to(state.dtype))
        sampled_probs = torch.zeros(state.shape, device=state.device).masked_scatter(masked, probs.float())
        prev_sample = torch.where(masked, sampled_tokens, state)
        output = MaskedDiffusionSchedulerOutput(
            *(x.to(device) for x in (prev_sample, sampled_tokens, sampled_probs)), pred_logits=model_output
        )
        return output if return_dict else output.to_tuple()

    def _draw_in_parts(
        self, logits: Tensor, index: Tensor, noise: Tensor, left_over: Tensor | None, options: tuple
    ) -> tuple[Tensor, Tensor]:
        """Draw in parts, so that float64 distributions of all positions never exist together."""
        size = max(PROBABILITIES_AT_A_TIME // logits.shape[-1], 1)
        draw = self._draw if self.token_schedule is None else self._draw_by_token
        tokens, probs = torch.empty_like(index), noise.new_empty(index.shape)
        for start in range(0, len(index), size):
            part = slice(start, start + size)
            part_left_over = None if left_over is None else left_over[part]
            tokens[part], probs[part] = draw(logits[part], index[part], noise[part], part_left_over, options)
        return tokens, probs

    def _draw(
        self, logits: Tensor, index: Tensor, noise: Tensor, left_over: Tensor | None, options: tuple
    ) -> tuple[Tensor, Tensor]:
        """Tokens of n masked positions (the mask where they stay masked), and the tokens' probabilities, `(n,)`.

        Inputs are logits `(n, vocab)`, `index` `(n,)` of the step of each position, noise `(n, 2)`, `left_over` as in
        `StepPlan`, and `options`: temperature, top-p and top-k.
        """
        if left_over is not None:  # planned: all of them open
            return self._draw_opened(logits, noise[:, 1], left_over, options)
        probability = self.unmask_probabilities().to(index.device)[index]
        opens, uniform = ancestral_sampler(probability, noise)
        left_over = (index == self.num_inference_steps - 1) & ~opens
        decided = opens | left_over
        drawn, of_drawn = self._draw_opened(logits[decided], uniform[decided], left_over[decided], options)
        tokens = torch.full_like(index, self._mask_token_id()).masked_scatter(decided, drawn)
        return tokens, torch.zeros_like(uniform).masked_scatter(decided, of_drawn)

    def _draw_opened(
        self, logits: Tensor, uniform: Tensor, left_over: Tensor, options: tuple
    ) -> tuple[Tensor, Tensor]:
        """Tokens of positions that open, by their uniform numbers or, where `left_over`, by arg max; see `_draw`."""
        mu = self._token_probabilities(logits, *options)
        drawn = torch.where(left_over, mu.argmax(dim=-1), draw_categorical(mu, uniform))
        return drawn, mu.gather(-1, drawn[:, None]).squeeze(-1)

    def _draw_by_token(
        self, logits: Tensor, index: Tensor, noise: Tensor, _: None, options: tuple
    ) -> tuple[Tensor, Tensor]:
        """Draw as `_draw`, for GenMD4: from the table [r_j mu_j, the rest].

        At the last step r = 1; what rounding leaves gets the most probable token.
        """
        mu = self._token_probabilities(logits, *options)
        table = self._token_unmask_probabilities(index) * mu
        opens, uniform = ancestral_sampler(table.sum(dim=-1), noise)
        decided = opens | (index == self.num_inference_steps - 1)
        drawn = torch.where(decided & ~opens, mu.argmax(dim=-1), draw_categorical(table, uniform))
        probs = mu.gather(-1, drawn[:, None]).squeeze(-1)
        return torch.where(decided, drawn, self._mask_token_id()), torch.where(decided, probs, 0.0)

    @staticmethod
    def check_sampling_arguments(temperature: float, top_p: float | None, top_k: int | None):
        """Raise a ValueError for a value that `step` does not accept."""
        if not (isinstance(temperature, Real) and 0.0 <= temperature <= sys.float_info.max):
            raise ValueError(f"`temperature` must be finite and >= 0, got {temperature!r}.")
        if top_p is not None:
            check_top_p(top_p)
        if top_k is not None:
            check_top_k(top_k)

    def _token_probabilities(self, logits: Tensor, temperature: float, top_p: float | None, top_k: int | None):
        """Distribution that tokens are drawn from, `(n, vocab)` float64."""
        return token_probabilities(logits, self._mask_token_id(), temperature, top_p, top_k)

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


def token_probabilities(
    logits: Tensor, mask_token_id: int, temperature: float = 1.0, top_p: float | None = None, top_k: int | None = None
) -> Tensor:
    """Distribution that tokens are drawn from, `(n, vocab)` float64: 0 at the mask and where logits are suppressed.

    Raises:
        ValueError: On the CPU, for rows that are not finite or have no token to draw.
    """
    is_suppressed = logits == torch.finfo(logits.dtype).min  # which no temperature may bring back
    logits = logits.double().masked_fill(is_suppressed, -torch.inf)
    logits[..., mask_token_id] = -torch.inf
    if temperature >= MIN_TEMPERATURE:
        logits /= float(temperature)
        if top_k is not None:
            logits = top_k_logits(logits, top_k)
        if top_p is not None:
            logits = top_p_logits(logits, top_p)
    mu = denoiser_probabilities(logits, mask_token_id)
    if mu.device.type == "cpu" and mu[:, 0].isnan().any():  # a check elsewhere would wait for the device
        raise ValueError("`model_output` must be finite, with a token to draw, got rows with nan or infinity.")
    if temperature < MIN_TEMPERATURE:
        mu = torch.zeros_like(mu).scatter(-1, mu.argmax(dim=-1, keepdim=True), 1.0)
    return mu


def _uniform(shape: torch.Size, generator: Generators, device: torch.device) -> Tensor:
    """Draw two uniform float64 numbers per position, `(*shape, 2)`, on the device of the generator."""
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(f"`generator` must hold one generator per row, {shape[0]}, got {len(generator)}.")
        return torch.cat([_uniform((1, *shape[1:]), row_generator, device) for row_generator in generator])
    source = generator.device if generator is not None else device
    return torch.rand((*shape, 2), generator=generator, device=source, dtype=torch.float64).to(device)


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """Copy to a device, from the CPU without a wait for what it has been given to do."""
    return x.to(device, non_blocking=x.device.type == "cpu")


def _check_choice(name: str, value: str, choices):
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"`{name}` must be one of {sorted(choices)}, got {value!r}.")
