# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Where generated texts end."""

from __future__ import annotations

import torch
from torch import Tensor


class EndOfText:
    """Rows that end early: at the first EOS token behind all that is given, once everything before it is decided.

    The rest of such a row is filled with EOS tokens.

    Args:
        eos_token_ids: Ids that end a row, of which the first one fills the rest.
        sample: `(rows, length)` ids at the start, with masks where tokens are to be drawn.
        attention_mask: `(rows, length)`, 0 for padding, or None without padding.
        mask_token_id: The mask id.
    """

    def __init__(self, eos_token_ids: list[int], sample: Tensor, attention_mask: Tensor | None, mask_token_id: int):
        self.eos_token_ids = torch.tensor(eos_token_ids, device=sample.device)
        self.mask_token_id = mask_token_id
        masked = sample == mask_token_id
        given = ~masked if attention_mask is None else ~masked & (attention_mask == 1)
        given_from_here_on = given.flip(1).cumsum(dim=1).flip(1) > 0
        self.is_free = masked & ~given_from_here_on

    def reached(self, sample: Tensor) -> Tensor:
        """Rows `(rows,)` of ids `(rows, length)` that have ended."""
        return self._ends(sample).any(dim=1)

    def filled(self, sample: Tensor) -> Tensor:
        """Ids `(rows, length)` with EOS tokens behind the end of the rows that have ended."""
        return torch.where(self._behind(sample), self.eos_token_ids[0], sample)

    def cut(self, sample: Tensor, sequences: list[Tensor]) -> list[Tensor]:
        """Sequences of the rows without what lies behind their ends."""
        behind = self._behind(sample).sum(dim=1).tolist()
        return [ids[: len(ids) - count] for ids, count in zip(sequences, behind, strict=True)]

    def _ends(self, sample: Tensor) -> Tensor:
        """Booleans `(rows, length)`: EOS tokens that are drawn, with no mask before them."""
        is_decided = (sample == self.mask_token_id).cumsum(dim=1) == 0
        return torch.isin(sample, self.eos_token_ids) & self.is_free & is_decided

    def _behind(self, sample: Tensor) -> Tensor:
        """Booleans `(rows, length)`: positions behind the first end of their row."""
        ends = self._ends(sample).long()
        return self.is_free & (ends.cumsum(dim=1) > ends)
