# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation in rounds: independent repetitions, which measure the Monte-Carlo error, until it is small.

A round is an evaluation of all examples with noise of its own. Finished rounds are kept in files, from which an
interrupted evaluation is resumed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..objective.estimators import nelbo_metrics
from ..objective.figures import SIZE_COLUMNS
from ..utils.files import whole_file, write_whole
from ..utils.options import changed
from ..utils.processes import on_first_process


logger = logging.getLogger(__name__)

SEED_STRIDE = 2**32  # between the seeds of rounds, so that the rounds of neighbouring seeds are not the same


@dataclass
class Rounds:
    """Results of the rounds of an evaluation."""

    nelbo: np.ndarray  # (rounds, examples) nats, float64
    num_tokens: np.ndarray  # (examples,) scored tokens
    num_characters: np.ndarray  # (examples,) characters that they stand for; NaN if not known
    num_bytes: np.ndarray | None = None  # (examples,) their bytes in UTF-8; NaN or None if not known

    @property
    def monte_carlo_stderr(self) -> float:
        """Standard error of the NELBO in nats per token that is due to the draws alone; NaN of a single round.

        From the variance of each example over the rounds, as if the examples' noise were independent. Their times are
        spread more evenly than that, which as a rule makes the true error smaller.
        """
        if len(self.nelbo) < 2:
            return math.nan
        variance = self.nelbo.var(axis=0, ddof=1).sum() / len(self.nelbo)
        return math.sqrt(variance) / self.num_tokens.sum()

    def metrics(self, are_images: bool = False) -> dict[str, float]:
        """`nelbo_metrics` of the mean over the rounds, `num_rounds`, and with two or more `monte_carlo_stderr`."""
        nelbo, num_tokens = torch.from_numpy(self.nelbo.mean(axis=0)), torch.from_numpy(self.num_tokens)
        sizes = {name: getattr(self, name) for name in SIZE_COLUMNS}
        known = {n: torch.from_numpy(x) for n, x in sizes.items() if not (x is None or np.isnan(x).any())}
        metrics = nelbo_metrics(nelbo, num_tokens, are_dimensions=are_images, **known)
        metrics["num_rounds"] = len(self.nelbo)
        if len(self.nelbo) > 1:
            metrics["monte_carlo_stderr"] = self.monte_carlo_stderr
        return metrics


@dataclass(frozen=True)
class Stopping:
    """Rule for ending the rounds."""

    rounds: int = 1  # at least; with a target two
    target_stderr: float | None = None  # continue until `Rounds.monte_carlo_stderr` is no larger, nats per token > 0
    max_rounds: int = 1000

    def __post_init__(self):
        for name in ("rounds", "max_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}.")
        if self.target_stderr is not None and not self.target_stderr > 0:
            raise ValueError(f"`target_stderr` must be > 0 nats per token, got {self.target_stderr}.")

    def goes_on(self, rounds: Rounds | None) -> bool:
        """Whether another round follows."""
        done = 0 if rounds is None else len(rounds.nelbo)
        if done < self.rounds:
            return True
        if self.target_stderr is None:
            return False
        if done >= max(self.rounds, self.max_rounds):
            message = "After %d rounds the Monte-Carlo error is %.2g nats per token, above the target."
            logger.warning(message, done, rounds.monte_carlo_stderr)
            return False
        return not rounds.monte_carlo_stderr <= self.target_stderr


def evaluate_in_rounds(
    trainer,
    examples,
    stopping: Stopping | None = None,
    *,
    store: str | os.PathLike | None = None,
    recipe: dict[str, Any] | None = None,
    report: Callable[[Rounds], None] | None = None,
) -> Rounds:
    """Evaluate examples, round by round. Call it on all processes.

    Round r is evaluated with the seed `args.eval_seed + r * 2**32`: one round is what `MD4Trainer.evaluate` does.

    Args:
        trainer: The `MD4Trainer`, whose arguments say how many draws a round has.
        stopping: When to end; after one round by default, and of an exact likelihood always.
        store: Folder that keeps the rounds done, one file each, and with which an evaluation resumes. There may be more
            of them than `stopping` asks for: the result is that of an evaluation that was never interrupted.
        recipe: All that the rounds depend on, for JSON; each recipe has its own folder in the store.
    """
    stopping = Stopping() if stopping is None or trainer.estimate.is_exact else stopping
    folder = None
    if store is not None:
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(store, digest)
        if trainer.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "recipe.json", json.dumps(recipe, indent=2, sort_keys=True) + "\n")
    rounds = None
    while stopping.goes_on(rounds):
        new = _next_round(trainer, examples, 0 if rounds is None else len(rounds.nelbo), folder)
        rounds = new if rounds is None else replace(rounds, nelbo=np.concatenate([rounds.nelbo, new.nelbo]))
        if report is not None:
            report(rounds)
    return rounds


def _next_round(trainer, examples, number: int, folder: Path | None) -> Rounds:
    """The round of this number from its file in the folder, or else evaluated, and written there."""
    path = None if folder is None else folder / f"round-{number}.safetensors"
    done = None if path is None else on_first_process(trainer.args, functools.partial(_read, path))
    if done is not None:
        return done
    with changed(trainer.args, eval_seed=trainer.args.eval_seed + number * SEED_STRIDE):
        rows = np.asarray(trainer.predict(examples, metric_key_prefix="eval").predictions, dtype=np.float64)
    nelbo, *sizes = rows.T
    done = Rounds(nelbo[None], *sizes)
    if path is not None and trainer.is_world_process_zero():
        with whole_file(path) as temporary:
            temporary.write_bytes(save({name: np.ascontiguousarray(array) for name, array in vars(done).items()}))
    return done


def _read(path: Path) -> Rounds | None:
    """Read the round in a file; None if there is no file, or it is damaged."""
    if not path.is_file():
        return None
    try:
        return Rounds(**load_file(path))
    except (OSError, TypeError, SafetensorError) as error:
        logger.warning("Evaluating anew: the round in %s cannot be read (%s).", path, error)
        return None
