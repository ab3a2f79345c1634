# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The text that each single token adds to a text, also where tokens are parts of a character."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


UNFINISHED = "\ufffd"  # a character of which bytes are missing


class TokenPieces:
    """Splits the text of ids into what each of them adds; special tokens have their names.

    Args:
        tokenizer: The tokenizer; without one, the piece of an id is its number.
        mask_token_id: The mask id, whose piece is None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, mask_token_id: int):
        self.tokenizer, self.mask_token_id = tokenizer, mask_token_id
        self._alone: dict[int, str] = {}
        self._behind: dict[tuple[int, tuple[int, ...]], list[str]] = {}

    def __call__(self, ids: Sequence[int]) -> list[str | None]:
        """Pieces of ids, None for masks; between masks they make up the decoded text."""
        if self.tokenizer is None:
            return [None if token == self.mask_token_id else f"{token} " for token in ids]
        pieces: list[str | None] = []
        while len(pieces) < len(ids):
            place = len(pieces)
            if ids[place] == self.mask_token_id:
                pieces.append(None)
                continue
            end = place + 1
            if self._is_part(ids[place]):
                while end < len(ids) and ids[end] != self.mask_token_id and self._is_part(ids[end]):
                    end += 1
            pieces += self._added(ids[place - 1] if place else None, tuple(ids[place:end]))
        return pieces

    def _is_part(self, token: int) -> bool:
        """Whether a token alone is no complete text, as a byte of a character."""
        return UNFINISHED in self._text_alone(token)

    def _text_alone(self, token: int) -> str:
        if token not in self._alone:
            self._alone[token] = self._decode([token])
        return self._alone[token]

    def _added(self, before: int | None, run: tuple[int, ...]) -> list[str]:
        """What each token of a run adds behind the token `before`, or at the beginning."""
        if before is None:
            return self._differences([], run)
        if (before, run) not in self._behind:
            self._behind[before, run] = self._differences([before], run)
        return self._behind[before, run]

    def _differences(self, lead: list[int], run: tuple[int, ...]) -> list[str]:
        """Differences of the texts of `lead` with more and more of a run, each token with the characters it ends."""
        start = self._decode(lead) if lead else ""
        shown, pieces = start, []
        for count in range(1, len(run) + 1):
            text = self._decode([*lead, *run[:count]])
            finished = text if count == len(run) else text.rstrip(UNFINISHED)
            if not finished.startswith(shown):  # a tokenizer that changes the text before
                finished = shown + ("" if count < len(run) else self._decode(list(run[-1:])))
            pieces.append(finished[len(shown) :])
            shown = finished
        return pieces

    def _decode(self, ids: list[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return self.tokenizer.decode(ids, **options)
