# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 evaluate --suite`: the data sets of published tables, prepared as those were."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from md4_hf import (
    PREPARATIONS,
    SUITES,
    TASKS,
    DataArguments,
    ImageDataArguments,
    MD4Trainer,
    Recipe,
    Stopping,
    Task,
    TaskResult,
    evaluate_in_rounds,
    load_rows,
    make_recipe,
    make_windows,
    on_first_process,
    option,
    results_json,
    results_markdown,
    results_table,
    weights_sha256,
    write_whole,
)

from .cli_images import evaluation_images
from .cli_train import say


PREPARATION = "sedd"  # the paper's, as far as it says
ROWS_PER_BATCH = 256


@dataclass
class SuiteArguments:
    """Which published data sets, and prepared how."""

    _argument_group_name = "suites of published data sets"

    suite: str | None = option("Evaluate a suite in place of --data.", choices=[*SUITES])
    tasks: list[str] | None = option("Some tasks of the suite; all if left out.")
    preparation: str = option(
        f"How text is prepared: {', '.join(PREPARATIONS)} (docs/evaluate.md).",
        default=PREPARATION,
        choices=[*PREPARATIONS],
    )
    stride: int | None = option("Tokens by which a block starts after the one before; its length, no overlap.")
    wrap: bool | None = option("Whether rows are joined and cut, if not as the preparation has it.")
    detokenizer: str | None = option('Detokenizer, if not the task\'s own; "none" for none.')
    replace: list[str] | None = option(
        "Local files in place of data sets, as TASK=FILE: each line of a text file is a row."
    )
    output_dir: str | None = option("Where results go; a local model's folder evaluation, else runs/evaluation/NAME.")

    def files(self) -> dict[str, str]:
        """The local file of each task that has one.

        Raises:
            ValueError: If an entry is no TASK=FILE, or its task is not one of the suite's.
        """
        files, known = {}, SUITES[self.suite]
        for entry in self.replace or ():
            task, _, file = entry.partition("=")
            if task not in known or not file:
                raise ValueError(f"`replace` must be TASK=FILE, of a task in {[*known]}, got {entry!r}.")
            if not Path(file).expanduser().exists():
                raise FileNotFoundError(f"`replace` must name a file or folder that is there, got {entry!r}.")
            files[task] = file
        return files

    @property
    def stem(self) -> str:
        """Name of the files of results, without suffix: the suite, and the preparation if it is not the usual one."""
        return self.suite if self.preparation == PREPARATION else f"{self.suite}-{self.preparation}"

    @property
    def chosen(self) -> list[str]:
        """The tasks to evaluate.

        Raises:
            ValueError: If one is not in the suite.
        """
        known = SUITES[self.suite]
        unknown = [task for task in self.tasks or () if task not in known]
        if unknown:
            raise ValueError(f"`tasks` must be among {[*known]}, the suite {self.suite!r}, got {unknown}.")
        return [task for task in known if self.tasks is None or task in self.tasks]


@dataclass(frozen=True)
class SuiteRun:
    """What the tasks of a suite have in common: the model, how it is evaluated, and where the results go."""

    stem: str
    trainer: MD4Trainer
    stopping: Stopping
    folder: Path
    model_facts: dict[str, Any]
    estimate_facts: dict[str, Any]


def recipes_of(suite: SuiteArguments, length: int, is_image: bool) -> dict[str, Recipe | None]:
    """The recipe of each chosen task of text, None of those of images; all is checked before any work is done."""
    files, recipes = suite.files(), {}
    for name in suite.chosen:
        task = TASKS[name]
        if task.is_image != is_image:
            kind = "images" if is_image else "text"
            raise ValueError(f"`tasks` must be of {kind} for a model of {kind}, got {name!r}.")
        changes = {"stride": suite.stride, "wrap": suite.wrap, "detokenizer": suite.detokenizer}
        recipes[name] = None if is_image else make_recipe(task, suite.preparation, length, files.get(name), **changes)
    return recipes


def evaluate_suite(
    run: SuiteRun, suite: SuiteArguments, recipes: dict[str, Recipe | None], image_args: ImageDataArguments, argv: list
) -> list[TaskResult]:
    """Evaluate task by task; the table, JSON and Markdown are written after each, and say what is there so far."""
    trainer, files, results = run.trainer, suite.files(), []
    for name, recipe in recipes.items():
        with trainer.args.main_process_first(desc="preparing the data"):
            if recipe is None:
                examples, facts = _images(TASKS[name], files.get(name), image_args, trainer)
            else:
                examples = make_windows(load_rows(recipe), trainer.processing_class, recipe)
                facts = asdict(recipe)
        say(trainer, f"{name}: {len(examples):,} examples")
        results.append(_evaluate_task(run, name, examples, facts))
        if trainer.is_world_process_zero():
            _write_results(run, results, argv)
    say(trainer, results_table(results))
    say(trainer, f"Written to {run.folder / run.stem}.json and .md")
    return results


def _evaluate_task(run: SuiteRun, name: str, examples, facts: dict[str, Any]) -> TaskResult:
    trainer = run.trainer
    digest = on_first_process(trainer.args, lambda: _digest(examples))
    rounds = evaluate_in_rounds(
        trainer,
        examples,
        run.stopping,
        store=run.folder / "rounds" / f"{run.stem}-{name}.safetensors",
        recipe={"data_sha256": digest, **run.model_facts, **run.estimate_facts},
        report=lambda rounds: say(trainer, f"{name}: round {len(rounds.nelbo)}") if len(rounds.nelbo) > 1 else None,
    )
    task = TASKS[name]
    return TaskResult(
        task=name,
        metric=task.metric,
        is_bound=not trainer.diffusion.is_exact,
        metrics=rounds.metrics(task.is_image),
        recipe=facts,
        data_sha256=digest,
        note=task.note,
    )


def _images(task: Task, file: str | None, image_args: ImageDataArguments, trainer: MD4Trainer):
    """The images of a task, and what is recorded of them."""
    split = task.splits[""]
    if file is None and task is TASKS["digits"]:
        data_args, split = DataArguments(data=task.data), "held-out tenth"
    else:
        split = "train" if file else split
        data_args = DataArguments(data=task.data, validation_data=file or task.data, validation_split=split)
    examples = evaluation_images(data_args, image_args, trainer.model.config)
    return examples, {"data": file or task.data, "split": split, **asdict(image_args)}


def _digest(examples) -> str:
    """SHA-256 of all ids and labels."""
    digest = hashlib.sha256()
    for batch in _batches(examples):
        for name in ("input_ids", "labels", "class_labels"):
            for row in batch.get(name, ()):
                digest.update(np.asarray(row, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _batches(examples) -> Iterator[dict[str, Any]]:
    for start in range(0, len(examples), ROWS_PER_BATCH):
        indices = list(range(start, min(start + ROWS_PER_BATCH, len(examples))))
        rows = examples.__getitems__(indices)
        yield {name: [row[name] for row in rows] for name in rows[0]}


def _write_results(run: SuiteRun, results: list[TaskResult], argv: list[str]):
    run.folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["md4", "evaluate", *argv])
    texts = {
        ".json": results_json(results, run.model_facts, {**run.estimate_facts, "command": command}),
        ".md": results_markdown(results, run.model_facts, run.estimate_facts, command),
    }
    for suffix, text in texts.items():
        write_whole(run.folder / f"{run.stem}{suffix}", text)


def results_folder(output_dir: str | None, model: str) -> Path:
    """Where the results of a model go."""
    if output_dir is not None:
        return Path(output_dir)
    if Path(model).is_dir():
        return Path(model, "evaluation")
    return Path("runs", "evaluation", model.replace("/", "--"))


def describe_model(name: str, model, tokenizer, revision: str | None) -> dict[str, Any]:
    """What a result says of the model."""
    config = model.config
    return {
        "name": name,
        "revision": getattr(config, "_commit_hash", None) or revision,
        "weights": weights_sha256(model),
        "tokenizer": None if tokenizer is None else getattr(tokenizer, "name_or_path", None),
        "vocab_size": config.vocab_size,
        "objective": _objective(config),
        "masking_schedule": None if config.is_causal else config.masking_schedule,
        "schedule_eps": None if config.is_causal else config.schedule_eps,
        "time_conditioning": config.time_conditioning,
        "dtype": str(next(model.parameters()).dtype),
    }


def _objective(config) -> str:
    if config.is_causal:
        return "autoregressive"
    return "genmd4" if config.learn_masking_schedule else "md4"
