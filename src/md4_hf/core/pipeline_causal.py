# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling from the autoregressive baseline, with the arguments of the pipeline of masked diffusion."""

from __future__ import annotations

from .causal_decoding import CausalDecoding
from .foreign_scheduler import ForeignScheduler, as_sampler
from .pipeline_masked_diffusion import MaskedDiffusionPipeline


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
