# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Consoles that cannot show everything, and malformed commands: nothing is lost, and each error is one line."""

import io
import json
import sys

import PIL.Image
import pytest
from commands import failure
from tiny import random_image_model, random_model
from transformers import AutoModel

from md4_hf import build_byte_tokenizer, make_pipeline
from md4_hf.cli import COMMANDS, main
from md4_hf.utils.files import move_files


LENGTH = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline whose tokens are bytes, so that its samples are no ASCII."""
    folder = tmp_path_factory.mktemp("model")
    make_pipeline(random_model(258, LENGTH, std=0.1, time_conditioning=False), build_byte_tokenizer()).save_pretrained(
        folder
    )
    (folder / "data").mkdir()
    (folder / "data" / "held-out – ünï.txt").write_text("plain text " * 30)
    return folder


# Consoles -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def console(monkeypatch):
    """Make the console one of an encoding; gives a function for what has been printed since."""

    def make(encoding):
        printed = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding, write_through=True))
        return lambda: printed.getvalue().decode(encoding)

    return make


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_sample_is_printed_as_far_as_the_console_can(model, encoding, console):
    printed = console(encoding)
    main(["sample", str(model), "--seed", "0", "--prompt", "aß語", "--device", "cpu"])
    assert "\na" + {"ascii": "??", "cp1252": "ß?", "utf-8": "ß語"}[encoding] in printed()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("command", ["evaluate", "score"])
def test_results_are_written_whatever_the_console_is(model, command, encoding, console, tmp_path):
    printed, output = console(encoding), tmp_path / "x.json"
    (text,) = (model / "data").iterdir()
    options = {
        "evaluate": ["--validation_data", str(text), "--draws", "1", "--use_cpu"],
        "score": ["--num_samples", "2", "--device", "cpu"],
    }
    main([command, str(model), *options[command], "--output_file", str(output)])
    assert json.loads(output.read_text()) and len(printed().splitlines()) > 3


@pytest.mark.parametrize("command", ["evaluate", "score"])
def test_results_are_written_before_they_are_printed(model, command, tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError("the console is gone")

    monkeypatch.setattr(sys, "stdout", Closed())
    (text,) = (model / "data").iterdir()
    options = {
        "evaluate": ["--validation_data", str(text), "--draws", "1", "--use_cpu"],
        "score": ["--num_samples", "2", "--device", "cpu"],
    }
    with pytest.raises(SystemExit):
        main([command, str(model), *options[command], "--output_file", str(tmp_path / "x.json")])
    assert json.loads((tmp_path / "x.json").read_text())


# Errors ---------------------------------------------------------------------------------------------------------------


def one_line(capsys, argv):
    errors = failure(capsys, argv)
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["evaluate", "MODEL", "--num_timesteps", "1000000000"],
            "--num_timesteps must be at most 2**24",
        ),
        (["evaluate", "MODEL", "--batch_size", "0"], "--batch_size must be >= 1, got 0"),
        (["sample", "MODEL", "--device", "meta"], "--device must be a device of this machine, got 'meta'"),
        (["sample", "MODEL", "--prompt", "a\udc80b"], "--prompt must be Unicode text without lone surrogates, got 'a"),
        (["infill", "MODEL", "a\ud800<mask:2>"], "TEXT must be Unicode text without lone surrogates, got 'a"),
        (["score", "MODEL", "--device", "meta"], "--device must be a device of this machine, got 'meta'"),
    ],
)
def test_malformed_uses_of_a_model_are_one_line(model, argv, message, capsys):
    assert message in one_line(capsys, [str(model) if word == "MODEL" else word for word in argv])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model_name_or_path", "MODEL", "--num_train_timesteps", "17000000"],
            "--num_train_timesteps must be at most",
        ),
        (
            ["--model_name_or_path", "MODEL", "--residual_dropout", "2"],
            "--residual_dropout must be in [0, 1), got 2.0",
        ),
        (["--model_name_or_path", "MODEL", "--schedule_power", "-1"], "--schedule_power must be > 0, got -1.0"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be >= 1, got 0"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size must be >= 1, got 0"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps must be >= 1, got 0"),
        (["--eval_accumulation_steps", "0"], "--eval_accumulation_steps must be >= 1, got 0"),
        (["--total_batch_size", "0"], "--total_batch_size must be >= 1, got 0"),
        (["--learning_rate", "nan"], "--learning_rate must be >= 0 and finite, got nan"),
        (["--metric_for_best_model", "accuracy"], "--metric_for_best_model must be one of ['loss', "),
        (["--attn_implementation", "flex_attention"], '--attn_implementation must be "sdpa" or "eager" in training'),
        (["--hidden_size", str(2**40)], "RuntimeError; MD4_TRACEBACK=1 shows where"),
    ],
)
def test_malformed_trainings_are_one_line(model, tmp_path, options, message, capsys):
    options = [str(model) if word == "MODEL" else word for word in options]
    quick = ["--preset", "tiny", "--num_attention_heads", "2", "--block_size", str(LENGTH), "--use_cpu"]
    output = ["--max_steps", "2", "--output_dir", str(tmp_path / "out")]
    assert message in one_line(capsys, ["train", *quick, *options, *output])
    assert not list(tmp_path.glob("out/[!.]*")), "nothing was written"


@pytest.mark.parametrize("argv", [["train", "--nothing"], ["sample", "./nothing"]])
def test_the_first_of_several_processes_shows_an_error_before_the_others(argv, capsys, monkeypatch):
    """Others wait for the launcher to end them, and show what the first has not."""
    shown_before = []
    monkeypatch.setattr("time.sleep", lambda seconds: shown_before.append(capsys.readouterr().err))
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert "nothing" in failure(capsys, argv)
        assert [*map(bool, shown_before)] == [False] * int(rank)


def test_an_image_of_absurd_size_is_one_line(tmp_path, capsys, monkeypatch):
    make_pipeline(random_image_model(2, 2, hidden_size=32)).save_pretrained(tmp_path / "model")
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 8)
    picture = str(tmp_path / "a.png")
    argv = [
        "infill",
        str(tmp_path / "model"),
        "--image",
        picture,
        "--mask",
        picture,
        "--output",
        str(tmp_path / "b.png"),
    ]
    assert "--image must have well-formed files, got" in one_line(capsys, argv)


def test_a_configuration_that_asks_for_tuples_is_opened(model, tmp_path, capsys):
    config = json.loads((model / "config.json").read_text())
    try:
        (model / "config.json").write_text(json.dumps({**config, "return_dict": False}))
        main(["sample", str(model), "--seed", "0", "--device", "cpu"])
        assert capsys.readouterr().out.startswith("--- 1 ---")
    finally:
        (model / "config.json").write_text(json.dumps(config))


def test_the_rest_of_an_error_is_shown_on_request(model, capsys, monkeypatch):
    monkeypatch.setenv("MD4_TRACEBACK", "1")
    with pytest.raises(ValueError, match="`device` must be"):
        main(["sample", str(model), "--device", "meta"])


# Folders of a run -----------------------------------------------------------------------------------------------------


def leave_folder(staging):
    (staging / "nested").mkdir(parents=True)
    (staging / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')


def leave_link(staging):
    leave_folder(staging.with_name(".elsewhere"))
    staging.symlink_to(staging.with_name(".elsewhere"), target_is_directory=True)


@pytest.mark.parametrize("leave", [leave_folder, leave_link])
def test_what_an_interrupted_run_has_left_is_not_in_the_model(tmp_path, leave):
    leave(tmp_path / ".model-in-progress")
    small = ["--preset", "tiny", "--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
    run = ["--block_size", "32", "--max_steps", "1", "--final_eval_draws", "1", "--card_samples", "0"]
    main(["train", *small, *run, "--eval_strategy", "no", "--use_cpu", "--output_dir", str(tmp_path)])
    assert not {"nested", "model.safetensors.index.json"} & {path.name for path in tmp_path.iterdir()}
    assert AutoModel.from_pretrained(tmp_path).config.hidden_size == 32


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"], ["model.safetensors"]),
        (["model.safetensors"], ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]),
        (["model.fp16.safetensors", "model.safetensors"], ["adapter_model.safetensors"]),
        (["adapter_model.safetensors"], ["model.safetensors"]),
    ],
)
def test_a_finished_model_replaces_an_earlier_one_in_other_files(tmp_path, before, after):
    for folder, names in ((tmp_path / "run", before), (tmp_path / "staging", after)):
        folder.mkdir()
        for name in [*names, "config.json"]:
            (folder / name).write_text(folder.name)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    move_files(tmp_path / "staging", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*after, "config.json", "notes.txt"}
    assert {(tmp_path / "run" / name).read_text() for name in [*after, "config.json"]} == {"staging"}


@pytest.mark.parametrize("command", ["train", "evaluate", "suite"])
def test_options_of_an_image_processor_are_named_as_those_of_the_command(command):
    message = "`images` must have the mode L (or set `do_convert`), 8 x 8 pixels (or set `do_resize`), got RGB."
    expected = message.replace("`do_convert`", "--convert").replace("`do_resize`", "--resize")
    assert COMMANDS[command].as_typed(message, []) == expected
