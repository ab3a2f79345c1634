# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 sample` and `md4 infill`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from transformers.utils import logging

from ..core.pipeline_inputs import GAP
from ..hub.loading import load_pipeline
from ..objective.figures import counted
from ..utils.errors import file_errors_as_value_errors
from ..utils.files import check_can_be_written
from ..utils.image_grid import picture_format, save_image_grid
from ..utils.options import check_left_out
from ..utils.processes import Processes, joined_processes, on_first_process
from .demo import name_of
from .draw import Sampling, check_ranges
from .options import SMALL_IMAGE, ImageArguments, PromptArguments, SampleArguments, WatchArguments
from .prompts import read_prompts
from .sample_files import Console, Memory, Row, SampleFile, Sink, kept_recipe, write_json_lines, write_texts
from .watching import Unmasking, check_watching


WRITERS: dict[str, Callable[[Iterable[Row], Path], None]] = {".jsonl": write_json_lines, ".txt": write_texts}


def sample(options: SampleArguments, prompt: PromptArguments, watch: WatchArguments, rest: argparse.Namespace):
    """Sample text or images from nothing or of a class, or continue prompts and fill their gaps."""
    with prepared(options, watch) as processes:
        prompts = on_first_process(processes, lambda: read_prompts(prompt))
        pipeline = open_pipeline(rest.model, options, watch, processes)
        sources = ({},) if prompts is None else [{"prompt": text} for text in prompts]
        draw_and_write(Sampling(pipeline, options, sources), options, watch, processes, name_of(rest.model))


def infill(options: SampleArguments, image: ImageArguments, watch: WatchArguments, rest: argparse.Namespace):
    """Fill the gaps of a text or of an image, and keep the rest as it is."""
    if (rest.text is None) == (image.image is None):
        raise ValueError(f"Either `text` or `image` must be given, got {rest.text!r} and {image.image!r}.")
    with prepared(options, watch) as processes:
        open_model = functools.partial(open_pipeline, rest.model, options, watch, processes)
        fill = infill_image if rest.text is None else infill_text
        draw_and_write(fill(open_model, rest, image, options), options, watch, processes, name_of(rest.model))


@contextlib.contextmanager
def prepared(options: SampleArguments, watch: WatchArguments) -> Iterator[Processes]:
    """Context of a command: the output is checked, the processes know of each other, and they have one seed."""
    if options.output is not None:
        check_output(Path(options.output))
    check_watching(watch)
    check_ranges(options)
    with contextlib.ExitStack() as loading, joined_processes(options.device) as processes:
        if options.quiet or processes.process_index:
            logging.disable_progress_bar()
            if HF_HUB_DISABLE_PROGRESS_BARS is None:
                loading.callback(logging.enable_progress_bar)
        given, options.seed = options.seed, on_first_process(processes, lambda: seed_of(options))
        if given is None and not options.quiet and processes.process_index == 0:
            print(f"The seed is {options.seed}: --seed {options.seed} draws these samples again.", file=sys.stderr)
        yield processes


def check_output(path: Path):
    """Refuse a file of no known kind, or in a folder that is not there."""
    if path.suffix.lower() not in WRITERS:
        if path.suffix.lower() not in PIL.Image.registered_extensions():
            raise ValueError(f"`output` must end in .jsonl, .txt or as a picture does, such as .png, got {path}.")
        picture_format(path)
    check_can_be_written("output", path)


def seed_of(options: SampleArguments) -> int:
    """The seed, or else that of the samples that an interruption has left, or else a new one."""
    if options.seed is not None:
        return options.seed
    kept = None if options.output is None else kept_recipe(Path(options.output))
    return kept["seed"] if isinstance(kept, dict) and isinstance(kept.get("seed"), int) else secrets.randbelow(2**31)


def open_pipeline(model: str, options: SampleArguments, watch: WatchArguments, processes: Processes):
    """The pipeline of a folder or Hub id, on the device of this process; the output has to fit the model."""
    names = {"base": options.base, "revision": options.revision}
    pipeline = load_pipeline(model, **names, dtype=options.dtype, device=processes.device)
    is_file = options.output is not None and Path(options.output).suffix.lower() in WRITERS
    if pipeline.image_shape is None:
        check_left_out(options, ["enlarge"] if is_file else ["output", "enlarge"], "for a model of text")
    elif (options.output is None and not watch.writes_files) or Path(options.output or "").suffix.lower() == ".txt":
        raise ValueError("`output` must name a picture, or a .jsonl file, to write for a model of images.")
    elif options.output is not None and not is_file and pipeline.image_processor is None:
        raise ValueError(f"`output` must be a .jsonl file for images that cannot be shown, got {options.output}.")
    return pipeline


def infill_text(
    open_model: Callable[[], Any], rest: argparse.Namespace, image: ImageArguments, options: SampleArguments
) -> Sampling:
    """Samples that fill the gaps of a text."""
    if image.mask is not None:
        raise ValueError(f"`mask` needs an `image`, got {image.mask} without.")
    pipeline = open_model()
    if pipeline.image_shape is not None:
        raise ValueError("`image` and `mask` must be given for a model of images, got a text.")
    if pipeline.tokenizer is None:
        raise ValueError(f"`model` must have a tokenizer to fill a text, got {rest.model} without.")
    mask_token = pipeline.tokenizer.mask_token
    if not GAP.search(rest.text) and mask_token not in rest.text:
        raise ValueError(f'`text` must have a gap such as <mask:12> or {mask_token}, got "{rest.text}".')
    return Sampling(pipeline, options, [{"prompt": rest.text}])


def infill_image(
    open_model: Callable[[], Any], rest: argparse.Namespace, image: ImageArguments, options: SampleArguments
) -> Sampling:
    """Samples that fill the white part of the mask."""
    if image.mask is None:
        raise ValueError(f"`mask` must be given with `image`, got {image.image} without.")
    with file_errors_as_value_errors("image", image.image):
        picture = PIL.Image.open(image.image)
    with file_errors_as_value_errors("mask", image.mask):
        mask = PIL.Image.open(image.mask)
    pipeline = open_model()
    given = picture.convert("L" if pipeline.image_shape and pipeline.image_shape[0] == 1 else "RGB")
    return Sampling(pipeline, options, [{"image": given}], {"mask_image": mask})


def draw_and_write(
    sampling: Sampling, options: SampleArguments, watch: WatchArguments, processes: Processes, title: str
):
    """Draw the samples, and print them or write them to the file; and write their unmasking if asked to."""
    is_image = sampling.pipeline.image_shape is not None
    unmasking = Unmasking(sampling, watch, options.batch_size, processes, title)
    written = unmasking.draw(sink_of(sampling, options, prints=not (is_image or unmasking.is_shown)), options.quiet)
    if processes.process_index or options.quiet:
        return
    if options.output is not None:
        samples = counted(sampling.total, "image" if is_image else "sample")
        print(f"{samples} {'is' if sampling.total == 1 else 'are'} in {options.output}")
    if written:
        print(f"The unmasking is in {' and '.join(written)}", file=sys.stderr)


def sink_of(sampling: Sampling, options: SampleArguments, prints: bool) -> Sink:
    """Place of the samples: the file; or the console, if they are to be printed; or none."""
    if options.output is None:
        return Console() if prints else Memory()
    path = Path(options.output)
    write = WRITERS.get(path.suffix.lower()) or functools.partial(write_picture, sampling.pipeline, options)
    if write is write_json_lines:
        write = functools.partial(write_with_settings, sampling.settings)
    return SampleFile(path, sampling.recipe(), sampling.total, write)


def write_with_settings(settings: dict[str, Any], rows: Iterable[Row], path: Path):
    """Write rows as JSON lines, each with how it was drawn."""
    write_json_lines(({**row, "settings": settings} for row in rows), path)


def write_picture(pipeline, options: SampleArguments, rows: Iterable[Row], path: Path):
    """Write images as one picture, with a row for each class; a single image has no label."""
    ids = torch.tensor([row["ids"] for row in rows])
    images = pipeline.image_processor.postprocess(ids)
    enlarge = options.enlarge or max(1, math.ceil(SMALL_IMAGE / min(images[0].size)))
    layout: dict[str, Any] = {"enlarge": enlarge, "gap": enlarge}
    if options.class_labels and len(images) > 1:
        layout |= {"columns": options.num_samples, "row_labels": options.class_labels}
    save_image_grid(images, path, **layout)
