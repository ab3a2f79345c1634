# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Makes the classes of this package known to the loaders of transformers and diffusers."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from .configuration_md4 import MD4Config
from .image_processing_md4 import MD4ImageProcessor
from .modeling_md4 import MD4ForMaskedDiffusion, MD4Model
from .modeling_md4_causal import MD4ForCausalLM


DIFFUSERS_LOADER = "diffusers.pipelines.pipeline_utils"
# Our modules with classes for diffusers, which import it themselves.
DIFFUSERS_CLASSES = {
    f"{__package__}.pipeline_masked_diffusion": "MaskedDiffusionPipeline",
    f"{__package__}.scheduling_masked_diffusion": "MaskedDiffusionScheduler",
}


def register_auto_classes():
    """Let the Auto classes of transformers open MD4 models."""
    AutoConfig.register(MD4Config.model_type, MD4Config, exist_ok=True)
    AutoModel.register(MD4Config, (MD4ForMaskedDiffusion, MD4Model, MD4ForCausalLM), exist_ok=True)
    AutoModelForCausalLM.register(MD4Config, MD4ForCausalLM, exist_ok=True)
    AutoModelForMaskedLM.register(MD4Config, MD4ForMaskedDiffusion, exist_ok=True)
    processors = dict.fromkeys(("pil", "torchvision"), MD4ImageProcessor)  # one class, whichever is asked for
    AutoImageProcessor.register(MD4Config, image_processor_classes=processors, exist_ok=True)


def register_with_diffusers():
    """Let diffusers load our components by the name of this package, and find our pipeline by its class name.

    Components of folders that carry their code are named as classes of transformers and diffusers, see
    `remote_pipeline`. Idempotent.
    """
    import diffusers
    import transformers
    from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

    from .pipeline_masked_diffusion import MaskedDiffusionPipeline
    from .scheduling_masked_diffusion import MaskedDiffusionScheduler

    methods = ["save_pretrained", "from_pretrained"]
    ours = dict.fromkeys(("MD4ForMaskedDiffusion", "MaskedDiffusionScheduler", "MD4ImageProcessor"), methods)
    LOADABLE_CLASSES.setdefault(__package__, ours)
    ALL_IMPORTABLE_CLASSES.update(ours)
    transformers.MD4ForMaskedDiffusion = MD4ForMaskedDiffusion
    transformers.MD4ImageProcessor = MD4ImageProcessor
    diffusers.MaskedDiffusionScheduler = MaskedDiffusionScheduler
    diffusers.MaskedDiffusionPipeline = MaskedDiffusionPipeline


def register_when_imported():
    """Register with diffusers once its pipelines are imported: importing them takes seconds, and may never happen."""
    if DIFFUSERS_LOADER in sys.modules:
        register_with_diffusers()
        return
    for module in (DIFFUSERS_LOADER, *DIFFUSERS_CLASSES):
        sys.meta_path.insert(0, _AfterImport(module, _register_unless_underway))


def _register_unless_underway():
    """Register, but not in the middle of the import of one of our own modules: its end will do it."""
    for module, name in DIFFUSERS_CLASSES.items():
        if module in sys.modules and not hasattr(sys.modules[module], name):
            return
    register_with_diffusers()


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once, right after a module has been imported."""

    def __init__(self, module: str, function: Callable[[], None]):
        self.module, self.function = module, function

    def find_spec(self, fullname, path, target=None):
        """The module's own spec, with a loader that calls the function when it is done; None for other modules."""
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def run_module_and_call(module):
            run_module(module)
            self.function()

        spec.loader.exec_module = run_module_and_call
        return spec
