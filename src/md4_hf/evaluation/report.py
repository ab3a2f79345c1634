# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Results of an evaluation as a table, as JSON with how to repeat it, and as Markdown with `model-index` rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..objective.figures import Figure, figures_of
from ..objective.modality import modality_of_metrics
from .provenance import versions


@dataclass(frozen=True)
class TaskResult:
    """The figures of one task."""

    task: str
    metric: str  # key of the reported figure in `figures_of`
    is_bound: bool  # whether that is an upper bound; otherwise it is exact
    metrics: dict[str, float]  # those of `Rounds.metrics`
    recipe: dict[str, Any]  # how the examples were made
    data_sha256: str  # digest of all ids and labels
    note: str = ""  # a remark for readers of the figure
    command: str = ""  # the command that measured it

    @property
    def figure(self) -> Figure:
        """The reported figure. Its error is of the spread between examples and of the draws together."""
        return figures_of(self.metrics)[self.metric]

    @property
    def draws_error(self) -> float:
        """The standard error of the figure from the draws alone; NaN of a single round."""
        per_nat = 1.0 if self.metric == "perplexity" else 1.0 / self.metrics["loss"]
        return self.figure.value * per_nat * self.metrics.get("monte_carlo_stderr", math.nan)

    def __str__(self) -> str:
        return f"{'≤ ' if self.is_bound else ''}{self.figure}"


def results_table(results: Iterable[TaskResult]) -> str:
    """Lines of equal width: task, figure with its errors, and tokens."""
    lines = [f"{'task':<14} {'figure':<20} {'value ± stderr':>24} {'of draws':>9} {'tokens':>12}  split"]
    for result in results:
        figure, error = result.figure, result.draws_error
        of_draws = "–" if math.isnan(error) else f"{error:.{figure.digits}f}"
        lines.append(
            f"{result.task:<14} {figure.name:<20} {result!s:>24} {of_draws:>9} "
            f"{result.metrics['num_tokens']:>12,}  {result.recipe['split']}"
        )
    return "\n".join(lines)


def results_json(results: Iterable[TaskResult], **facts: Mapping[str, Any]) -> str:
    """JSON of `model`, `estimate` and `environment`, and of each task figures and recipe. NaN is null."""
    rows = [{**asdict(r), "value": r.figure.value, "stderr": r.figure.error} for r in results]
    return json.dumps(finite({**facts, "results": rows}), indent=2, ensure_ascii=False) + "\n"


def read_results(text: str, **facts: Mapping[str, Any]) -> list[TaskResult]:
    """Results from a `results_json` with the same facts; none if the facts differ, or the text is something else."""
    try:
        report = json.loads(text)
        same = all(report[name] == json.loads(json.dumps(finite(value))) for name, value in facts.items())
        names = {field.name for field in fields(TaskResult)}
        results = [TaskResult(**{name: r[name] for name in names}) for r in report["results"]] if same else []
    except (ValueError, KeyError, TypeError):
        return []
    for result in results:
        result.metrics.update({name: math.nan for name, value in result.metrics.items() if value is None})
    return results


def results_markdown(results: Iterable[TaskResult], model: Mapping[str, Any], estimate: Mapping[str, Any]) -> str:
    """A Markdown page with the results and their recipes, after the `model-index` metadata of a model card."""
    results = list(results)
    rows = [
        f"| {r.task} | {r.figure.name} | {r} | {r.metrics['num_tokens']:,} | {_describe(r.recipe)} |" for r in results
    ]
    notes = [f"- {r.task}: {r.note}" for r in results if r.note]
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in estimate.items() if value is not None)
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [
        f"---\n{model_index(results, str(model['name']))}\n---",
        f"# Evaluation of {model['name']}",
        "\n".join(["| task | figure | value | tokens | preparation |", "| --- | --- | --- | --- | --- |", *rows]),
        *(["\n".join(notes)] if notes else []),
        f"± is one standard error. {facts}; {packages}.",
        "\n".join(["```bash", *dict.fromkeys(r.command for r in results), "```\n"]),
    ]
    return "\n\n".join(parts)


def model_index(results: Iterable[TaskResult], model_name: str) -> str:
    """YAML metadata from which the Hub reads the results."""
    rows = [
        EvalResult(
            task_type=modality_of_metrics([r.metric]).task,
            dataset_type=path.name if (path := Path(r.recipe["data"]).expanduser()).exists() else r.recipe["data"],
            dataset_name=f"{r.task} ({_describe(r.recipe)})",
            dataset_config=r.recipe.get("config"),
            dataset_split=r.recipe["split"],
            dataset_revision=r.recipe.get("commit") or r.recipe.get("revision"),
            metric_type=r.metric,
            metric_name=r.figure.name.capitalize() + (" (upper bound)" if r.is_bound else ""),
            metric_value=r.figure.rounded,
        )
        for r in results
    ]
    return ModelCardData(model_name=model_name, eval_results=rows).to_yaml()


def _describe(recipe: Mapping[str, Any]) -> str:
    """A recipe in a few words."""
    if "context" not in recipe:
        return recipe["split"]
    words = [f"{recipe['preparation']}, {recipe['split']}", f"blocks of {recipe['context']}"]
    if recipe["stride"] < recipe["context"] - 2 * recipe["frame"]:
        words.append(f"stride {recipe['stride']}")
    if recipe["detokenizer"] != "none":
        words.append("detokenised")
    return ", ".join(words)


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
