# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""MD4 and GenMD4 masked diffusion models for Hugging Face transformers and diffusers (arXiv:2406.04329).

Importing the package registers MD4 with the Auto classes of transformers and, once diffusers' pipelines are imported,
with diffusers. Everything else is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .configuration_md4 import MD4Config
from .registration import register_auto_classes, register_when_imported


__version__ = "0.1.0"

_LAZY = {
    "adapters": ["LoraArguments", "add_adapter", "load_adapter"],
    "arguments": ["ModelArguments", "RunArguments", "StartArguments", "parse_arguments"],
    "averaging": ["EmaCallback"],
    "baselines": ["ngram_bits_per_character", "pixel_histogram_bits"],
    "checkpoints": ["checkpoint_to_resume"],
    "collators": ["DataCollatorForMaskedDiffusion", "PaddingCollator"],
    "convert_md4_checkpoint": ["config_from_official", "convert_flax_params"],
    "data": [
        "DataArguments",
        "hold_out",
        "load_documents",
        "load_table",
        "load_train_validation",
        "load_validation",
        "pydoc_documents",
    ],
    "detokenizers": ["detokenize"],
    "diffusion": ["Diffusion"],
    "errors": ["reading"],
    "evaluation": ["ANY_ORDER", "TIME", "example_nelbo", "nelbo_given_noise", "nelbo_metrics"],
    "evaluation_report": [
        "TaskResult",
        "finite",
        "read_results",
        "results_json",
        "results_markdown",
        "results_table",
    ],
    "evaluation_rounds": ["Rounds", "Stopping", "evaluate_in_rounds"],
    "evaluation_tasks": [
        "PREPARATIONS",
        "SUITES",
        "TASKS",
        "Recipe",
        "Task",
        "hub_commit",
        "load_rows",
        "make_recipe",
        "make_windows",
    ],
    "example_order": ["data_sha256"],
    "files": ["check_can_be_written", "write_whole"],
    "hardware": ["choose_device"],
    "image_data": [
        "ImageDataArguments",
        "ImageDataset",
        "digits",
        "encode_images",
        "load_image_table",
        "load_images",
    ],
    "image_grid": ["picture_format", "save_image_grid"],
    "image_metrics": ["image_sample_metrics", "load_inception"],
    "image_processing_md4": ["MD4ImageProcessor"],
    "launch": ["on_first_process"],
    "loading": ["adapter_base", "load_model", "load_pipeline", "make_pipeline"],
    "masked_diffusion": [
        "IGNORE_INDEX",
        "MaskingSchedule",
        "TokenPolynomialSchedule",
        "corrupt",
        "discretize_times",
        "forward_rate",
        "genmd4_reconstruction_nelbo",
        "genmd4_reverse_probabilities",
        "genmd4_token_nelbo",
        "log_forward_probability",
        "make_schedule",
        "mask_lowest",
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
    "model_card": ["CardFacts", "make_model_card"],
    "modeling_md4": ["MD4ForMaskedDiffusion", "MD4Model", "MaskedDiffusionOutput"],
    "modeling_md4_causal": ["MD4ForCausalLM"],
    "options": ["check_left_out", "option"],
    "packing": ["PackingReport", "pack"],
    "pipeline_masked_diffusion": ["MaskedDiffusionPipeline", "MaskedDiffusionPipelineOutput"],
    "plots": ["plot_losses"],
    "presets": ["PRESETS", "Preset"],
    "prompt_response": ["PairArguments", "PairReport", "encode_pairs", "load_pairs"],
    "provenance": ["environment", "versions", "weights_sha256"],
    "sample_metrics": ["check_same_tokens", "generative_perplexity", "generative_perplexity_of_ids"],
    "sample_statistics": ["distinct_n", "repetition", "token_entropy", "token_statistics"],
    "schedule_plots": [
        "plot_exponents",
        "plot_masking_schedules",
        "plot_token_schedules",
        "plot_unmasked_per_step",
    ],
    "scheduling_masked_diffusion": ["MaskedDiffusionScheduler", "MaskedDiffusionSchedulerOutput"],
    "sharding": ["count_parameters"],
    "shards": ["has_shards", "load_shards"],
    "tokenization": [
        "build_byte_tokenizer",
        "build_text8_tokenizer",
        "check_tokenizer_matches",
        "ensure_mask_token",
        "load_tokenizer",
    ],
    "trainer": ["MD4Trainer", "MD4TrainingArguments"],
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "MD4Config",
    *sorted(_MODULE_OF),
]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULE_OF[name]
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_auto_classes()
register_when_imported()

if TYPE_CHECKING:
    from .modeling_md4 import MaskedDiffusionOutput, MD4ForMaskedDiffusion, MD4Model
    from .modeling_md4_causal import MD4ForCausalLM
    from .pipeline_masked_diffusion import MaskedDiffusionPipeline
    from .scheduling_masked_diffusion import MaskedDiffusionScheduler
    from .trainer import MD4Trainer, MD4TrainingArguments
