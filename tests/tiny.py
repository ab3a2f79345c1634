# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A real model that is small enough for a test."""

import torch

from md4_hf import MD4Config, MD4ForMaskedDiffusion


def random_model(vocab_size: int, length: int, std: float, seed: int = 0, **kwargs) -> MD4ForMaskedDiffusion:
    """Two layers of width 32 with normal weights everywhere: a fresh model's head and gates are zero."""
    torch.manual_seed(seed)
    config = MD4Config(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        **kwargs,
    )
    model = MD4ForMaskedDiffusion(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model
