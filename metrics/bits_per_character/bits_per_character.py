# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Upper bound on the bits per character of a diffusion language model, for `evaluate`."""

import math

import datasets
import evaluate

from md4_hf.evaluation.samples import checked_examples
from md4_hf.objective.estimators import ratio_with_stderr


_DESCRIPTION = """
Upper bound on the bits per character of a masked diffusion language model: sum of the NELBOs / number of characters /
log 2. The NELBO of an example is the negative evidence lower bound on its log-likelihood, estimated by Monte Carlo.
Unlike the perplexity per token, it compares models with different tokenizers.
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
    references: `(examples,)` number of characters that the scored tokens of each example stand for.

Returns:
    bits_per_character: the bound. Each character counts once, whatever the length of its example.
    bits_per_character_stderr: its standard error, over examples and Monte-Carlo draws; nan for one example.
    num_characters, num_examples: what was counted.

Example:
    >>> import evaluate
    >>> metric = evaluate.load("metrics/bits_per_character")
    >>> results = metric.compute(predictions=[180.2, 171.9, 190.4], references=[128, 120, 131])
    >>> print(f"{results['bits_per_character']:.3f} +- {results['bits_per_character_stderr']:.3f}")
    2.065 +- 0.019
"""


class BitsPerCharacter(evaluate.Metric):
    """Σ NELBO / Σ characters / log 2."""

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
        nelbo, num_characters = checked_examples(predictions, references, "characters")
        nats, stderr = ratio_with_stderr(nelbo, num_characters)
        return {
            "bits_per_character": nats / math.log(2),
            "bits_per_character_stderr": stderr / math.log(2),
            "num_characters": int(num_characters.sum()),
            "num_examples": len(nelbo),
        }
