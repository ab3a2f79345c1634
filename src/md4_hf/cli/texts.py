# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text of the commands: tokenizer, model and blocks of a training, documents or pairs of an evaluation."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..core.configuration_md4 import MD4Config
from ..core.input_checks import match_tokenizer
from ..core.modeling_md4 import MD4ForMaskedDiffusion
from ..data.arguments import DataArguments, ImageDataArguments, PairArguments
from ..data.conversations import read_chat_template
from ..data.documents import load_sources, load_train_validation, load_validation
from ..data.fidelity import check_text_is_kept
from ..data.mixture import prepare_sources
from ..data.packing import DOCUMENTS_PER_BATCH, PackingReport, pack
from ..data.pairs import encode_pairs, find_pair_columns, load_pair_table, load_pairs
from ..data.pieces import split_long_text
from ..data.tokenizers import bpe_size, build_byte_tokenizer, load_tokenizer, num_rows, train_bpe_tokenizer
from ..evaluation.baselines import ngram_bits_per_character
from ..hub.loading import load_config, load_model
from ..hub.model_classes import model_class_of
from ..objective.figures import counted
from ..training.arguments import MD4TrainingArguments
from ..training.checkpoints import checkpoint_to_resume
from ..utils.errors import file_errors_as_value_errors
from ..utils.hub_access import check_model_name, from_hub
from ..utils.options import check_left_out
from ..utils.processes import on_first_process, print_on_first
from .images import check_no_images
from .material import Material, describe_data
from .train_options import ModelArguments, StartArguments, errors_in_names_of_options


logger = logging.getLogger(__name__)

MAX_SYMBOLS_FOR_BASELINES = 1000
MAX_TOKENS_FOR_BASELINES = 10_000_000
OPTIONS_OF_IMAGES = ("image_samples", "image_sample_steps")


def open_tokenizer(name: str, config: MD4Config, revision: str | None = None):
    """The tokenizer of a model of text, with no more tokens than the model has rows, and its mask."""
    tokenizer = load_tokenizer(name, revision=revision, argument="model")
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
    if data_args.document_mask:
        check_left_out(args, ["attention_annealing_steps"], "with `document_mask`")
    tokenizer = training_tokenizer(start, data_args, args)
    model = make_model(start, model_args, tokenizer, data_args.block_size)
    data_args.block_size = data_args.block_size or model.config.max_position_embeddings
    with args.main_process_first(desc="preparing the data"):
        train_blocks, heldout_blocks = prepare_blocks(data_args, tokenizer, verbose=args.process_index == 0)
    facts = {**describe_text(data_args, tokenizer), "base_model": start.base_model}
    measure = partial(measure_baselines, train_blocks, heldout_blocks, tokenizer)
    return Material(model, tokenizer, train_blocks, heldout_blocks, facts, measure)


def training_tokenizer(start: StartArguments, data_args: DataArguments, args: MD4TrainingArguments):
    """The tokenizer that is named or trained, or else that of the model to continue with; by default bytes.

    A resumed run has the one of its checkpoint, unless another is named.
    """
    if start.tokenizer is None and start.base_model is not None:
        argument = "model_name_or_path" if start.model_name_or_path is not None else "backbone_name_or_path"
        return load_tokenizer(start.base_model, argument=argument)
    size = None if start.tokenizer is None else bpe_size(start.tokenizer)
    if start.tokenizer is not None and size is None:
        return load_tokenizer(start.tokenizer, argument="tokenizer")
    resume = partial(checkpoint_to_resume, args.resume_from_checkpoint, args.output_dir, digests=False)
    if (checkpoint := on_first_process(args, resume)) is not None:
        return load_tokenizer(checkpoint, argument="resume_from_checkpoint")
    if size is None:
        return build_byte_tokenizer()
    tokenizer = on_first_process(args, partial(train_bpe, size, data_args))
    tokens = f"{num_rows(tokenizer):,} tokens, of EOS and the mask one each"
    print_on_first(args, f"tokenizer: a byte-level BPE of {tokens}, trained on the training data")
    return tokenizer


def train_bpe(size: int, data_args: DataArguments):
    """A BPE of the training part of all sources."""
    documents, _ = load_train_validation(replace(data_args, data_weights=None))
    texts = (text or "" for batch in documents.iter(DOCUMENTS_PER_BATCH) for text in batch["text"])
    return train_bpe_tokenizer((piece for text in texts for piece in split_long_text(text)), size)


def make_model(start: StartArguments, model_args: ModelArguments, tokenizer, length: int | None):
    """A new model for the tokenizer and blocks of this length, or the trained one to continue, which has its own."""
    name_or_path, multiple = start.model_name_or_path, start.pad_vocab_to_multiple_of
    if start.backbone_name_or_path is not None:
        return model_of_backbone(start.backbone_name_or_path, start.keep_causal, model_args, tokenizer, length)
    if name_or_path is None:
        rows = math.ceil(num_rows(tokenizer) / multiple) * multiple
        sizes = {"vocab_size": rows, "max_position_embeddings": length or DataArguments.block_size}
        config = model_args.new_config(**sizes, mask_token_id=tokenizer.mask_token_id)
        match_tokenizer(tokenizer, config)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        return model_class_of(config)(config)
    check_left_out(start, ["pad_vocab_to_multiple_of"], "with `model_name_or_path`")
    config = load_config(name_or_path, argument="model_name_or_path")
    match_tokenizer(tokenizer, config)
    model_args.change(config)  # before the layers are built, which take their dropout from it
    check_block_size(length or config.max_position_embeddings, config)
    return load_model(
        name_or_path, config=config, dtype=torch.float32, attn_implementation=model_args.attn_implementation
    )


def model_of_backbone(
    name_or_path: str, is_causal: bool, model_args: ModelArguments, tokenizer, length: int | None
) -> MD4ForMaskedDiffusion:
    """A new model for blocks of this length, with the network and weights of a language model of transformers."""
    argument = "backbone_name_or_path"
    fields = {"max_position_embeddings": length or DataArguments.block_size, **model_args.fields_with_backbone()}
    if Path(name_or_path).exists():  # "gpt2" is the id of a repository
        check_model_name(name_or_path, argument)
    in_words = errors_in_names_of_options()
    with in_words, from_hub(name_or_path), file_errors_as_value_errors(argument, name_or_path):
        model = MD4ForMaskedDiffusion.from_backbone(
            name_or_path, tokenizer, is_causal=is_causal, dtype=torch.float32, **fields
        )
    check_block_size(length or model.config.max_position_embeddings, model.config)
    return model


def check_block_size(block_size: int, config: MD4Config):
    """Refuse blocks that are longer than the model can read."""
    if block_size > config.max_position_embeddings:
        raise ValueError(
            f"`block_size` must be at most the model's {config.max_position_embeddings} tokens, got {block_size}."
        )


def prepare_blocks(data_args: DataArguments, tokenizer, verbose: bool):
    """Training and held-out text as blocks of ids; `verbose` prints their numbers."""

    def pack_part(name: str, documents):
        share = check_text_is_kept(documents, tokenizer, name)
        packed, report = pack_documents(documents, tokenizer, data_args)
        if verbose:
            print(f"{name}: {describe_report(report, data_args.block_size)}; {describe_share(share)}")
        return packed

    return prepare_sources(data_args, load_sources, pack_part)


def describe_report(report: PackingReport | None, block_size: int) -> str:
    """Numbers of documents, tokens and blocks in words."""
    if report is None:
        return "a stream"
    documents, tokens = counted(report.num_documents, "document"), counted(report.num_tokens, "token")
    left_over = counted(report.num_dropped_tokens, "token")
    return f"{documents}, {tokens} in {counted(report.num_blocks, 'block')} of {block_size} ({left_over} left over)"


def describe_share(share: float) -> str:
    """Share of the characters that the tokenizer keeps, in words."""
    if share == 1:
        return "the tokenizer keeps all characters"
    return f"the tokenizer keeps {share:.1%} of the characters (in a sample), and rewrites the others"


def pack_documents(documents, tokenizer, data_args: DataArguments):
    """Pack documents into blocks with the options of the command."""
    return pack(
        documents, tokenizer, data_args.block_size, num_proc=data_args.num_proc, document_ids=data_args.document_mask
    )


def check_pairs(data_args: DataArguments, pair_args: PairArguments, config: MD4Config):
    """Refuse options of documents for prompts and responses, and theirs for documents."""
    if not pair_args.given:
        options = ["eos", "turns", "packing", "chat_template"]
        return check_left_out(pair_args, options, "for text, which has no responses")
    check_left_out(data_args, ["text_column", "validation_text_column"], "with prompts and responses")
    if data_args.document_mask:
        raise ValueError("`document_mask` must be False with prompts and responses: `packing` keeps them apart.")
    if pair_args.packing and pair_args.eos_policy == "padded" and config.block_size is None:
        rule = 'must be False with `eos` "padded", where each example fills a row; choose "scored" or "none"'
        raise ValueError(f"`packing` {rule}, got True.")


def set_chat_template(tokenizer, pair_args: PairArguments):
    """Give the tokenizer the chat template that is named, if one is."""
    if pair_args.chat_template is not None:
        tokenizer.chat_template = read_chat_template(pair_args.chat_template)


def encode_as_asked(pairs, tokenizer, data_args: DataArguments, pair_args: PairArguments, config: MD4Config):
    """`encode_pairs` with the options of the command, for a model of this configuration."""
    return encode_pairs(
        pairs, tokenizer, data_args.block_size, pair_args, data_args.num_proc, diffusion_block_size=config.block_size
    )


def describe_text(data_args: DataArguments, tokenizer, prompt: str | None = None) -> dict:
    """Facts of the model card about text; of prompts and responses if there is a prompt for samples."""
    kind = "blocks of" if prompt is None else "prompts and responses of at most"
    facts = describe_data(data_args, f"{kind} {data_args.block_size} tokens")
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
        pair_args = find_pair_columns(data_args, pair_args, of_validation=True)
        check_pairs(data_args, pair_args, self.config)
        if pair_args.given:
            set_chat_template(self.processor, pair_args)
            pairs = load_validation(data_args, partial(load_pairs, arguments=pair_args), load_pair_table(pair_args))
            return encode_as_asked(pairs, self.processor, data_args, pair_args, self.config)[0]
        documents = load_validation(data_args)
        if (share := check_text_is_kept(documents, self.processor, "validation data")) < 1:
            logger.warning("In the validation data, %s.", describe_share(share))
        return pack_documents(documents, self.processor, data_args)[0]
