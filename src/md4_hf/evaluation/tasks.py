# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Examples of the data sets that masked diffusion models are evaluated on, prepared as a recipe says.

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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..core.masked_diffusion import IGNORE_INDEX
from ..data.documents import load_documents
from ..data.files import is_text
from ..data.packing import DOCUMENTS_PER_BATCH, Separator, size_columns
from ..data.pieces import tokenize_texts
from ..data.progress import advance, progress_bar
from ..objective.figures import SIZE_COLUMNS
from .detokenizers import detokenize
from .recipes import FILE, TEXT8_TEST, Recipe


WINDOW_FEATURES = Features(
    {name: List(Value("int32")) for name in ("input_ids", "labels")}
    | {name: Value("float64") for name in SIZE_COLUMNS}
)
TEXT8_TEST_CHARACTERS = 5_000_000


def load_rows(recipe: Recipe) -> Dataset:
    """The rows of a task, detokenised, as a data set with the column `text`; raises as `load_documents`.

    Of a local text file each line is a row, with the line end or without the blanks that the data set's own rows have.
    """
    if Path(recipe.data).expanduser().is_file() and is_text(recipe.data):
        rows = load_documents(recipe.data)  # which checks the file
        if recipe.split == TEXT8_TEST:
            return rows.map(lambda row: {"text": row["text"][-TEXT8_TEST_CHARACTERS:]}, desc="Test split")
        rows = rows.map(_lines, batched=True, fn_kwargs={"as_in": recipe.detokenizer}, desc="Lines")
    else:
        rows = load_documents(
            recipe.data,
            config=recipe.config,
            split="train" if recipe.split == FILE else recipe.split,
            revision=recipe.revision,
            text_column="text" if is_text(recipe.data) else recipe.text_column,
        )
    if recipe.detokenizer == "none":
        return rows
    name = recipe.detokenizer
    return rows.map(lambda row: {"text": detokenize(row["text"] or "", name)}, desc="Detokenising")


def hub_commit(rows: Any) -> str | None:
    """The commit of the Hub's data set that rows were read from, from the cache's path; None if it is unknown."""
    paths = [Path(entry["filename"]) for entry in getattr(rows, "cache_files", ())]
    commits = {part for path in paths for part in path.parts if re.fullmatch("[0-9a-f]{40}", part)}
    return commits.pop() if len(commits) == 1 else None


def _lines(batch: dict[str, list[str]], as_in: str) -> dict[str, list[str]]:
    """The lines of files as the rows of a data set: of WikiText with their ends, of PTB without blanks at theirs.

    Line breaks alone end a line, and not every character that Unicode calls one.
    """
    lines = [line for text in batch["text"] for line in re.findall(r"[^\n]*\n|[^\n]+", text)]
    if as_in == "wikitext":
        return {"text": lines}
    lines = [line.removesuffix("\n") for line in lines]
    return {"text": [line.strip(" ") for line in lines] if as_in == "ptb" else lines}


def make_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Dataset:
    """Rows as examples for `MD4Trainer`, each at most `recipe.context` tokens.

    Args:
        rows: Data set with a column `text`, see `load_rows`.
        tokenizer: Any tokenizer; one without an end token (eos, or else sep) ends rows with a line break.
        recipe: How to cut them.

    Returns:
        A data set of `input_ids`, `labels` (-100 for the tokens that a window shares with the one before, which are
        seen and not scored), `num_characters` and `num_bytes` (floats, of the detokenised text that the scored tokens
        stand for; an end token stands for none). A ValueError if there is no window.
    """
    eos, text = Separator.of(tokenizer), "\n\n" if recipe.row_end == "blank line" else ""
    end = eos if recipe.row_end == "eos" else Separator.of_text(text, tokenizer)
    frame = eos.input_ids if recipe.frame else ()
    options = {"rows": rows, "tokenizer": tokenizer, "end": end, "frame": frame, "recipe": asdict(recipe)}
    if next(_generate_windows(**options), None) is None:  # for which the error of `datasets` is unclear
        raise ValueError(f"`data` must fill a block of {recipe.context} tokens, got {recipe.data!r} with too few.")
    with progress_bar("Packing", "blocks"):
        return Dataset.from_generator(_generate_windows, features=WINDOW_FEATURES, gen_kwargs=options)


def _generate_windows(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, end: Separator, frame: tuple[int, ...], recipe: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    content = recipe["context"] - 2 * len(frame)
    keeps_last = recipe["group"] is None
    for group in _groups(_tokens_of_rows(rows, tokenizer, end), recipe):
        for ids, sizes, num_seen in sliding_windows(group, content, recipe["stride"], keeps_last):
            ids = np.concatenate([frame, ids, frame]).astype(np.int32)
            labels = ids.copy()
            if num_seen:  # the frame before them has been scored too
                labels[: len(frame) + num_seen] = IGNORE_INDEX
            advance()
            yield {"input_ids": ids, "labels": labels, **size_columns(sizes[num_seen:])}


Tokens = tuple[np.ndarray, np.ndarray]  # ids, and `(ids, 2)` characters and bytes that each stands for


def _groups(rows: Iterator[Tokens], recipe: dict[str, Any]) -> Iterator[Iterator[Tokens]]:
    """Groups of rows to be joined: all rows, a number of them at a time, or one."""
    size = recipe["group"] if recipe["wrap"] else 1
    for first in rows:
        yield itertools.chain([first], itertools.islice(rows, None if size is None else size - 1))


def _tokens_of_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, end: Separator) -> Iterator[Tokens]:
    end_ids = np.array(end.input_ids, dtype=np.int32)
    end_sizes = np.tile(end.sizes_per_token, (len(end_ids), 1))
    for batch in rows.select_columns("text").iter(DOCUMENTS_PER_BATCH):
        for ids, sizes_per_token in tokenize_texts(batch["text"], tokenizer):
            joined = np.concatenate([ids, end_ids])
            sizes = np.concatenate([np.tile(sizes_per_token, (len(ids), 1)), end_sizes])
            if len(joined):
                yield joined, sizes


def sliding_windows(
    pieces: Iterator[Tokens], length: int, stride: int, keeps_last: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Windows of `length` tokens, each `stride` in [1, length] after the one before: every token is scored once.

    With `keeps_last`, the last tokens, too few for a window, make a shorter one. Yields ids and sizes of each
    token of a window, and how many of its first tokens have been scored before.
    """
    ids, sizes, num_seen = np.empty(0, np.int32), np.empty((0, 2)), 0
    for piece_ids, piece_sizes in pieces:
        ids, sizes = np.concatenate([ids, piece_ids]), np.concatenate([sizes, piece_sizes])
        start = 0
        while len(ids) - start >= length:
            yield ids[start : start + length], sizes[start : start + length], num_seen
            start, num_seen = start + stride, length - stride
        ids, sizes = ids[start:], sizes[start:]
    if keeps_last and len(ids) > num_seen:
        yield ids, sizes, num_seen
