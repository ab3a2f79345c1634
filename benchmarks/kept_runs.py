# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Results that are computed once and kept under the hash of all that determines them; trainings by `md4 train`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from md4_hf.cli import main
from md4_hf.utils.files import write_whole


QUIET = {"eval_strategy": "no", "save_strategy": "no", "card_samples": 0, "disable_tqdm": "true"}


def digest(facts: Mapping[str, Any]) -> str:
    """Name of a result: a hash of all that determines it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def kept(folder: Path | None, facts: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """Result from a folder, or else computed, and kept there as JSON with its facts; without a folder, computed."""
    if folder is None:
        return compute()
    file = folder / f"{digest(facts)}.json"
    if not file.is_file():
        result = compute()
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"facts": facts, "result": result}) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))["result"]


def quietly(command: str, *arguments: str | Path, **options: Any):
    """Run a command of `md4` in this process, without what it prints; a list is an option with several values."""
    argv = []
    for name, value in options.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        main([command, *map(str, arguments), *argv])


def trained(folder: Path, options: Mapping[str, Any]) -> tuple[Path, dict[str, float]]:
    """Folder of the model that `md4 train` makes with these options, and its held-out figures, with the `seconds`.

    An unfinished training is begun anew.
    """
    place = folder / digest(options)

    def train() -> dict[str, float]:
        shutil.rmtree(place, ignore_errors=True)
        start = time.perf_counter()
        quietly("train", output_dir=place, **{**QUIET, **options})
        metrics = json.loads((place / "eval_results.json").read_text(encoding="utf-8"))
        return {**metrics, "seconds": time.perf_counter() - start}

    return place, kept(folder, options, train)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over the seeds, and its standard error; NaN of a single one."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def with_error(values: Sequence[float]) -> str:
    """Mean and standard error of some values in words, the mean alone of a single one."""
    mean, error = mean_and_error(values)
    return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"
