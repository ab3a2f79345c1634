# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Prompts and responses, and conversations, for fine-tuning: only responses are masked and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..core.chat_messages import check_chat_template, check_messages
from ..core.masked_diffusion import IGNORE_INDEX
from ..core.text_encoding import encode_texts
from ..utils.instances import check_instance
from ..utils.integers import as_integer
from .arguments import DataArguments, PairArguments
from .conversations import Draft, draft_answers
from .documents import columns_of_data, join, load_sources, load_table, num_heldout
from .loading_errors import cache_errors
from .readers import MESSAGES, STRING
from .tables import check_table
from .tokenizers import check_tokenizer


# Columns that are taken where none are named, the first that the data have.
KNOWN_COLUMNS = (
    {"messages_column": "messages"},
    {"prompt_column": "prompt", "response_column": "completion"},
    {"prompt_column": "prompt", "response_column": "response"},
)
EMPTY, TOO_LONG, KEPT = "empty", "too long", "kept"  # fates of responses


@dataclass(frozen=True)
class PairReport:
    """Counts of the responses of a data set in `encode_pairs`."""

    num_pairs: int  # responses: with `turns="each"`, all answers of all conversations
    num_kept: int  # that became examples
    num_too_long: int  # left out because they do not fit into `block_size` tokens
    num_empty: int  # left out because the response is empty, or a conversation has no answer
    num_scored_tokens: int  # of the examples
    num_rows: int  # of the data set
    max_tokens: int  # of the longest prompt and response with its end, whether it is kept or not


@cache_errors()
def encode_pairs(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    arguments: PairArguments,
    num_proc: int | None = None,
    diffusion_block_size: int | None = None,
) -> tuple[Dataset, PairReport]:
    """Turns prompts and responses, or conversations, into examples for `MD4Trainer`.

    The ids of an example are those of the prompt, those of the response, and what `eos` puts after it; texts are
    taken verbatim, by the rule of `core/text_encoding.py`: a space or line break between them has to be in one of
    them, and a prompt has the ids that it has in the pipeline. `labels` are -100 on the prompt. Nothing is cut: an
    example that does not fit is left out, and counted.

    Messages are written by the chat template of the tokenizer. An answer is what it marks with `{% generation %}`, or
    else what it writes behind the generation prompt; it ends with the EOS token that the template writes, or else as
    `eos` says.

    Args:
        pairs: data set with the columns: strings, or lists of messages.
        block_size: largest number of tokens of an example, and with `eos="padded"` the number of all.
        arguments: names of the columns, `eos` and `turns`.
        num_proc: number of processes that tokenise.
        diffusion_block_size: `config.block_size` of a block model, to whose multiples `eos="padded"` pads instead.

    Returns:
        `(examples, report)`; the examples have `input_ids` and `labels`.

    Raises:
        ValueError: `block_size` is out of range, a column is missing or holds neither strings nor messages, messages
            are malformed, the tokenizer has no EOS token or chat template where one is needed, or nothing is left.
    """
    check_table("pairs", pairs, may_be_stream=False)
    check_tokenizer(tokenizer)
    check_instance("arguments", arguments, PairArguments)
    block_size = as_integer("block_size", block_size, 1)
    if not len(pairs):
        raise ValueError("`pairs` must hold at least one pair, got none.")
    draft = _draft_messages if _holds_messages(pairs.features, arguments) else _draft_texts
    if draft is _draft_messages:
        check_chat_template(tokenizer)
    if arguments.eos_policy != "none" and tokenizer.eos_token_id is None:
        rule = '"none" for a tokenizer without an EOS token'
        raise ValueError(f"`eos` must be {rule}, got {arguments.eos_policy!r}.")
    pad_to = block_size if diffusion_block_size is None else diffusion_block_size
    end = _End(arguments.eos_policy, tokenizer.eos_token_id, block_size, pad_to)
    ids = List(Value("int32"))
    facts = {"num_tokens": Value("int64"), "num_scored": Value("int64"), "fate": Value("string")}
    encoded = pairs.map(
        partial(_encode, draft=draft, tokenizer=tokenizer, arguments=arguments, end=end),
        batched=True,
        with_indices=True,
        remove_columns=pairs.column_names,
        features=Features({"input_ids": ids, "labels": ids, **facts}),
        num_proc=num_proc,
        desc="Encoding prompts and responses",
    )
    fates, num_scored = encoded["fate"][:], sum(encoded["num_scored"][:])
    examples = encoded.select([index for index, fate in enumerate(fates) if fate == KEPT]).remove_columns([*facts])
    longest = max(encoded["num_tokens"][:])
    if not len(examples):
        raise ValueError(
            f"`block_size` must leave some of the {len(fates)} pairs, got {block_size}: {fates.count(TOO_LONG)} are "
            f"longer (up to {longest} tokens), {fates.count(EMPTY)} have an empty response."
        )
    counts = (len(examples), fates.count(TOO_LONG), fates.count(EMPTY))
    return examples, PairReport(len(fates), *counts, num_scored, len(pairs), longest)


def find_pair_columns(data: DataArguments, arguments: PairArguments, of_validation: bool = False) -> PairArguments:
    """Arguments that name the columns of the data, as they are where they do or where the data are text.

    Text are files without columns, data with the column `data.text_column`, and those whose columns are not known
    beforehand.

    Args:
        data: the data, of whose sources the first is looked at.
        arguments: columns that are named, if any are.
        of_validation: whether to look at `data.validation_data` where it is given.

    Raises:
        ValueError: the data have neither text nor columns of `KNOWN_COLUMNS`.
        FileNotFoundError, ValueError: as `load_table`.
    """
    if arguments.given or data.text_column != DataArguments.text_column:
        return arguments
    if of_validation and data.validation_data is not None:
        source, split = "validation_data", data.validation_split or data.data_split
        found = columns_of_data(data.validation_data, data.validation_config, split, None, source)
    else:
        source, split = "data", data.data_split
        found = columns_of_data(data.sources[0], data.data_config, split, data.data_revision, source)
    if not found or data.text_column in found:
        return arguments
    for names in KNOWN_COLUMNS:
        if set(names.values()) <= found.keys():
            return replace(arguments, **dict[str, Any](names))
    raise ValueError(
        f"`{source}` must have a column `text`, `messages`, or `prompt` with `completion` or `response`, or columns "
        f"that `text_column`, `messages_column`, `prompt_column` and `response_column` name, got {sorted(found)}."
    )


def load_pairs(data: DataArguments, arguments: PairArguments | None = None) -> tuple[Dataset, Dataset]:
    """Loads training and validation pairs; without validation data, the last rows are held out.

    Only the columns of `arguments` are read, by default all. Raises as `load_train_validation`; and a ValueError for
    `streaming`.
    """
    check_instance("data", data, DataArguments)
    train, heldout = load_pair_sources(data, arguments)
    return join(train), heldout


def load_pair_sources(data: DataArguments, arguments: PairArguments | None = None) -> tuple[list[Dataset], Dataset]:
    """Loads the training pairs of each source, and the held-out pairs of all; as `load_pairs`."""
    if data.streaming:
        raise ValueError("`streaming` must be False with prompts and responses, got True.")
    return load_sources(data, load=load_pair_table(arguments), divide=_hold_out_rows)


def load_pair_table(arguments: PairArguments | None) -> Callable[..., Dataset | IterableDataset]:
    """`load_table` for the columns of prompts and responses, or of conversations."""
    return partial(load_table, columns=None if arguments is None else arguments.columns)


def _hold_out_rows(pairs: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    num_train = len(pairs) - num_heldout(len(pairs), fraction, "pairs")
    return pairs.select(range(num_train)), pairs.select(range(num_train, len(pairs)))


def _holds_messages(features: Mapping[str, Any], arguments: PairArguments) -> bool:
    """Whether the columns hold messages; a ValueError if one is missing or holds something else."""
    kinds = set()
    for name, column in arguments.columns.items():
        if column not in features:
            raise ValueError(f"`{name}` must be one of the columns {sorted(features)}, got {column!r}.")
        dtype = getattr(features[column], "dtype", None)
        kind = STRING if dtype in ("string", "large_string") else MESSAGES
        is_other = kind == MESSAGES and dtype is not None  # numbers; what is nested has no type of its own
        if is_other or (kind == STRING and name == "messages_column"):
            rule = "lists of messages" if name == "messages_column" else "strings or lists of messages"
            raise ValueError(f"`{name}` must hold {rule}, got {column!r} with {features[column]}.")
        kinds.add(kind)
    if len(kinds) > 1:
        found = {column: str(features[column]) for column in arguments.columns.values()}
        raise ValueError(
            f"`prompt_column` and `response_column` must both hold strings or both hold messages, got {found}."
        )
    return kinds == {MESSAGES}


def _draft_texts(
    batch: dict[str, list[str | None]], rows: list[int], tokenizer: PreTrainedTokenizerBase, arguments: PairArguments
) -> list[Draft]:
    """Drafts of prompts and responses that are strings."""
    texts = [text or "" for text in batch[arguments.prompt_column]]
    prompts = encode_texts(tokenizer, texts)
    responses = encode_texts(tokenizer, [text or "" for text in batch[arguments.response_column]], after=texts)
    drafts = []
    for prompt, response in zip(prompts, responses, strict=True):
        drafts.append(draft := Draft([], []))
        draft.add(prompt, is_scored=False)
        draft.add(response, is_scored=True)
    return drafts


def _draft_messages(
    batch: dict[str, list], rows: list[int], tokenizer: PreTrainedTokenizerBase, arguments: PairArguments
) -> list[Draft]:
    """Drafts of conversations, or of messages in answer to messages, of which the former are not scored."""
    drafts = []
    for place, row in enumerate(rows):
        conversation: list[dict[str, str]] = []
        first = 0
        for name, column in arguments.columns.items():
            first = len(conversation)
            where = f"`{name}`: the column {column!r} of row {row + 1}"
            conversation += check_messages(batch[column][place], where)
        drafts += draft_answers(tokenizer, conversation, first, arguments.turns, where) or [Draft([], [])]
    return drafts


@dataclass(frozen=True)
class _End:
    """End of an example: EOS tokens, and the room that it has."""

    eos: str
    eos_token_id: int
    block_size: int
    pad_to: int  # with "padded", to a multiple of so many tokens, but no more than `block_size`

    def added_to(self, ids: list[int]) -> list[int]:
        """EOS tokens behind the ids of an example, whose own last one is not repeated."""
        ends = bool(ids) and ids[-1] == self.eos_token_id
        count = 0 if self.eos == "none" or ends else 1
        if self.eos == "padded":
            length = len(ids) + count
            count += max(min(-(-length // self.pad_to) * self.pad_to, self.block_size) - length, 0)
        return [self.eos_token_id] * count


def _encode(
    batch: dict[str, list], rows: list[int], draft: Callable[..., list[Draft]], end: _End, **how: Any
) -> dict[str, list[Any]]:
    encoded: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "num_tokens", "num_scored", "fate")}
    for example in draft(batch, rows, **how):
        added = end.added_to(example.input_ids)
        ids = example.input_ids + added
        labels = [
            x if is_scored else IGNORE_INDEX for x, is_scored in zip(ids, example.is_scored, strict=False)
        ] + added
        fate = EMPTY if example.is_empty else TOO_LONG if len(ids) > end.block_size else KEPT
        encoded["num_tokens"].append(0 if fate == EMPTY else len(ids))
        if fate != KEPT:
            ids, labels = [], []
        encoded["input_ids"].append(ids)
        encoded["labels"].append(labels)
        encoded["num_scored"].append(sum(label != IGNORE_INDEX for label in labels))
        encoded["fate"].append(fate)
    return encoded
