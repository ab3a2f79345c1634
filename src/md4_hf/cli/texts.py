# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text of the commands: tokenizer, model and blocks of a training, documents or pairs of an evaluation."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch

from ..core.configuration_md4 import MD4Config
from ..core.input_checks import match_tokenizer
from ..core.modeling_md4 import MD4ForMaskedDiffusion
from ..core.modeling_md4_causal import MD4ForCausalLM
from ..data.arguments import DataArguments, ImageDataArguments, PairArguments
from ..data.documents import load_train_validation, load_validation
from ..data.mixture import prepare_sources
from ..data.packing import pack
from ..data.pairs import encode_pairs, load_pair_table, load_pairs
from ..data.tokenizers import load_tokenizer, num_rows
from ..evaluation.baselines import ngram_bits_per_character
from ..hub.loading import load_config, load_model
from ..training.arguments import MD4TrainingArguments
from ..utils.options import check_left_out
from .images import check_no_images
from .material import Material, describe_data
from .train_options import ModelArguments, StartArguments


MAX_SYMBOLS_FOR_BASELINES = 1000
MAX_TOKENS_FOR_BASELINES = 10_000_000
OPTIONS_OF_IMAGES = ("image_samples", "image_sample_steps")


def open_tokenizer(name: str, config: MD4Config, revision: str | None = None):
    """The tokenizer of a model of text, with no more tokens than the model has rows, and its mask."""
    tokenizer = load_tokenizer(name, revision=revision)
    match_tokenizer(tokenizer, config)
    return tokenizer


# Training -------------------------------------------------------------------------------------------------------------


def prepare_text_training(
    start: StartArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    image_args: ImageDataArguments,
    args: MD4TrainingArguments,
) -> Material:
    """Model and blocks of a training on text."""
    check_no_images(image_args)
    check_left_out(args, OPTIONS_OF_IMAGES, "for a model of text")
    argument = "tokenizer" if start.tokenizer else "model_name_or_path"
    tokenizer = load_tokenizer(getattr(start, argument) or "text8", argument=argument)
    model = make_model(start, model_args, tokenizer, data_args.block_size)
    data_args.block_size = data_args.block_size or model.config.max_position_embeddings
    with args.main_process_first(desc="preparing the data"):
        train_blocks, heldout_blocks = prepare_blocks(data_args, tokenizer, verbose=args.process_index == 0)
    facts = {**describe_text(data_args, tokenizer), "base_model": start.model_name_or_path}
    measure = partial(measure_baselines, train_blocks, heldout_blocks, tokenizer)
    return Material(model, tokenizer, train_blocks, heldout_blocks, facts, measure)


def make_model(start: StartArguments, model_args: ModelArguments, tokenizer, length: int | None):
    """A new model for the tokenizer and blocks of this length, or the trained one to continue, which has its own."""
    name_or_path, multiple = start.model_name_or_path, start.pad_vocab_to_multiple_of
    if name_or_path is None:
        rows = math.ceil(num_rows(tokenizer) / multiple) * multiple
        sizes = {"vocab_size": rows, "max_position_embeddings": length or DataArguments.block_size}
        config = model_args.new_config(**sizes, mask_token_id=tokenizer.mask_token_id)
        match_tokenizer(tokenizer, config)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        return (MD4ForCausalLM if config.is_causal else MD4ForMaskedDiffusion)(config)
    check_left_out(start, ["pad_vocab_to_multiple_of"], "with `model_name_or_path`")
    config = load_config(name_or_path, argument="model_name_or_path")
    match_tokenizer(tokenizer, config)
    model_args.change(config)  # before the layers are built, which take their dropout from it
    check_block_size(length or config.max_position_embeddings, config)
    return load_model(
        name_or_path, config=config, dtype=torch.float32, attn_implementation=model_args.attn_implementation
    )


def check_block_size(block_size: int, config: MD4Config):
    """Refuse blocks that are longer than the model can read."""
    if block_size > config.max_position_embeddings:
        raise ValueError(
            f"`block_size` must be at most the model's {config.max_position_embeddings} tokens, got {block_size}."
        )


def prepare_blocks(data_args: DataArguments, tokenizer, verbose: bool):
    """Training and held-out text as blocks of ids; `verbose` prints their numbers."""

    def pack_part(name: str, documents):
        packed, report = pack_documents(documents, tokenizer, data_args)
        if report is not None and verbose:
            print(
                f"{name} data: {report.num_documents:,} documents, {report.num_tokens:,} tokens in "
                f"{report.num_blocks:,} blocks of {data_args.block_size} ({report.num_dropped_tokens} tokens left over)"
            )
        return packed

    return prepare_sources(data_args, load_train_validation, pack_part)


def pack_documents(documents, tokenizer, data_args: DataArguments):
    """Pack documents into blocks with the options of the command."""
    return pack(
        documents, tokenizer, data_args.block_size, num_proc=data_args.num_proc, document_ids=data_args.document_mask
    )


def check_pair_data(data_args: DataArguments):
    """Refuse options of documents for prompts and responses."""
    check_left_out(data_args, ["text_column", "validation_text_column"], "with prompts and responses")
    if data_args.document_mask:
        raise ValueError("`document_mask` must be False with prompts and responses: each pair is a row of its own.")


def describe_text(data_args: DataArguments, tokenizer, prompt: str | None = None) -> dict:
    """Facts of the model card about text."""
    facts = describe_data(data_args, f"blocks of {data_args.block_size} tokens")
    return {**facts, "sample_prompt": prompt, "widget": [f"{prompt or 'the '}{tokenizer.mask_token * 4}"]}


def measure_baselines(train_blocks, heldout_blocks, tokenizer) -> dict[str, float]:
    """Held-out bits per character of count models of the same data, for small alphabets with the mask last."""
    symbols = num_rows(tokenizer) - 1
    counted = all(hasattr(blocks, "__len__") for blocks in (train_blocks, heldout_blocks))
    if (
        not counted
        or symbols > MAX_SYMBOLS_FOR_BASELINES
        or not symbols == len(tokenizer) - 1 == tokenizer.mask_token_id
    ):
        return {}
    train_ids, heldout_ids = first_ids(train_blocks), first_ids(heldout_blocks)
    block_size = len(heldout_blocks[0]["input_ids"])
    tokens_per_character = block_size / np.mean(heldout_blocks["num_characters"][:])
    bits = [math.log2(symbols), *(ngram_bits_per_character(train_ids, heldout_ids, n, symbols) for n in (1, 2))]
    return dict(zip(("uniform", "unigram", "bigram"), (x * tokens_per_character for x in bits), strict=True))


def first_ids(blocks) -> np.ndarray:
    """The ids of a data set one after the other; of a large one, the first ten million."""
    count = min(len(blocks), MAX_TOKENS_FOR_BASELINES // len(blocks[0]["input_ids"]))
    return np.concatenate(blocks.select(range(count)).with_format("numpy")["input_ids"][:])


# Evaluation -----------------------------------------------------------------------------------------------------------


class TextEvaluation:
    """Held-out text for a model, by its folder or Hub id, and its tokenizer; `ImageEvaluation` is its sibling."""

    def __init__(self, name: str, config: MD4Config, revision: str | None):
        self.config = config
        self.processor = self.tokenizer = open_tokenizer(name, config, revision)

    def check(self, data_args: DataArguments, pair_args: PairArguments, image_args: ImageDataArguments):
        """Refuse options of images, and set the length of a block."""
        check_no_images(image_args)
        data_args.block_size = self.block_size(data_args.block_size)

    def block_size(self, block_size: int | None) -> int:
        """Tokens of a block, by default the model's length."""
        block_size = block_size or self.config.max_position_embeddings
        check_block_size(block_size, self.config)
        return block_size

    def examples(self, data_args: DataArguments, pair_args: PairArguments, image_args: ImageDataArguments):
        """The data named for validation, or the held-out part of the data, as pairs or as blocks of text."""
        if pair_args.given:
            check_pair_data(data_args)
            pairs = load_validation(data_args, partial(load_pairs, arguments=pair_args), load_pair_table(pair_args))
            return encode_pairs(pairs, self.processor, data_args.block_size, pair_args, data_args.num_proc)[0]
        return pack_documents(load_validation(data_args), self.processor, data_args)[0]
