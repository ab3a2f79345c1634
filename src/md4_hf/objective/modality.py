# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text and images: the words in which messages, cards and reports speak of each."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


TAGS = ("md4", "md4_hf", "masked-diffusion", "discrete-diffusion")  # of every masked diffusion model on the Hub


@dataclass(frozen=True)
class Modality:
    """A kind of data, and the words for it."""

    name: str  # in messages
    example: str  # in the singular
    unit: str  # of the headline figure, bits per unit
    tokens: str  # where tokens are counted, with `{length}` for those of a block
    examples: str  # several, with their size
    files: str  # beside a model
    task: str  # the Hub's name for generating examples
    timeless_task: str  # the Hub's name for a model that does not see the time
    field: str  # of modelling, at the beginning of a sentence
    tags: tuple[str, ...]  # of a masked diffusion model on the Hub

    @property
    def bits(self) -> str:
        """Name of the headline figure."""
        return f"bits per {self.unit}"

    def pipeline_tag(self, sees_time: bool) -> str:
        """The task that the Hub lists a model under."""
        return self.task if sees_time else self.timeless_task

    def describe_examples(self, config, length: int | None) -> str:
        """Several examples with their size, from the `MD4Config` and the tokens of a block."""
        return self.examples.format(length=length, shape=config.sample_shape)


TEXT = Modality(
    name="text",
    example="sequence",
    unit="character",
    tokens="in blocks of {length}",
    examples="sequences of {length} tokens",
    files="tokenizer",
    task="text-generation",
    timeless_task="fill-mask",  # a model that does not see the time is a masked language model to transformers
    field="Language",
    tags=(*TAGS, "diffusion-language-model"),
)
IMAGES = Modality(
    name="images",
    example="image",
    unit="dimension",
    tokens="of images, one for each channel of each pixel",
    examples="images of {shape[1]} × {shape[2]} × {shape[0]}",
    files="image processor, samples.png",
    task="unconditional-image-generation",
    timeless_task="unconditional-image-generation",
    field="Image",
    tags=(*TAGS, "image-generation"),
)


def modality_of(config) -> Modality:
    """The modality of a model with this `MD4Config`."""
    return IMAGES if config.is_image else TEXT


def modality_of_metrics(names: Container[str]) -> Modality:
    """The modality that metrics with these names are of, see `nelbo_metrics`."""
    return IMAGES if f"bits_per_{IMAGES.unit}" in names else TEXT
