# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Muon for the matrices of the blocks and AdamW for all other parameters, as one optimizer for `Trainer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from ..utils.hardware import has_fast_bf16


def _reevaluated(closure: Callable[[], float] | None) -> float | None:
    """Loss from a closure that also computes the gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Float32Muon(Muon):
    """torch's `Muon` with matrix products in float32: many times faster where a processor only emulates bfloat16.

    The rule is torch's (Jordan et al. 2024) with `adjust_lr_fn="match_rms_adamw"`; so is the state, and a run may go on
    with either.
    """

    @torch.no_grad()
    def step(self, closure=None) -> float | None:
        """Make a step; `closure` re-evaluates the loss."""
        loss = _reevaluated(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, **group)
        return loss

    def _update(
        self, parameter: Tensor, lr: float, weight_decay: float, momentum: float, nesterov: bool, eps: float, **options
    ):
        gradient, state = parameter.grad, self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1.0 - momentum)
        direction = gradient.lerp(average, momentum) if nesterov else average
        direction = _orthogonalized(direction, options["ns_coefficients"], options["ns_steps"], eps)
        parameter.mul_(1.0 - lr * weight_decay)
        parameter.add_(direction, alpha=-0.2 * math.sqrt(max(parameter.shape)) * lr)


def _orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The matrix with all its singular values near 1, by Newton-Schulz iterations with a quintic polynomial."""
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def _emulates_bfloat16(parameters: list[nn.Parameter]) -> bool:
    """Whether the parameters are on a processor without instructions for bfloat16."""
    on_cpu = any(parameter.device.type == "cpu" for parameter in parameters)
    return on_cpu and not has_fast_bf16()


class MuonWithAdamW(Optimizer):
    """
    torch's `Muon` and `AdamW` side by side, with one list of parameter groups and one state.

    Muon's update is scaled to the size of AdamW's (`match_rms_adamw`), so that one learning rate serves both.

    Args:
        matrices: Parameters with two axes, for Muon.
        remaining: All other parameters, for AdamW, without weight decay.
        lr: Learning rate of both.
        betas: AdamW's.
        weight_decay: Muon's.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        remaining: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ):
        matrices = list(matrices)
        muon = Float32Muon if _emulates_bfloat16(matrices) else Muon
        self.parts = [
            muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(remaining, lr=lr, betas=betas, weight_decay=0.0, fused=True),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})
        # The groups above are copies: share the parts' own, which is where a learning-rate scheduler has to write.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None) -> float | None:
        """Make a step of both; `closure` re-evaluates the loss."""
        loss = _reevaluated(closure)
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]):
        """Restore the states that `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def muon_with_adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> MuonWithAdamW:
    """`MuonWithAdamW` for a transformer: the matrices of its `layers` go to Muon, all other parameters to AdamW.

    Raises:
        ValueError: If no such matrix trains, as in a U-Net.
    """
    matrices, remaining = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_block_matrix = parameter.ndim == 2 and "layers." in name
            (matrices if is_block_matrix else remaining).append(parameter)
    if not matrices:
        raise ValueError("`use_muon` must be False for a model without trained matrices in `layers`, got True.")
    return MuonWithAdamW(matrices, remaining, lr, betas, weight_decay)
