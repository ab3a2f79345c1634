# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts to ids and back, in one way for training, evaluation, prompts and the evaluation harness.

The rule:

- Nothing is added: no token at the beginning or end of a text.
- The names of special and other added tokens in a text, such as chat markers, are these tokens.
- The mask is the exception. In a prompt its name is a gap to fill; a clean text has no mask, and spells the name out.
- A text that continues another one, or follows a gap or a marker, begins with no space of the tokenizer's own, so that
  decoding gives back what was encoded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


# Texts to stand before a continuation. With one of them no token reaches across: they are of different classes.
LEADS = (".", "0", "a", "\n")
PROBES = ("a", "Z")
SPACES = r"\s*"
METHODS_OF_A_CALL = ("__call__", "_call_one", "_encode_plus", "_batch_encode_plus")  # in transformers 5 and 4


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    after: Sequence[str | None] | None = None,
    reads_masks: bool = False,
) -> list[list[int]]:
    """Ids of texts by the rule of this module.

    Args:
        texts: any strings; the ids of an empty one are none.
        after: for each text that continues another one the text before it, which may be empty if it is not known; None
            for a text that begins. All texts begin by default.
        reads_masks: whether the name of the mask is the mask, as in prompts, or is spelled out.

    Raises:
        ValueError: the tokenizer has no other token for the name of its mask.
    """
    texts = list(texts)
    before: list[str | None] = [None] * len(texts) if after is None else list(after)
    rows, mask_token_id = _encode_segments(tokenizer, texts, before), tokenizer.mask_token_id
    if reads_masks or mask_token_id is None:
        return rows
    for number, row in enumerate(rows):
        if mask_token_id in row:
            rows[number] = _spell_out(tokenizer, texts[number], before[number])
    return rows


def decode_continuation(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], **options: bool) -> str:
    """Text of ids that continue others, with the space that begins it, if there is one; `options` as in `decode`."""
    text = tokenizer.decode(ids, **options)
    for lead in LEADS if depends_on_place(tokenizer) else ():
        joined = tokenizer.decode([*_plain(tokenizer, [lead])[0], *ids], **options)
        if joined.startswith(lead):
            return joined.removeprefix(lead)
    return text


def depends_on_place(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word has other ids at the beginning of a text than behind a sign, as with a space put before a text."""
    joined = [lead + probe for lead in LEADS for probe in PROBES]
    rows = iter(_plain(tokenizer, [*PROBES, *LEADS, *joined]))  # one call, as it is made for each batch of texts
    alone = list(itertools.islice(rows, len(PROBES)))
    lead_ids = list(itertools.islice(rows, len(LEADS)))
    for given, at_the_beginning in itertools.product(lead_ids, alone):
        if _without_lead(tokenizer, given, next(rows)) not in (None, at_the_beginning):
            return True
    return False


def _encode_segments(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], before: list[str | None]
) -> list[list[int]]:
    """Ids of texts with all names of tokens read; where the place matters, segment by segment between these."""
    if not texts or not depends_on_place(tokenizer):
        return _plain(tokenizer, texts)
    names = _added_tokens(tokenizer)
    rows: list[list[list[int]]] = []
    begins, continues = [], []  # of segments: the list to fill, the text; and the text before it
    for text, previous in zip(texts, before, strict=True):
        row: list[list[int]] = []
        for place, segment in enumerate(names.split(text) if names else [text]):
            ids: list[int] = []
            row.append(ids)
            if segment and (place % 2 or (place == 0 and previous is None)):  # names stand at odd places
                begins.append((ids, segment))
            elif segment:
                lead = (previous or "") if place == 0 else ""
                continues.append((ids, segment, names.split(lead)[-1] if names else lead))
        rows.append(row)
    for (ids, _), found in zip(begins, _plain(tokenizer, [text for _, text in begins]), strict=True):
        ids += found
    found_ids = _continue(tokenizer, [lead for _, _, lead in continues], [text for _, text, _ in continues])
    for (ids, _, _), found in zip(continues, found_ids, strict=True):
        ids += found
    return [[token_id for ids in row for token_id in ids] for row in rows]


def _continue(tokenizer: PreTrainedTokenizerBase, leads: list[str], texts: list[str]) -> list[list[int]]:
    """Ids of texts without the space that would begin them: behind their own lead, or else one of `LEADS`."""
    rows = _behind(tokenizer, leads, texts)
    for lead in LEADS:
        missing = [number for number, ids in enumerate(rows) if ids is None]
        found = _behind(tokenizer, [lead] * len(missing), [texts[number] for number in missing])
        for number, ids in zip(missing, found, strict=True):
            rows[number] = ids
    plain = iter(_plain(tokenizer, [text for text, ids in zip(texts, rows, strict=True) if ids is None]))
    return [next(plain) if ids is None else ids for ids in rows]


def _behind(tokenizer: PreTrainedTokenizerBase, leads: Sequence[str], texts: Sequence[str]) -> list[list[int] | None]:
    """Ids of texts behind their leads; None where a lead has no token, an unknown one, or others with the text."""
    alone = dict(zip(lead_texts := sorted(set(leads)), _plain(tokenizer, lead_texts), strict=True))
    joined = _plain(tokenizer, [lead + text for lead, text in zip(leads, texts, strict=True)])
    return [_without_lead(tokenizer, alone[lead], ids) for lead, ids in zip(leads, joined, strict=True)]


def _without_lead(tokenizer: PreTrainedTokenizerBase, lead: list[int], ids: list[int]) -> list[int] | None:
    """Ids behind those of a lead; None if it has no token, an unknown one, or others here."""
    if not lead or lead[-1] == tokenizer.unk_token_id or ids[: len(lead)] != lead:
        return None
    return ids[len(lead) :]


def _spell_out(tokenizer: PreTrainedTokenizerBase, text: str, before: str | None) -> list[int]:
    """Ids of a text in which the name of the mask is ordinary text: cut within the name, no piece has it."""
    name, mask_token_id = str(tokenizer.mask_token), tokenizer.mask_token_id
    within = f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})"
    first, *others = re.split(within, text, flags=re.IGNORECASE)
    rows = _encode_segments(tokenizer, [first, *others], [before, *[""] * len(others)])
    ids = [token_id for row in rows for token_id in row]
    if mask_token_id in ids:  # a name of one character
        ids = _plain(tokenizer, [text], split_special_tokens=True)[0]
    if mask_token_id in ids:
        raise ValueError(f"`tokenizer` must have a token besides the mask for {name!r} in texts, got {text[:40]!r}.")
    return ids


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern | None:
    """Pattern of the tokens that are found in a text before the rest is encoded, longest first, as one group."""
    names = []
    for token in sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: -len(token.content)):
        name = SPACES * token.lstrip + re.escape(token.content) + SPACES * token.rstrip
        names.append(rf"(?<!\w){name}(?!\w)" if token.single_word else name)
    return re.compile(f"({'|'.join(names)})") if names else None


def _plain(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], split_special_tokens: bool = False
) -> list[list[int]]:
    """Ids of texts as the tokenizer gives them, without a warning that they are longer than the model."""
    if not texts:
        return []
    if not split_special_tokens and _calls_backend_alone(tokenizer):
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        # No offsets are computed, and no `Encoding` is turned into lists that are not asked for: twice as fast.
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=split_special_tokens,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]


def _calls_backend_alone(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer does no more than ask `tokenizers`: no class changes what is asked."""
    kind = PreTrainedTokenizerFast
    return isinstance(tokenizer, kind) and all(
        getattr(type(tokenizer), name, None) is getattr(kind, name, None) for name in METHODS_OF_A_CALL
    )
