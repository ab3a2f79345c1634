# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures of samples: the entropy of their tokens, and their perplexity under a causal language model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .masked_diffusion import IGNORE_INDEX


def token_entropy(sequences: Tensor | Sequence[Sequence[int] | Tensor]) -> dict[str, float | int | list[float]]:
    """Entropy of the tokens within each sequence, averaged over the sequences.

    H(x) = −Σ_v p_v·log p_v in nats, with p_v the share of token v among the tokens of x. It is the entropy that is
    reported beside the generative perplexity of SEDD, MDLM and their successors (arXiv:2409.02908): per sequence, and
    then the mean. It lies in [0, log(length)] and grows with the length: compare sequences of the same length only.

    Args:
        sequences: Token ids, `(sequences, length)` or one list per sequence, without padding.

    Returns:
        `token_entropy`, the mean in nats; `token_entropies`, one per sequence; `num_sequences`.

    Raises:
        ValueError: If there are no sequences, or one is empty or holds anything but integers >= 0.
    """
    entropies = [_entropy_nats(_checked_sequence(x, index)) for index, x in enumerate(sequences)]
    if not entropies:
        raise ValueError("`sequences` must hold at least one sequence of token ids, got none.")
    return {
        "token_entropy": sum(entropies) / len(entropies),
        "token_entropies": entropies,
        "num_sequences": len(entropies),
    }


@torch.no_grad()
def generative_perplexity(
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    add_bos: bool = True,
    progress: bool = False,
) -> dict[str, float | int | list[float] | list[int]]:
    """Perplexity of texts under a causal language model, and the entropy of their tokens.

    With nats_i = −Σ_n log p(x_i^n | x_i^{<n}) over the n_i scored tokens of text i, `perplexity` is
    exp(Σ_i nats_i / Σ_i n_i) (as in MDLM, arXiv:2406.07524) and `mean_perplexity` the mean over texts of
    exp(nats_i / n_i) (as in SEDD, arXiv:2310.16834), which is never smaller where all texts have one length.

    - First token: the BOS token is put before each text and every token of the text is scored. Where the tokenizer
      has none, and with `add_bos=False`, the first token is given and not scored. SEDD and MDLM give their samples to
      GPT-2 without BOS. No other special tokens are added.
    - Long texts are truncated: their first tokens are scored, as many as `max_length` leaves room for.
    - Padding is neither seen nor scored: the result depends on the batches by rounding only.

    A low perplexity is no sign of quality where the entropy is low too: repeated words are easy to predict.

    Args:
        texts: The samples.
        model: A causal language model, on whatever device it is. Its mode is restored.
        tokenizer: The tokenizer of `model`.
        batch_size: Texts per forward pass, >= 1.
        max_length: Tokens per text, BOS included, >= 2; None for the longest that the model takes.
        add_bos: See above.
        progress: Whether to show a progress bar.

    Returns:
        `perplexity`; `mean_perplexity`; `nats_per_token`, the logarithm of the first; `token_entropy`, the mean of
        `token_entropy` over the texts, in nats, of the tokens that were kept, without BOS; `num_texts`; `num_tokens`,
        scored; `num_truncated` texts; and per text `text_nats` and `text_num_tokens`, which were scored.

    Raises:
        ValueError: Before the first forward pass: if there are no texts, one has fewer than two tokens, a number is
            too small, `max_length` is more than the model takes, or the tokenizer has ids that the model lacks.
    """
    ids = checked_token_ids(texts, tokenizer, batch_size=batch_size, max_length=max_length)
    max_length = _max_length(model, tokenizer, max_length)
    bos = [tokenizer.bos_token_id] if add_bos and tokenizer.bos_token_id is not None else []
    kept = ids if max_length is None else [row[: max_length - len(bos)] for row in ids]
    rows = [bos + row for row in kept]
    _check_vocabulary(rows, model)

    nats = _nats_of_rows(rows, model, batch_size, progress)
    num_tokens = torch.tensor([len(row) - 1 for row in rows])
    nats_per_token = nats.sum() / num_tokens.sum()
    return {
        "perplexity": nats_per_token.exp().item(),
        "mean_perplexity": (nats / num_tokens).exp().mean().item(),
        "nats_per_token": nats_per_token.item(),
        "token_entropy": token_entropy(kept)["token_entropy"],
        "num_texts": len(rows),
        "num_tokens": int(num_tokens.sum()),
        "num_truncated": sum(len(row) < len(full) for row, full in zip(kept, ids, strict=True)),
        "text_nats": nats.tolist(),
        "text_num_tokens": num_tokens.tolist(),
    }


def checked_token_ids(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 1,
    max_length: int | None = None,
) -> list[list[int]]:
    """Token ids of each text, without special tokens, and the checks of `generative_perplexity` that need no model.

    Raises:
        ValueError: See `generative_perplexity`.
    """
    _check_at_least("batch_size", batch_size, 1)
    if max_length is not None:
        _check_at_least("max_length", max_length, 2)
    if isinstance(texts, str):
        raise ValueError(f"`texts` must be a list of texts, got one text: {texts[:40]!r}.")
    if len(texts) == 0:
        raise ValueError("`texts` must hold at least one text, got none.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"`texts` must hold texts, got {type(text).__name__} at index {index}.")
    ids = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    for index, row in enumerate(ids):
        if len(row) < 2:
            text = texts[index][:40]
            raise ValueError(f"`texts` must have at least 2 tokens each, got {len(row)} at index {index}: {text!r}.")
    return ids


def checked_examples(predictions: Iterable[float], references: Iterable[float], unit: str) -> tuple[Tensor, Tensor]:
    """NELBO and size of each example, checked: what a bound on the likelihood is computed from.

    Args:
        predictions: NELBO of each example in nats, finite and >= 0.
        references: Number of tokens, characters or dimensions of each example, whole and >= 0, not all 0.
        unit: Name of what `references` counts, in the plural, for the messages.

    Returns:
        Two float64 tensors `(examples,)`.

    Raises:
        ValueError: If one of these rules is broken, or the lengths differ.
    """
    nelbo, counts = _numbers("predictions", predictions), _numbers("references", references)
    if len(nelbo) == 0:
        raise ValueError("`predictions` must hold the NELBO of at least one example, got none.")
    if len(counts) != len(nelbo):
        raise ValueError(
            f"`references` must have one number of {unit} for each of the {len(nelbo)} predictions, got {len(counts)}."
        )
    _check_all("predictions", nelbo, nelbo.isfinite() & (nelbo >= 0), "finite and >= 0 nats")
    _check_all("references", counts, counts.isfinite() & (counts >= 0) & (counts == counts.round()), "whole and >= 0")
    if counts.sum() == 0:
        raise ValueError(f"`references` must count at least one of the {unit}, got 0 in all.")
    return nelbo, counts


def _entropy_nats(ids: Tensor) -> float:
    counts = ids.unique(return_counts=True)[1].double()
    return torch.special.entr(counts / counts.sum()).sum().item()


def _checked_sequence(sequence: Sequence[int] | Tensor, index: int) -> Tensor:
    try:
        ids = torch.as_tensor(sequence).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`sequences` must hold token ids, got {sequence!r:.60} at index {index}.") from None
    if ids.ndim != 1 or len(ids) == 0:
        shape = tuple(ids.shape)
        raise ValueError(f"`sequences` must hold lists of at least one token id, got shape {shape} at index {index}.")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"`sequences` must hold integers, got {ids.dtype} at index {index}.")
    if ids.min() < 0:
        raise ValueError(f"`sequences` must hold token ids >= 0, got {ids.min().item()} at index {index}.")
    return ids


def _check_at_least(name: str, value: int, minimum: int):
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}, got {value!r}.")


def _numbers(name: str, values: Iterable[float]) -> Tensor:
    try:
        values = values.detach().cpu() if isinstance(values, Tensor) else values
        numbers = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`{name}` must be a list of numbers, got {values!r:.60}.") from None
    if numbers.ndim != 1:
        raise ValueError(f"`{name}` must be a list of numbers, got shape {tuple(numbers.shape)}.")
    return numbers


def _check_all(name: str, values: Tensor, is_good: Tensor, rule: str):
    if not is_good.all():
        index = int((~is_good).nonzero()[0])
        raise ValueError(f"`{name}` must be {rule}, got {values[index].item()} at index {index}.")


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """Tokens that are scored at most; None if neither the caller nor the model sets a limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None and tokenizer.model_max_length < 1e9:  # a tokenizer without a limit says 1e30
        limit = tokenizer.model_max_length
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(f"`max_length` must be <= {limit}, the length of the model, got {max_length}.")
    return limit if max_length is None else max_length


def _check_vocabulary(rows: list[list[int]], model: PreTrainedModel):
    largest, size = max(map(max, rows)), model.get_input_embeddings().num_embeddings
    if largest >= size:
        raise ValueError(f"`tokenizer` must give ids below {size}, the vocabulary of the model, got {largest}.")


def _nats_of_rows(rows: list[list[int]], model: PreTrainedModel, batch_size: int, progress: bool) -> Tensor:
    """−log p of all tokens of each row but its first, `(rows,)` float64 nats."""
    from tqdm.auto import tqdm

    nats = torch.zeros(len(rows), dtype=torch.float64)
    # Rows of like length together need little padding; with the longest first, a lack of memory shows at once.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    was_training = model.training
    model.eval()
    try:
        for start in tqdm(range(0, len(rows), batch_size), desc="generative perplexity", disable=not progress):
            batch = order[start : start + batch_size]
            nats[batch] = _nats_of_batch([torch.tensor(rows[index]) for index in batch], model)
    finally:
        model.train(was_training)
    return nats


def _nats_of_batch(rows: list[Tensor], model: PreTrainedModel) -> Tensor:
    input_ids = pad_sequence(rows, batch_first=True).to(model.device)
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    labels = input_ids.masked_fill(attention_mask == 0, IGNORE_INDEX)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    # Logits at n are for the token at n + 1. One row at a time: in float32 the logits of a batch take gigabytes.
    token_nats = [
        F.cross_entropy(row[:-1].float(), label[1:], ignore_index=IGNORE_INDEX, reduction="none")
        for row, label in zip(logits, labels.to(logits.device), strict=True)
    ]
    return torch.stack(token_nats).cpu().double().sum(dim=1)
