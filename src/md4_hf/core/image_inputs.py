# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Inputs and outputs of a sampler of images: arguments to ids, with their checks, and ids to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers import BaseImageProcessor

from .input_checks import integers
from .pipeline_inputs import Request, TextInputs, check_ids


IDS = ("ids", "seq")  # output types without decoding; the second one is diffusers' word


class ImageInputs:
    """Inputs and outputs of a model of images: images with masks or ids in, ids or images out."""

    output_types: ClassVar[tuple[str, ...]] = ("pil", "np", "pt")  # the first is the default
    output_name: ClassVar[str] = "images"
    processor_name: ClassVar[str] = "an image processor"
    eos_token_ids: ClassVar[list[int]] = []

    def __init__(self, config, image_processor: BaseImageProcessor | None):
        self.config, self.processor = config, image_processor

    def check(self, request: Request):
        """Raise a ValueError for arguments that contradict each other."""
        names = ("prompt", "length", "gen_length", "max_new_tokens", "block_length", "stop_strings", "streamer")
        request.check_left_out(names, "text")
        if request.eos_early_stop:
            raise ValueError("`eos_early_stop` must be False: the model is not one of text.")
        if request.image is not None and request.input_ids is not None:
            raise ValueError("Only one of `image` and `input_ids` may be given.")
        if request.image is not None and self.processor is None:
            raise ValueError("`image` needs a pipeline with an image processor; give `input_ids`.")
        if request.image is not None and request.mask_image is None:
            raise ValueError("`mask_image` must be given with `image`: it is the part to fill.")
        if request.mask_image is not None and request.image is None and request.input_ids is None:
            raise ValueError("`mask_image` needs `image` or `input_ids`, of which it is the part to fill.")

    def rows(self, request: Request, num_unprompted: int = 1) -> list[Tensor]:
        """Ids `(channels, height, width)` of each image, with masks where it is to be filled."""
        input_ids, mask_token_id, shape = request.input_ids, self.config.mask_token_id, self.config.sample_shape
        if request.image is not None:
            input_ids = self.processor(request.image, return_tensors="pt")["input_ids"]
        if input_ids is None:
            return list(torch.full((num_unprompted, *shape), mask_token_id))
        ids = integers("input_ids", input_ids).cpu()
        ids = ids[None] if ids.dim() == 3 else ids
        if ids.dim() != 4 or not ids.numel() or ids.shape[1] != shape[0]:
            found = tuple(ids.shape)
            raise ValueError(f"`input_ids` must have shape (batch, {shape[0]}, height, width), got {found}.")
        check_ids(ids, self.config)
        if request.mask_image is not None:
            ids = torch.where(fill_mask(request.mask_image, ids.shape), mask_token_id, ids)
        return list(ids)

    def end_of_text(self, request: Request, sample: Tensor, attention_mask: None) -> None:
        """None, as images have no end."""

    def batch(self, rows: list[Tensor], device: torch.device) -> tuple[Tensor, None]:
        """Stack images, which need no padding and no attention mask."""
        return torch.stack(rows).to(device), None

    def decode(self, sequences: Sequence[Tensor], output_type: str, skip_special_tokens: bool = True):
        """Convert rows of ids `(channels, height, width)` to images, in which masks are grey."""
        ids, grey = torch.stack(tuple(sequences)), self.processor.num_levels // 2
        ids = ids.masked_fill(ids == self.config.mask_token_id, grey)
        return self.processor.postprocess(ids.cpu(), output_type=output_type)


def output_type_of(inputs: TextInputs | ImageInputs, output_type: str | None) -> str:
    """Output type of a call, by default the first one of these inputs; a ValueError if they cannot serve it."""
    if output_type is None:
        output_type = inputs.output_types[0]
    choices = (*inputs.output_types, *IDS)
    if not isinstance(output_type, str) or output_type not in choices:
        raise ValueError(f"`output_type` must be one of {choices}, got {output_type!r}.")
    if output_type in IDS:
        return IDS[0]
    if inputs.processor is None:
        raise ValueError(
            f'`output_type="{output_type}"` needs a pipeline with {inputs.processor_name}; ask for "ids".'
        )
    return output_type


def fill_mask(mask_image, shape: torch.Size) -> Tensor:
    """Booleans that broadcast with images of this shape and are true where these are to be filled."""
    given = mask_image if isinstance(mask_image, (list, tuple)) else [mask_image]
    masks = [one_fill_mask(mask) for mask in given]
    if not masks or len({mask.shape[1:] for mask in masks}) != 1:
        raise ValueError(f"`mask_image` must hold masks of one size, got {[tuple(mask.shape) for mask in masks]}.")
    mask = torch.cat(masks)
    fits = mask.shape[2:] == shape[2:] and mask.shape[1] in (1, shape[1])
    if not fits or (len(mask) != shape[0] and 1 not in (len(mask), shape[0])):
        raise ValueError(
            f"`mask_image` must have shape {tuple(shape[2:])}, (batch, height, width) or (batch, channels, height, "
            f"width) for images of shape {tuple(shape)}, got {tuple(mask.shape)}."
        )
    return mask


def one_fill_mask(mask_image) -> Tensor:
    """Convert a picture, array or tensor to booleans `(batch, channels, height, width)`, with axes of 1 if missing."""
    if isinstance(mask_image, PIL.Image.Image):
        mask_image = mask_image.convert("L")
    elif not isinstance(mask_image, (np.ndarray, Tensor)):
        raise ValueError(f"`mask_image` must be pictures, arrays or tensors, got {type(mask_image).__name__}.")
    try:
        mask = mask_image.cpu() if isinstance(mask_image, Tensor) else torch.from_numpy(np.array(mask_image))
    except TypeError as error:
        raise ValueError(f"`mask_image` must be boolean, 8-bit or numbers in [0, 1]: {error}") from error
    if mask.dim() not in (2, 3, 4):
        raise ValueError(f"`mask_image` must have 2 to 4 axes, got shape {tuple(mask.shape)}.")
    if mask.dtype == torch.uint8:
        if mask.numel() and mask.max() == 1:
            raise ValueError("`mask_image` must have 255 for white where it is 8-bit, got 1 as the largest value.")
        mask = mask / 255
    if mask.dtype != torch.bool:
        if not (mask.dtype.is_floating_point and ((mask >= 0.0) & (mask <= 1.0)).all()):
            raise ValueError(
                f"`mask_image` must be boolean, 8-bit or numbers in [0, 1], got other values of {mask.dtype}."
            )
        mask = mask >= 0.5
    return mask[None, None] if mask.dim() == 2 else mask[:, None] if mask.dim() == 3 else mask
