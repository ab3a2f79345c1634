# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Tokens that a network call decides, for those who record how a sample comes about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .denoiser_inputs import DenoiserInputs
from .reverse_steps import TokenDraw
from .sampling_runs import Look, Run


@dataclass
class Decisions:
    """Rows before and after a network call, in whole sequences.

    Args:
        rows: `(n,)` rows of the call, on the CPU.
        steps: `(n,)` steps that they took, from 0, counted over all blocks; on the CPU.
        before: `(n, ...)` ids before the step, with tokens that a corrector draws anew.
        after: `(n, ...)` ids after it.
        decided: `(n, ...)` booleans: positions for which a token was drawn, which may be the one they had.
        probabilities: `(n, ...)` float32 probabilities of the tokens decided, those of the denoiser after guidance and
            filters, before temperature, top-p and top-k; anything elsewhere.
        is_correction: Whether the step is a corrector's, which comes after the step of that number.
        begin: `(n,)` columns before which nothing can change any more, on the CPU; 0 without blocks.
        end: Column behind the block that is being written, None for the end of the rows.
    """

    rows: Tensor
    steps: Tensor
    before: Tensor
    after: Tensor
    decided: Tensor
    probabilities: Tensor
    is_correction: bool = False
    begin: Tensor | None = None
    end: int | None = None


class Recorder(Protocol):
    """Callback object that is told what each network call decides; rows do not wait for each other, as they do for
    other callbacks."""

    def start(self, pipeline: Any, rows: list[Tensor], mask_token_id: int):
        """See the ids of the rows `(length,)` or `(channels, height, width)`, masks included, before the first call."""

    def record(self, decisions: Decisions):
        """See what a call has decided."""

    def finish(self, sample: Tensor):
        """See the ids of all rows at the end, padded to the longest."""


def is_recorder(callback: Any) -> bool:
    """Whether this has the methods of a `Recorder`."""
    return all(callable(getattr(callback, name, None)) for name in ("start", "record", "finish"))


def decisions_of_step(run: Run, look: Look, output: Any, logits: Tensor, inputs: DenoiserInputs) -> Decisions:
    """What a run has decided where it looked, from the logits `(candidates, vocab)` and the scheduler's output."""
    there = look.rows.to(run.sample.device)
    candidates = look.plan.candidates.to(run.sample.device)
    before, probabilities = run.sample.clone(), torch.zeros(run.sample.shape, device=run.sample.device)
    decided = torch.zeros_like(run.sample, dtype=torch.bool)
    before[there] = look.sample
    after = output.prev_sample
    committed = getattr(output, "committed_mask", None)  # other schedulers do not say
    decided[there] = (after != look.sample) & (after != inputs.mask_token_id) if committed is None else committed
    logits = logits.cpu() if logits.device.type == "mps" else logits  # which has no float64
    belief = TokenDraw(inputs.mask_token_id).belief(logits, after[candidates].to(logits.device))
    probabilities[there] = probabilities[there].masked_scatter(candidates, belief.to(probabilities))
    rest = torch.zeros_like(inputs.whole(run.sample))
    return Decisions(
        rows=look.rows,
        steps=inputs.first_step + look.steps,
        before=inputs.whole(before)[there],
        after=inputs.whole(run.sample)[there],
        decided=inputs.whole(decided, rest.bool())[there],
        probabilities=inputs.whole(probabilities, rest.float())[there],
        is_correction=look.is_correction,
        begin=inputs.begins(look.rows),
        end=inputs.end,
    )
