# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""YAML files of options: the values that the command line would give, or one line that names what is wrong."""

import pytest
from commands import failure

from md4_hf.cli import COMMANDS
from md4_hf.cli.arguments import parse_arguments


def parsed(tmp_path, text, name):
    """All options of a command by name, read from a file."""
    config, command = tmp_path / "options.yaml", COMMANDS[name]
    config.write_text(text, encoding="utf-8")
    argv = [*command.positional, "--config", str(config), *([] if name in ("sample", "train") else ["--use_cpu"])]
    options = {"positional": command.positional, "defaults": command.defaults}
    *groups, _ = parse_arguments(command.options, argv, prog="x", description="x", **options)
    return {name: value for group in groups for name, value in vars(group).items()}


GOOD = [
    ("train", "learning_rate: 1e-4", {"learning_rate": 1e-4}),
    ("train", "learning_rate: 2E+3", {"learning_rate": 2000.0}),
    ("train", "learning_rate: '0.5'", {"learning_rate": 0.5}),
    ("train", "channel_multipliers: [1, 2]", {"channel_multipliers": [1, 2]}),
    ("train", "channel_multipliers:\n- 1\n- '2'", {"channel_multipliers": [1, 2]}),
    ("train", "channel_multipliers: 3", {"channel_multipliers": [3]}),
    ("sample", "class_labels: [0, 7]", {"class_labels": [0, 7]}),
    ("suite", "tasks: [lambada, 1bw]", {"tasks": ["lambada", "1bw"]}),
    ("train", "objective: genmd4", {"objective": "genmd4"}),
    ("train", "eval_strategy: no", {"eval_strategy": "no"}),
    ("train", "bf16: no\ntime_conditioning: yes", {"bf16": False, "time_conditioning": True}),
    ("train", "data_config: 2020\ndata_revision: 0012e5", {"data_config": "2020", "data_revision": "0012e5"}),
    ("train", "data_revision: 2026-01-31", {"data_revision": "2026-01-31"}),
    ("train", "text_column: no", {"text_column": "no"}),
    ("train", "data: [a, b]\ndata_weights: [1e-1, 2]", {"data": ["a", "b"], "data_weights": [0.1, 2.0]}),
    ("train", "save_total_limit: null\nhidden_size: ~", {"save_total_limit": None, "hidden_size": None}),
    ("finetune", "block_size: null", {"block_size": None}),
    ("train", "preset: tiny\nmax_steps: 3", {"max_steps": 3, "hidden_size": 128}),
    ("train", "lr_scheduler_kwargs: {min_lr: 1e-6, x: no}", {"lr_scheduler_kwargs": {"min_lr": 1e-6, "x": "no"}}),
    ("train", "report_to: [none]", {"report_to": []}),
    ("train", "report_to: none", {"report_to": []}),
    ("train", "warmup_steps: .5", {"warmup_steps": 0.5}),
    ("train", "<<: {seed: 7, max_steps: 1}\nmax_steps: 3", {"seed": 7, "max_steps": 3}),
    ("evaluate", "target_stderr: .inf", {"target_stderr": float("inf")}),
]


@pytest.mark.parametrize(("command", "text", "expected"), GOOD)
def test_a_value_is_read_as_on_the_command_line(tmp_path, command, text, expected):
    values = parsed(tmp_path, text, command)
    assert {name: values[name] for name in expected} == expected


BAD = [
    ("train", "objective: genmd", "sedd-absorb, uniform, got 'genmd'"),
    ("train", "objective: 3", "sedd-absorb, uniform, got 3"),
    ("train", "eval_strategy: off", "--eval_strategy must be one of no, steps, epoch"),
    ("train", "masking_schedule: lin", "--masking_schedule must be one of linear"),
    ("train", "on_nonfinite: ignore", "--on_nonfinite must be one of stop, skip"),
    ("evaluate", "estimator: times", "--estimator must be one of time, any_order"),
    ("suite", "preparation: sed", "--preparation must be one of"),
    ("train", "seed: null", "--seed must be int, got null"),
    ("train", "seed: 1.5", "--seed must be int, got 1.5"),
    ("train", "seed: true", "--seed must be int, got True"),
    ("train", "ema_decay: null", "--ema_decay must be float, got null"),
    ("train", "ema_decay:", "--ema_decay must be float, got null"),
    ("train", "learning_rate: [1]", "--learning_rate must be float, got [1]"),
    ("train", "learning_rate: fast", "--learning_rate must be float, got 'fast'"),
    ("train", "save_steps: [5]", "--save_steps must be float, got [5]"),
    ("train", "save_steps: {a: 1}", "--save_steps must be float, got {'a': 1}"),
    ("train", "hidden_size: {a: 1}", "--hidden_size must be int, or null, got {'a': 1}"),
    ("train", "channel_multipliers: [1, [2]]", "--channel_multipliers must be int, or a list of such, or null, got"),
    ("train", "channel_multipliers: [1, x]", "--channel_multipliers must be int, or a list of such, or null, got"),
    ("train", "channel_multipliers: {a: 1}", "--channel_multipliers must be int"),
    ("train", "bf16: maybe", "--bf16 must be true or false, got 'maybe'"),
    ("train", "bf16: 2", "--bf16 must be true or false, got 2"),
    ("train", "text_column: [a]", "--text_column must be a string, got ['a']"),
    ("train", "data: {a: 1}", "--data must be a string, or a list of such, got {'a': 1}"),
    ("train", "data: null", "--data must be a string, or a list of such, got null"),
    ("train", "preset: [tiny]", "--preset must be a string, got ['tiny']"),
    ("train", "preset: tine", "--preset must be one of"),
    ("train", "lr_scheduler_kwargs: [1]", "`lr_scheduler_kwargs` must be"),
    ("train", "config: other.yaml", "unknown options"),
    ("train", "help: true", "unknown options"),
    ("evaluate", "model: x", "unknown options"),
    ("train", "3: 4", "unknown options in"),
    ("train", "- seed", "--config must be a mapping of names to values, got list"),
    ("train", "", "--config must be a mapping of names to values, got NoneType"),
    ("train", "seed: [1", "--config must be a YAML file"),
    ("train", "seed: !!python/name:os.system x", "--config must be a YAML file"),
    ("train", "[1]: 2", "--config must be a YAML file"),
    ("train", "seed: 1\n---\nseed: 2", "--config must be a YAML file"),
    ("train", "seed: 1\nmax_steps: 3\nseed: 2", "seed stands twice in one mapping"),
    ("train", "lr_scheduler_kwargs: {min_lr: 1, min_lr: 2}", "min_lr stands twice in one mapping"),
    ("train", "preset:\ttiny\n\tdata: x", "found character '\\t' that cannot start any token in"),
]


@pytest.mark.parametrize(("command", "text", "message"), BAD)
def test_a_value_of_another_kind_is_one_line_before_anything_happens(tmp_path, command, text, message, capsys):
    (tmp_path / "options.yaml").write_text(text)
    words = {
        "train": ["--output_dir", str(tmp_path / "out")],
        "evaluate": ["MODEL"],
        "suite": ["MODEL", "openwebtext"],
    }
    errors = failure(capsys, [command, *words[command], "--config", str(tmp_path / "options.yaml")])
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
