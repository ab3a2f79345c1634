# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 finetune`."""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch

from ..core.configuration_md4 import MD4Config
from ..core.masked_diffusion import IGNORE_INDEX
from ..data.arguments import DataArguments, PairArguments
from ..data.fidelity import check_text_is_kept
from ..data.mixture import prepare_sources
from ..data.pairs import PairReport, find_pair_columns, load_pair_sources
from ..data.row_packing import pack_rows
from ..hub.adapters import add_adapter, is_adapted
from ..hub.loading import adapter_base, load_model
from ..hub.lora_arguments import OPTIONS_OF_NEW_ADAPTERS, LoraArguments
from ..hub.untrained_tokens import train_head_too, untrained_ids
from ..objective.figures import counted
from ..training.arguments import MD4TrainingArguments
from ..utils.options import check_left_out
from ..utils.processes import print_on_first
from . import texts
from .material import Material
from .train import prepare_run, run_training
from .train_options import RunArguments


MAX_TOKENS_SHOWN = 5


def finetune(
    run: RunArguments,
    lora: LoraArguments,
    pair_args: PairArguments,
    data_args: DataArguments,
    args: MD4TrainingArguments,
    rest: argparse.Namespace,
):
    """Train a LoRA adapter, a new one or further, or all weights, on text, prompts and responses or conversations."""
    check_left_out(args, texts.OPTIONS_OF_IMAGES, "for a model of text")
    prepare_run(run, args)
    model = open_to_adapt(rest.model, lora)
    if model.config.is_image:
        raise ValueError(f"`model` must be a model of text, got the model of images {rest.model}.")
    tokenizer = texts.open_tokenizer(rest.model, model.config)
    data_args.block_size = data_args.block_size or model.config.max_position_embeddings
    texts.check_block_size(data_args.block_size, model.config)
    pair_args = find_pair_columns(data_args, pair_args)
    texts.check_pairs(data_args, pair_args, model.config)
    texts.set_chat_template(tokenizer, pair_args)
    with args.main_process_first(desc="preparing the data"):
        verbose = args.process_index == 0
        train_examples, heldout_examples = prepare_examples(data_args, pair_args, tokenizer, model.config, verbose)
    if run.prepare_only:
        return
    if not (lora.full or is_adapted(model)):
        model = add_adapter(model, with_untrained_tokens(model, lora, train_examples, tokenizer, args))
    prompt = first_prompt(heldout_examples[0], tokenizer) if pair_args.given else None
    facts = {
        **texts.describe_text(data_args, tokenizer, prompt),
        "base_model": rest.model if lora.full else model.active_peft_config.base_model_name_or_path,
    }
    run_training(Material(model, tokenizer, train_examples, heldout_examples, facts), args, run, data_args, rest)


def open_to_adapt(name_or_path: str, lora: LoraArguments):
    """The model of a folder or Hub id, to put an adapter on; or, if that is an adapter, it to train further.

    With `full`, the model itself, with the adapter merged if it is one.
    """
    options = {"dtype": None if lora.quantization else torch.float32, **lora.loading_arguments()}
    if lora.full or adapter_base(name_or_path) is None:
        return load_model(name_or_path, base=lora.base, **options)
    check_left_out(lora, OPTIONS_OF_NEW_ADAPTERS, "where an adapter trains further")
    return load_model(name_or_path, base=lora.base, merge_adapter=False, is_trainable=True, **options)


def with_untrained_tokens(
    model, lora: LoraArguments, examples, tokenizer, args: MD4TrainingArguments
) -> LoraArguments:
    """Options of an adapter that trains the head too where the data have tokens that the base was never trained on."""
    untrained = untrained_ids(model, range(model.config.vocab_size))
    if untrained:  # else the data need not be read
        untrained = sorted({*untrained} & scored_ids(examples, tokenizer))
    if not untrained:
        return lora
    lora = train_head_too(model, lora)
    names = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in untrained[:MAX_TOKENS_SHOWN])
    names += ", ..." if len(untrained) > MAX_TOKENS_SHOWN else ""
    print_on_first(
        args,
        f"the base was never trained on {names}, which the data have: "
        f"{' and '.join(lora.layers('modules_to_save'))} train in full and are saved with the adapter",
    )
    return lora


def scored_ids(examples, tokenizer) -> set[int]:
    """Ids that occur as targets; of a stream, which is not read before the training, the EOS token."""
    if not hasattr(examples, "__len__"):
        return {tokenizer.eos_token_id} - {None}
    column = "labels" if "labels" in examples.column_names else "input_ids"
    found: set[int] = set()
    for batch in examples.with_format("numpy").iter(1000):
        found.update(np.unique(np.concatenate([np.asarray(row) for row in batch[column]])).tolist())
    return found - {IGNORE_INDEX}


def prepare_examples(
    data_args: DataArguments, pair_args: PairArguments, tokenizer, config: MD4Config, verbose: bool
) -> tuple:
    """Training and held-out examples: of prompts and responses if their columns are named, else blocks of text."""
    if not pair_args.given:
        return texts.prepare_blocks(data_args, tokenizer, verbose)
    if verbose:
        print(describe_columns(pair_args))

    def encode(name: str, pairs):
        share = check_text_is_kept(pairs, tokenizer, name, tuple(pair_args.columns.values()))
        encoded, report = texts.encode_as_asked(pairs, tokenizer, data_args, pair_args, config)
        if verbose:
            print(f"{name}: {describe_pairs(report, pair_args)}; {texts.describe_share(share)}")
        return encoded

    train, heldout = prepare_sources(data_args, partial(load_pair_sources, arguments=pair_args), encode)
    if pair_args.packing:
        count, train = len(train), pack_rows(train, data_args.block_size)
        if verbose:
            print(f"training data: {counted(count, 'example')} in {counted(len(train), 'row')}")
    return train, heldout


def describe_columns(pair_args: PairArguments) -> str:
    """Columns and ends of prompts and responses, or of conversations, in words."""
    kind = "prompts and responses" if pair_args.messages_column is None else "conversations"
    names = " and ".join(repr(column) for column in pair_args.columns.values())
    return f"{kind} of the column{'s' if len(pair_args.columns) > 1 else ''} {names}; EOS: {pair_args.eos_policy}"


def describe_pairs(report: PairReport, pair_args: PairArguments) -> str:
    """Numbers of responses in words."""
    kind, rows = "pair", ""
    if pair_args.messages_column is not None:
        kind = "answer" if pair_args.turns == "each" else "conversation"
        rows = f" in {counted(report.num_rows, 'conversation')}" if kind == "answer" else ""
    longest = f", the longest has {report.max_tokens:,} tokens" if report.num_too_long else ""
    left_out = f"{report.num_too_long} too long{longest}, {report.num_empty} with an empty response left out"
    return (
        f"{report.num_kept:,} of {counted(report.num_pairs, kind)}{rows} ({left_out}), "
        f"{counted(report.num_scored_tokens, 'scored token')}"
    )


def first_prompt(example: dict, tokenizer) -> str:
    """The prompt of an example: the tokens at its beginning that are not scored."""
    length = next(position for position, label in enumerate(example["labels"]) if label != IGNORE_INDEX)
    return tokenizer.decode(example["input_ids"][:length])
