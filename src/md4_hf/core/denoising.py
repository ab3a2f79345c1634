# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The denoising loop: fills the masks of a batch, whole or block by block, with any scheduler; needs no pipeline."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .decisions import Decisions, decisions_of_step
from .denoiser_inputs import BlockInputs, DenoiserInputs
from .foreign_scheduler import ForeignScheduler
from .guidance import ClassifierGuidance, Guidance
from .row_generators import reseed_all
from .sampling_runs import Look, Run, start_run
from .scheduling_masked_diffusion import MaskedDiffusionScheduler
from .text_ends import EndOfText
from .text_stream import TextStream
from .token_filter import TokenFilter


class Observer:
    """Looks on while a batch is denoised. This one sees nothing; a pipeline's shows progress and calls back."""

    sees_steps = False  # whether it is shown the steps of the grid one by one, for which all rows wait
    records = False  # whether it is told what each network call decides, for which no row waits
    num_timesteps = 0  # steps of the call, over all blocks once these are known; the loop says so

    @property
    def is_interrupted(self) -> bool:
        """Whether the loop is to stop, and leave masks."""
        return False

    @contextlib.contextmanager
    def progress(self, num_steps: int) -> Iterator[Callable[[int], Any]]:
        """Context of a run of so many steps, with a function that is told how many are done."""
        yield lambda num_done: None

    def after_step(self, number: int, timestep: Tensor, tensors: dict[str, Tensor | None]) -> dict[str, Any]:
        """See a step, by its number in the call, with `"sample"` and `"logits"`; return those to put in their place."""
        return {}

    def begin(self, rows: list[Tensor]):
        """See the ids of the rows of the call, if it records."""

    def after_call(self, decisions: Decisions):
        """See what a network call has decided, if it records."""

    def finish(self, sample: Tensor):
        """See the ids `(rows, ...)` at the end, if it records."""


@dataclass
class Denoising:
    """Denoising loop of a call.

    Without an observer that sees the steps, each row goes at once to its own next step. With one, all rows wait until
    the grid has come to their step.

    Args:
        model: The denoiser, in evaluation mode.
        scheduler: The scheduler, with its times set.
        token_filter: Changes of the logits before tokens are drawn.
        guidance: Guidance by class or prompt.
        classifier: Guidance by a classifier, if there is one.
        end_of_text: Where texts end, if they may end early.
        stream: Is handed the text, of one row, as it is written.
        observer: Looks on.
    """

    model: Any
    scheduler: MaskedDiffusionScheduler | ForeignScheduler
    token_filter: TokenFilter
    guidance: Guidance
    classifier: ClassifierGuidance | None = None
    end_of_text: EndOfText | None = None
    stream: TextStream | None = None
    observer: Observer = field(default_factory=Observer)

    kind: ClassVar[str] = "a masked diffusion model"  # of model, in errors
    shows_steps: ClassVar[bool] = True  # to an observer that sees them

    def __post_init__(self):
        self.observer.num_timesteps = len(self.scheduler.timesteps)

    @classmethod
    def check(cls, request: Any, options: Any):
        """Raise a ValueError for a `Request` or `SamplingOptions` that this loop cannot serve."""

    def __call__(self, sample: Tensor, inputs: DenoiserInputs, generators: list[torch.Generator]) -> Tensor:
        """Fill the masks of ids `(rows, ...)`, with one generator for each row."""
        if isinstance(inputs, BlockInputs):
            return self._fill_blocks(sample, inputs, generators)
        return self._finished(self._fill(sample, inputs, generators))

    def _fill_blocks(self, sample: Tensor, inputs: BlockInputs, generators: list[torch.Generator]) -> Tensor:
        """Fill the masks block by block, each block with a run of its own when those before it are decided."""
        num_steps, length, mask_token_id = self.scheduler.num_inference_steps, sample.shape[1], inputs.mask_token_id
        starts = inputs.starts(sample == mask_token_id)
        self.observer.num_timesteps = num_steps * math.ceil((length - int(starts.min())) / inputs.block_length)
        while not self.observer.is_interrupted and int(starts.min()) < length and (sample == mask_token_id).any():
            inputs.begin(sample, starts)
            sample = self._finished(inputs.whole(self._fill(inputs.part(sample), inputs, generators)))
            generators, starts = reseed_all(generators), starts + inputs.block_length
            inputs.first_step += num_steps
        return sample

    def _finished(self, sample: Tensor) -> Tensor:
        """Fill ids `(rows, ...)` behind the ends of their texts, and hand what is decided to the streamer."""
        num_behind = 0
        if self.end_of_text is not None:
            sample = self.end_of_text.filled(sample)
            num_behind = int(self.end_of_text.num_behind(sample)[0])
        if self.stream is not None:
            self.stream.put(sample, sample.shape[1] - num_behind)
        return sample

    def _fill(self, sample: Tensor, inputs: DenoiserInputs, generators: list[torch.Generator]) -> Tensor:
        """Fill the masks of ids in the columns of the inputs, by one run."""
        run, observer = start_run(self.scheduler, sample, generators), self.observer
        logits = None
        with observer.progress(run.num_steps) as done:
            for step in range(run.num_steps) if observer.sees_steps else [run.num_steps - 1]:
                taken = None
                while True:
                    if taken is None or not observer.sees_steps:  # an observer may have the step drawn anew
                        self._end_rows(run, inputs)
                    look = None if observer.is_interrupted else run.look(until=step)
                    if look is None:
                        break
                    taken, logits = look, self._predict(look, inputs, len(sample))
                    self._take(run, look, logits, inputs)
                    if self.stream is not None:
                        self.stream.draft(inputs.whole(run.sample), inputs.end)
                    done(run.step)
                if observer.is_interrupted:
                    break
                if observer.sees_steps:
                    logits = self._show(run, inputs, step, taken, logits)
                done(step + 1)
        return run.sample

    def _show(
        self, run: Run, inputs: DenoiserInputs, step: int, taken: Look | None, logits: Tensor | None
    ) -> Tensor | None:
        """Show a step to the observer, do what it wants changed, and return the logits after it."""
        seen = inputs.whole(run.sample)
        drawn, number = seen.clone(), inputs.first_step + step
        tensors = {"sample": seen, "logits": logits}
        wanted = self.observer.after_step(number, self.scheduler.timesteps[step], tensors)
        logits, changed = wanted.get("logits", logits), wanted.get("sample", seen)
        if not torch.equal(changed, drawn):
            inputs.replace(changed)
            run.replace(inputs.part(changed), step)
        elif taken is not None and logits is not None and "logits" in wanted:
            self._take(run, taken, self.token_filter.suppress(logits), inputs)
        return logits

    def _end_rows(self, run: Run, inputs: DenoiserInputs):
        """Take rows out of a run whose text has ended."""
        if self.end_of_text is not None:
            whole = inputs.whole(run.sample)
            rows = self.end_of_text.reached(whole).nonzero().squeeze(1)
            run.stop(rows.cpu(), inputs.part(self.end_of_text.filled(whole))[rows])

    def _take(self, run: Run, look: Look, logits: Tensor, inputs: DenoiserInputs):
        """Take the step of the rows that a run has looked at."""
        plan: Any = look.plan  # of the kind that this scheduler makes
        output: Any = self.scheduler.step(logits, look.timesteps, look.sample, plan=plan)
        run.take(look, output)
        if self.observer.records:
            self.observer.after_call(decisions_of_step(run, look, output, logits, inputs))

    def _predict(self, look: Look, inputs: DenoiserInputs, num_rows: int) -> Tensor:
        """Guided, filtered logits at the candidates of the rows that a run looks at."""
        device, guidance = look.sample.device, self.guidance
        plan = (look.plan.candidates, look.plan.hidden)
        rows, t, candidates, hidden = (x.to(device, non_blocking=True) for x in (look.rows, look.times, *plan))
        sample = look.sample.masked_fill(hidden, inputs.mask_token_id)
        sample, candidates, t = inputs.seen(sample, candidates, t, rows)
        copies = torch.cat([rows + copy * num_rows for copy in range(guidance.num_copies)])
        seen = guidance.ids(self.scheduler.scale_model_input(sample, t), rows, inputs.columns_seen(rows))
        output = self.model(
            input_ids=seen,
            timesteps=guidance.copies(inputs.told(t, rows)),
            position_mask=guidance.copies(candidates),
            **inputs.of(copies),
        )
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise ValueError(f"`model` must return an output with a tensor `logits`, got {type(output).__name__}.")
        ids = functools.partial(inputs.ids_at, sample, rows, candidates)
        logits = guidance.joined(logits)
        if self.classifier is not None:
            logits = self.classifier(logits, sample, candidates, t)
        return self.token_filter(logits, ids)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Context in which a module is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
