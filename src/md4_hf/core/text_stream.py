# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text of a row for a streamer of transformers, as it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor


class TextStream:
    """Gives a streamer the prompt first, and then the tokens of each finished block.

    A streamer such as transformers' `TextStreamer` has `put(ids)` and `end()`. One that also has `put_draft(ids)`, such
    as `TextDiffusionStreamer`, gets the ids of the block that is being written after each step, masks among them.

    Args:
        streamer: The streamer.
        sample: `(1, length)` ids at the start; the prompt is what stands before the first mask.
        mask_token_id: The mask id.
    """

    def __init__(self, streamer: Any, sample: Tensor, mask_token_id: int):
        self.streamer, self.mask_token_id = streamer, mask_token_id
        self.takes_drafts = callable(getattr(streamer, "put_draft", None))
        self.num_put = self._num_decided(sample)
        streamer.put(sample[:, : self.num_put].cpu())

    def draft(self, sample: Tensor, end: int | None):
        """Give the ids up to a column, of those that are not final yet."""
        if self.takes_drafts:
            self.streamer.put_draft(sample[0, self.num_put : end].cpu())

    def put(self, sample: Tensor, end: int):
        """Give the new ids of a sample `(1, length)` that have no mask before them, up to a column."""
        last = min(self._num_decided(sample), end)
        if last > self.num_put:
            self.streamer.put(sample[0, self.num_put : last].cpu())
            self.num_put = last

    def _num_decided(self, sample: Tensor) -> int:
        """Number of ids before the first mask."""
        return int(((sample[0] == self.mask_token_id).cumsum(dim=0) == 0).sum())


@contextlib.contextmanager
def streaming(streamer: Any, sample: Tensor, mask_token_id: int) -> Iterator[TextStream | None]:
    """Context of a call with a streamer, or with None, which is told the end whatever happens."""
    if streamer is None:
        yield None
        return
    try:
        yield TextStream(streamer, sample, mask_token_id)
    finally:
        streamer.end()


def check_streamer(streamer: Any, num_rows: int):
    """Raise a ValueError unless this is a streamer or None, and there is one row for it."""
    if streamer is None:
        return
    if not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise ValueError(f"`streamer` must have methods `put` and `end`, got {type(streamer).__name__}.")
    if num_rows != 1:
        raise ValueError(f"`streamer` must be None for more than one row, got {num_rows} rows.")
