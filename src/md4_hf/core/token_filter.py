# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Changes of a denoiser's logits before tokens are drawn: a caller's processors, and ids that are never drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from .input_checks import integers
from .masked_diffusion import is_unused


LogitsProcessing: TypeAlias = Callable[[Tensor, Tensor], Tensor] | Iterable[Callable[[Tensor, Tensor], Tensor]]


class TokenFilter:
    """The one place between a denoiser and the draws where logits are changed and ids suppressed.

    The mask and ids without a token are suppressed where the model does not do so itself, or where a processor may
    bring them back.

    Args:
        model: The denoiser, with `config.vocab_size`, `config.mask_token_id` and, if there are any,
            `config.unused_token_ids`. MD4's own models say with `suppresses_unused_ids` that they suppress those.
        suppress_tokens: Ids in [0, vocab_size) that are never drawn; some other token must be left.
        logits_processor: A callable of `(input_ids, logits)`, or a list of them: a row of `(selected, tokens)` ids for
            each row of `(selected, vocab)` float32 logits. Its result has the shape of the logits.

    Raises:
        ValueError: For ids out of range, if no token is left to draw, and for processors that cannot be called.
    """

    def __init__(
        self, model, suppress_tokens: list[int] | None = None, logits_processor: LogitsProcessing | None = None
    ):
        self.processor = _as_one(logits_processor)
        suppressed = _never_drawn(model.config)
        given = _checked_ids(suppress_tokens, suppressed)
        is_complete = not len(given) and self.processor is None and getattr(model, "suppresses_unused_ids", False)
        if not is_complete:
            suppressed[given] = True
        self.ids = torch.empty(0, dtype=torch.long) if is_complete else suppressed.nonzero().squeeze(1)

    def __call__(self, logits: Tensor, input_ids: Callable[[], Tensor]) -> Tensor:
        """Logits `(selected, vocab)` to draw from; `input_ids` makes the ids that the processors see."""
        if self.processor is None:
            return self.suppress(logits)
        logits = self.suppress(logits.float())
        processed = self.processor(input_ids(), logits)
        if not (isinstance(processed, Tensor) and processed.shape == logits.shape):
            found = tuple(processed.shape) if isinstance(processed, Tensor) else type(processed).__name__
            raise ValueError(f"`logits_processor` must return logits of shape {tuple(logits.shape)}, got {found}.")
        return self.suppress(processed)

    def suppress(self, logits: Tensor) -> Tensor:
        """Logits `(..., vocab)` with those of the ids that are never drawn at finfo.min."""
        if not len(self.ids):
            return logits
        self.ids = self.ids.to(logits.device)
        return logits.index_fill(-1, self.ids, torch.finfo(logits.dtype).min)


def _never_drawn(config) -> Tensor:
    """Booleans `(vocab,)` that are true at the mask and at ids without a token."""
    suppressed = is_unused(config.vocab_size, getattr(config, "unused_token_ids", None) or [], torch.device("cpu"))
    suppressed[config.mask_token_id] = True
    return suppressed


def _checked_ids(suppress_tokens: list[int] | None, never_drawn: Tensor) -> Tensor:
    """The given ids as an int64 tensor; a ValueError unless they lie in the vocabulary and leave a token to draw."""
    rule = f"`suppress_tokens` must be a list of ids in [0, {len(never_drawn)})"
    try:
        ids = integers("suppress_tokens", [] if suppress_tokens is None else suppress_tokens).cpu()
    except ValueError as error:
        raise ValueError(f"{rule}, got {suppress_tokens!r}.") from error
    if not ids.numel():
        return torch.empty(0, dtype=torch.long)
    if ids.dim() != 1 or not 0 <= ids.min() <= ids.max() < len(never_drawn):
        raise ValueError(f"{rule}, got {suppress_tokens!r}.")
    if never_drawn.index_fill(0, ids, True).all():
        raise ValueError(f"`suppress_tokens` must leave a token to draw, got all {(~never_drawn).sum()} of them.")
    return ids


def _as_one(logits_processor: LogitsProcessing | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """One callable for a processor or a list of them, None for none."""
    if isinstance(logits_processor, (list, tuple)) and all(map(callable, logits_processor)):
        return LogitsProcessorList(logits_processor) if logits_processor else None
    if logits_processor is not None and not callable(logits_processor):
        raise ValueError(
            f"`logits_processor` must be a callable of (input_ids, logits) or a list of them, got {logits_processor!r}."
        )
    return logits_processor
