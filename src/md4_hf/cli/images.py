# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Images of the commands: model and images of a training, images of an evaluation."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import torch

from ..core.configuration_md4 import BACKBONES, MD4Config
from ..core.image_processing_md4 import MD4ImageProcessor
from ..core.modeling_md4 import MD4ForMaskedDiffusion
from ..data.arguments import DataArguments, ImageDataArguments, PairArguments
from ..data.documents import load_validation
from ..data.images import ImageDataset, encode_images, load_image_table, load_images
from ..evaluation.baselines import pixel_histogram_bits
from ..hub.loading import load_config, load_model
from ..objective.modality import IMAGES
from ..training.arguments import MD4TrainingArguments
from ..utils.options import check_left_out
from .material import Material, describe_data
from .train_options import ModelArguments, StartArguments


MAX_VALUES_FOR_BASELINES = 10_000_000
SAMPLES_OF_TEXT = ("text_samples", "text_sample_steps")
OPTIONS_OF_TEXT = ("text_column", "validation_text_column", "data_weights", "block_size", "document_mask")


def trains_images(name_or_path: str | None, model_args: ModelArguments) -> bool:
    """Whether the model to train, new or trained before, is one of images."""
    if name_or_path is not None:
        return load_config(name_or_path, argument="model_name_or_path").is_image
    return model_args.backbone is not None and BACKBONES[model_args.backbone].is_image


def prepare_image_training(
    start: StartArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    image_args: ImageDataArguments,
    args: MD4TrainingArguments,
) -> Material:
    """Model and images of a training on images."""
    check_left_out(start, ["tokenizer", "pad_vocab_to_multiple_of"], "for a model of images")
    check_left_out(args, SAMPLES_OF_TEXT, "for a model of images")
    check_no_text(data_args)
    model = make_image_model(start.model_name_or_path, model_args, image_args)
    config = model.config
    with args.main_process_first(desc="preparing the data"):
        train_images, heldout_images = prepare_images(data_args, image_args, config, verbose=args.process_index == 0)
    facts = describe_data(data_args, IMAGES.describe_examples(config, None))
    facts["base_model"] = start.model_name_or_path
    measure = partial(measure_image_baselines, train_images, heldout_images, config)
    return Material(model, MD4ImageProcessor.for_config(config), train_images, heldout_images, facts, measure)


def make_image_model(
    name_or_path: str | None, model_args: ModelArguments, image_args: ImageDataArguments
) -> MD4ForMaskedDiffusion:
    """A new model of images, or the trained one to continue."""
    if name_or_path is None:
        return MD4ForMaskedDiffusion(model_args.new_config(vocab_size=(image_args.num_levels or 256) + 1))
    config = load_config(name_or_path, argument="model_name_or_path")
    check_levels(image_args, config)
    model_args.change(config)  # before the layers are built, which take their dropout from it
    return load_model(name_or_path, config=config, dtype=torch.float32)


def check_levels(image_args: ImageDataArguments, config: MD4Config):
    """Refuse a number of levels that is not the trained model's."""
    num_levels = config.vocab_size - 1
    if image_args.num_levels not in (None, num_levels):
        raise ValueError(f"`num_levels` must be the trained model's {num_levels}, got {image_args.num_levels}.")


def check_no_images(image_args: ImageDataArguments):
    """Refuse options of images for a model of text."""
    if image_args.given:
        raise ValueError(f"The options of images must be left out for a model of text, got {image_args}.")


def check_no_text(data_args: DataArguments):
    """Refuse options of text for a model of images."""
    block_size = data_args.block_size or DataArguments.block_size  # None where it is the model's by default
    options = dataclasses.replace(data_args, block_size=block_size)
    check_left_out(options, OPTIONS_OF_TEXT, "for a model of images")


def prepare_images(
    data_args: DataArguments, image_args: ImageDataArguments, config: MD4Config, verbose: bool
) -> list[ImageDataset]:
    """Training and held-out images as ids; `verbose` prints their number."""
    examples = []
    for name, images in zip(("training", "held-out"), load_images(data_args), strict=True):
        encoded = encode_images(images, MD4ImageProcessor.for_config(config), image_args, config.num_classes)
        examples.append(encoded)
        if verbose and hasattr(encoded, "__len__"):
            print(f"{name} data: {len(encoded):,} {IMAGES.describe_examples(config, None)}")
    return examples


def evaluation_images(data_args: DataArguments, image_args: ImageDataArguments, config: MD4Config) -> ImageDataset:
    """The images named for validation, or the held-out part of the data, as ids."""
    check_levels(image_args, config)
    images = load_validation(data_args, load_images, load_image_table)
    return encode_images(images, MD4ImageProcessor.for_config(config), image_args, config.num_classes)


def measure_image_baselines(train_images, heldout_images, config: MD4Config) -> dict[str, float]:
    """Held-out bits per dimension of models without any network."""
    if not all(hasattr(images, "__len__") for images in (train_images, heldout_images)):
        return {}
    num_levels = config.vocab_size - 1
    bits = pixel_histogram_bits(_first_ids(train_images), _first_ids(heldout_images), num_levels)
    return {"uniform": math.log2(num_levels), "pixel histogram": bits}


def _first_ids(images: ImageDataset) -> np.ndarray:
    """The ids of a data set, of a large one the first ten million."""
    count = min(len(images), max(1, MAX_VALUES_FOR_BASELINES // images[0]["input_ids"].size))
    return np.stack([image["input_ids"] for image in images.__getitems__(list(range(count)))])


class ImageEvaluation:
    """Held-out images for a model, and its image processor, with the arguments and methods of `TextEvaluation`."""

    tokenizer = None

    def __init__(self, name: str, config: MD4Config, revision: str | None):
        self.config = config
        self.processor = MD4ImageProcessor.for_config(config)

    def check(self, data_args: DataArguments, pair_args: PairArguments, image_args: ImageDataArguments):
        """Refuse options of text."""
        check_no_text(data_args)
        check_left_out(pair_args, [field.name for field in dataclasses.fields(pair_args)], "for a model of images")

    def block_size(self, block_size: int | None) -> None:
        """Images are not cut into blocks."""
        if block_size is not None:
            raise ValueError(f"`block_size` must be left out for a model of images, got {block_size}.")

    def examples(self, data_args: DataArguments, pair_args: PairArguments, image_args: ImageDataArguments):
        """The images named for validation, or the held-out part of the data, as ids."""
        return evaluation_images(data_args, image_args, self.config)
