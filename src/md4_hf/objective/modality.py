# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text and images: the words in which messages, cards and reports speak of each."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Modality:
    """A kind of data, and the words for it.

    Args:
        name: Its name in messages.
        example: One example, in the singular.
        unit: The unit in the headline figure, bits per unit.
        tokens: Where tokens are counted, with `{length}` for those of a block.
        files: The files beside a model, in words.
        task: The Hub's name of the task of generating examples.
        timeless_task: The Hub's name of the task of a model that does not see the time.
        field: The field of modelling, at the beginning of a sentence.
        describe_examples: Several examples with their size in words, from the `MD4Config` and the tokens of a block.
    """

    name: str
    example: str
    unit: str
    tokens: str
    files: str
    task: str
    timeless_task: str
    field: str
    describe_examples: Callable[[Any, int | None], str]

    @property
    def bits(self) -> str:
        """Name of the headline figure."""
        return f"bits per {self.unit}"

    def pipeline_tag(self, sees_time: bool) -> str:
        """The task that the Hub lists a model under."""
        return self.task if sees_time else self.timeless_task


def _describe_sequences(config, length: int | None) -> str:
    return f"sequences of {length} tokens"


def _describe_images(config, length: int | None) -> str:
    channels, height, width = config.sample_shape
    return f"images of {height} × {width} × {channels}"


TEXT = Modality(
    name="text",
    example="sequence",
    unit="character",
    tokens="in blocks of {length}",
    files="tokenizer",
    task="text-generation",
    timeless_task="fill-mask",  # a model that does not see the time is a masked language model to transformers
    field="Language",
    describe_examples=_describe_sequences,
)
IMAGES = Modality(
    name="images",
    example="image",
    unit="dimension",
    tokens="of images, one for each channel of each pixel",
    files="image processor, samples.png",
    task="unconditional-image-generation",
    timeless_task="unconditional-image-generation",
    field="Image",
    describe_examples=_describe_images,
)


def modality_of(config) -> Modality:
    """The modality of a model with this `MD4Config`."""
    return IMAGES if config.is_image else TEXT


def modality_of_metrics(names: Container[str]) -> Modality:
    """The modality that metrics with these names are of, see `nelbo_metrics`."""
    return IMAGES if f"bits_per_{IMAGES.unit}" in names else TEXT
