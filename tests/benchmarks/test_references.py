# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The references that md4_hf is measured against compute the same numbers: naively, and as MDLM does."""

import pytest
import torch
from mdlm import TORCHS, CachedNetwork, cached_calls, mdlm_config, mdlm_loss
from naive import md4_loss
from training_step import MDLM, OFFICIAL, OURS, Setting, Step, variants_of

from md4_hf import MaskedDiffusionScheduler, MD4Config, MD4ForMaskedDiffusion


SMALL = Setting(vocab_size=11, length=8, hidden_size=32, num_layers=2, num_heads=2, batch=3)


@pytest.fixture
def mdlm():
    model = MD4ForMaskedDiffusion(mdlm_config(SMALL.config())).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("loss", [mdlm_loss, md4_loss])
def test_losses_of_the_references_are_those_of_the_model(mdlm, loss):
    mdlm.config.schedule_eps = 0.0
    model = MD4ForMaskedDiffusion(mdlm.config).eval()
    model.load_state_dict(mdlm.state_dict())
    x0, t = torch.randint(10, (4, 8)), torch.tensor([0.2, 0.4, 0.6, 0.9])
    xt = torch.where(torch.rand(4, 8) < t[:, None], 10, x0)
    ours = model(xt, timesteps=t, labels=x0).loss
    torch.testing.assert_close(loss(model, xt, x0, t), ours, rtol=1e-5, atol=1e-5)


def test_all_variants_of_a_step_have_the_network_that_they_are_named_for():
    steps = {variant: Step(SMALL, variant) for variant in (OFFICIAL, MDLM, OURS)}
    assert steps[MDLM].model.config.backbone == "ddit" and not steps[MDLM].model.config.time_conditioning
    assert steps[MDLM].model.config._attn_implementation == TORCHS
    torch.testing.assert_close(steps[OFFICIAL].loss(), steps[OURS].loss(), rtol=1e-3, atol=0.0)  # no reconstruction
    steps[OURS]()
    assert len(steps[OURS].without_optimizer) == 1
    assert MDLM not in variants_of(Setting(11, 8, 32, 2, 2, 3, objective="genmd4"))


def test_a_cached_network_runs_after_a_change_only(mdlm):
    calls, masks = [], torch.full((2, 8), 10)
    mdlm.register_forward_pre_hook(lambda *_: calls.append(1))
    scheduler = MaskedDiffusionScheduler(mask_token_id=10)
    scheduler.set_timesteps(30)
    opening = scheduler.plan_openings(masks, torch.Generator().manual_seed(0)).steps
    cached = CachedNetwork(mdlm)
    for step, t in enumerate(scheduler.timesteps):
        xt = masks.where(opening >= step, 1)
        output = cached(xt, timesteps=t.expand(2))
        torch.testing.assert_close(output.logits, mdlm(xt).logits)
        calls.pop()  # of the comparison
    assert len(calls) == cached_calls(scheduler, 2, 8, 10) < 30


def test_the_network_of_mdlm_has_the_size_of_the_other():
    config = MD4Config(vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=2)
    assert mdlm_config(config).num_hidden_layers == 3 and mdlm_config(config).intermediate_size == 256
