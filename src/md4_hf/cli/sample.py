# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 sample` and `md4 infill`."""

from __future__ import annotations

import argparse
import re

import PIL.Image
import torch

from ..hub.loading import load_pipeline
from ..utils.errors import file_errors_as_value_errors
from ..utils.image_grid import picture_format, save_image_grid
from ..utils.options import check_left_out
from .options import ImageArguments, PromptArguments, SampleArguments, SamplerArguments


GAP = re.compile(r"<mask:(\d+)>")
RULE = "-" * 60
ARGUMENTS_OF_PIPELINE = (
    *("num_samples", "num_inference_steps", "length", "block_length"),
    *("temperature", "top_p", "top_k", "class_labels", "guidance_scale"),
)


def sample(options: SampleArguments, prompt: PromptArguments, rest: argparse.Namespace):
    """Sample text or images from nothing or of a class, or continue a prompt."""
    pipeline = open_pipeline(rest.model, options)
    write_samples(pipeline(prompt=prompt.prompt, **pipeline_arguments(options)), options)


def infill(options: SampleArguments, image: ImageArguments, rest: argparse.Namespace):
    """Fill the gaps of a text or of an image, and keep the rest as it is."""
    if (rest.text is None) == (image.image is None):
        raise ValueError(f"Either `text` or `image` must be given, got {rest.text!r} and {image.image!r}.")
    (infill_image if rest.text is None else infill_text)(rest, image, options)


def pipeline_arguments(options: SamplerArguments) -> dict:
    """Keyword arguments for the pipeline's call."""
    generator = None if options.seed is None else torch.Generator().manual_seed(options.seed)
    return {**{name: getattr(options, name) for name in ARGUMENTS_OF_PIPELINE}, "generator": generator}


def open_pipeline(model: str, options: SampleArguments):
    """The pipeline of a folder or Hub id; of images only if there is a picture to write."""
    if options.output is not None:
        picture_format(options.output)
    pipeline = load_pipeline(model, base=options.base, revision=options.revision, device=options.device)
    if pipeline.image_shape is None:
        check_left_out(options, ["output", "enlarge"], "for a model of text")
    elif options.output is None:
        raise ValueError("`output` must name a picture to write for a model of images.")
    return pipeline


def infill_text(rest: argparse.Namespace, image: ImageArguments, options: SampleArguments):
    """Fill the gaps of a text."""
    text = rest.text
    gaps = GAP.findall(text)
    if not gaps:
        raise ValueError(f'`text` must have a gap such as <mask:12>, got "{text}".')
    if image.mask is not None:
        raise ValueError(f"`mask` needs an `image`, got {image.mask} without.")
    pipeline = open_pipeline(rest.model, options)
    if pipeline.tokenizer is None:
        raise ValueError("`image` and `mask` must be given for a model of images, got a text.")
    longest = max(pipeline.model.config.max_position_embeddings, options.length or 0)
    if sum(map(int, gaps)) > longest:
        raise ValueError(f'`text` must have gaps of at most {longest} tokens in all, the length, got "{text}".')
    prompt = expand_gaps(text, pipeline.tokenizer.mask_token)
    write_samples(pipeline(prompt=prompt, **pipeline_arguments(options)), options)


def infill_image(rest: argparse.Namespace, image: ImageArguments, options: SampleArguments):
    """Fill the white part of the mask."""
    if image.mask is None:
        raise ValueError(f"`mask` must be given with `image`, got {image.image} without.")
    with file_errors_as_value_errors("image", image.image):
        picture = PIL.Image.open(image.image)
    with file_errors_as_value_errors("mask", image.mask):
        mask = PIL.Image.open(image.mask)
    pipeline = open_pipeline(rest.model, options)
    given = picture.convert("L" if pipeline.image_shape and pipeline.image_shape[0] == 1 else "RGB")
    write_samples(pipeline(image=given, mask_image=mask, **pipeline_arguments(options)), options)


def expand_gaps(text: str, mask_token: str) -> str:
    """Write each gap `<mask:n>` as n mask tokens."""
    return GAP.sub(lambda gap: mask_token * int(gap.group(1)), text)


def write_samples(output, options: SampleArguments):
    """Print texts, or write images as one picture, with a row for each class."""
    if output.images is None:
        print_texts(output.texts)
        return
    columns = options.num_samples if options.class_labels else None
    save_image_grid(output.images, options.output, columns=columns, enlarge=options.enlarge, gap=options.enlarge)
    print(f"{len(output.images)} images are in {options.output}")


def print_texts(texts: list[str]):
    """Each text between rules."""
    for number, text in enumerate(texts, start=1):
        print(f"--- {number} {RULE}")
        print(text)


def read_printed_texts(printed: str) -> list[str]:
    """The texts that `print_texts` has printed; any other text is one text."""
    if not printed.startswith(f"--- 1 {RULE}\n"):
        return [printed]
    texts: list[str] = []
    _, rule, rest = printed.removesuffix("\n").partition(f"--- 1 {RULE}\n")
    while rule:
        text, rule, rest = rest.partition(f"\n--- {len(texts) + 2} {RULE}\n")
        texts.append(text)
    return texts
