# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""MD4 and GenMD4 masked diffusion models for Hugging Face transformers and diffusers (arXiv:2406.04329).

Importing the package registers MD4 with the Auto classes of transformers. Everything else is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .configuration_md4 import MD4Config
from .modeling_md4 import MaskedDiffusionOutput, MD4ForMaskedDiffusion, MD4Model


__version__ = "0.1.0.dev0"

_LAZY = {
    "arguments": ["ModelArguments", "RunArguments", "parse_arguments"],
    "callbacks": ["EmaCallback"],
    "convert_md4_checkpoint": ["config_from_official", "convert_flax_params"],
    "data": [
        "DataArguments",
        "PackingReport",
        "PaddingCollator",
        "hold_out",
        "load_documents",
        "load_train_validation",
        "ngram_bits_per_character",
        "pack",
        "pydoc_documents",
    ],
    "evaluation": ["Diffusion", "example_nelbo", "nelbo_metrics"],
    "masked_diffusion": [
        "MaskingSchedule",
        "corrupt",
        "discretize_times",
        "forward_rate",
        "make_schedule",
        "mean_from_score",
        "nelbo_weight",
        "reconstruction_nelbo",
        "reverse_probabilities",
        "reverse_rate",
        "score_from_mean",
        "stratified_times",
        "token_nelbo",
        "unmask_probability",
    ],
    "model_card": ["make_model_card"],
    "pipeline_masked_diffusion": ["MaskedDiffusionPipeline", "MaskedDiffusionPipelineOutput"],
    "plots": ["plot_losses"],
    "presets": ["PRESETS", "Preset"],
    "scheduling_masked_diffusion": ["MaskedDiffusionScheduler", "MaskedDiffusionSchedulerOutput"],
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
# Modules that hand classes to diffusers, which then has to know this package as a library of components.
_DIFFUSERS_MODULES = ("pipeline_masked_diffusion", "scheduling_masked_diffusion")

__all__ = ["MD4Config", "MD4ForMaskedDiffusion", "MD4Model", "MaskedDiffusionOutput", *sorted(_MODULE_OF)]


def _register_auto_classes():
    AutoConfig.register(MD4Config.model_type, MD4Config, exist_ok=True)
    AutoModel.register(MD4Config, (MD4ForMaskedDiffusion, MD4Model), exist_ok=True)
    AutoModelForMaskedLM.register(MD4Config, MD4ForMaskedDiffusion, exist_ok=True)


def _register_with_diffusers():
    """Let diffusers load our components by the name of this package, and find our pipeline by its class name."""
    import diffusers
    from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

    methods = ["save_pretrained", "from_pretrained"]
    ours = {"MD4ForMaskedDiffusion": methods, "MaskedDiffusionScheduler": methods}
    LOADABLE_CLASSES.setdefault(__name__, ours)
    ALL_IMPORTABLE_CLASSES.update(ours)
    if not hasattr(diffusers, "MaskedDiffusionPipeline"):
        from .pipeline_masked_diffusion import MaskedDiffusionPipeline

        diffusers.MaskedDiffusionPipeline = MaskedDiffusionPipeline


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULE_OF[name]
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    if module in _DIFFUSERS_MODULES:
        _register_with_diffusers()
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_register_auto_classes()

if TYPE_CHECKING:
    from .pipeline_masked_diffusion import MaskedDiffusionPipeline
    from .scheduling_masked_diffusion import MaskedDiffusionScheduler
    from .trainer import MD4Trainer, MD4TrainingArguments
