# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Diffusion part of the NELBO directly from hidden states: head and cross entropy as one operator.

Logits are computed for a few rows at a time and turned into gradients at once, so that the logits of all masked
positions never exist together. Needs torch and the standard library only.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .masked_diffusion import genmd4_cross_entropy_nats


# Number of logits that exist at a time: on the CPU chosen for its caches, elsewhere enough to keep the device busy.
LOGITS_AT_A_TIME = {"cpu": 2**24, "elsewhere": 2**27}
CACHED_NUMBERS = 2**18  # that a pass over memory takes at a time on the CPU: 1 MiB in float32
ALIGNED_ROWS = 16  # of float32 logits in columns on the CPU: a cache line
ALIGNED_IDS = {"cpu": 1, "elsewhere": 64}  # of which the logits have a multiple: GPUs multiply others far slower


def linear_nelbo(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_weight: Tensor,
    mask_token_id: int,
    exponents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Diffusion part of the NELBO of masked positions from their hidden states, without all their logits in memory.

    The value of a row is `row_weight` times `cross_entropy_nats` (with `exponents`, `genmd4_cross_entropy_nats`) of the
    logits `hidden_states weight^T + bias`, without the mask's column. Under autocast the matrix products are in its
    precision, all else is in float32. The gradient of the sum costs nothing extra; one through single values runs the
    head a second time. There is no second derivative.

    Args:
        hidden_states: `(rows, hidden)`.
        weight: `(vocab, hidden)` weight of the head, with its `bias` `(vocab,)` or None.
        target: `(rows,)` clean ids.
        row_weight: `(rows,)` weights; carries no gradient.
        mask_token_id: The mask id m.
        exponents: `(vocab,)` exponents w of GenMD4; None for MD4.

    Returns:
        The sum of the values `()`, and the values `(rows,)`, in at least float32.
    """
    device, dtype = hidden_states.device.type, hidden_states.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    needs_gradient = [
        torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden_states, weight, bias, exponents)
    ]
    total, values, *_ = torch.ops.md4_hf.linear_nelbo(
        hidden_states, weight, bias, target, row_weight.detach(), exponents, mask_token_id, dtype, needs_gradient
    )
    return total, values


def _linear_nelbo(
    hidden_states, weight, bias, target, row_weight, exponents, mask_token_id, dtype, needs_gradient
) -> tuple[Tensor, ...]:
    """Outputs of `linear_nelbo`, and the gradients of the sum in its four parameters (empty where not needed).

    The schema below gives the types of the arguments.
    """
    num_rows, vocab_size, is_cpu = len(target), len(weight), hidden_states.device.type == "cpu"
    more_ids = -vocab_size % ALIGNED_IDS["cpu" if is_cpu else "elsewhere"]
    if is_cpu and num_rows % ALIGNED_ROWS:
        hidden_states, target, row_weight = _pad_rows(hidden_states, target, row_weight)
    outputs = _empty_outputs(hidden_states, weight, bias, exponents, needs_gradient, more_ids)
    _, values, d_hidden, d_weight, *d_vectors = outputs
    unit = row_weight.abs().max().clamp(min=1e-30) if dtype == torch.float16 and num_rows else None
    row_weight = row_weight if unit is None else row_weight / unit  # weights reach 1/eps, which may overflow float16
    with torch.autocast(hidden_states.device.type, enabled=False), torch.no_grad():
        head, head_bias, exponents = (_with_more_ids(x, more_ids) for x in (weight.to(dtype), bias, exponents))
        head_bias = None if head_bias is None else head_bias.to(dtype)
        size = _rows_at_a_time(len(target), len(head), is_cpu)
        buffer = head.new_empty(size * len(head))
        for start in range(0, len(target), size):
            part = slice(start, start + size)
            hidden, scale = hidden_states[part].to(dtype), row_weight[part].to(values.dtype)
            logits, ids = _logits(hidden, head, head_bias, buffer), (target[part], vocab_size, mask_token_id)
            values[part] = _values(logits, *ids, exponents, scale, any(needs_gradient), *d_vectors)
            if d_hidden.numel():
                d_hidden[part] = scale[:, None] * (logits @ head)
            if d_weight.numel():
                _add_product(d_weight, logits, hidden, scale)
        if unit is not None:
            torch._foreach_mul_([x for x in outputs[1:] if x.numel()], unit)
    if num_rows < len(values):  # no views: FSDP2 warns of a head that returns one
        values, d_hidden = values[:num_rows].clone(), d_hidden[:num_rows].clone()
    for x in outputs[3:]:
        x.resize_(min(vocab_size, len(x)), *x.shape[1:])
    return values.sum(), values, d_hidden, *outputs[3:]


def _with_more_ids(x: Tensor | None, number: int) -> Tensor | None:
    """Pad the first axis of a parameter by zeros."""
    return x if x is None or number == 0 else F.pad(x, (0, 0) * (x.dim() - 1) + (0, number))


def _pad_rows(hidden_states: Tensor, target: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Repeat the last row, without a weight, up to a multiple of `ALIGNED_ROWS`."""
    num_more = -len(target) % ALIGNED_ROWS
    index = torch.arange(len(target) + num_more).clamp_(max=len(target) - 1)
    return hidden_states[index], target[index], F.pad(row_weight, (0, num_more))


def _rows_at_a_time(num_rows: int, vocab_size: int, is_cpu: bool) -> int:
    """Number of rows whose logits exist together, in nearly equal parts; a multiple of `ALIGNED_ROWS` on the CPU."""
    multiple = ALIGNED_ROWS if is_cpu else 1
    most = LOGITS_AT_A_TIME["cpu" if is_cpu else "elsewhere"] // vocab_size
    num_parts = max(-(-num_rows // max(most, multiple)), 1)
    return max(-(-num_rows // (num_parts * multiple)), 1) * multiple


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """Logits `(rows, vocab)` in a buffer that is used again: fresh memory costs a processor as much as a product."""
    size = len(hidden) * len(head)
    if head.dtype == torch.float32 and head.device.type == "cpu":
        logits = buffer[:size].view(len(head), -1).T  # MKL multiplies faster into columns
    else:
        logits = buffer[:size].view(-1, len(head))
    if bias is None:
        return torch.mm(hidden, head.T, out=logits)
    return torch.addmm(bias, hidden, head.T, out=logits)


def _empty_outputs(
    hidden_states, weight, bias, exponents, needs_gradient: list[bool], more_ids: int = 0
) -> tuple[Tensor, ...]:
    """Allocate sum, values and gradients in the precision of the logits, at least float32."""
    precision = torch.promote_types(hidden_states.dtype, torch.float32)
    values = hidden_states.new_zeros(hidden_states.shape[0], dtype=precision)
    of_ids = [None if x is None else (len(x) + more_ids, *x.shape[1:]) for x in (weight, bias, exponents)]
    parameters = (hidden_states.shape, *of_ids)
    shapes = [shape if needed else (0,) for shape, needed in zip(parameters, needs_gradient, strict=True)]
    gradients = [hidden_states.new_zeros(shape, dtype=precision) for shape in shapes]
    return hidden_states.new_empty((), dtype=precision), values, *gradients


def _values(
    logits: Tensor,
    target: Tensor,
    vocab_size: int,
    mask_token_id: int,
    exponents: Tensor | None,
    row_weight: Tensor,
    needs_gradient: bool,
    d_bias: Tensor,
    d_exponents: Tensor,
) -> Tensor:
    """Weighted values `(rows,)` of logits, which with `needs_gradient` become their own gradients, without the weights.

    The mask's column and those behind `vocab_size` are left out. Adds to the gradients of bias and exponents, unless
    they are empty.
    """
    fits_kernel = exponents is None and logits.is_cuda and logits.dtype != torch.float64
    if fits_kernel and (kernel := triton_kernel()) is not None:
        values = row_weight * kernel(logits, target, vocab_size, mask_token_id, needs_gradient)
        if d_bias.numel():
            _add_product(d_bias[:, None], logits, logits.new_ones(len(logits), 1), row_weight)
        return values
    logits[:, mask_token_id] = logits[:, vocab_size:] = -torch.inf
    values = torch.empty_like(row_weight)
    is_copied = logits.dtype != values.dtype
    num_rows = max(CACHED_NUMBERS // logits.shape[1], 1) if is_copied and logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), num_rows or 1):
        rows = slice(start, start + num_rows)
        precise, scale = logits[rows].to(values.dtype), row_weight[rows]
        if not needs_gradient:
            values[rows] = scale * _value(precise, target[rows], exponents)
            continue
        value, d_schedule = _value_and_gradient(precise, target[rows], exponents, scale)
        values[rows] = scale * value
        if is_copied:
            logits[rows] = precise
        if d_bias.numel():
            d_bias += scale @ precise
        if d_exponents.numel():
            d_exponents += d_schedule
    return values


def _value(logits: Tensor, target: Tensor, exponents: Tensor | None) -> Tensor:
    """Values `(rows,)` without weights."""
    if exponents is None:
        return F.cross_entropy(logits, target, reduction="none")
    return genmd4_cross_entropy_nats(logits, target, exponents)


def _value_and_gradient(
    logits: Tensor, target: Tensor, exponents: Tensor | None, row_weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Values `(rows,)`, and the gradient of their weighted sum in GenMD4's exponents; logits become their gradient."""
    if exponents is None:
        return nll_and_gradient(logits, target), None
    w = exponents.to(logits.dtype)
    nll = softmax_and_nll(logits, target)
    mu, own = logits, w[target]
    mean_exponent = mu @ w
    d_exponents = (row_weight @ mu).index_add_(0, target, row_weight * (nll - 1.0))
    # d value / d logit_j = w_x (mu_j - [j = x]) + mu_j (w_j - sum_v w_v mu_v)
    mu.mul_(w + (own - mean_exponent)[:, None]).scatter_add_(-1, target[:, None], -own[:, None])
    return own * (nll - 1.0) + mean_exponent, d_exponents


def nll_and_gradient(logits: Tensor, target: Tensor) -> Tensor:
    """-log mu of the target, `(rows,)`; the logits become its gradient mu - [j = target]."""
    nll = softmax_and_nll(logits, target)
    logits.scatter_add_(-1, target[:, None], -torch.ones_like(nll)[:, None])
    return nll


def softmax_and_nll(logits: Tensor, target: Tensor) -> Tensor:
    """-log mu of the target, `(rows,)`; the logits become mu."""
    own, largest = logits.gather(-1, target[:, None]).squeeze(-1), logits.amax(dim=-1)
    memory, dim = (logits, 1) if logits.is_contiguous() else (logits.T, 0)  # else torch would copy it
    torch.softmax(memory, dim, out=memory)
    return (largest - own) - logits.amax(dim=-1).log()


@functools.cache
def triton_kernel() -> Callable | None:
    """`nll_and_gradient` in one kernel for GPUs, or None where Triton is missing or does not work."""
    from .triton_nll import nll_and_gradient, reason_against  # only now: importing Triton takes a while

    reason = reason_against()
    if reason is None:
        return nll_and_gradient
    warnings.warn(
        f"The loss runs plain kernels, which take longer, as Triton's cannot be used: {reason}", stacklevel=2
    )
    return None


def _add_product(d_weight: Tensor, d_logits: Tensor, hidden: Tensor, row_weight: Tensor):
    """Add the contribution of some rows to the gradient in the weight: d_logits^T (row_weight * hidden)."""
    weighted = (row_weight[:, None] * hidden).to(hidden.dtype)
    if hidden.dtype == d_weight.dtype:
        d_weight.addmm_(d_logits.T, weighted)
        return
    is_cpu = hidden.device.type == "cpu"
    num_ids = max(CACHED_NUMBERS // hidden.shape[1], 1) if is_cpu else len(d_weight)
    for start in range(0, len(d_weight), num_ids):
        ids = slice(start, start + num_ids)
        d_weight[ids] += d_logits[:, ids].T @ weighted


def _fake_linear_nelbo(hidden_states, weight, bias, target, row_weight, exponents, *options) -> tuple[Tensor, ...]:
    """Outputs of the shapes of `_linear_nelbo`, for tracing."""
    return _empty_outputs(hidden_states, weight, bias, exponents, options[-1])


def _save_for_backward(ctx, inputs, output):
    hidden_states, weight, bias, target, row_weight, exponents, *ctx.options = inputs
    _, _, *gradients = output
    ctx.save_for_backward(hidden_states, weight, bias, target, row_weight, exponents)
    ctx.gradients = [gradient.detach() for gradient in gradients]
    ctx.set_materialize_grads(False)


def _linear_nelbo_backward(ctx, d_sum: Tensor | None, d_values: Tensor | None, *d_gradients: Tensor | None):
    """Gradients in the inputs of `_linear_nelbo`.

    The forward pass has computed those of the sum. They are handed over, not copied: a second backward pass makes
    them again, as one through single values does.
    """
    if torch.is_grad_enabled() or any(x is not None for x in d_gradients):
        raise NotImplementedError("`linear_nelbo` has no second derivative: use logits (`output_logits=True`).")
    hidden_states, weight, bias, target, row_weight, exponents = ctx.saved_tensors
    gradients, ctx.gradients = ctx.gradients, None
    if d_values is not None or gradients is None:
        factor = sum(x for x in (d_sum, d_values) if x is not None)
        _, _, *gradients = torch.ops.md4_hf.linear_nelbo(
            hidden_states, weight, bias, target, row_weight * factor, exponents, *ctx.options
        )
        d_sum = None
    parameters = (hidden_states, weight, bias, exponents)
    d_hidden, d_weight, d_bias, d_schedule = (
        (gradient if d_sum is None else gradient.mul_(d_sum)).to(x.dtype) if needed else None
        for x, gradient, needed in zip(parameters, gradients, ctx.options[-1], strict=True)
    )
    return d_hidden, d_weight, d_bias, None, None, d_schedule, None, None, None


# This file may be loaded twice, as a module of the package and as remote code of a model: the first one registers.
if not hasattr(torch.ops.md4_hf, "linear_nelbo"):
    _operator = torch.library.custom_op(
        "md4_hf::linear_nelbo",
        _linear_nelbo,
        mutates_args=(),
        schema="(Tensor hidden_states, Tensor weight, Tensor? bias, Tensor target, Tensor row_weight, "
        "Tensor? exponents, int mask_token_id, ScalarType dtype, bool[] needs_gradient) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    )
    _operator.register_fake(_fake_linear_nelbo)
    _operator.register_autograd(_linear_nelbo_backward, setup_context=_save_for_backward)
