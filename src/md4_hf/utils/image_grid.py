# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of many images side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from .files import whole_file
from .integers import as_integer


BACKGROUND = "silver"  # neither black, nor white, nor the grey of masks
FONT_SIZE, PADDING = 14, 4  # pixels


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
    row_labels: Sequence[object] = (),
    column_labels: Sequence[object] = (),
):
    """Write images of one size as one picture, row by row; the file is never seen half-written.

    Args:
        images: At least one; a single one with `enlarge=1` and without labels is written as it is.
        path: Where to write; the suffix gives the format.
        columns: Images in a row; as many as make a square by default.
        enlarge: Width and height in the picture of a pixel, >= 1.
        gap: Grey pixels of the picture between images, >= 0.
        row_labels: Words or numbers to the left of the rows, such as classes; none by default.
        column_labels: Those above the columns; none by default.

    Raises:
        ValueError: For no images, images of several sizes, numbers out of range, labels of only some rows or columns,
            and an unknown suffix.
    """
    if not isinstance(images, Sequence) or not all(isinstance(image, PIL.Image.Image) for image in images):
        raise ValueError(f"`images` must be a list of PIL's images, got {images!r:.200}.")
    if len({image.size for image in images}) != 1:
        raise ValueError(f"`images` must hold images of one size, got sizes {sorted({x.size for x in images})}.")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    for name, value, least in (("columns", columns, 1), ("enlarge", enlarge, 1), ("gap", gap, 0)):
        as_integer(name, value, least)
    rows = math.ceil(len(images) / columns)
    for name, labels, count in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if len(labels) not in (0, count):
            raise ValueError(f"`{name}` must hold {count} labels or none, got {len(labels)}.")
    file_format = picture_format(path)
    grid, font_size = image_grid(images, columns, enlarge, gap), min(FONT_SIZE, images[0].height * enlarge)
    labelled = _with_labels(grid, [*map(str, row_labels)], [*map(str, column_labels)], gap, font_size)
    with whole_file(path) as temporary:
        labelled.save(temporary, format=file_format)


def image_grid(images: Sequence[PIL.Image.Image], columns: int, enlarge: int, gap: int) -> PIL.Image.Image:
    """One picture of images of one size; arguments as in `save_image_grid`."""
    rows = math.ceil(len(images) / columns)
    width, height = (size * enlarge for size in images[0].size)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    grid = PIL.Image.new(images[0].mode, size, BACKGROUND)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        large = image.resize((width, height), PIL.Image.Resampling.NEAREST)
        grid.paste(large, (column * (width + gap), row * (height + gap)))
    return grid


def _with_labels(
    grid: PIL.Image.Image, row_labels: list[str], column_labels: list[str], gap: int, font_size: int
) -> PIL.Image.Image:
    """The grid with labels to the left of its rows and above its columns."""
    font = PIL.ImageFont.load_default(font_size)
    left = _margin(map(font.getlength, row_labels))
    top = _margin(font_size for _ in column_labels)
    page = PIL.Image.new(grid.mode, (left + grid.width, top + grid.height), BACKGROUND)
    page.paste(grid, (left, top))
    draw = PIL.ImageDraw.Draw(page)
    for y, label in zip(_centers(grid.height, gap, len(row_labels)), row_labels, strict=True):
        draw.text((left - PADDING, top + y), label, fill="black", font=font, anchor="rm")
    for x, label in zip(_centers(grid.width, gap, len(column_labels)), column_labels, strict=True):
        draw.text((left + x, top / 2), label, fill="black", font=font, anchor="mm")
    return page


def _margin(label_sizes: Iterable[float]) -> int:
    """Pixels that labels of these sizes need with some space on both sides; 0 for no labels."""
    return math.ceil(max(label_sizes, default=-2 * PADDING)) + 2 * PADDING


def _centers(size: int, gap: int, count: int) -> list[float]:
    """The middle of each of `count` equal parts, which fill a side of this size with gaps between them."""
    return [(index + 0.5) * (size + gap) / count - gap / 2 for index in range(count)]
