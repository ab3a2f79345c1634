# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks of baselines, run small."""

import math

import pytest
import torch
from baselines import METHODS, parse_arguments, report
from gradient_variance import Estimators, variances
from tiny import random_model


@pytest.mark.slow
def test_all_estimates_of_the_bound_have_one_mean():
    """MD4's expression and that of the jump process, with one jump or all, agree for any denoiser."""
    model = random_model(6, 8, 0.3, time_conditioning=False, masking_schedule="loglinear", schedule_eps=0.1)
    ids = torch.randint(5, (32, 8), generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("md4", "jump", "all_jumps"):
        for is_stratified in (False, True):
            estimators = Estimators(model.eval(), ids, torch.Generator().manual_seed(1))
            estimate = getattr(estimators, name)
            found[name, is_stratified] = variances(model, lambda e=estimate, s=is_stratified: e(s), 24, name)
    expected = found["md4", True]
    for kind, figures in found.items():
        error = math.hypot(figures["error"], expected["error"])
        assert abs(figures["mean"] - expected["mean"]) < 4.0 * error, kind


@pytest.mark.slow
def test_the_report_has_every_method(tmp_path, monkeypatch):
    """A run that is asked for again takes everything from its folder."""
    monkeypatch.chdir(tmp_path)
    argv = ["--max_steps", "4", "--evaluations", "2", "--draws", "1", "--seeds", "0", "--output", "baselines.md"]
    text = report(parse_arguments(argv), argv)
    assert all(f"| {name} | " in text for name, _, _ in METHODS.values())
    assert (tmp_path / "baselines.png").exists() and "## The sum of the score" in text
    assert "| D3PM, uniform, without the cross entropy |" in text
    monkeypatch.setattr("kept_runs.quietly", None)
    assert report(parse_arguments(argv), argv) == text
