# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling loop of the autoregressive baseline: token by token, in place of the denoising loop."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from transformers import DynamicCache

from .baseline_decoding import BaselineDecoding
from .decisions import Decisions
from .denoiser_inputs import DenoiserInputs
from .masked_diffusion import draw_categorical
from .reverse_steps import token_probabilities


class CausalDecoding(BaselineDecoding):
    """Sampling loop of a call of an `MD4ForCausalLM`."""

    kind = "an autoregressive model"
    refused = ("num_inference_steps", "classifier")

    def __call__(self, sample: Tensor, inputs: DenoiserInputs, generators: list[torch.Generator]) -> Tensor:
        """Draw the tokens of ids `(rows, length)` that are masked, from the left."""
        masked, length = sample == inputs.mask_token_id, sample.shape[1]
        is_padding = torch.zeros_like(masked) if inputs.attention_mask is None else inputs.attention_mask == 0
        if (masked[:, :-1] & ~(masked | is_padding[: len(sample)])[:, 1:]).any():
            raise ValueError(
                "`prompt` must have masks at its end only for an autoregressive model, which continues it."
            )
        uniform = torch.stack([torch.rand(length, generator=g, dtype=torch.float64) for g in generators])
        sample, cache = sample.clone(), DynamicCache()
        start = int(masked.any(dim=0).int().argmax()) if masked.any() else length
        new, how = sample[:, :start], self.scheduler.config
        with self.observer.progress(length - start) as done:
            for column in range(start, length):
                logits = self._next_logits(new, sample[:, :column], cache, inputs)
                mu = token_probabilities(logits, inputs.mask_token_id, how.temperature, how.top_p, how.top_k)
                drawn = draw_categorical(mu, uniform[:, column].to(mu.device)).to(sample.device)
                is_open = sample[:, column] == inputs.mask_token_id
                before = sample.clone() if self.observer.records else sample
                sample[:, column] = torch.where(is_open, drawn, sample[:, column])
                if self.observer.records:
                    self.observer.after_call(self._decisions(before, sample, logits, column, column - start))
                sample = self._finished(sample)
                if self.end_of_text is not None and not (sample == inputs.mask_token_id).any():
                    break
                new = sample[:, column : column + 1]
                done(column + 1 - start)
        return sample

    def _decisions(self, before: Tensor, after: Tensor, logits: Tensor, column: int, step: int) -> Decisions:
        """Tokens decided in a column, with their probabilities before temperature, top-p and top-k."""
        mask_token_id = self.model.config.mask_token_id
        belief = token_probabilities(logits, mask_token_id).gather(1, after[:, column, None].to(logits.device))
        decided, probabilities = before != after, torch.zeros(after.shape, device=after.device)
        probabilities[:, column] = belief.squeeze(1).to(probabilities)
        rows = decided.any(dim=1).nonzero().squeeze(1)
        where = (before[rows], after[rows], decided[rows], probabilities[rows])
        begin = torch.full((len(rows),), column + 1)
        return Decisions(rows.cpu(), torch.full((len(rows),), step), *where, begin=begin, end=column + 1)

    def _next_logits(self, new: Tensor, before: Tensor, cache: DynamicCache, inputs: DenoiserInputs) -> Tensor:
        """Guided, filtered logits `(rows, vocab)` of the tokens that follow `before`, whose last ones are `new`."""
        guidance = self.guidance
        logits = guidance.joined(self.model.next_logits(guidance.copies(new), cache, guidance.class_labels))
        start = before.new_full((len(before), 1), inputs.mask_token_id)
        logits = self.token_filter(logits, functools.partial(torch.cat, [start, before], dim=1))
        return logits.cpu() if logits.device.type == "mps" else logits  # which has no float64
