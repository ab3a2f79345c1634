# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Muon for the blocks' matrices and AdamW for all else, as one optimizer that `Trainer` can drive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """
    torch's `Muon` and `AdamW` side by side, with one list of parameter groups and one state.

    Muon's update is scaled to the size of AdamW's (`match_rms_adamw`), so that one learning rate serves both.

    Args:
        matrices: Parameters with two axes, for Muon.
        others: All other parameters, for AdamW, without weight decay.
        lr: Learning rate of both.
        betas: AdamW's.
        weight_decay: Muon's.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ):
        self.parts = [
            Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(others, lr=lr, betas=betas, weight_decay=0.0, fused=True),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})
        # The groups above are copies: share the parts' own, which is where a learning-rate scheduler has to write.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None) -> float | None:
        """One step of both; `closure` re-evaluates the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]):
        """Restore what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def muon_with_adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> MuonWithAdamW:
    """`MuonWithAdamW` for a transformer: the matrices of its `layers` go to Muon, all else to AdamW."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_block_matrix = parameter.ndim == 2 and "layers." in name
            (matrices if is_block_matrix else others).append(parameter)
    return MuonWithAdamW(matrices, others, lr, betas, weight_decay)
