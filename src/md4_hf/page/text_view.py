# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts as HTML while they are unmasked, the replay of a call, and gaps made of selected text."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

from ..core.text_encoding import encode_texts
from ..data.token_pieces import TokenPieces
from ..evaluation.trajectories import Trajectory
from ..evaluation.trajectory_animation import MASK, hue_of
from ..evaluation.trajectory_page import label_of


# Colours follow the page's theme; `--hue`, of HSL, is set by each token. In OKLCH all hues are equally easy to read.
CSS = """
.md4-text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: 0.95rem; line-height: 1.65; padding: 0.75rem; margin-bottom: 0.6rem; min-height: 3rem;
  border: 1px solid var(--border-color-primary); border-radius: 0.5rem; background: var(--background-fill-primary); }
.md4-text .mask { opacity: 0.35; }
.md4-text .given { text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: 4px; }
.md4-text .drawn { color: oklch(50% 0.15 calc(var(--hue) + 20)); }
.dark .md4-text .drawn { color: oklch(80% 0.15 calc(var(--hue) + 20)); }
.md4-output .html-container { padding: 0 !important; }
.md4-note { opacity: 0.75; font-size: 0.85rem; min-height: 1.5rem; }
"""


class TextView:
    """HTML of rows of text: each token in the colour of its step or probability, what is given underlined.

    Args:
        pipeline: The pipeline that writes them.
        color_by: "step" or "confidence".
    """

    def __init__(self, pipeline: Any, color_by: str = "step"):
        self.pipeline, self.color_by = pipeline, color_by
        self.pieces = TokenPieces(pipeline.tokenizer, pipeline.mask_token_id)

    def __call__(self, trajectories: Sequence[Trajectory]) -> str:
        """HTML of all rows, one below the other."""
        return "\n".join(f'<div class="md4-text">{self._row(trajectory)}</div>' for trajectory in trajectories)

    def _row(self, trajectory: Trajectory) -> str:
        pieces = self.pieces(trajectory.ids[: trajectory.num_drawn])
        return "".join(self._token(trajectory, place, piece) for place, piece in enumerate(pieces))

    def _token(self, trajectory: Trajectory, place: int, piece: str | None) -> str:
        if piece is None:
            return f'<span class="mask">{MASK}</span>'
        found = trajectory.last_events.get(place)
        if found is None:
            return f'<span class="given">{html.escape(piece)}</span>'
        moment, event = found
        if event.probability is None:
            return html.escape(piece)
        num_steps = max(self.pipeline.num_timesteps, moment.step + 1)
        hue = hue_of(self.color_by, moment.step / max(num_steps - 1, 1), event.probability)
        title = f"{label_of(moment, num_steps)} · probability {event.probability:.3f}"
        return f'<span class="drawn" style="--hue:{hue:.0f}" title="{title}">{html.escape(piece)}</span>'


def framed(page: str) -> str:
    """HTML that shows a page of its own within another one; nothing for no page."""
    if not page:
        return ""
    name = 'class="md4-replay" title="Replay" style="width: 100%; height: 24rem; border: 0"'
    return f'<iframe {name} sandbox="allow-scripts" srcdoc="{html.escape(page)}"></iframe>'


def with_gap(text: str, start: int, end: int, tokenizer: Any) -> str:
    """Text in which the characters from `start` to `end` are a gap of as many tokens as they are now.

    Places are those of a browser, which counts characters beyond U+FFFF twice.

    Raises:
        ValueError: For a selection that is empty, or that is none of the text any more.
    """
    units = text.encode("utf-16-le")
    if not 0 <= start < end <= len(units) // 2:
        raise ValueError("Select some text first: the selection becomes a gap.")
    cuts = (0, 2 * start, 2 * end, len(units))
    before, selected, after = (units[a:b].decode("utf-16-le", "ignore") for a, b in itertools.pairwise(cuts))
    if before.endswith(" ") and _are_joined(tokenizer, before, selected):
        before, selected = before[:-1], " " + selected
    (ids,) = encode_texts(tokenizer, [selected], after=[before or None])
    return f"{before}<mask:{len(ids)}>{after}"


def _are_joined(tokenizer: Any, before: str, text: str) -> bool:
    """Whether a token reaches across the end of a text, as that of a word with the space before it."""
    lead, whole = encode_texts(tokenizer, [before, before + text])
    return whole[: len(lead)] != lead
