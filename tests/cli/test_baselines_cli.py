# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Baselines by the command line: trained, resumed, evaluated, sampled, fine-tuned, and what is refused."""

import json
import shutil

import pytest
from commands import failure
from safetensors.torch import load_file

from md4_hf import load_model
from md4_hf.cli import main
from md4_hf.cli.train_options import BASELINE_NAMES
from md4_hf.core.configuration_md4 import BASELINES


SMALL = ["--preset", "tiny", "--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
SMALL += ["--block_size", "16", "--bf16", "false", "--eval_steps", "2", "--save_steps", "2"]


def train(folder, objective, *options, max_steps=4):
    chain = ["--num_train_timesteps", "8"] if BASELINES[objective].is_chain else []
    main(
        [
            *("train", *SMALL, "--objective", objective, "--output_dir", str(folder), "--total_batch_size", "8"),
            *("--max_steps", str(max_steps), *chain, *options),
        ]
    )


def test_the_command_line_knows_every_baseline():
    assert set(BASELINE_NAMES) == set(BASELINES)


QUICK_NAMES = ("uniform",)


@pytest.mark.parametrize(
    "objective", [pytest.param(x, marks=[] if x in QUICK_NAMES else pytest.mark.slow) for x in BASELINE_NAMES]
)
def test_a_baseline_is_trained_evaluated_and_sampled(tmp_path, capsys, objective):
    folder = tmp_path / "run"
    train(folder, objective)
    model = load_model(str(folder))
    assert type(model).__name__ == BASELINES[objective].model_class
    assert model.config.baseline == objective and model.config.time_conditioning == (objective != "ardm")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| Method | " in card and ("load_pipeline" in card) == (objective != "ardm")
    assert (folder / "model_index.json").exists() == (objective == "ardm")  # else diffusers would sample it as MD4
    result = tmp_path / "result.json"
    main(["evaluate", str(folder), "--draws", "1", "--output_file", str(result)])
    report = json.loads(result.read_text(encoding="utf-8"))
    assert report["model"]["objective"] == objective and 1.0 < report["metrics"]["eval_loss"] < 100.0
    capsys.readouterr()
    main(["sample", str(folder), "--num_samples", "2", "--num_inference_steps", "8", "--seed", "1", "--quiet"])
    assert len(capsys.readouterr().out) > 30


def test_a_resumed_baseline_ends_with_the_same_bits(tmp_path):
    """Noise depends on seed, step and example alone, with two numbers for each token too."""
    through, resumed = tmp_path / "through", tmp_path / "resumed"
    options = ["--hybrid_weight", "0.01", "--save_total_limit", "2"]
    train(through, "d3pm-uniform", *options)
    shutil.copytree(through, resumed, ignore=shutil.ignore_patterns("checkpoint-4"))
    train(resumed, "d3pm-uniform", *options, "--resume_from_checkpoint", "latest")
    first, second = (load_file(folder / "model.safetensors") for folder in (through, resumed))
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
    assert "cross entropy" in (through / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_baseline_takes_an_adapter(tmp_path, capsys):
    folder, adapter = tmp_path / "run", tmp_path / "adapter"
    train(folder, "sedd-absorb")
    options = ["--max_steps", "2", "--block_size", "16", "--eval_strategy", "no", "--save_strategy", "no"]
    main(["finetune", str(folder), "--data", "pydoc", "--output_dir", str(adapter), *options])
    capsys.readouterr()
    main(["sample", str(adapter), "--num_samples", "1", "--num_inference_steps", "4", "--quiet"])
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("ardm", ["--masking_schedule", "cosine"], "--masking_schedule must be 'linear'"),
        ("uniform", ["--num_train_timesteps", "9"], "--num_train_timesteps must be None"),
        ("multinomial", ["--hybrid_weight", "0.1"], "--hybrid_weight must be in [0, 1] for D3PM"),
        ("multinomial", ["--diffusion_block_size", "4"], "--baseline must be None for causal, GenMD4, block"),
    ],
)
def test_options_that_a_baseline_does_not_have_are_refused(tmp_path, capsys, objective, options, message):
    argv = ["train", *SMALL, "--objective", objective, "--output_dir", str(tmp_path / "run"), *options]
    assert message in failure(capsys, argv)
    assert not (tmp_path / "run").exists()
