# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Perplexity of generated texts under a causal language model, for `evaluate`."""

import datasets
import evaluate
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from md4_hf.evaluation.samples import CITATION, checked_token_ids, generative_perplexity


_DESCRIPTION = """
Perplexity of generated texts under a causal language model such as GPT-2, in both definitions that are in use, and the
entropy of their tokens beside it: texts that repeat themselves have a low generative perplexity and a low entropy.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: the texts, a list of strings of at least two tokens each.
    model_id: folder or Hub id of a causal language model with its tokenizer. It is loaded in its own dtype.
    batch_size: texts per forward pass, 8 by default.
    max_length: tokens per text, BOS included; what goes beyond is cut off. By default the longest the model takes.
    add_bos: whether a BOS token is put before each text, where the tokenizer has one, so that the first token is scored
        too. By default it is given and not scored, as in the evaluations of SEDD and MDLM with GPT-2.
    device: where to compute: by default a GPU if there is one.
    progress: whether to show a progress bar, False by default.

Returns:
    perplexity: exp(total nats / total scored tokens).
    mean_perplexity: mean over texts of exp(mean nats of the text's scored tokens).
    nats_per_token: the logarithm of perplexity.
    token_entropy: entropy in nats of the tokens within each text (without BOS), averaged over the texts.
    num_texts, num_tokens, num_truncated: texts, scored tokens, and texts that were cut off.
    text_nats, text_num_tokens: per text, the sum over its scored tokens, and their number.

Example:
    >>> import evaluate
    >>> metric = evaluate.load("metrics/generative_perplexity")
    >>> texts = ["the value of an object", "a list of strings"]
    >>> results = metric.compute(predictions=texts, model_id="gpt2", batch_size=2)
    >>> results["num_texts"], results["perplexity"] > 1, results["token_entropy"] > 0
    (2, True, True)
"""


class GenerativePerplexity(evaluate.Metric):
    """exp(Σ nats / Σ tokens) under a causal language model, and the entropy of the tokens."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=[
                "https://arxiv.org/abs/2406.04329",
                "https://arxiv.org/abs/2310.16834",
                "https://arxiv.org/abs/2406.07524",
            ],
        )

    def _compute(
        self, predictions, *, model_id, batch_size=8, max_length=None, add_bos=False, device=None, progress=False
    ):
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        tokenizer = AutoTokenizer.from_pretrained(model_id)
        # Before a large model is loaded for nothing:
        checked_token_ids(predictions, tokenizer, batch_size=batch_size, max_length=max_length)
        model = AutoModelForCausalLM.from_pretrained(model_id).to(device)
        return generative_perplexity(
            predictions,
            model,
            tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            add_bos=add_bos,
            progress=progress,
        )
