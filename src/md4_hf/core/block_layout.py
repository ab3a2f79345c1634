# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Blocks of a block diffusion model: which token lies in which block, its time, and what it attends to.

A block model factorises log p(x) = sum over blocks b of log p(x^b | x^{<b}), and bounds each term by a masked diffusion
of the block (BD3-LM: Arriola et al., arXiv:2503.09573). Its loss runs once over [x_t ; x_0]: the noised blocks, each of
which sees itself and the clean blocks before it, and the clean ones, which see themselves and those before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def block_numbers(position_ids: Tensor, block_size: int, document_ids: Tensor | None = None) -> Tensor:
    """Number of the block of each token, ascending in a row: `(batch, length)` positions -> `(batch, length)`.

    Positions start at 0 in each document of a packed row, and blocks with them.
    """
    if document_ids is None:
        return position_ids // block_size
    starts = position_ids % block_size == 0  # also where a document begins
    return starts.long().cumsum(dim=-1) - 1


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Position of each token in its run of equal numbers, from 0: `(batch, length)` -> `(batch, length)`."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    starts = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def times_of_tokens(times: Tensor, blocks: Tensor) -> Tensor:
    """Time of each token `(batch, length)` from those of its row's blocks `(batch, blocks)`."""
    return times.gather(1, blocks.expand(len(times), -1))


@dataclass
class BlockLayout:
    """Blocks of the tokens that the network is given, `(batch or 1, length)` numbers, without or with x_0 behind x_t.

    Args:
        blocks: Numbers of the blocks, of x_t only.
        has_clean: Whether x_0 follows x_t.
        most: Upper bound on how many blocks there are in a row.
    """

    blocks: Tensor
    has_clean: bool
    most: int

    def doubled(self, x: Tensor) -> Tensor:
        """Entries `(batch, length, ...)` of tokens for x_t and x_0."""
        return torch.cat([x, x], dim=1) if self.has_clean else x

    def mask_function(self, batch: int) -> Callable[..., Tensor]:
        """Function of batch, head, query and key: whether the query attends to the key."""
        blocks = self.doubled(self.blocks).expand(batch, -1)
        is_clean = torch.ones_like(self.blocks[0])
        if self.has_clean:
            is_clean = torch.cat([torch.zeros_like(is_clean), is_clean])

        def attends(batch_idx, head_idx, q_idx, kv_idx):
            own, seen = blocks[batch_idx, q_idx], blocks[batch_idx, kv_idx]
            query, key = is_clean[q_idx], is_clean[kv_idx]
            return ((key == 1) & (seen < own + query)) | ((key == 0) & (query == 0) & (seen == own))

        return attends

    def begins(self) -> Tensor:
        """Booleans `(batch or 1, length)`: whether a token is the first of a block, or of those given."""
        return F.pad(self.blocks[:, 1:] != self.blocks[:, :-1], (1, 0), value=True)

    def doubled_or_none(self, x: Tensor | None) -> Tensor | None:
        """Entries for x_t and x_0, None for None."""
        return None if x is None else self.doubled(x)

    def block_times(self, timesteps: Tensor, tokens: Tensor, config) -> Tensor:
        """Times `(batch, blocks)` of the blocks of x_t, from those given: of the tokens, or one `(batch,)` of the rows.

        Of one for a row, blocks without a mask get 0: they are decided.
        """
        is_masked = tokens == config.mask_token_id
        local = self._local().expand(is_masked.shape)
        given = timesteps if timesteps.dim() == 2 else torch.where(is_masked, timesteps[:, None], 0.0)
        return given.new_zeros(len(is_masked), self.most).scatter_reduce(1, local, given, reduce="amax")

    def at_tokens(self, x: Tensor) -> Tensor:
        """Entries `(batch, blocks, width)` of the blocks for their tokens of x_t, `(batch, length, width)`."""
        local = self._local()
        if len(local) == 1:
            return x.index_select(1, local[0])
        return x.gather(1, local[..., None].expand(-1, -1, x.shape[-1]))

    def _local(self) -> Tensor:
        """Numbers of the blocks from 0."""
        return self.blocks - self.blocks[:, :1]
