# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The head: hidden states of rows to logits, or at once to the terms of the NELBO."""

import torch
from torch import Tensor, nn

from .linear_nelbo import linear_nelbo
from .masked_diffusion import cross_entropy_nats, genmd4_cross_entropy_nats


class MD4Head(nn.Linear):
    """Hidden states to logits, or at once to the loss, without the logits of all positions in memory."""

    @classmethod
    def with_parameters_of(cls, linear: nn.Linear) -> "MD4Head":
        """Head that has the very parameters of a linear layer."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        head._is_hf_initialized = getattr(linear, "_is_hf_initialized", False)  # or they would be drawn anew
        return head

    def forward(
        self,
        hidden_states: Tensor,
        target: Tensor | None = None,
        row_weight: Tensor | None = None,
        mask_token_id: int | None = None,
        exponents: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits `(..., vocab)`; with a target, what `linear_nelbo` gives for rows `(rows, hidden)`."""
        if target is None:
            return super().forward(hidden_states)
        return linear_nelbo(hidden_states, self.weight, self.bias, target, row_weight, mask_token_id, exponents)


def nelbo_of_rows(
    head: nn.Module,
    hidden_states: Tensor,
    target: Tensor,
    weight: Tensor,
    mask_token_id: int,
    exponents: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum `()` and values `(rows,)` of weighted tokens in nats, from their hidden states; where it is chosen how.

    Of images the logits are made: they are no wider than what the blocks keep for their gradients. So are those of a
    head that an adapter or a quantiser has put in place of ours.

    Args:
        head: The head.
        hidden_states: `(rows, hidden)`; of images whole, `(batch, channels, height, width)`.
        target: `(rows,)` clean ids.
        weight: `(rows,)` weights.
        mask_token_id: The mask id.
        exponents: `(vocab,)` w of GenMD4.
        rows: Flat indices of the tokens, for a head of images; None for all of them.
    """
    if isinstance(head, MD4Head):
        total, values = head(hidden_states, target, weight, mask_token_id, exponents)
        return total.to(hidden_states.device), values.to(hidden_states.device)
    logits = logits_of(head, hidden_states, mask_token_id, rows).flatten(0, -2)
    if exponents is not None:
        values = weight * genmd4_cross_entropy_nats(logits, target, exponents)
    else:
        values = weight * cross_entropy_nats(logits, target)
    return values.sum(), values


def logits_of(head: nn.Module, hidden_states: Tensor, mask_token_id: int, rows: Tensor | None = None) -> Tensor:
    """Logits `(..., vocab)` on the device of the hidden states; with `rows`, a head of images picks these."""
    logits = head(hidden_states) if rows is None else head(hidden_states, rows)
    return suppress_mask(logits.to(hidden_states.device), mask_token_id)


def number_of_items(scored: Tensor, num_items: Tensor | int | None, device: torch.device) -> Tensor | int:
    """What a loss is divided by: the number given, on this device, or else that of the scored tokens, at least 1."""
    num_items = scored.sum().clamp(min=1) if num_items is None else num_items
    return num_items.to(device) if isinstance(num_items, Tensor) else num_items


def suppress_mask(logits: Tensor, mask_token_id: int) -> Tensor:
    """Logits `(..., vocab)` with the mask's at finfo.min: no model predicts the mask. This is the one place."""
    is_mask = torch.arange(logits.shape[-1], device=logits.device) == mask_token_id
    return logits.masked_fill(is_mask, torch.finfo(logits.dtype).min)


def indices_of(is_chosen: Tensor, at_most: int | None) -> Tensor | None:
    """Indices of the true elements of `(n,)`, filled up with zeros where their number is not known; None for all.

    On the CPU it is. On an accelerator it takes a wait, unless a bound is given. A compiled graph has one size, that of
    the bound or all.
    """
    if not torch.compiler.is_compiling() and (at_most is None or is_chosen.device.type == "cpu"):
        indices = is_chosen.nonzero().squeeze(1)
        if at_most is not None and len(indices) > at_most:
            raise ValueError(f"`max_masked` must be at least the {len(indices)} masked tokens, got {at_most}.")
        return indices
    if at_most is None or at_most >= len(is_chosen):
        return None
    torch._assert_async(
        is_chosen.sum() <= at_most, "`max_masked` must not be smaller than the number of masked tokens"
    )
    return torch.nonzero_static(is_chosen, size=at_most, fill_value=0).squeeze(1)
