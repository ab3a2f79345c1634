# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The text of each token of a trajectory that is shown while it is written: of all of it, or of an answer alone."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ..data.token_pieces import TokenPieces
from .trajectories import Trajectory


class ShownTexts:
    """Texts of the tokens that are shown of a trajectory; special tokens have none.

    Args:
        tokenizer: The tokenizer; None shows ids.
        mask_token_id: The mask id.
        is_answer: Whether the prompt, blocks to come, and what follows an EOS token, are left out.
        end_mark: Text with which an answer ends; it is not shown, nor is what follows.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        mask_token_id: int,
        is_answer: bool = False,
        end_mark: str = "",
    ):
        self.is_answer, self.end_mark = is_answer, end_mark
        self._pieces = TokenPieces(tokenizer, mask_token_id)
        self._special = set(getattr(tokenizer, "all_special_ids", ()))
        self._eos = getattr(tokenizer, "eos_token_id", None)

    def __call__(self, trajectory: Trajectory) -> tuple[int, list[str | None]]:
        """Place of the first token that is shown, and the text that each one adds from there on, None for a mask."""
        ids = trajectory.ids[: trajectory.num_drawn]
        if not self.is_answer:
            return 0, self._without_special(ids, self._pieces(ids))
        ids, start, mask = ids[: trajectory.end], trajectory.start, trajectory.mask_token_id
        pieces = self._pieces(ids)
        first = start.index(mask) if mask in start else len(start)
        end = self._end(ids, pieces, first)
        return first, self._without_special(ids[first:end], self._without_mark(pieces[first:end]))

    def _without_special(self, ids: list[int], pieces: list[str | None]) -> list[str | None]:
        pairs = zip(ids, pieces, strict=True)
        return [piece and ("" if token in self._special else piece) for token, piece in pairs]

    def _end(self, ids: list[int], pieces: list[str | None], first: int) -> int:
        """Place of the first EOS token, or behind the end mark, with no mask before; else the length."""
        text = ""
        for place in range(first, len(ids)):
            piece = pieces[place]
            if piece is None:
                break
            if ids[place] == self._eos:
                return place
            text += piece
            if self.end_mark and self.end_mark in text:
                return place + 1
        return len(ids)

    def _without_mark(self, pieces: list[str | None]) -> list[str | None]:
        """Pieces without the end mark, if no mask is left."""
        text = "".join(piece or "" for piece in pieces)
        if not self.end_mark or self.end_mark not in text or None in pieces:
            return pieces
        room, kept = text.index(self.end_mark), []
        for piece in pieces:
            kept.append(piece[: max(room, 0)])
            room -= len(piece)
        return kept
