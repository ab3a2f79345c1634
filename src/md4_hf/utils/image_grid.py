# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of many images side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from .files import whole_file
from .integers import as_integer


def picture_format(path: str | os.PathLike) -> str:
    """PIL's name of the format that a picture's suffix stands for; a ValueError for none, or a folder not there."""
    path = Path(path)
    file_format = PIL.Image.registered_extensions().get(path.suffix.lower())
    if file_format not in PIL.Image.SAVE:
        raise ValueError(f"`path` must have the suffix of a kind of picture, such as .png, got {path}.")
    if not path.parent.is_dir():
        raise ValueError(f"`path` must lie in a folder that is there, got {path}.")
    return file_format


def save_image_grid(
    images: Sequence[PIL.Image.Image],
    path: str | os.PathLike,
    *,
    columns: int | None = None,
    enlarge: int = 1,
    gap: int = 0,
):
    """Write images of one size as one picture, row by row; the file is never seen half-written.

    Args:
        images: At least one; a single one with `enlarge=1` is written as it is.
        path: Where to write; the suffix gives the format.
        columns: Images in a row; as many as make a square by default.
        enlarge: Width and height in the picture of a pixel, >= 1.
        gap: White pixels of the picture between images, >= 0.

    Raises:
        ValueError: For no images, images of several sizes, numbers out of range and an unknown suffix.
    """
    if len({image.size for image in images}) != 1:
        raise ValueError(f"`images` must hold images of one size, got sizes {sorted({x.size for x in images})}.")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    for name, value, least in (("columns", columns, 1), ("enlarge", enlarge, 1), ("gap", gap, 0)):
        as_integer(name, value, least)
    file_format = picture_format(path)
    width, height = (size * enlarge for size in images[0].size)
    rows = math.ceil(len(images) / columns)
    grid = PIL.Image.new(images[0].mode, (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        large = image.resize((width, height), PIL.Image.Resampling.NEAREST)
        grid.paste(large, (column * (width + gap), row * (height + gap)))
    with whole_file(path) as temporary:
        grid.save(temporary, format=file_format)
