# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""MD4 and GenMD4 masked diffusion models for Hugging Face transformers and diffusers (arXiv:2406.04329).

Importing the package registers MD4 with the Auto classes of transformers and with diffusers' pipelines, as soon as
these are imported. Everything else is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .hub.registration import register_when_imported


__version__ = "0.1.0"

_LAZY = {
    "core.configuration_md4": ["MD4Config"],
    "core.image_processing_md4": ["MD4ImageProcessor"],
    "core.masked_diffusion": [
        "corrupt",
        "discretize_times",
        "forward_rate",
        "genmd4_reconstruction_nelbo",
        "genmd4_reverse_probabilities",
        "genmd4_token_nelbo",
        "log_forward_probability",
        "masked_count_weights",
        "mean_from_score",
        "nelbo_weight",
        "reconstruction_nelbo",
        "reverse_probabilities",
        "reverse_rate",
        "rloo_surrogate",
        "score_from_mean",
        "stratified_times",
        "token_nelbo",
        "unmask_probability",
    ],
    "core.modeling_md4": ["MD4ForMaskedDiffusion", "MD4Model", "MaskedDiffusionOutput"],
    "core.modeling_md4_causal": ["MD4ForCausalLM"],
    "core.modeling_md4_discrete": ["MD4ForDiscreteDiffusion"],
    "core.pipeline_masked_diffusion": ["MaskedDiffusionPipeline", "MaskedDiffusionPipelineOutput"],
    "core.schedules": ["MaskingSchedule", "TokenPolynomialSchedule", "make_schedule"],
    "core.scheduling_masked_diffusion": ["MaskedDiffusionScheduler", "MaskedDiffusionSchedulerOutput"],
    "data.arguments": ["DataArguments", "ImageDataArguments", "PairArguments"],
    "data.collators": ["DataCollatorForMaskedDiffusion", "PaddingCollator"],
    "data.documents": ["load_documents", "load_table", "load_train_validation"],
    "data.images": ["digits", "encode_images", "load_images"],
    "data.packing": ["pack"],
    "data.pairs": ["encode_pairs", "load_pairs"],
    "data.tokenizers": ["build_byte_tokenizer", "build_text8_tokenizer", "ensure_mask_token", "load_tokenizer"],
    "evaluation.images": ["image_sample_metrics"],
    "evaluation.sample_statistics": ["distinct_n", "repetition", "token_entropy"],
    "evaluation.samples": ["generative_perplexity", "generative_perplexity_of_ids"],
    "evaluation.trajectory_recorder": ["TrajectoryRecorder"],
    "hub.adapters": ["add_adapter", "load_adapter"],
    "hub.convert_md4": ["config_from_official", "convert_flax_params"],
    "hub.loading": ["load_model", "load_pipeline", "make_pipeline"],
    "hub.lora_arguments": ["LoraArguments"],
    "objective.estimators": ["example_nelbo", "nelbo_given_noise", "nelbo_metrics"],
    "objective.objectives": ["Objective"],
    "training.arguments": ["MD4TrainingArguments"],
    "training.ema": ["EmaCallback"],
    "training.model_card": ["CardFacts"],
    "training.presets": ["PRESETS"],
    "training.trainer": ["MD4Trainer"],
    "utils.image_grid": ["save_image_grid"],
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULE_OF[name]
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_imported()

if TYPE_CHECKING:
    from .core.configuration_md4 import MD4Config
    from .core.modeling_md4 import MaskedDiffusionOutput, MD4ForMaskedDiffusion, MD4Model
    from .core.modeling_md4_causal import MD4ForCausalLM
    from .core.modeling_md4_discrete import MD4ForDiscreteDiffusion
    from .core.pipeline_masked_diffusion import MaskedDiffusionPipeline
    from .core.scheduling_masked_diffusion import MaskedDiffusionScheduler
    from .training.arguments import MD4TrainingArguments
    from .training.trainer import MD4Trainer
