# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""An answer on a terminal while it is unmasked: after every step the screen shows what is decided and the draft."""

import pytest
import torch
from terminal import Terminal, wrapped

from md4_hf import build_byte_tokenizer
from md4_hf.cli.live_text import LiveText


MASK, EOS = 257, 256


def ids_of(text):
    return build_byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def live_text(columns=80, lines=24, end=""):
    terminal = Terminal(columns, lines)
    live = LiveText(build_byte_tokenizer(), terminal, end, lambda: (columns, lines))
    live.put(torch.tensor([ids_of("<user>hi<assistant>")]))
    return live, terminal


def test_masks_stand_where_text_is_to_come_and_go():
    live, terminal = live_text()
    assert terminal.rows == [""], "the prompt is not shown"
    live.put_draft(torch.tensor([MASK, *ids_of("es"), MASK, EOS]))
    assert terminal.rows == ["░es░"]
    live.put_draft(torch.tensor([*ids_of("yes"), MASK, EOS]))
    assert terminal.rows == ["yes░"]
    live.put(torch.tensor(ids_of("yes.")))
    live.finish("yes.")
    assert terminal.rows == ["yes.", ""]


TEXTS = [
    "a line that is wrapped by a narrow terminal, and another word",
    "short\nlines\n\nof all\nlengths, one of which is longer than the terminal is wide",
    "exactly10!exactly10!exactly10!",
    "日本語のテキストは二列ずつ、 e\u0301 one",
]


@pytest.mark.parametrize("columns", [2, 7, 10, 80])
@pytest.mark.parametrize("text", TEXTS)
def test_the_screen_shows_the_text_and_its_draft_after_every_step(text, columns):
    live, terminal = live_text(columns, lines=200)
    ids, generator = ids_of(text), torch.Generator().manual_seed(0)
    for start in range(0, len(ids), 16):
        block = torch.tensor(ids[start : start + 16])
        for share in (1.0, 0.7, 0.3):
            is_masked = torch.rand(len(block), generator=generator) < share
            draft = block.masked_fill(is_masked, MASK)
            live.put_draft(draft)
            decided = bytes(ids[:start]).decode(errors="ignore")
            assert terminal.rows == wrapped(decided + live._draft(draft.tolist()), columns)
        live.put(block)
        assert terminal.rows == wrapped(bytes(ids[: start + 16]).decode(errors="ignore"), columns)
    live.end()
    live.finish(text)
    assert terminal.rows == wrapped(text + "\n", columns)


def test_a_draft_is_no_longer_than_the_screen_and_nothing_above_it_changes():
    live, terminal = live_text(10, lines=5)
    text = "0123456789" * 20
    for start in range(0, 200, 50):
        live.put_draft(torch.tensor([MASK] * (200 - start)))
        assert terminal.row <= start // 10 + 4
        live.put(torch.tensor(ids_of(text[start : start + 50])))
    live.finish(text)
    assert terminal.rows == wrapped(text + "\n", 10)


def test_nothing_is_shown_behind_the_end_and_no_control_character_is_obeyed():
    live, terminal = live_text(end="<|im_end|>")
    live.put(torch.tensor(ids_of("yes<|im_end|>\nmore")))
    live.put_draft(torch.tensor([MASK] * 5))
    assert terminal.rows == ["yes"]
    live, terminal = live_text()
    live.put(torch.tensor([*ids_of("yes"), EOS]))
    live.put_draft(torch.tensor([MASK] * 5))
    assert terminal.rows == ["yes"]
    live, terminal = live_text()
    live.finish("\x1b[2Jno\x07\rway")
    assert terminal.rows == [" [2Jno  way", ""]


def test_a_terminal_without_unicode_has_a_plain_sign_for_masks():
    terminal = Terminal(80)
    terminal.encoding = "ascii"
    live = LiveText(build_byte_tokenizer(), terminal)
    live.put(torch.tensor([65]))
    live.put_draft(torch.tensor([MASK, MASK]))
    assert terminal.rows == ["__"]
