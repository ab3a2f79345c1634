# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""What the sampling loops of baselines have in common: arguments that only masked diffusion has a use for."""

from __future__ import annotations

from typing import Any, ClassVar

from .denoising import Denoising
from .reverse_steps import SAMPLER_OPTIONS


class BaselineDecoding(Denoising):
    """Sampling loop of a call of a baseline; the scheduler only says how tokens are drawn."""

    kind: ClassVar[str] = "a baseline"
    refused: ClassVar[tuple[str, ...]] = ("classifier",)  # options, besides those of orders and blocks
    shows_steps = False

    @classmethod
    def check(cls, request: Any, options: Any):
        """Raise a ValueError for arguments without a meaning for this kind of model."""
        given = {name: options.sampler.get(name) for name in SAMPLER_OPTIONS} | {"block_length": request.block_length}
        given |= {name: getattr(options, name) for name in cls.refused}
        given["use_cache"] = None if request.use_cache is True else request.use_cache
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"`{name}` must be left out for {cls.kind}, got {value!r}.")
        if options.guidance_scale != 1.0 and options.class_labels is None:
            raise ValueError(
                f"`guidance_scale` must be 1 without `class_labels` for {cls.kind}, got {options.guidance_scale!r}."
            )
