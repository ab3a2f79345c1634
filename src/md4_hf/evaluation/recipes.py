# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Tables of the data sets that models are evaluated on and of their published preparations; recipes made of both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.arguments import DIGITS
from ..objective.modality import Modality, modality_of_metrics
from .detokenizers import RULES


FILE = "file"  # the split of a local file, all of which is scored
TEXT8_CHARACTERS, TEXT8_TEST = 100_000_000, "last 5,000,000 characters"
OPENWEBTEXT_HELDOUT = "train[-100000:]"


@dataclass(frozen=True)
class Task:
    """A data set of the evaluation, and the figure that it is reported in."""

    data: str  # its id on the Hub
    config: str | None = None
    revision: str | None = None
    text_column: str = "text"
    splits: dict[str, str] = field(default_factory=lambda: {"": "test"})  # by preparation; "" stands for all others
    detokenizer: str = "none"
    metric: str = "perplexity"  # or "bits_per_character", "bits_per_dimension"
    end_rows: bool = True  # whether a token ends each row, where the preparation has one
    length: int | None = None  # tokens of a block, if it differs from the model's
    notes: dict[str, str] = field(default_factory=dict)  # remarks for readers of the figure, by split

    @property
    def modality(self) -> Modality:
        """The kind of its data."""
        return modality_of_metrics([self.metric])

    def split_of(self, preparation: str = "", data: str | None = None) -> str:
        """The split in a preparation; "file" for a local file, all of which is scored."""
        return self.splits.get(preparation, self.splits[""]) if data is None else FILE


@dataclass(frozen=True)
class Preparation:
    """A way to cut rows into blocks."""

    row_end: str  # "eos" (the end token of the tokenizer), "blank line", or "nothing"
    frame: bool = False  # whether each block begins and ends with the end token, which are scored with it
    wrap: bool = True  # whether rows are joined and cut into blocks, or each row is an example (or several) of its own
    # Rows joined at a time, whose last tokens, too few for a block, are dropped; None joins all, and scores the last
    # tokens in a shorter block.
    group: int | None = None
    # Tokens between the starts of two blocks; what they share is not scored again. None for a block's length.
    stride: int | None = None


@dataclass(frozen=True)
class Recipe:
    """Fields of `Task` and `Preparation` that determine examples, besides the tokenizer; results record them."""

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
    """The recipe of a task in the preparation of this name; a ValueError for values out of range.

    Args:
        context: Tokens of a block, those of its frame included.
        data: A local file or folder in place of the task's data set: all of it is scored, but of the original file of
            text8 (100 million characters) its last 5 million, the test split.
        changes: Fields of `Recipe` to have another value: `detokenizer`, `wrap`, `stride`, `split`.
    """
    if preparation not in PREPARATIONS:
        raise ValueError(f"`preparation` must be one of {sorted(PREPARATIONS)}, got {preparation!r}.")
    chosen = PREPARATIONS[preparation]
    context = min(context, task.length or context)
    changes = {name: value for name, value in changes.items() if value is not None}
    stride = _stride(chosen, context, changes.pop("stride", None))
    recipe = Recipe(
        data=data or task.data,
        config=None if data else task.config,
        revision=None if data else task.revision,
        split=_split(task, preparation, data),
        text_column=task.text_column,
        detokenizer=task.detokenizer,
        preparation=preparation,
        row_end=chosen.row_end if task.end_rows else "nothing",
        frame=chosen.frame,
        wrap=chosen.wrap,
        group=chosen.group if changes.get("wrap", chosen.wrap) else None,  # rows by themselves are scored to their end
        context=context,
        stride=stride,
    )
    recipe = replace(recipe, **changes)
    if recipe.detokenizer not in RULES:
        raise ValueError(f"`detokenizer` must be one of {sorted(RULES)}, got {recipe.detokenizer!r}.")
    return recipe


def _split(task: Task, preparation: str, data: str | None) -> str:
    """The split that is scored of a task's data set, or of a file or folder in its place."""
    path = Path(data or "").expanduser()
    is_text8 = task is TASKS["text8"] and path.is_file() and path.stat().st_size == TEXT8_CHARACTERS
    return TEXT8_TEST if is_text8 else task.split_of(preparation, data)


def _stride(preparation: Preparation, context: int, stride: int | None) -> int:
    """Tokens between the starts of two blocks, by default the preparation's; a ValueError if out of range."""
    content = context - 2 * preparation.frame
    if content < 1:
        raise ValueError(f"`context` must leave room for a token, got {context}.")
    if stride is None:
        return min(preparation.stride or content, content)
    if not 1 <= stride <= content:
        raise ValueError(f"`stride` must be in [1, {content}], the tokens of a block, got {stride}.")
    return stride
