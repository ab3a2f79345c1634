# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Diffusion part of the NELBO directly from hidden states: head and cross entropy as one operator.

Logits are computed for a few rows at a time and turned into gradients at once, so that the logits of all masked
positions never exist together. Needs torch and the standard library only.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .masked_diffusion import IGNORE_INDEX


# Number of logits that exist at a time: on the CPU chosen for its caches, elsewhere enough to keep the device busy.
LOGITS_AT_A_TIME = {"cpu": 2**24, "elsewhere": 2**26}


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
    outputs = _empty_outputs(hidden_states, weight, bias, exponents, needs_gradient)
    _, values, *gradients = outputs
    at_a_time = LOGITS_AT_A_TIME.get(hidden_states.device.type, LOGITS_AT_A_TIME["elsewhere"])
    with torch.autocast(hidden_states.device.type, enabled=False), torch.no_grad():
        head, head_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        num_rows = max(at_a_time // len(weight), 1)
        for start in range(0, len(target), num_rows):
            part = slice(start, start + num_rows)
            hidden = hidden_states[part].to(dtype)
            logits = F.linear(hidden, head, head_bias).to(values.dtype)
            logits[:, mask_token_id] = -torch.inf
            scale = row_weight[part].to(values.dtype)
            value, d_logits, d_exponents = _value_and_gradients(
                logits, target[part], exponents, scale, any(needs_gradient)
            )
            values[part] = scale * value
            if d_logits is not None:
                _add_gradients(gradients, part, hidden, head, d_logits, d_exponents, scale)
    return values.sum(), *outputs[1:]


def _empty_outputs(hidden_states, weight, bias, exponents, needs_gradient: list[bool]) -> tuple[Tensor, ...]:
    """Allocate sum, values and gradients in the precision of the logits, at least float32."""
    precision = torch.promote_types(hidden_states.dtype, torch.float32)
    values = hidden_states.new_zeros(hidden_states.shape[0], dtype=precision)
    parameters = (hidden_states, weight, bias, exponents)
    shapes = [x.shape if needed else (0,) for x, needed in zip(parameters, needs_gradient, strict=True)]
    gradients = [hidden_states.new_zeros(shape, dtype=precision) for shape in shapes]
    return hidden_states.new_empty((), dtype=precision), values, *gradients


def _value_and_gradients(
    logits: Tensor, target: Tensor, exponents: Tensor | None, row_weight: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values of rows, and the gradients of their weighted sum, None if not needed; the logits are overwritten."""
    if exponents is None:
        if needs_gradient:
            return *nll_and_gradient(logits, target), None
        return F.cross_entropy(logits, target, reduction="none"), None, None
    log_mu = F.log_softmax(logits, dim=-1)
    nll = -log_mu.gather(-1, target[:, None]).squeeze(-1)
    mu, w = log_mu.exp_(), exponents.to(log_mu.dtype)
    mean_exponent, own = mu @ w, w[target]
    value = own * (nll - 1.0) + mean_exponent
    if not needs_gradient:
        return value, None, None
    d_exponents = (row_weight @ mu).index_add_(0, target, row_weight * (nll - 1.0))
    # d value / d logit_j = w_x (mu_j - [j = x]) + mu_j (w_j - sum_v w_v mu_v)
    d_logits = mu.mul_(w + (own - mean_exponent)[:, None]).scatter_add_(-1, target[:, None], -own[:, None])
    return value, d_logits, d_exponents


def nll_and_gradient(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """-log mu of the target, `(rows,)`, and its gradient mu - [j = target] in the logits, which are overwritten.

    Runs Liger's fused kernel on a GPU where that is installed, and torch otherwise.
    """
    if logits.device.type == "cuda" and liger_cross_entropy() is not None:
        return liger_nll_and_gradient(logits, target)
    log_mu = F.log_softmax(logits, dim=-1)
    nll = -log_mu.gather(-1, target[:, None]).squeeze(-1)
    return nll, log_mu.exp_().scatter_add_(-1, target[:, None], -torch.ones_like(nll)[:, None])


@functools.cache
def liger_cross_entropy() -> Callable | None:
    """Cross entropy kernel of liger-kernel, or None if that is not installed."""
    try:  # by name: tools that scan the imports of this file would demand the optional library
        return importlib.import_module("liger_kernel.ops.cross_entropy").cross_entropy_forward
    except ImportError:
        return None


def liger_nll_and_gradient(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`nll_and_gradient` with Liger's kernel, which overwrites the logits by the gradient."""
    options: dict[str, Any] = {"weight": None, "ignore_index": IGNORE_INDEX, "reduction": "none", "softcap": None}
    options |= {"lse_square_scale": 0.0, "label_smoothing": 0.0, "return_z_loss": False}
    nll, *_ = liger_cross_entropy()(logits.requires_grad_(), target, **options)
    return nll, logits.detach()


def _add_gradients(gradients: list[Tensor], part: slice, hidden, head, d_logits, d_exponents, row_weight):
    """Add the contribution of some rows to the gradients in hidden states, weight, bias and exponents."""
    d_hidden, d_weight, d_bias, d_schedule = gradients
    products = d_logits.to(hidden.dtype)
    if d_hidden.numel():
        d_hidden[part] = row_weight[:, None] * (products @ head)
    if d_weight.numel() and hidden.dtype == d_weight.dtype:
        d_weight.addmm_(products.T, row_weight[:, None] * hidden)
    elif d_weight.numel():
        largest = row_weight.abs().max().clamp(min=1e-30)  # row weights reach 1/eps, which may overflow 16-bit floats
        product = products.T @ ((row_weight / largest)[:, None] * hidden).to(hidden.dtype)
        d_weight += largest * product.to(d_weight.dtype)
    if d_bias.numel():
        d_bias += row_weight @ d_logits
    if d_schedule.numel():
        d_schedule += d_exponents


def _fake_linear_nelbo(hidden_states, weight, bias, target, row_weight, exponents, *options) -> tuple[Tensor, ...]:
    """Outputs of the shapes of `_linear_nelbo`, for tracing."""
    return _empty_outputs(hidden_states, weight, bias, exponents, options[-1])


def _save_for_backward(ctx, inputs, output):
    hidden_states, weight, bias, target, row_weight, exponents, *ctx.options = inputs
    _, _, *gradients = output
    ctx.save_for_backward(hidden_states, weight, bias, target, row_weight, exponents, *gradients)
    ctx.set_materialize_grads(False)


def _linear_nelbo_backward(ctx, d_sum: Tensor | None, d_values: Tensor | None, *d_gradients: Tensor | None):
    """Gradients in the inputs of `_linear_nelbo`; the forward pass has computed those of the sum."""
    if any(x is not None for x in d_gradients):
        raise NotImplementedError("`linear_nelbo` has no second derivative: use logits (`output_logits=True`).")
    hidden_states, weight, bias, target, row_weight, exponents, *gradients = ctx.saved_tensors
    scale = d_sum
    if d_values is not None:
        row_weight = row_weight * (d_values if d_sum is None else d_values + d_sum)
        _, _, *gradients = torch.ops.md4_hf.linear_nelbo(
            hidden_states, weight, bias, target, row_weight, exponents, *ctx.options
        )
        scale = 1.0
    parameters = (hidden_states, weight, bias, exponents)
    d_hidden, d_weight, d_bias, d_schedule = (
        (scale * gradient).to(x.dtype) if needed else None
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
