# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Animated GIF of the unmasking of texts or images."""

from __future__ import annotations

import colorsys
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from ..core.image_processing_md4 import MD4ImageProcessor
from ..data.token_pieces import TokenPieces
from ..utils.files import whole_file
from ..utils.image_grid import image_grid
from ..utils.text_rows import rows_of, visible, width_of
from .trajectories import Event, Moment, Trajectory, moments_of
from .trajectory_page import check_drawable


MAX_FRAMES, LAST_FRAME = 120, 2000  # pictures of an animation, and milliseconds for which the last one stays
NUM_TEXTS, NUM_IMAGES = 3, 64  # rows shown
COLUMNS, FONT_SIZE, MARGIN = 80, 15, 12  # characters of a line; pixels
PAPER, INK, QUIET = "#fcfcfd", "#1c2024", "#b4bac3"
PICTURE_SIZE, GAP = 384, 2  # pixels of the side of a grid of images, at least about, and between them
EARLY, LATE, UNSURE, SURE = 265, 25, 0, 130  # hues in degrees, as on the page
MASK = "░"


def write_animation(
    path: str | os.PathLike,
    pipeline: Any,
    trajectories: Sequence[Trajectory],
    color_by: str,
    seconds: float,
    max_samples: int | None,
    font: str | os.PathLike | None,
):
    """Write the GIF of rows of a pipeline. See `TrajectoryRecorder.to_gif`."""
    check_drawable(trajectories, color_by)
    if not 0 < seconds < math.inf:
        raise ValueError(f"`seconds` must be > 0, got {seconds}.")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples` must be >= 1, got {max_samples}.")
    is_image = len(trajectories[0].shape) > 1
    rows = trajectories[: max_samples or (NUM_IMAGES if is_image else NUM_TEXTS)]
    moments = chosen_moments(moments_of(rows))
    if is_image:
        frames = image_frames(pipeline.model.config, rows, moments)
    else:
        frames = TextFrames(pipeline, rows, color_by, font)(moments)
    first, *others = frames
    each = max(20, round(seconds * 1000 / max(len(others), 1)))
    with whole_file(path) as staging:
        durations = [each] * len(others) + [LAST_FRAME]
        first.save(staging, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def chosen_moments(moments: list[Moment]) -> list[Moment]:
    """At most `MAX_FRAMES` of the moments, evenly, the last one among them."""
    count = min(len(moments), MAX_FRAMES)
    return [moments[(number + 1) * len(moments) // count - 1] for number in range(count)]


def cells_at(trajectory: Trajectory, moments: Sequence[Moment]) -> Iterator[tuple[list[int], dict[int, Event]]]:
    """Ids of a row, and the last event of each place with one, at the start and after each of these moments."""
    ids, last, events = list(trajectory.start), {}, list(trajectory.events.items())
    yield list(ids), dict(last)
    for moment in moments:
        while events and events[0][0] <= moment:
            for event in events.pop(0)[1]:
                ids[event.position], last[event.position] = event.token, event
        yield list(ids), dict(last)


def image_frames(config: Any, rows: Sequence[Trajectory], moments: Sequence[Moment]) -> list[PIL.Image.Image]:
    """Grids of images in which masks are grey."""
    processor, columns = MD4ImageProcessor.for_config(config), math.ceil(math.sqrt(len(rows)))
    enlarge = max(1, PICTURE_SIZE // (columns * rows[0].shape[2]))
    frames = []
    for states in zip(*(cells_at(row, moments) for row in rows), strict=True):
        ids = torch.tensor([state for state, _ in states]).view(len(rows), *rows[0].shape)
        ids = ids.masked_fill(ids == rows[0].mask_token_id, processor.num_levels // 2)
        pictures: Any = processor.postprocess(ids)
        frames.append(image_grid(pictures, columns, enlarge, GAP))
    return frames


class TextFrames:
    """Pictures of texts one below the other, with the colours of the page; what is given is black.

    Args:
        pipeline: The pipeline that has written them.
        rows: The texts.
        color_by: "step" or "confidence".
        font: A file, or None for DejaVu Sans Mono.
    """

    def __init__(self, pipeline: Any, rows: Sequence[Trajectory], color_by: str, font: str | os.PathLike | None):
        self.rows, self.color_by = rows, color_by
        self.pieces = TokenPieces(pipeline.tokenizer, pipeline.mask_token_id)
        try:
            self.font = PIL.ImageFont.truetype(str(default_font() if font is None else font), FONT_SIZE)
        except OSError as error:
            raise ValueError(f"`font` must be a file of a TrueType font, got {font}: {error}.") from error
        self.advance, self.line = self.font.getlength("0"), round(FONT_SIZE * 1.4)

    def __call__(self, moments: Sequence[Moment]) -> list[PIL.Image.Image]:
        """Frames at the start and after each of these moments."""
        places = {}  # share of the unmasking that is over at the moment of each event
        for number, moment in enumerate(all_moments := moments_of(self.rows)):
            share = number / max(len(all_moments) - 1, 1)
            places |= {id(event): share for row in self.rows for event in row.events.get(moment, ())}
        frames = []
        for states in zip(*(cells_at(row, moments) for row in self.rows), strict=True):
            frames.append([self._cells(*pair, places) for pair in zip(self.rows, states, strict=True)])
        frames = [[*frame] for frame in zip(*map(settled, zip(*frames, strict=True)), strict=True)]
        heights = [
            max(rows_of("".join(text for text, _ in frame[number]), COLUMNS)[-1] + 1 for frame in frames)
            for number in range(len(self.rows))
        ]
        return [self._draw(frame, heights) for frame in frames]

    def _cells(
        self, trajectory: Trajectory, state: tuple[list[int], dict[int, Event]], places: dict[int, float]
    ) -> list[tuple[str, str]]:
        """Text and colour of each token."""
        ids, last = state
        cells = []
        for place, piece in enumerate(self.pieces(ids[: trajectory.num_drawn])):
            event = last.get(place)
            if piece is None:
                cells.append((MASK, QUIET))
            elif event is None or event.probability is None:
                cells.append((visible(piece), INK))
            else:
                cells.append((visible(piece), _color(hue_of(self.color_by, places[id(event)], event.probability))))
        return cells

    def _draw(self, texts: list[list[tuple[str, str]]], heights: list[int]) -> PIL.Image.Image:
        """Picture of texts, of which each has so many lines."""
        width = math.ceil(COLUMNS * self.advance) + 2 * MARGIN
        height = sum(heights) * self.line + (len(heights) + 1) * MARGIN
        page = PIL.Image.new("RGB", (width, height), PAPER)
        draw, top = PIL.ImageDraw.Draw(page), MARGIN
        for number, (cells, lines) in enumerate(zip(texts, heights, strict=True)):
            if number:
                draw.line((MARGIN, top - MARGIN / 2, width - MARGIN, top - MARGIN / 2), fill=QUIET)
            self._draw_text(draw, cells, top)
            top += lines * self.line + MARGIN
        return page

    def _draw_text(self, draw: PIL.ImageDraw.ImageDraw, cells: list[tuple[str, str]], top: int):
        """Draw characters in a grid, as on a terminal."""
        characters = [(character, color) for text, color in cells for character in text]
        rows = rows_of("".join(character for character, _ in characters), COLUMNS)
        row, column = 0, 0
        for (character, color), there in zip(characters, rows[:-1], strict=True):
            row, column = there, column if there == row else 0
            if character != "\n":
                place = (MARGIN + column * self.advance, top + row * self.line)
                draw.text(place, character, fill=color, font=self.font)
                column += width_of(character)


def settled(frames: Sequence[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """Frames of a text in which nothing moves: masks are as wide as what takes their places, lines end between words.

    A text whose tokens change again, or with signs of other widths, is left as it is.
    """
    last = [text for text, _ in frames[-1]]
    is_final = all(text in (MASK, end) for frame in frames for (text, _), end in zip(frame, last, strict=True))
    if not is_final or any(width_of(character) != 1 for character in "".join(last).replace("\n", "")):
        return list(frames)
    ends = ends_of_lines("".join(last))
    laid_out = []
    for frame in frames:
        cells, start = [], 0
        for (text, color), end in zip(frame, last, strict=True):
            shown = re.sub(r"\S", MASK, end) if text == MASK else end
            places = enumerate(shown, start=start)
            cells.append(("".join("\n" if place in ends else character for place, character in places), color))
            start += len(end)
        laid_out.append(cells)
    return laid_out


def ends_of_lines(text: str) -> set[int]:
    """Places of the spaces that become ends of lines, so that lines break between words where they can."""
    ends, begin, space = set(), 0, -1
    for place, character in enumerate(text):
        if character == "\n":
            begin, space = place + 1, -1
        if character == " ":
            space = place
        if place - begin >= COLUMNS and space >= begin:
            ends.add(space)
            begin = space + 1
    return ends


def default_font() -> Path:
    """File of DejaVu Sans Mono, which comes with matplotlib."""
    from matplotlib import get_data_path

    return Path(get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf")


def hue_of(color_by: str, share: float, probability: float) -> float:
    """Hue of a token in degrees, by the share of the unmasking that is over, or by its probability."""
    first, last, place = (EARLY, LATE, share) if color_by == "step" else (UNSURE, SURE, probability)
    return first + (last - first) * place


def _color(hue: float) -> str:
    """Dark colour of a hue in degrees."""
    parts = colorsys.hls_to_rgb(hue / 360, 0.36, 0.75)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
