# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: whole or passed over with the reason, whatever moment a run dies at."""

import contextlib
import importlib.metadata
import json
import os
import shutil

import pytest
import torch
from test_trainer import dataset, losses, make_trainer, tiny_model
from tiny import trained, weights
from transformers import Trainer

from md4_hf import LoraArguments, add_adapter
from md4_hf.training import checkpoint_writer
from md4_hf.training.checkpoint_writer import check_can_be_resumed
from md4_hf.training.checkpoints import (
    FSDP_SHARDED,
    FSDP_WHOLE,
    MANIFEST,
    PLAIN,
    check_training_state,
    checkpoint_problem,
    checkpoint_to_resume,
    commit,
    newest_whole,
    remove,
    rotate,
    set_aside,
)


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "ema_decay": 0.5}


def make_checkpoint(run, step):
    """A committed folder of two files."""
    staged = run / "staged"
    (staged / "ema").mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(bytes(range(200)) + bytes([step]))
    (staged / "ema" / "config.json").write_text("{}")
    commit(staged, run / f"checkpoint-{step}")
    return run / f"checkpoint-{step}"


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[100] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def point_outside(folder):
    (folder.parent / "secret").write_text("x")
    entry = {"bytes": 1, "sha256": "0"}
    (folder / MANIFEST).write_text(json.dumps({"files": {"../secret": entry}}))


DAMAGE = {
    "model.safetensors has 200 bytes in place of 201": truncate,
    "model.safetensors does not have its checksum": flip_a_bit,
    "ema/config.json is missing": lambda folder: (folder / "ema" / "config.json").unlink(),
    f"it has no {MANIFEST}": lambda folder: (folder / MANIFEST).unlink(),
    f"its {MANIFEST} cannot be read": lambda folder: (folder / MANIFEST).write_text('{"files": [1]}'),
    "names '../secret', which is outside": point_outside,
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(tmp_path, reason, caplog):
    older, newer = make_checkpoint(tmp_path, 2), make_checkpoint(tmp_path, 10)
    assert newest_whole(tmp_path) == (newer, [])
    DAMAGE[reason](newer)
    assert reason in checkpoint_problem(newer)
    assert newest_whole(tmp_path)[0] == older
    with caplog.at_level("WARNING", logger="md4_hf"):
        assert checkpoint_to_resume("latest", tmp_path) == str(older)
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a whole checkpoint"):
        checkpoint_to_resume(newer, tmp_path)


def test_a_checkpoint_gets_its_name_when_it_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    """If the process or the machine dies at the moment of the renaming, what the disk holds then is left."""
    staged, final, renamed, synced = tmp_path / "staged", tmp_path / "checkpoint-1", [], set()
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def look_and_rename(source, target):
        assert checkpoint_problem(source) is None and not final.exists()
        assert {path.stat().st_ino for path in (staged, *staged.rglob("*"))} <= synced
        renamed.append((source, target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", look_and_rename)
    assert make_checkpoint(tmp_path, 1) == final
    assert renamed == [(staged, final)] and checkpoint_problem(final) is None and not staged.exists()
    assert tmp_path.stat().st_ino in synced, "and so is the new name"


def test_where_there_is_no_checkpoint_only_auto_starts_anew(tmp_path):
    assert checkpoint_to_resume("auto", tmp_path / "none") is None
    assert checkpoint_to_resume(None, tmp_path) is checkpoint_to_resume(False, tmp_path) is None
    with pytest.raises(ValueError, match="must find a whole checkpoint: there is none in"):
        checkpoint_to_resume(True, tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        checkpoint_to_resume(tmp_path / "checkpoint-7", tmp_path)


def test_a_run_goes_on_from_the_newest_whole_checkpoint_as_if_unbroken(tmp_path):
    unbroken = trained(make_trainer(tmp_path / "unbroken", **SAVING))
    trained(make_trainer(tmp_path / "run", **SAVING))
    truncate(tmp_path / "run" / "checkpoint-6")
    resumed = trained(make_trainer(tmp_path / "run", **SAVING), checkpoint="auto")
    assert resumed.state.global_step == 6
    torch.testing.assert_close(weights(resumed.model), weights(unbroken.model), atol=0, rtol=0)
    assert checkpoint_problem(tmp_path / "run" / "checkpoint-6") is None, "written anew"


def test_a_finished_run_stays_as_it_is(tmp_path):
    trainer = trained(make_trainer(tmp_path, **SAVING))
    again = trained(make_trainer(tmp_path, **SAVING), checkpoint=True)
    assert again.state.global_step == 6
    torch.testing.assert_close(weights(again.model), weights(trainer.model), atol=0, rtol=0)
    with again.ema_weights(), trainer.ema_weights():
        torch.testing.assert_close(weights(again.model), weights(trainer.model), atol=0, rtol=0)


# Rotation, and runs that begin again at an earlier step ---------------------------------------------------------------


def steps(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("reason", [reason for reason in DAMAGE if "checksum" not in reason])
def test_rotation_removes_a_damaged_checkpoint_before_a_whole_one_and_goes_by_steps(tmp_path, reason):
    """A removal that was killed has left part of a checkpoint, with the newest time of all."""
    checkpoints = {step: make_checkpoint(tmp_path, step) for step in (3, 9, 10, 20, 100)}
    for time, step in enumerate((100, 20, 10, 9, 3)):
        os.utime(checkpoints[step], (1e9 + 100 * time,) * 2)
    DAMAGE[reason](checkpoints[10])
    for limit, left in ((4, [3, 9, 20, 100]), (3, [9, 20, 100]), (1, [20, 100])):
        rotate(tmp_path, limit, [checkpoints[100], str(checkpoints[20])])
        assert steps(tmp_path) == left
    for limit in (None, 0, -1, 1):
        rotate(tmp_path, limit, [checkpoints[100], str(checkpoints[20])])
    assert steps(tmp_path) == [20, 100]


def test_a_removal_that_dies_leaves_no_part_under_the_name(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path, 2)

    def die(folder, **kwargs):
        assert not checkpoint.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", die)
        remove(checkpoint)
    assert steps(tmp_path) == []
    remove(make_checkpoint(tmp_path, 4))
    assert list(tmp_path.iterdir()) == []


def test_later_checkpoints_are_set_aside_in_a_new_folder_each_time(tmp_path):
    for step in (2, 10, 30):
        make_checkpoint(tmp_path, step)
    set_aside(tmp_path, 9)
    assert steps(tmp_path) == [2] and steps(tmp_path / "abandoned-1") == [10, 30]
    set_aside(tmp_path, 2)
    assert not (tmp_path / "abandoned-2").exists()
    make_checkpoint(tmp_path, 10)
    set_aside(tmp_path, 0)
    assert steps(tmp_path) == [] and steps(tmp_path / "abandoned-2") == [2, 10]
    assert checkpoint_problem(tmp_path / "abandoned-1" / "checkpoint-30") is None


@pytest.mark.parametrize("limit", [None, 1])
def test_auto_does_not_go_back_to_an_abandoned_branch(tmp_path, limit):
    make_trainer(tmp_path, **SAVING).train()
    branch = make_trainer(tmp_path, **{**SAVING, "save_steps": 1, "max_steps": 3}, save_total_limit=limit)
    branch.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps(tmp_path / "abandoned-1") == [4, 6]
    assert steps(tmp_path) == ([3] if limit == 1 else [2, 3])
    assert checkpoint_to_resume("auto", tmp_path) == str(tmp_path / "checkpoint-3")


def test_a_new_training_in_the_folder_of_another_sets_its_checkpoints_aside(tmp_path):
    make_trainer(tmp_path, **SAVING).train()
    make_trainer(tmp_path, **{**SAVING, "max_steps": 3}, save_total_limit=1).train()
    assert steps(tmp_path) == [3] and steps(tmp_path / "abandoned-1") == [2, 4, 6]


@pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("accumulation", "genmd4"))]
)
def test_a_resumed_run_logs_what_the_unbroken_one_does(tmp_path, kind):
    """Checkpoints fall between two lines of the log, so that the sums since the last have to come with them."""
    options = {**SAVING, "save_steps": 1, "max_steps": 12, "logging_steps": 5}
    if kind == "accumulation":
        options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    model = {"learn_masking_schedule": True, "masking_schedule": "poly"} if kind == "genmd4" else {}
    unbroken = make_trainer(tmp_path / "unbroken", tiny_model(**model), **options)
    unbroken.train()
    for step in (3, 5, 9):
        shutil.copytree(tmp_path / "unbroken", tmp_path / str(step))
        resumed = make_trainer(tmp_path / str(step), tiny_model(**model), **options)
        output = resumed.train(resume_from_checkpoint=str(tmp_path / str(step) / f"checkpoint-{step}"))
        assert resumed.state.log_history[:-1] == unbroken.state.log_history[:-1] and len(losses(resumed)) == 2
        least = -10 if kind == "genmd4" else 0.2  # the leave-one-out loss has either sign
        assert least < output.training_loss < 10, "a mean over the steps of this training"


@pytest.mark.parametrize("scheduler", ["reduce_lr_on_plateau", "cosine", "constant", "greedy"])
def test_the_state_of_each_kind_of_scheduler_is_taken(tmp_path, scheduler):
    options = {**SAVING, "lr_scheduler_type": scheduler, "eval_strategy": "steps", "eval_steps": 2}
    make_trainer(tmp_path, evaluation=dataset(8), **{**options, "max_steps": 4}).train()
    resumed = make_trainer(tmp_path, evaluation=dataset(8), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6 and len(losses(resumed)) == 6


# Damaged and hostile states -------------------------------------------------------------------------------------------


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def write_text(text):
    return lambda path: path.write_text(text)


def write_bytes(path):
    path.write_bytes(b"no archive")


def change_json(**values):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_torch(**values):
    return lambda path: torch.save({**torch.load(path, weights_only=False), **values}, path)


def replace_torch(value):
    return lambda path: torch.save(value, path)


BAD_STATES = [
    *(("trainer_state.json", write_text(text)) for text in ("", "[1]", "{}", '{"epoch"', "3", '{"x": 1}')),
    *(("trainer_state.json", change_json(global_step=value)) for value in (None, "3", 2.5, [3], True)),
    ("trainer_state.json", change_json(log_history={"a": 1})),
    ("trainer_state.json", change_json(log_history=[1])),
    ("trainer_state.json", change_json(epoch="x")),
    ("trainer_state.json", change_json(stateful_callbacks=[])),
    ("trainer_state.json", change_json(stateful_callbacks={})),
    ("trainer_state.json", change_json(unknown=1)),
    ("trainer_state.json", change_json(best_model_checkpoint=3)),
    *(("scheduler.pt", change) for change in (write_bytes, replace_torch([1]), replace_torch({}), replace_torch(3))),
    ("scheduler.pt", change_torch(last_epoch="x")),
    ("scheduler.pt", change_torch(base_lrs=3)),
    ("scheduler.pt", change_torch(base_lrs=["x"])),
    ("scheduler.pt", change_torch(_last_lr=None)),
    *(("rng_state.pth", change) for change in (write_bytes, replace_torch([1]), replace_torch({}))),
    ("rng_state.pth", change_torch(python=(1, 2))),
    ("rng_state.pth", change_torch(python=None)),
    ("rng_state.pth", change_torch(numpy=("MT19937", [1], 2))),
    ("rng_state.pth", change_torch(cpu=torch.zeros(3))),
    *(("scaler.pt", change) for change in (write_bytes, replace_torch([1]), replace_torch({"scale": "x"}))),
    *(("optimizer.pt", change) for change in (write_bytes, replace_torch([1]), replace_torch({}))),
    ("optimizer.pt", change_torch(param_groups=3)),
    *(("running_sums.json", write_text(text)) for text in ("", "[]", '{"loss": 1}')),
    *(
        ("stream-rank-0.json", write_text(text))
        for text in ("", "[]", '{"num_processes": 1}', '{"num_processes": "x"}')
    ),
    ("running_sums.json", change_json(num_steps="x")),
    ("running_sums.json", change_json(loss=[])),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint at step 2."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, **{**SAVING, "max_steps": 3}).train()
    return folder / "checkpoint-2"


def copy_with_change(checkpoint, copy, name, change):
    """Copy a checkpoint with one file changed and a manifest that agrees: the change is no accident of the disk."""
    staged = copy.with_name("staged")
    shutil.copytree(checkpoint, staged, ignore=shutil.ignore_patterns(MANIFEST))
    change(staged / name)
    commit(staged, copy)


@pytest.mark.parametrize("number", range(len(BAD_STATES)))
def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path, whole, number):
    name, change = BAD_STATES[number]
    copy_with_change(whole, tmp_path / "checkpoint-2", name, change)
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must hold a well-formed.*{name}"):
        if name == "optimizer.pt":  # which only its optimizer understands
            make_trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)
        else:
            check_training_state(tmp_path / "checkpoint-2", PLAIN, 1)


@pytest.mark.parametrize("name", ["scheduler.pt", "rng_state.pth", "optimizer.pt", "scaler.pt"])
def test_no_code_in_a_state_runs(tmp_path, whole, name):
    copy_with_change(whole, tmp_path / "checkpoint-2", name, replace_torch({"x": Code(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=name):
        make_trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)
    assert not (tmp_path / "ran").exists()


def test_processes_that_do_not_save_leave_the_files_of_the_model_alone(tmp_path, monkeypatch):
    """`Trainer._save` of transformers 5.17 writes on every process that calls it, newer ones on the first alone."""
    trainer, written = make_trainer(tmp_path), []
    monkeypatch.setattr(Trainer, "_save", lambda trainer, folder, state_dict: written.append(state_dict))
    monkeypatch.setattr(type(trainer.args), "should_save", False)
    trainer.save_model(str(tmp_path / "model"))
    trainer.save_repository(tmp_path / "repository")
    assert not written and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("version", "is_adapted", "kind", "needed"),
    [
        ("1.12.0", False, FSDP_SHARDED, "1.13.0"),
        ("1.14.0", False, FSDP_WHOLE, None),
        ("1.14.0", True, FSDP_SHARDED, None),
        ("1.14.0", True, FSDP_WHOLE, "1.15.0"),
        ("1.15.0", True, FSDP_WHOLE, None),
    ],
)
def test_an_accelerate_that_would_not_resume_is_refused(tmp_path, monkeypatch, version, is_adapted, kind, needed):
    model = tiny_model()
    trainer = make_trainer(tmp_path, add_adapter(model, LoraArguments()) if is_adapted else model)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    check_can_be_resumed(trainer)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    monkeypatch.setattr(checkpoint_writer, "kind_of_training", lambda trainer: kind)
    expected = pytest.raises(ImportError, match=f"need accelerate {needed} or later, got {version}: pip install")
    with expected if needed else contextlib.nullcontext():
        check_can_be_resumed(trainer)
