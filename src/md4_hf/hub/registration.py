# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Registers the classes of this package with the loaders of transformers and diffusers."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from ..core.configuration_md4 import MD4Config


PACKAGE = __package__.partition(".")[0]
IMAGE_PROCESSORS = "transformers.models.auto.image_processing_auto"
DIFFUSERS_LOADER = "diffusers.pipelines.pipeline_utils"
# Our modules with classes for diffusers, which import it themselves.
DIFFUSERS_CLASSES = {
    f"{PACKAGE}.core.pipeline_masked_diffusion": "MaskedDiffusionPipeline",
    f"{PACKAGE}.core.scheduling_masked_diffusion": "MaskedDiffusionScheduler",
}


def register_auto_classes():
    """Let the Auto classes of transformers open MD4 models. Networks are imported when one is opened."""
    AutoConfig.register(MD4Config.model_type, MD4Config, exist_ok=True)
    denoiser, network = "modeling_md4.MD4ForMaskedDiffusion", "modeling_md4.MD4Model"
    baseline = "modeling_md4_causal.MD4ForCausalLM"
    AutoModel.register(MD4Config, LazyClasses(denoiser, network, baseline), exist_ok=True)
    AutoModelForCausalLM.register(MD4Config, LazyClasses(baseline), exist_ok=True)
    AutoModelForMaskedLM.register(MD4Config, LazyClasses(denoiser), exist_ok=True)


def register_image_processor():
    """Let `AutoImageProcessor` open the image processors of MD4 models."""
    from transformers import AutoImageProcessor

    from ..core.image_processing_md4 import MD4ImageProcessor

    processors = dict.fromkeys(("pil", "torchvision"), MD4ImageProcessor)  # one class, whichever is asked for
    AutoImageProcessor.register(MD4Config, image_processor_classes=processors, exist_ok=True)


class LazyClasses(tuple):
    """Classes of this package, imported when they are looked at.

    transformers takes a tuple of classes for a configuration, and picks one by its `architectures`.

    Args:
        names: Module and class of each, "module.Class".
    """

    names: tuple[str, ...]

    def __new__(cls, *names: str):
        self = super().__new__(cls)
        self.names = names
        return self

    def _classes(self) -> tuple[type, ...]:
        parts = (name.split(".") for name in self.names)
        return tuple(getattr(importlib.import_module(f"{PACKAGE}.core.{module}"), name) for module, name in parts)

    def __iter__(self):
        return iter(self._classes())

    def __getitem__(self, index):
        return self._classes()[index]

    def __contains__(self, item) -> bool:
        return item in self._classes()

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self):
        return type(self), self.names


def register_with_diffusers():
    """Let diffusers load our components by the name of this package, and find our pipeline by its class name.

    Components of folders that carry their code are named as classes of transformers and diffusers, see
    `remote_pipeline`. Idempotent.
    """
    import diffusers
    import transformers
    from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

    from ..core.image_processing_md4 import MD4ImageProcessor
    from ..core.modeling_md4 import MD4ForMaskedDiffusion
    from ..core.pipeline_masked_diffusion import MaskedDiffusionPipeline
    from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler

    methods = ["save_pretrained", "from_pretrained"]
    ours = dict.fromkeys(("MD4ForMaskedDiffusion", "MaskedDiffusionScheduler", "MD4ImageProcessor"), methods)
    LOADABLE_CLASSES.setdefault(PACKAGE, ours)
    ALL_IMPORTABLE_CLASSES.update(ours)
    transformers.MD4ForMaskedDiffusion = MD4ForMaskedDiffusion
    transformers.MD4ImageProcessor = MD4ImageProcessor
    diffusers.MaskedDiffusionScheduler = MaskedDiffusionScheduler
    diffusers.MaskedDiffusionPipeline = MaskedDiffusionPipeline


def register_when_imported():
    """Register image processors, and with diffusers, once their slow modules are imported, if they ever are."""
    if IMAGE_PROCESSORS in sys.modules:
        register_image_processor()
    else:
        sys.meta_path.insert(0, _AfterImport(IMAGE_PROCESSORS, register_image_processor))
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
