# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Prompts and responses for fine-tuning: the prompt is given, only the response is masked and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..core.masked_diffusion import IGNORE_INDEX
from ..core.text_encoding import encode_texts
from ..utils.integers import as_integer
from .arguments import DataArguments, PairArguments
from .documents import check_text_column, join, load_sources, load_table, num_heldout
from .loading_errors import cache_errors


@dataclass(frozen=True)
class PairReport:
    """Counts of the pairs of a data set in `encode_pairs`."""

    num_pairs: int
    num_kept: int  # pairs that became examples
    num_too_long: int  # left out because they do not fit into `block_size` tokens
    num_empty: int  # left out because their response is empty
    num_scored_tokens: int  # of the examples


@cache_errors()
def encode_pairs(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    arguments: PairArguments,
    num_proc: int | None = None,
) -> tuple[Dataset, PairReport]:
    """Turns prompts and responses into examples for `MD4Trainer`.

    The ids of an example are those of the prompt, those of the response, and what `response_end` puts after it; both
    texts are taken to the letter, by the rule of `core/text_encoding.py`: a space or line break between them has to be
    in one of them, and a prompt has the ids that it has in the pipeline. `labels` are -100 on the prompt. Nothing is
    cut: a pair that does not fit is left out, and counted.

    Args:
        pairs: data set with the two columns.
        block_size: largest number of tokens of an example, and with `response_end="fill"` the number of all.
        arguments: names of the columns and `response_end`.
        num_proc: number of processes that tokenise.

    Returns:
        `(examples, report)`; the examples have `input_ids` and `labels`.

    Raises:
        ValueError: `block_size` is out of range, a column is missing or holds no strings, the tokenizer has no EOS
            token where one is needed, or no pair is left.
    """
    block_size = as_integer("block_size", block_size, 1)
    if not len(pairs):
        raise ValueError("`pairs` must hold at least one pair, got none.")
    for name in ("prompt_column", "response_column"):
        check_text_column(name, getattr(arguments, name), pairs.features)
    if arguments.response_end != "none" and tokenizer.eos_token_id is None:
        rule = '"none" for a tokenizer without an EOS token'
        raise ValueError(f"`response_end` must be {rule}, got {arguments.response_end!r}.")
    ids = List(Value("int32"))
    encoded = pairs.map(
        partial(_encode, tokenizer=tokenizer, arguments=arguments, block_size=block_size),
        batched=True,
        remove_columns=pairs.column_names,
        features=Features({"input_ids": ids, "labels": ids, "num_scored": Value("int64"), "fate": Value("string")}),
        num_proc=num_proc,
        desc="Encoding prompts and responses",
    )
    fates, num_scored = encoded["fate"][:], sum(encoded["num_scored"][:])
    examples = encoded.select([index for index, fate in enumerate(fates) if fate == "kept"])
    examples = examples.remove_columns(["fate", "num_scored"])
    if not len(examples):
        raise ValueError(
            f"`block_size` must leave some of the {len(pairs)} pairs, got {block_size}: {fates.count('too long')} are "
            f"longer, {fates.count('empty')} have an empty response."
        )
    report = PairReport(len(pairs), len(examples), fates.count("too long"), fates.count("empty"), num_scored)
    return examples, report


def load_pairs(data: DataArguments, arguments: PairArguments | None = None) -> tuple[Dataset, Dataset]:
    """Loads training and validation pairs; without validation data, the last rows are held out.

    Only the columns of `arguments` are read, by default all. Raises as `load_train_validation`; and a ValueError for
    `streaming`.
    """
    train, heldout = load_pair_sources(data, arguments)
    return join(train), heldout


def load_pair_sources(data: DataArguments, arguments: PairArguments | None = None) -> tuple[list[Dataset], Dataset]:
    """Loads the training pairs of each source, and the held-out pairs of all; as `load_pairs`."""
    if data.streaming:
        raise ValueError("`streaming` must be False with prompts and responses, got True.")
    return load_sources(data, load=load_pair_table(arguments), divide=_hold_out_rows)


def load_pair_table(arguments: PairArguments | None) -> Callable[..., Dataset | IterableDataset]:
    """`load_table` for the columns of prompts and responses."""
    names = ("prompt_column", "response_column")
    columns = None if arguments is None else {name: getattr(arguments, name) for name in names}
    return partial(load_table, columns=columns)


def _hold_out_rows(pairs: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    num_train = len(pairs) - num_heldout(len(pairs), fraction, "pairs")
    return pairs.select(range(num_train)), pairs.select(range(num_train, len(pairs)))


def _encode(
    batch: dict[str, list[str | None]], tokenizer: PreTrainedTokenizerBase, arguments: PairArguments, block_size: int
) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {"input_ids": [], "labels": [], "num_scored": [], "fate": []}
    texts = [text or "" for text in batch[arguments.prompt_column]]
    prompts = encode_texts(tokenizer, texts)
    responses = encode_texts(tokenizer, [text or "" for text in batch[arguments.response_column]], after=texts)
    end = [] if arguments.response_end == "none" else [tokenizer.eos_token_id]
    for prompt, response in zip(prompts, responses, strict=True):
        answer = response + end
        room = block_size - len(prompt) - len(answer)
        fate = "empty" if not response else "too long" if room < 0 else "kept"
        if fate != "kept":
            prompt, answer = [], []
        elif arguments.response_end == "fill":
            answer = answer + end * room
        rows["input_ids"].append(prompt + answer)
        rows["labels"].append([IGNORE_INDEX] * len(prompt) + answer)
        rows["num_scored"].append(len(answer))
        rows["fate"].append(fate)
    return rows
