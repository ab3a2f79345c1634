# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Guidance: classifier-free by a class or by a prompt, and by a classifier of the sequence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .input_checks import integers


Classifier: TypeAlias = Callable[[Tensor, Tensor], Tensor]
METHODS = ("exact", "first_order")
SEQUENCES_AT_A_TIME = 2**22  # entries of the one-hot sequences that a classifier is given at a time


class Guidance:
    """Inputs of the denoiser for each row, and the logits to draw from: here one copy of each row, and its logits.

    Args:
        class_labels: `(rows,)` labels, or None for a model without classes.
    """

    num_copies = 1

    def __init__(self, class_labels: Tensor | None):
        self.class_labels = class_labels

    def copies(self, x: Tensor) -> Tensor:
        """Entries `(n, ...)` of rows for each of their copies, `(num_copies * n, ...)`."""
        return torch.cat([x] * self.num_copies) if self.num_copies > 1 else x

    def ids(self, sample: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """Ids `(num_copies * n, ...)` that the denoiser sees, for ids `(n, ...)` of rows `(n,)`.

        `columns` `(n, tokens)` are those of the ids, if they are not all of the row.
        """
        return self.copies(sample)

    def joined(self, logits: Tensor) -> Tensor:
        """Logits of the rows from those of their copies."""
        return logits


class ClassifierFreeGuidance(Guidance):
    """Logits unconditional + scale * (conditional - unconditional), from a copy that sees the condition and one not.

    At scale 0 there is the unconditional copy alone (Ho and Salimans, arXiv:2207.12598). Subclasses say what a copy
    without the condition is.

    Args:
        scale: The scale, >= 0.
        class_labels: As in `Guidance`.
    """

    def __init__(self, scale: float, class_labels: Tensor | None):
        super().__init__(class_labels)
        self.scale, self.num_copies = scale, 1 if scale == 0.0 else 2

    def joined(self, logits: Tensor) -> Tensor:
        """Logits of the rows from those of their copies."""
        if self.num_copies == 1:
            return logits
        conditional, unconditional = logits.chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)


class ClassGuidance(ClassifierFreeGuidance):
    """Guidance by a class: the copy without it has the label that stands for none."""

    def __init__(self, scale: float, class_labels: Tensor, null_class: int):
        no_class = torch.full_like(class_labels, null_class)
        super().__init__(scale, no_class if scale == 0.0 else torch.cat([class_labels, no_class]))


class PromptGuidance(ClassifierFreeGuidance):
    """Guidance by what is given of a row: the copy without it sees masks there (LLaDA, SMDM).

    Args:
        scale: The scale, >= 0.
        class_labels: As in `Guidance`.
        given: `(rows, ...)` booleans: positions that are given.
        mask_token_id: The mask id.
    """

    def __init__(self, scale: float, class_labels: Tensor | None, given: Tensor, mask_token_id: int):
        super().__init__(scale, None)
        self.class_labels = None if class_labels is None else self.copies(class_labels)
        self.given, self.mask_token_id = given, mask_token_id

    def ids(self, sample: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """Ids of both copies, see `Guidance.ids`; in the second one what is given is masked."""
        given = self.given[rows]
        if columns is not None:
            given = given.gather(1, columns.clamp(max=given.shape[1] - 1))
        without = sample.masked_fill(given, self.mask_token_id)
        return without if self.num_copies == 1 else torch.cat([sample, without])


@dataclass(frozen=True)
class ClassifierGuidance:
    """Guidance by a classifier p(y | x_t): token j is drawn in proportion to mu_j p(y | x_t with j)^scale.

    Which position is unmasked when does not depend on the data in masked diffusion, so that with scale 1 and an exact
    denoiser and classifier, one token at a time, samples have the distribution p(x | y) (Nisonoff et al.,
    arXiv:2406.01572; Schiff et al., arXiv:2412.10193).

    Args:
        classifier: Function of one-hot sequences `(n, ..., vocab)` float32, masks included, and times `(n,)`, that
            returns log p(y | x_t) `(n,)`.
        scale: The exponent, >= 0 and finite.
        method: "exact" asks the classifier for each token at each position that is unmasked, vocab calls of a sequence
            per position, for small vocabularies. "first_order" takes the gradient at the sequence as it is, one call.
        mask_token_id: The mask id.
    """

    classifier: Classifier
    scale: float
    method: str
    mask_token_id: int

    def __post_init__(self):
        if not callable(self.classifier):
            raise ValueError(f"`classifier` must be a function of sequences and times, got {self.classifier!r}.")
        if not (isinstance(self.scale, Real) and 0.0 <= self.scale < math.inf):
            raise ValueError(f"`classifier_scale` must be finite and >= 0, got {self.scale!r}.")
        if self.method not in METHODS:
            raise ValueError(f"`classifier_method` must be one of {sorted(METHODS)}, got {self.method!r}.")

    def __call__(self, logits: Tensor, sample: Tensor, selected: Tensor, t: Tensor) -> Tensor:
        """Guided logits `(selected, vocab)` at the booleans of ids `(n, ...)`, at times `(n,)`."""
        change = self._exact if self.method == "exact" else self._first_order
        one_hot = torch.nn.functional.one_hot(sample, logits.shape[-1]).float()
        suppressed = logits == torch.finfo(logits.dtype).min
        guided = logits + self.scale * change(one_hot, selected, t).to(logits)
        return torch.where(suppressed, logits, guided)

    def _exact(self, one_hot: Tensor, selected: Tensor, t: Tensor) -> Tensor:
        """log p(y | x with token j at the position), `(selected, vocab)`."""
        vocab_size, row = one_hot.shape[-1], selected.nonzero()[:, 0]
        place = selected.flatten(1).nonzero()[:, 1]
        of_rows = one_hot.flatten(1, -2)
        size = max(SEQUENCES_AT_A_TIME // (of_rows[0].numel() * vocab_size), 1)
        values = []
        for part in torch.arange(len(row), device=row.device).split(size):
            changed = of_rows[row[part], None].repeat(1, vocab_size, 1, 1)  # (part, j, tokens, vocab)
            eye = torch.eye(vocab_size, device=one_hot.device).expand(len(part), -1, -1)
            changed[torch.arange(len(part), device=row.device), :, place[part]] = eye
            sequences = changed.view(-1, *one_hot.shape[1:])
            values.append(self._asked(sequences, t[row[part]].repeat_interleave(vocab_size)).view(-1, vocab_size))
        return torch.cat(values) if values else one_hot.new_empty(0, vocab_size)

    def _first_order(self, one_hot: Tensor, selected: Tensor, t: Tensor) -> Tensor:
        """Change of log p(y | x) to first order when the mask becomes token j, `(selected, vocab)`."""
        with torch.enable_grad():
            one_hot = one_hot.requires_grad_()
            (gradient,) = torch.autograd.grad(self._asked(one_hot, t).sum(), one_hot)
        gradient = gradient[selected]
        return gradient - gradient[:, self.mask_token_id, None]

    def _asked(self, one_hot: Tensor, t: Tensor) -> Tensor:
        value = self.classifier(one_hot, t)
        if not (isinstance(value, Tensor) and value.shape == t.shape):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`classifier` must return a tensor of shape ({len(t)},), one number a row, got {found}.")
        return value


def null_class_of(config: Any) -> int | None:
    """Label that stands for no class; None if the model has none."""
    return getattr(config, "null_class", None)


def class_labels_of(config: Any, class_labels: Any) -> Tensor | None:
    """Class labels of a call `(labels,)`, by default the null class; None for a model without classes.

    A ValueError for labels out of range, for a model without classes, or if there is no default.
    """
    num_classes, null_class = getattr(config, "num_classes", None), null_class_of(config)
    if class_labels is None:
        if num_classes is not None and null_class is None:
            raise ValueError(f"`class_labels` must be given: the model has {num_classes} classes.")
        return None if null_class is None else torch.tensor([null_class])
    if num_classes is None:
        raise ValueError("`class_labels` must be None: the model is not class-conditional.")
    labels = integers("class_labels", class_labels).reshape(-1)
    if not (len(labels) and 0 <= labels.min() <= labels.max() < num_classes):
        raise ValueError(f"`class_labels` must be in [0, {num_classes}), got {labels.tolist()}.")
    return labels


def check_guidance(config: Any, scale: float, has_classes: bool, has_prompt: bool):
    """Raise a ValueError for a scale out of range, and for one that needs a condition that is not given."""
    if not (isinstance(scale, Real) and 0.0 <= scale < math.inf):
        raise ValueError(f"`guidance_scale` must be finite and >= 0, got {scale!r}.")
    if scale != 1.0 and has_classes and null_class_of(config) is None:
        raise ValueError(
            f"`guidance_scale` must be 1 for `class_labels` of a model without a null class, got {scale}."
        )
    if scale != 1.0 and not has_classes and not has_prompt:
        raise ValueError(f"`guidance_scale` must be 1 without `class_labels` and without a prompt, got {scale}.")


def make_guidance(config: Any, scale: float, labels: Tensor | None, by_class: bool, given: Tensor) -> Guidance:
    """Guidance of a call, by its class or by what is `given` `(rows, ...)`.

    Args:
        config: The model's configuration.
        scale: The scale, >= 0.
        labels: `(rows,)` labels, or None for a model without classes.
        by_class: Whether the condition is the class.
        given: `(rows, ...)` booleans: positions that are given.
    """
    if scale == 1.0:
        return Guidance(labels)
    if by_class:
        return ClassGuidance(scale, labels, null_class_of(config))
    return PromptGuidance(scale, labels, given, config.mask_token_id)
