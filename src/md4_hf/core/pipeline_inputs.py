# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Inputs and outputs of a sampler of text: arguments to rows of ids, with their checks, and rows to text."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .input_checks import integers
from .text_encoding import encode_texts
from .text_ends import EndOfText, StopStrings


logger = logging.get_logger(__name__)

GAP = re.compile(r"<mask:([^<>]*)>")
MOST_DIGITS = 9  # of the size of a gap


@dataclass(frozen=True)
class Request:
    """Arguments of a call that determine what is filled in."""

    prompt: Any = None
    input_ids: Any = None
    image: Any = None
    mask_image: Any = None
    length: int | None = None
    gen_length: int | None = None
    max_new_tokens: int | None = None
    block_length: int | None = None
    use_cache: bool = True
    eos_early_stop: bool = False
    stop_strings: str | list[str] | None = None
    streamer: Any = None
    length_name: str = "length"  # of the argument that errors ask for

    @property
    def is_given(self) -> bool:
        """Whether there is a prompt or an image."""
        return not (self.prompt is None and self.input_ids is None and self.image is None)

    @property
    def lengths(self) -> dict[str, int]:
        """Arguments that say how long rows become, by name: at most one may be given."""
        names = ("length", "gen_length", "max_new_tokens")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def new_tokens(self) -> int | None:
        """Number of tokens after each prompt, if it is given."""
        return self.gen_length if self.max_new_tokens is None else self.max_new_tokens

    @property
    def is_bounded(self) -> bool:
        """Whether the denoiser has to see all of a row at once."""
        return self.block_length is None or not self.use_cache

    def check_left_out(self, names: tuple[str, ...], kind: str):
        """Raise a ValueError if one of these arguments, which are for a model of another kind, is given."""
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` must be None: the model is not one of {kind}.")


class TextInputs:
    """Inputs and outputs of a model of text: prompts or ids in, ids or text out.

    Args:
        config: The model's configuration.
        tokenizer: For text in and out, if there is any.
        eos_token_id: Id or ids that end a text, in place of the tokenizer's and the configuration's.
    """

    output_types: ClassVar[tuple[str, ...]] = ("text",)
    output_name: ClassVar[str] = "texts"
    processor_name: ClassVar[str] = "a tokenizer"

    def __init__(
        self,
        config,
        tokenizer: PreTrainedTokenizerBase | None = None,
        eos_token_id: int | list[int] | None = None,
    ):
        self.config, self.processor = config, tokenizer
        self._eos_token_ids = None if eos_token_id is None else checked_ids("eos_token_id", eos_token_id, config)

    def check(self, request: Request):
        """Raise a ValueError for arguments that contradict each other, or that the model cannot serve."""
        request.check_left_out(("image", "mask_image"), "images")
        if request.prompt is not None and request.input_ids is not None:
            raise ValueError("Only one of `prompt` and `input_ids` may be given.")
        if request.prompt is not None and self.processor is None:
            raise ValueError("`prompt` needs a pipeline with a tokenizer; give `input_ids`.")
        for name in ("use_cache", "eos_early_stop"):
            if not isinstance(getattr(request, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {getattr(request, name)!r}.")
        if request.eos_early_stop and not self.eos_token_ids:
            raise ValueError("`eos_early_stop` needs an EOS token, of the tokenizer or in the model's config.")
        self._check_stop_strings(request.stop_strings)
        self._check_lengths(request)
        if request.block_length is not None:
            self._check_blocks(request)

    def _check_stop_strings(self, strings: str | list[str] | None):
        if strings is None:
            return
        found = [strings] if isinstance(strings, str) else strings
        if not (isinstance(found, (list, tuple)) and found and all(isinstance(x, str) and x for x in found)):
            raise ValueError(f"`stop_strings` must be one or more strings that are not empty, got {strings!r}.")
        if not callable(getattr(self.processor, "decode", None)):
            raise ValueError("`stop_strings` need a tokenizer.")

    def _check_lengths(self, request: Request):
        lengths, longest = request.lengths, self.config.max_position_embeddings
        if len(lengths) > 1:
            names, values = (" and ".join(map(str, x)) for x in ((f"`{name}`" for name in lengths), lengths.values()))
            raise ValueError(f"Only one of {names} may be given, got {values}.")
        if not lengths:
            return
        ((name, number),) = lengths.items()
        is_integer = isinstance(number, int) and not isinstance(number, bool)
        if request.is_bounded and not (is_integer and 1 <= number <= longest):
            where = "without `block_length`" if request.block_length is None else "with `use_cache=False`"
            raise ValueError(f"`{name}` must be in [1, {longest}] (the model's length) {where}, got {number!r}.")
        if not (is_integer and number >= 1):
            raise ValueError(f"`{name}` must be >= 1, got {number!r}.")

    def _check_blocks(self, request: Request):
        block_length, longest, config = request.block_length, self.config.max_position_embeddings, self.config
        most = longest - 1 if request.use_cache else longest
        if not (isinstance(block_length, int) and 1 <= block_length <= most):
            interval = f"[1, {longest})" if request.use_cache else f"[1, {longest}]"
            raise ValueError(f"`block_length` must be in {interval}, got {block_length!r}.")
        if not getattr(config, "time_conditioning", True) or getattr(config, "block_size", None) is not None:
            return
        if request.use_cache:
            raise ValueError(
                "`block_length` needs a model without `time_conditioning` (`config.time_conditioning=False`), or "
                "`use_cache=False`: the keys cached at one time are wrong at another."
            )
        if getattr(config, "learn_masking_schedule", False):
            raise ValueError(
                "`block_length` needs a model without `time_conditioning` where the schedule is learned (GenMD4): no "
                "time tells how much of a row is masked."
            )

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end a text: the tokenizer's, and those of the model's configuration; none if there are none."""
        if self._eos_token_ids is not None:
            return self._eos_token_ids
        given = getattr(self.config, "eos_token_id", None)
        given = given if isinstance(given, (list, tuple)) else [given]
        own = getattr(self.processor, "eos_token_id", None)
        return [token for token in dict.fromkeys([own, *given]) if token is not None]

    def end_of_text(self, request: Request, sample: Tensor, attention_mask: Tensor | None) -> EndOfText | None:
        """Where texts end, for ids and mask `(rows, length)` at the start; None if they are of full length."""
        strings, eos_token_ids = request.stop_strings, self.eos_token_ids if request.eos_early_stop else []
        if strings is None and not request.eos_early_stop:
            return None
        stop = None
        if strings is not None and self.processor is not None:
            stop = StopStrings([strings] if isinstance(strings, str) else [*strings], self.processor)
        config = self.config
        padding = padding_id(config, *self.eos_token_ids, getattr(config, "pad_token_id", None))
        return EndOfText(sample, attention_mask, config.mask_token_id, padding, eos_token_ids, stop)

    def rows(self, request: Request, num_unprompted: int = 1) -> list[Tensor]:
        """Ids of each prompt, `(length,)`, with masks appended up to the final length.

        Without a prompt there are `num_unprompted` rows.
        """
        input_ids = request.input_ids
        if request.prompt is not None:
            prompts = request.prompt if isinstance(request.prompt, list) else [request.prompt]
            longest = max([self.config.max_position_embeddings, *request.lengths.values()])
            input_ids = self._encode(prompts, longest)
        if input_ids is None:
            input_ids = [[]] * num_unprompted
        rows = id_rows(input_ids)
        if not rows:
            raise ValueError("`prompt` or `input_ids` must hold at least one row, got none.")
        return [self._extend(row, request) for row in rows]

    def _encode(self, prompts: list[str], longest: int) -> list[list[int]]:
        texts = [self._checked_text(text, longest) for text in prompts]
        rows = encode_texts(self.processor, texts, reads_masks=True)
        for text, ids in zip(texts, rows, strict=True):
            decoded = self.processor.decode(ids, skip_special_tokens=False)
            if decoded != text:
                warn_once(f"The tokenizer cannot represent the prompt exactly. The pipeline uses {decoded!r} instead.")
        return rows

    def _checked_text(self, text: str, longest: int) -> str:
        """Text of a prompt, with a mask token for each of its gaps."""
        if not isinstance(text, str):
            raise ValueError(f"`prompt` must be a string or a list of strings, got {type(text).__name__}.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"`prompt` must be Unicode text without lone surrogates, got {text!r}.")
        return expand_gaps(text, self.processor.mask_token, longest)

    def _extend(self, row: Tensor, request: Request) -> Tensor:
        mask_token_id, longest = self.config.mask_token_id, self.config.max_position_embeddings
        check_ids(row, self.config)
        if request.is_bounded and len(row) > longest:
            raise ValueError(f"A prompt must not be longer than the model's {longest} tokens, got {len(row)}.")
        length = request.length
        if request.new_tokens is not None:
            length = len(row) + request.new_tokens
            if request.is_bounded and length > longest:
                raise ValueError(
                    f"`{next(iter(request.lengths))}` must leave room for the prompt: at most {longest - len(row)} of "
                    f"the model's {longest} tokens after {len(row)}, got {request.new_tokens}."
                )
        if length is None:
            length = len(row) if (row == mask_token_id).any() else longest
            if len(row) > length:
                raise ValueError(f"`{request.length_name}` must be given to continue a prompt of {len(row)} tokens.")
        if len(row) > length:
            raise ValueError(f"`length` must be at least the prompt's {len(row)} tokens, got {length}.")
        return torch.cat([row, row.new_full((length - len(row),), mask_token_id)])

    def batch(self, rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Pad rows to the longest, with any token but the mask; the attention mask is None if no row is padded."""
        padding = 0 if self.config.mask_token_id != 0 else 1
        sample = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(row) for row in rows])
        attention_mask = (torch.arange(sample.shape[1]) < lengths[:, None]).long()
        return sample.to(device), None if attention_mask.all() else attention_mask.to(device)

    def decode(self, sequences: list[Tensor], output_type: str, skip_special_tokens: bool = True) -> list[str]:
        """Decode rows to texts."""
        return [self.processor.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]


def check_ids(ids: Tensor, config):
    """Raise a ValueError for ids outside the model's vocabulary."""
    size = config.vocab_size
    if ids.numel() and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(f"`input_ids` must be in [0, {size}), got values from {ids.min()} to {ids.max()}.")


def padding_id(config, *candidates: int | None) -> int:
    """Id behind the end of a text: the first candidate that is not None, else any but the mask."""
    return next((token for token in candidates if token is not None), 0 if config.mask_token_id != 0 else 1)


def checked_ids(name: str, ids: int | list[int], config) -> list[int]:
    """One or more ids as a list; a ValueError unless they are in the model's vocabulary."""
    values = integers(name, ids).reshape(-1).tolist()
    if not values or not 0 <= min(values) <= max(values) < config.vocab_size:
        raise ValueError(f"`{name}` must be one or more ids in [0, {config.vocab_size}), got {ids!r}.")
    return values


def id_rows(input_ids) -> list[Tensor]:
    """Split a tensor or list of lists of ids into rows `(length,)`; a tensor `(length,)` is one row."""
    if isinstance(input_ids, Tensor) and input_ids.dim() == 1:
        input_ids = input_ids[None]
    is_rows = input_ids.dim() == 2 if isinstance(input_ids, Tensor) else isinstance(input_ids, (list, tuple))
    rows = [integers("input_ids", row).cpu() for row in input_ids] if is_rows else []
    if not is_rows or any(row.dim() != 1 for row in rows):
        raise ValueError(f"`input_ids` must have shape (batch, length) or be a list of lists, got {input_ids!r}.")
    return rows


@functools.cache
def warn_once(message: str):
    """Log a warning, unless it has been logged before: a prompt may come in many calls."""
    logger.warning(message)


def expand_gaps(text: str, mask_token: str, longest: int) -> str:
    """Write each gap `<mask:n>` of a prompt as n mask tokens; a ValueError unless all n >= 1, and `longest` in all."""
    sizes = GAP.findall(text)
    for size in sizes:
        if not (size.isdecimal() and (len(size) > MOST_DIGITS or int(size) >= 1)):
            raise ValueError(f"`prompt` must have gaps <mask:n> with n >= 1, such as <mask:12>, got <mask:{size}>.")
    if any(len(size) > MOST_DIGITS for size in sizes) or sum(map(int, sizes)) > longest:
        raise ValueError(f"`prompt` must have gaps of at most {longest} tokens in all, the length, got {text!r}.")
    return GAP.sub(lambda gap: mask_token * int(gap.group(1)), text)
