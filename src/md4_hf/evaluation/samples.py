# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures of samples that need a model, perplexity and MAUVE under a causal language model; and checks of bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.masked_diffusion import IGNORE_INDEX
from ..core.text_encoding import encode_texts
from ..utils.integers import as_integer
from .sample_statistics import checked_sequences, token_entropy


CITATION = """
@inproceedings{shi2024simplified,
  title = {Simplified and Generalized Masked Diffusion for Discrete Data},
  author = {Shi, Jiaxin and Han, Kehang and Wang, Zhe and Doucet, Arnaud and Titsias, Michalis K.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2024},
  url = {https://arxiv.org/abs/2406.04329}
}
"""


@torch.no_grad()
def generative_perplexity(
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    add_bos: bool = False,
    progress: bool = False,
) -> dict[str, float | int | list[float] | list[int]]:
    """Perplexity of texts under a causal language model, and the entropy of their tokens.

    With nats_i = −Σ_n log p(x_i^n | x_i^{<n}) over the n_i scored tokens of text i, `perplexity` is
    exp(Σ_i nats_i / Σ_i n_i) (as in MDLM, arXiv:2406.07524) and `mean_perplexity` the mean over texts of
    exp(nats_i / n_i) (as in SEDD, arXiv:2310.16834), which is never smaller where all texts have one length.

    - First token: it is given and not scored, as SEDD and MDLM give their samples to GPT-2 without BOS. With
      `add_bos=True`, the BOS token is put before each text and every token of the text is scored, unless the tokenizer
      has none. No other special tokens are added.
    - Long texts are truncated: their first tokens are scored, as many as `max_length` leaves room for.
    - Padding is neither seen nor scored: the result depends on the batches by rounding only.

    A low perplexity is no sign of quality where the entropy is low too: repeated words are easy to predict.

    Args:
        texts: The samples.
        model, tokenizer: A causal language model, on whatever device it is, and its tokenizer. Its mode is restored.
        batch_size: Texts per forward pass, >= 1.
        max_length: Tokens per text, BOS included, >= 2; None for the longest that the model takes.

    Returns:
        `perplexity`; `mean_perplexity`; `nats_per_token`, the logarithm of the first; `token_entropy`, the mean of
        `token_entropy` over the texts, in nats, of the tokens that were kept, without BOS; `num_texts`; `num_tokens`,
        scored; `num_truncated` texts; and per text `text_nats` and `text_num_tokens`, which were scored.

    Raises:
        ValueError: Before the first forward pass: if there are no texts, one has fewer than two tokens, a number is
            too small, `max_length` is more than the model takes, or the tokenizer has ids that the model lacks.
    """
    ids = checked_token_ids(texts, tokenizer, batch_size=batch_size, max_length=max_length)
    return _perplexity_of_rows(ids, model, tokenizer, batch_size, max_length, add_bos, progress)


@torch.no_grad()
def generative_perplexity_of_ids(
    sequences: Tensor | Sequence[Sequence[int] | Tensor],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample_tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    add_bos: bool = False,
    progress: bool = False,
) -> dict[str, float | int | list[float] | list[int]]:
    """`generative_perplexity` of samples in the tokens in which they were drawn, not retokenised.

    A sample may split a text into other tokens than the tokenizer does. Scored as a text, it is split anew, and its
    number of tokens changes; here the causal model sees the sample's own tokens, which it may find unlikely for the
    split alone. SEDD does this, MDLM scores the texts: say which it is. The two tokenizers have to agree on every token
    of the samples.

    Args:
        sequences: Token ids, `(samples, length)` or a list of >= 2 ids per sample, without padding.
        sample_tokenizer: The tokenizer whose ids `sequences` holds. It may have tokens that `tokenizer` lacks, such as
            a mask token, as long as no sample has them.

    The other arguments and the result are those of `generative_perplexity`.

    Raises:
        ValueError: Before the first forward pass: as `generative_perplexity`, and if the tokenizers disagree on a token
            of the samples.
    """
    _check_numbers(batch_size, max_length)
    rows = [row.tolist() for row in checked_sequences(sequences)]
    _check_lengths("sequences", rows)
    check_same_tokens(rows, tokenizer, sample_tokenizer)
    return _perplexity_of_rows(rows, model, tokenizer, batch_size, max_length, add_bos, progress)


@torch.no_grad()
def mauve(
    texts: Sequence[str],
    references: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
) -> float:
    """MAUVE of texts and real ones (arXiv:2102.01454), from the states of a causal language model at the last token.

    The value depends on that model and on the number of texts, from which follows that of the clusters: compare as many
    texts under one model, hundreds or more.

    Args:
        texts, references: The samples, and real texts, best as many of the same length. Empty ones are left out.

    The other arguments are those of `generative_perplexity`.

    Returns:
        A number in (0, 1], 1 for equal distributions.

    Raises:
        ImportError: Without mauve-text.
        ValueError: For a number that is too small, or a `max_length` that is more than the model takes.
    """
    _check_numbers(batch_size, max_length)
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ImportError("MAUVE needs mauve-text: pip install mauve-text faiss-cpu") from error
    of_both = []
    for given in (references, texts):
        ids = [row for row in encode_texts(tokenizer, given) if row]
        of_both.append(_last_states(ids, model, tokenizer, batch_size, max_length).numpy())
    real, drawn = of_both
    return float(compute_mauve(p_features=real, q_features=drawn, verbose=False, seed=0).mauve)


def check_same_tokens(
    sequences: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, sample_tokenizer: PreTrainedTokenizerBase
):
    """Raise a ValueError if an id of these sequences is one token in `sample_tokenizer` and another in `tokenizer`."""
    theirs, ours = ({i: token for token, i in x.get_vocab().items()} for x in (tokenizer, sample_tokenizer))
    for i in sorted({i for row in sequences for i in row}):
        if i not in ours or theirs.get(i) != ours[i]:
            found = f"{theirs.get(i)!r} for id {i}, which is {ours.get(i)!r} in the samples: score their texts instead"
            raise ValueError(f"`tokenizer` must have the tokens of the samples under the same ids, got {found}.")


def _perplexity_of_rows(
    ids: list[list[int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    max_length: int | None,
    add_bos: bool,
    progress: bool,
) -> dict[str, float | int | list[float] | list[int]]:
    """Result of `generative_perplexity` for ids of the model's tokenizer, >= 2 in each row."""
    max_length = _max_length(model, tokenizer, max_length)
    bos = [tokenizer.bos_token_id] if add_bos and tokenizer.bos_token_id is not None else []
    kept = ids if max_length is None else [row[: max_length - len(bos)] for row in ids]
    rows = [bos + row for row in kept]
    largest, size = max(map(max, rows)), model.get_input_embeddings().num_embeddings
    if largest >= size:
        raise ValueError(f"`tokenizer` must give ids below {size}, the vocabulary of the model, got {largest}.")
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
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, batch_size: int, max_length: int | None
) -> list[list[int]]:
    """Token ids of each text, without special tokens, and the checks of `generative_perplexity` that need no model."""
    _check_numbers(batch_size, max_length)
    if isinstance(texts, str):
        raise ValueError(f"`texts` must be a list of texts, got one text: {texts[:40]!r}.")
    if len(texts) == 0:
        raise ValueError("`texts` must hold at least one text, got none.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"`texts` must hold texts, got {type(text).__name__} at index {index}.")
    ids = encode_texts(tokenizer, texts)
    _check_lengths("texts", ids, texts)
    return ids


def _check_lengths(name: str, rows: list[list[int]], texts: Sequence[str] | None = None):
    for index, row in enumerate(rows):
        if len(row) < 2:
            text = "" if texts is None else f": {texts[index][:40]!r}"
            raise ValueError(f"`{name}` must have at least 2 tokens each, got {len(row)} at index {index}{text}.")


def checked_examples(
    predictions: Iterable[float], references: Iterable[float], **sizes: Iterable[float] | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """NELBO, tokens and the sizes that are given of each example, checked, as float64 tensors `(examples,)`.

    Args:
        predictions: NELBO of each example in nats, finite and >= 0.
        references: Numbers of tokens, whole and >= 0, not all 0.
        sizes: Numbers of characters and bytes by name, finite and >= 0, not all 0. A block begins and ends within a
            text, and may stand for a part of a character.
    """
    nelbo = _numbers("predictions", predictions)
    if len(nelbo) == 0:
        raise ValueError("`predictions` must hold the NELBO of at least one example, got none.")
    _check_all("predictions", nelbo, nelbo >= 0, "finite and >= 0 nats")
    num_tokens = _sizes("references", references, len(nelbo), are_whole=True)
    given = {name: _sizes(name, x, len(nelbo)) for name, x in sizes.items() if x is not None}
    return nelbo, num_tokens, given


def _sizes(name: str, values: Iterable[float], num_examples: int, are_whole: bool = False) -> Tensor:
    """Sizes of the examples, not all 0, as float64."""
    sizes = _numbers(name, values)
    if len(sizes) != num_examples:
        raise ValueError(f"`{name}` must have one number for each of {num_examples} predictions, got {len(sizes)}.")
    if are_whole:
        _check_all(name, sizes, (sizes >= 0) & (sizes == sizes.round()), "whole and >= 0")
    _check_all(name, sizes, sizes >= 0, "finite and >= 0")
    if sizes.sum() == 0:
        raise ValueError(f"`{name}` must not be 0 in all, got {num_examples} times 0.")
    return sizes


def _check_numbers(batch_size: int, max_length: int | None):
    as_integer("batch_size", batch_size, 1)
    if max_length is not None:
        as_integer("max_length", max_length, 2)


def _numbers(name: str, values: Iterable[float]) -> Tensor:
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`{name}` must be a list of numbers, got {values!r:.60}.") from None
    if numbers.ndim != 1:
        raise ValueError(f"`{name}` must be a list of numbers, got shape {tuple(numbers.shape)}.")
    return numbers


def _check_all(name: str, values: Tensor, is_good: Tensor, rule: str):
    for index in (~(is_good & values.isfinite())).nonzero():
        raise ValueError(f"`{name}` must be {rule}, got {values[index].item()} at index {index.item()}.")


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """Largest number of tokens to score; None if neither the caller nor the model sets a limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None and tokenizer.model_max_length < 1e9:  # a tokenizer without a limit says 1e30
        limit = tokenizer.model_max_length
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(f"`max_length` must be <= {limit}, the length of the model, got {max_length}.")
    return limit if max_length is None else max_length


def _nats_of_rows(rows: list[list[int]], model: PreTrainedModel, batch_size: int, progress: bool) -> Tensor:
    """−log p of all tokens of each row but its first, `(rows,)` float64 nats."""
    from tqdm.auto import tqdm

    nats = torch.zeros(len(rows), dtype=torch.float64)
    # Rows of like length together need little padding; with the longest first, a lack of memory shows at once.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    was_training = model.training
    model.eval()
    try:
        bar = {"desc": "Generative perplexity", "disable": not progress, "leave": None}  # None: not below another bar
        for start in tqdm(range(0, len(rows), batch_size), **bar):
            batch = order[start : start + batch_size]
            nats[batch] = _nats_of_batch([torch.tensor(rows[index]) for index in batch], model)
    finally:
        model.train(was_training)
    return nats


def _last_states(
    ids: list[list[int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    max_length: int | None,
) -> Tensor:
    """States of the last layer at the last token of each row, `(rows, width)` float32 on the CPU."""
    max_length = _max_length(model, tokenizer, max_length)
    states = []
    for start in range(0, len(ids), batch_size):
        rows = [torch.tensor(row[:max_length]) for row in ids[start : start + batch_size]]
        output = model(**_padded(rows, model), output_hidden_states=True, use_cache=False)
        last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
        states.append(output.hidden_states[-1][torch.arange(len(rows), device=model.device), last].float().cpu())
    return torch.cat(states)


def _padded(rows: list[Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Ids and attention mask of rows of any lengths, padded behind."""
    input_ids = pad_sequence(rows, batch_first=True).to(model.device)
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _nats_of_batch(rows: list[Tensor], model: PreTrainedModel) -> Tensor:
    inputs = _padded(rows, model)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    logits = model(**inputs, use_cache=False).logits
    # Logits at n are for the token at n + 1. One row at a time: in float32 the logits of a batch take gigabytes.
    token_nats = [
        F.cross_entropy(row[:-1].float(), label[1:], ignore_index=IGNORE_INDEX, reduction="none")
        for row, label in zip(logits, labels.to(logits.device), strict=True)
    ]
    return torch.stack(token_nats).cpu().double().sum(dim=1)
