# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Class of the complete model that a configuration describes."""

from __future__ import annotations

from ..core.configuration_md4 import MD4Config
from ..core.modeling_md4 import MD4ForMaskedDiffusion
from ..core.modeling_md4_base import MD4PreTrainedModel
from ..core.modeling_md4_causal import MD4ForCausalLM
from ..core.modeling_md4_discrete import MD4ForDiscreteDiffusion


CLASSES = {model.__name__: model for model in (MD4ForMaskedDiffusion, MD4ForCausalLM, MD4ForDiscreteDiffusion)}


def model_class_of(config: MD4Config) -> type[MD4PreTrainedModel]:
    """`MD4ForMaskedDiffusion`, or the class of a baseline."""
    return CLASSES[config.model_class]
