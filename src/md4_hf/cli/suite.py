# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 evaluate --suite`: the data sets of published tables, prepared as those were."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..data.arguments import DIGITS, DataArguments
from ..data.images import ImageDataArguments
from ..evaluation.provenance import environment, weights_sha256
from ..evaluation.recipes import PREPARATIONS, SUITES, TASKS, Recipe, Task, make_recipe
from ..evaluation.report import TaskResult, read_results, results_json, results_markdown, results_table
from ..evaluation.rounds import Stopping, evaluate_in_rounds
from ..evaluation.tasks import hub_commit, load_rows, make_windows
from ..objective.example_order import data_sha256
from ..objective.modality import IMAGES, Modality
from ..training.trainer import MD4Trainer
from ..utils.files import write_whole
from ..utils.options import check_left_out, option
from ..utils.processes import on_first_process
from .images import evaluation_images
from .train import say


PREPARATION = "sedd"  # the paper's, as far as it says
NAMES_OF_MODEL = ("name", "revision", "base", "tokenizer")  # facts that say where it is, not what


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

    def check_without_suite(self):
        """Raise a ValueError if an option is given that would be ignored, as there is no suite."""
        check_left_out(self, [f.name for f in fields(self)], "without --suite")

    @property
    def settings(self) -> list[str]:
        """How text is prepared, in words for the name of a file: what is not as usual."""
        words = [self.preparation] if self.preparation != PREPARATION else []
        words += [f"stride-{self.stride}"] if self.stride is not None else []
        words += [{True: "wrapped", False: "rows-alone"}[self.wrap]] if self.wrap is not None else []
        return words + ([f"detokenizer-{self.detokenizer}"] if self.detokenizer is not None else [])

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
        chosen = [task for task in known if self.tasks is None or task in self.tasks]
        for task in self.files() if self.tasks else ():
            if task not in chosen:
                raise ValueError(f"`replace` must be of tasks that are evaluated, {chosen}, got {task!r}.")
        return chosen


@dataclass(frozen=True)
class SuiteRun:
    """What the tasks of a suite have in common: the model, how it is evaluated, and where the results go."""

    stem: str
    trainer: MD4Trainer
    stopping: Stopping
    folder: Path
    model_facts: dict[str, Any]
    estimate_facts: dict[str, Any]
    command: str

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What the results have in common, see `results_json`."""
        args = self.trainer.args
        return {
            "model": self.model_facts,
            "estimate": {**self.estimate_facts, **({} if self.is_exact else asdict(self.stopping))},
            "environment": environment(args.device, args.world_size),
        }

    @property
    def is_exact(self) -> bool:
        """Whether nothing is drawn."""
        return self.trainer.objective.is_autoregressive


def recipes_of(suite: SuiteArguments, length: int, modality: Modality) -> dict[str, Recipe | None]:
    """The recipe of each chosen task of text, None of those of images; all is checked before any work is done."""
    files, recipes = suite.files(), {}
    for name in suite.chosen:
        task = TASKS[name]
        if task.modality is not modality:
            raise ValueError(f"`tasks` must be of {modality.name} for a model of {modality.name}, got {name!r}.")
        if modality is IMAGES and suite.settings:
            raise ValueError(f"The options of preparing text must be left out for images, got {suite.settings}.")
        changes = {"stride": suite.stride, "wrap": suite.wrap, "detokenizer": suite.detokenizer}
        file = files.get(name)
        recipes[name] = None if modality is IMAGES else make_recipe(task, suite.preparation, length, file, **changes)
    return recipes


def evaluate_suite(
    run: SuiteRun, suite: SuiteArguments, recipes: dict[str, Recipe | None], image_args: ImageDataArguments
) -> list[TaskResult]:
    """Evaluate task by task; JSON and Markdown are written after each, with what other calls have left there."""
    trainer, files, results = run.trainer, suite.files(), []
    for name, recipe in recipes.items():
        with trainer.args.main_process_first(desc="preparing the data"):
            if recipe is None:
                examples, facts = _images(TASKS[name], files.get(name), image_args, trainer)
            else:
                rows = load_rows(recipe)
                examples = make_windows(rows, trainer.processing_class, recipe)
                facts = {**asdict(recipe), "commit": hub_commit(rows)}
        say(trainer, f"{name}: {len(examples):,} examples")
        results.append(_evaluate_task(run, name, examples, facts))
        if trainer.is_world_process_zero():
            _write_results(run, results)
    say(trainer, results_table(results))
    say(trainer, f"Written to {run.folder / run.stem}.json and .md")
    return results


def _evaluate_task(run: SuiteRun, name: str, examples, facts: dict[str, Any]) -> TaskResult:
    trainer = run.trainer
    digest = on_first_process(trainer.args, lambda: data_sha256(examples))
    model_facts = {key: value for key, value in run.model_facts.items() if key not in NAMES_OF_MODEL}
    rounds = evaluate_in_rounds(
        trainer,
        examples,
        run.stopping,
        store=run.folder / "rounds" / name,
        recipe={"data_sha256": digest, **model_facts, **run.estimate_facts},
        report=lambda rounds: say(trainer, f"{name}: round {len(rounds.nelbo)}") if len(rounds.nelbo) > 1 else None,
    )
    task = TASKS[name]
    return TaskResult(
        task=name,
        metric=task.metric,
        is_bound=not trainer.objective.is_autoregressive,
        metrics=rounds.metrics(task.modality is IMAGES),
        recipe=facts,
        data_sha256=digest,
        note=task.notes.get(facts["split"], ""),
        command=run.command,
    )


def _images(task: Task, file: str | None, image_args: ImageDataArguments, trainer: MD4Trainer):
    """The images of a task, and what is recorded of them."""
    split, data_args = task.split_of(data=file), DataArguments(data=task.data)
    if file is not None:
        data_args = replace(data_args, validation_data=file, validation_split="train")
    elif task.data != DIGITS:  # of which a part is held out here
        data_args = replace(data_args, validation_data=task.data, validation_split=split)
    examples = evaluation_images(data_args, image_args, trainer.model.config)
    commit = hub_commit(examples.images)
    return examples, {"data": file or task.data, "split": split, "commit": commit, **asdict(image_args)}


def _write_results(run: SuiteRun, results: list[TaskResult]):
    """Write them together with those of other tasks that an earlier call with the same settings has found."""
    run.folder.mkdir(parents=True, exist_ok=True)
    facts, path = run.facts, run.folder / f"{run.stem}.json"
    earlier = read_results(path.read_text(encoding="utf-8"), **facts) if path.is_file() else []
    by_task = {result.task: result for result in (*earlier, *results)}
    together = [by_task[name] for name in TASKS if name in by_task]
    write_whole(path, results_json(together, **facts))
    write_whole(path.with_suffix(".md"), results_markdown(together, facts["model"], facts["estimate"]))


def results_folder(output_dir: str | None, model: str) -> Path:
    """Where the results of a model go."""
    if output_dir is not None:
        return Path(output_dir)
    if Path(model).is_dir():
        return Path(model, "evaluation")
    return Path("runs", "evaluation", model.replace("/", "--"))


def describe_model(name: str, model, tokenizer, revision: str | None, base: str | None) -> dict[str, Any]:
    """What a result says of the model."""
    config = model.config
    return {
        "name": name,
        "revision": getattr(config, "_commit_hash", None) or revision,
        "base": base,
        "weights": weights_sha256(model),
        "tokenizer": None if tokenizer is None else getattr(tokenizer, "name_or_path", None),
        "vocab_size": config.vocab_size,
        "objective": _objective(config),
        "masking_schedule": None if config.is_causal else config.masking_schedule,
        "schedule_power": None if config.is_causal else config.schedule_power,
        "schedule_eps": None if config.is_causal else config.schedule_eps,
        "time_conditioning": config.time_conditioning,
        "dtype": str(next(model.parameters()).dtype),
    }


def _objective(config) -> str:
    if config.is_causal:
        return "autoregressive"
    return "genmd4" if config.learn_masking_schedule else "md4"
