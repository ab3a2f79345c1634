# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Likelihood bound of a masked diffusion model in nats, bits and as a perplexity, for `evaluate`."""

import datasets
import evaluate

from md4_hf.evaluation.samples import CITATION, checked_examples
from md4_hf.objective.estimators import nelbo_metrics


_DESCRIPTION = """
Bound on the likelihood of data under a masked diffusion model: sum of the NELBOs / number of tokens, characters,
bytes or dimensions. The NELBO of an example is the negative evidence lower bound on its log-likelihood, so that each
figure is an upper bound; it is estimated by Monte Carlo. Bits per character or byte compare models with different
tokenizers. A dimension is one channel of one pixel; a uniform model of 256 intensities has 8 bits per dimension.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: `(examples,)` NELBO of each example in nats, summed over its tokens, finite and >= 0.
    references: `(examples,)` number of scored tokens of each example; of an image, channels x height x width.
    num_characters: `(examples,)` number of characters that the scored tokens of each example stand for, if known.
    num_bytes: `(examples,)` number of their bytes in UTF-8, if known.
    are_dimensions: whether the tokens are the dimensions of images, False by default.

Returns:
    loss, loss_stderr: nats per token, and the standard error over examples and Monte-Carlo draws; nan for one example.
        Each token counts once, whatever the length of its example.
    perplexity, perplexity_stderr: exp(loss), and its standard error to first order.
    bits_per_token: loss / log 2.
    bits_per_character, bits_per_character_stderr: with `num_characters`.
    bits_per_byte, bits_per_byte_stderr: with `num_bytes`.
    bits_per_dimension, bits_per_dimension_stderr: with `are_dimensions`.
    num_tokens, num_examples: what was counted.

Example:
    >>> import evaluate
    >>> metric = evaluate.load("metrics/masked_diffusion_likelihood")
    >>> nats, tokens, characters = [180.2, 171.9, 190.4], [64, 64, 64], [128, 120, 131]
    >>> results = metric.compute(predictions=nats, references=tokens, num_characters=characters)
    >>> print(f"{results['perplexity']:.2f} +- {results['perplexity_stderr']:.2f}")
    16.87 +- 1.41
    >>> print(f"{results['bits_per_character']:.3f} +- {results['bits_per_character_stderr']:.3f}")
    2.065 +- 0.019
"""


class MaskedDiffusionLikelihood(evaluate.Metric):
    """Σ NELBO / Σ tokens, characters, bytes or dimensions."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # Counts are read as float64: as integers, `datasets` would cut a fraction off without a word.
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
            reference_urls=["https://arxiv.org/abs/2406.04329"],
        )

    def _compute(self, predictions, references, *, num_characters=None, num_bytes=None, are_dimensions=False):
        sizes = {"num_characters": num_characters, "num_bytes": num_bytes}
        nelbo, num_tokens, known = checked_examples(predictions, references, **sizes)
        results = nelbo_metrics(nelbo, num_tokens, are_dimensions=are_dimensions, **known)
        results["perplexity_stderr"] = results["perplexity"] * results["loss_stderr"]
        return {**results, "num_examples": len(nelbo)}
