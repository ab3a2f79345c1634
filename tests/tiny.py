# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Real models, trainings and generators small enough for tests."""

import torch

from md4_hf import MD4Config, MD4ForMaskedDiffusion, MD4TrainingArguments
from md4_hf.objective.noise import sample_seed


# All files of a shared adapter: no pickle is among them.
ADAPTER_FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "base_model.json", "loss.png"}
ADAPTER_FILES |= {"tokenizer.json", "tokenizer_config.json"}


def with_normal_weights(config: MD4Config, std: float, seed: int = 0, model_class=MD4ForMaskedDiffusion):
    """A model of this configuration, whose parameters are all normal with this standard deviation."""
    torch.manual_seed(seed)
    model = model_class(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def random_model(vocab_size: int, length: int, std: float, seed: int = 0, **kwargs) -> MD4ForMaskedDiffusion:
    """Two layers of width 32 with normal weights everywhere: a fresh model's head and gates are zero."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": length}
    return with_normal_weights(MD4Config(vocab_size=vocab_size, **sizes, **kwargs), std, seed)


def random_image_model(
    levels: int, image_size: int | list[int], num_channels: int = 1, std: float = 0.3, seed: int = 0, **kwargs
) -> MD4ForMaskedDiffusion:
    """A U-Net of width 64, where norm groups have two channels and classes an effect, with normal weights."""
    options = {"backbone": "unet", "hidden_size": 64, "num_hidden_layers": 1, **kwargs}
    config = MD4Config(vocab_size=levels + 1, image_size=image_size, num_channels=num_channels, **options)
    return with_normal_weights(config, std, seed)


@torch.no_grad()
def logits_of(model, length: int) -> torch.Tensor:
    """Logits of fixed ids at fixed times, for a model of text8."""
    ids = torch.arange(2 * length).reshape(2, length) % 28
    return model.eval()(ids, timesteps=torch.tensor([0.3, 0.8])).logits


def losses_of_steps(model, make_batch, learning_rate: float, steps: int = 3) -> list[float]:
    """Losses before each of some steps of gradient descent, on the batches that a function makes."""
    optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = model(**make_batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same_texts(num_tokens: int, batch: int, length: int) -> dict[str, torch.Tensor]:
    """The same clean ids at each call, after which the model draws the same noise too."""
    torch.manual_seed(0)
    x0 = torch.randint(num_tokens, (batch, length))
    return {"input_ids": x0, "labels": x0}


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


def trained(trainer, checkpoint=None):
    """The trainer after its training, from a checkpoint if one is given."""
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def at_once_and_in_parts(make_trainer, folder, batch: int, accumulation: int, **options):
    """Two trained trainers: their steps are taken in one batch, and in micro-batches of this size and number."""
    in_parts = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    return (
        trained(make_trainer(folder / name, **{**options, **sizes}))
        for name, sizes in (("at_once", {}), ("in_parts", in_parts))
    )


def unbroken_and_resumed(make_trainer, folder, step: int, resumed: dict | None = None, **options):
    """Two trained trainers: one has resumed from the checkpoint of this step, made anew with the options `resumed`."""
    unbroken = trained(make_trainer(folder / "unbroken", **options))
    trained(make_trainer(folder / "run", save_strategy="steps", save_steps=step, **options))
    new = make_trainer(folder / "run", **{**options, **(resumed or {})})
    return unbroken, trained(new, str(folder / "run" / f"checkpoint-{step}"))


def weights(model) -> torch.Tensor:
    """All parameters, in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


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


def row_generators(seed: int, count: int) -> list[torch.Generator]:
    """Generators of the samples that the command line draws with a seed."""
    return [seeded(sample_seed(seed, index)) for index in range(count)]
