# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversations cut to what a model can read, with room for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..core.chat_messages import encode_prompt
from ..core.denoiser_inputs import block_length_of


def max_prompt_tokens(config: Any, max_new_tokens: int | None, block_length: int | None, use_cache: bool) -> int:
    """Tokens of a conversation that leave `max_new_tokens`, or else a quarter of the model's length, to an answer.

    Of a model that writes block by block to any length, always a quarter.
    """
    length = config.max_position_embeddings
    room = max_new_tokens or length // 4
    if use_cache and block_length_of(config, block_length) is not None:
        room = min(room, length // 4)
    return max(length - room, 1)


def fit_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], longest: int
) -> tuple[list[dict[str, str]], int]:
    """Messages without the oldest turns, until they have at most `longest` tokens; and the number of turns left out.

    Raises:
        ValueError: The last message alone is too long.
    """
    kept, num_dropped = list(messages), 0
    while (length := len(encode_prompt(tokenizer, kept))) > longest:
        users = [number for number, message in enumerate(kept) if message["role"] == "user"]
        if len(users) == 1:
            raise ValueError(
                f"A message must have at most {longest} tokens with what the chat template adds, got {length}."
            )
        del kept[users[0] : users[1]]
        num_dropped += 1
    return kept, num_dropped
