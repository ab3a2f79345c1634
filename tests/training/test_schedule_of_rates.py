# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Warm-up fits into the run, and the options of a resumed run count."""

import pytest
from test_trainer import make_trainer

from md4_hf.training.optimizers import shorter_warmup


SAVING = {"save_strategy": "steps", "save_steps": 2, "ema_decay": 0.0}


@pytest.mark.parametrize(
    "asked, steps, expected", [(0, 3, 0), (2, 3, 2), (20, 3, 0), (20, 20, 2), (20, 100, 20), (2000, 150, 15)]
)
def test_a_warmup_leaves_steps_at_the_full_rate(asked, steps, expected):
    assert shorter_warmup(asked, steps) == expected


@pytest.mark.parametrize("asked, cut", [(20, True), (2, False), (0.5, False)])
def test_a_warmup_that_is_longer_than_the_run_is_cut_and_said_to_be(tmp_path, caplog, asked, cut):
    options = {"max_steps": 4, "warmup_steps": asked, "logging_steps": 1, "lr_scheduler_type": "constant_with_warmup"}
    trainer = make_trainer(tmp_path, learning_rate=0.01, **options)
    with caplog.at_level("WARNING", logger="md4_hf"):
        trainer.train()
    assert ("`warmup_steps` is 20 of 4 steps in all, and cut to 0" in caplog.text) == cut
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert max(rates) == 0.01 and trainer.args.warmup_steps == asked


@pytest.mark.parametrize("use_muon", [False, True])
def test_a_resumed_run_has_the_rate_and_decay_that_are_asked_for(tmp_path, use_muon):
    options = {**SAVING, "use_muon": use_muon, "lr_scheduler_type": "linear", "logging_steps": 1}
    make_trainer(tmp_path, max_steps=2, learning_rate=0.01, weight_decay=0.1, **options).train()
    again = make_trainer(tmp_path, max_steps=4, learning_rate=0.002, weight_decay=0.3, **options)
    again.train(resume_from_checkpoint=True)
    rates = [entry["learning_rate"] for entry in again.state.log_history if "learning_rate" in entry]
    assert rates[2:] == pytest.approx([0.002 * 2 / 4, 0.002 * 1 / 4])
    assert max(group["weight_decay"] for group in again.optimizer.param_groups) == 0.3
