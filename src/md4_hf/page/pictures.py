# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Actions of the page of a model of images: sample, and fill a rectangle. Each gives pictures while it is unmasked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
import torch

from ..evaluation.trajectories import Trajectory
from ..utils.image_grid import image_grid
from .controls import arguments_of, seed_of
from .running import frames, generators
from .texts import note_of


SIDE, GAP = 448, 4  # pixels of the side of a picture on the page, at least about, and between images
TINT = (255, 153, 0)  # of the part to fill
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the model's images; the last two are excluded
PARTS: dict[str, tuple[float, float, float, float]] = {
    "upper half": (0, 0, 1, 0.5),
    "lower half": (0, 0.5, 1, 1),
    "left half": (0, 0, 0.5, 1),
    "right half": (0.5, 0, 1, 1),
    "middle": (0.25, 0.25, 0.75, 0.75),
}


@dataclass
class ImageActions:
    """What a model of images can do on the page.

    Args:
        pipeline: A pipeline of images with an image processor.

    Raises:
        ValueError: It has none, and its images cannot be shown.
    """

    pipeline: Any

    def __post_init__(self):
        if self.pipeline.image_processor is None:
            raise ValueError("`model` must have an image processor: images of this kind cannot be shown.")
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the model's images."""
        _, height, width = self.pipeline.image_shape
        return width, height

    @property
    def enlarge(self) -> int:
        """Width and height on the page of a pixel of a single image."""
        return max(1, SIDE // max(self.size))

    def sample(self, *, seed: Any = None, **settings: Any) -> Iterator[tuple[PIL.Image.Image, str, str]]:
        """Draw images: one picture of all, a note and, at the end, a page that plays it."""
        yield from self._draw({}, seed, settings)

    def inpaint(
        self, picture: PIL.Image.Image | None, box: Box | None, *, seed: Any = None, **settings: Any
    ) -> Iterator[tuple[PIL.Image.Image, str, str]]:
        """Fill a part of a picture, as `sample`.

        Raises:
            ValueError: Without picture or part, and whatever the pipeline refuses.
        """
        if picture is None:
            raise ValueError("An image is needed: upload one, or take a sample.")
        if box is None:
            raise ValueError("A part to fill is needed: click two of its corners, or choose one below the image.")
        mask = PIL.Image.new("L", self.size)
        mask.paste(255, box)
        yield from self._draw({"image": self.fitted(picture), "mask_image": mask}, seed, settings)

    def one(self, *, seed: Any = None, **settings: Any) -> PIL.Image.Image:
        """Draw one image to fill a part of."""
        arguments = arguments_of({**settings, "num_samples": 1})
        return self.pipeline(generator=generators(seed_of(seed), 1), **arguments).images[0]

    def fitted(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """A picture in the size and the colours of the model: its middle, if it has another shape."""
        picture = PIL.ImageOps.exif_transpose(picture)
        if "A" in picture.getbands():
            picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "black"), picture.convert("RGBA"))
        picture = picture.convert("L" if self.pipeline.image_shape[0] == 1 else "RGB")
        if picture.size == self.size:
            return picture
        return PIL.ImageOps.fit(picture, self.size, PIL.Image.Resampling.BOX)

    def shown(
        self, picture: PIL.Image.Image, box: Box | None = None, corner: tuple[int, int] | None = None
    ) -> PIL.Image.Image:
        """A picture as large as the page shows it, with the part to fill, or its first corner, tinted."""
        large = picture.convert("RGB").resize(
            [side * self.enlarge for side in self.size], PIL.Image.Resampling.NEAREST
        )
        if box is None and corner is not None:
            box = (*corner, corner[0] + 1, corner[1] + 1)
        if box is not None:
            left, top, right, bottom = (side * self.enlarge for side in box)
            area = (left, top, right, bottom)
            part = large.crop(area)
            large.paste(PIL.Image.blend(part, PIL.Image.new("RGB", part.size, TINT), 0.55), area)
        return large

    def pixel(self, place: Sequence[float]) -> tuple[int, int]:
        """Column and row of the model's images at a place of `shown`."""
        column, row = (min(int(x) // self.enlarge, side - 1) for x, side in zip(place, self.size, strict=True))
        return max(column, 0), max(row, 0)

    def part(self, name: str) -> Box:
        """A part by its name in `PARTS`."""
        width, height = self.size
        left, top, right, bottom = PARTS[name]
        return round(left * width), round(top * height), round(right * width), round(bottom * height)

    def _draw(
        self, given: dict[str, Any], seed: Any, settings: dict[str, Any]
    ) -> Iterator[tuple[PIL.Image.Image, str, str]]:
        seed, arguments = seed_of(seed), arguments_of(settings)
        count = arguments.setdefault("num_samples", 1)
        for frame in frames(self.pipeline, self._grid, generator=generators(seed, count), **given, **arguments):
            yield frame.shown, note_of(frame, seed), frame.replay

    def _grid(self, trajectories: Sequence[Trajectory]) -> PIL.Image.Image:
        """All images so far, masks grey."""
        ids = torch.tensor([row.ids for row in trajectories]).view(-1, *self.pipeline.image_shape)
        columns = math.ceil(math.sqrt(len(ids)))
        enlarge = max(1, SIDE // (columns * max(self.size)))
        return image_grid(self.pipeline.preview(ids), columns, enlarge, GAP if len(ids) > 1 else 0)


def box_of(corners: Sequence[tuple[int, int]]) -> Box:
    """Box with two pixels at opposite corners, both inside."""
    columns, rows = zip(*corners, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1
