# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Head of the network: hidden states to logits, or directly to the terms of the NELBO."""

import torch
from torch import Tensor, nn

from .linear_nelbo import linear_nelbo
from .masked_diffusion import cross_entropy_nats, genmd4_cross_entropy_nats, suppress_mask


class MD4Head(nn.Linear):
    """Linear head from hidden states to logits, or directly to the loss without all logits in memory."""

    @classmethod
    def with_parameters_of(cls, linear: nn.Linear) -> "MD4Head":
        """Create a head that shares the parameters of a linear layer."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        head._is_hf_initialized = getattr(linear, "_is_hf_initialized", False)  # else they would be initialised again
        return head

    def forward(
        self,
        hidden_states: Tensor,
        target: Tensor | None = None,
        row_weight: Tensor | None = None,
        mask_token_id: int | None = None,
        exponents: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits `(..., vocab)`; with a target, the outputs of `linear_nelbo` for hidden states `(rows, hidden)`."""
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
    """Sum `()` and values `(rows,)` of the weighted cross entropies of tokens in nats, from their hidden states.

    An `MD4Head` avoids the logits of all rows. Other heads compute them: that of images, where logits are no wider than
    what the blocks keep for their gradients, and any that an adapter or a quantiser has put in place of an `MD4Head`.
    Arguments as in `linear_nelbo`; a head of images takes the hidden states of all pixels, and the tokens' flat `rows`.
    """
    if isinstance(head, MD4Head):
        total, values = head(hidden_states, target, weight, mask_token_id, exponents)
        return total.to(hidden_states.device), values.to(hidden_states.device)
    logits = logits_of(head, hidden_states, mask_token_id, rows).flatten(0, -2)
    if exponents is None:
        values = weight * cross_entropy_nats(logits, target)
    else:
        values = weight * genmd4_cross_entropy_nats(logits, target, exponents)
    return values.sum(), values


def logits_of(head: nn.Module, hidden_states: Tensor, mask_token_id: int, rows: Tensor | None = None) -> Tensor:
    """Logits `(..., vocab)` on the device of the hidden states; with `rows`, a head of images selects these."""
    logits = head(hidden_states) if rows is None else head(hidden_states, rows)
    return suppress_mask(logits.to(hidden_states.device), mask_token_id)


def number_of_items(scored: Tensor, num_items: Tensor | int | None, device: torch.device) -> Tensor | int:
    """Divisor of a loss: the given number, on this device, or by default the number of scored tokens, at least 1."""
    num_items = scored.sum().clamp(min=1) if num_items is None else num_items
    return num_items.to(device) if isinstance(num_items, Tensor) else num_items


def indices_of(is_chosen: Tensor, at_most: int | None) -> Tensor | None:
    """Indices of the true elements of `(n,)`; None stands for all `n`.

    On the CPU, or without the bound `at_most`, the true elements are counted, for which an accelerator is waited for.
    Otherwise the indices are padded with zeros to the bound. A compiled graph has a fixed size: the bound, or all `n`.
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
