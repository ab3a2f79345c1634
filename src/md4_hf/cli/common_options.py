# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Options that `--help` shows of commands that have many, by group, the most used first; `--help_all` shows all."""

from __future__ import annotations


_HELD_OUT = ("validation_data", "validation_fraction")
_SAVING = ("save_steps", "save_total_limit", "resume_from_checkpoint", "push_to_hub", "hub_model_id")
_PAIRS = ("messages_column", "prompt_column", "response_column", "chat_template", "eos")

TRAIN = {
    "run": (
        *("preset", "output_dir", "data", "tokenizer", "block_size", "total_batch_size", "max_steps"),
        *("num_train_epochs", "learning_rate", "warmup_steps", "resume_from_checkpoint"),
    ),
    "model": (
        *("objective", "model_name_or_path", "backbone_name_or_path", "hidden_size", "num_hidden_layers"),
        *("num_attention_heads", "masking_schedule", "diffusion_block_size"),
    ),
    "more about the data": ("text_column", *_HELD_OUT, "streaming"),
    "training": (
        *("per_device_train_batch_size", "lr_scheduler_type", "weight_decay", "ema_decay", "bf16"),
        *("activation_checkpointing", "torch_compile", "seed", "use_cpu"),
    ),
    "evaluation, logs and checkpoints": (
        *("eval_strategy", "eval_steps", "logging_steps", "report_to"),
        *(name for name in _SAVING if name != "resume_from_checkpoint"),
    ),
}
FINETUNE = {
    "run": (
        *("data", "output_dir", "full", "lora_r", "lora_alpha", "block_size", "total_batch_size"),
        *("num_train_epochs", "max_steps", "learning_rate", "warmup_steps"),
    ),
    "prompts and responses, conversations": (*_PAIRS, "turns", "packing"),
    "more about the data": ("text_column", *_HELD_OUT),
    "training": (
        *("per_device_train_batch_size", "lr_scheduler_type", "ema_decay", "bf16", "activation_checkpointing"),
        *("seed", "use_cpu"),
    ),
    "evaluation, logs and checkpoints": ("eval_strategy", "eval_steps", "logging_steps", "report_to", *_SAVING),
}
EVALUATE = {
    "data": ("data", *_HELD_OUT, "text_column", "data_split", "block_size", *_PAIRS),
    "evaluation": (
        *("draws", "rounds", "target_stderr", "estimator", "order", "num_inference_steps", "batch_size", "seed"),
        *("bf16", "use_cpu", "base", "revision", "output_file"),
    ),
}
SCORE = {
    "measures": ("judge", "references", "references_split", "text_column", "retokenise", "add_bos", "batch_size"),
    "samples": (
        *("num_samples", "seed", "samples_file", "output_file", "tokenizer", "num_inference_steps", "length"),
        *("block_length", "order", "remasking", "corrector", "temperature", "top_p", "class_labels", "guidance_scale"),
        *("device", "dtype", "base", "revision"),
    ),
}
