# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sums since the last line of the log, kept in checkpoints: a resumed run logs the numbers of an unbroken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..utils.processes import gather
from .training_state import RUNNING_SUMS, read_running_sums


class RunningSums(TrainerCallback):
    """Loss and bound since the last line of the log, and the number of steps left out of the run.

    `Trainer` sums the loss. GenMD4's is a surrogate, so that the bound is summed here.

    Args:
        trainer: The `MD4Trainer`.

    Attributes:
        num_left_out: Steps of the run that were left out.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.begin()

    def begin(self):
        """Forget the sums of an earlier training."""
        self._nelbo: Tensor | float = 0.0
        self._num_steps = self.num_left_out = 0
        self._stored: dict[str, Any] | None = None

    def begin_step(self):
        """Count a step, and remember the sums before it if it may be left out."""
        self._num_steps += 1
        if self.trainer.finite_steps.skips:
            self._before = self.trainer._tr_loss.clone(), self._nelbo

    def leave_out_step(self):
        """Take the last step out again."""
        loss, self._nelbo = self._before
        self.trainer._tr_loss.copy_(loss)
        self.trainer._globalstep_last_logged += 1
        self._num_steps -= 1
        self.num_left_out += 1

    def add_nelbo(self, nelbo: Tensor):
        """Add the bound of a micro-batch; with DataParallel, over the devices."""
        self._nelbo = self._nelbo + nelbo.detach().sum()

    def take(self) -> tuple[Tensor | float, int]:
        """Sum of the bound on this process, and the number of steps; both begin anew."""
        taken, self._nelbo, self._num_steps = (self._nelbo, self._num_steps), 0.0, 0
        return taken

    def save(self, folder: Path):
        """Write the sums of all processes into a checkpoint. Call it on all of them."""
        everyone = gather((self.trainer._tr_loss.item(), float(self._nelbo)), self.trainer.args.world_size)
        losses, nelbos = zip(*everyone, strict=True)
        record = {"loss": losses, "nelbo": nelbos, "num_steps": self._num_steps, "num_left_out": self.num_left_out}
        if self.trainer.args.should_save:
            (folder / RUNNING_SUMS).write_text(json.dumps(record) + "\n", encoding="utf-8")

    def load(self, folder: str | Path):
        """Resume from the sums in a checkpoint, if it has any, when training begins."""
        self._stored = read_running_sums(Path(folder))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Take the stored sums; other processes than those that wrote them each take an equal share."""
        if self._stored is None:
            return
        stored, self._stored = self._stored, None
        losses, nelbos = stored["loss"], stored["nelbo"]
        mean_loss = sum(losses) / len(losses)
        is_alike = len(losses) == args.world_size
        self.trainer._tr_loss.fill_(losses[args.process_index] if is_alike else mean_loss)
        self._nelbo = nelbos[args.process_index] if is_alike else sum(nelbos) / args.world_size
        self._num_steps, self.num_left_out = stored["num_steps"], stored["num_left_out"]
        self.trainer._globalstep_last_logged = state.global_step - self._num_steps
        self.trainer._total_loss_scalar = -mean_loss  # `train_loss` is that of the steps of this training
