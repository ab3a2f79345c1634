# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a running training: written aside by all processes, complete or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer

from ..hub.adapters import is_adapted
from ..utils.libraries import check_version
from ..utils.processes import entered_by_first_process
from .checkpoints import DEEPSPEED, FSDP_SHARDED, FSDP_WHOLE, PLAIN, rotate, staged_checkpoint
from .ema import average_folder


OLDEST_ACCELERATE = "1.13.0"  # for FSDP


class CheckpointWriter:
    """Writes the checkpoints of an `MD4Trainer`, each with the averaged weights and the position of a stream."""

    def __init__(self, trainer: Any):
        check_can_be_resumed(trainer)
        self.trainer = trainer
        self.staging: Path | None = None  # the folder in which `Trainer` is to write a checkpoint now

    def write(self, run_dir: Path, save: Callable[[], None]):
        """Write a checkpoint of the current step, remove old ones, and start to upload it if that is asked for.

        `save` writes what `Trainer` has in a checkpoint, into `staging`.
        """
        trainer, previous_best = self.trainer, self.trainer.state.best_model_checkpoint
        checkpoint = run_dir / f"checkpoint-{trainer.state.global_step}"
        with entered_by_first_process(trainer.args, staged_checkpoint(checkpoint)) as staged:
            self.staging = staged.parent
            try:
                save()
            finally:
                self.staging = None
            if trainer.ema is not None:
                trainer.repository.write_model(staged / average_folder(trainer.model), averaged=True)
            trainer.sums.save(staged)
            if trainer.stream is not None:
                trainer.stream.save(staged)
            self._correct_best(checkpoint, staged, previous_best)
        if trainer.args.should_save:
            rotate(run_dir, trainer.args.save_total_limit, [checkpoint, trainer.state.best_model_checkpoint])
            if trainer.args.push_to_hub:
                trainer.repository.push_checkpoint(checkpoint)
        trainer.accelerator.wait_for_everyone()

    def _correct_best(self, checkpoint: Path, staged: Path, previous_best: str | None):
        """Note on every rank where the best checkpoint will be: `Trainer` looked for it where this one is staged."""
        state = self.trainer.state
        best = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
        state.best_model_checkpoint = str(best) if best == checkpoint or best.is_dir() else previous_best
        if self.trainer.args.should_save:
            state.save_to_json(str(staged / "trainer_state.json"))


def check_can_be_resumed(trainer: Trainer):
    """Raise an ImportError, before a training, for an accelerate that would lose part of its state in a resumption.

    From shards, 1.12 restores no state of the optimizer; 1.14 restores no adapter of whole checkpoints of FSDP2.
    """
    if not trainer.is_fsdp_enabled:
        return
    check_version("accelerate", OLDEST_ACCELERATE, "Checkpoints of FSDP")
    if is_adapted(trainer.accelerator.unwrap_model(trainer.model)) and kind_of_training(trainer) == FSDP_WHOLE:
        check_version("accelerate", "1.15.0", "Whole checkpoints of an adapter under FSDP (others than its shards)")


def kind_of_training(trainer: Trainer) -> str:
    """Key of `OPTIMIZERS` for the checkpoints of a trainer."""
    if trainer.is_fsdp_enabled:
        is_sharded = "SHARDED" in str(trainer.accelerator.state.fsdp_plugin.state_dict_type)
        return FSDP_SHARDED if is_sharded else FSDP_WHOLE
    return DEEPSPEED if trainer.is_deepspeed_enabled else PLAIN


def keeps_shards(trainer: Trainer) -> bool:
    """Whether checkpoints leave the raw weights in shards; those of an adapter are small, and always whole too."""
    if is_adapted(trainer.accelerator.unwrap_model(trainer.model)):
        return False
    if trainer.is_fsdp_enabled:
        return kind_of_training(trainer) == FSDP_SHARDED
    if not trainer.is_deepspeed_enabled or trainer.model_wrapped.zero_optimization_stage() < 3:
        return False
    return not trainer.model_wrapped.zero_gather_16bit_weights_on_model_save()
