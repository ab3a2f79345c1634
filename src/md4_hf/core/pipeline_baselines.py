# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling from baselines, with the arguments of the pipeline of masked diffusion."""

from __future__ import annotations

from .foreign_scheduler import ForeignScheduler, as_sampler
from .pipeline_masked_diffusion import MaskedDiffusionPipeline
from .sampling_call import sampling_loop_of


class BaselinePipeline(MaskedDiffusionPipeline):
    """Pipeline of a baseline, whose scheduler only says how tokens are drawn."""

    def _check_components(self):
        """Check what `MaskedDiffusionPipeline` checks, and that the scheduler is no other one's."""
        super()._check_components()
        if isinstance(as_sampler(self.scheduler, self.mask_token_id), ForeignScheduler):
            kind, found = sampling_loop_of(self.model).kind, type(self.scheduler).__name__
            raise ValueError(f"`scheduler` must be a MaskedDiffusionScheduler for {kind}, got {found}.")


class CausalPipeline(BaselinePipeline):
    """
    Generation of text with an `MD4ForCausalLM`: unconditional, of a class or from a prompt, token by token.

    A prompt may have masks at its end only, since its tokens see nothing to their right: they say how long the row is.
    All arguments are those of `MaskedDiffusionPipeline`, except `num_inference_steps`, `block_length`, `use_cache`,
    `callback_on_step_end`, `classifier` and those of orders, remasking and correctors, which must be left out. Rows
    have their full length, beyond an EOS token too unless `eos_early_stop` is set, as texts of masked diffusion have. A
    logits processor sees the ids before the token, the mask that stands for the start first.
    """

    model_class = "MD4ForCausalLM"


class DiscretePipeline(BaselinePipeline):
    """
    Ancestral sampling of text from an `MD4ForDiscreteDiffusion`: every token is drawn at every step of the chain.

    A prompt is kept as it is at each step, of which there are `num_inference_steps`, at the times k / steps. Of the
    scheduler only `temperature`, `top_p` and `top_k` are used, which must be left out for SEDD's score. So must
    `block_length`, `use_cache`, `classifier`, guidance without classes, and all arguments of orders, remasking and
    correctors. Rows are cut at their ends (`eos_early_stop`, `stop_strings`) after the last step, since no token is
    decided before.
    """

    model_class = "MD4ForDiscreteDiffusion"
