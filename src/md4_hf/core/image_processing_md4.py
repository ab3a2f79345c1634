# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversion of images to ids of a masked diffusion model and back: one token for each channel of each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers import BaseImageProcessor, BatchFeature


WHITE = 255
MODES = {1: "L", 3: "RGB"}  # PIL's, by the number of channels


class MD4ImageProcessorKwargs(TypedDict, total=False):
    """Arguments that `MD4ImageProcessor.from_pretrained` can override."""

    size: Any
    num_channels: int
    num_levels: int
    do_resize: bool
    do_convert: bool
    resample: int


class MD4ImageProcessor(BaseImageProcessor):
    r"""
    Processor that converts images to ids, and ids to images.

    An id is the brightness level of one channel of one pixel, from 0 (dark) to `num_levels - 1`; the mask id is not a
    level. An 8-bit picture has 256 levels. With fewer levels, a value is read as the nearest level, and level k is
    written as the value nearest to 255 k / (num_levels - 1). Ids that become a picture and ids again do not change.

    Args:
        size (`int`, `tuple[int, int]` or `dict[str, int]`, defaults to 32):
            Height and width of all images, as one number, as two, or as `{"height": ..., "width": ...}`.
        num_channels (`int`, defaults to 3): 1 for grey images, 3 for RGB.
        num_levels (`int`, defaults to 256): Number of levels, 2 to 256; `vocab_size - 1` of the model.
        do_resize (`bool`, defaults to `False`):
            Whether to fit images of another size: crop the middle to the aspect ratio of `size`, then scale it.
        do_convert (`bool`, defaults to `False`): Whether to convert pictures of other modes (RGBA, palettes, ...).
        resample (`int`, defaults to 3): Filter of `do_resize`, a number of `PIL.Image.Resampling`; 3 is bicubic.

    Raises:
        ValueError: For a value out of its range.
    """

    model_input_names = ["input_ids"]
    valid_kwargs = MD4ImageProcessorKwargs

    def __init__(
        self,
        size: int | Sequence[int] | Mapping[str, int] = 32,
        num_channels: int = 3,
        num_levels: int = 256,
        do_resize: bool = False,
        do_convert: bool = False,
        resample: int = PIL.Image.Resampling.BICUBIC,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not _is_integer(num_levels) or not 2 <= num_levels <= WHITE + 1:
            raise ValueError(f"`num_levels` must be an integer in [2, 256], got {num_levels!r}.")
        if not _is_integer(num_channels) or num_channels not in MODES:
            raise ValueError(f"`num_channels` must be 1 (grey) or 3 (RGB), got {num_channels!r}.")
        if resample not in list(PIL.Image.Resampling):
            raise ValueError(f"`resample` must be a number of PIL.Image.Resampling, got {resample!r}.")
        for name, value in (("do_resize", do_resize), ("do_convert", do_convert)):
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` must be True or False, got {value!r}.")
        self.size, self.num_channels, self.num_levels = _size(size), num_channels, num_levels
        self.do_resize, self.do_convert, self.resample = do_resize, do_convert, int(resample)

    @classmethod
    def for_config(cls, config, **options: Any) -> MD4ImageProcessor:
        """Create the processor for an `MD4Config` of images whose mask is the last id, with other `options`."""
        channels, *size = config.sample_shape
        return cls(size, channels, config.vocab_size - 1, **options)

    def preprocess(self, images, return_tensors: str | None = "pt") -> BatchFeature:
        """
        Convert images to ids: a `BatchFeature` with `input_ids` `(batch, channels, height, width)`, int64.

        Args:
            images:
                One image or a list of images: PIL images; arrays `(height, width)` or `(height, width, channels)`;
                tensors `(height, width)` or `(channels, height, width)`. An array or tensor with four axes is a batch.
                Numbers are uint8 in [0, 255], or floats in [0, 1].
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Raises:
            ValueError: For images of another kind, mode, size, number of channels or range.
        """
        if return_tensors not in ("pt", "np"):
            raise ValueError(f'`return_tensors` must be "pt" or "np", got {return_tensors!r}.')
        pixels = np.stack([self._read(image) for image in _as_list(images)])
        # Rounds to the nearest level in integers: (num_levels - 1) v / 255 is never halfway between two levels.
        ids = (pixels.astype(np.int64) * (2 * (self.num_levels - 1)) + WHITE) // (2 * WHITE)
        return BatchFeature({"input_ids": ids.transpose(0, 3, 1, 2)}, tensor_type=return_tensors)

    def postprocess(
        self, ids: torch.Tensor | np.ndarray, output_type: str = "pil"
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """
        Convert ids to images.

        Args:
            ids: Integers `(batch, channels, height, width)` in [0, num_levels), of any height and width.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` for a list of PIL images, or, for float32 numbers in [0, 1], `"np"` for an array
                `(batch, height, width, channels)` and `"pt"` for a tensor `(batch, channels, height, width)`.

        Raises:
            ValueError: For ids of another shape, kind or range (the mask id is not a level), or another output type.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'`output_type` must be one of "pil", "np" and "pt", got {output_type!r}.')
        ids = torch.as_tensor(ids).cpu()
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"`ids` must be integers, got {ids.dtype}.")
        if ids.dim() != 4 or ids.shape[1] != self.num_channels or not ids.numel():
            shape = f"(batch, {self.num_channels}, height, width)"
            raise ValueError(f"`ids` must have shape {shape}, got {tuple(ids.shape)}.")
        if not 0 <= ids.min() <= ids.max() < self.num_levels:
            raise ValueError(f"`ids` must be in [0, {self.num_levels}), got values from {ids.min()} to {ids.max()}.")
        ids = ids.long()
        if output_type == "pt":
            return ids.float() / (self.num_levels - 1)
        levels = ids.permute(0, 2, 3, 1).numpy()
        if output_type == "np":
            return levels.astype(np.float32) / np.float32(self.num_levels - 1)
        pixels = ((levels * (2 * WHITE) + self.num_levels - 1) // (2 * (self.num_levels - 1))).astype(np.uint8)
        return [PIL.Image.fromarray(image[..., 0] if self.num_channels == 1 else image) for image in pixels]

    def _read(self, image) -> np.ndarray:
        """Read one image as uint8 values `(height, width, channels)`."""
        if isinstance(image, PIL.Image.Image):
            mode = MODES[self.num_channels]
            if image.mode != mode and not self.do_convert:
                raise ValueError(f"`images` must have the mode {mode} (or set `do_convert`), got {image.mode}.")
            pixels = np.asarray(image.convert(mode))
        elif isinstance(image, torch.Tensor):
            pixels = _to_bytes((image.permute(1, 2, 0) if image.dim() == 3 else image).numpy(force=True))
        elif isinstance(image, np.ndarray):
            pixels = _to_bytes(image)
        else:
            raise ValueError(f"`images` must be PIL images, arrays or tensors, got {type(image).__name__}.")
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[2] != self.num_channels or not pixels.size:
            raise ValueError(f"`images` must have {self.num_channels} channels, got an image of shape {image.shape}.")
        return self._fit(pixels)

    def _fit(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self.size["height"], self.size["width"]
        if pixels.shape[:2] == (height, width):
            return pixels
        if not self.do_resize:
            raise ValueError(
                f"`images` must be {height} x {width} pixels, height by width (or set `do_resize`), got "
                f"{pixels.shape[0]} x {pixels.shape[1]}."
            )
        picture = PIL.Image.fromarray(pixels[..., 0] if self.num_channels == 1 else pixels)
        fitted = np.asarray(PIL.ImageOps.fit(picture, (width, height), PIL.Image.Resampling(self.resample)))
        return fitted.reshape(height, width, self.num_channels)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(size) -> dict[str, int]:
    """Height and width by name, from one number, a pair or a mapping."""
    if isinstance(size, Mapping):
        values = [size[name] for name in ("height", "width")] if set(size) == {"height", "width"} else []
    else:
        values = [size, size] if _is_integer(size) else size
    is_pair = isinstance(values, Sequence) and len(values) == 2
    if not (is_pair and all(_is_integer(value) and value >= 1 for value in values)):
        raise ValueError(f"`size` must be one number or a height and a width, each >= 1, got {size!r}.")
    return dict(zip(("height", "width"), values, strict=True))


def _as_list(images) -> list:
    """Split a list or a batch into its images; a single image becomes a list of one."""
    if isinstance(images, (list, tuple)) and not images:
        raise ValueError("`images` must hold at least one image, got none.")
    is_batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4 and len(images)
    return list(images) if isinstance(images, (list, tuple)) or is_batch else [images]


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Convert floats in [0, 1] to uint8 values in [0, 255]; uint8 values stay unchanged."""
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"`images` must be uint8 in [0, 255] or floats in [0, 1], got {pixels.dtype}.")
    if pixels.size and not (pixels.min() >= 0.0 and pixels.max() <= 1.0):
        raise ValueError(f"`images` of floats must be in [0, 1], got values from {pixels.min()} to {pixels.max()}.")
    return np.rint(pixels.astype(np.float64) * WHITE).astype(np.uint8)


MD4ImageProcessor.register_for_auto_class()  # saved with its code, for `trust_remote_code`
