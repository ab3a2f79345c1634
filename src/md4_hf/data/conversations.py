# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversations to ids with the answers to score: each answer given what was said before, or all of them together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..core.chat_messages import ASSISTANT, render_messages, render_prompt
from ..core.text_encoding import encode_texts


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML}
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # marks an answer in a template


@dataclass
class Draft:
    """Ids of an example before its end, and which of them are scored."""

    input_ids: list[int]
    is_scored: list[bool]

    def add(self, input_ids: list[int], is_scored: bool):
        """Append ids."""
        self.input_ids += input_ids
        self.is_scored += [is_scored] * len(input_ids)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is scored."""
        return not any(self.is_scored)


def read_chat_template(name: str) -> str:
    """Chat template by its name in `TEMPLATES`, or of a Jinja file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no text or cannot be read.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    rule = f"`chat_template` must be one of {sorted(TEMPLATES)} or a Jinja file, got {name!r}"
    try:
        template = Path(name).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{rule}.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{rule}: {error}.") from error
    if not template.strip():
        raise ValueError(f"{rule}, an empty file.")
    return template


def draft_answers(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], first: int, turns: str, where: str
) -> list[Draft]:
    """Drafts of a conversation, whose answers from message `first` on are scored; an empty answer is not.

    Args:
        tokenizer: tokenizer with a chat template.
        messages: checked messages.
        first: number of the first message that may be scored.
        turns: "each": a draft for each answer, which ends with it; "together": one draft of the conversation.
        where: name of the messages in errors.

    Returns:
        the drafts; of an answer that is empty, an empty one; of a conversation without answers, none.
    """
    numbers = [number for number, role in enumerate(_roles(messages)) if role == ASSISTANT and number >= first]
    kept = [number for number in numbers if messages[number]["content"].strip()]
    if turns == "together":
        text, spans = render_answers(tokenizer, messages, kept, where)
        return [_draft(tokenizer, text, spans)] if numbers else []
    drafts = []
    for number in numbers:
        answered = messages[: number + 1]
        text, spans = render_answers(tokenizer, answered, [number] if number in kept else [], where)
        drafts.append(_draft(tokenizer, text, spans))
    return drafts


def render_answers(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], numbers: Sequence[int], where: str
) -> tuple[str, list[tuple[int, int]]]:
    """Text of a conversation, and the characters of some answers in it, with the end that the template gives them.

    An answer is what the template marks with `{% generation %}`. Where it marks none, an answer begins where the prompt
    before it ends, and ends where the conversation up to it ends.

    Args:
        tokenizer: tokenizer with a chat template.
        messages: checked messages.
        numbers: numbers of the answers among the messages.
        where: name of the messages in errors.

    Raises:
        ValueError: the template refuses the conversation; or it marks no answers, and the text of a beginning of the
            conversation is not the beginning of its text.
    """
    if GENERATION.search(tokenizer.get_chat_template()):
        text, marked = render_messages(tokenizer, messages, where, return_assistant_tokens_mask=True)
        answers = [number for number, role in enumerate(_roles(messages)) if role == ASSISTANT]
        if len(marked) != len(answers):
            rule = f"mark each of the {len(answers)} answers with {{% generation %}}"
            raise ValueError(f"{where}: the chat template must {rule}, got {len(marked)} marks.")
        of_number = dict(zip(answers, marked, strict=True))
        return text, [of_number[number] for number in numbers]
    text, spans = render_messages(tokenizer, messages, where)[0], []
    for number in numbers:
        before = render_prompt(tokenizer, messages[:number], where)
        up_to = render_messages(tokenizer, messages[: number + 1], where)[0]
        if not (up_to.startswith(before) and text.startswith(up_to)):
            raise ValueError(
                f"{where}: the chat template must mark answers with {{% generation %}}, or write a conversation so "
                "that the text of each beginning, with the generation prompt, is the beginning of its text; it writes "
                f"message {number} in another way."
            )
        spans.append((len(before), len(up_to)))
    return text, spans


def _roles(messages: Sequence[Mapping[str, str]]) -> list[str]:
    return [message["role"] for message in messages]


def _draft(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]]) -> Draft:
    """Draft of a text: prompts have the ids that they have when they are sampled from, and answers continue them.

    An answer is scored up to the EOS token in it, if it has one: templates put a line break behind. After the last
    answer comes nothing else.
    """
    if not spans:
        return Draft([], [])
    cuts = [0, *(place for span in spans for place in span)]
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
    ids = encode_texts(tokenizer, pieces, after=[None, *pieces[:-1]])
    draft = Draft([], [])
    for place, piece_ids in enumerate(ids):
        is_answer = place % 2 == 1
        end = _end_of_answer(piece_ids, tokenizer.eos_token_id) if is_answer else len(piece_ids)
        draft.add(piece_ids[:end], is_answer)
        if place < len(ids) - 1:
            draft.add(piece_ids[end:], False)
    return draft


def _end_of_answer(ids: list[int], eos_token_id: int | None) -> int:
    """Number of the ids up to the last EOS token; of all without one."""
    places = [place for place, token_id in enumerate(ids) if token_id == eos_token_id]
    return places[-1] + 1 if places else len(ids)
