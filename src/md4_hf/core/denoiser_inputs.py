# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Inputs of the denoiser for the rows of a run: whole sequences at once, or block by block from the left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .guidance import Guidance
from .remasking import time_of_alpha
from .schedules import MaskingSchedule


class DenoiserInputs:
    """Inputs of the denoiser besides ids and times, one row each, of a run over whole sequences.

    Args:
        attention_mask: `(copies * rows, length)`, 1 for tokens and 0 for padding, or None without padding.
        guidance: Guidance of the call, which says how many copies of each row there are, and their classes.
        mask_token_id: The mask id.
    """

    first_step = 0  # number of steps of the call before those of the run
    end: int | None = None  # behind the last column of the run; None for the end of the rows

    def __init__(self, attention_mask: Tensor | None, guidance: Guidance, mask_token_id: int):
        self.attention_mask, self.guidance, self.mask_token_id = attention_mask, guidance, mask_token_id

    def of(self, rows: Tensor) -> dict[str, Any]:
        """Keyword arguments for some rows, of all copies."""
        inputs = {"attention_mask": self.attention_mask, "class_labels": self.guidance.class_labels}
        return {name: None if x is None else x[rows] for name, x in inputs.items()}

    def seen(self, sample: Tensor, candidates: Tensor, times: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and candidates `(n, ...)` in the columns that the denoiser is given, and the times `(n,)` it is told.

        `sample`, `candidates` and `times` are those of the run, for the rows `(n,)`.
        """
        return sample, candidates, times

    def told(self, times: Tensor, rows: Tensor) -> Tensor:
        """Times that the denoiser is told, `(n,)` or of each token `(n, tokens)`, of `times` `(n,)` of the rows."""
        return times

    def ids_at(self, sample: Tensor, rows: Tensor, selected: Tensor) -> Tensor:
        """Ids of the row of each selected position, in order, with masks for padding; `(selected, tokens)`.

        `sample` and `selected` are ids and booleans `(n, ...)` in the columns of the denoiser, of the rows `(n,)`.
        """
        ids = sample.flatten(1)
        if self.attention_mask is not None:
            is_padding = self.attention_mask[rows, : ids.shape[1]] == 0
            ids = ids.masked_fill(is_padding, self.mask_token_id)
        return ids[selected.flatten(1).nonzero()[:, 0].to(ids.device)]

    def columns_seen(self, rows: Tensor) -> Tensor | None:
        """Columns `(n, tokens)` of the ids that the denoiser is given, of the rows `(n,)`; None for all of them."""
        return None

    def part(self, whole: Tensor) -> Tensor:
        """Columns of the run, of whole sequences `(rows, ...)`."""
        return whole

    def whole(self, part: Tensor, rest: Tensor | None = None) -> Tensor:
        """Sequences `(rows, ...)` with these values in the columns of the run, and the ids, or `rest`, elsewhere."""
        return part

    def begins(self, rows: Tensor) -> Tensor:
        """First columns `(n,)` of the run, of the rows `(n,)`, on the CPU."""
        return torch.zeros(len(rows), dtype=torch.long)

    def replace(self, whole: Tensor):
        """Continue with other sequences `(rows, ...)`."""


class BlockInputs(DenoiserInputs):
    """Inputs for runs over one block of columns after the other; subclasses say what the denoiser sees of the rest.

    Args:
        attention_mask, guidance, mask_token_id: As in `DenoiserInputs`.
        block_length: Columns of a block.
        is_aligned: Whether blocks begin at multiples of their length only, as those of a block model do.
    """

    def __init__(
        self,
        attention_mask: Tensor | None,
        guidance: Guidance,
        mask_token_id: int,
        block_length: int,
        is_aligned: bool = False,
    ):
        super().__init__(attention_mask, guidance, mask_token_id)
        self.block_length, self.is_aligned = block_length, is_aligned
        self.sample: Tensor  # ids `(rows, length)` when the block begins
        self.columns: Tensor  # those of the block, `(rows, columns)`, of which those >= length do not exist

    def starts(self, masked: Tensor) -> Tensor:
        """Columns `(rows,)` at which the first blocks begin, from where the rows are masked `(rows, length)`."""
        first = self.first_masked(masked)
        return first - first % self.block_length if self.is_aligned else first

    def first_masked(self, masked: Tensor) -> Tensor:
        """First column of each row `(rows,)` that has to be filled, from where the rows are masked `(rows, length)`."""
        return torch.where(masked.any(dim=1), masked.int().argmax(dim=1), masked.shape[1])

    def begin(self, sample: Tensor, starts: Tensor):
        """Go to the blocks that begin at these columns `(rows,)`; all tokens before them are decided."""
        self.sample = sample
        size = min(self.block_length, sample.shape[1] - int(starts.min()))
        self.columns = starts[:, None] + torch.arange(size, device=sample.device)
        self.end = min(int(starts.max()) + size, sample.shape[1])

    def part(self, whole: Tensor) -> Tensor:
        """Columns of the block, of sequences `(rows, length)`; any token but the mask where there are none."""
        filler = 0 if self.mask_token_id != 0 else 1
        padded = torch.nn.functional.pad(whole, (0, 1), value=filler)
        return padded.gather(1, self.columns.clamp(max=whole.shape[1]))

    def whole(self, part: Tensor, rest: Tensor | None = None) -> Tensor:
        """Sequences `(rows, length)` with these values in the columns of the block, see `DenoiserInputs.whole`."""
        return _placed(part, self.columns, self.sample if rest is None else rest)

    def begins(self, rows: Tensor) -> Tensor:
        """First columns of the blocks, see `DenoiserInputs.begins`."""
        return self.columns[:, 0].cpu()[rows]

    def replace(self, whole: Tensor):
        """Continue with other sequences `(rows, length)`."""
        self.sample = whole


class WholeBlockInputs(BlockInputs):
    """Inputs of a denoiser that sees whole sequences, with the masks of later blocks (LLaDA, arXiv:2502.09992).

    The blocks of each row begin at its own first mask. A denoiser that sees the time is told the one at which its
    schedule masks the share of the row's masks that are left: those expected in the block, and all of later blocks. A
    block model is told the time of the block, and 0 of all before it, masked ones of a copy without prompt too.

    Args:
        attention_mask, guidance, mask_token_id, block_length, is_aligned: As in `BlockInputs`.
        schedule: Masking schedule of a denoiser that sees the time, else None.
    """

    def __init__(
        self,
        attention_mask: Tensor | None,
        guidance: Guidance,
        mask_token_id: int,
        block_length: int,
        schedule: MaskingSchedule | None,
        is_aligned: bool = False,
    ):
        super().__init__(attention_mask, guidance, mask_token_id, block_length, is_aligned)
        self.schedule = schedule
        self._num_masked: Tensor | None = None  # `(rows,)` when the first block begins

    def begin(self, sample: Tensor, starts: Tensor):
        """Go to these blocks, see `BlockInputs.begin`."""
        super().begin(sample, starts)
        masked = (sample == self.mask_token_id).sum(dim=1)
        self._num_masked = masked if self._num_masked is None else self._num_masked
        self._in_block = (self.part(sample) == self.mask_token_id).sum(dim=1)
        self._later = masked - self._in_block

    def told(self, times: Tensor, rows: Tensor) -> Tensor:
        """Times of the tokens of a block model that sees them, see `DenoiserInputs.told`."""
        if self.schedule is None or not self.is_aligned:
            return times
        columns = self.columns[rows]
        return _placed(times[:, None].expand(columns.shape), columns, times.new_zeros(self.sample[rows].shape))

    def seen(self, sample: Tensor, candidates: Tensor, times: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whole sequences, the candidates in them, and the times, see `DenoiserInputs.seen`."""
        columns, whole = self.columns[rows], self.sample[rows]
        where = _placed(candidates, columns, torch.zeros_like(whole, dtype=torch.bool))
        return _placed(sample, columns, whole), where, self._times(times, rows)

    def _times(self, times: Tensor, rows: Tensor) -> Tensor:
        if self.schedule is None or self.is_aligned:
            return times
        rows = rows.cpu()  # mps has no float64
        in_block, later, num_masked = (x.cpu()[rows] for x in (self._in_block, self._later, self._num_masked))
        masked_share = 1.0 - self.schedule.alpha(times.cpu().double())
        share = (in_block * masked_share + later) / num_masked.clamp(min=1)
        return time_of_alpha(self.schedule, 1.0 - share).to(times)


class CachedBlockInputs(BlockInputs):
    """Inputs of a denoiser that sees the block, and keys and values of the `window` columns before it.

    The blocks of a block model begin where each row needs them: rows have keys of their own, as many as they have
    decided tokens, with padding before them. Blocks of other models, for which this is an approximation, all begin at
    the first mask of any row. Rows without a mask are not taken in.

    Args:
        attention_mask, guidance, mask_token_id, block_length, is_aligned: As in `BlockInputs`.
        model: The denoiser.
        window: Number of columns before a block that it sees.
    """

    def __init__(
        self,
        attention_mask: Tensor | None,
        guidance: Guidance,
        mask_token_id: int,
        block_length: int,
        model,
        window: int,
        is_aligned: bool = False,
    ):
        super().__init__(attention_mask, guidance, mask_token_id, block_length, is_aligned)
        self.model, self.window = model, window
        self._taken_in: Tensor | None = None  # `(rows,)`: columns before these are in the cache, or have left it
        self._cached: list[tuple[Tensor, Tensor]] = []  # keys and values of the rows in it, one pair per layer
        self._has_padding = False  # whether any row's tokens or keys are to be hidden
        self._is_cached: Tensor  # `(rows in the cache, columns)` booleans: no padding
        self._place: Tensor  # `(copies * rows,)` of each row in the cache

    def first_masked(self, masked: Tensor) -> Tensor:
        """First masked column of each row, or of any, see `BlockInputs.first_masked`."""
        first = super().first_masked(masked)
        return first if self.is_aligned else first.min().expand(len(first))

    def begin(self, sample: Tensor, starts: Tensor):
        """Go to these blocks, see `BlockInputs.begin`, with the keys and values of what lies before them."""
        super().begin(sample, starts)
        columns, length = self.columns, sample.shape[1]
        # Of equal rows nothing has to be hidden.
        is_ragged = self.is_aligned and not ((columns < length).all() and (starts == starts[0]).all())
        self._has_padding = self.attention_mask is not None or bool(is_ragged)
        rows = (sample == self.mask_token_id).any(dim=1).nonzero().squeeze(1)
        firsts = (starts - self.window).clamp(min=0) if self._taken_in is None else self._taken_in
        self._take_in(sample, firsts, starts, rows)
        self._taken_in, self.columns = starts, columns

    def columns_seen(self, rows: Tensor) -> Tensor:
        """Columns of the block, see `DenoiserInputs.columns_seen`."""
        return self.columns[rows]

    def of(self, rows: Tensor) -> dict[str, Any]:
        """Keyword arguments for some rows, with a cache of their own, which the model may extend."""
        inputs = super().of(rows)
        length = self.sample.shape[1]
        columns = self.columns[rows % len(self.columns)]
        is_there = columns < length
        columns = columns.clamp(max=length - 1)
        if self.attention_mask is not None:
            is_there = is_there & (self.attention_mask[rows].gather(1, columns) == 1)
        past = []
        if self._cached:
            places = self._place[rows]
            is_all = len(rows) == len(self._is_cached)  # in ascending order: no copy is needed
            past = [tuple(x if is_all else x[places.to(x.device)] for x in pair) for pair in self._cached]
            is_there = torch.cat([self._is_cached[places], is_there], dim=1)
        inputs["past_key_values"] = DynamicCache(past)
        inputs["attention_mask"] = is_there.long() if self._has_padding else None
        inputs["position_ids"] = columns if self.is_aligned else columns[:1]
        return inputs

    def ids_at(self, sample: Tensor, rows: Tensor, selected: Tensor) -> Tensor:
        """Ids of the row of each selected position of the block, with those before the block."""
        columns = self.columns[rows]
        ids = _placed(sample, columns, self.sample[rows])[:, : self.end]
        is_behind = torch.arange(ids.shape[1], device=ids.device) > columns[:, -1:]
        return super().ids_at(ids.masked_fill(is_behind, self.mask_token_id), rows, selected)

    def _take_in(self, sample: Tensor, firsts: Tensor, ends: Tensor, rows: Tensor):
        """Add the keys and values of decided columns, from `firsts` to `ends` `(rows,)`, of these rows `(n,)`.

        All other rows leave the cache, and so do columns that leave the window.
        """
        num_new = (ends - firsts)[rows]
        width = int(num_new.max()) if len(rows) else 0
        if width == 0:
            return
        fed, new = rows[num_new > 0], torch.arange(width, device=rows.device)
        self.columns = firsts[:, None] + new
        copies, columns = self._copies(fed, len(sample)), self.columns[fed]
        inputs = self.of(copies)
        is_new = self.guidance.copies(new < num_new[num_new > 0, None])
        if self._has_padding:
            inputs["attention_mask"][:, -width:] *= is_new
        ids = self.guidance.ids(self.part(sample)[fed], fed, columns)
        nowhere, decided = torch.zeros_like(ids, dtype=torch.bool), torch.zeros(len(ids), device=ids.device)
        self.model(input_ids=ids, timesteps=decided, position_mask=nowhere, **inputs)
        is_cached = torch.cat([self._is_cached[self._place[copies]], is_new], dim=1) if self._cached else is_new
        self._keep(inputs["past_key_values"].layers, is_cached, copies, self._copies(rows, len(sample)), len(sample))

    def _keep(self, layers: list, is_cached: Tensor, fed: Tensor, kept: Tensor, num_rows: int):
        """Keep the keys and values of some rows, padding first, within the window; `kept` has all rows of the cache."""
        order = is_cached.long().argsort(dim=1, stable=True)
        is_moved = not is_cached[:, -1].all() or not torch.equal(is_cached.gather(1, order), is_cached)
        self._place = torch.zeros(self.guidance.num_copies * num_rows, dtype=torch.long, device=kept.device)
        self._place[kept] = torch.arange(len(kept), device=kept.device)

        def of_cache(x: Tensor, axis: int) -> Tensor:
            if is_moved:
                index = order.to(x.device).view(len(order), *[1] * (axis - 1), -1, *[1] * (x.dim() - axis - 1))
                x = x.gather(axis, index.expand(x.shape))
            x = x.narrow(axis, max(x.shape[axis] - self.window, 0), min(x.shape[axis], self.window))
            return _in_rows(x, self._place[fed], len(kept))

        self._cached = [(of_cache(layer.keys, 2), of_cache(layer.values, 2)) for layer in layers]
        self._is_cached = of_cache(is_cached, 1)

    def _copies(self, rows: Tensor, num_rows: int) -> Tensor:
        """Numbers of all copies of some rows."""
        return torch.cat([rows + copy * num_rows for copy in range(self.guidance.num_copies)])


def _placed(part: Tensor, columns: Tensor, whole: Tensor) -> Tensor:
    """Copy of `whole` `(rows, length)` with `part` at the columns `(rows, columns)` that exist in it."""
    length = whole.shape[1]
    padded = torch.nn.functional.pad(whole, (0, 1))
    return padded.scatter(1, columns.clamp(max=length), part)[:, :length]


def _in_rows(x: Tensor, rows: Tensor, total: int) -> Tensor:
    """Tensor of `total` rows with `x` `(n, ...)` at the rows `(n,)`, ascending, and zeros at the others."""
    if len(x) == total:
        return x
    return x.new_zeros(total, *x.shape[1:]).index_copy(0, rows.to(x.device), x)


def block_length_of(config: Any, given: int | None) -> int | None:
    """Block length of a call: that of a block model, or what is given; None for whole sequences."""
    own = getattr(config, "block_size", None)
    if own is None or own == config.max_position_embeddings:
        return given
    if given not in (None, own):
        raise ValueError(f"`block_length` must be the model's own, {own}, or left out, got {given!r}.")
    return own


def make_inputs(
    model: Any,
    guidance: Guidance,
    attention_mask: Tensor | None,
    block_length: int | None,
    use_cache: bool,
    schedule: MaskingSchedule,
) -> DenoiserInputs:
    """Inputs of a denoiser for the rows of a call, whole or in blocks.

    Args:
        model: The denoiser.
        guidance: Guidance of the call.
        attention_mask: `(rows, length)`, 1 for tokens and 0 for padding, or None without padding.
        block_length: Tokens of a block, or None.
        use_cache: Whether blocks see the tokens before them by cached keys and values.
        schedule: Masking schedule of the scheduler.
    """
    attention_mask = None if attention_mask is None else guidance.copies(attention_mask)
    config = model.config
    common = (attention_mask, guidance, config.mask_token_id)
    if block_length is None:
        return DenoiserInputs(*common)
    is_block_model = getattr(config, "block_size", None) is not None
    if use_cache:
        window = config.max_position_embeddings - block_length
        if is_block_model:  # whole blocks
            window -= window % block_length
        return CachedBlockInputs(*common, block_length, model, window, is_block_model)
    sees_time = getattr(config, "time_conditioning", True)
    return WholeBlockInputs(*common, block_length, schedule if sees_time else None, is_block_model)
