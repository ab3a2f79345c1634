# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 frontier`: samplers of one model by perplexity, entropy and network calls."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..core.text_encoding import encode_texts
from ..evaluation.frontier import (
    Point,
    Setting,
    frontier_summary,
    make_settings,
    perplexity_stderr,
    plot_frontier,
    read_sampler,
    relative_perplexities,
)
from ..evaluation.provenance import environment, versions, weights_sha256
from ..evaluation.report import finite
from ..evaluation.samples import check_same_tokens, mauve
from ..hub.loading import load_pipeline
from ..utils.files import check_can_be_written, write_whole
from ..utils.processes import Processes, joined_processes, on_first_process
from .draw import Sampling, digest
from .judge import Judge, NothingToScore, commit, judge_recipe, load_judge
from .kept_samples import drawn_rows
from .options import FrontierArguments, JudgeArguments, SamplerArguments
from .sample_files import Row
from .score import PROBE, load_references, measure_texts, reference_texts
from .suite import results_folder
from .text_samples import TextSamples


NAME = "frontier"
KEPT = {"samples": "jsonl", "figures": "json"}  # folders of files by the digest of their settings, and suffixes


def frontier(options: FrontierArguments, judging: JudgeArguments, rest: argparse.Namespace):
    """Draw samples by every sampler, number of steps and temperature, and compare them."""
    if judging.judge is None:
        raise ValueError("`judge` must be a causal language model, got none.")
    for text in options.samplers:  # before anything is loaded
        read_sampler(text)
    folder = results_folder(options.output_dir, rest.model, NAME)
    check_can_be_written("output_dir", folder, is_folder=True)
    with joined_processes(options.device) as processes:
        if processes.process_index:
            logging.disable_progress_bar()
        names = {"base": options.base, "revision": options.revision}
        pipeline = load_pipeline(rest.model, **names, dtype=options.dtype, device=processes.device)
        check_model(pipeline, rest.model, options.length)
        settings = make_settings(options.samplers, options.steps, options.temperatures, pipeline.scheduler)
        scoring = Scoring(pipeline, judging, folder)
        on_first_process(processes, lambda: scoring.prepare(options.num_samples, options.length))
        points = sweep(settings, scoring, options, processes)
        if processes.process_index == 0:
            facts: dict[str, Any] = {"model": {"name": rest.model, **names, "commit": commit(pipeline.model)}}
            facts["options"] = {**dataclasses.asdict(options), **dataclasses.asdict(judging)}
            facts |= {"judge": judge_recipe(scoring.judge), "command": rest.command_line}
            facts["environment"] = environment(pipeline.device, processes.world_size)
            write_results(folder, points, scoring.references, facts)


def check_model(pipeline, name: str, length: int | None):
    """Refuse models of images, without masks or without a tokenizer, and samples that are too long."""
    config = pipeline.model.config
    kinds = {"images": config.is_image, "a causal model": config.is_causal, "no tokenizer": not pipeline.tokenizer}
    for kind, is_so in kinds.items():
        if is_so:
            raise ValueError(f"`model` must be a masked diffusion model of text with a tokenizer, got {kind}: {name}.")
    if length is not None and not 1 <= length <= config.max_position_embeddings:
        longest = config.max_position_embeddings
        raise ValueError(f"`length` must be in [1, {longest}], the length of the model, got {length}.")
    # The samplers are then checked for the schedules of GenMD4.
    pipeline.scheduler.set_token_schedule(getattr(pipeline.model, "token_schedule", None))


class CountedSampling(Sampling):
    """Samples of which each knows its share of the network calls and of the seconds of its batch."""

    def rows(self, indices: range) -> list[Row]:
        """Rows of `Sampling.rows` with `calls`, the mean number of network calls of a sample, and `seconds`."""
        num_evaluated = 0

        def count(module, args, kwargs):
            nonlocal num_evaluated
            num_evaluated += len(kwargs["input_ids"])  # rows that need no call are not among them

        hook = self.pipeline.model.register_forward_pre_hook(count, with_kwargs=True)
        start = time.perf_counter()
        try:
            rows = super().rows(indices)
        finally:
            hook.remove()
        seconds = time.perf_counter() - start
        return [{**row, "calls": num_evaluated / len(rows), "seconds": seconds / len(rows)} for row in rows]


class Scoring:
    """Figures of samples under a judge, which only the first process has; they are kept in a folder.

    Args:
        pipeline: The pipeline that draws the samples.
        judging: The judge and the references.
        folder: Folder of the results.
    """

    def __init__(self, pipeline, judging: JudgeArguments, folder: Path):
        self.pipeline, self.judging, self.folder = pipeline, judging, folder
        self.judge: Judge | None = None
        self.real: TextSamples | None = None
        self.references: dict[str, Any] | None = None
        self.weights = weights_sha256(pipeline.model)
        self.facts: dict[str, Any] = {}

    def prepare(self, num_samples: int, length: int | None):
        """Load the judge and measure the references; everything that may fail does it here."""
        judging, tokenizer = self.judging, self.pipeline.tokenizer
        self.judge, documents = load_judge(judging), load_references(judging)
        self.judge.model.to(self.pipeline.device)
        probe = encode_texts(tokenizer, [PROBE])
        if not judging.retokenise:
            check_same_tokens(probe, self.judge.tokenizer, tokenizer)
        self.measure(TextSamples([PROBE], probe), with_mauve=False)
        if documents is not None:
            length = length or self.pipeline.model.config.max_position_embeddings
            self.real = reference_texts(documents, tokenizer, length, num_samples)
            self.references = self.measure(self.real, with_mauve=False)
        self.facts = {**dataclasses.asdict(judging), "judge_sha256": weights_sha256(self.judge.model)}
        self.facts |= {"real_sha256": digest(self.real.texts if self.real else []), "mauve": self.has_mauve}
        for name in KEPT:
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def has_mauve(self) -> bool:
        """Whether MAUVE can be computed: there are real texts, and its library."""
        return self.real is not None and importlib.util.find_spec("mauve") is not None

    def recipes(self, sampling: Sampling) -> tuple[dict[str, Any], Path, Path]:
        """Recipe of the samples of a setting, and the files that keep them and their figures."""
        recipe = sampling.recipe(self.weights)
        scored = {**recipe, "num_samples": sampling.options.num_samples, "scoring": self.facts}
        texts = (json.dumps(facts, sort_keys=True) for facts in (recipe, scored))
        samples, figures = (
            self.folder / name / f"{digest([text])[:16]}.{suffix}"
            for (name, suffix), text in zip(KEPT.items(), texts, strict=True)
        )
        return recipe, samples, figures

    def kept_figures(self, rows: list[Row], path: Path) -> dict[str, float]:
        """Figures of the rows of a setting from their file, or else measured, and written there."""
        if path.is_file():
            return {name: math.nan if x is None else x for name, x in json.loads(path.read_text("utf-8")).items()}
        samples = TextSamples([row["text"] for row in rows], [row["ids"] for row in rows])
        figures = self.measure(samples, self.has_mauve)
        figures |= {name: sum(row[name] for row in rows) / len(rows) for name in ("calls", "seconds")}
        write_whole(path, json.dumps(finite(figures), indent=2) + "\n")
        return figures

    def measure(self, samples: TextSamples, with_mauve: bool) -> dict[str, float]:
        """Figures of samples, flat; NaN for the perplexity of samples without two tokens."""
        judge = {"perplexity": math.nan, "perplexity_stderr": math.nan}
        try:
            measures = measure_texts(samples, self.pipeline.tokenizer, self.judge, self.judging)
            of_judge, tokens = measures["judge"], measures["tokens"]
            judge = {f: of_judge[f] for f in ("perplexity", "mean_perplexity", "num_too_short", "num_truncated")}
            judge["perplexity_stderr"] = perplexity_stderr(of_judge["text_nats"], of_judge["text_num_tokens"])
        except NothingToScore:
            tokens = measure_texts(samples, self.pipeline.tokenizer, None, self.judging)["tokens"]
        figures = {**judge, **{name: value for name, value in tokens.items() if name != "are"}}
        if with_mauve:
            settings = {"batch_size": self.judging.batch_size, "max_length": self.judging.max_length}
            figures["mauve"] = mauve(samples.texts, self.real.texts, *self.judge, **settings)
        return figures


def sweep(
    settings: Sequence[Setting], scoring: Scoring, options: FrontierArguments, processes: Processes
) -> list[Point]:
    """Points of all settings, on the first process; what is in the folder is neither drawn nor measured again."""
    is_first = processes.process_index == 0
    total = len(settings) * options.num_samples
    points: list[Point] = []
    with tqdm(total=total, desc="Frontier", unit=" samples", disable=not is_first) as bar:
        try:
            for setting in settings:
                bar.set_postfix_str(f"{setting.sampler}, {setting.steps} calls, temperature {setting.temperature:g}")
                figures = figures_of_setting(setting, scoring, options, processes, bar)
                points.append(Point(setting.sampler, setting.steps, setting.temperature, figures))
        except KeyboardInterrupt:
            kept = f"{bar.n:,} of {total:,} samples are kept. To resume, run the same command again."
            raise KeyboardInterrupt(kept if is_first and bar.n else "") from None
    relative = relative_perplexities(points, settings[0].sampler) if is_first else []
    return [
        dataclasses.replace(point, figures={**point.figures, "relative_perplexity": value})
        for point, value in zip(points, relative, strict=False)
    ]


def figures_of_setting(
    setting: Setting, scoring: Scoring, options: FrontierArguments, processes: Processes, bar: tqdm
) -> dict[str, float]:
    """Figures of the samples of a setting, drawn by all processes; on those other than the first, none."""
    scoring.pipeline.register_modules(scheduler=setting.scheduler)
    names = ("num_samples", "length", "seed")
    chosen = {name: getattr(options, name) for name in names} | {"temperature": setting.temperature}
    steps = setting.scheduler.config.num_inference_steps
    sampling = CountedSampling(scoring.pipeline, SamplerArguments(**chosen, num_inference_steps=steps))
    recipe, samples_file, figures_file = scoring.recipes(sampling)
    batch_size = scoring.judging.batch_size
    rows = drawn_rows(sampling, recipe, batch_size, samples_file, processes, bar)
    return on_first_process(processes, lambda: scoring.kept_figures(rows, figures_file))


def write_results(folder: Path, points: Sequence[Point], references: dict[str, float] | None, facts: dict[str, Any]):
    """Write the results as JSON, as a plot and as Markdown, and print the latter's tables."""
    results = {**facts, "references": references, "results": [dataclasses.asdict(point) for point in points]}
    write_whole(folder / f"{NAME}.json", json.dumps(finite(results), indent=2, ensure_ascii=False) + "\n")
    plot_frontier(folder / f"{NAME}.png", points, references)
    options, device = facts["options"], facts["environment"]["device"]
    notes = [
        f"{options['num_samples']} samples of each setting, seed {options['seed']}; the judge is {options['judge']}. "
        f"Calls and seconds are those of a sample on average, on {device} in batches of {options['batch_size']}.",
    ]
    if not any("mauve" in point.figures for point in points):
        notes.append("There is no MAUVE: it needs `--references` and mauve-text (`pip install mauve-text faiss-cpu`).")
    summary = frontier_summary(points, references) + "\n\n" + " ".join(notes)
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [f"# Samplers of {facts['model']['name']}", f"![Perplexity over entropy]({NAME}.png)", summary]
    parts += [f"```bash\n{facts['command']}\n```", f"{packages}.\n"]
    write_whole(folder / f"{NAME}.md", "\n\n".join(parts))
    print(f"{summary}\n\nfrontier.json, frontier.md, frontier.png and the samples are in {folder}")
