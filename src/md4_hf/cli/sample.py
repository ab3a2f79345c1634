# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 sample` and `md4 infill`."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import PIL.Image
import torch

from ..hub.loading import load_pipeline
from ..utils.image_grid import picture_format, save_image_grid
from ..utils.options import check_left_out, option
from .arguments import parse_arguments


GAP = re.compile(r"<mask:(\d+)>")
RULE = "-" * 60
MAX_GAP_DIGITS = 6  # more tokens than any model has, and still a text that fits into memory


@dataclass
class SamplerArguments:
    """How samples are drawn, and by which model."""

    _argument_group_name = "sampling"

    num_samples: int = option("Samples (of each text, image or class).", default=1)
    num_inference_steps: int | None = option("Steps; the scheduler's own by default.")
    length: int | None = option("Tokens; the model's length by default.")
    block_length: int | None = option("Generate block by block, of so many tokens, to any --length.")
    temperature: float = option("Divides the logits; 0 takes the most probable token.", default=1.0)
    top_p: float | None = option("Nucleus in (0, 1].")
    top_k: int | None = option("Keep the k most probable tokens.")
    class_labels: list[int] | None = option("Classes to sample, of a class-conditional model.")
    guidance_scale: float = option(
        "Classifier-free guidance: 1 is the class's own distribution, more is sharper.", default=1.0
    )
    seed: int | None = option("Seed; another sample every time without one.")
    device: str | None = option("Device; an accelerator if there is one.")
    base: str | None = option("Base model of an adapter, if not the one it names.")
    revision: str | None = option("Branch, tag or commit of a model on the Hub.")

    def pipeline_arguments(self) -> dict:
        """Keyword arguments for the pipeline's call."""
        names = (
            "num_samples",
            "num_inference_steps",
            "length",
            "block_length",
            "temperature",
            "top_p",
            "top_k",
            "class_labels",
            "guidance_scale",
        )
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        return {**{name: getattr(self, name) for name in names}, "generator": generator}


@dataclass
class SampleArguments(SamplerArguments):
    """How to sample, and what to write."""

    output: str | None = option("Picture to write, of a model of images.")
    enlarge: int = option("Pixels of the picture for a pixel, in each direction.", default=1)

    def load_pipeline(self, model: str):
        """The pipeline of a folder or Hub id, of images only if there is a picture to write."""
        if self.output is not None:
            picture_format(self.output)
        if self.enlarge < 1:
            raise ValueError(f"`enlarge` must be >= 1, got {self.enlarge}.")
        pipeline = load_pipeline(model, base=self.base, revision=self.revision, device=self.device)
        if pipeline.image_shape is None:
            check_left_out(self, ["output", "enlarge"], "for a model of text")
        elif self.output is None:
            raise ValueError("`output` must name a picture to write for a model of images.")
        return pipeline


@dataclass
class PromptArguments:
    """What to start from."""

    _argument_group_name = "prompt"

    prompt: str | None = option("Text that every sample begins with.")


@dataclass
class ImageArguments:
    """Which part of an image to fill."""

    _argument_group_name = "image"

    image: str | None = option("Picture, of the model's size, in place of the text.")
    mask: str | None = option("Picture of the same size, white where to fill it.")


def sample(argv: list[str] | None = None):
    """`md4 sample`: text or images from nothing or of a class, or the continuation of a prompt."""
    options, prompt, rest = parse_arguments(
        (SampleArguments, PromptArguments),
        argv,
        prog="md4 sample",
        description="Sample text, from nothing or from a prompt, or images, from nothing or of a class.",
        positional={"model": "Folder or Hub id of a model or adapter."},
    )
    pipeline = options.load_pipeline(rest.model)
    show(pipeline(prompt=prompt.prompt, **options.pipeline_arguments()), options)


def infill(argv: list[str] | None = None):
    """`md4 infill`: fill the gaps of a text or of an image, and keep the rest as it is."""
    argv = list(sys.argv[1:] if argv is None else argv)
    is_image = any(word.split("=")[0] == "--image" for word in argv)
    text = {"text": 'Text with gaps, e.g. "the <mask:12> statement"; left out with --image.'}
    options, image, rest = parse_arguments(
        (SampleArguments, ImageArguments),
        argv,
        prog="md4 infill",
        description="Fill the gaps of a text or of an image and keep the rest of it. A gap of n tokens is written "
        "<mask:n>, the gap of an image is what is white in another one.",
        positional={"model": "Folder or Hub id of a model or adapter.", **({} if is_image else text)},
    )
    if is_image:
        infill_image(rest.model, image, options)
    else:
        infill_text(rest.model, rest.text, image, options)


def infill_text(model: str, text: str, image: ImageArguments, options: SampleArguments):
    """Fill the gaps of a text."""
    gaps = GAP.findall(text)
    if not gaps:
        raise ValueError(f'`text` must have a gap such as <mask:12>, got "{text}".')
    if max(map(len, gaps)) > MAX_GAP_DIGITS:
        raise ValueError(f'`text` must have gaps of less than a million tokens, got "{text}".')
    if image.mask is not None:
        raise ValueError(f"`mask` needs an `image`, got {image.mask} without.")
    pipeline = options.load_pipeline(model)
    if pipeline.tokenizer is None:
        raise ValueError("`image` and `mask` must be given for a model of images, got a text.")
    prompt = expand_gaps(text, pipeline.tokenizer.mask_token)
    show(pipeline(prompt=prompt, **options.pipeline_arguments()), options)


def infill_image(model: str, image: ImageArguments, options: SampleArguments):
    """Fill what is white in the mask."""
    if image.mask is None:
        raise ValueError(f"`mask` must be given with `image`, got {image.image} without.")
    picture, mask = PIL.Image.open(image.image), PIL.Image.open(image.mask)
    pipeline = options.load_pipeline(model)
    is_grey = pipeline.image_shape is not None and pipeline.image_shape[0] == 1
    given = picture.convert("L" if is_grey else "RGB")
    show(pipeline(image=given, mask_image=mask, **options.pipeline_arguments()), options)


def expand_gaps(text: str, mask_token: str) -> str:
    """ "<mask:3>" -> three mask tokens."""
    return GAP.sub(lambda gap: mask_token * int(gap.group(1)), text)


def show(output, options: SampleArguments):
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
    texts, number = [], 1
    rest = printed.removeprefix(f"--- 1 {RULE}\n")
    while True:
        number += 1
        text, rule, rest = rest.partition(f"\n--- {number} {RULE}\n")
        texts.append(text)
        if not rule:
            return [*texts[:-1], text.removesuffix("\n")]
