# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The causal language model that `md4 score` and `md4 frontier` measure samples under."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..core.text_encoding import encode_texts
from ..evaluation.samples import generative_perplexity, generative_perplexity_of_ids
from ..utils.errors import file_errors_as_value_errors
from ..utils.hub_access import from_hub
from .options import JudgeArguments
from .text_samples import TextSamples


class NothingToScore(ValueError):
    """No sample has the two tokens of which a perplexity is made."""


class Judge(NamedTuple):
    """A causal language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_judge(options: JudgeArguments) -> Judge | None:
    """The judge, None if there is none.

    Raises:
        OSError, ValueError: If it is no causal language model with a tokenizer.
    """
    if options.judge is None:
        return None
    hub = {"revision": options.judge_revision or "main"}
    try:
        with from_hub(options.judge), file_errors_as_value_errors("judge", options.judge):
            config = AutoConfig.from_pretrained(options.judge, **hub)
            is_causal = getattr(config, "is_causal", True)  # said of MD4's, which are causal or not by configuration
            if not (is_causal and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING):
                raise ValueError(f"there is no causal language model of type {config.model_type!r}.")
            tokenizer = AutoTokenizer.from_pretrained(options.judge, **hub)
            model = AutoModelForCausalLM.from_pretrained(options.judge, **hub).eval()
    except (OSError, ValueError) as error:
        rule = "a folder or Hub id of a causal language model"
        raise ValueError(f"`judge` must be {rule}, got {options.judge}.") from error
    check_causal(model, options.judge)
    return Judge(model, tokenizer)


@torch.no_grad()
def check_causal(model: PreTrainedModel, name: str):
    """Refuse a model whose prediction for one token depends on those after it: BERT opens as a causal model too."""
    logits = model(input_ids=torch.tensor([[0, 0], [0, 1]]), use_cache=False).logits[:, 0].float()
    if (logits[0] - logits[1]).abs().max() > 1e-2 * logits.std():
        raise ValueError(f"`judge` must be a causal language model, got {name}, which sees the tokens to come.")


def judge_recipe(judge: Judge | None) -> dict[str, Any]:
    """Facts of the judge beyond its name."""
    if judge is None:
        return {}
    return {
        "judge_commit": commit(judge.model),
        "judge_dtype": str(judge.model.dtype).removeprefix("torch."),
        "judge_length": getattr(judge.model.config.get_text_config(), "max_position_embeddings", None),
        "judge_bos_token": judge.tokenizer.bos_token,
    }


def commit(model: PreTrainedModel) -> str | None:
    """The commit of a model of the Hub."""
    return getattr(model.config, "_commit_hash", None)


def perplexity(
    samples: TextSamples, tokenizer: PreTrainedTokenizerBase | None, judge: Judge, options: JudgeArguments
) -> dict[str, Any]:
    """Figures of `generative_perplexity`; samples of fewer than two tokens have none, and are counted.

    Raises:
        NothingToScore: If all are so short.
        ValueError: If the samples' own tokens are to be scored and are not known.
    """
    settings = {"batch_size": options.batch_size, "max_length": options.max_length, "add_bos": options.add_bos}
    if not options.retokenise and (samples.ids is None or tokenizer is None):
        raise ValueError("`retokenise` must be true for samples without `input_ids` and a `tokenizer`, got false.")
    rows = encode_texts(judge.tokenizer, samples.texts) if options.retokenise else samples.ids
    scored = [place for place, row in enumerate(rows) if len(row) >= 2]
    if not scored:
        raise NothingToScore("`model_or_file` must give samples of at least two tokens of the judge, got none.")
    if options.retokenise:
        texts = [samples.texts[place] for place in scored]
        measures = generative_perplexity(texts, *judge, progress=True, **settings)
    else:
        ids = [rows[place] for place in scored]
        measures = generative_perplexity_of_ids(ids, *judge, tokenizer, progress=True, **settings)
    return {**measures, "num_too_short": len(samples) - len(scored)}
