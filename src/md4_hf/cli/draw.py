# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Drawing of samples: in batches, over processes, each sample with a seed of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..core.foreign_scheduler import as_sampler
from ..core.reverse_steps import DRAW_OPTIONS, SAMPLER_OPTIONS
from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler
from ..core.text_encoding import encode_texts
from ..evaluation.provenance import weights_sha256
from ..evaluation.trajectory_recorder import TrajectoryRecorder
from ..objective.noise import sample_seed
from ..utils.processes import Processes, gather, on_first_process
from ..utils.progress_bars import shows_bars
from .options import SamplerArguments
from .sample_files import Row, Sink


SCHEDULER_OPTIONS = (*SAMPLER_OPTIONS, *DRAW_OPTIONS)
ARGUMENTS_OF_PIPELINE = (
    *("num_inference_steps", "length", "gen_length", "block_length", "use_cache"),
    *("eos_early_stop", "stop_strings", "guidance_scale"),
    *SCHEDULER_OPTIONS,
)
# When an entry of the scheduler's configuration has an effect, for those that not always have one.
IN_USE: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "order_temperature": lambda config: config["order"] != "random",
    "quota": lambda config: config["order"] != "random",
    "threshold": lambda config: config["order"] in ("threshold", "klass"),
    "factor": lambda config: config["order"] == "factor",
    "entropy_bound": lambda config: config["order"] == "entropy_bound",
    "kl_bound": lambda config: config["order"] == "klass",
    "eta": lambda config: config["remasking"] is not None,
    "corrector": lambda config: config["corrector_steps"] > 0,
    "corrector_eta": lambda config: config["corrector_steps"] > 0 and config["corrector"] == "forward_backward",
    "corrector_size": lambda config: config["corrector_steps"] > 0 and config["corrector"] != "forward_backward",
}


class Sampling:
    """Samples of a pipeline, each a function of its index and the seed: batches and processes change none.

    Args:
        pipeline: The pipeline.
        options: Options of the command, with a seed.
        sources: What the pipeline is given for a sample, by the names of its arguments; each has
            `options.num_samples` samples, one after the other. By default there is one source, of nothing or for each
            class.
        shared: Further arguments of the pipeline, alike for all samples.
    """

    def __init__(
        self,
        pipeline,
        options: SamplerArguments,
        sources: Sequence[dict[str, Any]] = ({},),
        shared: dict[str, Any] | None = None,
    ):
        self.pipeline, self.options = pipeline, options
        self.sources = with_classes(sources, options.class_labels)
        self.shared = shared or {}
        self.recorder: TrajectoryRecorder | None = None  # of the samples that are drawn, until it is full
        self.arguments = {name: getattr(options, name) for name in ARGUMENTS_OF_PIPELINE}
        self.arguments["suppress_tokens"] = suppressed_ids(options.suppress_tokens, pipeline.tokenizer)
        self.scheduler = sampler_config(pipeline, options)

    @property
    def total(self) -> int:
        """Number of samples."""
        return len(self.sources) * self.options.num_samples

    def recipe(self, weights: str | None = None) -> dict[str, Any]:
        """Everything that determines a sample besides its index: equal recipes draw equal samples.

        `weights` is the digest of the model's weights, if it is known.
        """
        pipeline, options, scheduler = self.pipeline, self.options, self.scheduler
        recipe = {name: value for name, value in self.arguments.items() if name not in SAMPLER_OPTIONS}
        recipe |= {name: scheduler.get(name) for name in DRAW_OPTIONS}
        recipe |= {"seed": options.seed, "class_labels": options.class_labels}
        if len(self.sources) > 1:  # then one comes after the other
            recipe["num_samples"] = options.num_samples
        if given := [value for source in self.sources for name, value in source.items() if name != "class_labels"]:
            recipe["given_sha256"] = digest([*given, *self.shared.values()])
        if not pipeline.model.config.is_causal:
            recipe["num_inference_steps"] = options.num_inference_steps or scheduler.get("num_inference_steps")
        recipe["scheduler"] = {
            name: value for name, value in scheduler.items() if not name.startswith("_") and name not in DRAW_OPTIONS
        }
        recipe |= {"dtype": str(pipeline.model.dtype), "weights_sha256": weights or weights_sha256(pipeline.model)}
        return json.loads(json.dumps(recipe))

    @property
    def settings(self) -> dict[str, Any]:
        """How all samples are drawn, in the words of the pipeline's arguments, without what has no effect."""
        scheduler, settings = self.scheduler, {**self.arguments}
        if not self.pipeline.model.config.is_causal:
            settings["num_inference_steps"] = self.options.num_inference_steps or scheduler.get("num_inference_steps")
            settings |= {name: scheduler.get(name) for name in SAMPLER_OPTIONS if is_in_use(name, scheduler)}
        settings |= {name: scheduler.get(name) for name in DRAW_OPTIONS}
        return {name: value for name, value in settings.items() if value is not None}

    def rows(self, indices: range) -> list[Row]:
        """Draw the samples with these indices, in one call of the pipeline.

        Returns:
            For each `index`, its `seed`, `prompt`, `class_label` and `text` if there are any, and `ids`.
        """
        if not indices:
            return []
        sources = [self.sources[index // self.options.num_samples] for index in indices]
        seeds = [sample_seed(self.options.seed, index) for index in indices]
        given = {name: [source[name] for source in sources] for name in sources[0]}
        output = self.pipeline(
            **self.arguments,
            **self.shared,
            **given,
            num_samples=1 if given else len(indices),
            callback_on_step_end=None if self.recorder is None or self.recorder.is_full else self.recorder,
            output_type="ids" if self.pipeline.tokenizer is None else "text",
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )
        rows = []
        for place, (index, seed, source) in enumerate(zip(indices, seeds, sources, strict=True)):
            row = {"index": index, "seed": seed}
            if "prompt" in source:
                row["prompt"] = source["prompt"]
            if "class_labels" in source:
                row["class_label"] = source["class_labels"]
            if output.texts is not None:
                row["text"] = output.texts[place]
            rows.append({**row, "ids": output.sequences[place].tolist()})
        return rows


def draw(
    sampling: Sampling,
    sink: Sink,
    batch_size: int,
    processes: Processes | None = None,
    quiet: bool = False,
    bar: tqdm | None = None,
):
    """Draw the samples that a sink does not have yet, in rounds of a batch for each process; all have to call it.

    Only the sink of the first process takes them. A `bar` that is given counts them in place of one of their own. An
    interruption is raised again, with words on what is kept.
    """
    processes = processes or Processes()
    is_first = processes.process_index == 0
    num_kept, total = on_first_process(processes, lambda: sink.num_rows), sampling.total
    per_round = batch_size * processes.world_size
    quiet = quiet or not is_first or not shows_bars()
    sampling.pipeline.set_progress_bar_config(desc="Steps", leave=False, disable=quiet)
    is_shown = bar is None and not quiet and total - num_kept > per_round
    count = {"total": total, "initial": min(num_kept, total)}
    try:
        with tqdm(**count, desc="Sampling", unit=" samples", disable=not is_shown) as own_bar:
            for start in range(num_kept, total, per_round):
                first = start + processes.process_index * batch_size
                own = sampling.rows(range(first, min(first + batch_size, total)))
                rows = [row for part in gather(own, processes.world_size) for row in part]
                if is_first:
                    sink.add(rows)
                (own_bar if bar is None else bar).update(len(rows))
        if is_first:
            sink.finish()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(sink.when_interrupted() if is_first else "") from None


def sampler_config(pipeline, options: SamplerArguments) -> dict[str, Any]:
    """Configuration of a pipeline's scheduler, with the options that are given.

    Raises:
        ValueError: For an option out of its range, and for one that has no effect beside the others.
    """
    given = {name: value for name in SCHEDULER_OPTIONS if (value := getattr(options, name)) is not None}
    made = as_sampler(pipeline.scheduler, pipeline.mask_token_id).with_options(**given)
    config = {**made.config, **given}
    for name, value in given.items():
        if not is_in_use(name, config):
            sampler = ", ".join(f"`{entry}` {config[entry]!r}" for entry in ("order", "remasking", "corrector_steps"))
            raise ValueError(f"`{name}` must be left out where it has no effect, with {sampler}, got {value!r}.")
    return config


def check_ranges(options: SamplerArguments):
    """Raise a ValueError for an option that no scheduler takes, before a model is loaded."""
    MaskedDiffusionScheduler().with_options(**{name: getattr(options, name) for name in SCHEDULER_OPTIONS})


def is_in_use(name: str, config: Mapping[str, Any]) -> bool:
    """Whether an entry of a scheduler's configuration has an effect on its samples; of others than ours, all have."""
    return name not in IN_USE or "order" not in config or IN_USE[name](config)


def with_classes(sources: Sequence[dict[str, Any]], labels: list[int] | None) -> list[dict[str, Any]]:
    """Sources with their class labels: one for all, or one for each; a single source is taken for each label."""
    if labels is None:
        return list(sources)
    sources = list(sources) * len(labels) if len(sources) == 1 else sources
    labels = labels * len(sources) if len(labels) == 1 else labels
    if len(labels) != len(sources):
        raise ValueError(f"`class_labels` must hold 1 or {len(sources)} labels, got {len(labels)}.")
    return [{**source, "class_labels": label} for source, label in zip(sources, labels, strict=True)]


def suppressed_ids(words: list[str] | None, tokenizer) -> list[int] | None:
    """Ids of tokens that are named by their id or, if there is a tokenizer, as text that is one token."""
    return None if words is None else [_token_id(str(word), tokenizer) for word in words]


def _token_id(word: str, tokenizer) -> int:
    if word.removeprefix("-").isdecimal():
        return int(word)
    rule = f"`suppress_tokens` must be ids, or texts of one token each, got {word!r}"
    if tokenizer is None:
        raise ValueError(f"{rule} for a model without a tokenizer.")
    (ids,) = encode_texts(tokenizer, [word], reads_masks=True)
    if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and word != tokenizer.unk_token):
        raise ValueError(f"{rule}, which is {tokenizer.convert_ids_to_tokens(ids)}.")
    return ids[0]


def digest(values: Sequence[Any]) -> str:
    """SHA-256 of prompts and pictures."""
    state = hashlib.sha256()
    for value in values:
        content = value.encode() if isinstance(value, str) else value.tobytes()
        state.update(len(content).to_bytes(8, "big") + content)
    return state.hexdigest()
