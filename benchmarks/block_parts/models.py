# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Models that are compared: one network as autoregression, as block diffusion and as MD4; and the judge of texts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kept_runs import trained


LENGTH = 64
NETWORK = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "block_size": LENGTH}
SIZES = (1, 4, 16, LENGTH)
AUTOREGRESSIVE, BIDIRECTIONAL, ALL_MASKED = "autoregressive", "MD4", "B = 1, all masked"
# Each model: the options in which it differs from the others.
MODELS: dict[str, dict[str, Any]] = {
    AUTOREGRESSIVE: {"objective": "ar"},
    ALL_MASKED: {"diffusion_block_size": 1, "num_train_timesteps": 1},
    **{f"B = {size}": {"diffusion_block_size": size} for size in SIZES},
    BIDIRECTIONAL: {},
}
TEXT_LENGTH = 4 * LENGTH  # of the texts that are drawn, and which the judge reads
JUDGE = {"objective": "ar", "block_size": TEXT_LENGTH, "total_batch_size": 8, "per_device_train_batch_size": 8}


def model(args: argparse.Namespace, data: str, name: str, seed: int) -> tuple[Path, dict[str, float]]:
    """Folder and held-out figures of one of `MODELS`, which is trained if it has not been."""
    options = _options(data, args.max_steps, seed=seed, final_eval_draws=args.draws, **NETWORK, **MODELS[name])
    return trained(args.work_dir, options)


def judge(args: argparse.Namespace, data: str) -> tuple[Path, dict[str, float]]:
    """Folder and held-out figures of the judge: an autoregressive model of the preset's size, for longer texts."""
    return trained(args.work_dir, _options(data, args.judge_steps, **JUDGE))


def _options(data: str, max_steps: int, **options: Any) -> dict[str, Any]:
    """Options of `md4 train`: those that all trainings share, and others."""
    shared = {"preset": "tiny", "tokenizer": "text8", "data": data, "max_steps": max_steps}
    return {**shared, "warmup_steps": max_steps // 10, **options}
