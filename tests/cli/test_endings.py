# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""How commands begin and end: needed options, interruptions, closed pipes, services that are not installed."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from commands import failure
from launching import environment
from transformers import AutoModel

from md4_hf import MD4TrainingArguments, load_model
from md4_hf.cli import main
from md4_hf.cli.train import MD4Trainer
from md4_hf.core.pipeline_masked_diffusion import MaskedDiffusionPipeline
from md4_hf.training import arguments


RUN = (
    "--preset tiny --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --block_size 32 --bf16 false".split()
)
RUN += "--max_steps 2 --save_steps 1 --eval_strategy no --total_batch_size 8 --card_samples 1 --use_cpu".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained folder."""
    folder = tmp_path_factory.mktemp("endings") / "run"
    main(["train", *RUN, "--output_dir", str(folder)])
    return folder


def interrupt(*args, **kwargs):
    signal.raise_signal(signal.SIGINT)


# Needed options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [["train"], ["train", "--output_dir", "x"], ["train", "--preset", "tiny"], ["finetune", "m", "--output_dir", "x"]],
)
def test_a_training_without_what_it_needs_is_a_short_help(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and len(printed.splitlines()) < 20
    needed = "--preset, --data or --config, and --output_dir" if argv[0] == "train" else "--data or --config, and"
    assert f"md4 {argv[0]} needs {needed}" in printed and not list(tmp_path.iterdir())


def test_what_a_file_of_options_has_need_not_be_given(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(f"output_dir: {tmp_path / 'out'}\nmax_steps: 0\n")
    assert "--max_steps must be >= 1" in failure(capsys, ["train", "--config", str(tmp_path / "a.yaml")])
    (tmp_path / "a.yaml").write_text("max_steps: 2\n")
    assert "md4 train needs" in failure(capsys, ["train", "--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("option", ["--help", "--help_all"])
def test_preset_and_folder_are_first_in_the_help(option, capsys):
    with pytest.raises(SystemExit):
        main(["train", option])
    printed = capsys.readouterr().out
    first = [line.split()[0] for line in printed.splitlines() if line.startswith("  --")]
    assert first[:2] == ["--preset", "--output_dir"] and printed.count("  --output_dir") == 1


# Interruptions --------------------------------------------------------------------------------------------------------


def test_the_model_is_there_before_the_final_evaluation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(MD4Trainer, "prediction_step", interrupt)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", *RUN, "--output_dir", str(folder)])
    assert stop.value.code == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"md4 train: interrupted; the model is in {folder}; to evaluate it: md4 evaluate {folder}"
    assert AutoModel.from_pretrained(folder).config.hidden_size == 32
    assert {"README.md", "scheduler_config.json", "model_index.json", "tokenizer.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert not list(folder.glob(".model*"))


def test_the_card_of_a_finished_model_has_its_figures_and_samples(run):
    card = (run / "README.md").read_text()
    assert "bits per character" in card and "Samples" in card


@pytest.mark.parametrize(
    "command", ["evaluate MODEL", "sample MODEL", "train --data pydoc --model_name_or_path MODEL"]
)
def test_where_only_checkpoints_are_the_error_names_the_averaged_weights(run, tmp_path, command, capsys):
    for step in ("9", "10"):
        shutil.copytree(run / "checkpoint-2", tmp_path / "run" / f"checkpoint-{step}")
    argv = command.replace("MODEL", str(tmp_path / "run")).split()
    message = failure(capsys, [*argv, *(["--output_dir", str(tmp_path / "x")] if argv[0] == "train" else [])])
    found = tmp_path / "run" / "checkpoint-10" / "ema"
    assert message.endswith(f"got {tmp_path / 'run'}: a run that has not ended; take {found}.\n")
    assert load_model(str(found)).config.hidden_size == 32
    shutil.rmtree(found)
    assert f"take {found.parent}." in failure(capsys, ["sample", str(tmp_path / "run")])


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_ctrl_c_is_one_line(run, command, capsys, monkeypatch):
    monkeypatch.setattr(MD4Trainer, "prediction_step", interrupt)
    monkeypatch.setattr(MaskedDiffusionPipeline, "__call__", interrupt)
    with pytest.raises(SystemExit) as stop:
        main([command, str(run)])
    errors = capsys.readouterr().err
    assert stop.value.code == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1] == f"md4 {command}: interrupted"


# Closed pipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="closed pipes have signals on POSIX")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("closes_errors", [False, True])
def test_a_closed_pipe_is_quiet(unbuffered, closes_errors):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "md4_hf", "--help"],
        stdout=writing,
        stderr=writing if closes_errors else subprocess.PIPE,
        env={**environment(), "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert process.returncode == 141 and not process.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_the_caller_has_closed_is_no_error(closed):
    command = f'"{sys.executable}" -m md4_hf --version {closed}'
    assert subprocess.run(["sh", "-c", command], env=environment()).returncode == 0


def test_a_broken_connection_is_an_error(capsys, monkeypatch):
    def fail(*args):
        raise BrokenPipeError(32, "Broken pipe of a connection")

    monkeypatch.setattr("md4_hf.cli.run", fail)
    assert "Broken pipe of a connection" in failure(capsys, ["sample", "x"])


# Services for logs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_service_that_is_not_installed_is_one_line_at_the_start(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(arguments.TRACKING, name, lambda: False)
    message = failure(capsys, ["train", *RUN, "--output_dir", str(tmp_path / "out"), "--report_to", name])
    assert message.splitlines()[-1] == (
        f"md4 train: --report_to {name!r} needs {name}: pip install 'md4_hf[tracking]'."
    )
    assert not (tmp_path / "out").exists()


def test_an_unknown_service_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`report_to` must be of .* got 'wandbb'"):
        MD4TrainingArguments(str(tmp_path), report_to="wandbb")
