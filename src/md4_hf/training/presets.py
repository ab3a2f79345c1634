# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Configurations to train from: the paper's, and small ones for a laptop's processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Arguments of a model, its training and its data."""

    model: dict[str, Any]  # of `MD4Config`; the vocabulary and the length come from the tokenizer and `block_size`
    training: dict[str, Any]  # of `MD4TrainingArguments`
    data: dict[str, Any]  # of `DataArguments`, and of `ImageDataArguments` for images
    tokenizer: str | None  # name or path for `load_tokenizer`; None for images
    batch_size: int  # sequences or images per optimizer step, over all devices
    tokenizer_of_other_data: str | None = None  # in place of `tokenizer`, where that one is for `data` alone
    paper: str | None = None  # result in the paper for this configuration

    @property
    def is_image(self) -> bool:
        """Whether the model is one of images."""
        return self.tokenizer is None


_PAPER_MODEL = {
    "mlp_type": "glu",
    "modulation": "adaln_zero",
    "depth_scaled_init": True,
    "masking_schedule": "linear",
    "conditioning_size": 64,
}
_PAPER_TRAINING = {
    "max_steps": 1_000_000,
    "warmup_steps": 2000,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.03,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 0.0,  # the official runs do not clip
    "ema_decay": 0.9999,
    "bf16": True,
    "eval_strategy": "steps",
    "eval_steps": 10_000,
    "save_strategy": "steps",
    "save_steps": 10_000,
    "save_total_limit": 3,
    "logging_steps": 100,
    "dataloader_num_workers": 2,  # the next batches are made ready while a step runs
    "dataloader_persistent_workers": True,
}
_SMALL_TRAINING = {
    "lr_scheduler_type": "cosine",
    "adam_beta2": 0.99,
    "max_grad_norm": 1.0,
    "ema_decay": 0.99,
    "per_device_train_batch_size": 32,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "save_total_limit": 1,
}
# GenMD4 starts from the linear schedule, 1 - t^w with w = 1 for every token.
_GENMD4 = {"masking_schedule": "poly", "schedule_power": 1.0, "learn_masking_schedule": True}


def _paper_model(width: int, layers: int, heads: int, dropout: float) -> dict[str, Any]:
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    rates = {f"{place}_dropout": dropout for place in ("embedding", "attention", "residual")}
    return {**_PAPER_MODEL, **rates, **size}


def _genmd4(preset: Preset, paper: str) -> Preset:
    return replace(preset, model={**preset.model, **_GENMD4}, paper=paper)


_TINY = Preset(
    model={
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "mlp_type": "swiglu",
        "time_conditioning": False,
        "depth_scaled_init": True,
        "attn_implementation": "eager",  # the fastest on a processor for sequences as short as these
    },
    training={
        "max_steps": 2100,
        "learning_rate": 5e-3,
        "warmup_steps": 100,
        "weight_decay": 0.03,
        "use_muon": True,
        "matmul_precision": "medium",
        "bf16": True,
        "per_device_eval_batch_size": 128,
        "eval_steps": 150,
        "logging_steps": 30,
        "save_steps": 700,
        **_SMALL_TRAINING,
    },
    data={"data": "pydoc", "block_size": 64},
    tokenizer="text8",
    tokenizer_of_other_data="bytes",
    batch_size=32,
)
# English of installed libraries in a few minutes: a large BPE, whose tokens are mostly words, and many small steps.
_DEMO = replace(
    _TINY,
    training={
        **_TINY.training,
        "max_steps": 2000,
        "eval_steps": 250,
        "logging_steps": 125,
        "save_steps": 500,
        "text_samples": 1,
        "per_device_train_batch_size": 16,
    },
    data={"data": "docstrings", "block_size": 64, "validation_fraction": 0.03},
    tokenizer="bpe:8192",
    tokenizer_of_other_data="bpe:8192",
    batch_size=16,
)
_TEXT8 = Preset(
    model={**_paper_model(768, 12, 12, dropout=0.05), "embedding_size": 64},
    training={**_PAPER_TRAINING, "learning_rate": 5e-4},
    data={"data": "afmck/text8", "validation_split": "validation", "block_size": 256},
    tokenizer="text8",
    batch_size=512,
    paper="at most 1.37 bits per character on the text8 test set (paper, Table 2)",
)
_OPENWEBTEXT_SMALL = Preset(
    model=_paper_model(768, 12, 12, dropout=0.02),
    training={**_PAPER_TRAINING, "learning_rate": 3e-4},
    data={"data": "Skylion007/openwebtext", "block_size": 1024, "validation_fraction": 0.0125},
    tokenizer="gpt2",
    batch_size=512,
    paper="perplexity at most 22.13 on OpenWebText validation; zero-shot at most 34.94 on WikiText-2 (paper)",
)
PRESETS: dict[str, Preset] = {
    "tiny": _TINY,
    "demo": _DEMO,
    "text8": _TEXT8,
    "openwebtext-small": _OPENWEBTEXT_SMALL,
    "openwebtext-medium": replace(
        _OPENWEBTEXT_SMALL,
        model=_paper_model(1024, 24, 16, dropout=0.0),
        paper="perplexity at most 16.64 on OpenWebText validation; zero-shot at most 25.84 on WikiText-2 (paper)",
    ),
    "text8-genmd4": _genmd4(_TEXT8, "at most 1.34 bits per character on the text8 test set (paper, Table 2)"),
    "openwebtext-small-genmd4": _genmd4(
        _OPENWEBTEXT_SMALL, "perplexity at most 21.80 on OpenWebText validation (paper)"
    ),
}


# Images --------------------------------------------------------------------------------------------------------------

_PAPER_IMAGE_TRAINING = {
    **_PAPER_TRAINING,
    "max_steps": 2_000_000,
    "learning_rate": 2e-4,
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "adam_beta2": 0.99,
    "random_flip": True,
}
# The schedules of the official runs are not known here: cosine and linear are choices of this package.
_IMAGENET64 = Preset(
    model={
        "backbone": "uvit",
        "image_size": 64,
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "dit_hidden_size": 768,
        "dit_num_hidden_layers": 20,
        "dit_num_attention_heads": 12,
        "masking_schedule": "cosine",
    },
    training={**_PAPER_IMAGE_TRAINING, "weight_decay": 0.03, "dataloader_num_workers": 8},
    data={"data": "benjamin-paine/imagenet-1k-64x64", "validation_split": "validation", "convert": True},
    tokenizer=None,
    batch_size=512,
)
PRESETS |= {
    "digits": Preset(
        model={
            "backbone": "unet",
            "image_size": 8,
            "num_channels": 1,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "channel_multipliers": [1, 2],
            "num_classes": 10,
            "class_dropout": 0.1,
            "residual_dropout": 0.1,
        },
        training={
            "max_steps": 1500,
            "learning_rate": 4e-3,
            "warmup_steps": 60,
            "weight_decay": 0.01,
            "per_device_eval_batch_size": 180,
            "eval_steps": 300,
            "logging_steps": 50,
            "save_steps": 500,
            "image_samples": 50,
            **_SMALL_TRAINING,
        },
        data={"data": "digits", "num_levels": 17},
        tokenizer=None,
        batch_size=32,
    ),
    "cifar10": Preset(
        model={
            "backbone": "unet",
            "image_size": 32,
            "hidden_size": 128,
            "num_hidden_layers": 32,
            "residual_dropout": 0.1,
            "masking_schedule": "cosine",
            "num_train_timesteps": 256,
        },
        training=_PAPER_IMAGE_TRAINING,
        data={"data": "uoft-cs/cifar10", "validation_split": "test"},
        tokenizer=None,
        batch_size=256,
        paper="at most 2.75 bits per dimension on the CIFAR-10 test set (paper)",
    ),
    "imagenet64-likelihood": replace(
        _IMAGENET64,
        model={**_IMAGENET64.model, "masking_schedule": "linear"},
        paper="at most 3.40 bits per dimension on downsampled ImageNet 64 × 64 (paper)",
    ),
    "imagenet64-samples": _IMAGENET64,
    "imagenet64-class": replace(_IMAGENET64, model={**_IMAGENET64.model, "num_classes": 1000, "class_dropout": 0.1}),
}
