# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The table of the commands: help, options and function of each. Functions are imported when they are called."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from ..data.arguments import DataArguments, ImageDataArguments, PairArguments
from ..evaluation.recipes import SUITES
from ..hub.lora_arguments import LoraArguments
from ..utils.hub_access import check_model_name
from ..utils.progress_bars import bars_on_terminals_only
from . import common_options, options
from .arguments import make_parser, parse_arguments, training_types
from .train_options import ModelArguments, RunArguments, ShownTrainingArguments, StartArguments
from .wording import Parser, as_typed


MODEL = {"model": "Folder or Hub id of a model or adapter."}
SHELLS = ("bash", "zsh", "fish")
DATA_OF_RUN = {"data": "those of the run, by options.yaml in the model's folder"}


@dataclass(frozen=True)
class Command:
    """A command of `md4`."""

    function: str  # module of this folder and its function, which takes the options and a namespace of the rest
    summary: str  # for the list of commands
    description: str  # for the help of the command
    options: tuple[type, ...] = ()  # dataclasses
    positional: Mapping[str, str] = field(default_factory=dict)  # names and help; those in brackets may be left out
    defaults: Mapping[str, Any] = field(default_factory=dict)  # in place of the dataclasses' own
    shown_defaults: Mapping[str, Any] = field(default_factory=dict)  # in help, of options that follow from others
    stands_for: Mapping[str, str] = field(default_factory=dict)  # options by the argument of Python that errors name
    needed: tuple[tuple[str, ...], ...] = ()  # options that have to be given: of each tuple, one
    common: Mapping[str, Sequence[str]] = field(default_factory=dict)  # options that `--help` shows; all if empty
    examples: tuple[str, ...] = ()  # command lines for the help
    passes_on: bool = False  # whether all arguments but `--help` go to another program unread

    def run(self, name: str, argv: list[str]):
        """Read the arguments and call the function; `--help` is printed and ends the process."""
        *values, rest = (argparse.Namespace(arguments=argv),)
        if not self.passes_on or argv[:1] in (["-h"], ["--help"]):
            *values, rest = parse_arguments(
                self.options,
                argv,
                prog=f"md4 {name}",
                description=self.description,
                positional=self.positional,
                defaults=self.defaults,
                shown_defaults=self.shown_defaults,
                needed=self.needed,
                common=self.common,
                examples=self.examples,
            )
        if "model" in self.positional:  # before torch is imported
            check_model_name(rest.model)
        rest.command_line = shlex.join(["md4", name, *argv])
        module, function = self.function.split(".")
        call = getattr(importlib.import_module(f".{module}", __package__), function)
        with bars_on_terminals_only():
            call(*values, rest)

    def parser(self, name: str) -> Parser:
        """Parser of all options of the command; of a training, also those of transformers."""
        parser = make_parser(training_types(self.options), f"md4 {name}", self.description, self.positional)
        parser.set_defaults(**self.defaults)
        return parser

    def as_typed(self, message: str, argv: Sequence[str]) -> str:
        """An error message of the command with its options as they were typed."""
        names = {name: name for cls in self.options for name in get_type_hints(cls)}
        names |= {f"do_{name}": name for name in ("convert", "resize") if name in names}  # of image processors
        return as_typed(message, {**names, **self.stands_for}, self.positional, argv)


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train.train",
        "train a masked diffusion model on text or images",
        "Train a masked diffusion model on text or images. Blocks of text have 256 tokens, or the length of the preset "
        "or of the trained model, unless --block_size is given.",
        (StartArguments, RunArguments, ModelArguments, DataArguments, ImageDataArguments, ShownTrainingArguments),
        defaults={"block_size": None},  # 256 for a new model
        shown_defaults={"data": "the preset's, else pydoc"},
        stands_for=dict.fromkeys(("name_or_path", "backbone_config"), "backbone_name_or_path"),
        needed=(("preset", "data", "config"), ("output_dir",)),
        common=common_options.TRAIN,
        examples=(
            "md4 train --preset tiny --output_dir runs/tiny",
            "md4 train --preset tiny --data my.txt --tokenizer bpe:2048 --max_steps 5000 --output_dir runs/my",
        ),
    ),
    "finetune": Command(
        "finetune.finetune",
        "fine-tune a model on text, prompts and responses or conversations, with LoRA or in full",
        "Train a LoRA adapter for a masked diffusion model, or with --full all its weights, on text, on prompts and "
        "responses or on conversations.",
        (RunArguments, LoraArguments, PairArguments, DataArguments, ShownTrainingArguments),
        {"model": "Folder or Hub id of the base model, or of an adapter to train further."},
        defaults={
            "learning_rate": 2e-4,
            "warmup_steps": 0.05,
            "lr_scheduler_type": "cosine",
            "ema_decay": 0.0,
            "eval_strategy": "epoch",
            "logging_steps": 10,
            "block_size": None,
        },
        shown_defaults={"data": None},
        needed=(("data", "config"), ("output_dir",)),
        common=common_options.FINETUNE,
        examples=(
            "md4 finetune runs/tiny --data my.txt --output_dir runs/adapter",
            "md4 finetune runs/tiny --data pairs.jsonl --full --learning_rate 1e-4 --output_dir runs/answers",
        ),
    ),
    "evaluate": Command(
        "evaluate.evaluate",
        "bound the likelihood of held-out text or images",
        "Bound the likelihood of text: nats per token, perplexity, bits per character and byte, each with its error; "
        "or that of images, in bits per dimension. The text scored is --validation_data, or else the held-out part of "
        "--data, in blocks of the model's length unless --block_size is given.",
        (options.EvaluateArguments, options.PolicyArguments, PairArguments, DataArguments, ImageDataArguments),
        MODEL,
        defaults={"block_size": None},
        shown_defaults=DATA_OF_RUN,
        stands_for={"num_train_timesteps": "num_timesteps"},
        common=common_options.EVALUATE,
        examples=(
            "md4 evaluate runs/tiny --draws 32",
            "md4 evaluate runs/tiny --validation_data other.txt --rounds 4 --output_file figures.json",
        ),
    ),
    "suite": Command(
        "suite.suite",
        "score the data sets of published tables, prepared as in the papers",
        "Bound the likelihood of the data sets of published tables, prepared as in the papers, and write the figures "
        "as JSON and Markdown.",
        (options.EstimateArguments, options.PolicyArguments, options.SuiteArguments, ImageDataArguments),
        {**MODEL, "name": f"Name of the suite: {', '.join(SUITES)}."},
        stands_for={"num_train_timesteps": "num_timesteps"},
        examples=(
            "md4 suite runs/tiny zero-shot --tasks lambada wikitext2",
            "md4 suite runs/tiny zero-shot --tasks ptb --replace ptb=ptb.txt --output_dir runs/figures",
        ),
    ),
    "sample": Command(
        "sample.sample",
        "sample text or images: unconditionally, from a prompt or of a class",
        "Sample text, unconditionally or from a prompt, or images, unconditionally or of a class.",
        (options.SampleArguments, options.PromptArguments, options.WatchArguments),
        MODEL,
        stands_for={"path": "output"},
        examples=(
            "md4 sample runs/tiny --num_samples 3 --seed 0",
            'md4 sample runs/tiny --prompt "the " --order confidence --num_samples 9 --output samples.jsonl',
        ),
    ),
    "score": Command(
        "score.score",
        "measure samples: perplexity under a causal model, entropy, repetition, FID",
        "Measure samples, of a model or from a file: their perplexity under a causal language model, never without the "
        "entropy of their tokens, different and repeated n-grams, duplicates; of images, FID and Inception score. With "
        "--references the same figures of real data stand beside them. "
        f"{options.SCORED_SAMPLES} samples of a model are measured, drawn with seed {options.SCORED_SEED}, and all of "
        "a file, unless --num_samples and --seed say otherwise.",
        (options.ScoreArguments, options.SamplerArguments, ImageDataArguments),
        {"model_or_file": "Folder or Hub id of a model or adapter, or a .txt or .jsonl file of samples."},
        defaults={"num_samples": None, "seed": options.SCORED_SEED},
        stands_for={"model": "model_or_file", "samples": "model_or_file"},
        common=common_options.SCORE,
        examples=(
            "md4 score runs/tiny --judge gpt2 --num_samples 256",
            "md4 score samples.jsonl --judge gpt2 --references my.txt --output_file scores.json",
        ),
    ),
    "frontier": Command(
        "frontier.frontier",
        "compare samplers: perplexity under a causal model, entropy, network calls",
        "Draw samples by every sampler, number of network calls and temperature, and write as JSON, as Markdown and as "
        "a plot their perplexity under a causal language model with the entropy of their tokens, different n-grams, "
        "repetitions, calls and seconds. With --references real text stands beside them, and MAUVE where mauve-text is "
        "installed. The same command continues with a sweep that was interrupted.",
        (options.FrontierArguments, options.JudgeArguments),
        MODEL,
        defaults={"batch_size": 32},
        needed=(("judge", "config"),),
        examples=(
            "md4 frontier runs/tiny --judge gpt2",
            "md4 frontier runs/tiny --judge gpt2 --samplers random confidence --steps 16 64",
        ),
    ),
    "infill": Command(
        "sample.infill",
        "fill the gaps of a text or an image and keep the rest",
        "Fill the gaps of a text or an image and keep the rest. A gap of n tokens is written <mask:n>; the gap of an "
        "image is the white part of a second image.",
        (options.SampleArguments, options.ImageArguments, options.WatchArguments),
        {**MODEL, "[text]": 'Text with gaps, e.g. "the <mask:12> statement"; left out with --image.'},
        stands_for={"prompt": "text", "path": "output"},
        examples=(
            'md4 infill runs/tiny "the value of the <mask:20> is used" --seed 0',
            "md4 infill runs/digits --image digit.png --mask mask.png --output filled.png",
        ),
    ),
    "chat": Command(
        "chat.chat",
        "chat with a model that is fine-tuned on conversations",
        "Chat with a model on the terminal, where an answer is shown while it is unmasked. /reset begins a new "
        "conversation, /steps N and /temperature X change the sampler, /exit or Ctrl-D ends the chat, Ctrl-C an "
        "answer. From a pipe, each line is a message, and the answers are printed.",
        (options.ChatArguments, options.WatchArguments),
        MODEL,
        examples=(
            "md4 chat runs/answers",
            'md4 chat runs/answers --system "Answer in one sentence." --max_new_tokens 64 --temperature 0.8',
        ),
    ),
    "demo": Command(
        "demo.demo",
        "serve a web page on which a model is tried",
        "Serve a web page on which a model is tried (pip install 'md4_hf[demo]'): sampling, filling gaps, chat where "
        "the tokenizer has a chat template; images and parts of them. The unmasking is shown while it runs and can be "
        "replayed. Users take turns. The page fetches nothing from other sites, and is seen from this machine alone "
        "without --share or --host. Ctrl-C ends it.",
        (options.DemoArguments,),
        MODEL,
        examples=(
            "md4 demo runs/tiny",
            'md4 demo runs/answers --title "My model" --port 8000 --share',
        ),
    ),
    "schedules": Command(
        "schedules.schedules",
        "show the masking schedules that a GenMD4 model has learned",
        "Show the masking schedules 1 - t^w that a GenMD4 model has learned: tokens with a large exponent w are masked "
        "late and generated early. Counts are those of the training part of --data.",
        (options.ScheduleArguments, DataArguments),
        {"model": "Folder or Hub id of a GenMD4 model."},
        shown_defaults=DATA_OF_RUN,
        examples=(
            "md4 schedules runs/gen",
            "md4 schedules runs/gen --rows 20 --output_dir runs/gen-pictures --format svg",
        ),
    ),
    "export": Command(
        "export.export",
        "write a model or merged adapter as one folder for all loaders, or push it",
        "Write a model with its tokenizer and scheduler as one folder that every loader opens, also where md4_hf is "
        "not installed. An adapter is merged into its base, and the shards of a checkpoint are combined. With --space, "
        "write a Gradio Space that shows the model on a page.",
        (options.ExportArguments,),
        {"model": "Folder or Hub id of a model or adapter, or a checkpoint.", "folder": "New folder to write."},
        examples=(
            "md4 export runs/tiny runs/share --dtype bfloat16 --push_to_hub USER/NAME --private",
            "md4 export runs/tiny runs/space --space",
        ),
    ),
    "convert": Command(
        "export.convert",
        "convert a published checkpoint: MDLM, SEDD, RADD, LLaDA, Dream, MD4, others",
        "Convert a published checkpoint to one folder that every loader opens. Its family is recognised by its "
        "configuration or by the names of its tensors. A checkpoint without a tokenizer is converted alone unless "
        "--tokenizer names one.",
        (options.ConvertArguments,),
        positional={
            "checkpoint": "Folder, file of weights or Hub id; of the official implementation, an Orbax folder (needs "
            "orbax-checkpoint), or a safetensors file of flat parameters whose names are slash-joined Flax paths.",
            "[config_file]": "JSON file with the fields of the checkpoint's configuration, if not its config.json.",
            "[folder]": "Folder to write, if not as --output_dir.",
        },
        examples=(
            "md4 convert kuleshov-group/mdlm-owt --output_dir runs/mdlm --tokenizer gpt2",
            "md4 convert CHECKPOINT config.json runs/official --family official",
        ),
    ),
    "harness": Command(
        "evaluate.harness",
        "run the lm-evaluation-harness with MD4 models",
        "Run the lm-evaluation-harness (pip install 'md4_hf[eval]') with the model type \"md4_hf\" added. All "
        "arguments are those of lm_eval: md4 harness --model md4_hf --model_args pretrained=FOLDER,draws=32 --tasks "
        "TASK --batch_size 64. The model's own arguments are those of md4_hf.evaluation.harness.MD4LM.",
        positional={"options_of_lm_eval": "Those that `md4 harness run --help` lists."},
        passes_on=True,
        examples=(
            "md4 harness --model md4_hf --model_args pretrained=runs/tiny,draws=32 --tasks lambada_openai",
            "md4 harness --model md4_hf --model_args pretrained=runs/tiny --tasks arc_easy --limit 100",
        ),
    ),
    "completion": Command(
        "completion.completion",
        "print a script that completes commands, options and values in a shell",
        "Print a script that completes commands, options and their values with the Tab key, in bash, zsh or fish. "
        "Write a new one after an upgrade.",
        positional={"shell": f"Shell: {', '.join(SHELLS)}."},
        examples=(
            "md4 completion bash > ~/.local/share/bash-completion/completions/md4",
            "md4 completion fish > ~/.config/fish/completions/md4.fish",
        ),
    ),
    "env": Command(
        "environment.env",
        "print the versions, hardware and settings that a bug report needs",
        "Print what a bug report needs: versions of this package and its libraries, devices, the default configuration "
        "of accelerate, and environment variables, without the values of tokens and keys.",
        examples=("md4 env", "md4 env > environment.txt"),
    ),
}
