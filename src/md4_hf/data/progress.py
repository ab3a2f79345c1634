# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""One labelled progress bar in place of those of `datasets`, which call every part a split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tqdm.auto import tqdm


_BAR: ContextVar[tqdm | None] = ContextVar("bar", default=None)


@contextlib.contextmanager
def progress_bar(label: str, unit: str) -> Iterator[None]:
    """Show a labelled bar for what `advance` counts within the context; none where bars are disabled."""
    if are_progress_bars_disabled():
        yield
        return
    bar = tqdm(desc=label, unit=f" {unit}", delay=0.1)  # what is in the cache takes no time
    token = _BAR.set(bar)
    try:
        with without_bars():
            yield
    finally:
        _BAR.reset(token)
        bar.close()


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Show no bar of `datasets` within the context."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def advance(count: int = 1):
    """Count what is done, on the bar of the context if there is one."""
    if (bar := _BAR.get()) is not None:
        bar.update(count)
