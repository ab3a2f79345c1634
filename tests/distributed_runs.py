# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Trainings that `test_distributed.py` compares: in one process, and (this file as a script) in two.

python distributed_runs.py FOLDER KIND OBJECTIVE...                        # by accelerate's debug_launcher
torchrun --nproc-per-node 2 distributed_runs.py FOLDER KIND OBJECTIVE...
"""

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.utils import DistributedType
from datasets import Dataset
from tiny import random_model, training_arguments
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, LlamaConfig

from md4_hf import (
    LoraArguments,
    MD4ForMaskedDiffusion,
    MD4Trainer,
    add_adapter,
    build_text8_tokenizer,
    load_model,
)


LENGTH, VOCAB = 8, 27  # text8's, of which five are used
MODELS = {
    "genmd4": {"masking_schedule": "poly", "schedule_power": 1.0, "learn_masking_schedule": True},
    "dropout": {"residual_dropout": 0.5},
    "blocks": {"block_size": 4},
    "blocks-lora": {"block_size": 4},
}
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 40, "max_position_embeddings": LENGTH}
TIED = {"tie_word_embeddings": True, "num_key_value_heads": 1}
# Backbones of transformers: opened as they are, and as MD4 models that were saved before.
BACKBONES = {"llama": (AutoModelForCausalLM, LlamaConfig(**SIZES, **TIED))}
BACKBONES["llama-lora"] = (AutoModelForCausalLM, LlamaConfig(**SIZES, attention_bias=True))
BACKBONES["bert"] = (
    AutoModelForMaskedLM,
    BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
)
BLOCKS = {"llama-blocks": 4, "llama-blocks-lora": 2}  # tokens of a block of a backbone
BACKBONES |= dict.fromkeys(BLOCKS, BACKBONES["llama-lora"])
FOLDER_OF_BACKBONES = "MD4_TEST_BACKBONES"
AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
ZERO = {**dict.fromkeys(AUTO, "auto"), "zero_allow_untested_optimizer": True}


def dataset(count, seed=0):
    """Rows in which every second token repeats the one before, and some tokens are rare."""
    ids = np.random.default_rng(seed).choice(5, size=(count, LENGTH), p=[0.6, 0.25, 0.1, 0.04, 0.01])
    ids[:, 1::2] = ids[:, ::2]
    return Dataset.from_dict({"input_ids": ids.tolist()})


def save_backbones(folder):
    """Write a language model for each backbone, or an MD4 model around it; runs find them by the environment."""
    for name, (auto, config) in BACKBONES.items():
        torch.manual_seed(0)
        model = auto.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / name)
        if name != "llama":
            options = {"block_size": BLOCKS.get(name), "predicts_next": name == "llama-blocks"}
            model = MD4ForMaskedDiffusion.from_backbone(folder / name, build_text8_tokenizer(), **options)
            model.save_pretrained(folder / name)
    os.environ[FOLDER_OF_BACKBONES] = str(folder)


def model_around_backbone(name):
    """An MD4 model around a language model, with an adapter where the name says so."""
    source = str(Path(os.environ[FOLDER_OF_BACKBONES], name))
    if name == "llama":
        return MD4ForMaskedDiffusion.from_backbone(source, build_text8_tokenizer(), predicts_next=True)
    model = load_model(source, dtype=torch.float32)
    torch.manual_seed(0)
    return add_adapter(model, LoraArguments(lora_r=4)) if name.endswith("lora") else model


def make_model(objective):
    if objective in BACKBONES:
        return model_around_backbone(objective)
    model = random_model(VOCAB + 1, LENGTH, std=0.1, **MODELS.get(objective, {}))
    if objective == "genmd4":
        with torch.no_grad():
            model.token_schedule.free_exponents.copy_(torch.linspace(-0.5, 1.5, VOCAB + 1))
    return add_adapter(model, LoraArguments(lora_r=4)) if objective.endswith("lora") else model


def make_trainer(folder, objective, train_size=21, **options):
    """Three steps an epoch, the last of which 21 examples do not fill."""
    defaults = {"per_device_eval_batch_size": 4, "max_steps": 6, "ema_decay": 0.5, "card_samples": 0}
    defaults |= {"save_strategy": "steps", "save_steps": 4}
    defaults |= {"eval_strategy": "steps", "eval_steps": 3, "text_samples": 1, "text_sample_steps": 2}
    args = training_arguments(
        folder, **{**defaults, **options}
    )  # first, as in a command: ZeRO-3 opens models otherwise
    return MD4Trainer(
        model=make_model(objective),
        args=args,
        processing_class=build_text8_tokenizer(),
        train_dataset=dataset(train_size),
        eval_dataset=dataset(21, seed=1),
    )


def run(folder, objective, checkpoint=None, **options):
    """Train, evaluate and save: `folder/run` has the checkpoints, `folder/model` the averaged weights."""
    folder = Path(folder)
    trainer = make_trainer(folder / "run", objective, **options)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    metrics = trainer.evaluate()
    trainer.save_model(str(folder / "model"))
    trainer.save_repository(folder / "repository")
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        torch.save({"logs": logs, "metrics": metrics}, folder / "result.pt")
    return trainer


def options_of(kind):
    """Training arguments that shard a training on two processes."""
    if kind.startswith("fsdp2"):
        # On the CPU, accelerate takes FSDP for granted only where it believes in several GPUs.
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        config = {"version": 2}
        config["auto_wrap_policy"] = "TRANSFORMER_BASED_WRAP"
        config["state_dict_type"] = "SHARDED_STATE_DICT" if kind == "fsdp2-sharded" else "FULL_STATE_DICT"
        options = {"fsdp": True, "fsdp_config": config, "accelerator_config": {"use_configured_state": True}}
        return options | ({"bf16": True} if kind == "fsdp2-bf16" else {})
    if kind.startswith("zero"):
        stage = int(kind[4])
        # Parameters of up to 20 elements stay gathered under ZeRO-3: both kinds of parameter are tried.
        persistent = {"stage3_param_persistence_threshold": 20} if stage == 3 else {}
        return {"deepspeed": {**ZERO, "zero_optimization": {"stage": stage, **persistent}}}
    return {}


def main(folder, kind, *objectives):
    """Per objective: 2 ranks x 4, the same resumed in its second epoch, and 2 ranks x 2 x 2 micro-batches."""
    options = options_of(kind)
    for objective in objectives:
        at = Path(folder) / objective
        trainer = run(at / "whole", objective, per_device_train_batch_size=4, **options)
        assert trainer.args.world_size == 2
        assert trainer.is_fsdp_enabled == kind.startswith("fsdp2")
        assert trainer.is_deepspeed_enabled == kind.startswith("zero")
        checkpoint = at / "whole" / "run" / "checkpoint-4"
        run(at / "resumed", objective, checkpoint, per_device_train_batch_size=4, **options)
        parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        run(at / "parts", objective, **parts, **options)
    if kind == "ddp":
        assert_ranks_drop_differently(Path(folder) / "dropout")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def assert_ranks_drop_differently(folder):
    """Dropout is the one thing that a rank draws for itself: the same on all, it would be half as much noise."""
    trainer = make_trainer(folder, "dropout", per_device_train_batch_size=4, max_steps=1)
    dropped = []
    dropout = trainer.model.model.layers[0].residual_dropout
    dropout.register_forward_hook(lambda module, args, output: dropped.append(output[:1] == 0))
    trainer.train()
    own = dropped[0].float()
    assert own.mean().item() == pytest.approx(0.5, abs=0.2)
    first, second = trainer.accelerator.gather(own)
    assert not torch.equal(first, second)


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        main(*sys.argv[1:])
    else:
        with contextlib.suppress(FileNotFoundError):  # its file, which the process group has removed already
            debug_launcher(main, args=sys.argv[1:], num_processes=2)
