# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Cross entropy of rows of logits and its gradient in one kernel, in place of the dozen passes of plain operations.

Needs Triton, which torch brings along for GPUs: without it (`HAS_TRITON`) there is no kernel here.
"""

import importlib
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor


LARGEST_BLOCK = 4096  # logits that a program holds at a time
WARPS = 8
HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON:
    triton: Any = importlib.import_module("triton")  # by name: tools that scan imports would demand it of everyone
    tl: Any = importlib.import_module("triton.language")

    @triton.jit
    def _nll_kernel(
        logits,
        target,
        nll,
        stride,
        mask_id,
        VOCAB: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK: tl.constexpr,
        WITH_GRADIENT: tl.constexpr,
    ):
        """-log mu of one row's target; with a gradient, the row of `WIDTH` numbers becomes mu - [j = target]."""
        row = tl.program_id(0).to(tl.int64)
        logits += row * stride
        own = tl.load(target + row)
        own_logit = tl.load(logits + own).to(tl.float32)
        largest, total = float("-inf"), 0.0
        for start in range(0, WIDTH, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(logits + column, column < WIDTH, 0.0).to(tl.float32)
            x = tl.where((column < VOCAB) & (column != mask_id), x, float("-inf"))
            new = tl.maximum(largest, tl.max(x, 0))
            finite = tl.where(new == float("-inf"), 0.0, new)  # the row may begin with ids that have no token
            total = total * tl.exp(largest - finite) + tl.sum(tl.exp(x - finite), 0)
            largest = new
        log_sum = largest + tl.log(total)
        tl.store(nll + row, log_sum - own_logit)
        if WITH_GRADIENT:
            for start in range(0, WIDTH, BLOCK):
                column = start + tl.arange(0, BLOCK)
                x = tl.load(logits + column, column < WIDTH, 0.0).to(tl.float32)
                x = tl.where((column < VOCAB) & (column != mask_id), x, float("-inf"))
                gradient = tl.exp(x - log_sum) - tl.where(column == own, 1.0, 0.0)
                tl.store(logits + column, gradient.to(logits.dtype.element_ty), column < WIDTH)


def nll_and_gradient(
    logits: Tensor, target: Tensor, vocab_size: int, mask_token_id: int, with_gradient: bool
) -> Tensor:
    """-log mu of the target, `(rows,)` in float32; with a gradient, the logits become mu - [j = target].

    Args:
        logits: `(rows, width)` with contiguous rows, in float32 or less, on a GPU; overwritten.
        target: `(rows,)` ids, not the mask's.
        vocab_size: Number of ids, at most `width`; columns behind them are padding, with gradient 0.
        mask_token_id: Id that has no probability.
        with_gradient: Whether to overwrite the logits.
    """
    rows, width = logits.shape
    nll = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        block = min(triton.next_power_of_2(width), LARGEST_BLOCK)
        tensors, sizes = (logits, target, nll, logits.stride(0)), {"VOCAB": vocab_size, "WIDTH": width, "BLOCK": block}
        options = {**sizes, "WITH_GRADIENT": with_gradient, "num_warps": WARPS}
        with torch.cuda.device_of(logits):
            _nll_kernel[(rows,)](*tensors, mask_token_id, **options)
    return nll


def reason_against(device: torch.device | str = "cuda") -> str | None:
    """Why the kernel cannot be used on a device, None if it can: Triton needs a compiler for C, and a GPU it knows."""
    if not HAS_TRITON:
        return "it is not installed"
    try:
        logits = torch.zeros(1, 8, device=device)
        nll = nll_and_gradient(logits, torch.tensor([1], device=device), 5, 4, with_gradient=True)
    except Exception as error:  # of many kinds, by what is missing
        return repr(error)
    expected = torch.tensor([[0.25, -0.75, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0]])
    is_right = torch.allclose(logits.cpu(), expected) and math.isclose(nll.item(), math.log(4.0), rel_tol=1e-5)
    return None if is_right else f"it gives wrong numbers, {logits.tolist()} for {expected.tolist()}"
