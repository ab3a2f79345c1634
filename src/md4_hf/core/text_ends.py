# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Where generated texts end: at a token, or with a string."""

from __future__ import annotations

import bisect

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .text_encoding import decode_continuation


class StopStrings:
    """Finds the token with which a text first has one of some strings.

    Args:
        strings: The strings, none of which is empty.
        tokenizer: For the texts; special tokens have their names in them.
    """

    def __init__(self, strings: list[str], tokenizer: PreTrainedTokenizerBase):
        self.strings, self.tokenizer = strings, tokenizer
        self._found: dict[int, tuple[list[int], int | None]] = {}  # of each row, for the ids it had

    def place(self, row: int, ids: list[int]) -> int | None:
        """Number of the token, from 0, of the new ids of a row that completes a string; None if there is none."""
        seen, place = self._found.get(row, ([], None))
        if ids != seen:
            place = None
            if ids and self._is_in(ids):
                place = bisect.bisect_left(range(1, len(ids)), True, key=lambda count: self._is_in(ids[:count]))
            self._found[row] = (ids, place)
        return place

    def _is_in(self, ids: list[int]) -> bool:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text = decode_continuation(self.tokenizer, ids, **options)
        return any(string in text for string in self.strings)


class EndOfText:
    """Rows that end early, behind all that is given: at the first EOS token, or with the first stop string.

    A row has ended once everything before its end is decided. The rest of it is filled with padding.

    Args:
        sample: `(rows, length)` ids at the start, with masks where tokens are to be drawn.
        attention_mask: `(rows, length)`, 0 for padding, or None without padding.
        mask_token_id: The mask id.
        padding: Id behind the ends.
        eos_token_ids: Ids that end a row.
        stop_strings: Strings that end a row.
    """

    def __init__(
        self,
        sample: Tensor,
        attention_mask: Tensor | None,
        mask_token_id: int,
        padding: int,
        eos_token_ids: list[int],
        stop_strings: StopStrings | None = None,
    ):
        self.eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.long, device=sample.device)
        self.mask_token_id, self.padding, self.stop_strings = mask_token_id, padding, stop_strings
        masked = sample == mask_token_id
        given = ~masked if attention_mask is None else ~masked & (attention_mask == 1)
        given_from_here_on = given.flip(1).cumsum(dim=1).flip(1) > 0
        self.is_free = masked & ~given_from_here_on

    def reached(self, sample: Tensor) -> Tensor:
        """Rows `(rows,)` of ids `(rows, length)` that have ended."""
        return self._ends(sample).any(dim=1)

    def filled(self, sample: Tensor) -> Tensor:
        """Ids `(rows, length)` with padding behind the end of the rows that have ended."""
        return sample.masked_fill(self._behind(sample), self.padding)

    def cut(self, sample: Tensor, sequences: list[Tensor]) -> list[Tensor]:
        """Sequences of the rows without what lies behind their ends."""
        counts = self.num_behind(sample).tolist()
        return [ids[: len(ids) - count] for ids, count in zip(sequences, counts, strict=True)]

    def num_behind(self, sample: Tensor) -> Tensor:
        """Number of ids behind the end of each row, `(rows,)`."""
        return self._behind(sample).sum(dim=1)

    def _ends(self, sample: Tensor) -> Tensor:
        """Booleans `(rows, length)`: where rows may end, with no mask before."""
        is_decided = self.is_free & ((sample == self.mask_token_id).cumsum(dim=1) == 0)
        ends = torch.isin(sample, self.eos_token_ids) & is_decided
        return ends if self.stop_strings is None else ends | self._string_ends(sample, is_decided, self.stop_strings)

    def _string_ends(self, sample: Tensor, is_decided: Tensor, stop_strings: StopStrings) -> Tensor:
        """Booleans `(rows, length)`: tokens with which the new text of a row first has a stop string."""
        ends = torch.zeros_like(is_decided)
        for row, (ids, decided) in enumerate(zip(sample.cpu(), is_decided.cpu(), strict=True)):
            place = stop_strings.place(row, ids[decided].tolist())
            if place is not None:
                ends[row, decided.nonzero()[place]] = True
        return ends

    def _behind(self, sample: Tensor) -> Tensor:
        """Booleans `(rows, length)`: positions behind the first end of their row."""
        ends = self._ends(sample).long()
        return self.is_free & (ends.cumsum(dim=1) > ends)
