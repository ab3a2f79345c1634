# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Print the tables of the papers, with a row for each of your own models that the suite has measured.

md4 evaluate runs/my-model --suite zero-shot
python scripts/reproduce_tables.py runs/my-model --tables zero-shot text8

The published figures are in `published_results.json`, as their papers print them; a model's own come from the JSON that
`md4 evaluate --suite` writes, with the preparation and the split in the last column. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from md4_hf import write_whole


PUBLISHED = Path(__file__).with_name("published_results.json")
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
class Table:
    """A published table.

    Args:
        name: By which it is asked for.
        title: What is in it.
        source: Where the figures are printed.
        columns: Tasks.
        rows: Of each method its size, its name and a figure for each column.
        suite: The suite that measures it.
        preparation: How the source prepares text; None if any will do.
        note: What a reader has to know.
    """

    name: str
    title: str
    source: str
    columns: list[str]
    rows: list[list[str]]
    suite: str
    preparation: str | None = None
    note: str = ""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    tables = [table.name for table in published_tables()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="Models that were evaluated: folders, or names under --results.")
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    parser.add_argument("--results", default="runs/evaluation", help="Where results of models of the Hub are.")
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    return parser.parse_args(argv)


def published_tables() -> list[Table]:
    """The tables of the papers."""
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return [Table(name=name, **{"suite": name, **entry}) for name, entry in entries.items()]


def measured(model: str, name: str, results: str) -> dict[str, Any] | None:
    """What the suite found of a model, in the file of a table's name; None if it was not run."""
    folders = (Path(model, "evaluation"), Path(model), Path(results, model.replace("/", "--")))
    files = [folder / f"{name}.json" for folder in folders if (folder / f"{name}.json").is_file()]
    return json.loads(files[0].read_text(encoding="utf-8")) if files else None


def own_row(table: Table, report: dict[str, Any]) -> list[str] | None:
    """A model's row; None if it was evaluated with another preparation than the table's, or on none of its tasks."""
    results = {result["task"]: result for result in report["results"]}
    found = [results[task] for task in table.columns if task in results]
    recipes = [result["recipe"] for result in found]
    if not found or any(recipe.get("preparation") != table.preparation for recipe in recipes if table.preparation):
        return None
    cells = [figure(results[task]) if task in results else "–" for task in table.columns]
    return [report["model"]["objective"], f"**{report['model']['name']}**", *cells, describe(recipes, report)]


def figure(result: dict[str, Any]) -> str:
    """A measured figure with its error."""
    digits = 2 if result["metric"] == "perplexity" else 3
    return f"{'≤ ' if result['is_bound'] else ''}{result['value']:.{digits}f} ± {result['stderr']:.{digits}f}"


def describe(recipes: list[dict[str, Any]], report: dict[str, Any]) -> str:
    """Preparation, splits and estimator of a row."""
    splits = "/".join(dict.fromkeys(str(recipe["split"]) for recipe in recipes))
    contexts = "/".join(dict.fromkeys(str(recipe["context"]) for recipe in recipes if "context" in recipe))
    preparation = recipes[0].get("preparation", "images")
    estimate = report["estimate"]
    draws = "exact" if estimate["estimator"] == "exact" else f"{estimate['draws']} draws ({estimate['estimator']})"
    return f"{preparation}; {splits}; " + (f"blocks of {contexts}; " if contexts else "") + draws


def published_row(row: list[str]) -> list[str]:
    """A paper's row: figures that are no likelihoods are bounds."""
    size, method, *figures = row
    cells = [cell.removeprefix(EXACT) if cell.startswith(EXACT) else f"≤ {cell}" for cell in figures]
    return [size, method, *cells, "paper"]


def lines_of(table: Table, models: list[str], results: str) -> Iterator[str]:
    """A table as Markdown."""
    yield from (f"## {table.title}", "")
    header = ["size or objective", "model", *(NAMES.get(task, task) for task in table.columns), "how"]
    rows = [published_row(row) for row in table.rows]
    for model in models:
        report = measured(model, table.name, results)
        row = None if report is None else own_row(table, report)
        if row is None:
            options = f"--suite {table.suite}" + (f" --preparation {table.preparation}" if table.preparation else "")
            print(
                f"{table.name}: no results of {model}. To have them: md4 evaluate {model} {options}", file=sys.stderr
            )
        else:
            rows.append(row)
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"
    yield from ("", f"Published figures: {table.source}. {table.note}".rstrip(), "")


def main(argv: list[str] | None = None):
    """Print or write the tables."""
    args = parse_arguments(argv)
    chosen = [table for table in published_tables() if table.name in args.tables]
    text = "\n".join(line for table in chosen for line in lines_of(table, args.models, args.results))
    if args.output is None:
        print(text)
        return
    write_whole(Path(args.output), text)


if __name__ == "__main__":
    main()
