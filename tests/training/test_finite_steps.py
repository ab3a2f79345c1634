# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Losses, gradients and weights that are not finite: the run stops before a checkpoint, or the step is left out."""

import math

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import losses, make_trainer, tiny_model
from tiny import weights

from md4_hf.training.finite_steps import SKIP, STOP


BAD_STEP = 5
SAVING = {"max_steps": 9, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


def poison_gradient(trainer, value, bad_step=BAD_STEP):
    """Multiply a gradient of one step."""
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda gradient: gradient * (value if trainer.state.global_step + 1 == bad_step else 1.0))


def poison_loss(trainer, value):
    """Add to the loss of one step."""

    def add(model, args, output):
        if model.training and trainer.state.global_step + 1 == BAD_STEP:
            output.loss = output.loss + value

    trainer.model.register_forward_hook(add)


POISONS = {
    "gradient nan": (poison_gradient, math.nan),
    "gradient inf": (poison_gradient, math.inf),
    "loss nan": (poison_loss, math.nan),
    "loss inf": (poison_loss, math.inf),
}
KINDS = {
    "plain": {},
    "average": {"ema_decay": 0.5},
    "accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "no clipping": {"max_grad_norm": 0.0},
    "Muon": {"use_muon": True},
}
CASES = [*((poison, "plain") for poison in POISONS), *(("gradient nan", kind) for kind in KINDS if kind != "plain")]


def saved_weights(folder):
    return [load_file(path) for path in sorted(folder.rglob("checkpoint-*/**/model.safetensors"))]


def all_finite(checkpoints):
    return all(tensor.isfinite().all() for tensors in checkpoints for tensor in tensors.values())


@pytest.mark.parametrize(("poison", "kind"), CASES)
def test_a_step_that_is_not_finite_stops_the_run_and_the_good_checkpoints_stay(tmp_path, poison, kind):
    trainer = make_trainer(tmp_path, **SAVING, **KINDS[kind])
    inject, value = POISONS[poison]
    inject(trainer, value)
    with pytest.raises(FloatingPointError, match=f'gradient of step {BAD_STEP} is not finite.*`on_nonfinite="skip"`'):
        trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert all_finite(saved_weights(tmp_path))


@pytest.mark.parametrize("bad_step", [1, 4, 9])
def test_the_first_step_one_that_is_saved_and_the_last_stop_the_run_too(tmp_path, bad_step):
    trainer = make_trainer(tmp_path, **SAVING)
    poison_gradient(trainer, math.nan, bad_step)
    with pytest.raises(FloatingPointError, match=f"step {bad_step} is not finite"):
        trainer.train()
    assert not (tmp_path / f"checkpoint-{bad_step}").exists() and all_finite(saved_weights(tmp_path))


def test_weights_that_a_finite_gradient_makes_infinite_are_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, **{**SAVING, "save_steps": 1}, learning_rate=3e38)
    with pytest.raises(FloatingPointError, match="the weights after step 1 are not finite"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(("poison", "kind"), CASES)
def test_a_step_that_is_not_finite_is_left_out_on_request(tmp_path, poison, kind, caplog):
    trainer = make_trainer(tmp_path, on_nonfinite=SKIP, **SAVING, **KINDS[kind])
    inject, value = POISONS[poison]
    inject(trainer, value)
    before = {}

    def note_weights(model, args):
        before.setdefault(trainer.state.global_step + 1, weights(model).clone())

    trainer.model.register_forward_pre_hook(note_weights)
    with caplog.at_level("WARNING", logger="md4_hf"):
        trainer.train()
    assert torch.equal(before[BAD_STEP], before[BAD_STEP + 1]) and not torch.equal(before[4], before[5])
    assert f"Left out step {BAD_STEP}" in caplog.text and "1 of the steps" in caplog.text
    assert trainer.state.global_step == 9 and all_finite(saved_weights(tmp_path))
    assert len(losses(trainer)) == 8 and all(map(math.isfinite, losses(trainer)))
    assert trainer.state.log_history[-2]["num_left_out"] == 1


@pytest.mark.parametrize("genmd4", [False, True])
def test_a_step_that_is_left_out_is_not_in_the_mean_of_the_log(tmp_path, genmd4):
    options = {"max_steps": 6, "learning_rate": 0.0}
    model = {"learn_masking_schedule": True, "masking_schedule": "poly"} if genmd4 else {}
    singly = make_trainer(tmp_path, tiny_model(**model), **options)
    singly.train()
    trainer = make_trainer(tmp_path, tiny_model(**model), on_nonfinite=SKIP, logging_steps=6, **options)
    poison_gradient(trainer, math.nan)
    trainer.train()
    name = "nelbo" if genmd4 else "loss"
    expected = [entry[name] for entry in singly.state.log_history if name in entry and entry["step"] != BAD_STEP]
    assert trainer.state.log_history[0][name] == pytest.approx(sum(expected) / 5, rel=1e-5)


def test_weights_that_give_no_finite_step_any_more_stop_the_run_that_leaves_steps_out(tmp_path):
    trainer = make_trainer(tmp_path, on_nonfinite=SKIP, max_steps=20, learning_rate=1e25, save_strategy="no")
    with pytest.raises(FloatingPointError, match="the last 5 steps up to step 6 were not finite.*before step 1"):
        trainer.train()
    assert trainer.state.global_step == 5 and trainer.sums.num_left_out == 4


def test_a_run_that_leaves_steps_out_is_resumed_as_if_unbroken(tmp_path):
    runs = []
    for folder, checkpoint in (("a", None), ("b", None), ("b", tmp_path / "b" / "checkpoint-6")):
        trainer = make_trainer(tmp_path / folder, on_nonfinite=SKIP, **{**SAVING, "save_total_limit": None})
        poison_gradient(trainer, math.inf)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        runs.append(trainer)
    assert torch.equal(weights(runs[2].model), weights(runs[0].model))
    assert [trainer.sums.num_left_out for trainer in runs] == [1, 1, 1]


@pytest.mark.parametrize("value", ["ignore", None, True])
def test_another_choice_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=f"`on_nonfinite` must be '{STOP}' or '{SKIP}'"):
        make_trainer(tmp_path, on_nonfinite=value)
