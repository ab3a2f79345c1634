# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Table of GPU figures in docs/performance.md, from the runs of `gpu.py` in benchmarks/results/gpu/NAME.json.

python benchmarks/gpu_figures.py

A figure that no run has measured is "not measured yet".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "gpu", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- GPU figures: written by benchmarks/gpu_figures.py -->", "<!-- end of GPU figures -->"
MISSING = "not measured yet"
Run = dict[str, Any]  # the content of a `gpu.json`


def values(run: Run, part: str, name: str, key: str) -> Iterator[Any]:
    """Values of a key in the rows of a part whose names begin so."""
    for row in run["parts"].get(part, {"rows": []})["rows"]:
        if row["name"].startswith(name) and row["values"].get(key) is not None:
            yield row["values"][key]


def best(part: str, name: str, key: str, form: str = "{:,.0f}", choose: Callable = max) -> Callable[[Run], str | None]:
    """Figure that is the largest (or by another choice) of such values, written in this form."""

    def figure(run: Run) -> str | None:
        found = [*values(run, part, name, key)]
        return form.format(choose(found)) if found else None

    return figure


def total(part: str, name: str, *keys: str) -> Callable[[Run], str | None]:
    """Figure that is the sum of such values."""

    def figure(run: Run) -> str | None:
        found = [value for key in keys for value in values(run, part, name, key)]
        return f"{sum(found):g}" if found else None

    return figure


def checks(run: Run) -> str | None:
    """Number of comparisons that hold."""
    found = [row["ok"] for row in run["parts"].get("correctness", {"rows": []})["rows"] if row["ok"] is not None]
    return f"{sum(found)} of {len(found)}" if found else None


SPEED, SAMPLING = "training_speed", "sampling_speed"
FIGURES: dict[str, Callable[[Run], str | None]] = {
    "comparisons with the processor in float64 that hold": checks,
    "waits for the device in a bare step": total("host_sync", "bare step, MD4", "waits_per_step"),
    "waits in a step of MD4Trainer": total("host_sync", "steps of MD4Trainer", "waits_per_step"),
    "graph breaks and recompilations": total("host_sync", "graphs", "graph_breaks", "recompilations"),
    "bf16 matrix product, TFLOP/s": best(SPEED, "matrix product", "tflop_per_s"),
    "openwebtext-small, tokens/s, eager": best(SPEED, "openwebtext-small, eager", "tokens_per_s"),
    "openwebtext-small, tokens/s, compiled (goal on an H200: 450,000)": best(
        SPEED, "openwebtext-small, compiled", "tokens_per_s"
    ),
    "openwebtext-small, share of the matrix product": best(SPEED, "openwebtext-small", "mfu", "{:.0%}"),
    "text8, tokens/s": best(SPEED, "text8", "tokens_per_s"),
    "openwebtext-medium, tokens/s": best(SPEED, "openwebtext-medium", "tokens_per_s"),
    "times faster than the official formulation (goal: 1.8)": best(
        SPEED, "against the official", "times_faster", "{:.2f}"
    ),
    "share of its memory (goal: 33%)": best(SPEED, "against the official", "share_of_memory", "{:.0%}"),
    "the loss alone, ms": best(SPEED, "loss alone, md4_hf", "ms", "{:.1f}", min),
    "torch's `linear_cross_entropy`, ms": best(SPEED, "loss alone, torch", "ms", "{:.1f}"),
    "Liger's fused operator, unweighted, ms": best(SPEED, "loss alone, Liger", "ms", "{:.1f}"),
    "a sample of 1024 tokens, seconds": best(SAMPLING, "batch 1,", "seconds", "{:.1f}"),
    "times faster than step by step": best(SAMPLING, "batch 1,", "times_faster", "{:.1f}"),
    "times faster than MDLM's cached rule": best(SAMPLING, "batch 1,", "times_faster_than_mdlm", "{:.1f}"),
    "64 samples, seconds": best(SAMPLING, "batch 64,", "seconds", "{:.1f}"),
    "held-out bits per character after the minutes of a run": best(
        "learning", "held-out bound, at the end", "bits_per_character", "{:.3f}"
    ),
}


def table(runs: dict[str, Run]) -> str:
    """Table of Markdown with a column for each run by name, under which its machine and versions are listed."""
    columns = runs or {"figure": {"parts": {}}}
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for label, figure in FIGURES.items():
        lines.append(f"| {label} | {' | '.join(figure(run) or MISSING for run in columns.values())} |")
    notes = [f"- {name}: {run['machine']}" for name, run in runs.items()]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def recorded() -> dict[str, Run]:
    """All recorded runs by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def with_table(page: str, written: str) -> str:
    """The page with this table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(recorded())), encoding="utf-8")
