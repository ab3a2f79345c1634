# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Print the tables of the papers, older and newer, with a row for each way in which the suite has measured your models.

md4 suite runs/my-model zero-shot
python scripts/reproduce_tables.py runs/my-model --tables zero-shot text8

The published figures are in `published_results.json`, as their papers print them: the last column says so, with the
source, and what is known of its preparation. A model's own come from the JSON that `md4 suite` writes, with the
preparation and the split in the last column. Nothing is measured here.

The papers' perplexities are per token of GPT-2, and those of a model with other tokens, such as bytes, not comparable:
its row has in parentheses the bits per byte of the text, NELBO / bytes / ln 2.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from md4_hf.evaluation.recipes import TASKS
from md4_hf.objective.figures import Figure
from md4_hf.utils.files import write_whole


PUBLISHED = Path(__file__).with_name("published_results.json")
WAY = ("preparation", "wrap", "stride", "context")  # of a recipe: tasks that agree in these have a row in common
EXACT = "= "  # before published figures that are likelihoods and no bounds
NAMES = {
    "lambada": "LAMBADA",
    "wikitext2": "WikiText2",
    "ptb": "PTB",
    "wikitext103": "WikiText103",
    "lm1b": "1BW",
    "openwebtext": "OpenWebText",
    "cifar10": "CIFAR-10",
    "imagenet64": "ImageNet 64",
}


@dataclass(frozen=True)
class Paper:
    """Published rows of a table, with one source."""

    source: str  # where the figures are printed
    rows: list[list[str]]  # of each method its size, its name and a figure for each column
    preparation: str = ""  # of the text or the training, where the papers of a table differ

    def cells(self) -> Iterator[list[str]]:
        """Rows of the printed table: figures that are no likelihoods are bounds."""
        how = "; ".join(filter(None, [f"published: {self.source}", self.preparation]))
        for size, method, *figures in self.rows:
            shown = [cell.removeprefix(EXACT) if cell.startswith(EXACT) else f"≤ {cell}" for cell in figures]
            yield [size, method, *shown, how]


@dataclass(frozen=True)
class Table:
    """A table of published figures."""

    name: str
    title: str
    columns: list[str]  # tasks
    papers: list[Paper]
    suite: str  # the suite that measures it
    preparation: str | None = None  # the source's way to prepare text; None if any will do
    note: str = ""


def published_tables() -> list[Table]:
    """The tables of the papers."""
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return [
        Table(name=name, **{"suite": name, **entry, "papers": [Paper(**paper) for paper in entry["papers"]]})
        for name, entry in entries.items()
    ]


def measured(model: str, suite: str, results: str) -> list[dict[str, Any]]:
    """Reports of the suite about a model, one for each preparation, that of the suite's own name first."""
    folders = (Path(model, "evaluation"), Path(model), Path(results, model.replace("/", "--")))
    files = {file.resolve(): None for folder in folders for file in sorted(folder.glob(f"{suite}*.json"))}
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [report for report in reports if isinstance(report, dict) and {"model", "results"} <= report.keys()]


def own_rows(table: Table, report: dict[str, Any]) -> list[list[str]]:
    """The rows of a model, one for each way in which its tasks were prepared, of those that the table is about."""
    found: dict[tuple, dict[str, dict[str, Any]]] = {}
    for result in report["results"]:
        recipe = result["recipe"]
        if result["task"] in table.columns and table.preparation in (None, recipe.get("preparation")):
            way = tuple(recipe.get(name) for name in WAY)
            found.setdefault(way, {})[result["task"]] = result
    model = report["model"]
    has_their_tokens = model.get("tokens") == "gpt2"
    return [
        [
            model["objective"],
            f"**{model['name']}**",
            *(figure(results[task], has_their_tokens) if task in results else "–" for task in table.columns),
            describe([results[task] for task in table.columns if task in results], report),
        ]
        for results in found.values()
    ]


def figure(result: dict[str, Any], has_their_tokens: bool = True) -> str:
    """A measured figure with its error, which one example alone does not have, in the digits of the papers."""
    if result["value"] is None:  # JSON has no word for infinite
        return "not finite"
    if result["metric"] == "perplexity" and not has_their_tokens:
        bits = result["metrics"].get("bits_per_byte")
        return "other tokens" if bits is None else f"({'≤ ' if result['is_bound'] else ''}{bits:.3f} bits per byte)"
    digits = 2 if result["metric"] == "perplexity" else 3
    measured = Figure(result["metric"], result["value"], math.nan if result["stderr"] is None else result["stderr"])
    return f"{'≤ ' if result['is_bound'] else ''}{measured:.{digits}f}"


def describe(results: list[dict[str, Any]], report: dict[str, Any]) -> str:
    """Preparation, splits and estimator of a row, and what is not as usual."""
    recipes = [result["recipe"] for result in results]
    splits = "/".join(dict.fromkeys(str(recipe["split"]) for recipe in recipes))
    words = [recipes[0].get("preparation", "images"), splits]
    if "context" in recipes[0]:
        words.append(f"blocks of {'/'.join(dict.fromkeys(str(recipe['context']) for recipe in recipes))}")
        if recipes[0]["stride"] < recipes[0]["context"] - 2 * recipes[0]["frame"]:
            words.append(f"stride {recipes[0]['stride']}")
        words += [] if recipes[0]["wrap"] else ["rows by themselves"]
        names = {result["task"]: result["recipe"]["detokenizer"] for result in results}
        words += dict.fromkeys(
            f"detokenizer {name}" for task, name in names.items() if name != TASKS[task].detokenizer
        )
    if report["model"].get("tokens") != "gpt2" and any(result["metric"] == "perplexity" for result in results):
        words.append("not comparable: its tokens are not GPT-2's")
    estimate = report["estimate"]
    if estimate["estimator"] == "exact":
        return "; ".join([*words, "exact"])
    if estimate.get("timesteps") not in (None, "continuous"):
        words.append(f"T = {estimate['timesteps']}")
    if "order" in estimate:
        words.append(f"sampler of order {estimate['order']}, {estimate['num_inference_steps']} steps")
    if "draws" in estimate:
        words.append(f"{estimate['draws']} draws ({estimate['estimator']})")
    return "; ".join(words)


def lines_of(table: Table, models: list[str], results: str) -> Iterator[str]:
    """A table as Markdown."""
    yield from (f"## {table.title}", "")
    header = ["size or objective", "model", *(NAMES.get(task, task) for task in table.columns), "how"]
    rows = [row for paper in table.papers for row in paper.cells()]
    options = f" --preparation {table.preparation}" if table.preparation else ""
    for model in models:
        own = [row for report in measured(model, table.suite, results) for row in own_rows(table, report)]
        rows += own
        if not own:
            command = f"md4 suite {model} {table.suite}{options}"
            print(f"{table.name}: no results of {model}. To have them: {command}", file=sys.stderr)
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"
    yield from ("", *filter(None, [table.note]), "")


def main(argv: list[str] | None = None):
    """Print or write the tables."""
    tables = {table.name: table for table in published_tables()}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="Models that were evaluated: folders, or names under --results.")
    parser.add_argument("--tables", nargs="+", choices=[*tables], default=[*tables])
    parser.add_argument("--results", default="runs/evaluation", help="Where results of models of the Hub are.")
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    args = parser.parse_args(argv)
    chosen = [table for name, table in tables.items() if name in args.tables]
    text = "\n".join(line for table in chosen for line in lines_of(table, args.models, args.results))
    if args.output is None:
        print(text)
    else:
        write_whole(Path(args.output), text)


if __name__ == "__main__":
    main()
