# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Upper bound on the perplexity of a diffusion language model, for `evaluate`."""

import datasets
import evaluate

from md4_hf.evaluation.samples import checked_examples
from md4_hf.objective.estimators import nelbo_metrics


_DESCRIPTION = """
Upper bound on the perplexity of a masked diffusion language model: exp(sum of the NELBOs / number of tokens). The
NELBO of an example is the negative evidence lower bound on its log-likelihood, estimated by Monte Carlo.
"""

_CITATION = """
@inproceedings{shi2024simplified,
  title = {Simplified and Generalized Masked Diffusion for Discrete Data},
  author = {Shi, Jiaxin and Han, Kehang and Wang, Zhe and Doucet, Arnaud and Titsias, Michalis K.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2024},
  url = {https://arxiv.org/abs/2406.04329}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: `(examples,)` NELBO of each example in nats, summed over its tokens, finite and >= 0.
    references: `(examples,)` number of scored tokens of each example.

Returns:
    perplexity: exp(loss), the bound.
    perplexity_stderr: its standard error (linearised), over examples and Monte-Carlo draws; nan for one example.
    loss: the NELBO in nats per token. Each token counts once, whatever the length of its example.
    loss_stderr: its standard error.
    bits_per_token: loss / log 2.
    num_tokens, num_examples: what was counted.

Example:
    >>> import evaluate
    >>> metric = evaluate.load("metrics/perplexity_bound")
    >>> results = metric.compute(predictions=[180.2, 171.9, 190.4], references=[64, 64, 64])
    >>> print(f"{results['perplexity']:.2f} +- {results['perplexity_stderr']:.2f}")
    16.87 +- 1.41
"""


class PerplexityBound(evaluate.Metric):
    """exp(Σ NELBO / Σ tokens)."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # Counts are read as float64: as integers, `datasets` would cut a fraction off without a word.
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
            reference_urls=["https://arxiv.org/abs/2406.04329"],
        )

    def _compute(self, predictions, references):
        nelbo, num_tokens = checked_examples(predictions, references, "tokens")
        metrics = nelbo_metrics(nelbo, num_tokens)
        stderr = metrics["perplexity"] * metrics["loss_stderr"]
        return {**metrics, "perplexity_stderr": stderr, "num_examples": len(nelbo)}
