# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Floating-point operations that a network of text needs."""

from __future__ import annotations

from md4_hf import MD4Config


def forward_flops(config: MD4Config, tokens: int, length: int, masked: int) -> float:
    """Operations of a forward pass over `tokens` in rows of this length: the head is needed at the masked ones."""
    hidden = config.hidden_size
    feed_forward = 2 if config.backbone == "ddit" else 3  # matrices: without, or with a gate
    per_token = 2 * (4 * hidden**2 + feed_forward * hidden * config.intermediate_size)
    per_token += 4 * length * hidden  # attention
    return float(config.num_hidden_layers * tokens * per_token + 2 * masked * hidden * config.vocab_size)


def training_flops(config: MD4Config, tokens: int, length: int, masked: int) -> float:
    """Operations that a loss and its gradient need: three forward passes."""
    return 3.0 * forward_flops(config, tokens, length, masked)
