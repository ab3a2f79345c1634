# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Muon beside AdamW, a group for GenMD4's exponents, warm-up, and the options of a resumed run."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..utils.hardware import has_fast_bf16


# MD4's own blocks are in `layers`; those of a backbone of transformers are in a list of whatever name.
IN_BLOCK = re.compile(r"\blayers\.|\bbackbone\..*\.\d+\.")
EXPONENTS = re.compile(r"\btoken_schedule\b.*\bfree_exponents$")


def _reevaluated(closure: Callable[[], float] | None) -> float | None:
    """Loss from a closure that also computes the gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Float32Muon(Muon):
    """torch's `Muon` with matrix products in float32: many times faster where a processor only emulates bfloat16.

    The rule is torch's (Jordan et al. 2024) with `adjust_lr_fn="match_rms_adamw"`, and a run may continue with either.
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
    return any(parameter.device.type == "cpu" for parameter in parameters) and not has_fast_bf16()


class MuonWithAdamW(Optimizer):
    """
    torch's `Muon` and `AdamW` side by side, with one list of parameter groups and one state.

    Muon, for `matrices`, has the weight decay, and AdamW, for the `remaining` parameters, the betas. Muon's update is
    scaled to the size of AdamW's (`match_rms_adamw`), so that one learning rate serves both.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        remaining: list[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ):
        muon = Float32Muon if _emulates_bfloat16(matrices) else Muon
        self.parts = [
            muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(remaining, lr=lr, betas=betas, weight_decay=0.0, fused=True),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})
        self._share_groups()

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
        self._share_groups()

    def _share_groups(self):
        """Hold the groups of the parts themselves, which is where a learning-rate scheduler has to write."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def muon_with_adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> MuonWithAdamW:
    """`MuonWithAdamW` for a transformer: the matrices of its blocks go to Muon, all other parameters to AdamW.

    A ValueError is raised if no such matrix trains, as in a U-Net.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_blocks = {name for name, parameter in trained.items() if parameter.ndim == 2 and IN_BLOCK.search(name)}
    if not of_blocks:
        raise ValueError("`use_muon` must be False for a model without trained matrices in `layers`, got True.")
    matrices, remaining = ([p for n, p in trained.items() if (n in of_blocks) == muon] for muon in (True, False))
    return MuonWithAdamW(matrices, remaining, lr, betas, weight_decay)


def is_exponent(name: str) -> bool:
    """Whether a parameter's name is that of GenMD4's exponents, in whatever wrapper."""
    return EXPONENTS.search(name) is not None


def exponents_of(model: nn.Module) -> list[nn.Parameter]:
    """GenMD4's exponents, if a model has any."""
    return [parameter for name, parameter in model.named_parameters() if is_exponent(name)]


def layers_of_backbone(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the backbone of transformers that a model may have, without the embedding of its tokens."""
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    named = model.named_parameters()
    return [parameter for name, parameter in named if ".backbone." in name and parameter is not embedding]


def give_rate(optimizer: Optimizer, parameters: list[nn.Parameter], rate: float):
    """Give some parameters of an optimizer this learning rate: groups of their own, with the options they had."""
    chosen = {id(parameter) for parameter in parameters}
    for group in [*optimizer.param_groups]:
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        if moved:
            options = {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
            optimizer.add_param_group({**options, "params": moved, "lr": rate})


def shorter_warmup(warmup_steps: int, num_training_steps: int) -> int:
    """Steps of warm-up: a tenth of all where those asked for would leave none at the full learning rate."""
    return warmup_steps if warmup_steps < num_training_steps else num_training_steps // 10


@contextlib.contextmanager
def options_outlast_loading(optimizer: Any, scheduler: Any) -> Iterator[None]:
    """Keep learning rates, decay and betas as they are while a saved state is loaded, which has those of its own time.

    The place in the schedule is the loaded one. Schedulers that are no functions of the step keep what is loaded.
    """
    groups = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    base_lrs = list(getattr(scheduler, "base_lrs", []))
    yield
    if not isinstance(scheduler, LambdaLR):
        return
    scheduler.base_lrs = base_lrs
    scheduler._last_lr = [lr * f(scheduler.last_epoch) for lr, f in zip(base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, own, lr in zip(optimizer.param_groups, groups, scheduler._last_lr, strict=True):
        group.update(own, lr=lr)
