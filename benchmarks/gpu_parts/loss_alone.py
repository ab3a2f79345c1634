# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The loss of masked tokens from their hidden states, forward and backward, as several libraries compute it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from md4_hf.core.linear_nelbo import linear_nelbo

from .checks_networks import without_triton
from .comparing import TOLERANCES, relative_error
from .part import Context, NotAvailable, Row
from .steps import memory_freed, peak_bytes, seconds_per_call


class Problem:
    """Hidden states, head, targets and weights of the masked tokens of a step, in bf16 autocast."""

    def __init__(self, context: Context):
        rows, hidden, self.vocab = (64, 32, 300) if context.tiny else (16384, 768, 50258)
        device, self.device = context.device, context.device
        torch.manual_seed(context.options.seed)
        self.states = torch.randn(rows, hidden, device=device, requires_grad=True)
        self.head = (torch.randn(self.vocab, hidden, device=device) / hidden**0.5).requires_grad_()
        self.target = torch.randint(self.vocab - 1, (rows,), device=device)
        self.weight = torch.rand(rows, device=device)
        self.bias = torch.zeros(self.vocab, device=device)
        self.bias[-1] = -torch.inf  # the mask's column

    def gradients(self, loss: Callable[[Problem], Tensor]) -> tuple[Tensor, ...]:
        """Loss and its gradients in hidden states and head."""
        with torch.autocast(self.device.type, torch.bfloat16):
            value = loss(self)
        return value.detach(), *torch.autograd.grad(value, (self.states, self.head))


def ours(problem: Problem) -> Tensor:
    """Operator of this package, with the kernels it chooses."""
    total, _ = linear_nelbo(problem.states, problem.head, None, problem.target, problem.weight, problem.vocab - 1)
    return total


def ours_without_triton(problem: Problem) -> Tensor:
    """Operator of this package, with torch's kernels."""
    with without_triton():
        return ours(problem)


def plain_logits(problem: Problem) -> Tensor:
    """Cross entropy of all logits."""
    logits = F.linear(problem.states, problem.head, problem.bias).float()
    return (problem.weight * F.cross_entropy(logits, problem.target, reduction="none")).sum()


def torchs(problem: Problem) -> Tensor:
    """Operator of torch; a weight per row asks for the values of all rows."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise NotAvailable(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2048)
    nats = F.linear_cross_entropy(
        problem.states, problem.head, problem.target, linear_bias=problem.bias, reduction="none", options=options
    )
    return (problem.weight * nats).sum()


def ligers(problem: Problem) -> Tensor:
    """Fused operator of liger-kernel; without weights, which it does not have."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise NotAvailable("liger-kernel is not installed") from error
    if problem.device.type != "cuda":
        raise NotAvailable("Liger's kernels are not for this device")
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return loss(problem.head, problem.states, problem.target, problem.bias)


LOSSES = {
    "md4_hf": ours,
    "md4_hf without Triton": ours_without_triton,
    "all logits": plain_logits,
    "torch's linear_cross_entropy": torchs,
    "Liger's fused operator, unweighted": ligers,
}
UNWEIGHTED = (ligers,)


def losses_alone(context: Context) -> Iterator[Row]:
    """Milliseconds and memory of each."""
    problem = Problem(context)
    reference = problem.gradients(plain_logits)
    for name, loss in LOSSES.items():
        yield context.measured(
            f"loss alone, {name}", functools.partial(loss_alone, context, problem, reference, loss), seconds=2.0
        )


def loss_alone(
    context: Context, problem: Problem, reference: tuple[Tensor, ...], loss: Callable[[Problem], Tensor]
) -> Row:
    """Time and memory of one; if it has the weights, its gradients have to agree with those of all logits."""
    call, repeats = functools.partial(problem.gradients, loss), 1 if context.tiny else 8
    with memory_freed(context.device):
        errors = [relative_error(x, expected) for x, expected in zip(call(), reference, strict=True)]
        before = torch.cuda.memory_allocated() if context.device.type == "cuda" else 0
        peak = peak_bytes(call, context.device)
        figures: dict[str, Any] = {"ms": 1e3 * seconds_per_call(call, context.device, repeats)}
        figures["gib"] = None if peak is None else (peak - before) / 2**30
    if loss in UNWEIGHTED:
        return Row("", figures)
    tolerance = TOLERANCES["bf16 autocast"]["gradients"]
    return Row("", {**figures, "error": max(errors), "show": True}, max(errors) <= tolerance, f"tolerance {tolerance}")
