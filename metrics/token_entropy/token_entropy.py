# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Entropy of the tokens within each sample, for `evaluate`."""

import datasets
import evaluate

from md4_hf.evaluation.sample_statistics import token_entropy
from md4_hf.evaluation.samples import CITATION


_DESCRIPTION = """
Shannon entropy, in nats, of the distribution of tokens within each sequence (how often each token occurs in it),
averaged over the sequences. It tells samples that repeat themselves from varied ones, and belongs beside a generative
perplexity, which repetition lowers.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: token ids of each sequence, without padding: a list of lists of integers >= 0, none of them empty.

Returns:
    token_entropy: the mean over the sequences, in nats, between 0 and log(length).
    token_entropies: the entropy of each sequence in nats.
    num_sequences: what was counted.

Example:
    >>> import evaluate
    >>> metric = evaluate.load("metrics/token_entropy")
    >>> results = metric.compute(predictions=[[5, 5, 5, 5], [1, 2, 3, 4]])
    >>> print([round(entropy, 4) for entropy in results["token_entropies"]], round(results["token_entropy"], 4))
    [0.0, 1.3863] 0.6931
"""


class TokenEntropy(evaluate.Metric):
    """Mean over sequences of −Σ p_v·log p_v."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.List(datasets.Value("int64"))}),
            reference_urls=["https://arxiv.org/abs/2406.04329", "https://arxiv.org/abs/2409.02908"],
        )

    def _compute(self, predictions):
        return token_entropy(predictions)
