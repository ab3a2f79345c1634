# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A call of a sampler, from its arguments to ids: what the pipeline and the model's `generate` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from .denoiser_inputs import make_inputs
from .denoising import Denoising, Observer, evaluating
from .foreign_scheduler import scheduler_of_call
from .guidance import Classifier, ClassifierGuidance, check_guidance, class_labels_of, make_guidance
from .pipeline_inputs import Request
from .reverse_steps import DRAW_OPTIONS, SAMPLER_OPTIONS
from .row_generators import row_generators
from .scheduler_base import SchedulerMixin
from .text_ends import EndOfText
from .text_stream import check_streamer, streaming
from .token_filter import LogitsProcessing, TokenFilter


@dataclass(frozen=True)
class SamplingOptions:
    """Arguments of a call that say how tokens are drawn; `MaskedDiffusionPipeline.__call__` describes them.

    Args:
        sampler: Entries of the scheduler's configuration; those that are None are the scheduler's own.
        num_samples, class_labels, guidance_scale, classifier, classifier_scale, classifier_method,
        num_inference_steps, suppress_tokens, logits_processor, generator: As there.
    """

    sampler: dict[str, Any] = field(default_factory=dict)
    num_samples: int = 1
    class_labels: Any = None
    guidance_scale: float = 1.0
    classifier: Classifier | None = None
    classifier_scale: float = 1.0
    classifier_method: str = "exact"
    num_inference_steps: int | None = None
    suppress_tokens: list[int] | None = None
    logits_processor: LogitsProcessing | None = None
    generator: torch.Generator | list[torch.Generator] | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> SamplingOptions:
        """Take the options out of the arguments of a call, by their names."""
        sampler = {name: arguments[name] for name in (*SAMPLER_OPTIONS, *DRAW_OPTIONS)}
        own = {field.name: arguments[field.name] for field in fields(cls) if field.name in arguments}
        return cls(**own, sampler=sampler)


def sampling_loop_of(model: Any) -> type[Denoising]:
    """Sampling loop that a model names (`sampling_loop`), by default that of masked diffusion."""
    name_loop = getattr(model, "sampling_loop", None)
    return Denoising if name_loop is None else name_loop()


class SamplingCall:
    """Rows to fill and all that is needed for it; `run` fills them.

    Args:
        model: The denoiser.
        scheduler: Scheduler of which this call takes one with its own options.
        inputs: What arguments mean to this kind of model: `TextInputs`, or those of images.
        request: What is to be filled.
        options: How tokens are drawn.
        device: Device of the ids.

    Raises:
        ValueError: For arguments out of range or that contradict each other, before any computation.
    """

    def __init__(
        self,
        model: Any,
        scheduler: SchedulerMixin,
        inputs: Any,
        request: Request,
        options: SamplingOptions,
        device: torch.device,
    ):
        self.model, self.inputs, self.request, self.options, self.device = model, inputs, request, options, device
        self.loop_class = sampling_loop_of(model)
        config, num_samples = model.config, options.num_samples
        self.loop_class.check(request, options)
        self.by_class = options.class_labels is not None
        labels = class_labels_of(config, options.class_labels)
        inputs.check(request)
        check_guidance(config, options.guidance_scale, self.by_class, request.is_given)
        self.classifier = self._classifier(config.mask_token_id)
        rows = inputs.rows(request, num_unprompted=1 if labels is None else len(labels))
        longest, num_positions = max(map(len, rows)), getattr(model, "num_positions", None)
        if num_positions is not None and longest > num_positions:
            raise ValueError(f"`length` must be at most {num_positions}, the network's positions, got {longest}.")
        if labels is not None:
            if len(labels) not in (1, len(rows)):
                raise ValueError(f"`class_labels` must hold 1 or {len(rows)} labels, got {len(labels)}.")
            labels = labels.expand(len(rows)).repeat_interleave(num_samples).to(device)
        self.labels = labels
        self.rows = [row for row in rows for _ in range(num_samples)]
        check_streamer(request.streamer, len(self.rows))
        self.generators = row_generators(options.generator, len(self.rows))
        self.token_filter = TokenFilter(model, options.suppress_tokens, options.logits_processor)
        self.scheduler = scheduler_of_call(scheduler, model, options.num_inference_steps, options.sampler, device)
        self.end_of_text: EndOfText | None = None

    def _classifier(self, mask_token_id: int) -> ClassifierGuidance | None:
        """Guidance by a classifier, if one is given."""
        options = self.options
        if options.classifier is None:
            return None
        if not self.request.is_bounded:
            raise ValueError("`classifier` must be None with `block_length`, as it sees whole sequences.")
        how = (options.classifier_scale, options.classifier_method)
        return ClassifierGuidance(options.classifier, *how, mask_token_id)

    def run(self, observer: Observer | None = None) -> Tensor:
        """Ids `(rows, ...)` without masks, padded to the longest row; `end_of_text` then knows where texts end."""
        request, config = self.request, self.model.config
        with evaluating(self.model):
            sample, attention_mask = self.inputs.batch(self.rows, self.device)
            self.end_of_text = self.inputs.end_of_text(request, sample, attention_mask)
            given = sample != config.mask_token_id
            scale = float(self.options.guidance_scale)
            guidance = make_guidance(config, scale, self.labels, self.by_class, given)
            blocks = (request.block_length, request.use_cache, self.scheduler.schedule)
            inputs = make_inputs(self.model, guidance, attention_mask, *blocks)
            with streaming(request.streamer, sample, config.mask_token_id) as stream:
                how = (self.token_filter, guidance, self.classifier, self.end_of_text, stream)
                observer = observer or Observer()
                loop = self.loop_class(self.model, self.scheduler, *how, observer)
                observer.begin(self.rows)
                sample = loop(sample, inputs, self.generators)
                observer.finish(sample)
                return sample

    def sequences(self, sample: Tensor) -> list[Tensor]:
        """Ids of each row, on the CPU, cut to its own length; behind the end of a text there is padding."""
        return [ids[: len(row)] for ids, row in zip(sample.cpu(), self.rows, strict=True)]

    def shown(self, sample: Tensor) -> list[Tensor]:
        """Ids of each row up to the end of its text."""
        sequences = self.sequences(sample)
        return sequences if self.end_of_text is None else self.end_of_text.cut(sample, sequences)
