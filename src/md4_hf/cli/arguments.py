# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The command line: typed dataclasses, filled from a preset, then a YAML file, then the options given."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..core.configuration_md4 import MD4Config
from ..training.presets import PRESETS
from ..utils.errors import check_types
from ..utils.hardware import has_fast_bf16
from ..utils.options import check_options, option


# `transformers.TrainingArguments` has over a hundred options; `--help` shows these, `--help_all` the rest.
SHOWN_TRAINING_OPTIONS = {
    "output_dir",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "torch_compile",
    "activation_checkpointing",
    "seed",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "per_device_eval_batch_size",
    "save_steps",
    "save_total_limit",
    "resume_from_checkpoint",
    "report_to",
    "use_cpu",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
}
HUB_TOKEN = re.compile(r"hf_\w+")  # the value of a misspelled option may be one
# Where our commands say more than transformers' help.
OTHER_HELP = {
    "resume_from_checkpoint": 'Checkpoint to go on from: its folder, "latest" (the newest whole one of the run), or '
    '"auto" (the same, or a new run where there is none).',
    "push_to_hub": "Upload to --hub_model_id: the averaged weights of each checkpoint, and the finished model.",
    "output_dir": "Folder of the run: checkpoints, and in the end the model. (trainer_output if left out)",
}


# What a trained model can be given other values of.
CHANGEABLE_FIELDS = {
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "masking_schedule",
    "schedule_power",
    "schedule_eps",
    "num_train_timesteps",
}
SET_BY_OBJECTIVE = {"is_causal", "learn_masking_schedule"}


@dataclass
class StartArguments:
    """What to start from."""

    _argument_group_name = "start"

    model_name_or_path: str | None = option("Model to go on training (folder or Hub id), in place of a new one.")
    objective: str = option(
        '"md4"; "genmd4", which learns a masking schedule for each token; or "ar", an autoregressive baseline.',
        default="md4",
        choices=["md4", "genmd4", "ar"],
    )
    tokenizer: str | None = option('"text8" (27 characters), "bytes", or a tokenizer\'s folder or Hub id.')

    def __post_init__(self):
        check_options(self)


@dataclass
class RunArguments:
    """How large a step is, and how the run ends."""

    _argument_group_name = "run"

    total_batch_size: int | None = option(
        "Sequences per optimizer step over all devices; sets the accumulation steps from the number of processes."
    )
    prepare_only: bool = option("Prepare the data, which later runs then find in the cache, and end.", default=False)
    final_eval_draws: int = option("Draws per held-out sequence in the evaluation at the end.", default=8)

    def __post_init__(self):
        check_options(self)
        for name in ("total_batch_size", "final_eval_draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be >= 1, got {value}.")


@dataclass
class ModelArguments:
    """Fields of `MD4Config` for a new model; those left out keep the preset's value, or else `MD4Config`'s."""

    _argument_group_name = "new model (defaults: those of the preset, else of MD4Config)"

    backbone: str | None = option(
        "The network: a transformer for text, the others for images.", choices=["transformer", "unet", "uvit"]
    )
    hidden_size: int | None = option("Width of the transformer, or of a network of images.")
    num_hidden_layers: int | None = option("Number of blocks (of images: at each resolution).")
    num_attention_heads: int | None = option("Number of attention heads.")
    intermediate_size: int | None = option("Width of the feed-forward.")
    embedding_size: int | None = option("Width of the token embedding, if not the transformer's.")
    mlp_type: str | None = option("Gate of the feed-forward.", choices=["glu", "swiglu", "geglu"])
    time_conditioning: bool | None = option("Whether the network sees the time.")
    conditioning_size: int | None = option("Width of the conditioning vector.")
    modulation: str | None = option("How conditioning enters the blocks.", choices=["adaln", "adaln_zero"])
    depth_scaled_init: bool | None = option("Scale the initial feed-forward by the depth.")
    embedding_dropout: float | None = option("Dropout after the embedding.")
    attention_dropout: float | None = option("Dropout of the attention probabilities.")
    residual_dropout: float | None = option("Dropout of the blocks' outputs.")
    masking_schedule: str | None = option("Masking schedule.", choices=["linear", "cosine", "poly", "geometric"])
    schedule_power: float | None = option('Exponent of the "poly" schedule.')
    schedule_eps: float | None = option("Distance that the schedule keeps from 0 and 1.")
    learn_masking_schedule: bool | None = option("GenMD4: learn an exponent of the schedule for each token.")
    schedule_first_time: float | None = option("GenMD4's first time t_1.")
    is_causal: bool | None = option("Autoregressive baseline: tokens see those before them only.")
    num_train_timesteps: int | None = option("Steps of discrete-time training; continuous time if left out.")
    image_size: int | None = option("Height and width of the images.")
    num_channels: int | None = option("Channels of the images: 1 (grey) or 3 (RGB).")
    channel_multipliers: list[int] | None = option("Width of each resolution of images, in multiples of hidden_size.")
    dit_hidden_size: int | None = option("Width of the transformer in the middle of a uvit.")
    dit_num_hidden_layers: int | None = option("Number of its blocks.")
    dit_num_attention_heads: int | None = option("Number of its attention heads.")
    num_classes: int | None = option("Classes of a class-conditional model of images.")
    class_dropout: float | None = option("Part of the examples that lose their class, for guidance.")
    attn_implementation: str | None = option('Attention backend: "eager", "sdpa", "flash_attention_2", ...')

    def config(self, vocab_size: int, mask_token_id: int, length: int) -> MD4Config:
        """The configuration of a new model for a tokenizer and a length in tokens."""
        sizes = {"vocab_size": vocab_size, "mask_token_id": mask_token_id, "max_position_embeddings": length}
        return MD4Config(**sizes, **self.given())

    def image_config(self, num_levels: int) -> MD4Config:
        """The configuration of a new model of images with so many levels; the mask comes after them."""
        return MD4Config(vocab_size=num_levels + 1, **self.given())

    def given(self) -> dict[str, Any]:
        """The fields that have a value."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def change(self, config: MD4Config):
        """Change the configuration of an existing model, as far as its weights allow.

        Raises:
            ValueError: For a field that the weights depend on, if it differs.
        """
        for name, value in self.given().items():
            if name in CHANGEABLE_FIELDS:
                setattr(config, name, value)
            elif name != "attn_implementation" and getattr(config, name) != value:
                hint = ", which `objective` sets," if name in SET_BY_OBJECTIVE else ""
                raise ValueError(f"`{name}`{hint} must be the trained model's {getattr(config, name)}, got {value}.")


class _HelpFormatter(argparse.HelpFormatter):
    """One name per option, the values it takes, and its default only where there is one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return action.dest
        if action.nargs == 0 or action.const is True:
            return action.option_strings[0]
        choices = ["true", "false"] if action.type is string_to_bool else [*(action.choices or ())]
        values = "{" + ",".join(map(str, choices)) + "}" if 0 < len(choices) < 7 else "VALUE"
        return f"{action.option_strings[0]} {values}{' ...' if action.nargs in ('+', '*') else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        absent = action.default is None or action.default is False or action.default in ("", argparse.SUPPRESS)
        shown = not absent and "%(default)" not in (action.help or "")
        return f"{action.help} (default: %(default)s)" if shown and action.option_strings else action.help


def preset_defaults(name: str, with_model: bool = True) -> dict[str, Any]:
    """The options that a preset stands for; without those of a new model, and its tokenizer, if there is a model."""
    if not (isinstance(name, str) and name in PRESETS):
        raise ValueError(f"`preset` must be one of {sorted(PRESETS)}, got {name!r}.")
    preset = PRESETS[name]
    tokenizer = {} if preset.tokenizer is None else {"tokenizer": preset.tokenizer}
    new_model = {**preset.model, **tokenizer} if with_model else {}
    return {**new_model, **preset.training, **preset.data, "total_batch_size": preset.batch_size}


def read_config(path: str) -> dict[str, Any]:
    """Options from a YAML file: a mapping of option names to values."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"`config` must be a YAML file, got {path!r}, which does not exist.")
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`config` must be a YAML file, got {path!r}: {error}") from error
    if not isinstance(options, Mapping):
        raise ValueError(
            f"`config` must be a mapping of option names to values, got {type(options).__name__} in {path}."
        )
    return dict(options)


def parse_arguments(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    positional: Mapping[str, str] | None = None,
    with_presets: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> tuple:
    """Fill dataclasses from the command line.

    An option on the command line goes before the YAML file's (`--config`), and that before the preset's (`--preset`).

    Args:
        dataclass_types: What to fill, in the order to return.
        argv: The arguments; the process's by default.
        prog: Name of the command.
        description: What it does.
        positional: Names and help of required positional arguments.
        with_presets: Whether there is a `--preset`.
        defaults: Defaults in place of the dataclasses' own.

    Returns:
        The instances, then a namespace with the positional arguments if there are any, and the preset.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        list(dataclass_types),
        prog=prog,
        description=description,
        allow_abbrev=False,
        usage=" ".join([prog, *(name.upper() for name in positional or {}), "[OPTIONS]"]),
        formatter_class=_HelpFormatter,
    )
    general = parser.add_argument_group("general")
    general.add_argument("--config", help="YAML file of options; the command line goes before it.")
    if with_presets:
        general.add_argument("--preset", help=f"Start from a known configuration: {', '.join(PRESETS)}.")
    for name, text in (positional or {}).items():
        parser.add_argument(name, help=text)
    for action in parser._actions:
        if any(name.startswith("--no_") for name in action.option_strings):
            action.help = f"Switches --{action.dest} off."  # the parser repeats the help of the option itself
    if any(issubclass(cls, TrainingArguments) for cls in dataclass_types):
        general.add_argument("--help_all", action="store_true", help="Show all options of transformers' Trainer too.")
        if "--help_all" in argv:
            argv = ["--help"]
        else:
            _hide_rare_options(parser)
    parser.set_defaults(**(defaults or {}))
    _set_defaults(parser, argv, with_presets)
    *instances, rest, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        parser.error(HUB_TOKEN.sub("hf_***", f"unknown options: {' '.join(unknown)}"))
    return (*instances, rest)


def _set_defaults(parser: HfArgumentParser, argv: list[str], with_presets: bool):
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.add_argument("--preset")
    early.add_argument("--model_name_or_path", "--model-name-or-path")
    given, _ = early.parse_known_args(argv)
    options = read_config(given.config) if given.config else {}
    known = {action.dest for action in parser._actions}
    unknown = sorted(map(str, set(options) - known))
    if unknown:
        parser.error(f"unknown options in {given.config}: {', '.join(unknown)}")
    for cls in parser.dataclass_types:
        if not issubclass(cls, TrainingArguments):  # which has types of its own
            written = {name: value for name, value in options.items() if not isinstance(value, str)}
            check_types(written, get_type_hints(cls))  # strings are read as those of the command line
    preset = given.preset or options.get("preset")
    if with_presets and preset:
        has_model = given.model_name_or_path or options.get("model_name_or_path")
        parser.set_defaults(**preset_defaults(preset, with_model=not has_model))
    if "use_cpu" in known and not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True)  # without it, `TrainingArguments` refuses bf16 where there is no accelerator
        if not has_fast_bf16():
            parser.set_defaults(bf16=False)
    parser.set_defaults(**options)


def _hide_rare_options(parser: HfArgumentParser):
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)} - SHOWN_TRAINING_OPTIONS
    for action in parser._actions:
        action.help = OTHER_HELP.get(action.dest, action.help)
        if action.dest in inherited or any(option.startswith("--no_") for option in action.option_strings):
            action.help = argparse.SUPPRESS
