# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling from the autoregressive baseline, with the arguments of the pipeline of masked diffusion."""

from __future__ import annotations

import functools
import inspect

import torch
from torch import Tensor
from transformers import DynamicCache

from .denoiser_inputs import DenoiserInputs
from .foreign_scheduler import ForeignScheduler, as_sampler
from .masked_diffusion import draw_categorical
from .pipeline_masked_diffusion import MaskedDiffusionPipeline
from .reverse_steps import SAMPLER_OPTIONS, token_probabilities


REFUSED = ("num_inference_steps", "block_length", "callback_on_step_end", "classifier", *SAMPLER_OPTIONS)


class CausalPipeline(MaskedDiffusionPipeline):
    """
    Generation of text with an `MD4ForCausalLM`: unconditional, of a class or from a prompt, token by token.

    A prompt may have masks at its end only, since its tokens see nothing to their right: they say how long the row is.
    All arguments are those of `MaskedDiffusionPipeline`, except `num_inference_steps`, `block_length`, `use_cache`,
    `callback_on_step_end`, `classifier` and those of orders, remasking and correctors, which must be left out. Rows
    have their full length, beyond an EOS token too unless `eos_early_stop` is set, as texts of masked diffusion have. A
    logits processor sees the ids before the token, the mask that stands for the start first.
    """

    def _check_components(self):
        """Check what `MaskedDiffusionPipeline` checks, and that the scheduler is one that only says how to draw."""
        super()._check_components()
        if isinstance(as_sampler(self.scheduler, self.mask_token_id), ForeignScheduler):
            found = type(self.scheduler).__name__
            raise ValueError(
                f"`scheduler` must be a MaskedDiffusionScheduler for an autoregressive model, got {found}."
            )

    def __call__(self, *args, **kwargs):
        """Generate text; arguments, result and errors as in `MaskedDiffusionPipeline`."""
        given = inspect.signature(super().__call__).bind(*args, **kwargs).arguments
        for name in REFUSED:
            if given.get(name) is not None:
                raise ValueError(f"`{name}` must be left out for an autoregressive model, got {given[name]!r}.")
        if given.get("use_cache", True) is not True:
            raise ValueError(f"`use_cache` must be left out for an autoregressive model, got {given['use_cache']!r}.")
        if given.get("guidance_scale", 1.0) != 1.0 and given.get("class_labels") is None:
            raise ValueError(
                "`guidance_scale` must be 1 without `class_labels` for an autoregressive model, got "
                f"{given['guidance_scale']!r}."
            )
        return super().__call__(*args, **kwargs)

    def _denoise(self, sample: Tensor, inputs: DenoiserInputs, generators: list[torch.Generator], *_) -> Tensor:
        """Draw the tokens of ids `(rows, length)` that are masked, from the left."""
        masked, length = sample == self.mask_token_id, sample.shape[1]
        is_padding = torch.zeros_like(masked) if inputs.attention_mask is None else inputs.attention_mask == 0
        if (masked[:, :-1] & ~(masked | is_padding[: len(sample)])[:, 1:]).any():
            raise ValueError(
                "`prompt` must have masks at its end only for an autoregressive model, which continues it."
            )
        uniform = torch.stack([torch.rand(length, generator=g, dtype=torch.float64) for g in generators])
        sample, cache = sample.clone(), DynamicCache()
        start = int(masked.any(dim=0).int().argmax()) if masked.any() else length
        new, how, end = sample[:, :start], self._sampler.config, self._end_of_text
        with self.progress_bar(total=length - start) as progress:
            for column in range(start, length):
                logits = self._next_logits(new, sample[:, :column], cache, inputs)
                mu = token_probabilities(logits, self.mask_token_id, how.temperature, how.top_p, how.top_k)
                drawn = draw_categorical(mu, uniform[:, column].to(mu.device)).to(sample.device)
                is_open = sample[:, column] == self.mask_token_id
                sample[:, column] = torch.where(is_open, drawn, sample[:, column])
                if end is not None:
                    sample = end.filled(sample)
                    if not (sample == self.mask_token_id).any():
                        break
                new = sample[:, column : column + 1]
                progress.update()
        return sample

    def _next_logits(self, new: Tensor, before: Tensor, cache: DynamicCache, inputs: DenoiserInputs) -> Tensor:
        """Guided, filtered logits `(rows, vocab)` of the tokens that follow `before`, whose last ones are `new`."""
        guidance = self._guidance
        logits = guidance.joined(self.model.next_logits(guidance.copies(new), cache, guidance.class_labels))
        start = before.new_full((len(before), 1), self.mask_token_id)
        logits = self._token_filter(logits, functools.partial(torch.cat, [start, before], dim=1))
        return logits.cpu() if logits.device.type == "mps" else logits  # which has no float64
