# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A run records its options and data, and the commands that take its folder go by them."""

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import yaml
from commands import failure
from tiny import training_arguments
from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments

from md4_hf import DataArguments, build_byte_tokenizer
from md4_hf.cli import main
from md4_hf.cli.run_record import RecordCallback, RunRecord, recorded_value
from md4_hf.cli.schedules import name_of
from md4_hf.cli.texts import describe_text
from md4_hf.cli.train import check_output_dir
from md4_hf.objective.example_order import sampled_sha256


SMALL = (
    "--preset tiny --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --block_size 32 --bf16 false".split()
)
SHORT = "--max_steps 4 --save_steps 2 --eval_strategy no --total_batch_size 8 --card_samples 0 --use_cpu".split()
RUN = [*SMALL, *SHORT, "--final_eval_draws", "2"]
TEXTS = {
    "my.txt": "the cat sat on the mat and the dog lay down ",
    "other.txt": "zebras quiz vexed jumping foxes by night ",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two texts and a run, `run`, on the first, whose path was relative."""
    folder = tmp_path_factory.mktemp("record")
    for name, text in TEXTS.items():
        (folder / name).write_text(text * 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["train", *RUN, "--objective", "genmd4", "--data", "my.txt", "--output_dir", "run"])
    return folder


def evaluated(argv, tmp_path):
    main(["evaluate", *argv, "--draws", "2", "--use_cpu", "--output_file", str(tmp_path / "result.json")])
    return json.loads((tmp_path / "result.json").read_text())["metrics"]


def test_the_record_has_the_options_and_the_data_by_name_and_digest(place):
    record = yaml.safe_load((place / "run" / "options.yaml").read_text())
    facts = record.pop("record")
    assert record["data"] == str(place / "my.txt") and record["hidden_size"] == 32 and record["learning_rate"] == 5e-3
    assert not record.keys() & {"output_dir", "preset", "config", "resume_from_checkpoint", "use_muon_"}
    assert facts["training_data"]["name"] == "my.txt" and len(facts["training_data"]["sha256"]) == 64
    assert facts["batch_size"] == 8 and "md4 train" in facts["command"]
    assert facts["held_out_data"]["sha256"] != facts["training_data"]["sha256"]


@pytest.mark.parametrize("option", ["model_name_or_path", "backbone_name_or_path", "tokenizer"])
def test_paths_of_this_machine_are_absolute_in_a_record(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert (
        recorded_value(option, "base") == str(tmp_path / "base") and recorded_value(option, "user/base") == "user/base"
    )


def test_the_record_is_a_file_of_options_that_repeats_the_run(place, tmp_path):
    main(["train", "--config", str(place / "run" / "options.yaml"), "--output_dir", str(tmp_path / "again")])
    first, again = (json.loads((run / "eval_results.json").read_text()) for run in (place / "run", tmp_path / "again"))
    assert first["eval_loss"] == again["eval_loss"]
    records = [yaml.safe_load((run / "options.yaml").read_text()) for run in (place / "run", tmp_path / "again")]
    digests = [record.pop("record")["held_out_data"]["sha256"] for record in records]
    assert records[0] == records[1] and digests[0] == digests[1]


@pytest.mark.parametrize("folder", ["run", "run/checkpoint-4/ema"])
def test_a_run_is_evaluated_on_its_own_held_out_data(place, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the data, which were named by a relative path, are not
    recorded = json.loads((place / "run" / "eval_results.json").read_text())
    metrics = evaluated([str(place / folder)], tmp_path)
    assert metrics["eval_loss"] == pytest.approx(recorded["eval_loss"], abs=1e-6)
    printed = capsys.readouterr().out
    assert f"data as in {place / 'run' / 'options.yaml'}" in printed and "held-out part of" in printed


def test_data_that_are_named_go_before_the_record(place, tmp_path, capsys):
    recorded = json.loads((place / "run" / "eval_results.json").read_text())
    other = evaluated([str(place / "run"), "--validation_data", str(place / "other.txt")], tmp_path)
    assert other["eval_loss"] != recorded["eval_loss"]
    assert "data as in" not in capsys.readouterr().out


def test_held_out_data_that_have_changed_are_said_to_have(place, tmp_path, capsys):
    text = (place / "my.txt").read_text()
    try:
        (place / "my.txt").write_text(text[:-200] + "another ending " * 14)
        evaluated([str(place / "run")], tmp_path)
        assert "not those that the run had held out: the files have changed" in capsys.readouterr().out
    finally:
        (place / "my.txt").write_text(text)


def test_a_folder_without_a_record_needs_data(place, tmp_path, capsys):
    main(["export", str(place / "run"), str(tmp_path / "exported")])
    for command in ("evaluate", "schedules"):
        message = failure(capsys, [command, str(tmp_path / "exported")])
        assert "--data or --validation_data must be given, got neither" in message and "options.yaml" in message


def test_schedules_counts_the_tokens_of_the_run(place, capsys):
    main(["schedules", str(place / "run")])
    printed = capsys.readouterr().out
    assert "counts of the training part of" in printed and "my.txt, as in" in printed
    letters = set("".join(TEXTS["my.txt"]))
    assert len(letters) == int(re.search(r"(\d+) tokens, exponents", printed).group(1)), "and no other"


def test_a_card_names_data_without_paths_and_what_is_evaluated(place):
    data = DataArguments(data=str(place / "my.txt"), validation_data=str(place / "other.txt"), block_size=32)
    tokenizer = build_byte_tokenizer()
    facts = describe_text(data, tokenizer)
    assert facts["data"] == "my.txt, blocks of 32 tokens" and facts["datasets"] == []
    assert facts["validation_data"] == "other.txt, blocks of 32 tokens"
    pairs = describe_text(replace(data, validation_data=None), tokenizer, prompt="a ")
    assert pairs["data"] == "my.txt, prompts and responses of at most 32 tokens" and pairs["validation_data"] is None


def test_bytes_that_are_part_of_a_character_have_names_of_their_own():
    tokenizer = build_byte_tokenizer()
    ids = tokenizer("é", add_special_tokens=False).input_ids
    assert len({name_of(token, tokenizer) for token in ids}) == 2
    assert name_of(tokenizer("a", add_special_tokens=False).input_ids[0], tokenizer) == "'a'"


def test_the_step_of_a_resumed_run_stands_above_the_bar_and_not_behind_it(tmp_path, capsys):
    args = TrainingArguments(str(tmp_path), use_cpu=True, resume_from_checkpoint="latest")
    record = RunRecord({}, {"command": "md4 train"})
    with tqdm(total=8, file=sys.stdout):
        state = TrainerState(global_step=6, max_steps=8)
        RecordCallback(record, {}).on_train_begin(args, state, TrainerControl())
    assert "resuming at step 6 of 8" in re.split("[\r\n]", capsys.readouterr().out)


def test_a_resumed_run_names_the_step_and_what_differs(place, tmp_path, capsys):
    run = [*RUN, "--output_dir", str(tmp_path / "run")]
    main(["train", *run, "--data", str(place / "my.txt")])
    assert "resuming" not in capsys.readouterr().out
    main(["train", *run, "--data", str(place / "my.txt"), "--resume_from_checkpoint", "latest"])
    printed = capsys.readouterr().out
    assert "resuming at step 4 of 4" in printed and "differs" not in printed
    changed = ["--learning_rate", "1e-4", "--total_batch_size", "4", "--max_steps", "6", "--weight_decay", "0.5"]
    resumed = ["--data", str(place / "other.txt"), "--resume_from_checkpoint", "latest"]
    main(["train", *run, *changed, *resumed])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("differs from the run so far")]
    for words in (
        "`learning_rate` is 0.0001, was 0.005",
        "`max_steps` is 6, was 4",
        "a step has 4 examples, had 8",
        "the training data are",
        "the held-out data are",
    ):
        assert sum(words in line for line in lines) == 1, words
    assert len(lines) == 8, "data, batch size, decay too, and no others"
    state = json.loads((tmp_path / "run/checkpoint-6/trainer_state.json").read_text())
    assert state["max_steps"] == 6
    assert yaml.safe_load((tmp_path / "run/options.yaml").read_text())["learning_rate"] == 1e-4


def test_a_file_of_options_of_ones_own_is_not_replaced(place, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("max_steps: 2\n")
    message = failure(capsys, ["train", *RUN, "--data", str(place / "my.txt"), "--output_dir", str(tmp_path)])
    assert "--output_dir must have no options.yaml of yours" in message
    assert (tmp_path / "options.yaml").read_text() == "max_steps: 2\n"


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(place, tmp_path):
    (tmp_path / "options.yaml").write_text((place / "run" / "options.yaml").read_text())
    main(["train", *RUN, "--data", str(place / "my.txt"), "--output_dir", str(tmp_path)])
    assert (tmp_path / "model.safetensors").exists()


def test_a_token_of_the_hub_is_not_recorded(place, tmp_path):
    secret = ["--hub_token", "hf_abcdefgh"]
    main(["train", *RUN, "--data", str(place / "my.txt"), "--output_dir", str(tmp_path / "run"), *secret])
    assert "abcdefgh" not in (tmp_path / "run" / "options.yaml").read_text()


def test_a_sampled_digest_tells_other_examples(monkeypatch):
    rows = [{"input_ids": [number, 1, 2]} for number in range(600)]
    digest = sampled_sha256(rows)
    assert digest == sampled_sha256(list(rows)) and digest != sampled_sha256(rows[:-1])
    assert digest != sampled_sha256([*rows[:300], {"input_ids": [0, 0, 0]}, *rows[301:]])
    monkeypatch.setattr("md4_hf.objective.example_order._SAMPLED_IDS", 30)
    assert sampled_sha256(rows) != digest and sampled_sha256(rows) == sampled_sha256(list(rows))


def test_samples_before_the_first_checkpoint_do_not_keep_a_run_from_beginning_again(place, tmp_path):
    args = training_arguments(tmp_path)
    (tmp_path / "samples.md").write_text("# Samples\n")
    with pytest.raises(ValueError, match="`output_dir` must be empty or absent"):
        check_output_dir(args)
    shutil.copy(place / "run" / "options.yaml", tmp_path)
    check_output_dir(args)
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match="`output_dir` must be empty or absent"):
        check_output_dir(args)
