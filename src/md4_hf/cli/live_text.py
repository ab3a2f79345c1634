# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Text on a terminal that is redrawn while it is unmasked: what is decided, and behind it the draft with its masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import TextIO

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..core.text_encoding import decode_continuation
from ..utils.text_rows import len_of_rows, num_rows, start_of_last_row, visible


CLEAR_BELOW, UP, DIM, NORMAL = "\x1b[J", "\x1b[{}A", "\x1b[2m", "\x1b[0m"
MASK, PLAIN_MASK = "░", "_"  # the latter where the terminal's encoding lacks the former
UNFINISHED = "\ufffd"  # a character of which more bytes are to come


class LiveText:
    """A streamer for the pipeline that shows an answer on a terminal.

    Rows of the terminal that are full and decided stay; all below is drawn anew with each step. A draft is shown as far
    as it fits on the screen.

    Args:
        tokenizer: The tokenizer.
        stream: The terminal.
        end: Text with which an answer ends; it is not shown, nor is what follows.
        size: Function that returns the terminal's columns and lines.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stream: TextIO,
        end: str = "",
        size: Callable[[], tuple[int, int]] = shutil.get_terminal_size,
    ):
        self.tokenizer, self.stream, self.end_mark, self.size = tokenizer, stream, end, size
        encoding = getattr(stream, "encoding", None) or "ascii"
        self.mask = MASK if MASK.encode(encoding, "ignore") else PLAIN_MASK
        self.ids: list[int] | None = None  # of the answer, as far as it is decided; None before the prompt
        self.num_kept = 0  # characters of the answer that are drawn no more
        self.num_rows = 0  # rows of the terminal that are drawn anew, above the cursor's

    def put(self, ids: Tensor):
        """Take the prompt, which is not shown, and then decided ids."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += ids.reshape(-1).tolist()
        self._show(self._text(self.ids), "")

    def put_draft(self, ids: Tensor):
        """Show ids behind the decided ones, masks among them."""
        decided = self.ids or []
        text = self._text(decided)
        self._show(text, "" if self._has_ended(decided) else self._draft(ids.reshape(-1).tolist()))

    def end(self):
        """Show what is decided, without a draft."""
        self._show(self._text(self.ids or []), "")

    def finish(self, answer: str):
        """Show the answer in its final form, and end the line."""
        self._show(answer, "")
        self.stream.write("\n")
        self.stream.flush()

    def _text(self, ids: Sequence[int]) -> str:
        text = decode_continuation(self.tokenizer, ids, skip_special_tokens=True).rstrip(UNFINISHED)
        return text.partition(self.end_mark)[0] if self.end_mark else text

    def _has_ended(self, ids: list[int]) -> bool:
        """Whether the decided ids have an end, behind which there is no draft to see."""
        whole = decode_continuation(self.tokenizer, ids, skip_special_tokens=False)
        return self.tokenizer.eos_token_id in ids or bool(self.end_mark and self.end_mark in whole)

    def _draft(self, ids: list[int]) -> str:
        """Text of ids, with a sign for each mask."""
        parts: list[str] = []
        waiting: list[int] = []
        for token_id in [*ids, self.tokenizer.mask_token_id]:
            if token_id == self.tokenizer.mask_token_id:
                parts += [decode_continuation(self.tokenizer, waiting, skip_special_tokens=True), self.mask]
                waiting = []
            else:
                waiting.append(token_id)
        return "".join(parts[:-1])

    def _show(self, text: str, draft: str):
        """Draw the text that does not stay, and a draft behind it."""
        columns, lines = self.size()
        text, draft = visible(text[self.num_kept :]), visible(draft)
        draft = draft[: len_of_rows(text + draft, columns, max(lines - 1, 1)) - len(text)] if draft else ""
        back = (UP.format(self.num_rows) if self.num_rows else "") + "\r" + CLEAR_BELOW
        shown = f"{DIM}{draft}{NORMAL}" if draft else ""
        self.stream.write(back + text + shown)
        self.stream.flush()
        kept = start_of_last_row(text, columns)
        self.num_kept += kept
        self.num_rows = num_rows(text[kept:] + draft, columns)
