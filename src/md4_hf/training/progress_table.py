# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Progress of a training: a table of its losses in bits, and a bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from ..objective.figures import headline
from ..utils.progress_bars import shows_bars


WIDTHS = {"step": 9, "minutes": 9, "train": 19, "held-out": 31, "rate": 10, "gradient": 10}
BEHIND_BAR = ("train", "held-out")


class BitsProgressCallback(ProgressCallback):
    """Prints a row of a table for each evaluation of a training, and shows the latest losses behind a bar.

    Without a bar, each log has a row too.

    Args:
        has_bar: Whether there is a bar if standard error is a terminal.
    """

    def __init__(self, max_str_len: int = 100, has_bar: bool = True):
        super().__init__(max_str_len)
        self.has_bar = has_bar
        self._latest: dict[str, str] = {}
        self._begin: float | None = None  # of the training; None outside one
        self._has_header = False

    @property
    def shows_bar(self) -> bool:
        """Whether bars are drawn now."""
        return self.has_bar and shows_bars()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Open the bar, with a label."""
        self._begin, self._has_header, self._latest = time.monotonic(), False, {}
        if self.shows_bar:
            super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("Training")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Move the bar."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Close the bar."""
        self._begin = None
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs):
        """Show the losses behind the bar and in the table."""
        new = texts_of_logs(logs or {})
        self._latest |= new
        if self.training_bar is not None:
            self.training_bar.set_postfix({k: text for k, text in self._latest.items() if k in BEHIND_BAR})
        has_row = "held-out" in new or (self.training_bar is None and not control.should_evaluate)
        if new and has_row and self._begin is not None and state.is_world_process_zero:
            minutes = f"{(time.monotonic() - self._begin) / 60:.1f}"
            self._print_row({**self._latest, "step": f"{state.global_step:,}", "minutes": minutes})
            if self.training_bar is None:
                self._latest.pop("held-out", None)

    def _print_row(self, cells: Mapping[str, str]):
        """Print a row, below the names of the columns if it is the first, and above the bar if there is one."""
        with tqdm.external_write_mode(file=sys.stdout):
            if not self._has_header:
                print("".join(name.rjust(width) for name, width in WIDTHS.items()))
                self._has_header = True
            print("".join(cells.get(name, "").rjust(width) for name, width in WIDTHS.items()), flush=True)

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Show a bar for evaluations outside training only: those within it are short."""
        if self.training_bar is None and self._begin is None and self.shows_bar:
            super().on_prediction_step(args, state, control, **kwargs)
            if self.prediction_bar is not None:
                self.prediction_bar.set_description("Evaluating")


def texts_of_logs(logs: Mapping[str, float]) -> dict[str, str]:
    """Cells of the table for what is logged, by the names of their columns."""
    texts = {}
    if "bits_per_token" in logs:
        texts["train"] = f"{logs['bits_per_token']:.3f} bits/token"
    elif "loss" in logs:  # that is no bound
        texts["train"] = f"loss {logs['loss']:.3f}"
    if "eval_bits_per_token" in logs:
        bits = headline(logs, "eval_")
        texts["held-out"] = f"{bits:.3f} {bits.unit}"
    if "loss" in logs and "learning_rate" in logs:
        texts["rate"] = f"{logs['learning_rate']:.1e}"
    if "loss" in logs and logs.get("grad_norm") is not None:
        texts["gradient"] = f"{logs['grad_norm']:.3g}"
    return texts
