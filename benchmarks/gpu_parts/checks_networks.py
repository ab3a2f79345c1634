# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Networks, losses and gradients on the device against the processor in float64."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import is_flash_attn_2_available

from md4_hf import LoraArguments, MD4Config, MD4ForMaskedDiffusion, add_adapter
from md4_hf.core import linear_nelbo as operator

from .comparing import BFLOAT16, FLOAT32, TOLERANCES, compared, in_float64, logits_of, moved, outcome, relative_error
from .golden import NAMES, golden_case
from .part import Context, NotAvailable, Row
from .steps import WHOLE, compiled, random_model


DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}
SDPA = {"math": SDPBackend.MATH, "mem-efficient": SDPBackend.EFFICIENT_ATTENTION}
SDPA |= {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
ATTENTION = ["eager", *(f"sdpa {name}" for name in SDPA), "flash_attention_2"]
NO_KERNEL = ("No available kernel", "No viable backend", "execution plan")  # in torch's errors
FLEX = "flex_attention"  # which is compiled for each kind of mask


def golden_networks(context: Context) -> Iterator[Row]:
    """Logits, loss and gradients of each recorded case, and its recorded logits, in both precisions."""
    for name in NAMES:
        for precision in DTYPES:
            yield context.measured(f"{name}, {precision}", functools.partial(golden, context, name, precision))


def compiled_networks(context: Context) -> Iterator[Row]:
    """Recorded cases compiled as one graph: the compiler takes long, and the last may be left out."""
    for name in NAMES:
        for precision in DTYPES:
            measure = functools.partial(golden, context, name, precision, way=WHOLE)
            yield context.measured(f"{name}, {precision}, compiled", measure, seconds=12.0)


def golden(context: Context, name: str, precision: str, way: str | None = None) -> Row:
    """A recorded case on the device against the processor in float64."""
    model, inputs, official = golden_case(name)
    exact, dtype = in_float64(model), DTYPES[precision]
    reference = outcome(exact, inputs, torch.float64)
    model = model.to(context.device)
    network = compiled(model, way)
    there = moved(inputs, context.device)
    if way is not None:
        there["max_masked"] = inputs["input_ids"].numel()
    try:
        found = outcome(model, there, dtype, network)
        if official is not None:
            reference["logits"] = official
            found["logits"] = logits_of(model, moved(inputs, context.device), dtype, None if way else network)
        return compared(found, reference, TOLERANCES[precision])
    finally:
        torch.compiler.reset()


# Attention ------------------------------------------------------------------------------------------------------------


def attention_backends(context: Context, implementations: Sequence[str], seconds: float = 0.0) -> Iterator[Row]:
    """Each kind of attention without mask, with ragged rows, and with documents that do not see each other."""
    for mask in ("no mask", "ragged", "documents"):
        reference, model, inputs = attention_case(context, mask)
        for implementation in implementations:
            for precision in DTYPES:
                measure = functools.partial(attention, context, model, inputs, reference, implementation, precision)
                yield context.measured(f"attention {implementation}, {mask}, {precision}", measure, seconds)


def attention_case(context: Context, mask: str) -> tuple[dict[str, Tensor], MD4ForMaskedDiffusion, dict[str, Any]]:
    """Outcome in float64, model and batch for a comparison of attention kernels, with heads of the usual width."""
    heads, width, length = (2, 16, 16) if context.tiny else (4, 64, 256)
    sizes = {"hidden_size": heads * width, "num_attention_heads": heads, "num_hidden_layers": 2}
    config = MD4Config(vocab_size=97, max_position_embeddings=length, attn_implementation="eager", **sizes)
    model, batch = random_model(config, "cpu", context.options.seed), 4
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.06)
    x0 = torch.randint(96, (batch, length))
    xt = torch.where(torch.rand(batch, length) < 0.5, 96, x0)
    inputs = {"input_ids": xt, "labels": x0, "timesteps": torch.linspace(0.1, 1.0, batch)}
    positions = torch.arange(length)
    if mask == "ragged":
        lengths = torch.tensor([length, length - 3, length // 2, length // 8])
        inputs["attention_mask"] = (positions < lengths[:, None]).long()
        inputs["labels"] = x0.masked_fill(inputs["attention_mask"] == 0, -100)
        inputs["input_ids"] = torch.where(inputs["attention_mask"] == 0, x0, xt)
    if mask == "documents":
        inputs["document_ids"] = (positions // (length // 3)).expand(batch, -1).contiguous()
    exact = in_float64(model)
    reference = {**outcome(exact, inputs, torch.float64), "logits": logits_of(exact, inputs, torch.float64)}
    return reference, model.to(context.device), moved(inputs, context.device)


def attention(
    context: Context,
    model: MD4ForMaskedDiffusion,
    inputs: dict[str, Any],
    reference: dict[str, Tensor],
    implementation: str,
    precision: str,
) -> Row:
    """A kind of attention against eager attention in float64, where rows are not padded."""
    check_available(context, implementation, precision, inputs)
    name, _, kernel = implementation.partition(" ")
    model.set_attn_implementation(name)
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool().cpu()
    with kernel_of_sdpa(kernel) if kernel else nullcontext():
        found = {"logits": logits_of(model, inputs, DTYPES[precision]).cpu()[real]}
        if not (name == FLEX and context.device.type == "cpu"):  # no backward pass there
            found |= outcome(model, inputs, DTYPES[precision])
    return compared(found, {**reference, "logits": reference["logits"][real]}, TOLERANCES[precision])


@contextmanager
def kernel_of_sdpa(kernel: str) -> Iterator[None]:
    """Let SDPA run one of its kernels, or raise `NotAvailable`."""
    try:
        with sdpa_kernel(SDPA[kernel]):
            yield
    except RuntimeError as error:
        if any(message in str(error) for message in NO_KERNEL):
            raise NotAvailable("torch has no such kernel for these inputs") from error
        raise


def check_available(context: Context, implementation: str, precision: str, inputs: dict[str, Any]):
    """Raise `NotAvailable` for attention that this machine, or this precision, does not have."""
    if implementation == "flash_attention_2":
        if context.device.type != "cuda" or not is_flash_attn_2_available():
            raise NotAvailable("flash-attn is not installed")
        if "document_ids" in inputs:
            raise NotAvailable("document masks are not for flash-attn")
    needs_16_bits = implementation in ("flash_attention_2", "sdpa cudnn", "sdpa flash") and precision == FLOAT32
    if needs_16_bits and context.device.type == "cuda":
        raise NotAvailable("needs 16-bit floats")


# The loss operator, GenMD4, and what changes how gradients are made ---------------------------------------------------


def loss_operator(context: Context) -> Iterator[Row]:
    """Head and loss in one at a vocabulary of 50258: with the kernel of Triton, and with torch's."""
    for kernel in ("torch", "Triton"):
        for precision in DTYPES:
            measure = functools.partial(operator_case, context, kernel, precision)
            yield context.measured(f"loss operator, {kernel}, {precision}", measure)


def operator_case(context: Context, kernel: str, precision: str) -> Row:
    """Sum of the loss and its gradients against the processor in float64."""
    if kernel == "Triton" and (context.device.type != "cuda" or operator.triton_kernel() is None):
        raise NotAvailable("Triton is not installed, or not for this device")
    rows, hidden, vocab = (50, 32, 300) if context.tiny else (1500, 256, 50258)
    torch.manual_seed(context.options.seed)
    parameters = [torch.randn(rows, hidden), torch.randn(vocab, hidden) / hidden**0.5]
    target, weight = torch.randint(vocab - 1, (rows,)), torch.rand(rows) * 3.0

    def value_and_gradients(device: torch.device | str, dtype: torch.dtype, autocast: bool) -> dict[str, Tensor]:
        states, head = (x.to(device, dtype).requires_grad_() for x in parameters)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            total, _ = operator.linear_nelbo(
                states, head, None, target.to(device), weight.to(device, dtype), vocab - 1
            )
        gradients = torch.autograd.grad(total, (states, head))
        return {"loss": total, "gradients": torch.cat([g.cpu().double().flatten() for g in gradients])}

    reference = value_and_gradients("cpu", torch.float64, False)
    with without_triton() if kernel == "torch" else nullcontext():
        found = value_and_gradients(context.device, torch.float32, precision == BFLOAT16)
    return compared(found, reference, TOLERANCES[precision])


class without_triton:
    """Let the loss operator run torch's kernels in this context."""

    def __enter__(self):
        self.found, operator.triton_kernel = operator.triton_kernel, lambda: None

    def __exit__(self, *error):
        operator.triton_kernel = self.found


def gradients_made_otherwise(context: Context) -> Iterator[Row]:
    """Activation checkpointing and LoRA: gradients against those of the processor in float64."""
    for precision in DTYPES:
        yield context.measured(
            f"activation checkpointing, {precision}", functools.partial(checkpointing, context, precision)
        )
        yield context.measured(f"LoRA, {precision}", functools.partial(lora, context, precision))
    yield context.measured("LoRA, merged", functools.partial(merged_lora, context))


def checkpointing(context: Context, precision: str) -> Row:
    """Gradients with activation checkpointing."""
    reference, model, inputs = attention_case(context, "no mask")
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its newer name
    return compared(outcome(model, inputs, DTYPES[precision]), reference, TOLERANCES[precision])


def lora(context: Context, precision: str) -> Row:
    """Gradients of an adapter."""
    model, inputs = adapted(context)
    reference = outcome(in_float64(model), moved(inputs, "cpu"), torch.float64)
    return compared(outcome(model, inputs, DTYPES[precision]), reference, TOLERANCES[precision])


def merged_lora(context: Context) -> Row:
    """Logits of a model with its adapter beside its weights, and merged into them."""
    model, inputs = adapted(context)
    apart = logits_of(model.get_base_model(), inputs, torch.float32)
    merged = logits_of(model.merge_and_unload(), inputs, torch.float32)
    error, tolerance = relative_error(merged, apart), TOLERANCES[FLOAT32]["logits"]
    return Row("", {"logits_error": error}, error <= tolerance, f"tolerance {tolerance:g}")


def adapted(context: Context) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Model on the device with an adapter of normal weights, and a batch."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise NotAvailable("peft is not installed") from error
    _, model, inputs = attention_case(context, "no mask")
    model = add_adapter(model, LoraArguments(lora_r=4))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.03)
    return model, inputs
