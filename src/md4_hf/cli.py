# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The `md4` command: train, evaluate, sample and infill."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, set_seed

from md4_hf import (
    DataArguments,
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForMaskedDiffusion,
    MD4Trainer,
    MD4TrainingArguments,
    ModelArguments,
    RunArguments,
    check_tokenizer_matches,
    load_documents,
    load_tokenizer,
    load_train_validation,
    ngram_bits_per_character,
    pack,
    parse_arguments,
    plot_losses,
)


GAP = re.compile(r"<mask:(\d+)>")
MAX_SYMBOLS_FOR_BASELINES = 1000
MAX_TOKENS_FOR_BASELINES = 10_000_000
EXIT_INTERRUPTED = 130
STAGING_FOLDER = ".model-in-progress"


# ----------------------------------------------------------------------------------------------------------------------
# md4 train
# ----------------------------------------------------------------------------------------------------------------------


def train(argv: list[str] | None = None):
    """`md4 train`: pretrain on text and leave a folder that `from_pretrained` and the other commands open."""
    types = (RunArguments, ModelArguments, DataArguments, MD4TrainingArguments)
    run, model_args, data_args, args, _ = parse_arguments(
        types, argv, prog="md4 train", description="Train a masked diffusion model on text.", with_presets=True
    )
    check_output_dir(args)
    set_batch_size(run, args)
    set_seed(args.seed)
    tokenizer = load_tokenizer(run.tokenizer or run.model_name_or_path or "text8")
    model = make_model(run, model_args, tokenizer, data_args.block_size)
    with args.main_process_first(desc="preparing the data"):
        train_blocks, heldout_blocks = prepare_blocks(data_args, tokenizer, verbose=args.process_index == 0)
    trainer = MD4Trainer(
        model=model,
        args=args,
        train_dataset=train_blocks,
        eval_dataset=heldout_blocks,
        processing_class=tokenizer,
    )
    baselines = measure_baselines(train_blocks, heldout_blocks, tokenizer) if args.should_save else {}
    say(trainer, f"{model.num_parameters():,} parameters on {args.device}; {describe_batch(args, data_args)}")
    for name, bits in baselines.items():
        say(trainer, f"held-out bits per character of the {name} model: {bits:.3f}")
    trainer.train(resume_from_checkpoint=resume_argument(args.resume_from_checkpoint))
    if trainer.interrupted:
        say(trainer, f"Stopped at step {trainer.state.global_step}. To go on, add: --resume_from_checkpoint latest")
        sys.exit(EXIT_INTERRUPTED)
    finish(trainer, run, data_args, tokenizer, baselines)


def check_output_dir(args: MD4TrainingArguments):
    """Refuse a folder that holds something else, and a resumption where there is nothing to resume."""
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output_dir` must be a folder, got the file {folder}.")
    if args.resume_from_checkpoint is None and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"`output_dir` must be empty or absent, got {folder}, which holds other files. To go on with the run in "
            "it, add `--resume_from_checkpoint latest`."
        )
    if args.resume_from_checkpoint == "latest" and not list(folder.glob("checkpoint-*")):
        raise ValueError(f"`resume_from_checkpoint` must be a checkpoint's folder: there is none in {folder}.")


def resume_argument(value: str | None) -> str | bool | None:
    """ "latest" as `Trainer` says it."""
    return True if value == "latest" else value


def set_batch_size(run: RunArguments, args: MD4TrainingArguments):
    """Choose the accumulation steps that make the total batch on the processes at hand."""
    if run.total_batch_size is None:
        return
    devices = num_devices(args)
    share, rest = divmod(run.total_batch_size, devices)
    if rest:
        raise ValueError(
            f"`total_batch_size` must be a multiple of the {devices} devices, got {run.total_batch_size}."
        )
    args.per_device_train_batch_size = min(args.per_device_train_batch_size, share)
    args.gradient_accumulation_steps, rest = divmod(share, args.per_device_train_batch_size)
    if rest:
        raise ValueError(
            f"`total_batch_size` must be a multiple of {devices} devices x `per_device_train_batch_size` "
            f"{args.per_device_train_batch_size}, got {run.total_batch_size}."
        )


def num_devices(args: MD4TrainingArguments) -> int:
    """Devices over all processes; without a launcher, one process may drive several GPUs."""
    return args.world_size * max(1, args.n_gpu)


def prepare_blocks(data_args: DataArguments, tokenizer, verbose: bool):
    """Training and held-out text as blocks of ids; `verbose` prints what they are."""
    blocks = []
    for name, documents in zip(("training", "held-out"), load_train_validation(data_args), strict=True):
        packed, report = pack(documents, tokenizer, data_args.block_size, num_proc=data_args.num_proc)
        blocks.append(packed)
        if report is not None and verbose:
            print(
                f"{name} data: {report.num_documents:,} documents, {report.num_tokens:,} tokens in "
                f"{report.num_blocks:,} blocks of {data_args.block_size} ({report.num_dropped_tokens} tokens left over)"
            )
    return blocks


def make_model(run: RunArguments, model_args: ModelArguments, tokenizer, length: int):
    """A new model for the tokenizer, or the one to go on with."""
    if run.model_name_or_path is None:
        return MD4ForMaskedDiffusion(model_args.config(len(tokenizer), tokenizer.mask_token_id, length))
    config = MD4Config.from_pretrained(run.model_name_or_path)
    check_tokenizer_matches(tokenizer, config.vocab_size, config.mask_token_id)
    model_args.change(config)  # before the layers are built, which take their dropout from it
    check_block_size(length, config)
    return MD4ForMaskedDiffusion.from_pretrained(
        run.model_name_or_path,
        config=config,
        dtype=torch.float32,
        attn_implementation=model_args.attn_implementation,
    )


def check_block_size(block_size: int, config: MD4Config):
    """Refuse blocks that are longer than the model."""
    if block_size > config.max_position_embeddings:
        raise ValueError(
            f"`block_size` must be at most the model's {config.max_position_embeddings} tokens, got {block_size}."
        )


def measure_baselines(train_blocks, heldout_blocks, tokenizer) -> dict[str, float]:
    """Held-out bits per character of count models of the same data, for small alphabets with the mask last."""
    symbols = len(tokenizer) - 1
    counted = all(hasattr(blocks, "__len__") for blocks in (train_blocks, heldout_blocks))
    if not counted or symbols > MAX_SYMBOLS_FOR_BASELINES or tokenizer.mask_token_id != symbols:
        return {}
    train_ids, heldout_ids = first_ids(train_blocks), first_ids(heldout_blocks)
    block_size = len(heldout_blocks[0]["input_ids"])
    tokens_per_character = block_size / np.mean(heldout_blocks["num_characters"][:])
    baselines = {"uniform": math.log2(symbols)}
    for order, name in ((1, "unigram"), (2, "bigram")):
        baselines[name] = ngram_bits_per_character(train_ids, heldout_ids, order, symbols)
    return {name: bits * tokens_per_character for name, bits in baselines.items()}


def first_ids(blocks) -> np.ndarray:
    """The ids of a data set one after the other, of a large one the first ten million."""
    count = min(len(blocks), MAX_TOKENS_FOR_BASELINES // len(blocks[0]["input_ids"]))
    return np.concatenate(blocks.select(range(count)).with_format("numpy")["input_ids"][:])


def describe_batch(args: MD4TrainingArguments, data_args: DataArguments) -> str:
    sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_devices(args)
    return f"{sequences} sequences of {data_args.block_size} tokens a step"


def finish(trainer: MD4Trainer, run: RunArguments, data_args: DataArguments, tokenizer, baselines: dict[str, float]):
    """Evaluate with more draws, and write the model with all that belongs to it."""
    trainer.args.eval_draws = run.final_eval_draws
    metrics = trainer.evaluate()
    folder = Path(trainer.args.output_dir)
    staging = folder / STAGING_FOLDER
    trainer.save_model(str(staging))
    if not trainer.is_world_process_zero():
        return
    # The model and the tokenizer are there: what makes the folder a pipeline's are its scheduler and its index.
    pipeline = make_pipeline(trainer.accelerator.unwrap_model(trainer.model), tokenizer)
    pipeline.scheduler.save_pretrained(staging)
    pipeline.save_config(staging)
    # The weights come last: where they are, all is.
    for path in sorted(staging.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(path, folder / path.name)
    staging.rmdir()
    trainer.save_metrics("eval", metrics, combined=False)
    plot_losses(trainer.state.log_history, folder / "loss.png", baselines)
    args = trainer.args
    trainer.create_model_card(
        title=folder.resolve().name,
        data=f"{data_args.data}, blocks of {data_args.block_size} tokens",
        tokens_per_step=data_args.block_size * trainer.get_total_train_batch_size(args),
        metrics=metrics,
        baselines=baselines,
        plot="loss.png",
        location=str(folder),
    )
    print_metrics(metrics, run.final_eval_draws, data_args)
    print(f"Model, tokenizer, loss.png and model card are in {folder}")


def say(trainer: MD4Trainer, text: str):
    if trainer.is_world_process_zero():
        print(text, flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# md4 evaluate
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class EvaluateArguments:
    """How to evaluate."""

    _argument_group_name = "evaluation"

    draws: int = field(default=8, metadata={"help": "Stratified draws of time and masks per sequence."})
    batch_size: int = field(default=32, metadata={"help": "Sequences per forward pass."})
    seed: int = field(default=0, metadata={"help": "Seed of the evaluation noise."})
    bf16: bool = field(default=False, metadata={"help": "Evaluate under bf16 autocast."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even if there is an accelerator."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})

    def __post_init__(self):
        for name in ("draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}.")


def evaluate(argv: list[str] | None = None):
    """`md4 evaluate`: the NELBO of held-out text, with its standard error."""
    options, data_args, rest = parse_arguments(
        (EvaluateArguments, DataArguments),
        argv,
        prog="md4 evaluate",
        description="Bound the likelihood of text: nats per token, perplexity, bits per character, each with its "
        "error. With --validation_data that text is scored, else the held-out part of --data. Blocks are as long as "
        "the model's length unless --block_size is given.",
        positional={"model": "Folder or Hub id."},
        defaults={"block_size": None},
    )
    model, tokenizer = load_model(rest.model), load_tokenizer(rest.model)
    check_tokenizer_matches(tokenizer, model.config.vocab_size, model.config.mask_token_id)
    data_args.block_size = data_args.block_size or model.config.max_position_embeddings
    check_block_size(data_args.block_size, model.config)
    with tempfile.TemporaryDirectory() as folder:
        args = MD4TrainingArguments(
            output_dir=folder,
            per_device_eval_batch_size=options.batch_size,
            eval_draws=options.draws,
            eval_seed=options.seed,
            bf16=options.bf16,
            use_cpu=options.use_cpu,
            ema_decay=0.0,
            report_to="none",
        )
        with args.main_process_first(desc="preparing the data"):
            documents = evaluation_documents(data_args)
            blocks, _ = pack(documents, tokenizer, data_args.block_size, num_proc=data_args.num_proc)
        trainer = MD4Trainer(model=model, args=args, eval_dataset=blocks, processing_class=tokenizer)
        metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        print_metrics(metrics, options.draws, data_args)
        if options.output_file is not None:
            recipe = {"model": rest.model, **dataclasses.asdict(options), **dataclasses.asdict(data_args)}
            write_whole(Path(options.output_file), json.dumps({"metrics": metrics, "recipe": recipe}, indent=2) + "\n")


def write_whole(path: Path, text: str):
    """Write a file that is never seen half-written."""
    temporary = path.with_name(f".{path.name}.in-progress")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def evaluation_documents(data_args: DataArguments):
    """The text named for validation, or the held-out part of the data."""
    if data_args.validation_data is None:
        return load_train_validation(data_args)[1]
    return load_documents(
        data_args.validation_data,
        config=data_args.validation_config,
        split=data_args.validation_split or data_args.data_split,
        text_column=data_args.text_column,
        streaming=data_args.streaming,
    )


def print_metrics(metrics: dict[str, float], draws: int, data_args: DataArguments):
    """The figures of an evaluation as a small table."""
    rows = [
        ("NELBO, nats per token", metrics["eval_loss"], metrics["eval_loss_stderr"]),
        ("perplexity", metrics["eval_perplexity"], metrics["eval_perplexity"] * metrics["eval_loss_stderr"]),
    ]
    if "eval_bits_per_character" in metrics:
        bits = metrics["eval_bits_per_character"], metrics["eval_bits_per_character_stderr"]
        rows.append(("bits per character", *bits))
    source = data_args.validation_data or f"held-out part of {data_args.data}"
    print(
        f"{source}: {metrics['eval_num_tokens']:,} tokens in blocks of {data_args.block_size}, {draws} draws per block"
    )
    for name, value, error in rows:
        print(f"  {name:<22} {value:9.4f} ± {error:.4f}")


# ----------------------------------------------------------------------------------------------------------------------
# md4 sample, md4 infill
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class SampleArguments:
    """How to sample."""

    _argument_group_name = "sampling"

    num_samples: int = field(default=1, metadata={"help": "Samples (of each text)."})
    num_inference_steps: int | None = field(default=None, metadata={"help": "Steps; the scheduler's own by default."})
    length: int | None = field(default=None, metadata={"help": "Tokens; the model's length by default."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits; 0 takes the most probable token."})
    top_p: float | None = field(default=None, metadata={"help": "Nucleus in (0, 1]."})
    top_k: int | None = field(default=None, metadata={"help": "Keep the k most probable tokens."})
    seed: int | None = field(default=None, metadata={"help": "Seed; another sample every time without one."})
    device: str | None = field(default=None, metadata={"help": "Device; an accelerator if there is one."})

    def pipeline_arguments(self) -> dict:
        """Keyword arguments for the pipeline's call."""
        names = ("num_samples", "num_inference_steps", "temperature", "top_p", "top_k")
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        return {**{name: getattr(self, name) for name in names}, "generator": generator}


@dataclass
class PromptArguments:
    """What to start from."""

    _argument_group_name = "prompt"

    prompt: str | None = field(default=None, metadata={"help": "Text that every sample begins with."})


def sample(argv: list[str] | None = None):
    """`md4 sample`: text from nothing, or the continuation of a prompt."""
    options, prompt, rest = parse_arguments(
        (SampleArguments, PromptArguments),
        argv,
        prog="md4 sample",
        description="Sample text, from nothing or from a prompt.",
        positional={"model": "Folder or Hub id."},
    )
    pipeline = load_pipeline(rest.model, options.device)
    output = pipeline(prompt=prompt.prompt, length=options.length, **options.pipeline_arguments())
    print_texts(output.texts)


def infill(argv: list[str] | None = None):
    """`md4 infill`: fill the gaps of a text, and keep the rest to the letter."""
    options, rest = parse_arguments(
        (SampleArguments,),
        argv,
        prog="md4 infill",
        description="Fill the gaps of a text and keep the rest of it. A gap of n tokens is written <mask:n>.",
        positional={"model": "Folder or Hub id.", "text": 'Text with gaps, e.g. "the <mask:12> statement".'},
    )
    if not GAP.search(rest.text):
        raise ValueError(f'`text` must have a gap such as <mask:12>, got "{rest.text}".')
    pipeline = load_pipeline(rest.model, options.device)
    prompt = expand_gaps(rest.text, pipeline.tokenizer.mask_token)
    print_texts(pipeline(prompt=prompt, length=options.length, **options.pipeline_arguments()).texts)


def expand_gaps(text: str, mask_token: str) -> str:
    """ "<mask:3>" -> three mask tokens."""
    return GAP.sub(lambda gap: mask_token * int(gap.group(1)), text)


def print_texts(texts: list[str]):
    """Each text between rules."""
    for number, text in enumerate(texts, start=1):
        print(f"--- {number} " + "-" * 60)
        print(text)


# ----------------------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------------------


def load_model(name_or_path: str) -> MD4ForMaskedDiffusion:
    """The model of a folder or Hub id, which has to be an MD4 model."""
    folder = Path(name_or_path)
    looks_like_path = folder.is_absolute() or name_or_path.startswith((".", "~")) or folder.exists()
    if looks_like_path and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"`model` must be a model's folder or a Hub id, got {name_or_path}: no config.json there."
        )
    model = AutoModel.from_pretrained(name_or_path)
    if not isinstance(model, MD4ForMaskedDiffusion):
        raise ValueError(f"`model` must be an MD4ForMaskedDiffusion, got {type(model).__name__} in {name_or_path}.")
    return model


def make_pipeline(
    model: MD4ForMaskedDiffusion, tokenizer, scheduler: MaskedDiffusionScheduler | None = None
) -> MaskedDiffusionPipeline:
    """A pipeline; the default scheduler has the model's masking schedule and the paper's choice of grid for it."""
    config = model.config
    scheduler = scheduler or MaskedDiffusionScheduler(
        mask_token_id=config.mask_token_id,
        masking_schedule=config.masking_schedule,
        schedule_power=config.schedule_power,
        schedule_eps=config.schedule_eps,
        timestep_grid="cosine" if config.masking_schedule == "linear" else "uniform",
    )
    return MaskedDiffusionPipeline(model, scheduler, tokenizer)


def load_pipeline(name_or_path: str, device: str | None) -> MaskedDiffusionPipeline:
    """The pipeline of a folder or Hub id."""
    model, tokenizer, scheduler = load_model(name_or_path), load_tokenizer(name_or_path), None
    if (Path(name_or_path) / "scheduler_config.json").is_file() or not Path(name_or_path).is_dir():
        scheduler = MaskedDiffusionScheduler.from_pretrained(name_or_path)
    pipeline = make_pipeline(model, tokenizer, scheduler)
    return pipeline.to(device or torch.accelerator.current_accelerator() or "cpu")


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (train, "train a masked diffusion model on text"),
    "evaluate": (evaluate, "bound the likelihood of held-out text"),
    "sample": (sample, "sample text, from nothing or from a prompt"),
    "infill": (infill, "fill the gaps of a text and keep the rest of it"),
}


def usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: md4 COMMAND [OPTIONS]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\nmd4 COMMAND --help tells a command's options."
    )


def main(argv: list[str] | None = None):
    """Entry point of `md4`: errors of input are one line; with the variable MD4_TRACEBACK set, a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if argv[0] not in COMMANDS:
        print(f"md4: unknown command {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    command, _ = COMMANDS[argv[0]]
    try:
        command(argv[1:])
    except (ValueError, OSError) as error:
        if os.environ.get("MD4_TRACEBACK"):
            raise
        print(f"md4 {argv[0]}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
