# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Registers the classes of this package with the loaders of transformers and diffusers.

Neither library is imported for it: each class is registered as soon as the module of its loader has been imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable


PACKAGE = __package__.partition(".")[0]
CONFIGURATION = f"{PACKAGE}.core.configuration_md4"
AUTO = "transformers.models.auto"
DIFFUSERS_LOADER = "diffusers.pipelines.pipeline_utils"
# Our modules with classes for diffusers and those between them, which import it themselves; the last name of each.
DIFFUSERS_CLASSES = {
    f"{PACKAGE}.core.pipeline_masked_diffusion": "MaskedDiffusionPipeline",
    f"{PACKAGE}.core.sampling_call": "SamplingCall",
    f"{PACKAGE}.core.denoising": "Denoising",
    f"{PACKAGE}.core.decisions": "Decisions",
    f"{PACKAGE}.core.sampling_runs": "start_run",
    f"{PACKAGE}.core.foreign_scheduler": "as_sampler",
    f"{PACKAGE}.core.scheduling_masked_diffusion": "MaskedDiffusionScheduler",
}


def register_when_imported():
    """Register every class whose loader is imported already, and the others once theirs is."""
    functions: dict[str, Callable[[], None]] = {
        **dict.fromkeys((*AUTO_CLASSES, CONFIGURATION), register_auto_classes),
        **dict.fromkeys((DIFFUSERS_LOADER, *DIFFUSERS_CLASSES), register_with_diffusers),
    }
    sys.meta_path.insert(0, _AfterImport(functions))
    register_auto_classes()
    if DIFFUSERS_LOADER in sys.modules:
        register_with_diffusers()


def register_auto_classes():
    """Let those Auto classes of transformers that are imported open MD4 models. Idempotent.

    Networks are imported when one is opened.
    """
    loaded = [module for module in AUTO_CLASSES if _has(module, AUTO_CLASSES[module][0])]
    if not loaded or _is_underway(CONFIGURATION, "MD4Config"):  # at whose end this is called again
        return
    from ..core.configuration_md4 import MD4Config

    for module in loaded:
        AUTO_CLASSES[module][1](sys.modules[module], MD4Config)


def _register_configuration(auto, config_class):
    auto.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models(auto, config_class):
    denoiser, network = "modeling_md4.MD4ForMaskedDiffusion", "modeling_md4.MD4Model"
    baseline, discrete = "modeling_md4_causal.MD4ForCausalLM", "modeling_md4_discrete.MD4ForDiscreteDiffusion"
    auto.AutoModel.register(config_class, LazyClasses(denoiser, network, baseline, discrete), exist_ok=True)
    auto.AutoModelForCausalLM.register(config_class, LazyClasses(baseline), exist_ok=True)
    auto.AutoModelForMaskedLM.register(config_class, LazyClasses(denoiser), exist_ok=True)


def _register_image_processor(auto, config_class):
    from ..core.image_processing_md4 import MD4ImageProcessor

    processors = dict.fromkeys(("pil", "torchvision"), MD4ImageProcessor)  # one class, whichever is asked for
    auto.AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)


# Each module of Auto classes with the last class that it defines, and what registers ours with it.
AUTO_CLASSES: dict[str, tuple[str, Callable]] = {
    f"{AUTO}.configuration_auto": ("AutoConfig", _register_configuration),
    f"{AUTO}.modeling_auto": ("AutoModelForMaskedLM", _register_models),
    f"{AUTO}.image_processing_auto": ("AutoImageProcessor", _register_image_processor),
}


class LazyClasses(tuple):
    """Classes of this package by "module.Class", imported when they are looked at.

    transformers takes a tuple of classes for a configuration, and picks one by its `architectures`.
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
    `remote_pipeline`. Idempotent. While one of our modules is being imported nothing is done: its end calls this again.
    """
    if DIFFUSERS_LOADER not in sys.modules:  # a model has imported its samplers; diffusers may not even be there
        return
    if any(_is_underway(module, name) for module, name in DIFFUSERS_CLASSES.items()):
        return
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


def _has(module: str, name: str) -> bool:
    return hasattr(sys.modules.get(module), name)


def _is_underway(module: str, name: str) -> bool:
    """Whether a module is being imported, and has not come to this name."""
    return module in sys.modules and not _has(module, name)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls functions, by the name of a module, right after it has been imported: once, and not when looked for."""

    def __init__(self, functions: dict[str, Callable[[], None]]):
        self.functions = functions

    def find_spec(self, fullname, path, target=None):
        """The module's own spec, with a loader that calls the function when it is done; None for other modules."""
        function = self.functions.pop(fullname, None)  # for a moment, so that the other finders answer
        if function is None:
            return None
        spec = importlib.util.find_spec(fullname)
        self.functions[fullname] = function
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def run_module_and_call(module):
            run_module(module)
            self.functions.pop(fullname, None)
            function()

        spec.loader.exec_module = run_module_and_call
        return spec
