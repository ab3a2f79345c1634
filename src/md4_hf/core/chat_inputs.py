# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Inputs and outputs of a sampler of answers: conversations in, by the chat template of the tokenizer, answers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .chat_messages import check_chat_template, check_messages, encode_prompt, end_of_answer
from .pipeline_inputs import Request, TextInputs
from .text_encoding import decode_continuation


class ChatInputs(TextInputs):
    """Inputs and outputs of a model of text that answers in conversations.

    Args:
        config: The model's configuration.
        tokenizer: A tokenizer with a chat template.
        messages: A conversation, as a list of messages `{role, content}`, or a list of conversations.

    Raises:
        ValueError: Without a tokenizer or chat template, and for messages that are none.
    """

    def __init__(self, config, tokenizer: PreTrainedTokenizerBase | None, messages: Any):
        super().__init__(config, tokenizer)
        if tokenizer is None:
            raise ValueError("`messages` needs a pipeline with a tokenizer; give `input_ids`.")
        check_chat_template(tokenizer)
        is_one = isinstance(messages, (list, tuple)) and all(isinstance(message, Mapping) for message in messages)
        if is_one:
            named = {"`messages`": messages}
        elif isinstance(messages, (list, tuple)):
            named = {f"`messages[{number}]`": conversation for number, conversation in enumerate(messages)}
        else:
            raise ValueError(f"`messages` must be a list of messages, or a list of these, got {messages!r:.80}.")
        self.prompts, self.ends = [], []
        for where, conversation in named.items():
            checked = check_messages(conversation, where)
            self.prompts.append(encode_prompt(tokenizer, checked, where))
            self.ends.append(end_of_answer(tokenizer, checked, where))

    def completed(self, request: Request, eos_early_stop: bool | None) -> Request:
        """A request with the prompts of the conversations, whose answers are bounded, and end where the template does.

        An answer ends with EOS, or with the text that the template puts behind an answer, unless `eos_early_stop` is
        False. With a cache of blocks, which takes any length, it has at most as many tokens as the model's length.
        """
        if request.is_given:
            raise ValueError("Only one of `messages`, `prompt` and `input_ids` may be given.")
        ends = bool(self.eos_token_ids) if eos_early_stop is None else eos_early_stop
        stops, marks = request.stop_strings, sorted({end.strip() for end in self.ends} - {""})
        if marks and eos_early_stop is not False and isinstance(stops, (list, str, type(None))):
            stops = [*([stops] if isinstance(stops, str) else stops or []), *marks]
        request = replace(request, input_ids=self.prompts, eos_early_stop=ends, stop_strings=stops)
        if not request.lengths and not request.is_bounded:
            request = replace(request, max_new_tokens=self.config.max_position_embeddings)
        return request

    def decode(self, sequences: list[Tensor], output_type: str, skip_special_tokens: bool = True) -> list[str]:
        """Answers of rows, without their prompts and the end that the template gives an answer."""
        num_samples = len(sequences) // len(self.prompts)
        return [
            self._answer(ids.tolist(), number // num_samples, skip_special_tokens)
            for number, ids in enumerate(sequences)
        ]

    def _answer(self, ids: list[int], number: int, skip_special_tokens: bool) -> str:
        """Answer in the ids of a row of a conversation, by its number."""
        ids, end = ids[len(self.prompts[number]) :], self.ends[number]
        text, mark = decode_continuation(self.processor, ids, skip_special_tokens=skip_special_tokens), end.strip()
        return text.partition(mark)[0] if mark and mark in text else text.removesuffix(end)
