# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The command line, run as a user runs it."""

import argparse
import dataclasses
import json
import math
import re
import shlex
import shutil
import signal
import sys
import time
from enum import Enum
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from commands import failure
from datasets import Dataset
from launching import TORCHRUN, run_python, start, succeed
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, HfArgumentParser

import md4_hf
from md4_hf import (
    PRESETS,
    DataArguments,
    MaskedDiffusionPipeline,
    MD4Config,
    MD4TrainingArguments,
    build_byte_tokenizer,
    load_model,
    pack,
)
from md4_hf.cli import COMMANDS, main
from md4_hf.cli.arguments import add_options, parse_arguments
from md4_hf.cli.option_values import to_bool
from md4_hf.cli.texts import measure_baselines
from md4_hf.cli.train import set_batch_size
from md4_hf.cli.train_options import (
    ModelArguments,
    RunArguments,
    ShownTrainerArguments,
    ShownTrainingArguments,
    StartArguments,
)
from md4_hf.data.tokenizers import train_bpe_tokenizer


SMALL = ["--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--block_size", "32"]
QUICK = ["--preset", "tiny", *SMALL, "--max_steps", "4", "--eval_steps", "2", "--save_steps", "2"]
QUICK += ["--bf16", "false"]  # as `md4 evaluate` computes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained folder, and what was printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(["train", *QUICK, "--total_batch_size", "8", "--output_dir", str(folder)])
    return folder


def test_training_leaves_a_folder_that_every_loader_opens(run):
    names = {path.name for path in run.iterdir()}
    expected = {"model.safetensors", "config.json", "tokenizer.json", "scheduler_config.json", "model_index.json"}
    assert expected | {"README.md", "loss.png", "eval_results.json", "checkpoint-4"} <= names
    assert AutoModel.from_pretrained(run).config.hidden_size == 32
    assert len(AutoTokenizer.from_pretrained(run)) == 28
    pipeline = MaskedDiffusionPipeline.from_pretrained(run)
    assert len(pipeline(num_inference_steps=2).texts[0]) == 32


def test_the_saved_model_is_the_one_that_was_evaluated(run, capsys):
    recorded = json.loads((run / "eval_results.json").read_text())
    main(["evaluate", str(run), "--draws", "8"])
    assert f"{recorded['eval_loss']:9.4f}" in capsys.readouterr().out
    card = (run / "README.md").read_text()
    assert f"{recorded['eval_bits_per_character']:.4f}" in card and "bigram model" in card


def test_the_loss_plot_is_a_picture(run):
    assert (run / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(run.glob(".loss*"))


def test_evaluation_writes_its_recipe(run, tmp_path, capsys):
    text = tmp_path / "held-out.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 20)
    output = tmp_path / "result.json"
    main(["evaluate", str(run), "--validation_data", str(text), "--output_file", str(output)])
    result = json.loads(output.read_text())
    assert result["metrics"]["eval_num_tokens"] == 864 and result["recipe"]["draws"] == 8
    assert result["estimate"] | {"estimator": "time", "draws": 8, "seed": 0} == result["estimate"]
    assert len(result["model"]["weights"]) == len(result["data_sha256"]) == 64
    assert result["environment"]["versions"].keys() >= {"md4_hf", "torch"} and result["environment"]["device"]
    assert result["command"].startswith("md4 evaluate ") and str(text) in result["command"]
    assert "bits per character" in capsys.readouterr().out


def test_the_likelihood_of_an_order_is_evaluated(run, tmp_path, capsys):
    text, output = tmp_path / "held-out.txt", tmp_path / "result.json"
    text.write_text("the quick brown fox jumps over the lazy dog " * 5)
    command = ["evaluate", str(run), "--validation_data", str(text), "--estimator", "policy"]
    main([*command, "--order", "confidence", "--num_inference_steps", "6", "--output_file", str(output)])
    assert "−log p, nats per token" in (printed := capsys.readouterr().out)
    assert "sampler: order confidence, num inference steps 6" in printed
    result = json.loads(output.read_text())
    expected = {"estimator": "policy", "order": "confidence", "num_inference_steps": 6, "quota": "ceil"}
    assert result["estimate"] | expected == result["estimate"] and "draws" not in result["estimate"]
    assert result["metrics"]["eval_num_draws"] == 0 and result["recipe"]["order"] == "confidence"
    main([*command, "--num_inference_steps", "6", "--draws", "2", "--rounds", "2"])
    assert "2 draws per sequence, 2 rounds" in (printed := capsys.readouterr().out)
    assert "are due to the draws" in printed and "sampler: order random" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--order", "confidence"], "--order must be left out without --estimator policy, got 'confidence'"),
        (
            ["--estimator", "policy", "--order", "margin", "--draws", "2"],
            "--draws must be left out for an order without",
        ),
        (
            ["--estimator", "policy", "--order", "margin", "--seed", "2"],
            "--seed must be left out for an order without",
        ),
        (
            ["--estimator", "policy", "--num_timesteps", "4"],
            "--num_timesteps must be left out with --estimator policy",
        ),
        (["--estimator", "policy", "--order", "best"], "--order: must be one of random, confidence, margin, entropy"),
        (
            ["--estimator", "policy", "--order", "klass", "--kl_bound", "0"],
            "--kl_bound must be finite and > 0, got 0.0",
        ),
        (["--estimator", "policy", "--num_inference_steps", "0"], "--num_inference_steps must be >= 1, got 0"),
    ],
)
def test_options_of_the_likelihood_of_an_order_are_checked(run, capsys, options, message):
    assert message in failure(capsys, ["evaluate", str(run), *options])


@pytest.mark.slow
def test_two_processes_find_the_likelihood_of_one(run, tmp_path):
    text, results = tmp_path / "held-out.txt", [tmp_path / "one.json", tmp_path / "two.json"]
    text.write_text("the quick brown fox jumps over the lazy dog " * 7)
    for order, options in (("entropy_bound", []), ("random", ["--draws", "2"])):
        command = ["evaluate", run, "--validation_data", text, "--estimator", "policy", "--order", order, *options]
        command += ["--num_inference_steps", "6", "--batch_size", "4", "--use_cpu"]
        for start_of_command, result in zip(([sys.executable], TORCHRUN), results, strict=True):
            succeed([*start_of_command, "-m", "md4_hf", *command, "--output_file", result])
        one, two = (json.loads(result.read_text()) for result in results)
        assert two["environment"]["num_processes"] == 2
        assert two["metrics"]["eval_loss"] == pytest.approx(one["metrics"]["eval_loss"], rel=1e-5)


def test_sampling_is_repeatable_with_a_seed_and_begins_with_the_prompt(run, capsys):
    command = ["sample", str(run), "--prompt", "the ", "--num_samples", "2", "--seed", "3"]
    main(command)
    first = capsys.readouterr().out
    main(command)
    assert capsys.readouterr().out == first
    texts = [line for line in first.splitlines() if not line.startswith("---")]
    assert len(texts) == 2 and all(text.startswith("the ") for text in texts)


def test_infilling_keeps_the_text_around_the_gaps(run, capsys):
    main(["infill", str(run), "ab <mask:3> cd<mask:2>", "--num_inference_steps", "4"])
    text = capsys.readouterr().out.splitlines()[-1]
    assert len(text) == 11 and text.startswith("ab ") and text[6:9] == " cd"


def test_documents_are_kept_apart_on_request(tmp_path, capsys):
    folder = tmp_path / "apart"
    options = ["--document_mask", "true", "--final_eval_draws", "1", "--total_batch_size", "8"]
    main(["train", *QUICK, *options, "--output_dir", str(folder)])
    capsys.readouterr()
    results = [tmp_path / f"{value}.json" for value in ("true", "false")]
    for result in results:
        main(["evaluate", str(folder), "--document_mask", result.stem, "--draws", "1", "--output_file", str(result)])
    apart, together = (json.loads(result.read_text())["metrics"]["eval_loss"] for result in results)
    assert apart != together and math.isfinite(apart)


def test_training_goes_on_from_a_model(run, tmp_path, capsys):
    folder = tmp_path / "more"
    main(["train", "--model_name_or_path", str(run), *QUICK, "--total_batch_size", "8", "--output_dir", str(folder)])
    assert AutoModel.from_pretrained(folder).config.hidden_size == 32
    changed = ["--residual_dropout", "0.25", "--output_dir", str(tmp_path / "dropout")]
    main(["train", "--model_name_or_path", str(run), *QUICK, "--total_batch_size", "8", *changed])
    assert AutoModel.from_pretrained(tmp_path / "dropout").model.layers[0].residual_dropout.p == 0.25
    capsys.readouterr()
    small = "--preset tiny --max_steps 1 --total_batch_size 4 --final_eval_draws 1 --card_samples 0".split()
    main(["train", "--model_name_or_path", str(run), *small, "--output_dir", str(tmp_path / "long")])
    assert "4 sequences of 32 tokens a step" in capsys.readouterr().out, "the model's length, not the preset's 64"
    train = ["train", "--model_name_or_path", str(run), "--data", "pydoc", "--output_dir", str(folder / "x")]
    message = failure(capsys, [*train, "--hidden_size", "64"])
    assert "--hidden_size must be the trained model's 32, got 64" in message
    message = failure(capsys, [*train, *QUICK, "--block_size", "64"])
    assert "--block_size must be at most the model's 32 tokens, got 64" in message


@pytest.mark.parametrize("objective", ["md4", "ar"])
def test_the_network_of_mdlm_is_trained_from_nothing(tmp_path, objective):
    schedule = ["--masking_schedule", "loglinear", "--schedule_eps", "1e-3"] if objective == "md4" else []
    options = ["--backbone", "ddit", "--objective", objective, "--output_dir", str(tmp_path / "run"), *schedule]
    main(["train", *SMALL, *QUICK, "--total_batch_size", "8", *options])
    model = load_model(str(tmp_path / "run"))
    assert model.model.layers[0].mlp.up_proj.weight.shape == (128, 32) and model.lm_head.bias is not None
    assert "DDiT" in (tmp_path / "run" / "README.md").read_text()


def test_ctrl_c_leaves_a_run_to_resume(tmp_path):
    """A real process is interrupted in the middle of a long training, and resumes."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "md4_hf", "train", "--preset", "tiny", *SMALL, "--total_batch_size", "4"]
    command += ["--output_dir", str(folder), "--save_steps", "100000", "--eval_strategy", "no", "--max_steps"]
    process, started = start([*command, "100000", "--logging_steps", "2"]), ""
    while "minutes" not in started:  # above the table of losses
        line = process.stdout.readline()
        assert line, started
        started += line
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To resume, add: --resume_from_checkpoint latest" in output and "Stopping after this step" in output
    assert "Traceback" not in started + output
    (checkpoint,) = folder.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    main([*command[3:], str(step + 2), "--resume_from_checkpoint", "latest"])
    assert (folder / "model.safetensors").exists() and (folder / f"checkpoint-{step + 2}").exists()


@pytest.fixture(scope="module")
def adapter(run, tmp_path_factory):
    """An adapter for `run`, fine-tuned on prompts and responses."""
    folder = tmp_path_factory.mktemp("finetune")
    rows = [{"prompt": f"say {word} ", "response": word[::-1]} for word in ("abcd", "bcde", "cdef", "defg") * 8]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["--prompt_column", "prompt", "--response_column", "response", "--eos", "none"]
    options = ["--max_steps", "6", "--save_steps", "3", "--learning_rate", "0.01", "--final_eval_draws", "2"]
    data = ["--data", str(folder / "pairs.jsonl"), *columns]
    main(["finetune", str(run), *data, *options, "--output_dir", str(folder / "out")])
    return folder / "out"


def test_fine_tuning_leaves_an_adapter_that_every_command_opens(run, adapter, capsys):
    names = {path.name for path in adapter.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "base_model.json", "tokenizer.json"} <= names
    card = (adapter / "README.md").read_text()
    assert "pairs.jsonl" in card and "say bcde " in card, "its sample answers a held-out prompt"
    main(["sample", str(adapter), "--prompt", "say ", "--seed", "0"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("say ")
    recorded = json.loads((adapter / "eval_results.json").read_text())
    columns = ["--prompt_column", "prompt", "--response_column", "response", "--eos", "none"]
    pairs = ["--data", str(adapter.parent / "pairs.jsonl"), *columns, "--draws", "2"]
    main(["evaluate", str(adapter), *pairs])
    assert f"{recorded['eval_loss']:9.4f}" in capsys.readouterr().out, "the adapter, on its held-out pairs"
    main(["evaluate", str(run), *pairs])
    assert f"{recorded['eval_loss']:9.4f}" not in capsys.readouterr().out, "its base does worse"
    assert recorded["eval_num_draws"] == 2


def test_a_fine_tuning_is_resumed(run, adapter, tmp_path, capsys):
    """With its own data: others may have tokens that the base was not trained on, and with them other modules."""
    shutil.copytree(adapter, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    columns = ["--prompt_column", "prompt", "--response_column", "response", "--eos", "none"]
    options = ["--data", str(adapter.parent / "pairs.jsonl"), *columns, "--max_steps", "6", "--save_steps", "3"]
    options += ["--resume_from_checkpoint", "latest", "--output_dir", str(tmp_path / "run"), "--card_samples", "0"]
    message = failure(capsys, ["finetune", str(run), *options, "--modules_to_save", "lm_head"])
    assert "checkpoint-3, in which base_model.model.lm_head" in message and "is not there" in message
    main(["finetune", str(run), *options])
    assert "Model, tokenizer, loss.png and model card are in" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/checkpoint-6/trainer_state.json").read_text())["global_step"] == 6


def test_an_export_merges_the_adapter_and_carries_the_code(adapter, tmp_path, capsys):
    main(["export", str(adapter), str(tmp_path / "merged"), "--dtype", "float32"])
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "model_index.json", "remote_pipeline.py"} <= names
    ids = torch.arange(28)[None]
    expected, merged = load_model(str(adapter), merge_adapter=False), AutoModel.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        difference = (expected(ids).logits - merged(ids).logits)[..., :27].abs().max()
    assert difference < 1e-5
    message = failure(capsys, ["export", str(adapter), str(tmp_path / "merged")])
    assert "FOLDER must be empty or absent, or an earlier export with --overwrite" in message
    assert not list(tmp_path.glob(".merged*")), "nothing half-written is left"


def test_an_export_is_repeated_into_its_own_output_only_when_asked_to(run, adapter, tmp_path, capsys):
    folder = tmp_path / "out"
    main(["export", str(adapter), str(folder)])
    merged = (folder / "model.safetensors").read_bytes()
    (folder / "notes.txt").write_text("mine")
    message = failure(capsys, ["export", str(run), str(folder)])
    assert "an earlier export: add --overwrite to replace it" in message
    assert (folder / "model.safetensors").read_bytes() == merged
    for source in (run, folder):  # the second is an export onto itself
        main(["export", str(source), str(folder), "--overwrite"])
        for name, weight in load_model(str(run)).state_dict().items():
            assert torch.equal(load_model(str(folder)).state_dict()[name], weight), name
        assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    message = failure(capsys, ["export", str(run), str(tmp_path / "other"), "--overwrite"])
    assert "which is no earlier export" in message and len(list((tmp_path / "other").iterdir())) == 1
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for source in (run, folder):  # a trained model is no export: nothing takes its place
        message = failure(capsys, ["export", str(source), str(run), "--overwrite", "--dtype", "bfloat16"])
        assert "the folder of a run" in message
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_export_that_cannot_be_pushed_says_that_the_folder_is_complete(run, tmp_path, capsys):
    folder = tmp_path / "out"
    message = failure(capsys, ["export", str(run), str(folder), "--push_to_hub", "user/x"])
    assert message.startswith("md4 export: could not reach the Hub for user/x (") and message.count("\n") == 1
    assert f"the folder is complete: {folder}. To try again: hf upload user/x {folder} ." in message
    assert load_model(str(folder)) is not None


def test_an_export_of_a_model_keeps_its_card(run, tmp_path):
    main(["export", str(run), str(tmp_path / "plain"), "--no_remote_code"])
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"README.md", "loss.png"} <= names and "remote_pipeline.py" not in names and "modeling_md4.py" in names


def test_fine_tuning_an_adapter_trains_it_further(run, adapter, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("some words of a text to continue with " * 40)
    data = ["--data", str(tmp_path / "text.txt"), "--max_steps", "2", "--final_eval_draws", "2"]
    data += ["--output_dir", str(tmp_path / "x")]
    message = failure(capsys, ["finetune", str(adapter), *data, "--lora_r", "4"])
    assert "--lora_r must be left out where an adapter trains further, got 4" in message
    main(["finetune", str(adapter), *data, "--base", str(run)])
    assert str(run) in (tmp_path / "x/README.md").read_text(), "the base, not the first adapter"
    first, further = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "x"))
    changes = [(further[name] - first[name]).abs().max() for name in first]
    assert first.keys() == further.keys() and 0 < max(changes) < 0.05, "two steps away from where it was"


def test_baselines_are_per_character_and_need_the_mask_last(tmp_path):
    tokenizer = build_byte_tokenizer()
    documents = Dataset.from_dict({"text": ["äöü" * 4000, "ßéà" * 4000]})  # two bytes a character
    blocks, _ = pack(documents, tokenizer, 16)
    baselines = measure_baselines(blocks, blocks, tokenizer)
    assert baselines["uniform"] == pytest.approx(2 * math.log2(257), rel=0.02)
    assert 0 < baselines["bigram"] < baselines["unigram"] < baselines["uniform"]
    tokenizer.add_tokens("another")
    assert measure_baselines(blocks, blocks, tokenizer) == {}


# Options --------------------------------------------------------------------------------------------------------------


def parse(argv):
    kinds = (StartArguments, RunArguments, ModelArguments, ShownTrainingArguments)
    return parse_arguments(kinds, argv, prog="x", description="y")[1:4]


def test_the_command_line_goes_before_the_file_and_the_file_before_the_preset(tmp_path):
    config = tmp_path / "options.yaml"
    config.write_text("preset: text8\nlearning_rate: 0.1\nhidden_size: 96\n")
    _, model, args = parse(["--config", str(config), "--hidden_size", "192", "--output_dir", str(tmp_path)])
    assert (args.learning_rate, model.hidden_size, model.embedding_size) == (0.1, 192, 64)
    assert args.max_steps == 1_000_000 and args.adam_beta2 == 0.999


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_of_a_preset_is_left_out_on_processors_that_emulate_it(fast, tmp_path, monkeypatch):
    monkeypatch.setattr("md4_hf.utils.hardware.has_fast_bf16", lambda: fast)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    options = ["--preset", "tiny", "--output_dir", str(tmp_path)]
    assert parse(options)[2].bf16 is fast
    assert parse([*options, "--bf16"])[2].bf16 is True, "unless it is asked for"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_configuration(name, tmp_path):
    preset = PRESETS[name]
    config = MD4Config(vocab_size=28, **{k: v for k, v in preset.model.items() if k != "attn_implementation"})
    assert config.is_image == preset.is_image
    assert config.is_image or config.hidden_size % config.num_attention_heads == 0
    run, model, args = parse(["--preset", name, "--output_dir", str(tmp_path)])
    assert run.total_batch_size == preset.batch_size and args.learning_rate == preset.training["learning_rate"]
    made = model.new_config(vocab_size=28)
    assert (made.hidden_size, made.vocab_size) == (config.hidden_size, 28)


def test_the_papers_presets_carry_the_official_values():
    small, medium, text8 = (PRESETS[name] for name in ("openwebtext-small", "openwebtext-medium", "text8"))
    for preset in (small, medium, text8):
        training = preset.training
        assert preset.batch_size == 512 and training["max_steps"] == 1_000_000 and training["warmup_steps"] == 2000
        assert training["weight_decay"] == 0.03 and training["ema_decay"] == 0.9999 and training["adam_beta2"] == 0.999
        assert preset.paper
    assert (text8.training["learning_rate"], small.training["learning_rate"]) == (5e-4, 3e-4)
    assert (text8.data["block_size"], small.data["block_size"]) == (256, 1024)
    assert medium.model["num_hidden_layers"] == 24 and medium.model["num_attention_heads"] == 16
    assert text8.model["residual_dropout"] == 0.05 and small.model["residual_dropout"] == 0.02
    assert medium.model["residual_dropout"] == 0.0


def test_accumulation_is_computed_from_the_batch(tmp_path):
    args = MD4TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=16, use_cpu=True)
    set_batch_size(RunArguments(total_batch_size=64), args)
    assert args.gradient_accumulation_steps == 4
    with pytest.raises(ValueError, match="`total_batch_size` must be a multiple of 1 devices x"):
        set_batch_size(RunArguments(total_batch_size=24), args)
    set_batch_size(RunArguments(total_batch_size=8), args)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 1)


def help_of(name, option, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([name, option])
    assert exit_info.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_on_two_screens_and_ends_with_two_examples(name, capsys):
    lines = help_of(name, "--help", capsys).splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 104, "two screens of 50 lines"
    assert lines[-3] == "examples:" and [line.strip() for line in lines[-2:]] == [*COMMANDS[name].examples]


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not command.passes_on])
def test_examples_of_the_help_can_be_typed(name):
    for example in COMMANDS[name].examples:
        words = shlex.split(example.partition(" > ")[0])
        assert words[:2] == ["md4", name]
        parser = COMMANDS[name].parser(name)
        arguments, unknown = parser.parse_known_intermixed_args(words[2:])
        assert not unknown
        needed = [
            x.dest for x in parser._actions if not x.option_strings and f"[{x.dest}]" not in COMMANDS[name].positional
        ]
        assert None not in [getattr(arguments, x) for x in needed]
        assert all(any(getattr(arguments, x) for x in names) for names in COMMANDS[name].needed)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.options])
def test_help_all_has_every_option_and_help_those_that_are_common(name, capsys):
    options = {x.option_strings[0]: x.dest for x in COMMANDS[name].parser(name)._actions if x.option_strings}
    shown = {
        option: re.findall(r"^  (--\w+)", help_of(name, option, capsys), re.M) for option in ("--help", "--help_all")
    }
    assert sorted(shown["--help_all"]) == sorted(options)
    common = [x for names in COMMANDS[name].common.values() for x in names]
    assert len({*common}) == len(common)
    expected = [*common, "config", "help_all", "help"] if common else [*options.values()]
    assert sorted(options[option] for option in shown["--help"]) == sorted(expected)


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_is_printed_without_torch_and_transformers(name):
    """Each of them takes more than a second of the processor to import."""
    code = f"""
import sys
from md4_hf.cli import COMMANDS, main
from md4_hf.cli.arguments import add_options
try:
    main({[*([name] if name else []), "--help"]})
finally:
    print({{"torch", "transformers", "diffusers", "datasets", "numpy"}} & {{*sys.modules}})
"""
    printed = run_python("-c", code)
    assert printed.startswith(f"usage: md4 {name or 'COMMAND'}") and printed.endswith("set()\n")


def test_the_shown_training_options_are_those_of_the_trainer():
    """Names, types and defaults, as transformers has them, with fewer words for some types."""
    types, fields = get_type_hints(MD4TrainingArguments), {f.name: f for f in dataclasses.fields(MD4TrainingArguments)}
    shown_types = get_type_hints(ShownTrainerArguments)
    for field in dataclasses.fields(ShownTrainingArguments):
        assert fields[field.name].default == field.default, field.name
    for field in dataclasses.fields(ShownTrainerArguments):
        kinds = get_args(types[field.name]) or (types[field.name],)
        assert {*(get_args(shown_types[field.name]) or (shown_types[field.name],))} <= {*kinds}, field.name
        enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
        choices = [[member.value for member in kind] for kind in enums]
        assert field.metadata.get("choices") in (None, *choices), field.name


def test_options_are_read_as_transformers_own_parser_reads_them():
    ours, theirs = argparse.ArgumentParser(), HfArgumentParser([MD4TrainingArguments])
    add_options(ours, MD4TrainingArguments)
    for option, expected in zip(ours._actions, theirs._actions, strict=True):
        names = ("option_strings", "dest", "nargs", "const", "default", "required")
        assert [getattr(option, name) for name in names] == [getattr(expected, name) for name in names]
        assert option.choices is None or [*option.choices] == [*expected.choices]
        assert option.type == expected.type or option.type in (None, to_bool)


def test_the_version_is_that_of_the_package(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"md4_hf {md4_hf.__version__}\n"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("train", "--masking_schedule {linear,cosine,poly,geometric,loglinear}"),
        ("sample", "--suppress_tokens VALUE ..."),
        ("finetune", "saved; 0 turns it off. (default: 0.0)"),
        ("evaluate", "Seed of the evaluation noise. (default: 0)"),
        ("evaluate", "mixed by --data_weights. (default: those of the run, by options.yaml in the model's folder)"),
        ("schedules", "mixed by --data_weights. (default: those of the run, by options.yaml in the model's folder)"),
        ("finetune", "mixed by --data_weights. --output_dir VALUE"),
        ("train", "mixed by --data_weights. (default: the preset's, else pydoc)"),
        ("export", "--no_remote_code Switches --remote_code off."),
    ],
)
def test_help_tells_values_and_defaults(command, shown, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["infill", "RUN", "--seed", "1", "<mask:99>"], "TEXT must have gaps of at most 32 tokens in all"),
        (["infill", "RUN", "no gap"], 'TEXT must have a gap such as <mask:12> or [MASK], got "no gap"'),
        (
            ["infill", "RUN", "a <mask:0>"],
            "TEXT must have gaps <mask:n> with n >= 1, such as <mask:12>, got <mask:0",
        ),
        (["sample", "RUN", "--prompt", "<mask:0>"], "--prompt must have gaps <mask:n> with n >= 1"),
        (["sample", "RUN", "--enlarge", "8"], "--enlarge must be left out for a model of text, got 8"),
        (["export", "RUN", "new", "--private"], "--private must be left out without --push_to_hub, got True"),
        (["export", "RUN", "new", "--base", "x"], "--base must be left out where MODEL is no adapter, got 'x'"),
        (["evaluate", "RUN", "--validation_data", "./no.txt"], "--validation_data must be"),
        (["score", "RUN", "--references", "./no.txt"], "--references must be"),
        (["score", "RUN", "--device", "nowhere"], "--device must be a device of this machine, got 'nowhere'"),
        (
            ["finetune", "RUN", "--data", "pydoc", "--output_dir", "new", "--image_samples", "3"],
            "--image_samples must be left out for a model of text",
        ),
        (
            "train --preset tiny --model_name_or_path RUN --objective ar --output_dir new".split(),
            "--is_causal, which --objective sets, must be the trained model's False, got True",
        ),
    ],
)
def test_what_a_model_cannot_use_is_refused(run, options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, [str(run) if option == "RUN" else option for option in options])


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--preset", "huge"], "--preset must be one of ['cifar10'"),
        (["train", "--no_such_option", "1"], "unknown options: --no_such_option 1"),
        (["train", *QUICK, "--data", "no/such/file.txt"], "--data must be"),
        (["train", *QUICK, "--max_steps", "0"], "--max_steps must be >= 1"),
        (["train", *QUICK, "--total_batch_size", "0"], "--total_batch_size must be >= 1, got 0"),
        (["train", *QUICK, "--tokenizer", "./no-such-tokenizer"], '--tokenizer must be "text8"'),
        (["train", *QUICK, "--validation_data", "./no.txt"], "--validation_data must be"),
        (["train", *QUICK, "--image_samples", "3"], "--image_samples must be left out for a model of text, got 3"),
        (["train", *QUICK, "--objective", "genmd4", "--masking_schedule", "cosine"], '"poly" or "linear"'),
        (["train", *QUICK, "--hidden_size", "33"], "--hidden_size must be a multiple of twice"),
        (["train", *QUICK, "--resume_from_checkpoint", "latest"], "there is none in"),
        (["train", *QUICK, "--config", "no.yaml"], "--config must be a YAML file, got 'no.yaml'"),
        (["sample", "./no-such-model"], "MODEL must be a model's or adapter's folder or a Hub id, got ./no-such"),
        (["infill", "."], "Either TEXT or --image must be given, got None and None"),
        (["infill", ".", "<mask:1>", "--image", "x.png"], "Either TEXT or --image must be given"),
        (["evaluate", "./no-such-model"], "MODEL must be a model's or adapter's folder or a Hub id"),
        (["evaluate", "./no-such-model", "--draws", "0"], "--draws must be >= 1, got 0"),
        (["dance"], "unknown command 'dance'"),
    ],
)
def test_bad_input_is_one_clear_message(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # of a model that is opened after what is tested here
    if argv[0] == "train":
        argv = [*argv, "--output_dir", "out"]
    errors = failure(capsys, argv)
    assert message in errors and "Traceback" not in errors
    assert not list(tmp_path.glob("out/*")), "nothing was written"


def test_a_folder_that_cannot_be_written_is_refused_before_the_data_are_prepared(capsys, tmp_path):
    (tmp_path / "file").touch()
    errors = failure(capsys, ["train", *QUICK, "--output_dir", str(tmp_path / "file" / "out")])
    assert "--output_dir must be a folder that can be written, got" in errors and "Traceback" not in errors


def test_a_folder_with_other_content_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    errors = failure(capsys, ["train", *QUICK, "--output_dir", str(tmp_path)])
    assert "--output_dir must be empty or absent" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_data_file_is_refused(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    options = ["--data", str(tmp_path / "empty.txt"), "--output_dir", str(tmp_path / "o")]
    errors = failure(capsys, ["train", *QUICK, *options])
    assert "empty" in errors and not (tmp_path / "o").exists()


def test_a_yaml_file_with_an_unknown_option_is_refused(tmp_path, capsys):
    config = tmp_path / "options.yaml"
    config.write_text("learning_rat: 1\n")
    assert "learning_rat" in failure(capsys, ["train", "--config", str(config), "--output_dir", str(tmp_path / "o")])


@pytest.mark.parametrize("words", [["m", "--data", "a", "b"], ["--data", "a", "b", "m"]])
def test_the_model_may_stand_before_and_after_several_data(words):
    data_args, rest = parse_arguments([DataArguments], words, prog="md4", description="", positional={"model": "A."})
    assert (data_args.data, rest.model) == (["a", "b"], "m")


@pytest.mark.parametrize("words", [[], ["--data", "a"]])
def test_a_model_that_is_missing_is_named(words, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([DataArguments], words, prog="md4", description="", positional={"model": "A."})
    assert "the following arguments are required: model" in capsys.readouterr().err


# Wording of errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["train", "--presett", "tiny"], "unknown options: --presett tiny. Did you mean '--preset'?"),
        (["train", "--preset", "Tinny"], "got 'Tinny'. Did you mean 'tiny'?"),
        (["train", "--objective", "gen-md4"], "sedd-absorb, uniform, got 'gen-md4'. Did you mean 'genmd4'?"),
        (["suite", "MODEL", "zeroshot"], "Did you mean 'zero-shot'?"),
        (["suite", "MODEL", "zero-shot", "--tasks", "wikitext-2"], "Did you mean 'wikitext2'?"),
        (["train", "--config", "options.yaml"], "unknown options in options.yaml: learning-rte. Did you mean"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest_known_one(run, argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.yaml").write_text("learning-rte: 1\n")
    assert message in failure(capsys, [str(run) if word == "MODEL" else word for word in argv])


def test_a_word_far_from_all_known_ones_is_answered_with_none(capsys):
    assert "Did you mean" not in failure(capsys, ["train", "--no_such_thing_at_all", "1"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate", "x", "--draws=0"], "md4 evaluate: --draws must be >= 1, got 0."),
        (["evaluate", "x", "--batch-size", "0"], "md4 evaluate: --batch-size must be >= 1, got 0."),
        (["sample", "./x", "--num_samples", "0"], "md4 sample: --num_samples must be >= 1, got 0."),
        (["infill", ".", "a"], "md4 infill: MODEL must be"),
        (["export", "./x", "y"], "md4 export: MODEL must be"),
    ],
)
def test_errors_name_options_as_they_were_typed(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, argv)


# Tokenizer of one's own text ------------------------------------------------------------------------------------------

OWN_TEXT = "In 1905 Albert Einstein, aged 26, published FOUR papers.\n" * 200
RUSSIAN = "Съешь ещё этих мягких французских булок, да выпей чаю.\n" * 200
FEW = [*QUICK, "--final_eval_draws", "1", "--eval_strategy", "no"]


@pytest.fixture
def own_text(tmp_path, monkeypatch):
    """A folder to work in with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text(OWN_TEXT, encoding="utf-8")
    (tmp_path / "russian.txt").write_text(RUSSIAN, encoding="utf-8")


def test_a_text_of_ones_own_is_kept_to_the_letter_by_default(own_text, capsys):
    main(["train", *FEW, "--max_steps", "2", "--data", "russian.txt", "--output_dir", "run"])
    assert len(AutoTokenizer.from_pretrained("run")) == 258
    printed = capsys.readouterr().out
    assert "training data: 1 document, " in printed and "; the tokenizer keeps all characters" in printed


@pytest.mark.parametrize(
    ("options", "tokenizer"),
    [
        (["--preset", "tiny"], "text8"),
        (["--preset", "tiny", "--data", "pydoc"], "text8"),
        (["--preset", "tiny", "--data", "own.txt"], "bytes"),
        (["--preset", "tiny", "--data", "own.txt", "pydoc"], "bytes"),
        (["--preset", "tiny", "--data", "own.txt", "--tokenizer", "text8"], "text8"),
        (["--preset", "tiny", "--config", "own.yaml"], "bytes"),
        (["--preset", "text8", "--data", "own.txt"], "text8"),
        (["--preset", "openwebtext-small", "--data", "own.txt"], "gpt2"),
        (["--preset", "digits"], None),
        (["--data", "own.txt"], None),
    ],
)
def test_the_tokenizer_of_a_preset_goes_with_its_data(own_text, options, tokenizer, tmp_path):
    (tmp_path / "own.yaml").write_text("data: own.txt\n")
    kinds = COMMANDS["train"].options
    start, *_ = parse_arguments(kinds, [*options, "--output_dir", "run"], prog="md4", description="")
    assert start.tokenizer == tokenizer


def test_a_tokenizer_that_loses_the_text_is_refused_before_anything_is_written(own_text, capsys, tmp_path):
    options = ["--tokenizer", "text8", "--output_dir", "run"]
    message = failure(capsys, ["train", *FEW, "--data", "russian.txt", *options])
    assert "keeps 0." in message and "--tokenizer bpe:2048" in message and not list(tmp_path.glob("run/*"))
    main(["train", *FEW, "--max_steps", "1", "--data", "own.txt", *options])
    assert "of the characters (in a sample), and rewrites the others" in capsys.readouterr().out
    assert "keeps 0." in failure(capsys, ["evaluate", "run", "--validation_data", "russian.txt"])


def test_bits_per_character_are_of_the_original_text(own_text, capsys):
    main(["train", *FEW, "--max_steps", "1", "--data", "own.txt", "--tokenizer", "text8", "--output_dir", "run"])
    main(["evaluate", "run", "--validation_data", "own.txt", "--draws", "1", "--output_file", "scores.json"])
    metrics = json.loads(Path("scores.json").read_text())["metrics"]
    ids = AutoTokenizer.from_pretrained("run")(OWN_TEXT)["input_ids"]
    tokens_per_character = len(ids) / len(OWN_TEXT)
    assert tokens_per_character > 1.1, "digits are spelled out"
    expected = metrics["eval_bits_per_token"] * tokens_per_character
    assert metrics["eval_bits_per_character"] == pytest.approx(expected, rel=1e-6)


def test_a_trained_tokenizer_is_saved_with_the_run_and_resumed(own_text, capsys):
    command = ["train", *FEW, "--tokenizer", "bpe:280", "--output_dir", "run", "--data"]
    main([*command, "own.txt", "--max_steps", "2"])
    assert "tokenizer: a byte-level BPE of 282 tokens" in capsys.readouterr().out
    first = Path("run/tokenizer.json").read_text(encoding="utf-8")
    expected = train_bpe_tokenizer([OWN_TEXT[: round(0.9 * len(OWN_TEXT))]], 280)
    assert AutoTokenizer.from_pretrained("run").get_vocab() == expected.get_vocab(), "of the training part alone"
    main([*command, "own.txt", "russian.txt", "--max_steps", "4", "--resume_from_checkpoint", "latest"])
    assert Path("run/tokenizer.json").read_text(encoding="utf-8") == first
    main(["sample", "run", "--num_inference_steps", "2"])


@pytest.mark.slow
def test_a_tokenizer_is_trained_once_for_two_processes(own_text):
    command = ["train", *FEW, "--max_steps", "2", "--tokenizer", "bpe:280", "--data", "own.txt", "--output_dir"]
    output = succeed([*TORCHRUN, "-m", "md4_hf", *command, "two"], OMP_NUM_THREADS="1")
    assert output.count("tokenizer: a byte-level BPE of 282 tokens") == 1
    main([*command, "one"])
    of_two, of_one = (Path(run, "tokenizer.json").read_text(encoding="utf-8") for run in ("two", "one"))
    assert of_two == of_one
    main(["evaluate", "two", "--draws", "1"])
