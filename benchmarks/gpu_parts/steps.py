# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training steps as `MD4Trainer` takes them, in a bare loop: noise, loss, gradients, optimizer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from flops import training_flops
from naive import md4_loss
from torch import Tensor

from md4_hf import PRESETS, MD4Config, MD4ForMaskedDiffusion, MD4TrainingArguments, Objective
from md4_hf.training.batches import noised_batch, number_step_examples


VOCABULARIES = {"text8": 28, "gpt2": 50258}  # rows of the embedding for a preset's tokenizer, with the mask
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 67}
LAYERS, WHOLE = "layers", "whole"  # ways to compile a model


def preset_config(name: str, tiny: bool = False, **changes: Any) -> MD4Config:
    """Configuration of the model of a preset; with `tiny`, of the same kind and small."""
    preset = PRESETS[name]
    length = preset.data["block_size"]
    options = {**preset.model, "vocab_size": VOCABULARIES[preset.tokenizer], "max_position_embeddings": length}
    if tiny:
        options |= {**TINY, "vocab_size": min(TINY["vocab_size"], options["vocab_size"])}
        options["max_position_embeddings"] = 32
    return MD4Config(**{**options, **changes})


def random_model(config: MD4Config, device: torch.device | str, seed: int = 0) -> MD4ForMaskedDiffusion:
    """Model with normal weights everywhere: a fresh one's head and gates are zero."""
    torch.manual_seed(seed)
    with torch.device(device):  # where it is initialised in no time
        model = MD4ForMaskedDiffusion(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def compiled(model: MD4ForMaskedDiffusion, way: str | None, only_traced: bool = False) -> torch.nn.Module:
    """Compile a model as one graph, layer by layer (in place), or not at all.

    With `only_traced`, and on a processor, where compiling takes minutes, the graphs are made but run as they are.
    """
    options = {"backend": "aot_eager"} if only_traced or model.device.type == "cpu" else {}
    if way == WHOLE:
        return torch.compile(model, fullgraph=True, **options)
    if way == LAYERS:
        for layer in model.model.layers:
            layer.compile(fullgraph=True, **options)
    return model


def operator_loss(network: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Loss as the package computes it in training."""
    return network(**inputs).loss


def loss_of_all_logits(network: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Loss from the logits of all positions, by the package."""
    return network(**{**inputs, "max_masked": None}, output_logits=True).loss


def official_loss(network: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Loss as the official code formulates it."""
    return md4_loss(network, inputs["input_ids"], inputs["labels"], inputs["timesteps"])


class TrainingStep:
    """A training step on random ids: noise, forward, backward and fused AdamW.

    Args:
        config: Configuration of the model.
        batch: Examples of a step.
        device: Where it runs.
        way: Way to compile it, see `compiled`.
        loss: Function that computes the loss.
        dtype: Precision of autocast; float32 is without.
        output_dir: Folder that the trainer's arguments ask for; nothing is written.
        model: Model on the device; by default one with random weights.
    """

    def __init__(
        self,
        config: MD4Config,
        batch: int,
        device: torch.device,
        way: str | None = None,
        loss: Callable[[torch.nn.Module, dict[str, Any]], Tensor] = operator_loss,
        dtype: torch.dtype = torch.bfloat16,
        output_dir: str = "runs/gpu",
        model: MD4ForMaskedDiffusion | None = None,
    ):
        self.config, self.device, self.dtype, self.loss_of = config, device, dtype, loss
        self.model = (random_model(config, device) if model is None else model).train()
        self.network = compiled(self.model, way)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=device.type == "cuda")
        self.objective = Objective.of_config(config)
        self.args = MD4TrainingArguments(output_dir=output_dir, use_cpu=device.type == "cpu", report_to="none")
        self.x0 = torch.randint(config.vocab_size - 1, (batch, config.max_position_embeddings), device=device)
        self.step = 0

    def inputs(self, **columns: Tensor) -> dict[str, Any]:
        """Inputs of the model for the next step, noised as the trainer does it, on top of these columns."""
        batch: dict[str, Any] = {"input_ids": self.x0, "labels": self.x0, **columns}
        number_step_examples([batch], 0, 1)
        self.step += 1
        batch["all_scored"] = not columns
        return noised_batch(batch, self.objective, self.args, self.step)

    def loss(self, **columns: Tensor) -> Tensor:
        """Loss of the next step."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.loss_of(self.network, self.inputs(**columns))

    def __call__(self, **columns: Tensor) -> Tensor:
        loss = self.loss(**columns)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.x0.numel()

    def flops(self) -> float:
        """Operations that loss and gradient need; half of the tokens are masked on average."""
        return training_flops(self.config, self.tokens, self.x0.shape[1], self.tokens // 2)


@contextlib.contextmanager
def memory_freed(device: torch.device) -> Iterator[None]:
    """Give back what the device had allocated in this context, when it ends."""
    import gc

    try:
        yield
    finally:
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def seconds_per_call(function: Callable[[], Any], device: torch.device, repeats: int, warm_up: int = 3) -> float:
    """Seconds of a call, by the host's clock over calls that follow each other without a wait."""
    for _ in range(warm_up):
        function()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (time.perf_counter() - begin) / repeats


def synchronize(device: torch.device):
    """Wait for an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int | None:
    """The most bytes that the device holds during a call; None on a processor."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
