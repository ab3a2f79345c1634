# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Real models, trainings and generators small enough for tests."""

import torch

from md4_hf import MD4Config, MD4ForMaskedDiffusion, MD4TrainingArguments


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


def random_image_model(
    levels: int, image_size: int | list[int], num_channels: int = 1, std: float = 0.3, seed: int = 0, **kwargs
) -> MD4ForMaskedDiffusion:
    """A U-Net of width 64, where norm groups have two channels and classes an effect, with normal weights."""
    torch.manual_seed(seed)
    options = {"backbone": "unet", "hidden_size": 64, "num_hidden_layers": 1, **kwargs}
    config = MD4Config(vocab_size=levels + 1, image_size=image_size, num_channels=num_channels, **options)
    model = MD4ForMaskedDiffusion(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def training_arguments(folder, **kwargs) -> MD4TrainingArguments:
    """Four steps of eight examples on the CPU, without reports, checkpoints and average, unless told otherwise."""
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "ema_decay": 0.0,
    }
    return MD4TrainingArguments(output_dir=str(folder), **{**defaults, **kwargs})


def logged(trainer, name: str) -> list[float]:
    """All values that a trainer has logged under a name."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def quiet(pipeline):
    """The pipeline, without its progress bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    """A new generator with this seed."""
    return torch.Generator().manual_seed(seed)
