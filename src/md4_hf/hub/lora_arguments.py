# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Options of a LoRA adapter; neither torch nor peft is imported before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..utils.libraries import check_version
from ..utils.options import check_left_out, check_options, option


OLDEST_PEFT = "0.20.0"  # 0.19 opens no adapter on several processes with transformers 5.17 and later
# Options of a new adapter, without effect on one that trains further.
OPTIONS_OF_NEW_ADAPTERS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "modules_to_save",
    "use_dora",
    "use_rslora",
)


@dataclass
class LoraArguments:
    """Fields of `peft.LoraConfig` (Hu et al., arXiv:2106.09685), and how the base model is loaded."""

    _argument_group_name = "adapter"

    full: bool = option("Train all weights of the model, without an adapter.", default=False)
    lora_r: int = option("Rank of the adapter.", default=16)
    lora_alpha: int = option("Scale: the update is multiplied by alpha / r (alpha / sqrt(r) with rsLoRA).", default=32)
    lora_dropout: float = option("Dropout before the adapter.", default=0.0)
    target_modules: str = option(
        'Layers that get an adapter: "all-linear" (all but the head), or names, such as "qkv_proj,o_proj".',
        default="all-linear",
    )
    modules_to_save: str | None = option('Layers trained in full and saved with the adapter, such as "lm_head".')
    use_dora: bool = option("Train magnitude and direction apart (DoRA, arXiv:2402.09353).", default=False)
    use_rslora: bool = option("Scale by alpha / sqrt(r) (rsLoRA, arXiv:2312.03732).", default=False)
    base: str | None = option("Base model of an adapter that trains further, if not the one it names.")
    quantization: str | None = option(
        "Load the base in 8 or 4 bits; needs bitsandbytes and a device that it supports.", choices=["8bit", "4bit"]
    )

    def __post_init__(self):
        check_options(self)
        if self.full:
            check_left_out(self, (*OPTIONS_OF_NEW_ADAPTERS, "quantization"), "with --full")
        if self.lora_r < 1:
            raise ValueError(f"`lora_r` must be >= 1, got {self.lora_r}.")
        if self.lora_alpha <= 0:
            raise ValueError(f"`lora_alpha` must be > 0, got {self.lora_alpha}.")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"`lora_dropout` must be in [0, 1), got {self.lora_dropout}.")

    def layers(self, option: str) -> list[str]:
        """Names of layers that `target_modules` or `modules_to_save` has."""
        return [name.strip() for name in (getattr(self, option) or "").split(",") if name.strip()]

    def config(self, model):
        """The `peft.LoraConfig` of an adapter for a model; an ImportError without peft."""
        from transformers.pytorch_utils import Conv1D

        names = self.layers("target_modules")
        return import_peft().LoraConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules="all-linear" if names == ["all-linear"] else names,
            modules_to_save=self.layers("modules_to_save") or None,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # as GPT-2's weights are
        )

    def loading_arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` for the base; a ValueError with `quantization` without bitsandbytes."""
        if self.quantization is None:
            return {}
        from transformers import BitsAndBytesConfig
        from transformers.utils import is_bitsandbytes_available

        if not is_bitsandbytes_available():
            rule = "left out where bitsandbytes is not installed"
            raise ValueError(f"`quantization` must be {rule}, got {self.quantization!r}.")
        config = BitsAndBytesConfig(
            load_in_4bit=self.quantization == "4bit",
            load_in_8bit=self.quantization == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype="bfloat16",
            llm_int8_skip_modules=["lm_head"],
        )
        return {"quantization_config": config}


def import_peft():
    """The module `peft`; an ImportError that says how to install it where it is not, or is too old."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA adapters need peft: pip install 'md4_hf[lora]'.") from error
    check_version("peft", OLDEST_PEFT, "LoRA adapters")
    return peft
