# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The data sets that masked diffusion models are evaluated on, and how published results have prepared them.

    task = TASKS["wikitext2"]
    recipe = make_recipe(task, "sedd", context=1024)
    windows = make_windows(load_rows(recipe), tokenizer, recipe)

A perplexity means little without its preparation: the split, the detokenizer, what stands between rows, and how they
are cut. All of it is in the recipe, which the results carry with them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..core.masked_diffusion import IGNORE_INDEX
from ..data.documents import DIGITS, TABLE_FORMATS, load_documents
from ..data.packing import DOCUMENTS_PER_BATCH, Separator, tokenize_texts
from ..objective.modality import Modality, modality_of_metrics
from .detokenizers import RULES, detokenize


WINDOW_FEATURES = Features(
    {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "num_characters": Value("float64")}
)
FILE = "file"  # the split of a local file, all of which is scored
TEXT8_CHARACTERS, TEXT8_TEST = 100_000_000, "last 5,000,000 characters"
TEXT8_TEST_CHARACTERS = 5_000_000
OPENWEBTEXT_HELDOUT = "train[-100000:]"


@dataclass(frozen=True)
class Task:
    """A data set of the evaluation, and the figure that it is reported in.

    Args:
        data: Id on the Hub.
        config: Its configuration, if it has several.
        revision: Its branch, if not the main one.
        text_column: Column of the text.
        splits: Split by name of the preparation; "" stands for all others.
        detokenizer: Name of its detokenizer.
        metric: The reported figure: "perplexity", "bits_per_character" or "bits_per_dimension".
        end_rows: Whether a token ends each row, where the preparation has one.
        length: Tokens of a block, if it differs from the model's.
        notes: Remarks for readers of the figure, by split.
    """

    data: str
    config: str | None = None
    revision: str | None = None
    text_column: str = "text"
    splits: dict[str, str] = field(default_factory=lambda: {"": "test"})
    detokenizer: str = "none"
    metric: str = "perplexity"
    end_rows: bool = True
    length: int | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """The kind of its data."""
        return modality_of_metrics([self.metric])

    def split_of(self, preparation: str = "", data: str | None = None) -> str:
        """The split in a preparation; "file" for a local file, all of which is scored."""
        return self.splits.get(preparation, self.splits[""]) if data is None else FILE


@dataclass(frozen=True)
class Preparation:
    """A way to cut rows into blocks.

    Args:
        row_end: End of each row: "eos" (the end token of the tokenizer), "blank line", or "nothing".
        frame: Whether each block begins and ends with the end token, which are scored with it.
        wrap: Whether rows are joined and cut into blocks; otherwise each row is an example (or several) of its own.
        group: Rows that are joined at a time, whose last tokens, too few for a block, are dropped; None joins all, and
            scores the last tokens in a shorter block.
        stride: By how many tokens a block starts after the one before: what it shares with that is given and not
            scored. None for a block's length, no overlap.
    """

    row_end: str
    frame: bool = False
    wrap: bool = True
    group: int | None = None
    stride: int | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the examples of a task, besides the tokenizer; results record it.

    Made by `make_recipe`; the fields are those of `Task` and `Preparation`.
    """

    data: str
    config: str | None
    revision: str | None
    split: str
    text_column: str
    detokenizer: str
    preparation: str
    row_end: str
    frame: bool
    wrap: bool
    group: int | None
    context: int
    stride: int


TASKS: dict[str, Task] = {
    "lambada": Task("EleutherAI/lambada_openai", config="default", detokenizer="lambada"),
    "wikitext2": Task(
        "Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        splits={"": "test", "sedd": "train", "mdlm": "validation"},
        detokenizer="wikitext",
        notes={"train": "SEDD scores the training split: WikiText-2 and WikiText-103 share their test text."},
    ),
    "ptb": Task(
        "ptb-text-only/ptb_text_only",
        revision="refs/convert/parquet",
        text_column="sentence",
        splits={"": "test", "mdlm": "validation"},
        detokenizer="ptb",
    ),
    "wikitext103": Task(
        "Salesforce/wikitext",
        config="wikitext-103-raw-v1",
        splits={"": "test", "mdlm": "validation"},
        detokenizer="wikitext",
    ),
    "lm1b": Task("dvruette/lm1b", detokenizer="lm1b"),
    "openwebtext": Task(
        "Skylion007/openwebtext",
        splits={"": OPENWEBTEXT_HELDOUT},
        notes={
            OPENWEBTEXT_HELDOUT: "The last 100,000 documents, as MDLM; the paper's own held-out 2 % are drawn at "
            "random and not recorded."
        },
    ),
    "text8": Task("afmck/text8", metric="bits_per_character", end_rows=False, length=256),
    "cifar10": Task("uoft-cs/cifar10", metric="bits_per_dimension"),
    "imagenet64": Task(
        "benjamin-paine/imagenet-1k-64x64",
        splits={"": "validation"},
        metric="bits_per_dimension",
        notes={"validation": "Scaled to 64 × 64 in another way than the paper's."},
    ),
    "digits": Task(DIGITS, splits={"": "held-out tenth"}, metric="bits_per_dimension"),
}
SUITES: dict[str, tuple[str, ...]] = {
    "zero-shot": ("lambada", "wikitext2", "ptb", "wikitext103", "lm1b"),
    **{name: (name,) for name in ("openwebtext", "text8", "cifar10", "imagenet64", "digits")},
}
PREPARATIONS: dict[str, Preparation] = {
    # SEDD (arXiv:2310.16834) and RADD (arXiv:2406.03736), which MD4 says its evaluation follows.
    "sedd": Preparation(row_end="eos", group=1000),
    # MDLM (arXiv:2406.07524), its released code.
    "mdlm": Preparation(row_end="eos", frame=True, group=1000),
    # The sliding window of GPT-2's evaluations, with the detokenizers that it calls invertible.
    "gpt2": Preparation(row_end="blank line", stride=512),
    # Of this package: no token is left out; and each row by itself.
    "whole": Preparation(row_end="eos"),
    "rows": Preparation(row_end="eos", wrap=False),
}


def make_recipe(task: Task, preparation: str, context: int, data: str | None = None, **changes: Any) -> Recipe:
    """The recipe of a task.

    Args:
        task: The task.
        preparation: Name of a preparation.
        context: Tokens of a block, those of its frame included.
        data: A local file or folder in place of the task's data set: all of it is scored, but of the original file of
            text8 (100 million characters) its last 5 million, the test split.
        changes: Fields of `Recipe` to have another value: `detokenizer`, `wrap`, `stride`, `split`.

    Raises:
        ValueError: For an unknown preparation or detokenizer, and numbers out of range.
    """
    if preparation not in PREPARATIONS:
        raise ValueError(f"`preparation` must be one of {sorted(PREPARATIONS)}, got {preparation!r}.")
    chosen = PREPARATIONS[preparation]
    context = min(context, task.length or context)
    content = context - 2 * chosen.frame
    if content < 1:
        raise ValueError(f"`context` must leave room for a token, got {context}.")
    stride = changes.pop("stride", None)
    stride = min(chosen.stride or content, content) if stride is None else stride
    if not 1 <= stride <= content:
        raise ValueError(f"`stride` must be in [1, {content}], the tokens of a block, got {stride}.")
    recipe = Recipe(
        data=data or task.data,
        config=None if data else task.config,
        revision=None if data else task.revision,
        split=TEXT8_TEST if _is_whole_text8(task, data) else task.split_of(preparation, data),
        text_column=task.text_column,
        detokenizer=task.detokenizer,
        preparation=preparation,
        row_end=chosen.row_end if task.end_rows else "nothing",
        frame=chosen.frame,
        wrap=chosen.wrap,
        group=None,
        context=context,
        stride=stride,
    )
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    recipe = replace(recipe, group=chosen.group if recipe.wrap else None)  # rows by themselves are scored to their end
    if recipe.detokenizer not in RULES:
        raise ValueError(f"`detokenizer` must be one of {sorted(RULES)}, got {recipe.detokenizer!r}.")
    return recipe


def _is_whole_text8(task: Task, data: str | None) -> bool:
    path = Path(data or "").expanduser()
    return task is TASKS["text8"] and path.is_file() and path.stat().st_size == TEXT8_CHARACTERS


def load_rows(recipe: Recipe) -> Dataset:
    """The rows of a task, detokenised, as a data set with the column `text`.

    Of a local text file each line is a row, with the line end or without the blanks that the data set's own rows have.

    Raises:
        FileNotFoundError, ValueError: As `load_documents`.
    """
    path = Path(recipe.data).expanduser()
    if path.is_file() and path.suffix not in TABLE_FORMATS:
        rows = load_documents(recipe.data)  # which checks the file
        if recipe.split == TEXT8_TEST:
            return rows.map(_last_characters, fn_kwargs={"count": TEXT8_TEST_CHARACTERS})
        rows = rows.map(_lines, batched=True, fn_kwargs={"as_in": recipe.detokenizer})
    else:
        rows = load_documents(
            recipe.data,
            config=recipe.config,
            split="train" if recipe.split == FILE else recipe.split,
            revision=recipe.revision,
            text_column=recipe.text_column,
        )
    if recipe.detokenizer == "none":
        return rows
    return rows.map(_detokenize, fn_kwargs={"name": recipe.detokenizer}, desc="Detokenising")


def hub_commit(rows: Any) -> str | None:
    """The commit of the Hub's data set that rows were read from; None for local files, or if it is unknown.

    `datasets` names the folder of its cache after it.
    """
    files = [Path(entry["filename"]) for entry in getattr(rows, "cache_files", ())]
    commits = {part for path in files for part in path.parts if re.fullmatch("[0-9a-f]{40}", part)}
    return commits.pop() if len(commits) == 1 else None


def _last_characters(row: dict[str, str], count: int) -> dict[str, str]:
    return {"text": row["text"][-count:]}


def _lines(batch: dict[str, list[str]], as_in: str) -> dict[str, list[str]]:
    """The lines of files as the rows of a data set: of WikiText with their ends, of PTB without blanks at theirs."""
    lines = [line for text in batch["text"] for line in _split_lines(text)]
    if as_in == "wikitext":
        return {"text": lines}
    lines = [line.removesuffix("\n") for line in lines]
    return {"text": [line.strip(" ") for line in lines] if as_in == "ptb" else lines}


def _split_lines(text: str) -> list[str]:
    """Lines of a file with their ends: line breaks alone, and not every character that Unicode calls one."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _detokenize(row: dict[str, str | None], name: str) -> dict[str, str]:
    return {"text": detokenize(row["text"] or "", name)}


def make_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Dataset:
    """Rows as examples for `MD4Trainer`, each at most `recipe.context` tokens.

    Args:
        rows: Data set with a column `text`, see `load_rows`.
        tokenizer: Any tokenizer; one without an end token (eos, or else sep) ends rows with a line break.
        recipe: How to cut them.

    Returns:
        A data set of `input_ids`, `labels` (-100 for the tokens that a window shares with the one before, which are
        seen and not scored) and `num_characters` (float, of the detokenised text that the scored tokens stand for; an
        end token stands for none).

    Raises:
        ValueError: If there is no window.
    """
    end = _row_end(tokenizer, recipe.row_end)
    frame = Separator.of(tokenizer).input_ids if recipe.frame else ()
    options = {"rows": rows, "tokenizer": tokenizer, "end": end, "frame": frame, "recipe": asdict(recipe)}
    if next(_generate_windows(**options), None) is None:  # for which the error of `datasets` is unclear
        raise ValueError(f"`data` must fill a block of {recipe.context} tokens, got {recipe.data!r} with too few.")
    return Dataset.from_generator(_generate_windows, features=WINDOW_FEATURES, gen_kwargs=options)


def _row_end(tokenizer: PreTrainedTokenizerBase, kind: str) -> Separator:
    if kind == "eos":
        return Separator.of(tokenizer)
    return Separator.of_text("\n\n" if kind == "blank line" else "", tokenizer)


def _generate_windows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    end: Separator,
    frame: tuple[int, ...],
    recipe: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    content = recipe["context"] - 2 * len(frame)
    keeps_last = recipe["group"] is None
    for group in _groups(_tokens_of_rows(rows, tokenizer, end), recipe):
        for ids, characters, num_seen in sliding_windows(group, content, recipe["stride"], keeps_last):
            ids = np.concatenate([frame, ids, frame]).astype(np.int32)
            labels = ids.copy()
            if num_seen:  # the frame before them has been scored too
                labels[: len(frame) + num_seen] = IGNORE_INDEX
            yield {"input_ids": ids, "labels": labels, "num_characters": characters[num_seen:].sum()}


Tokens = tuple[np.ndarray, np.ndarray]  # ids, and the characters that each stands for


def _groups(rows: Iterator[Tokens], recipe: dict[str, Any]) -> Iterator[Iterator[Tokens]]:
    """Groups of rows to be joined: all rows, a number of them at a time, or one."""
    size = 1 if not recipe["wrap"] else recipe["group"]
    if size is None:
        yield rows
        return
    for first in rows:
        yield itertools.chain([first], itertools.islice(rows, size - 1))


def _tokens_of_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, end: Separator) -> Iterator[Tokens]:
    end_ids = np.array(end.input_ids, dtype=np.int32)
    end_characters = np.full(len(end_ids), end.characters_per_token)
    for batch in rows.select_columns("text").iter(DOCUMENTS_PER_BATCH):
        for ids, characters_per_token in tokenize_texts(batch["text"], tokenizer):
            joined = np.concatenate([ids, end_ids])
            characters = np.concatenate([np.full(len(ids), characters_per_token), end_characters])
            if len(joined):
                yield joined, characters


def sliding_windows(
    pieces: Iterator[Tokens], length: int, stride: int, keeps_last: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Windows of `length` tokens, each `stride` after the one before: every token is scored once.

    Args:
        pieces: Ids and characters of each token, piece by piece.
        length: Tokens of a window.
        stride: In [1, length].
        keeps_last: Whether the last tokens, too few for a window, make a shorter one.

    Yields:
        Ids and characters of a window, and how many of its first tokens have been scored before.
    """
    ids, characters, num_seen = np.empty(0, np.int32), np.empty(0), 0
    for piece_ids, piece_characters in pieces:
        ids, characters = np.concatenate([ids, piece_ids]), np.concatenate([characters, piece_characters])
        start = 0
        while len(ids) - start >= length:
            yield ids[start : start + length], characters[start : start + length], num_seen
            start, num_seen = start + stride, length - stride
        ids, characters = ids[start:], characters[start:]
    if keeps_last and len(ids) > num_seen:
        yield ids, characters, num_seen
