# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Progress bars: on a terminal only, and without those of other libraries where they would disturb."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


def shows_bars() -> bool:
    """Whether bars are drawn: they would fill files and pipes with control characters."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Draw no bars of transformers and datasets, where imported, within the context unless a terminal shows them."""
    with contextlib.ExitStack() as stack:
        if not shows_bars():
            if "transformers" in sys.modules:
                stack.enter_context(without_progress_bars())
            datasets = sys.modules.get("datasets")
            if datasets is not None and not datasets.are_progress_bars_disabled():
                datasets.disable_progress_bars()
                stack.callback(datasets.enable_progress_bars)
        yield


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Turn off transformers' progress bars within the context."""
    from transformers.utils import logging  # late: some commands do without transformers

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
