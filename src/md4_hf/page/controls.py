# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of the samplers that the page offers for a pipeline, with their ranges."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.foreign_scheduler import as_sampler
from ..core.opening_orders import ORDERS, RANDOM
from ..core.pipeline_baselines import BaselinePipeline, CausalPipeline


MOST_STEPS, MOST_TEXTS, MOST_IMAGES = 1024, 8, 64
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Slider:
    """Number that a slider sets; with `step=1` a whole one.

    Args:
        name: Argument of the pipeline.
        label: Words for it.
        least, most: Its range.
        value: The default.
        step: Distance of two values.
        info: A line of help.
    """

    name: str
    label: str
    least: float
    most: float
    value: float
    step: float = 1
    info: str = ""


@dataclass(frozen=True)
class Choice:
    """Word among several; arguments as those of `Slider`."""

    name: str
    label: str
    choices: tuple[str, ...]
    value: str
    info: str = ""


Control = Slider | Choice


def sampler_controls(pipeline: Any) -> list[Control]:
    """Settings of the sampler that a pipeline takes, each with the default of its scheduler."""
    config = as_sampler(pipeline.scheduler, pipeline.mask_token_id).config
    found = [make(config) for name, make in MAKERS.items() if takes(pipeline, config, name)]
    return [control for control in found if control is not None]


def draw_controls(pipeline: Any) -> list[Control]:
    """Settings of the sampler, and before them class and guidance where the model has classes."""
    of_class = (class_control(pipeline), guidance_control(pipeline))
    return [*(control for control in of_class if control is not None), *sampler_controls(pipeline)]


def takes(pipeline: Any, config: Mapping[str, Any], name: str) -> bool:
    """Whether calls of a pipeline may have this setting."""
    if name == "num_inference_steps":
        return not isinstance(pipeline, CausalPipeline)
    return name in config and not (name == "order" and isinstance(pipeline, BaselinePipeline))


def count_control(pipeline: Any) -> Slider:
    """Number of samples."""
    if pipeline.image_shape is None:
        return Slider("num_samples", "Samples", 1, MOST_TEXTS, 1)
    return Slider("num_samples", "Samples", 1, MOST_IMAGES, 16)


def length_control(pipeline: Any, name: str = "length", label: str = "Tokens") -> Slider:
    """Number of tokens, at most the model's length."""
    longest = pipeline.model.config.max_position_embeddings
    return Slider(name, label, 1, longest, min(longest, 256))


def class_control(pipeline: Any) -> Choice | None:
    """Class of the samples, of a class-conditional model."""
    config = pipeline.model.config
    num_classes = getattr(config, "num_classes", None)
    if num_classes is None:
        return None
    none = () if config.null_class is None else (NO_CLASS,)
    choices = (*none, *map(str, range(num_classes)))
    return Choice("class_labels", "Class", choices, choices[0])


def guidance_control(pipeline: Any) -> Slider | None:
    """Scale of guidance by class, of a model with a null class."""
    if getattr(pipeline.model.config, "null_class", None) is None:
        return None
    return Slider("guidance_scale", "Guidance", 0, 6, 1, 0.1, "Above 1, samples are more typical of their class.")


NO_CLASS = "any"


def arguments_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline for values of controls; whole numbers come from a browser as they like."""
    found = {name: value for name, value in values.items() if value is not None}
    if "class_labels" in found:
        label = found.pop("class_labels")
        found |= {} if label == NO_CLASS else {"class_labels": int(label)}
    return found


def seed_of(text: str | None) -> int:
    """Seed in the text of a field; a new one if that is empty.

    Raises:
        ValueError: Another value than a whole number in [0, 2^31).
    """
    text = "" if text is None else str(text).strip()
    if not text:
        return secrets.randbelow(LARGEST_SEED + 1)
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise ValueError(f"`seed` must be a whole number in [0, 2^31), or empty, got {text!r}.")
    return int(text)


def _steps(config: Mapping[str, Any]) -> Slider:
    own = config.get("num_inference_steps") or 128
    return Slider("num_inference_steps", "Steps", 1, max(MOST_STEPS, own), own, info="Fewer: faster, coarser.")


def _temperature(config: Mapping[str, Any]) -> Slider:
    info = "0: the most probable."
    return Slider("temperature", "Temperature", 0, max(2.0, config["temperature"]), config["temperature"], 0.05, info)


def _top_p(config: Mapping[str, Any]) -> Slider:
    return Slider("top_p", "Top p", 0.05, 1, config["top_p"] or 1.0, 0.05)


def _order(config: Mapping[str, Any]) -> Choice:
    info = "Which positions are unmasked first."
    return Choice("order", "Order", (RANDOM, *ORDERS), config["order"], info)


MAKERS: dict[str, Callable[[Mapping[str, Any]], Control]] = {
    "num_inference_steps": _steps,
    "temperature": _temperature,
    "top_p": _top_p,
    "order": _order,
}
