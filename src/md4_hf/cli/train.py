# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 train` and `md4 finetune`."""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import HTTPError
from transformers import set_seed

from ..core.configuration_md4 import MD4Config
from ..core.image_processing_md4 import MD4ImageProcessor
from ..core.masked_diffusion import IGNORE_INDEX
from ..core.modeling_md4 import MD4ForMaskedDiffusion
from ..core.modeling_md4_causal import MD4ForCausalLM
from ..data.documents import DataArguments, load_train_validation
from ..data.images import ImageDataArguments
from ..data.packing import pack
from ..data.pairs import PairArguments, encode_pairs, load_pairs
from ..data.tokenizers import check_tokenizer_matches, load_tokenizer
from ..evaluation.baselines import ngram_bits_per_character
from ..hub.adapters import LoraArguments, add_adapter
from ..hub.loading import adapter_base, load_model
from ..objective.figures import Figure, figures_of
from ..objective.modality import IMAGES, modality_of, modality_of_metrics
from ..training.arguments import MD4TrainingArguments
from ..training.checkpoints import checkpoint_to_resume
from ..training.trainer import MD4Trainer
from ..utils.errors import file_errors_as_value_errors
from ..utils.files import check_can_be_written, whole_folder
from ..utils.options import check_left_out
from ..utils.processes import entered_by_first_process, on_first_process
from ..utils.sharding import count_parameters
from .arguments import ModelArguments, RunArguments, StartArguments, parse_arguments
from .images import (
    check_no_images,
    check_no_text,
    make_image_model,
    measure_image_baselines,
    prepare_images,
    trains_images,
)


MAX_SYMBOLS_FOR_BASELINES = 1000
MAX_TOKENS_FOR_BASELINES = 10_000_000
OPTIONS_OF_IMAGES = ("image_samples", "image_sample_steps")
STAGING_FOLDER = ".model-in-progress"
# Defaults of `md4 finetune` that differ from those of training from nothing.
FINETUNE_DEFAULTS = {
    "learning_rate": 2e-4,
    "weight_decay": 0.0,
    "warmup_steps": 20,
    "lr_scheduler_type": "cosine",
    "ema_decay": 0.0,
    "eval_strategy": "epoch",
    "logging_steps": 10,
    "block_size": None,
}


def train(argv: list[str] | None = None):
    """`md4 train`: train on text or images and leave a folder that `from_pretrained` and the other commands open."""
    types = (StartArguments, RunArguments, ModelArguments, DataArguments, ImageDataArguments, MD4TrainingArguments)
    start, run, model_args, data_args, image_args, args, _ = parse_arguments(
        types,
        argv,
        prog="md4 train",
        description="Train a masked diffusion model on text or images.",
        with_presets=True,
    )
    prepare_run(run, args)
    choose_objective(start.objective, model_args)
    if model_args.is_causal and data_args.document_mask:
        raise ValueError("`document_mask` must be False for an autoregressive model, got True.")
    if trains_images(start.model_name_or_path, model_args):
        train_on_images(start, run, model_args, data_args, image_args, args)
    else:
        check_no_images(image_args)
        check_left_out(args, OPTIONS_OF_IMAGES, "for a model of text")
        train_on_text(start, run, model_args, data_args, args)


def train_on_text(
    start: StartArguments,
    run: RunArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: MD4TrainingArguments,
):
    """Train on blocks of text."""
    named = "tokenizer" if start.tokenizer else "model_name_or_path"
    tokenizer = load_tokenizer(getattr(start, named) or "text8", argument=named)
    model = make_model(start.model_name_or_path, model_args, tokenizer, data_args.block_size)
    with args.main_process_first(desc="preparing the data"):
        blocks = prepare_blocks(data_args, tokenizer, verbose=args.process_index == 0)
    train_blocks, heldout_blocks = blocks
    if run.prepare_only:
        return
    baselines = measure_baselines(train_blocks, heldout_blocks, tokenizer) if args.should_save else {}
    facts = {**describe_text(data_args, tokenizer), "baselines": baselines, "base_model": start.model_name_or_path}
    run_training(model, args, run, data_args, tokenizer, blocks, facts)


def train_on_images(
    start: StartArguments,
    run: RunArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    image_args: ImageDataArguments,
    args: MD4TrainingArguments,
):
    """Train on images."""
    check_left_out(start, ["tokenizer"], "for a model of images")
    check_no_text(data_args)
    model = make_image_model(start.model_name_or_path, model_args, image_args)
    config = model.config
    with args.main_process_first(desc="preparing the data"):
        images = prepare_images(data_args, image_args, config, verbose=args.process_index == 0)
    train_images, heldout_images = images
    if run.prepare_only:
        return
    baselines = measure_image_baselines(train_images, heldout_images, config) if args.should_save else {}
    facts = {
        **describe_data(data_args, IMAGES.describe_examples(config, None)),
        "baselines": baselines,
        "base_model": start.model_name_or_path,
    }
    run_training(model, args, run, data_args, MD4ImageProcessor.for_config(config), images, facts)


def finetune(argv: list[str] | None = None):
    """`md4 finetune`: train a LoRA adapter for a model on text or on prompts and responses."""
    types = (RunArguments, LoraArguments, PairArguments, DataArguments, MD4TrainingArguments)
    run, lora, pair_args, data_args, args, rest = parse_arguments(
        types,
        argv,
        prog="md4 finetune",
        description="Train a LoRA adapter for a masked diffusion model, on text or on prompts and responses.",
        positional={"model": "Folder or Hub id of the base model."},
        defaults=FINETUNE_DEFAULTS,
    )
    check_no_adapter(rest.model)
    check_left_out(args, OPTIONS_OF_IMAGES, "for a model of text")
    prepare_run(run, args)
    model = load_model(rest.model, dtype=None if lora.quantization else torch.float32, **lora.loading_arguments())
    if model.config.is_image:
        raise ValueError(f"`model` must be a model of text, got the model of images {rest.model}.")
    tokenizer = load_tokenizer(rest.model)
    check_tokenizer_matches(tokenizer, model.config.vocab_size, model.config.mask_token_id)
    data_args.block_size = data_args.block_size or model.config.max_position_embeddings
    check_block_size(data_args.block_size, model.config)
    model = add_adapter(model, lora)
    with args.main_process_first(desc="preparing the data"):
        examples = prepare_examples(data_args, pair_args, tokenizer, verbose=args.process_index == 0)
    if run.prepare_only:
        return
    prompt = first_prompt(examples[1][0], tokenizer) if pair_args.given else None
    facts = {**describe_text(data_args, tokenizer, prompt), "base_model": rest.model}
    run_training(model, args, run, data_args, tokenizer, examples, facts)


def choose_objective(objective: str, model_args: ModelArguments):
    """Make a new model GenMD4's or autoregressive if that is the objective."""
    if objective == "ar":
        model_args.is_causal, model_args.learn_masking_schedule = True, False
        if model_args.backbone not in (None, "transformer"):
            raise ValueError(f'`objective` must be "md4" or "genmd4" for images, got "{objective}".')
    if objective != "genmd4":
        return
    if model_args.masking_schedule not in (None, "linear", "poly"):
        raise ValueError(
            '`masking_schedule` must be left out, "poly" or "linear" (where it begins) with GenMD4, '
            f"got {model_args.masking_schedule!r}."
        )
    model_args.learn_masking_schedule, model_args.masking_schedule = True, "poly"


def prepare_run(run: RunArguments, args: MD4TrainingArguments):
    """Check and set up what comes before data and model."""
    check_output_dir(args)
    set_batch_size(run, args)
    set_seed(args.seed)


def run_training(
    model,
    args: MD4TrainingArguments,
    run: RunArguments,
    data_args: DataArguments,
    processor,
    examples: list,
    facts: dict,
):
    """Train, or go on training, and leave the finished model; an interruption ends the process.

    `processor` is the tokenizer or the image processor, `facts` are fields of `CardFacts`.
    """
    train_examples, heldout_examples = examples
    trainer = MD4Trainer(
        model=model,
        args=args,
        train_dataset=train_examples,
        eval_dataset=heldout_examples,
        processing_class=processor,
    )
    trainer.card_facts = replace(trainer.card_facts, **facts)
    parameters, trained = count_parameters(model), count_parameters(model, trained_only=True)
    size = f"{parameters:,} parameters" if trained == parameters else f"{trained:,} of {parameters:,} parameters train"
    modality = modality_of(model.config)
    kind = modality.describe_examples(model.config, data_args.block_size)
    say(trainer, f"{size} on {args.device}; {describe_batch(args, kind)}")
    for name, bits in facts.get("baselines", {}).items():
        say(trainer, f"held-out {modality.bits} of the {name} model: {Figure(name, bits):.3f}")
    with trainer.run_lock:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        if trainer.interrupted:
            say(
                trainer, f"Stopped at step {trainer.state.global_step}. To go on, add: --resume_from_checkpoint latest"
            )
            sys.exit(128 + signal.SIGINT)
        finish(trainer, run, data_args)


def describe_text(data_args: DataArguments, tokenizer, prompt: str | None = None) -> dict:
    """What the model card says of text."""
    facts = describe_data(data_args, f"blocks of {data_args.block_size} tokens")
    return {**facts, "sample_prompt": prompt, "widget": [f"{prompt or 'the '}{tokenizer.mask_token * 4}"]}


def describe_data(data_args: DataArguments, kind: str) -> dict:
    """What the model card says of the data, whose examples are of this kind."""
    is_local = data_args.data in ("pydoc", "digits") or Path(data_args.data).expanduser().exists()
    name = Path(data_args.data).name if is_local else data_args.data  # not the path on this machine
    return {
        "data": f"{name}, {kind}",
        "datasets": [] if is_local else [data_args.data],
    }


def first_prompt(example: dict, tokenizer) -> str:
    """The prompt of an example: what is not scored at its beginning."""
    length = next(position for position, label in enumerate(example["labels"]) if label != IGNORE_INDEX)
    return tokenizer.decode(example["input_ids"][:length])


def check_no_adapter(model: str):
    """Refuse an adapter where a base model is needed."""
    if adapter_base(model) is not None:
        raise ValueError(
            f"`model` must be a base model, got the adapter {model}: merge it first with `md4 export {model} FOLDER`."
        )


def check_output_dir(args: MD4TrainingArguments):
    """Refuse a folder that holds something else or cannot be written, and a resumption from nothing."""
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output_dir` must be a folder, got the file {folder}.")
    # Before hours of preparing data: what is there, and of the right size. The training reads the checksums too.
    found = on_first_process(args, lambda: checkpoint_to_resume(args.resume_from_checkpoint, folder, digests=False))
    if found is None and folder.is_dir() and any(folder.glob("[!.]*")):
        raise ValueError(
            f"`output_dir` must be empty or absent, got {folder}, which holds other files. To go on with the run in "
            "it, add `--resume_from_checkpoint latest`."
        )
    check_can_be_written("output_dir", folder, is_folder=True)


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


def prepare_examples(data_args: DataArguments, pair_args: PairArguments, tokenizer, verbose: bool) -> list:
    """Training and held-out examples: of prompts and responses if their columns are named, else blocks of text."""
    if not pair_args.given:
        return prepare_blocks(data_args, tokenizer, verbose)
    check_no_document_mask(data_args)
    examples = []
    for name, pairs in zip(("training", "held-out"), load_pairs(data_args), strict=True):
        encoded, report = encode_pairs(pairs, tokenizer, data_args.block_size, pair_args, data_args.num_proc)
        examples.append(encoded)
        if verbose:
            left_out = f"{report.num_too_long} too long, {report.num_empty} with an empty response left out"
            print(
                f"{name} data: {report.num_kept:,} of {report.num_pairs:,} pairs ({left_out}), "
                f"{report.num_scored_tokens:,} scored tokens"
            )
    return examples


def check_no_document_mask(data_args: DataArguments):
    """Refuse an option that pairs have no use for."""
    if data_args.document_mask:
        raise ValueError("`document_mask` must be False with prompts and responses: each pair is a row of its own.")


def pack_as_asked(documents, tokenizer, data_args: DataArguments):
    """`pack` with the options of the command."""
    return pack(
        documents,
        tokenizer,
        data_args.block_size,
        num_proc=data_args.num_proc,
        document_ids=data_args.document_mask,
    )


def prepare_blocks(data_args: DataArguments, tokenizer, verbose: bool):
    """Training and held-out text as blocks of ids; `verbose` prints what they are."""
    blocks = []
    for name, documents in zip(("training", "held-out"), load_train_validation(data_args), strict=True):
        packed, report = pack_as_asked(documents, tokenizer, data_args)
        blocks.append(packed)
        if report is not None and verbose:
            print(
                f"{name} data: {report.num_documents:,} documents, {report.num_tokens:,} tokens in "
                f"{report.num_blocks:,} blocks of {data_args.block_size} ({report.num_dropped_tokens} tokens left over)"
            )
    return blocks


def make_model(name_or_path: str | None, model_args: ModelArguments, tokenizer, length: int):
    """A new model for the tokenizer, or the one to go on with."""
    if name_or_path is None:
        config = model_args.config(len(tokenizer), tokenizer.mask_token_id, length)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        return (MD4ForCausalLM if config.is_causal else MD4ForMaskedDiffusion)(config)
    with file_errors_as_value_errors("model_name_or_path", name_or_path):
        config = MD4Config.from_pretrained(name_or_path)
    check_tokenizer_matches(tokenizer, config.vocab_size, config.mask_token_id)
    model_args.change(config)  # before the layers are built, which take their dropout from it
    check_block_size(length, config)
    return load_model(
        name_or_path, config=config, dtype=torch.float32, attn_implementation=model_args.attn_implementation
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


def describe_batch(args: MD4TrainingArguments, kind: str) -> str:
    """How many examples of this kind a step has, over all devices."""
    examples = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_devices(args)
    return f"{examples} {kind} a step"


def finish(trainer: MD4Trainer, run: RunArguments, data_args: DataArguments):
    """Evaluate with more draws, write the model with all that belongs to it, and share it if that is asked for."""
    trainer.args.eval_draws = run.final_eval_draws
    metrics = trainer.evaluate()
    trainer.card_facts.metrics = metrics
    folder = Path(trainer.args.output_dir)
    staged = whole_folder(folder, folder / STAGING_FOLDER, move_files)
    with entered_by_first_process(trainer.args, staged) as staging:
        trainer.save_repository(staging, location=trainer.hub_model_id or str(folder))
    if trainer.is_world_process_zero():
        trainer.save_metrics("eval", metrics, combined=False)
        print_metrics(metrics, data_args)
        print(f"Model, {modality_of(trainer.model.config).files}, loss.png and model card are in {folder}")
    if trainer.args.push_to_hub:
        share(trainer, folder)


def move_files(source: Path, target: Path):
    """Move the files of a folder into another, the weights last: where they are, all is."""
    for path in sorted(source.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(path, target / path.name)


def share(trainer: MD4Trainer, folder: Path):
    """Upload the finished model; if that fails, say that it is not lost."""
    try:
        trainer.push_to_hub()
    except (OSError, RuntimeError, HTTPError) as error:
        raise OSError(
            f"the model is in {folder}, but could not be uploaded to {trainer.hub_model_id}. To try again: "
            f'hf upload {trainer.hub_model_id} {folder} . --exclude "checkpoint-*/*"'
        ) from error
    say(trainer, f"Uploaded to {trainer.hub_model_id}")


def say(trainer: MD4Trainer, text: str):
    """Print on the first process, at once."""
    if trainer.is_world_process_zero():
        print(text, flush=True)


def print_metrics(metrics: dict[str, float], data_args: DataArguments):
    """The figures of an evaluation as a small table."""
    source = data_args.validation_data or f"held-out part of {data_args.data}"
    num_draws = metrics["eval_num_draws"]
    figures = figures_of(metrics, "eval_", is_bound=num_draws > 0)
    modality = modality_of_metrics(figures)
    tokens = f"{metrics['eval_num_tokens']:,} tokens {modality.tokens.format(length=data_args.block_size)}"
    draws = f", {num_draws} draw{'s' if num_draws > 1 else ''} per {modality.example}" if num_draws else ""
    rounds = f", {metrics['eval_num_rounds']} rounds" if metrics.get("eval_num_rounds", 1) > 1 else ""
    print(f"{source}: {tokens}{draws}{rounds}")
    for figure in figures.values():
        print(f"  {figure.name:<25} {figure}")
    if "eval_monte_carlo_stderr" in metrics:
        print(f"of the error of the NELBO {metrics['eval_monte_carlo_stderr']:.4f} are due to the draws")
