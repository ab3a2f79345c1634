# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Noise, moving average and resumption on the device."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback

from md4_hf import EmaCallback, MD4ForMaskedDiffusion, MD4Trainer, MD4TrainingArguments, corrupt, make_schedule
from md4_hf.objective.noise import (
    evaluation_mask_noise,
    evaluation_times,
    keyed_uniform,
    training_mask_noise,
    training_times,
)

from .comparing import compared
from .part import Context, Row
from .steps import preset_config


EMA_TOLERANCE = 1e-6
STEPS = 6


def keyed_noise(context: Context) -> Row:
    """Times, mask noise and masked ids, of training and evaluation: the same bits as on the processor."""
    batch, length = (8, 16) if context.tiny else (64, 1024)

    def numbers(device: torch.device | str) -> dict[str, Tensor]:
        index = torch.arange(batch, device=device)
        times = training_times(3, 5, index, batch)
        noise = training_mask_noise(3, 5, index, torch.Size((batch, length)))
        x0 = torch.zeros(batch, length, dtype=torch.long, device=device)
        return {
            "times": times,
            "noise": noise,
            "copies": training_mask_noise(3, 5, index, torch.Size((batch, 2, length))),
            "ids": corrupt(x0, make_schedule("linear").alpha(times), 1, noise=noise),
            "evaluation times": evaluation_times(3, index, 1, 4),
            "evaluation noise": evaluation_mask_noise(3, index, 1, torch.Size((batch, length))),
            "float64": keyed_uniform(3, index, device=device, dtype=torch.float64),
        }

    expected, found = numbers("cpu"), numbers(context.device)
    differing = [name for name, x in found.items() if not torch.equal(x.cpu(), expected[name])]
    return Row("", {"compared": len(found), "differing": len(differing)}, not differing, ", ".join(differing) or None)


def moving_average(context: Context) -> Row:
    """The average of weights after some steps against the processor in float64."""
    torch.manual_seed(context.options.seed)
    model = MD4ForMaskedDiffusion(preset_config("text8", tiny=True)).to(context.device)
    args = MD4TrainingArguments(output_dir=str(context.output), use_cpu=context.device.type == "cpu")
    ema, average = EmaCallback(0.9), flat(model)
    ema.on_train_begin(args, None, None, model=model)
    for step in range(1, 21):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        ema.on_step_end(args, None, None, model=model)
        decay = min(0.9, step / (9 + step))  # (1 + s) / (10 + s) after s = step - 1 earlier steps
        average = decay * average + (1.0 - decay) * flat(model)
    found = torch.cat([x.detach().cpu().double().flatten() for x in ema.values])
    return compared({"average": found}, {"average": average}, {"average": EMA_TOLERANCE})


def flat(model: torch.nn.Module) -> Tensor:
    """All weights in one row, on the processor in float64."""
    return torch.cat([parameter.detach().cpu().double().flatten() for parameter in model.parameters()])


class RandomIds(torch.utils.data.Dataset):
    """Rows of random ids."""

    def __init__(self, num_examples: int, length: int, vocab: int):
        self.ids = torch.randint(vocab, (num_examples, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index]}


def make_trainer(context: Context, folder: Path, **options: Any) -> MD4Trainer:
    """Trainer of a small model with dropout, in bf16, with checkpoints halfway."""
    torch.manual_seed(context.options.seed)
    config = preset_config("text8", tiny=True, attn_implementation="sdpa")
    data = RandomIds(1024, config.max_position_embeddings, config.vocab_size - 1)
    defaults: dict[str, Any] = {"max_steps": STEPS, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    defaults |= {"save_strategy": "steps", "save_steps": STEPS // 2, "logging_steps": 1}
    defaults |= {"ema_decay": 0.9, "bf16": True}
    defaults |= {"report_to": "none", "disable_tqdm": True, "use_cpu": context.device.type == "cpu"}
    args = MD4TrainingArguments(output_dir=str(folder), **{**defaults, **options})
    trainer = MD4Trainer(model=MD4ForMaskedDiffusion(config), args=args, train_dataset=data)
    trainer.pop_callback(PrinterCallback)
    return trainer


def resumption(context: Context, deterministic: bool) -> Row:
    """Weights of a run that was resumed halfway, and of one that was not.

    torch's own kernels add in any order on a GPU, unless it is told to be deterministic: then the bits have to agree.
    """
    folder = context.output / "resumption"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with deterministic_algorithms() if deterministic else contextlib.nullcontext():
            unbroken = make_trainer(context, folder / "unbroken")
            unbroken.train()
            make_trainer(context, folder / "run").train()
            shutil.rmtree(folder / "run" / f"checkpoint-{STEPS}")
            resumed = make_trainer(context, folder / "run")
            resumed.train(resume_from_checkpoint=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    difference = float((flat(unbroken.model) - flat(resumed.model)).abs().max())
    figures = {"largest_difference": difference, "steps": resumed.state.global_step}
    is_whole = resumed.state.global_step == STEPS
    if not deterministic:
        return Row("", figures, None, "for information: kernels add in any order")
    return Row("", figures, difference == 0.0 and is_whole, "tolerance 0: the same bits")


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Let torch choose deterministic kernels, and warn where it has none."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
