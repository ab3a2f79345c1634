# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A training step gives an accelerator its work and does not wait for it: nothing blocks on a copy, nothing is read."""

import pytest
import torch
from datasets import Dataset
from tiny import random_model, training_arguments
from torch.utils._python_dispatch import TorchDispatchMode

import md4_hf.training.trainer as trainer_module
from md4_hf import MD4Trainer, MD4TrainingArguments
from md4_hf.training.finite_steps import FiniteSteps
from md4_hf.utils.hardware import HostCopy


class Calls(TorchDispatchMode):
    """Names of the operators that are called in this context."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class OnDevice:
    """What `FiniteSteps` needs of a trainer whose numbers lie on a device without values."""

    class accelerator:
        scaler = None

    class args:
        device, world_size, on_nonfinite = torch.device("meta"), 1, "stop"

    class state:
        global_step = 3

    is_deepspeed_enabled = False


def test_judging_a_step_copies_nothing_to_the_device_and_reads_nothing():
    steps = FiniteSteps(OnDevice())
    with Calls() as calls:
        for _ in range(2):  # micro-batches
            steps.add_loss(torch.zeros((), device="meta"))
        steps.judge(torch.zeros((), device="meta"))
    reading = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::lift_fresh"}
    assert not reading.intersection(calls.names)
    copies = [name for name in calls.names if name == "aten::_to_copy"]
    assert len(copies) <= 1  # to another dtype, there


@pytest.mark.parametrize("value", [torch.tensor(True), torch.arange(3.0, requires_grad=True)])
def test_a_copy_on_the_host_has_the_values(value):
    found = HostCopy(value).read()
    assert torch.equal(found, value) and not found.requires_grad


@pytest.mark.parametrize("has_accelerator", [True, False])
def test_copies_from_pinned_memory_do_not_block(tmp_path, monkeypatch, has_accelerator):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    args = MD4TrainingArguments(output_dir=str(tmp_path), report_to="none")
    assert args.dataloader_pin_memory is args.accelerator_config.non_blocking is has_accelerator


def test_batches_of_a_stream_are_moved_without_a_wait(tmp_path, monkeypatch):
    moved = []
    send = trainer_module.send_to_device

    def recorded(batches, device, non_blocking):
        moved.append((len(batches), device.type, non_blocking))
        return send(batches, device, non_blocking=non_blocking)

    monkeypatch.setattr(trainer_module, "send_to_device", recorded)
    stream = Dataset.from_dict({"input_ids": [[n % 9] * 8 for n in range(64)]}).to_iterable_dataset()
    args = training_arguments(tmp_path, max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    MD4Trainer(model=random_model(10, 8, std=0.1), args=args, train_dataset=stream).train()
    assert moved == [(2, "cpu", args.dataloader_pin_memory)] * 2
