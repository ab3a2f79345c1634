# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments that a run refuses at its start, and the launch files."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from commands import failure
from distributed_runs import make_trainer, run
from launching import HERE, TORCHRUN, kill, start
from launching import run as launch

from md4_hf import MD4TrainingArguments
from md4_hf.training.checkpoints import MANIFEST, checkpoint_problem, commit
from md4_hf.training.step_sampler import StepSampler
from md4_hf.utils.processes import LOCK, RunLock, check_launch, warn_of_one_process


CONFIGS = HERE.parent / "scripts" / "configs"


# Guards ---------------------------------------------------------------------------------------------------------------


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "md4")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="the launcher started 2 processes, and each would train by itself"):
        check_launch(trainer)


def test_the_number_of_processes_is_what_was_expected(tmp_path):
    make_trainer(tmp_path, "md4", expected_processes=1)
    with pytest.raises(ValueError, match="`expected_processes` must be .*, 1, got 2"):
        make_trainer(tmp_path, "md4", expected_processes=2)


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_sharding_that_is_asked_for_and_not_active_is_refused(tmp_path, monkeypatch, name):
    trainer = make_trainer(tmp_path, "md4")
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(ValueError, match=f"{name} must be active where it is asked for, got 1 process"):
        check_launch(trainer)


IF_NO_ACCELERATOR = pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without one")
NO_CPU = pytest.param("auto", "`use_cpu` must be set where", marks=[pytest.mark.slow, IF_NO_ACCELERATOR])


@pytest.mark.parametrize(
    ("device", "message"), [("cpu", "`learning_rate` must be the same on all processes, got [0.001, 0.002]"), NO_CPU]
)
def test_launches_that_cannot_train_as_one_are_refused(device, message, tmp_path):
    """Different arguments, and torchrun without `use_cpu`: real launches end at once and leave no file."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from distributed_runs import make_trainer\n"
        "rank = int(os.environ['RANK'])\n"
        "use_cpu, rate = sys.argv[2] == 'cpu', 1e-3 * (1 + rank)\n"
        "make_trainer(sys.argv[1], 'md4', use_cpu=use_cpu, learning_rate=rate).train()\n"
    )
    status, output = launch([*TORCHRUN, script, tmp_path / "run", device])
    assert status != 0 and message in output, output
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_is_for_one_run(tmp_path):
    args = MD4TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    holder = (
        "import sys, time\nfrom md4_hf import MD4TrainingArguments\nfrom md4_hf.utils.processes import RunLock\n"
        "with RunLock(MD4TrainingArguments(output_dir=sys.argv[1], use_cpu=True)):\n"
        "    print('locked', flush=True)\n    time.sleep(300)\n"
    )
    other = start([sys.executable, "-c", holder, tmp_path])
    assert "locked\n" in iter(other.stdout.readline, "")
    with pytest.raises(ValueError, match="`output_dir` must not be in use by another run"), RunLock(args):
        pytest.fail("entered")
    kill(other)
    lock = RunLock(args)
    with lock, lock:
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


# Checkpoints that a training cannot resume from -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run(folder, "md4")
    return folder / "run"


def changed_checkpoint(trained, folder, change):
    """A copy of a checkpoint, changed, under a manifest that is in order."""
    staged = folder / "staged"
    shutil.copytree(trained / "checkpoint-4", staged)
    (staged / MANIFEST).unlink()
    change(staged)
    commit(staged, folder / "checkpoint-4")
    assert checkpoint_problem(folder / "checkpoint-4") is None
    return folder / "checkpoint-4"


STATES = {
    "must hold the optimizer's state": lambda folder: (folder / "optimizer.pt").unlink(),
    "must hold scheduler.pt": lambda folder: (folder / "scheduler.pt").unlink(),
    "must hold the random state": lambda folder: (folder / "rng_state.pth").unlink(),
    "of the same kind, plain or DDP, .* of FSDP with whole checkpoints": lambda folder: (
        folder / "optimizer.pt"
    ).rename(folder / "optimizer.bin"),
    "must hold the averaged weights": lambda folder: shutil.rmtree(folder / "ema"),
}


@pytest.mark.parametrize("message", STATES)
def test_a_checkpoint_without_its_states_is_refused(trained, tmp_path, message):
    checkpoint = changed_checkpoint(trained, tmp_path, STATES[message])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_trainer(tmp_path / "run", "md4").train(resume_from_checkpoint=str(checkpoint))


def test_another_number_of_processes_goes_on_with_a_warning(trained, tmp_path, caplog):
    def of_two(folder):
        (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
        (folder / "rng_state_1.pth").write_bytes((folder / "rng_state_0.pth").read_bytes())

    checkpoint = changed_checkpoint(trained, tmp_path, of_two)
    with caplog.at_level("WARNING", logger="md4_hf"):
        make_trainer(tmp_path / "run", "md4").train(resume_from_checkpoint=str(checkpoint))
    assert "was written by 2 process(es), and 1 resume" in caplog.text


def test_the_command_finds_a_damaged_checkpoint_before_it_prepares_data(trained, tmp_path, capsys):
    command = ["train", "--data", str(tmp_path / "missing.txt"), "--output_dir", str(tmp_path / "run")]
    folder = tmp_path / "run" / "checkpoint-4"
    folder.mkdir(parents=True)
    message = failure(capsys, [*command, "--resume_from_checkpoint", str(folder)])
    assert "it has no manifest.json" in message


# The order of the examples --------------------------------------------------------------------------------------------


def test_epochs_are_whole_steps_in_an_order_of_their_own():
    sampler = StepSampler(num_examples=21, step_examples=8, seed=3)
    first = list(sampler)
    assert len(first) == len(sampler) == 24
    assert sorted(first[:21]) == list(range(21)) and first[21:] == first[:3]
    sampler.set_epoch(1)
    assert list(sampler) != first and sorted(list(sampler)[:21]) == list(range(21))
    sampler.set_epoch(0)
    assert list(sampler) == first != list(StepSampler(21, 8, seed=4))
    assert list(StepSampler(21, 8, seed=3, drop_last=True)) == first[:16]
    assert list(StepSampler(3, 8, seed=3, shuffle=False)) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_too_few_examples_are_refused():
    with pytest.raises(ValueError, match="`train_dataset` must have examples, got 0"):
        StepSampler(0, 8, seed=0)
    with pytest.raises(ValueError, match="at least the 8 examples of a step .*, got 7"):
        StepSampler(7, 8, seed=0, drop_last=True)


# Launch files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_files(path):
    config = load_config_from_file(str(path))
    content = yaml.safe_load(path.read_text())
    assert config.num_processes == (2 if path.stem == "cpu_2proc" else 8)
    if content["distributed_type"] == "FSDP":
        assert "fsdp_transformer_layer_cls_to_wrap" not in content["fsdp_config"]  # the trainer knows its blocks
        assert content["fsdp_config"]["fsdp_version"] == 2
    if content["distributed_type"] == "DEEPSPEED":
        stage = int(re.fullmatch(r"zero(\d)", path.stem).group(1))
        file = Path(content["deepspeed_config"]["deepspeed_config_file"])
        assert json.loads((HERE.parent / file).read_text())["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize(
    ("launched", "devices", "warns"), [(True, 0, True), (True, 2, True), (True, 1, False), (False, 0, False)]
)
def test_one_process_of_a_launcher_is_told(launched, devices, warns, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    args = MD4TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    if launched:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    warn_of_one_process(args)
    assert ("started one process" in caplog.text) == warns
