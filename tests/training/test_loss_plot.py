# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The picture of a run."""

import math

import pytest

from md4_hf.training.loss_plot import plot_losses


def evaluation(step, bits, error=0.05, draws=1):
    """A logged evaluation: three bits of a character to two of a token."""
    metrics = {"bits_per_token": bits / 1.5, "loss_stderr": error / 1.5 * math.log(2), "num_draws": draws}
    metrics |= {"bits_per_character": bits, "bits_per_character_stderr": error}
    return {"step": step, **{f"eval_{name}": value for name, value in metrics.items()}}


TRAIN = [{"step": 1, "loss": 2.0 * math.log(2)}, {"step": 2, "loss": 1.8 * math.log(2)}]
HISTORY = [*TRAIN, evaluation(1, 3.9), evaluation(2, 3.7)]
AT_THE_END = evaluation(2, 3.1, error=0.02, draws=8)


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def points(figure, label):
    (line,) = [line for line in figure.axes[0].lines if line.get_label().startswith(label)]
    return [tuple(map(float, point)) for point in line.get_xydata()]


def error_bars(figure):
    """Lower and upper end of each bar."""
    (bars,) = figure.axes[0].collections
    return [path.vertices[:, 1].tolist() for path in bars.get_paths()]


@pytest.mark.parametrize(("name", "start"), [("loss.png", b"\x89PNG"), ("loss.svg", b"<?xml")])
def test_the_suffix_gives_the_format_and_nothing_else_is_left(tmp_path, name, start):
    plot_losses(HISTORY, tmp_path / name, {"unigram": 4.1, "bigram": 3.3})
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_star_ends_the_curve_and_has_its_draws(tmp_path, figures):
    plot_losses([*HISTORY, AT_THE_END], tmp_path / "loss.png")
    (figure,) = figures
    assert points(figure, "held out") == [(1, 3.9), (2, 3.7)]
    assert points(figure, "step 2: 3.70 ± 0.05") == [(2, 3.7)]
    assert points(figure, "with 8 draws: 3.10 ± 0.02") == [], "told, and not drawn: it would look like a jump"


def test_the_only_evaluation_is_the_star_with_any_number_of_draws(tmp_path, figures):
    plot_losses([*TRAIN, AT_THE_END], tmp_path / "loss.png")
    assert points(figures[0], "held out") == points(figures[0], "step 2: 3.10 ± 0.02") == [(2, 3.1)]


def test_each_point_has_a_bar_of_one_standard_error(tmp_path, figures):
    plot_losses([*HISTORY, evaluation(3, 3.5, error=math.nan)], tmp_path / "loss.png")
    assert error_bars(figures[0])[:2] == [pytest.approx([3.85, 3.95]), pytest.approx([3.65, 3.75])]
    assert "step 3: 3.50" in legend_of(figures[0]), "no error of a single example"


def test_training_is_drawn_in_the_unit_of_the_evaluation(tmp_path, figures):
    plot_losses(HISTORY, tmp_path / "loss.png")
    assert points(figures[0], "train") == [(1, pytest.approx(3.0)), (2, pytest.approx(2.7))]
    assert figures[0].axes[0].get_ylabel() == "NELBO, bits per character"


def test_the_legend_covers_nothing(tmp_path, figures):
    plot_losses([*HISTORY, AT_THE_END], tmp_path / "loss.png", {"unigram": 4.1, "a $ b $": 3.3})
    (figure,) = figures
    assert legend_of(figure)[-2:] == ["unigram 4.10", "a $ b $ 3.30"]
    legend, axes = (part.get_window_extent() for part in (figure.legends[0], figure.axes[0]))
    assert legend.x0 >= axes.x1
    assert legend.x1 <= figure.bbox.x1


def test_a_single_loss_of_the_training_is_seen(tmp_path):
    for count in (1, 2):
        plot_losses(HISTORY[:count], tmp_path / "loss.svg")
        assert ("fill: #7f7f7f" in (tmp_path / "loss.svg").read_text()) == (count == 1), "a point, or a line"


def test_nothing_logged_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="`log_history` must hold losses, got none"):
        plot_losses([], tmp_path / "loss.png")
