# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: whole or passed over with the reason, whatever moment a run dies at."""

import json
import os

import pytest
import torch
from test_trainer import trained, weights

from md4_hf.training.checkpoints import MANIFEST, checkpoint_problem, checkpoint_to_resume, commit, newest_whole


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
    unbroken = trained(tmp_path / "unbroken", **SAVING)
    trained(tmp_path / "run", **SAVING)
    truncate(tmp_path / "run" / "checkpoint-6")
    resumed = trained(tmp_path / "run", checkpoint="auto", **SAVING)
    assert resumed.state.global_step == 6
    torch.testing.assert_close(weights(resumed.model), weights(unbroken.model), atol=0, rtol=0)
    assert checkpoint_problem(tmp_path / "run" / "checkpoint-6") is None, "written anew"


def test_a_finished_run_stays_as_it_is(tmp_path):
    trainer = trained(tmp_path, **SAVING)
    again = trained(tmp_path, checkpoint=True, **SAVING)
    assert again.state.global_step == 6
    torch.testing.assert_close(weights(again.model), weights(trainer.model), atol=0, rtol=0)
    with again.ema_weights(), trainer.ema_weights():
        torch.testing.assert_close(weights(again.model), weights(trainer.model), atol=0, rtol=0)
