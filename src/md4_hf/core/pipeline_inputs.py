# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Inputs and outputs of the pipeline: arguments to rows of ids, with their checks, and rows to text or images."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers.utils import logging
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from .text_encoding import encode_texts


logger = logging.get_logger(__name__)

GAP = re.compile(r"<mask:([^<>]*)>")
MOST_DIGITS = 9  # of the size of a gap
IDS = ("ids", "seq")  # output types without decoding; the second one is diffusers' word


@dataclass(frozen=True)
class Request:
    """Arguments of a call that determine what is filled in, and the number of rows if nothing is given."""

    prompt: Any
    input_ids: Any
    image: Any
    mask_image: Any
    length: int | None
    gen_length: int | None
    block_length: int | None
    use_cache: bool
    eos_early_stop: bool
    num_unprompted: int

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
    """Inputs and outputs of a model of text: prompts or ids in, ids or text out."""

    output_types: ClassVar[tuple[str, ...]] = ("text",)
    output_name: ClassVar[str] = "texts"
    processor_name: ClassVar[str] = "a tokenizer"

    def __init__(self, config, tokenizer: PreTrainedTokenizerBase | None):
        self.config, self.processor = config, tokenizer

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
        self._check_lengths(request)
        if request.block_length is not None:
            self._check_blocks(request)

    def _check_lengths(self, request: Request):
        length, gen_length, longest = request.length, request.gen_length, self.config.max_position_embeddings
        if length is not None and gen_length is not None:
            raise ValueError(f"Only one of `length` and `gen_length` may be given, got {length} and {gen_length}.")
        name, number = ("length", length) if gen_length is None else ("gen_length", gen_length)
        if number is None:
            return
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
        given = getattr(self.config, "eos_token_id", None)
        given = given if isinstance(given, (list, tuple)) else [given]
        own = getattr(self.processor, "eos_token_id", None)
        return [token for token in dict.fromkeys([own, *given]) if token is not None]

    def rows(self, request: Request) -> list[Tensor]:
        """Ids of each prompt, `(length,)`, with masks appended up to the final length."""
        input_ids = request.input_ids
        if request.prompt is not None:
            prompts = request.prompt if isinstance(request.prompt, list) else [request.prompt]
            longest = max(self.config.max_position_embeddings, request.length or 0, request.gen_length or 0)
            input_ids = self._encode(prompts, longest)
        if input_ids is None:
            input_ids = [[]] * request.num_unprompted
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
        if request.gen_length is not None:
            length = len(row) + request.gen_length
            if request.is_bounded and length > longest:
                raise ValueError(
                    f"`gen_length` must leave room for the prompt: at most {longest - len(row)} of the model's "
                    f"{longest} tokens after {len(row)}, got {request.gen_length}."
                )
        if length is None:
            length = len(row) if (row == mask_token_id).any() else longest
            if len(row) > length:
                raise ValueError(f"`length` must be given to continue a prompt of {len(row)} tokens.")
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


class ImageInputs:
    """Inputs and outputs of a model of images: images with masks or ids in, ids or images out."""

    output_types: ClassVar[tuple[str, ...]] = ("pil", "np", "pt")  # the first is the default
    output_name: ClassVar[str] = "images"
    processor_name: ClassVar[str] = "an image processor"
    eos_token_ids: ClassVar[list[int]] = []

    def __init__(self, config, image_processor: BaseImageProcessor | None):
        self.config, self.processor = config, image_processor

    def check(self, request: Request):
        """Raise a ValueError for arguments that contradict each other."""
        request.check_left_out(("prompt", "length", "gen_length", "block_length"), "text")
        if request.eos_early_stop:
            raise ValueError("`eos_early_stop` must be False: the model is not one of text.")
        if request.image is not None and request.input_ids is not None:
            raise ValueError("Only one of `image` and `input_ids` may be given.")
        if request.image is not None and self.processor is None:
            raise ValueError("`image` needs a pipeline with an image processor; give `input_ids`.")
        if request.image is not None and request.mask_image is None:
            raise ValueError("`mask_image` must be given with `image`: it is the part to fill.")
        if request.mask_image is not None and request.image is None and request.input_ids is None:
            raise ValueError("`mask_image` needs `image` or `input_ids`, of which it is the part to fill.")

    def rows(self, request: Request) -> list[Tensor]:
        """Ids `(channels, height, width)` of each image, with masks where it is to be filled."""
        input_ids, mask_token_id, shape = request.input_ids, self.config.mask_token_id, self.config.sample_shape
        if request.image is not None:
            input_ids = self.processor(request.image, return_tensors="pt")["input_ids"]
        if input_ids is None:
            return list(torch.full((request.num_unprompted, *shape), mask_token_id))
        ids = integers("input_ids", input_ids).cpu()
        ids = ids[None] if ids.dim() == 3 else ids
        if ids.dim() != 4 or not ids.numel() or ids.shape[1] != shape[0]:
            found = tuple(ids.shape)
            raise ValueError(f"`input_ids` must have shape (batch, {shape[0]}, height, width), got {found}.")
        check_ids(ids, self.config)
        if request.mask_image is not None:
            ids = torch.where(fill_mask(request.mask_image, ids.shape), mask_token_id, ids)
        return list(ids)

    def batch(self, rows: list[Tensor], device: torch.device) -> tuple[Tensor, None]:
        """Stack images, which need no padding and no attention mask."""
        return torch.stack(rows).to(device), None

    def decode(self, sequences: Tensor, output_type: str, skip_special_tokens: bool = True):
        """Convert ids `(rows, channels, height, width)` to images, in which masks are grey."""
        grey = self.processor.num_levels // 2
        ids = sequences.masked_fill(sequences == self.config.mask_token_id, grey)
        return self.processor.postprocess(ids.cpu(), output_type=output_type)


def output_type_of(inputs: TextInputs | ImageInputs, output_type: str | None) -> str:
    """Output type of a call, by default the first one of these inputs; a ValueError if they cannot serve it."""
    if output_type is None:
        output_type = inputs.output_types[0]
    choices = (*inputs.output_types, *IDS)
    if not isinstance(output_type, str) or output_type not in choices:
        raise ValueError(f"`output_type` must be one of {choices}, got {output_type!r}.")
    if output_type in IDS:
        return IDS[0]
    if inputs.processor is None:
        raise ValueError(
            f'`output_type="{output_type}"` needs a pipeline with {inputs.processor_name}; ask for "ids".'
        )
    return output_type


class EndOfText:
    """Rows that end early: at the first EOS token behind all that is given, once everything before it is decided.

    The rest of such a row is filled with EOS tokens.

    Args:
        eos_token_ids: Ids that end a row, of which the first one fills the rest.
        sample: `(rows, length)` ids at the start, with masks where tokens are to be drawn.
        attention_mask: `(rows, length)`, 0 for padding, or None without padding.
        mask_token_id: The mask id.
    """

    def __init__(self, eos_token_ids: list[int], sample: Tensor, attention_mask: Tensor | None, mask_token_id: int):
        self.eos_token_ids = torch.tensor(eos_token_ids, device=sample.device)
        self.mask_token_id = mask_token_id
        masked = sample == mask_token_id
        given = ~masked if attention_mask is None else ~masked & (attention_mask == 1)
        given_from_here_on = given.flip(1).cumsum(dim=1).flip(1) > 0
        self.is_free = masked & ~given_from_here_on

    def reached(self, sample: Tensor) -> Tensor:
        """Rows `(rows,)` of ids `(rows, length)` that have ended."""
        return self._ends(sample).any(dim=1)

    def filled(self, sample: Tensor) -> Tensor:
        """Ids `(rows, length)` with EOS tokens behind the end of the rows that have ended."""
        return torch.where(self._behind(sample), self.eos_token_ids[0], sample)

    def cut(self, sample: Tensor, sequences: list[Tensor]) -> list[Tensor]:
        """Sequences of the rows without what lies behind their ends."""
        behind = self._behind(sample).sum(dim=1).tolist()
        return [ids[: len(ids) - count] for ids, count in zip(sequences, behind, strict=True)]

    def _ends(self, sample: Tensor) -> Tensor:
        """Booleans `(rows, length)`: EOS tokens that are drawn, with no mask before them."""
        is_decided = (sample == self.mask_token_id).cumsum(dim=1) == 0
        return torch.isin(sample, self.eos_token_ids) & self.is_free & is_decided

    def _behind(self, sample: Tensor) -> Tensor:
        """Booleans `(rows, length)`: positions behind the first end of their row."""
        ends = self._ends(sample).long()
        return self.is_free & (ends.cumsum(dim=1) > ends)


def check_ids(ids: Tensor, config):
    """Raise a ValueError for ids outside the model's vocabulary."""
    size = config.vocab_size
    if ids.numel() and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(f"`input_ids` must be in [0, {size}), got values from {ids.min()} to {ids.max()}.")


def id_rows(input_ids) -> list[Tensor]:
    """Split a tensor or list of lists of ids into rows `(length,)`; a tensor `(length,)` is one row."""
    if isinstance(input_ids, Tensor) and input_ids.dim() == 1:
        input_ids = input_ids[None]
    is_rows = input_ids.dim() == 2 if isinstance(input_ids, Tensor) else isinstance(input_ids, (list, tuple))
    rows = [integers("input_ids", row).cpu() for row in input_ids] if is_rows else []
    if not is_rows or any(row.dim() != 1 for row in rows):
        raise ValueError(f"`input_ids` must have shape (batch, length) or be a list of lists, got {input_ids!r}.")
    return rows


def fill_mask(mask_image, shape: torch.Size) -> Tensor:
    """Booleans that broadcast with images of this shape and are true where these are to be filled."""
    given = mask_image if isinstance(mask_image, (list, tuple)) else [mask_image]
    masks = [one_fill_mask(mask) for mask in given]
    if not masks or len({mask.shape[1:] for mask in masks}) != 1:
        raise ValueError(f"`mask_image` must hold masks of one size, got {[tuple(mask.shape) for mask in masks]}.")
    mask = torch.cat(masks)
    fits = mask.shape[2:] == shape[2:] and mask.shape[1] in (1, shape[1])
    if not fits or (len(mask) != shape[0] and 1 not in (len(mask), shape[0])):
        raise ValueError(
            f"`mask_image` must have shape {tuple(shape[2:])}, (batch, height, width) or (batch, channels, height, "
            f"width) for images of shape {tuple(shape)}, got {tuple(mask.shape)}."
        )
    return mask


def one_fill_mask(mask_image) -> Tensor:
    """Convert a picture, array or tensor to booleans `(batch, channels, height, width)`, with axes of 1 if missing."""
    if isinstance(mask_image, PIL.Image.Image):
        mask_image = mask_image.convert("L")
    elif not isinstance(mask_image, (np.ndarray, Tensor)):
        raise ValueError(f"`mask_image` must be pictures, arrays or tensors, got {type(mask_image).__name__}.")
    try:
        mask = mask_image.cpu() if isinstance(mask_image, Tensor) else torch.from_numpy(np.array(mask_image))
    except TypeError as error:
        raise ValueError(f"`mask_image` must be boolean, 8-bit or numbers in [0, 1]: {error}") from error
    if mask.dim() not in (2, 3, 4):
        raise ValueError(f"`mask_image` must have 2 to 4 axes, got shape {tuple(mask.shape)}.")
    if mask.dtype == torch.uint8:
        if mask.numel() and mask.max() == 1:
            raise ValueError("`mask_image` must have 255 for white where it is 8-bit, got 1 as the largest value.")
        mask = mask / 255
    if mask.dtype != torch.bool:
        if not (mask.dtype.is_floating_point and ((mask >= 0.0) & (mask <= 1.0)).all()):
            raise ValueError(
                f"`mask_image` must be boolean, 8-bit or numbers in [0, 1], got other values of {mask.dtype}."
            )
        mask = mask >= 0.5
    return mask[None, None] if mask.dim() == 2 else mask[:, None] if mask.dim() == 3 else mask


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


def integers(name: str, values) -> Tensor:
    """Convert a number, list or tensor of integers to an int64 tensor; other numbers are not rounded."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be integers, got {values!r}.") from error
    if tensor.numel() and (tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool):
        raise ValueError(f"`{name}` must be integers, got {values!r}.")
    return tensor.long()


def row_generators(generator: torch.Generator | list[torch.Generator] | None, num_rows: int) -> list[torch.Generator]:
    """Create one generator per row, seeded by the row's own of a list, or in turn by a single one (or torch's)."""
    given = generator if isinstance(generator, list) else [generator]
    if not all(x is None or isinstance(x, torch.Generator) for x in given):
        raise ValueError(f"`generator` must be a torch.Generator, a list of them or None, got {generator!r}.")
    if not isinstance(generator, list):
        given = [generator] * num_rows
    elif len(generator) != num_rows:
        raise ValueError(f"`generator` must hold one generator per row, {num_rows}, got {len(generator)}.")
    # A list is seeded from too, so that a list of one generator gives the same draws as that generator alone.
    return reseed_all(given)


def reseed_all(generators: list) -> list[torch.Generator]:
    """Seed a fresh generator from each: a row uses only its first numbers, so that padding shifts no later draws."""
    return [reseed(generator) for generator in generators]


def reseed(generator: torch.Generator | None) -> torch.Generator:
    """Create a generator seeded by one draw from the given one (or from torch's own)."""
    device = generator.device if generator is not None else "cpu"
    return torch.Generator("cpu").manual_seed(torch.randint(2**62, (), generator=generator, device=device).item())
