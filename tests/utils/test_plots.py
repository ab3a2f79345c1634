# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The picture of a run."""

import pytest

from md4_hf.utils.plots import plot_losses


HISTORY = [
    {"step": 1, "loss": 3.0},
    {"step": 2, "loss": 2.5},
    {"step": 2, "eval_bits_per_token": 3.9, "eval_bits_per_character": 3.9},
    {"step": 2, "eval_bits_per_token": 3.7, "eval_bits_per_character": 3.7},
]


@pytest.mark.parametrize(("name", "start"), [("loss.png", b"\x89PNG"), ("loss.svg", b"<?xml")])
def test_the_suffix_gives_the_format_and_nothing_else_is_left(tmp_path, name, start):
    plot_losses(HISTORY, tmp_path / name, {"unigram": 4.1, "bigram": 3.3})
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_evaluation_at_the_end_stands_beside_the_curve(tmp_path):
    plot_losses(HISTORY, tmp_path / "both.svg")
    plot_losses(HISTORY[:-1], tmp_path / "one.svg")
    assert "held out, at the end 3.70" in (tmp_path / "both.svg").read_text()
    assert "at the end" not in (tmp_path / "one.svg").read_text()


def test_a_single_loss_of_the_training_is_seen(tmp_path):
    for count in (1, 2):
        plot_losses(HISTORY[:count], tmp_path / "loss.svg")
        assert ("fill: #7f7f7f" in (tmp_path / "loss.svg").read_text()) == (count == 1), "a point, or a line"


def test_nothing_logged_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="`log_history` must hold losses, got none"):
        plot_losses([], tmp_path / "loss.png")
