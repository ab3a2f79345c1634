"""Figures: how they are written, and which ones an evaluation has."""

import math

import pytest
import torch

from md4_hf import nelbo_metrics
from md4_hf.objective.figures import Figure, figures_of, headline
from md4_hf.objective.modality import IMAGES, TEXT, modality_of_metrics


NELBO, TOKENS = torch.tensor([10.0, 60.0]), torch.tensor([10.0, 30.0])


@pytest.mark.parametrize(
    "value, error, expected",
    [
        (1.68314, 0.01361, "1.6831 ± 0.0136"),
        (0.5, math.nan, "0.5000"),
        (9.99999, 0.1, "10.000 ± 0.100"),
        (28.12345, 0.31, "28.123 ± 0.310"),
        (123456.7, 89.1, "123,457 ± 89"),
        (1234, math.nan, "1,234"),
        (math.inf, math.nan, "inf"),
    ],
)
def test_a_value_has_five_significant_digits_and_its_error_as_many_after_the_point(value, error, expected):
    assert str(Figure("a", value, error)) == expected


def test_a_format_asks_for_other_digits_and_rounding_has_the_same_ones():
    figure = Figure("perplexity", 28.12345, 0.31)
    assert f"{figure:.2f}" == "28.12 ± 0.31" and figure.rounded == 28.123
    assert Figure("a", math.inf).rounded == math.inf


SIZES = torch.tensor([5.0, 15.0])


@pytest.mark.parametrize(
    "sizes, are_dimensions, keys",
    [
        ({}, False, ["loss", "perplexity", "bits_per_token"]),
        ({"num_characters": SIZES}, False, ["loss", "perplexity", "bits_per_character"]),
        ({"num_bytes": SIZES}, False, ["loss", "perplexity", "bits_per_byte"]),
        (
            {"num_characters": SIZES, "num_bytes": 2 * SIZES},
            False,
            ["loss", "perplexity", "bits_per_character", "bits_per_byte"],
        ),
        ({}, True, ["loss", "bits_per_dimension"]),
    ],
)
def test_the_figures_of_an_evaluation_are_its_metrics(sizes, are_dimensions, keys):
    metrics = nelbo_metrics(NELBO, TOKENS, are_dimensions=are_dimensions, **sizes)
    figures = figures_of(metrics)
    assert list(figures) == keys and headline(metrics) == next(x for name, x in figures.items() if "bits" in name)
    if len(sizes) == 2:
        assert metrics["bits_per_byte"] == pytest.approx(metrics["bits_per_character"] / 2)
    assert {key: figure.value for key, figure in figures.items()} == {key: metrics[key] for key in keys}
    assert figures["loss"].error == metrics["loss_stderr"] and headline(metrics).error > 0
    assert figures_of({f"eval_{name}": value for name, value in metrics.items()}, "eval_") == figures
    assert modality_of_metrics(metrics) is (IMAGES if are_dimensions else TEXT)


def test_the_error_of_the_headline_is_in_its_unit():
    metrics = nelbo_metrics(NELBO, TOKENS)
    assert headline(metrics).error == pytest.approx(metrics["loss_stderr"] / math.log(2))
    perplexity = figures_of(metrics)["perplexity"]
    assert perplexity.error == pytest.approx(math.exp(1.75) * metrics["loss_stderr"])


def test_an_exact_likelihood_is_no_bound():
    metrics = nelbo_metrics(NELBO, TOKENS)
    assert figures_of(metrics)["loss"].name == "NELBO, nats per token"
    assert figures_of(metrics, is_bound=False)["loss"].name == "−log p, nats per token"
