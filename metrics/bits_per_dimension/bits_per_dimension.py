# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Upper bound on the bits per dimension of a diffusion model of images, for `evaluate`."""

import math

import datasets
import evaluate

from md4_hf.evaluation.samples import checked_examples
from md4_hf.objective.estimators import ratio_with_stderr


_DESCRIPTION = """
Upper bound on the bits per dimension of a masked diffusion model of images: sum of the NELBOs / number of dimensions /
log 2. The NELBO of an example is the negative evidence lower bound on its log-likelihood, estimated by Monte Carlo. A
dimension is one channel of one pixel; a uniform model of 256 intensities has 8 bits per dimension.
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
    predictions: `(examples,)` NELBO of each image in nats, summed over its dimensions, finite and >= 0.
    references: `(examples,)` number of dimensions of each image: channels x height x width.

Returns:
    bits_per_dimension: the bound. Each dimension counts once, whatever the size of its image.
    bits_per_dimension_stderr: its standard error, over examples and Monte-Carlo draws; nan for one example.
    num_dimensions, num_examples: what was counted.

Example:
    >>> import evaluate
    >>> metric = evaluate.load("metrics/bits_per_dimension")
    >>> results = metric.compute(predictions=[5810.0, 6002.0, 5944.0], references=[3 * 32 * 32] * 3)
    >>> print(f"{results['bits_per_dimension']:.3f} +- {results['bits_per_dimension_stderr']:.3f}")
    2.780 +- 0.027
"""


class BitsPerDimension(evaluate.Metric):
    """Σ NELBO / Σ dimensions / log 2."""

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
        nelbo, num_dimensions = checked_examples(predictions, references, "dimensions")
        nats, stderr = ratio_with_stderr(nelbo, num_dimensions)
        return {
            "bits_per_dimension": nats / math.log(2),
            "bits_per_dimension_stderr": stderr / math.log(2),
            "num_dimensions": int(num_dimensions.sum()),
            "num_examples": len(nelbo),
        }
