# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments of an MD4 training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

from ..core.modeling_md4_auto import obstacle_to_pair_masks
from ..objective.clipping import clipped_rates
from ..objective.estimators import check_estimator, nelbo_metrics
from ..utils.options import option
from .elbo_arguments import ElboArguments
from .finite_steps import SKIP, STOP
from .renamed_arguments import RenamedArguments


# Arguments that all processes must have been started with alike.
SAME_ON_ALL_RANKS = (
    *("seed", "data_seed", "max_steps", "num_train_epochs", "learning_rate", "ema_decay", "num_copies", "output_dir"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("backbone_lr_multiplier", "attention_annealing_steps", "schedule_clip"),
    *("save_steps", "eval_steps", "eval_seed", "eval_draws", "random_flip", "on_nonfinite"),
)
LEAST_VALUES = {
    **{"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1},
    **{"gradient_accumulation_steps": 1, "eval_accumulation_steps": 1},
    **{
        "attention_annealing_steps": 0,
        "eval_draws": 1,
        "num_copies": 2,
        "card_samples": 0,
        "text_samples": 0,
        "text_sample_steps": 1,
        "image_samples": 0,
        "image_sample_steps": 1,
    },
}
# Arguments of which the ELBO leaves no choice, nor a single process that names checkpoints and numbers whole batches.
REQUIRED_VALUES = {
    **{"batch_eval_metrics": False, "eval_do_concat_batches": True, "average_tokens_across_devices": True},
    **{"save_on_each_node": False, "auto_find_batch_size": False},
}

# Services of the extra "tracking", and whether each is installed.
TRACKING = {
    "tensorboard": is_tensorboard_available,
    "trackio": is_trackio_available,
    "wandb": is_wandb_available,
}


@dataclass(repr=False)
class MD4TrainingArguments(ElboArguments, RenamedArguments):
    """
    `transformers.TrainingArguments` with the arguments that masked diffusion adds.

    `data_seed` defaults to `seed`, so that every rank sees the same order of the data, and non-finite losses are
    logged as they are.
    """

    ddp_find_unused_parameters: bool | None = option(
        "Look for parameters without gradient in every step of DDP; MD4 has none.", default=False
    )
    logging_nan_inf_filter: bool = option("Leave NaN and infinite losses out of the logged mean.", default=False)

    def __post_init__(self):
        super().__post_init__()
        epochs = self.num_train_epochs
        rules = [
            ("learning_rate", 0.0 <= self.learning_rate < math.inf, ">= 0 and finite"),
            ("on_nonfinite", self.on_nonfinite in (STOP, SKIP), f"{STOP!r} or {SKIP!r}"),
            ("max_steps", self.max_steps > 0 or self.max_steps < 0 < epochs, ">= 1, or `num_train_epochs` > 0"),
            ("ema_decay", 0.0 <= self.ema_decay < 1.0, "in [0, 1)"),
            ("label_smoothing_factor", self.label_smoothing_factor == 0.0, "0: a smoothed loss is no ELBO"),
        ]
        for name in ("schedule_lr_multiplier", "backbone_lr_multiplier"):
            multiplier = getattr(self, name)
            has_one_rate = multiplier == 1.0 or not self.use_muon
            rules += [(name, multiplier > 0.0, "> 0"), (name, has_one_rate, "1 with `use_muon`, which has one rate")]
        for name in ("save_steps", "eval_steps", "logging_steps"):
            value = getattr(self, name)
            rules.append((name, value is None or value > 0.0, "> 0 (below 1 it is a share of all steps)"))
        for name, least in LEAST_VALUES.items():
            value = getattr(self, name)
            rules.append((name, value is None or value >= least, f">= {least}"))
        for name, is_kept, rule in rules:
            if not is_kept:
                raise ValueError(f"`{name}` must be {rule}, got {getattr(self, name)}.")
        clipped_rates(self.schedule_clip)
        check_estimator(self.eval_estimator)
        check_reporters(self.report_to)
        if self.data_seed is None:
            self.data_seed = self.seed
        if self.dataloader_num_workers == 0:
            self.dataloader_persistent_workers = False  # a preset may set it for its own number of workers
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # pinned memory is for copies to an accelerator: torch warns
        if self.dataloader_pin_memory:  # a copy that blocks would wait for all the work of the step before
            self.accelerator_config.non_blocking = True


def check_reporters(names: Iterable[str]):
    """Raise an error for a service of `report_to` that is unknown or not installed: the trainer would after hours."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"`report_to` must be of {sorted(INTEGRATION_TO_CALLBACK)}, got {name!r}.")
        if name in TRACKING and not TRACKING[name]():
            raise ImportError(f"`report_to` {name!r} needs {name}: pip install 'md4_hf[tracking]'.")


def check_arguments(args: Any, config: Any, trainer_options: Mapping[str, Any]):
    """Raise a ValueError for arguments of a trainer under which the loss or the figures would not be the ELBO's."""
    if not isinstance(args, MD4TrainingArguments):
        raise ValueError(f"`args` must be MD4TrainingArguments, got {type(args).__name__}.")
    if args.accelerator_config.split_batches:
        raise ValueError(
            "`split_batches` must be False for an MD4 model, got True: noise is numbered by whole batches."
        )
    for name in ("compute_metrics", "compute_loss_func"):
        if trainer_options.get(name) is not None:
            raise ValueError(f"`{name}` must be None for an MD4 model: its loss and metrics are the NELBO's.")
    check_best_metric(args.metric_for_best_model, config, trainer_options.get("eval_dataset"))
    for name, required in REQUIRED_VALUES.items():
        if getattr(args, name) != required:
            raise ValueError(f"`{name}` must be {required} for an MD4 model, got {not required}.")
    if args.backbone_lr_multiplier != 1.0 and config.backbone_config is None:
        raise ValueError(
            f"`backbone_lr_multiplier` must be 1 for a model without `backbone_config`, got "
            f"{args.backbone_lr_multiplier}."
        )
    if args.random_flip and not config.is_image:
        raise ValueError("`random_flip` must be False for a model of text, got True.")


def check_annealing(num_steps: int, model: Any):
    """Raise a ValueError for steps of annealing where the model has no attention that was causal and is opened."""
    if not num_steps:
        return
    network = getattr(model, "model", model)
    backbone, length = getattr(network, "backbone", None), model.config.max_position_embeddings
    is_opened = backbone is not None and getattr(backbone.config, "is_causal", None) is False
    obstacle = obstacle_to_pair_masks(backbone, length) if is_opened else "that was not causal, or stays so"
    if model.config.block_size is not None:
        obstacle = "whose blocks see what they are to see from the beginning (`block_size`)"
    if obstacle is None and backbone.config._attn_implementation not in ("eager", "sdpa"):
        obstacle = f"with {backbone.config._attn_implementation}"
    if obstacle is not None:
        raise ValueError(f"`attention_annealing_steps` must be 0 for a model {obstacle}, got {num_steps}.")


def check_best_metric(name: str | None, config: Any, eval_dataset: Any):
    """Raise a ValueError for a `metric_for_best_model` that no evaluation reports: the first one would fail."""
    if name is None:
        return
    example = torch.ones(1)
    known = [*nelbo_metrics(example, example, example, config.is_image)]
    if isinstance(eval_dataset, Mapping):
        known = [f"{data}_{metric}" for data in eval_dataset for metric in known]
    if name.removeprefix("eval_") not in known:
        raise ValueError(f"`metric_for_best_model` must be one of {known}, got {name!r}.")
