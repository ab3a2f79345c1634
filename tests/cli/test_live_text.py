# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A text on a terminal while it is unmasked: after every step the screen shows what is decided and the masks."""

import re

import pytest
import torch
from terminal import Terminal, wrapped

from md4_hf import build_byte_tokenizer
from md4_hf.cli.live_text import RAMPS, LiveText
from md4_hf.evaluation.trajectories import Event, Moment, Trajectory


MASK, EOS = 257, 256
PROMPT = "<user>hi<assistant>"


def ids_of(text):
    return build_byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


class Writing:
    """A text that is written, and its view on a terminal."""

    def __init__(self, length, columns=80, lines=24, prompt=PROMPT, **options):
        self.terminal, prompt_ids = Terminal(columns, lines), ids_of(prompt)
        options = {"is_answer": True, "seconds_between": 0.0, **options}
        size = {"size": lambda: (columns, lines)}
        self.live = LiveText(build_byte_tokenizer(), self.terminal, num_steps=lambda: 10, **size, **options)
        start = [*prompt_ids, *[MASK] * length]
        self.trajectory, self.first = Trajectory(start, (len(start),), MASK), len(prompt_ids)
        self.step = 0

    def write(self, ids, num_final=0, end=None):
        """Show the first ids behind the prompt, of which so many are final, up to the end of a block."""
        pairs = zip(self.trajectory.ids[self.first :], ids, strict=False)
        changed = [Event(self.first + n, new, 0.5) for n, (old, new) in enumerate(pairs) if old != new]
        self.trajectory.add(Moment(self.step), changed)
        self.trajectory.num_final = self.first + num_final
        self.trajectory.end = None if end is None else self.first + end
        self.step += 1
        self.live.show(self.trajectory)
        return self.terminal.rows

    def finish(self, text=None):
        self.trajectory.is_finished = True
        self.live.show(self.trajectory)
        self.live.finish(text)
        return self.terminal.rows


def test_masks_stand_where_text_is_to_come_and_go():
    writing = Writing(4)
    assert writing.terminal.rows == [""], "the prompt is not shown"
    assert writing.write([MASK, *ids_of("es"), MASK]) == ["░es░"]
    assert writing.write([*ids_of("yes"), MASK]) == ["yes░"]
    writing.write(ids_of("yes."))
    assert writing.finish("yes.") == ["yes.", ""]


def test_steps_share_the_time_that_is_asked_for(monkeypatch):
    waits = []
    monkeypatch.setattr("md4_hf.cli.live_text.time.sleep", waits.append)
    for seconds, shown in ((None, 0.0), (20.0, 2.0)):
        waits.clear()
        writing = Writing(3, seconds=seconds)
        for text in ("y", "ye", "yes"):
            writing.write(ids_of(text))
        assert waits[0] == 0.0 and waits[1:] == [pytest.approx(shown, abs=0.5)] * 2, (
            "nothing is on the screen at first"
        )


def test_the_prompt_is_part_of_a_sample():
    writing = Writing(3, prompt="the ", is_answer=False, color_by="step")
    assert writing.write([MASK, *ids_of("s"), MASK]) == ["the ░s░"]
    assert writing.write([*ids_of("is"), MASK]) == ["the is░"]
    assert writing.write([MASK, *ids_of("s"), MASK]) == ["the ░s░"], "masked again"
    writing.write(ids_of("is!"))
    assert writing.finish() == ["the is!", ""]


TEXTS = [
    "a line that is wrapped by a narrow terminal, and another word",
    "short\nlines\n\nof all\nlengths, one of which is longer than the terminal is wide",
    "exactly10!exactly10!exactly10!",
    "日本語のテキストは二列ずつ、 e\u0301 one",
]


@pytest.mark.parametrize("color_by", [None, "step", "confidence"])
@pytest.mark.parametrize("columns", [2, 7, 10, 80])
@pytest.mark.parametrize("text", TEXTS)
def test_the_screen_shows_the_text_and_its_masks_after_every_step(text, columns, color_by):
    ids, generator = ids_of(text), torch.Generator().manual_seed(0)
    writing = Writing(len(ids), columns, lines=200, color_by=color_by)
    for start in range(0, len(ids), 16):
        block = ids[start : start + 16]
        for share in (1.0, 0.7, 0.3, 0.0):
            masked = (torch.rand(len(block), generator=generator) < share).tolist()
            mixed = [MASK if is_masked else token for token, is_masked in zip(block, masked, strict=True)]
            shown = writing.write([*ids[:start], *mixed], num_final=start, end=start + len(block))
            runs, run = [], list(ids[:start])
            for token in mixed:
                runs, run = ([*runs, run], []) if token == MASK else (runs, [*run, token])
            expected = "░".join(bytes(run).decode(errors="replace") for run in [*runs, run])
            assert shown == wrapped(expected, columns)
    assert writing.finish(text) == wrapped(text + "\n", columns)


def test_a_draft_is_no_longer_than_the_screen_and_nothing_above_it_changes():
    text = "0123456789" * 20
    writing = Writing(200, 10, lines=5)
    for start in range(0, 200, 50):
        writing.write(ids_of(text[:start]), num_final=start)
        assert writing.terminal.row <= start // 10 + 4
    writing.write(ids_of(text))
    assert writing.finish(text) == wrapped(text + "\n", 10)


def test_nothing_is_shown_behind_the_end_and_no_control_character_is_obeyed():
    writing = Writing(30, end_mark="<|im_end|>")
    assert writing.write(ids_of("yes<|im_end|>\nmore")) == ["yes"]
    writing = Writing(9)
    assert writing.write([*ids_of("yes"), EOS]) == ["yes"]
    assert Writing(3).finish("\x1b[2Jno\x07\rway") == [" [2Jno  way", ""]


def test_a_terminal_without_unicode_has_a_plain_sign_for_masks():
    terminal = Terminal(80)
    terminal.encoding = "ascii"
    live = LiveText(build_byte_tokenizer(), terminal)
    live.show(Trajectory([65, MASK, MASK], (3,), MASK))
    assert terminal.rows == ["A__"]


def test_a_text_that_is_ended_stays_without_its_masks():
    writing = Writing(6)
    writing.write(ids_of("yes"), num_final=2)
    writing.live.stop()
    assert writing.terminal.rows == ["ye"]


def colors_of(color_by, events, monkeypatch=None):
    """Numbers of the colours, in order, of a text whose tokens have these moments and probabilities."""
    writing = Writing(len(events), color_by=color_by)
    seen, write = [], writing.terminal.write
    writing.terminal.write = lambda text: (seen.append(text), write(text))
    for place, (step, probability) in enumerate(events):
        writing.trajectory.add(Moment(step), [Event(writing.first + place, 65 + place, probability)])
    writing.finish()
    return [int(number) for number in re.findall(r"\x1b\[38;5;(\d+)m", "".join(seen[-2:]))]


def test_colours_run_from_early_to_late_and_from_unsure_to_sure(monkeypatch):
    early, late = RAMPS["step"][0], RAMPS["step"][-1]
    assert colors_of("step", [(0, 0.5), (5, 0.5), (9, 0.5)])[::2] == [early, late]
    unsure, sure = RAMPS["confidence"][0], RAMPS["confidence"][-1]
    assert colors_of("confidence", [(0, 0.01), (0, 1.0)]) == [unsure, sure]
    assert colors_of(None, [(0, 0.5), (9, 0.5)]) == []
    monkeypatch.setenv("NO_COLOR", "1")
    assert colors_of("step", [(0, 0.5), (9, 0.5)]) == []


def test_a_fast_network_does_not_flood_a_slow_line():
    writing = Writing(50, seconds_between=60.0)
    seen, write = [], writing.terminal.write
    writing.terminal.write = lambda text: (seen.append(text), write(text))
    for count in range(50):
        writing.write(ids_of("x" * count))
    assert len(seen) == 1
    assert writing.finish("x" * 50) == ["x" * 50, ""]
