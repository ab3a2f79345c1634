# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Objectives: from a clean batch to the inputs that a model computes its loss from, in training and in evaluation.

MD4, GenMD4 and autoregression are siblings that answer the same calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core.block_layout import block_numbers, positions_in_documents, times_of_tokens
from ..core.discrete_processes import DiscreteProcess, TokenStates, discrete_process, noised_ids
from ..core.masked_diffusion import IGNORE_INDEX, MD4Process, mask_lowest, md4_process, rescale_times
from .clipping import ClippedRates
from .noise import most_masked_tokens


OF_TIMES = "a model that sees the time or learns its schedule, where the bound is no sum over numbers of masked tokens"


@dataclass(frozen=True)
class Objective:
    """Step from a clean batch to the inputs that a model computes its loss from."""

    _: KW_ONLY
    null_class: int | None = None  # the label that stands for no class, if the model has one
    class_dropout: float = 0.0  # probability with which it takes the place of a label in training

    is_autoregressive: ClassVar[bool] = False  # then the likelihood is exact, and nothing is drawn
    is_masking: ClassVar[bool] = True  # whether `MaskedDiffusionPipeline` and its sampler fit the model
    kind: ClassVar[str] = "MD4"  # in errors

    def num_times(self, shape: torch.Size) -> int:
        """Number of times of each example of a batch of ids of this shape."""
        return 1

    @property
    def training_bound(self) -> str | None:
        """Name of the output of a training step that is the NELBO: "loss", "nelbo" beside a surrogate, or None."""
        return "loss"

    def clipped(self, rates: ClippedRates | None) -> Objective:
        """The objective of a training with these mask rates; a ValueError where the masks are not drawn by one time."""
        if rates is not None:
            found = [rates.low, rates.high]
            raise ValueError(f"`schedule_clip` must be None for a training of {self.kind}, got {found}.")
        return self

    @property
    def any_order_obstacle(self) -> str | None:
        """Kind of model for which the bound is no sum over numbers of masked tokens; None where it is one."""
        return None

    @property
    def first_share(self) -> float:
        """Share of the times, from 0 on, for which an evaluation has a draw of its own; 0 if there is none."""
        return 0.0

    def beyond_first(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [`first_share`, 1) from those in [0, 1)."""
        return uniform

    @staticmethod
    def of(model) -> Objective:
        """Objective of an `MD4ForMaskedDiffusion` or an `MD4ForCausalLM`."""
        return Objective.of_config(model.config)

    @staticmethod
    def of_config(config) -> Objective:
        """Objective that an `MD4Config` describes."""
        classes = {"null_class": config.null_class, "class_dropout": config.class_dropout}
        if config.baseline == "ardm":
            return AnyOrderObjective(md4_process(config), sees_time=False, **classes)
        if config.baseline is not None:
            return DiscreteObjective(discrete_process(config), TokenStates(config), **classes)
        if config.is_causal:
            return AutoregressiveObjective(**classes)
        if config.learn_masking_schedule:
            return GenMD4Objective(config.schedule_first_time, **classes)
        if config.block_size is not None:
            num_blocks = -(-config.max_position_embeddings // config.block_size)
            sees_time = config.time_conditioning
            return BlockObjective(md4_process(config), config.block_size, num_blocks, sees_time=sees_time, **classes)
        return MD4Objective(md4_process(config), sees_time=config.time_conditioning, **classes)

    def noise_shape(self, shape: torch.Size, num_copies: int | None = None) -> torch.Size:
        """Shape of the noise of a batch whose ids have this shape, with so many noised copies of each example."""
        return shape

    def noised(self, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Model inputs from a clean batch.

        Args:
            inputs: Clean `input_ids` `(batch, length)`, of images `(batch, channels, height, width)`; `labels` (-100
                where not scored) if there are any, else the tokens that `attention_mask` shows are scored. Tokens that
                are not scored are never masked.
            uniform: Numbers in [0, 1) that give the times: `(batch,)`, or `(batch, num_times)` where there are several.
            noise: Uniform numbers in [0, 1), of the shape that `noise_shape` gives.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `noised`.")

    def drop_classes(self, inputs: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Inputs whose `class_labels` are lost where uniform `noise`, both `(batch,)`, is below `class_dropout`."""
        if self.null_class is None or inputs.get("class_labels") is None:
            return {**inputs}
        labels = inputs["class_labels"]
        return {**inputs, "class_labels": labels.masked_fill(noise < self.class_dropout, self.null_class)}

    def most_masked(self, num_examples: int, total: int, length: int) -> int | None:
        """Bound on the masked tokens of a micro-batch, None if there is none: see `most_masked_tokens`."""
        return None


@dataclass(frozen=True)
class FixedScheduleObjective(Objective):
    """Masked diffusion with a fixed schedule, from which x_t is drawn here."""

    process: MD4Process
    _: KW_ONLY
    sees_time: bool = True  # whether the denoiser is told the time
    rates: ClippedRates | None = None  # mask rates of the training, if they are clipped

    @property
    def any_order_obstacle(self) -> str | None:
        """The time that the denoiser sees."""
        return OF_TIMES if self.sees_time else None

    def blocks(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Number of the block of each token, `(batch, length)`; None where a row has one time for all of it."""
        return None

    @property
    def training_bound(self) -> str | None:
        """Name of the output of a training step that is the NELBO: none of a loss at clipped mask rates."""
        return "loss" if self.rates is None else None

    def clipped(self, rates: ClippedRates | None) -> Objective:
        """The objective of a training with these mask rates; a ValueError in discrete time."""
        if rates is not None and self.process.num_timesteps is not None:
            found, steps = [rates.low, rates.high], self.process.num_timesteps
            raise ValueError(f"`schedule_clip` must be None in discrete time, of {steps} steps, got {found}.")
        return replace(self, rates=rates)

    def _with_xt(self, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor, blocks: Tensor | None = None):
        """Model inputs with x_t as `input_ids`, its `timesteps`, the clean `labels`, and weights of clipped rates.

        `uniform` are `(batch,)`, or `(batch, blocks)` with the numbers of the blocks of the tokens, `(batch, length)`.
        """
        process, labels = self.process, scored_labels(inputs)
        times = {"timesteps": process.times(uniform)}
        if self.rates is not None:
            times["timesteps"] = self.rates.times(process.schedule, uniform)
            times["loss_weights"] = self.rates.weights(process.schedule, times["timesteps"])
        if blocks is not None:
            times = {name: times_of_tokens(x, blocks) for name, x in times.items()}
        xt = process.draw_xt(inputs["input_ids"], labels, times["timesteps"], noise)
        return {**inputs, "input_ids": xt, "labels": labels, **times}

    def _most_masked(self, num_times: int, total: int, length: int) -> int:
        """Bound on the masked tokens of these many stretches of tokens that have one time, of all in the step."""
        schedule = self.process.schedule if self.rates is None else self.rates
        return most_masked_tokens(schedule, self.process.num_timesteps, num_times, total, length)


@dataclass(frozen=True)
class MD4Objective(FixedScheduleObjective):
    """MD4: each example has one time."""

    def noised(self, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Model inputs with x_t as `input_ids`, its `timesteps` and the clean `labels`; see `Objective.noised`."""
        return self._with_xt(inputs, uniform, noise)

    def most_masked(self, num_examples: int, total: int, length: int) -> int | None:
        """Bound on the masked tokens of a micro-batch: see `most_masked_tokens`."""
        return self._most_masked(num_examples, total, length)


@dataclass(frozen=True)
class AnyOrderObjective(MD4Objective):
    """Order-agnostic autoregression (ARDM: Hoogeboom et al., arXiv:2110.02037): the number of masks is drawn.

    Of N scored tokens n are masked, n uniform in 1 ... N, and the model's weight 1 / t at t = n / N is ARDM's N / n.
    """

    kind = "ARDM, which draws the number of masks"

    def clipped(self, rates: ClippedRates | None) -> Objective:
        """The objective itself; a ValueError for mask rates."""
        return Objective.clipped(self, rates)

    def noised(self, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Model inputs with x_t as `input_ids`, `timesteps` n / N and `labels`; see `Objective.noised`."""
        labels = scored_labels(inputs)
        num_tokens = (labels != IGNORE_INDEX).flatten(1).sum(dim=1)
        num_masked = torch.minimum(1 + (uniform.double() * num_tokens).long(), num_tokens)
        xt = mask_lowest(inputs["input_ids"], labels != IGNORE_INDEX, num_masked, self.process.mask_token_id, noise)
        timesteps = (num_masked / num_tokens.clamp(min=1)).to(uniform.dtype)
        return {**inputs, "input_ids": xt, "timesteps": timesteps, "labels": labels}


@dataclass(frozen=True)
class BlockObjective(FixedScheduleObjective):
    """MD4 in blocks: each block of each example has its own time.

    An example has as many times as blocks fit into the model's length, whatever the length of the batch is, so that its
    noise does not depend on the padding. Further blocks, and those of packed documents, share the times of others.
    """

    block_size: int
    num_blocks: int

    def num_times(self, shape: torch.Size) -> int:
        """Number of blocks of a row of the model's length."""
        return self.num_blocks

    def noised(self, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Model inputs with x_t as `input_ids`, `timesteps` `(batch, length)` and `labels`; see `Objective.noised`."""
        uniform = uniform.reshape(len(uniform), -1)
        return self._with_xt(inputs, uniform, noise, self.blocks(inputs) % uniform.shape[1])

    def blocks(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Number of the block of each token, `(batch, length)`; blocks begin with each document of a packed row."""
        ids, documents = inputs["input_ids"], inputs.get("document_ids")
        if documents is None:
            return (torch.arange(ids.shape[-1], device=ids.device) // self.block_size).expand(ids.shape)
        return block_numbers(positions_in_documents(documents), self.block_size, documents)

    def most_masked(self, num_examples: int, total: int, length: int) -> int | None:
        """Bound on the masked tokens of a micro-batch: see `most_masked_tokens`."""
        blocks, size = self.num_blocks, self.block_size
        if length > blocks * size:  # more than one block has a time
            return None
        return min(self._most_masked(num_examples * blocks, total * blocks, size), num_examples * length)


@dataclass(frozen=True)
class GenMD4Objective(Objective):
    """GenMD4: the model itself masks, as its learned schedules may be sharded over devices."""

    first_time: float  # t_1, where the times begin

    kind = "GenMD4, whose tokens have schedules of their own"
    training_bound = "nelbo"
    any_order_obstacle = OF_TIMES

    def noise_shape(self, shape: torch.Size, num_copies: int | None = None) -> torch.Size:
        """Shape with an axis of copies, which the leave-one-out gradient needs, after the batch."""
        return shape if num_copies is None else torch.Size((shape[0], num_copies, *shape[1:]))

    def noised(self, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Model inputs with clean ids, `timesteps`, `labels` and `mask_noise`, with or without an axis of copies."""
        timesteps = rescale_times(uniform, self.first_time)
        return {**inputs, "timesteps": timesteps, "labels": scored_labels(inputs), "mask_noise": noise}


@dataclass(frozen=True)
class DiscreteObjective(Objective):
    """D3PM, multinomial diffusion, SEDD and the uniform kernel: tokens are noised here, by the process's kernel."""

    process: DiscreteProcess
    states: TokenStates

    is_masking: ClassVar[bool] = False
    kind = "a discrete diffusion baseline"
    any_order_obstacle = "a model of another process than masking"

    @property
    def training_bound(self) -> str | None:
        """Name of the output of a training step that is the NELBO: beside D3PM's hybrid loss, "nelbo"."""
        return "loss" if self.process.loss_is_bound else "nelbo"

    @property
    def first_share(self) -> float:
        """That of the process."""
        return self.process.first_share

    def beyond_first(self, uniform: Tensor) -> Tensor:
        """Those of the process."""
        return self.process.beyond_first(uniform)

    def noise_shape(self, shape: torch.Size, num_copies: int | None = None) -> torch.Size:
        """Shape with two numbers for each token: whether it is kept, and else what takes its place."""
        return torch.Size((*shape, 2))

    def noised(self, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Model inputs with x_t as `input_ids`, its `timesteps` and the clean `labels`; see `Objective.noised`."""
        timesteps, labels = self.process.times(uniform), scored_labels(inputs)
        xt = noised_ids(self.process, self.states, inputs["input_ids"], labels, timesteps, noise)
        return {**inputs, "input_ids": xt, "timesteps": timesteps, "labels": labels}


@dataclass(frozen=True)
class AutoregressiveObjective(Objective):
    """Autoregression, of an `MD4ForCausalLM`: nothing is noised, and the loss is -log p itself."""

    is_autoregressive: ClassVar[bool] = True
    is_masking: ClassVar[bool] = False
    kind = "a causal model"
    any_order_obstacle = "a causal model, which needs none"

    def noised(self, inputs: Mapping[str, Tensor], uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The clean batch with its labels; times and noise are not used."""
        return {**inputs, "labels": scored_labels(inputs)}


def scored_labels(inputs: Mapping[str, Tensor]) -> Tensor:
    """The given labels, or all tokens that are not padding; -100 elsewhere."""
    if inputs.get("labels") is not None:
        return inputs["labels"]
    if inputs.get("attention_mask") is None:
        return inputs["input_ids"].clone()
    return inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
