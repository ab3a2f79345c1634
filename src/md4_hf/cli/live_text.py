# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text on a terminal that is redrawn while it is unmasked, with its masks, and with colours if they are asked for."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

from transformers import PreTrainedTokenizerBase

from ..data.token_pieces import UNFINISHED
from ..evaluation.shown_texts import ShownTexts
from ..evaluation.trajectories import Trajectory
from ..utils.text_rows import len_of_rows, num_rows, start_of_last_row, visible


CLEAR_BELOW, UP, DIM, UNDERLINED, NORMAL = "\x1b[J", "\x1b[{}A", "\x1b[2m", "\x1b[4m", "\x1b[0m"
COLOR = "\x1b[38;5;{}m"  # one of 256, which terminals have had for decades, over ssh too
# From early to late and from unsure to sure; each is readable on dark and on light.
RAMPS = {"step": (63, 69, 38, 36, 71, 107, 142, 172, 166), "confidence": (160, 166, 172, 142, 107, 71)}
MASK, PLAIN_MASK = "░", "_"  # the latter where the terminal's encoding lacks the former
SECONDS_BETWEEN = 1 / 30  # of two drawings, at least


class Cell(NamedTuple):
    """A token on the terminal: its text, the sequence that begins its style, and whether it is final."""

    text: str
    style: str = ""
    is_final: bool = True


class LiveText:
    """Shows the trajectory of a text on a terminal, one text after the other.

    Rows of the terminal that are full and final stay; all below is drawn anew. Until a text is finished, it is shown as
    far as it fits on the screen.

    Args:
        tokenizer: The tokenizer; None shows ids.
        stream: The terminal.
        color_by: "step" or "confidence" for coloured tokens, or None: what may still change is dim.
        num_steps: Function that returns the number of steps of the call.
        is_answer, end_mark: See `ShownTexts`.
        size: Function that returns the terminal's columns and lines.
        seconds_between: Time between two drawings, at least.
        seconds: Time of a text, at least, which its steps share; None does not wait.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        stream: TextIO,
        color_by: str | None = None,
        num_steps: Callable[[], int] = lambda: 1,
        is_answer: bool = False,
        end_mark: str = "",
        size: Callable[[], tuple[int, int]] = shutil.get_terminal_size,
        seconds_between: float = SECONDS_BETWEEN,
        seconds: float | None = None,
    ):
        self.tokenizer, self.stream, self.num_steps, self.size = tokenizer, stream, num_steps, size
        self.color_by = None if os.environ.get("NO_COLOR") else color_by  # no-color.org
        self.is_answer, self.end_mark, self.seconds_between = is_answer, end_mark, seconds_between
        self.seconds = seconds or 0.0
        encoding = getattr(stream, "encoding", None) or "ascii"
        self.mask = MASK if MASK.encode(encoding, "ignore") else PLAIN_MASK
        self._texts: ShownTexts | None = None
        self._begin()

    def _begin(self):
        self._num_kept = 0  # characters that are drawn no more
        self._num_rows = 0  # rows of the terminal that are drawn anew, above the cursor's
        self._drawn_at = -float("inf")
        self._last: Trajectory | None = None

    def show(self, trajectory: Trajectory):
        """Show a text as it is now, unless the last drawing was a moment ago."""
        self._last = trajectory
        time.sleep(max(self._drawn_at + self.seconds / max(self.num_steps(), 1) - time.monotonic(), 0.0))
        if time.monotonic() - self._drawn_at >= self.seconds_between:
            self._draw(self._cells(trajectory))
            self._drawn_at = time.monotonic()

    def finish(self, text: str | None = None):
        """Show the text in its final form, or another one in its place, and end the line."""
        if text is not None and self.color_by is None:
            self._draw([Cell(visible(text))])
        elif self._last is not None:
            self._draw([cell._replace(is_final=True) for cell in self._cells(self._last)])
        self.stream.write("\n")
        self.stream.flush()
        self._begin()

    def stop(self):
        """Leave of a text that will not be finished what is final, without its masks."""
        if self._last is not None:
            self._draw([cell for cell in self._cells(self._last) if cell.is_final])
        self._begin()

    def _cells(self, trajectory: Trajectory) -> list[Cell]:
        """The tokens that are shown."""
        if self._texts is None:
            mask_token_id = trajectory.mask_token_id
            self._texts = ShownTexts(self.tokenizer, mask_token_id, self.is_answer, self.end_mark)
        first, texts = self._texts(trajectory)
        num_final = min(trajectory.num_final - first, len(texts))
        while num_final > 0 and (texts[num_final - 1] is None or UNFINISHED in texts[num_final - 1]):
            num_final -= 1  # of which more bytes are to come
        cells = []
        for number, text in enumerate(texts):
            is_final = number < num_final or trajectory.is_finished
            shown = self.mask if text is None else visible(text)
            cells.append(Cell(shown, self._style(trajectory, first + number, is_final), is_final))
        return cells

    def _style(self, trajectory: Trajectory, place: int, is_final: bool) -> str:
        """Sequence that begins the style of a token."""
        if self.color_by is None:
            return "" if is_final else DIM
        if trajectory.start[place] != trajectory.mask_token_id:
            return UNDERLINED
        if place not in trajectory.last_events:
            return DIM
        moment, event = trajectory.last_events[place]
        if event.probability is None:
            return DIM
        share = moment.step / max(self.num_steps(), 1) if self.color_by == "step" else event.probability
        ramp = RAMPS[self.color_by]
        return COLOR.format(ramp[min(int(share * len(ramp)), len(ramp) - 1)])

    def _draw(self, cells: list[Cell]):
        """Draw what does not stay yet: as much as fits on the screen, behind what is final."""
        columns, lines = self.size()
        count = next((number for number, cell in enumerate(cells) if not cell.is_final), len(cells))
        final = "".join(text for text, _, _ in cells[:count])[self._num_kept :]
        draft = "".join(text for text, _, _ in cells[count:])
        room = len(final) + len(draft)
        if draft:
            room = max(len_of_rows(final + draft, columns, max(lines - 1, 1)), len(final))
        back = (UP.format(self._num_rows) if self._num_rows else "") + "\r" + CLEAR_BELOW
        self.stream.write(back + styled(cells, self._num_kept, room))
        self.stream.flush()
        kept = start_of_last_row(final, columns)
        self._num_kept += kept
        self._num_rows = num_rows((final + draft)[kept:room], columns)


def styled(cells: list[Cell], start: int, count: int) -> str:
    """Characters of cells from `start` on, at most `count`, with the sequences of their styles."""
    parts, style = [], ""
    for text, wanted, _ in cells:
        part = text[start : start + count] if start < len(text) else ""
        start = max(start - len(text), 0)
        count -= len(part)
        if part:
            parts += [NORMAL if style else "", wanted] if wanted != style else []
            parts.append(part)
            style = wanted
    return "".join([*parts, NORMAL if style else ""])


def watches(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can be redrawn."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
