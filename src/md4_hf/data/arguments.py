# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Options of the data: plain dataclasses, which need neither torch nor `datasets`."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from ..utils.options import check_at_least, check_left_out, check_options, option


PYDOC, DOCSTRINGS, DIGITS = "pydoc", "docstrings", "digits"
BUILT_IN_TEXTS = (PYDOC, DOCSTRINGS)  # which come with Python, as the digits come with scikit-learn
EOS_POLICIES = ("padded", "scored", "none")
RESPONSE_ENDS = {"fill": "padded", "eos": "scored", "none": "none"}  # earlier names, of --response_end
TURNS = ("each", "together")


@dataclass
class DataArguments:
    """Source of the data, and the blocks that text is cut into."""

    _argument_group_name = "data"

    data: str | list[str] = option(
        'Text: "pydoc" (the reference manual that comes with Python), "docstrings" (English prose of the installed '
        "libraries), a .txt, .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder of one kind, or the id of a "
        'data set on the Hub. Images: "digits", a folder, or an id. Several are joined, or mixed by --data_weights.',
        default=PYDOC,
    )
    data_weights: list[float] | None = option("Shares of several --data among the examples, such as 0.7 0.3.")
    data_config: str | None = option("Configuration of the data set, where it has several.")
    data_split: str = option(
        'Split of the data set for training; slices such as "train[:1%%]" work too.', default="train"
    )
    data_revision: str | None = option("Branch, tag or commit of the data set on the Hub.")
    text_column: str = option("Column of the data set that holds the text.", default="text")
    validation_text_column: str | None = option(
        "Column of --validation_data that holds the text, if not that of --text_column."
    )
    validation_data: str | None = option("Validation text or images, in any of the forms of --data.")
    validation_config: str | None = option("Configuration of --validation_data, where it has several.")
    validation_split: str | None = option("Split of --validation_data, or else of --data, for validation.")
    validation_fraction: float = option(
        "Part held out when no validation data is named: of text the last characters, of pairs the last rows, of "
        "images some drawn once and for all.",
        default=0.1,
    )
    block_size: int = option(
        "Tokens of a block: the length of a new model, or at most that of a trained one.", default=256
    )
    document_mask: bool = option(
        "Let tokens attend within their own document only, where positions start at 0.", default=False
    )
    streaming: bool = option("Read the data while training instead of preparing it on disk first.", default=False)
    num_proc: int | None = option("Number of processes that tokenise.")

    def __post_init__(self):
        check_options(self, may_be_none=("block_size",))  # which commands replace by the length of the model
        if isinstance(self.data, list) and len(self.data) == 1:
            self.data = self.data[0]
        if not self.sources or not all(isinstance(source, str) and source.strip() for source in self.sources):
            raise ValueError(f"`data` must be a name, or a list of names, got {self.data!r}.")
        self._check_weights()
        if self.validation_data is None:
            options = ("validation_config", "validation_text_column")
            check_left_out(self, options, "without `validation_data`")
        check_at_least(self, 1, "num_proc")

    def _check_weights(self):
        weights = self.data_weights
        if weights is None:
            return
        if len(self.sources) == 1 or len(weights) != len(self.sources):
            raise ValueError(
                f"`data_weights` must have a weight for each of several `data`, got {weights} for {self.sources}."
            )
        if not all(isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in weights):
            raise ValueError(f"`data_weights` must be positive numbers, got {weights}.")

    @property
    def sources(self) -> list[str]:
        """Names of the data, often one."""
        return [self.data] if isinstance(self.data, str) else self.data


@dataclass
class ImageDataArguments:
    """Reading of the images of the data set that `DataArguments` names."""

    _argument_group_name = "images (of a data set, a folder of images or a data set on the Hub)"

    image_column: str | None = option("Column of the images; the only one that has images if left out.")
    label_column: str | None = option("Column of the classes of a class-conditional model; the only one if left out.")
    num_levels: int | None = option("Levels of brightness of a new model, 2 to 256; 256 if left out.")
    resize: bool = option("Crop the middle of images of another size, and scale it to the model's.", default=False)
    convert: bool = option("Turn images of other modes (RGBA, palettes, grey, ...) into the model's.", default=False)

    def __post_init__(self):
        check_options(self)

    @property
    def given(self) -> bool:
        """Whether any of these options is given."""
        return self != type(self)()


@dataclass
class PairArguments:
    """Columns of a data set of prompts and responses or of conversations, and how a response ends."""

    _argument_group_name = (
        "prompts and responses, conversations (where the data have columns of these names, or others are named)"
    )

    prompt_column: str | None = option(
        'Column with the prompts, "prompt" unless named: strings or lists of messages; they are given, never masked '
        "and not scored."
    )
    response_column: str | None = option(
        'Column with the responses, "completion" or "response" unless named; only they are scored.'
    )
    response_end: str | None = option(
        'Deprecated: --eos under its earlier name, with the values "fill" (padded), "eos" (scored) and "none".',
        choices=list(RESPONSE_ENDS),
    )
    messages_column: str | None = option(
        'Column with conversations, "messages" unless named: lists of messages {role, content}, which the chat '
        "template of the tokenizer writes. Only answers of the assistant are scored."
    )
    chat_template: str | None = option(
        'Chat template in place of the tokenizer\'s, saved with the adapter: a Jinja file, or "chatml".'
    )
    eos: str | None = option(
        'End of a response: "padded" (EOS tokens up to --block_size, or to the end of the block of a block model, all '
        'scored: the model learns how long responses are, and leaves the rest of its canvas empty), "scored" (one EOS) '
        'or "none"; "padded" if left out.',
        choices=list(EOS_POLICIES),
    )
    turns: str = option(
        'Examples of a conversation: "each" (one for each answer, given what was said before) or "together" (one, with '
        "all answers: fewer tokens, but of a model that is not causal an answer sees what was said later).",
        default="each",
        choices=list(TURNS),
    )
    packing: bool = option(
        "Put several examples into a row of --block_size tokens in training; each sees itself alone.", default=False
    )

    def __post_init__(self):
        check_options(self)
        if (self.prompt_column is None) != (self.response_column is None):
            given = {"prompt_column": self.prompt_column, "response_column": self.response_column}
            raise ValueError(f"`prompt_column` and `response_column` must be given together, got {given}.")
        if self.messages_column is not None and self.prompt_column is not None:
            raise ValueError(f"`messages_column` must be left out with `prompt_column`, got {self.messages_column!r}.")
        self._check_end()
        if self.turns not in TURNS:
            raise ValueError(f"`turns` must be one of {TURNS}, got {self.turns!r}.")

    def _check_end(self):
        """Check how a response ends; an earlier name is replaced."""
        if self.response_end is not None:
            if self.response_end not in RESPONSE_ENDS:
                raise ValueError(f"`response_end` must be one of {tuple(RESPONSE_ENDS)}, got {self.response_end!r}.")
            eos = RESPONSE_ENDS[self.response_end]
            if self.eos not in (None, eos):
                raise ValueError(f"`response_end` must be left out with `eos`, got {self.response_end!r}.")
            warnings.warn(
                f"`response_end` is deprecated: write `eos` {eos!r} for {self.response_end!r}.",
                FutureWarning,
                stacklevel=4,
            )
            self.eos, self.response_end = eos, None
        if self.eos not in (None, *EOS_POLICIES):
            raise ValueError(f"`eos` must be one of {EOS_POLICIES}, got {self.eos!r}.")

    @property
    def eos_policy(self) -> str:
        """End of a response, a value of `EOS_POLICIES`."""
        return self.eos or EOS_POLICIES[0]

    @property
    def columns(self) -> dict[str, str]:
        """Names of the columns that are named, by their options."""
        named = {name: getattr(self, name) for name in ("messages_column", "prompt_column", "response_column")}
        return {name: column for name, column in named.items() if column is not None}

    @property
    def given(self) -> bool:
        """Whether the columns of prompts and responses, or of conversations, are named."""
        return bool(self.columns)
