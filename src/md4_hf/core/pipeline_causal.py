# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling from the autoregressive baseline, with the arguments of the pipeline of masked diffusion."""

from __future__ import annotations

import inspect

from .causal_decoding import CausalDecoding
from .foreign_scheduler import ForeignScheduler, as_sampler
from .pipeline_masked_diffusion import MaskedDiffusionPipeline
from .reverse_steps import SAMPLER_OPTIONS


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

    _loop_class = CausalDecoding

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
