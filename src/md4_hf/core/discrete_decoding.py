# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling loop of discrete diffusion baselines: all tokens at every step of the chain."""

from __future__ import annotations

import torch
from torch import Tensor

from .baseline_decoding import BaselineDecoding
from .decisions import Decisions
from .denoiser_inputs import DenoiserInputs
from .discrete_processes import TokenStates, discrete_process
from .masked_diffusion import draw_categorical
from .reverse_steps import token_probabilities


class DiscreteDecoding(BaselineDecoding):
    """Ancestral sampling of a call of an `MD4ForDiscreteDiffusion`, at the times k / steps."""

    kind = "a discrete diffusion baseline"

    def __call__(self, sample: Tensor, inputs: DenoiserInputs, generators: list[torch.Generator]) -> Tensor:
        """Draw the tokens of ids `(rows, length)` that are masked, all of them at every step."""
        config = self.model.config
        process, states = discrete_process(config), TokenStates(config)
        if not process.predicts_tokens and self._is_filtered:
            raise ValueError(f"`temperature`, `top_p` and `top_k` must be left out for {config.baseline}.")
        is_masked, given = sample == inputs.mask_token_id, states.states(sample)
        steps = self.scheduler.num_inference_steps
        x = torch.where(is_masked, process.kernel.draw_noise(_uniform(sample, generators)), given)
        with self.observer.progress(steps) as done:
            for k in range(steps, 0, -1):
                if self.observer.is_interrupted:
                    break
                t, s = (torch.full((len(x),), i / steps, dtype=torch.float64, device=x.device) for i in (k, k - 1))
                table = process.reverse(self._logits(states, states.tokens(x), t, inputs), x, t, s)
                before, x = x, torch.where(is_masked, draw_categorical(table, _uniform(sample, generators)), given)
                if self.observer.records:
                    self.observer.after_call(self._decisions(states, before, x, is_masked, table, steps - k))
                done(steps + 1 - k)
        return self._finished(torch.where(is_masked, states.tokens(x), sample))

    @staticmethod
    def _decisions(
        states: TokenStates, before: Tensor, after: Tensor, is_masked: Tensor, table: Tensor, step: int
    ) -> Decisions:
        """Tokens of a step, all of which are drawn anew, with their probabilities in the reverse step."""
        rows = torch.arange(len(after))
        probabilities = table.gather(-1, after[..., None].to(table.device)).squeeze(-1)
        ids = (states.tokens(before), states.tokens(after))
        decided = is_masked & ((before != after) | (step == 0))
        return Decisions(rows, torch.full((len(rows),), step), *ids, decided, probabilities.float())

    @torch.no_grad()
    def _logits(self, states: TokenStates, tokens: Tensor, t: Tensor, inputs: DenoiserInputs) -> Tensor:
        """Guided, filtered logits of the states, `(rows, length, S)`."""
        guidance = self.guidance
        copies = torch.arange(guidance.num_copies * len(tokens), device=tokens.device)
        output = self.model(
            input_ids=guidance.copies(tokens), timesteps=guidance.copies(t.float()), **inputs.of(copies)
        )
        logits = guidance.joined(output.logits).flatten(0, 1)
        logits = self.token_filter(logits, lambda: tokens.repeat_interleave(tokens.shape[1], dim=0))
        if self._is_filtered:
            how = self.scheduler.config
            logits = token_probabilities(logits, inputs.mask_token_id, how.temperature, how.top_p, how.top_k).log()
        return states.columns(logits).view(*tokens.shape, -1)

    @property
    def _is_filtered(self) -> bool:
        """Whether tokens are drawn from another distribution than the model's."""
        how = self.scheduler.config
        return how.temperature != 1.0 or how.top_p not in (None, 1.0) or how.top_k is not None


def _uniform(sample: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Uniform float64 numbers of the shape of the sample, each row's from its own generator."""
    uniform = [torch.rand(sample.shape[1:], generator=g, dtype=torch.float64) for g in generators]
    return torch.stack(uniform).to(sample.device)
