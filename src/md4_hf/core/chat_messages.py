# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversations of messages to text and ids, by the chat template of a tokenizer, in training and in sampling alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .text_encoding import encode_texts


ROLES = ("system", "developer", "user", "assistant", "tool")
ASSISTANT = "assistant"
PROBE = "answer-of-the-assistant"  # to see what a template puts behind it


def check_chat_template(tokenizer: PreTrainedTokenizerBase):
    """Raise a ValueError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise ValueError(
            "`tokenizer` must have a chat template to read messages, got none: set `tokenizer.chat_template`, or put a "
            "chat_template.jinja into its folder."
        )


def check_messages(messages: Any, where: str) -> list[dict[str, str]]:
    """Role and content of each message of a conversation.

    Args:
        messages: list of mappings with a `role` of `ROLES` and a string `content`; other keys are not read.
        where: name of the messages in errors, such as "`messages` in row 3".

    Raises:
        ValueError: anything else, or no message.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"{where} must be a list of messages ({{role, content}}), got {messages!r:.80}.")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where} must have a role and a content in message {number}, got {message!r:.80}.")
        if message["role"] not in ROLES:
            raise ValueError(f"{where} must have roles among {ROLES}, got {message['role']!r} in message {number}.")
        if not isinstance(message["content"], str):
            raise ValueError(
                f"{where} must have a string as content of message {number}, got {message['content']!r:.80}."
            )
        if any("\ud800" <= character <= "\udfff" for character in message["content"]):
            rule = "have Unicode text without lone surrogates as content"
            raise ValueError(f"{where} must {rule} of message {number}, got {message['content']!r:.80}.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], where: str) -> str:
    """Text of a conversation up to the next answer, with all that the template puts before it."""
    return render_messages(tokenizer, messages, where, add_generation_prompt=True)[0]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Any, where: str = "`messages`") -> list[int]:
    """Ids of a conversation up to the next answer; the name of the mask in a message is spelled out."""
    check_chat_template(tokenizer)
    text = render_prompt(tokenizer, check_messages(messages, where), where)
    return encode_texts(tokenizer, [text])[0]


def end_of_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], where: str) -> str:
    """Text that the template puts behind an answer, up to the EOS token if there is one."""
    answered = [*messages, {"role": ASSISTANT, "content": PROBE}]
    behind = render_messages(tokenizer, answered, where)[0].rpartition(PROBE)[2]
    return behind.partition(tokenizer.eos_token)[0] if tokenizer.eos_token else behind


def render_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], where: str, **options: bool
) -> tuple[str, list[tuple[int, int]]]:
    """Text of a conversation, and the first and last characters of what the template marks, on request.

    Args:
        options: `add_generation_prompt`, `return_assistant_tokens_mask`.

    Raises:
        ValueError: the template refuses the conversation.
    """
    try:
        texts, spans = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=tokenizer.get_chat_template(),
            **options,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # templates raise errors of their own, of several kinds
        raise ValueError(f"{where} must be a conversation that the chat template takes: {error}") from error
    return texts[0], spans[0] if spans else []
