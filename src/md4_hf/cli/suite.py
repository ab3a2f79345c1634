# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 suite`: the data sets of published tables, prepared as those were."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data.arguments import DIGITS, DataArguments, ImageDataArguments
from ..evaluation.provenance import environment
from ..evaluation.recipes import SUITES, TASKS, Recipe, Task, make_recipe
from ..evaluation.report import TaskResult, read_results, results_json, results_markdown, results_table
from ..evaluation.rounds import Rounds, Stopping, evaluate_in_rounds
from ..evaluation.tasks import hub_commit, load_rows, make_windows
from ..objective.example_order import data_sha256
from ..objective.modality import IMAGES, Modality, modality_of
from ..training.trainer import MD4Trainer
from ..utils.errors import did_you_mean
from ..utils.files import check_can_be_written, write_whole
from ..utils.processes import on_first_process, print_on_first
from .evaluate import describe_estimate, describe_model, evaluation_arguments, open_model, open_policy
from .images import evaluation_images
from .options import EstimateArguments, PolicyArguments, SuiteArguments


NAMES_OF_MODEL = ("name", "revision", "base", "tokenizer")  # facts that say where it is, not what


@dataclass(frozen=True)
class SuiteRun:
    """Model, estimate and file of results that the tasks of a suite share."""

    path: Path  # of the results as JSON
    trainer: MD4Trainer
    stopping: Stopping
    model_facts: dict[str, Any]
    estimate_facts: dict[str, Any]
    command: str

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts that all results share, see `results_json`."""
        args, is_exact = self.trainer.args, self.trainer.estimate.is_exact
        return {
            "model": self.model_facts,
            "estimate": {**self.estimate_facts, **({} if is_exact else asdict(self.stopping))},
            "environment": environment(args.device, args.world_size),
        }


def suite(
    options: EstimateArguments,
    policy_args: PolicyArguments,
    preparation: SuiteArguments,
    image_args: ImageDataArguments,
    rest: argparse.Namespace,
):
    """Evaluate a model on the tasks of a suite."""
    stopping = Stopping(options.rounds, options.target_stderr, options.max_rounds)
    files = chosen_tasks(rest.name, preparation)
    model, heldout = open_model(rest.model, options)
    policy = open_policy(rest.model, model.config, options, policy_args)
    block_size = heldout.block_size(preparation.block_size)
    recipes = make_recipes(files, preparation, modality_of(model.config), block_size)
    folder = results_folder(preparation.output_dir, rest.model)
    check_can_be_written("output_dir", folder, is_folder=True)
    model_facts = describe_model(rest.model, model, heldout.tokenizer, options)
    with tempfile.TemporaryDirectory() as unused_folder:
        args = evaluation_arguments(options, unused_folder)
        trainer = MD4Trainer(model=model, args=args, processing_class=heldout.processor)
        if policy is not None:
            trainer.evaluate_by(policy)
        settings = [*preparation.settings, *settings_of(options), *settings_of_policy(policy_args)]
        run = SuiteRun(
            path=folder / f"{'-'.join([rest.name, *settings])}.json",
            trainer=trainer,
            stopping=stopping,
            model_facts=model_facts,
            estimate_facts=describe_estimate(options, trainer.estimate),
            command=rest.command_line,
        )
        evaluate_suite(run, recipes, files, image_args)


def settings_of(options: EstimateArguments) -> list[str]:
    """Settings of the estimate that differ from the default, in words for the name of a file."""
    words = {"draws": f"draws-{options.draws}", "seed": f"seed-{options.seed}", "estimator": options.estimator}
    words |= {"num_timesteps": f"timesteps-{options.num_timesteps}", "bf16": "bf16"}
    return [word for name, word in words.items() if getattr(options, name) != getattr(EstimateArguments, name)]


def settings_of_policy(policy_args: PolicyArguments) -> list[str]:
    """Settings of the sampler that are given, in words for the name of a file."""
    given = {name: value for name, value in asdict(policy_args).items() if value is not None}
    return [f"{name.replace('_', '-')}-{value}" for name, value in given.items()]


def chosen_tasks(suite: str, preparation: SuiteArguments) -> dict[str, str | None]:
    """The tasks to evaluate, each with the local file in place of its data set, if it has one.

    Raises:
        ValueError: If a suite or task is unknown, or an entry of `replace` is not TASK=FILE of a task to evaluate.
        FileNotFoundError: If the file is not there.
    """
    if suite not in SUITES:
        raise ValueError(f"`name` must be one of {[*SUITES]}, got {suite!r}.{did_you_mean(suite, SUITES)}")
    known, wanted = SUITES[suite], preparation.tasks
    if unknown := [task for task in wanted or () if task not in known]:
        raise ValueError(
            f"`tasks` must be among {[*known]}, the suite {suite!r}, got {unknown}.{did_you_mean(unknown[0], known)}"
        )
    files: dict[str, str | None] = {task: None for task in known if wanted is None or task in wanted}
    for entry in preparation.replace or ():
        task, _, file = entry.partition("=")
        if task not in known or not file:
            raise ValueError(f"`replace` must be TASK=FILE, of a task in {[*known]}, got {entry!r}.")
        if not Path(file).expanduser().exists():
            raise FileNotFoundError(f"`replace` must name a file or folder that is there, got {entry!r}.")
        if task not in files:
            raise ValueError(f"`replace` must be of tasks that are evaluated, {[*files]}, got {task!r}.")
        files[task] = file
    return files


def make_recipes(
    files: dict[str, str | None], preparation: SuiteArguments, modality: Modality, block_size: int | None
) -> dict[str, Recipe | None]:
    """The recipe of each task of text, None of those of images; all are to be of the model's modality."""
    for name in files:
        if TASKS[name].modality is not modality:
            raise ValueError(f"`tasks` must be of {modality.name} for a model of {modality.name}, got {name!r}.")
    if modality is IMAGES:
        if preparation.settings:
            raise ValueError(f"The options of preparing text must be left out for images, got {preparation.settings}.")
        return dict.fromkeys(files)
    changes = {name: getattr(preparation, name) for name in ("stride", "wrap", "detokenizer")}
    return {
        name: make_recipe(TASKS[name], preparation.preparation, block_size, file, **changes)
        for name, file in files.items()
    }


def evaluate_suite(
    run: SuiteRun, recipes: dict[str, Recipe | None], files: dict[str, str | None], image_args: ImageDataArguments
):
    """Evaluate task by task; JSON and Markdown are written after each, with the results of earlier calls."""
    trainer, results = run.trainer, []
    for name, recipe in recipes.items():
        with trainer.args.main_process_first(desc="preparing the data"):
            if recipe is None:
                examples, facts = _images(TASKS[name], files[name], image_args, trainer)
            else:
                rows = load_rows(recipe)
                examples = make_windows(rows, trainer.processing_class, recipe)
                facts = {**asdict(recipe), "commit": hub_commit(rows)}
        print_on_first(trainer.args, f"{name}: {len(examples):,} examples")
        results.append(_evaluate_task(run, name, examples, facts))
        if trainer.is_world_process_zero():
            _write_results(run, results)
    print_on_first(trainer.args, results_table(results))
    print_on_first(trainer.args, f"Written to {run.path} and .md")


def _evaluate_task(run: SuiteRun, name: str, examples, facts: dict[str, Any]) -> TaskResult:
    task, trainer = TASKS[name], run.trainer
    digest = on_first_process(trainer.args, lambda: data_sha256(examples))
    model_facts = {key: value for key, value in run.model_facts.items() if key not in NAMES_OF_MODEL}

    def report(rounds: Rounds):
        if len(rounds.nelbo) > 1:
            print_on_first(trainer.args, f"{name}: round {len(rounds.nelbo)}")

    rounds = evaluate_in_rounds(
        trainer,
        examples,
        run.stopping,
        store=run.path.parent / "rounds" / name,
        recipe={"data_sha256": digest, **model_facts, **run.estimate_facts},
        report=report,
    )
    return TaskResult(
        task=name,
        metric=task.metric,
        is_bound=not trainer.estimate.is_exact,
        metrics=rounds.metrics(task.modality is IMAGES),
        recipe=facts,
        data_sha256=digest,
        note=task.notes.get(facts["split"], ""),
        command=run.command,
    )


def _images(task: Task, file: str | None, image_args: ImageDataArguments, trainer: MD4Trainer):
    """The images of a task, and the facts recorded about them."""
    split, data_args = task.split_of(data=file), DataArguments(data=task.data)
    if file is not None:
        data_args = replace(data_args, validation_data=file, validation_split="train")
    elif task.data != DIGITS:  # of which a part is held out here
        data_args = replace(data_args, validation_data=task.data, validation_split=split)
    examples = evaluation_images(data_args, image_args, trainer.model.config)
    commit = hub_commit(examples.images)
    return examples, {"data": file or task.data, "split": split, "commit": commit, **asdict(image_args)}


def _write_results(run: SuiteRun, results: list[TaskResult]):
    """Write the results, with those of other tasks that an earlier call with the same settings has left."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    facts, path = run.facts, run.path
    earlier = read_results(path.read_text(encoding="utf-8"), **facts) if path.is_file() else []
    by_task = {result.task: result for result in (*earlier, *results)}
    together = [by_task[name] for name in TASKS if name in by_task]
    write_whole(path, results_json(together, **facts))
    write_whole(path.with_suffix(".md"), results_markdown(together, facts["model"], facts["estimate"]))


def results_folder(output_dir: str | None, model: str, name: str = "evaluation") -> Path:
    """Folder for results of this name of a model."""
    if output_dir is not None:
        return Path(output_dir)
    return Path(model, name) if Path(model).is_dir() else Path("runs", name, model.replace("/", "--"))
