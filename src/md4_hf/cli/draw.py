# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples for `md4 score`: drawn, and kept in a file as they come, or read from a file."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..evaluation.provenance import weights_sha256
from ..utils.files import write_whole
from .options import SamplerArguments
from .sample import pipeline_arguments, read_printed_texts


@dataclass
class TextSamples:
    """Texts, the ids that they were decoded from where these are known, and how they were drawn."""

    texts: list[str]
    ids: list[list[int]] | None = None
    recipe: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def sampling_recipe(pipeline, options: SamplerArguments) -> dict[str, Any]:
    """Everything that determines a sample besides its number: equal recipes draw equal samples."""
    recipe = pipeline_arguments(options) | {"seed": options.seed}
    del recipe["generator"]
    if options.class_labels is None:  # otherwise the classes come one after the other
        del recipe["num_samples"]
    recipe["num_inference_steps"] = options.num_inference_steps or pipeline.scheduler.config.num_inference_steps
    scheduler = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    recipe |= {"scheduler": scheduler, "weights_sha256": weights_sha256(pipeline.model)}
    return json.loads(json.dumps(recipe))


def draw_samples(
    pipeline, options: SamplerArguments, recipe: dict[str, Any], batch_size: int, path: Path | None
) -> list[dict[str, Any]]:
    """Draw the samples of `md4 sample` with the same options, some at a time, and keep them in a file if there is one.

    Args:
        pipeline, options, recipe: As in `sampling_recipe`.
        batch_size: Samples per call of the pipeline; they do not depend on it but for rounding.
        path: JSON lines. Samples of the same recipe that are there are not drawn again. Until all are drawn, they are
            in a hidden file beside it, from which an interrupted call is continued.

    Returns:
        A dictionary per sample: `index`, `input_ids`, of text `text`, `class_label` if there are classes, `recipe`.

    Raises:
        ValueError: If the file holds samples of another recipe.
    """
    labels = [label for label in options.class_labels or [None] for _ in range(options.num_samples)]
    total = len(labels)
    rows = [] if path is None else kept_samples(path, recipe)
    num_kept = len(rows)
    arguments = pipeline_arguments(options) | {"output_type": "text" if pipeline.image_shape is None else "ids"}
    for _ in rows:  # the pipeline takes one number of the generator for each sample
        torch.randint(2**62, (), generator=arguments["generator"])
    pipeline.set_progress_bar_config(leave=False)
    with tqdm(total=total, initial=min(num_kept, total), desc="Sampling", unit="sample") as bar:
        while len(rows) < total:
            start = len(rows)
            batch = labels[start : start + batch_size]
            classes = {} if options.class_labels is None else {"class_labels": batch}
            arguments |= {"num_samples": 1 if classes else len(batch), **classes}
            try:
                output = pipeline(**arguments)
            except KeyboardInterrupt:
                if path is None or start == 0:
                    raise
                bar.close()
                print(f"\n{start} of {total} samples are kept. To go on, run the same command again.", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            drawn = describe_samples(output, start, batch, recipe)
            if path is not None:
                if start == num_kept:
                    write_whole(unfinished(path), to_lines(rows))
                with unfinished(path).open("a", encoding="utf-8") as stream:
                    stream.write(to_lines(drawn))
            rows += drawn
            bar.update(len(drawn))
    if path is not None and unfinished(path).is_file():
        write_whole(path, to_lines(rows))
        unfinished(path).unlink()
    return rows[:total]


def describe_samples(output, start: int, labels: list[int | None], recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each sample of a call of the pipeline; `start` is the number of the first."""
    rows = []
    for place, ids in enumerate(output.sequences):
        text = {} if output.texts is None else {"text": output.texts[place]}
        label = {} if labels[place] is None else {"class_label": labels[place]}
        rows.append({"index": start + place, **text, **label, "input_ids": ids.tolist(), "recipe": recipe})
    return rows


def unfinished(path: Path) -> Path:
    """Hidden file beside the samples' own, for as long as some are to be drawn."""
    return path.with_name(f".{path.name}.unfinished")


def kept_samples(path: Path, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of a file, or of its unfinished version if that has more."""
    found: list[dict[str, Any]] = []
    for file in (path, unfinished(path)):
        if file.is_file():
            rows = read_rows(file, may_be_torn=file != path)
            check_recipe(file, rows, recipe)
            found = max(found, rows, key=len)
    return found


def check_recipe(file: Path, rows: list[dict[str, Any]], recipe: dict[str, Any]):
    """Refuse samples of another recipe."""
    for index, row in enumerate(rows):
        kept = row.get("recipe")
        if not isinstance(kept, dict) or row.get("index") != index or "input_ids" not in row:
            raise ValueError(f"`samples_file` must be a file of `md4 score`, got another one: {file}.")
        differing = sorted(name for name in {*kept, *recipe} if kept.get(name) != recipe.get(name))
        if differing:
            raise ValueError(
                f"`samples_file` must hold samples that were drawn in the same way, got others in {file}, which differ "
                f"in {', '.join(differing)}: name another file, or remove this one."
            )


def to_lines(rows: list[dict[str, Any]]) -> str:
    """JSON lines, one for each row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(file: Path, may_be_torn: bool = False) -> list[dict[str, Any]]:
    """The objects of JSON lines; a last line that is torn may be left out."""
    rows = []
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if may_be_torn and number == len(lines):
                break
            raise ValueError(f"`samples` must be JSON lines, got line {number} of {file}: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"`samples` must be JSON objects, got {line[:40]!r} in line {number} of {file}.")
        rows.append(row)
    return rows


def is_samples_file(name: str) -> bool:
    """Whether a name means a file of samples, not a model."""
    return Path(name).suffix in (".txt", ".jsonl") and not Path(name).is_dir()


def read_samples(path: Path) -> TextSamples:
    """The samples of a file: JSON lines with `text`, and `input_ids` if known, or the output of `md4 sample`."""
    if not path.is_file():
        raise ValueError(f"`model_or_file` must be a model or a file of samples, got {path}, which is not there.")
    if path.suffix == ".jsonl":
        rows = read_rows(path)
    else:
        try:
            rows = [{"text": text} for text in read_printed_texts(path.read_text(encoding="utf-8"))]
        except UnicodeDecodeError as error:
            raise ValueError(f"`model_or_file` must be UTF-8 text, got {path}: {error}.") from error
    texts, ids = [row.get("text") for row in rows], [row.get("input_ids") for row in rows]
    if not rows or not all(isinstance(text, str) for text in texts) or not any(texts):
        raise ValueError(f"`model_or_file` must hold a text for each sample (of JSON lines, `text`), got {path}.")
    return TextSamples(texts, ids if all(map(is_ids, ids)) else None, rows[0].get("recipe"))


def is_ids(value: Any) -> bool:
    """Whether a value is the ids of a text."""
    return isinstance(value, list) and bool(value) and all(type(x) is int and x >= 0 for x in value)
