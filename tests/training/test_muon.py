# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Muon and AdamW as one optimizer."""

import copy

import pytest
import torch
from tiny import random_image_model
from torch import nn
from torch.optim import Muon
from torch.optim.lr_scheduler import LambdaLR

from md4_hf import MD4Config, MD4ForMaskedDiffusion
from md4_hf.training.optimizers import Float32Muon, muon_with_adamw


def tiny_model(hidden_size=16):
    torch.manual_seed(0)
    config = MD4Config(vocab_size=6, hidden_size=hidden_size, num_hidden_layers=1, num_attention_heads=2)
    return MD4ForMaskedDiffusion(config)


def make_optimizer(model, lr=1e-2, weight_decay=0.1):
    return muon_with_adamw(model, lr, (0.9, 0.99), weight_decay)


def is_of_muon(name, parameter):
    return ".layers." in name and parameter.ndim == 2


def step(model, optimizer):
    ids = torch.arange(10).view(2, 5) % 5
    torch.manual_seed(1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_the_matrices_of_the_blocks_go_to_muon():
    model = tiny_model()
    optimizer = make_optimizer(model)
    muon, adamw = ({id(p) for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    for name, parameter in model.named_parameters():
        expected = muon if is_of_muon(name, parameter) else adamw
        assert id(parameter) in expected, name
    assert len(muon) + len(adamw) == len(list(model.parameters()))


def test_a_model_without_matrices_for_muon_is_refused():
    with pytest.raises(ValueError, match="`use_muon` must be False for a model without trained matrices"):
        make_optimizer(random_image_model(4, 4))


def test_only_the_matrices_of_the_blocks_decay():
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, lr=0.5).step()
    for name, parameter in model.named_parameters():
        expected = 1.0 - 0.5 * 0.1 if is_of_muon(name, parameter) else 1.0
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected), msg=name)


@pytest.mark.parametrize("hidden_size", [16, 64])
def test_a_step_of_muon_has_one_size_at_any_width(hidden_size):
    """The size of AdamW's later steps, about 0.2 of the learning rate (root mean square): one rate serves both."""
    model = tiny_model(hidden_size)
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    make_optimizer(model, weight_decay=0.0).step()
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        if is_of_muon(name, new):
            size = (new - old).square().mean().sqrt().item() / 1e-2
            assert 0.15 < size < 0.23, (name, size)


def test_a_learning_rate_scheduler_reaches_both_parts():
    optimizer = make_optimizer(tiny_model())
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [5e-3, 5e-3]


def test_a_restored_optimizer_goes_on_as_the_first_would():
    model = tiny_model()
    optimizer = make_optimizer(model)
    for _ in range(3):
        step(model, optimizer)
    twin = copy.deepcopy(model)
    restored = muon_with_adamw(twin, 1.0, (0.5, 0.5), 0.0)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((model, optimizer), (twin, restored)):
        step(*pair)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_are_left_out():
    model = tiny_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    optimizer = make_optimizer(model)
    before = model.model.embed_tokens.weight.clone()
    step(model, optimizer)
    assert torch.equal(model.model.embed_tokens.weight, before)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_muon_in_float32_is_torchs_to_the_rounding_of_bfloat16_and_goes_on_from_its_state(shape):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(21, *shape, generator=generator)
    ends = []
    for first, second in ((Muon, Muon), (Float32Muon, Float32Muon), (Muon, Float32Muon)):
        parameter = nn.Parameter(start.clone())
        options = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
        optimizer = first([parameter], **options)
        for step, gradient in enumerate(gradients):
            if step == 10:
                state = optimizer.state_dict()
                optimizer = second([parameter], **options)
                optimizer.load_state_dict(state)
            parameter.grad = gradient.clone()
            optimizer.step()
        ends.append(parameter.detach() - start)
    for end in ends[1:]:
        assert (end - ends[0]).norm() < 0.01 * ends[0].norm()


@pytest.mark.parametrize("emulated", [False, True])
def test_a_processor_without_bfloat16_has_muon_in_float32(emulated, monkeypatch):
    monkeypatch.setattr("md4_hf.training.optimizers._emulates_bfloat16", lambda parameters: emulated)
    optimizer = make_optimizer(tiny_model())
    assert type(optimizer.parts[0]) is (Float32Muon if emulated else Muon)
