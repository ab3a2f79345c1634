# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Guard against losses, gradients and weights that are not finite: none of them gets into a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from ..utils.hardware import HostCopy
from ..utils.sharding import trainable


logger = logging.get_logger(__name__)

STOP, SKIP = "stop", "skip"
MAX_LEFT_OUT_IN_A_ROW = 5  # of other data each: then it is the weights that are at fault


class FiniteSteps:
    """Stops a training at a loss or gradient that is not finite, or leaves such steps out, a few in a row.

    All processes agree on each step. To stop, nothing waits for the accelerator: whether a step was finite is read one
    step later, and before anything is made of its weights, be it a checkpoint, an evaluation or the end.

    Args:
        trainer: The `MD4Trainer`.

    Raises:
        ValueError: If steps are to be left out under DeepSpeed, whose backward pass changes the weights.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.skips = trainer, trainer.args.on_nonfinite == SKIP
        if self.skips and trainer.is_deepspeed_enabled:
            raise ValueError(f"`on_nonfinite` must be {STOP!r} under DeepSpeed, got {SKIP!r}.")
        self.begin()

    def begin(self):
        """Forget what an earlier training left."""
        self._is_finite: Tensor | None = None  # on this process, in the step so far
        self._num_in_a_row = 0  # steps just left out
        self._last: tuple[int, HostCopy] | None = None

    def add_loss(self, loss: Tensor):
        """Take the loss of a micro-batch into account."""
        is_finite = loss.isfinite().all()
        self._is_finite = is_finite if self._is_finite is None else self._is_finite & is_finite

    def judge(self, gradient_norm: Tensor | float | None):
        """Judge the step, between its last backward pass and the optimizer. Call it on all processes.

        Raises:
            FloatingPointError: On all of them, if the step before this one was not finite, and none is left out; or
                if too many in a row are.
        """
        is_finite, step = self._is_finite, self.trainer.state.global_step + 1
        self._is_finite = None
        # The scaler of float16 leaves steps whose gradients overflow out by itself.
        if gradient_norm is not None and getattr(self.trainer.accelerator, "scaler", None) is None:
            is_finite = is_finite & torch.as_tensor(gradient_norm, device=is_finite.device).isfinite()
        is_finite = self._agreed(is_finite)
        if not self.skips:
            self._raise_if_last_was_not_finite()
            self._last = (step, HostCopy(is_finite))
        elif is_finite:
            self._num_in_a_row = 0
        else:
            self._leave_out(step)

    def _leave_out(self, step: int):
        self._num_in_a_row += 1
        if self._num_in_a_row == MAX_LEFT_OUT_IN_A_ROW:
            raise FloatingPointError(
                f"the last {self._num_in_a_row} steps up to step {step} were not finite, the weights are at fault: "
                f"the training has stopped. Resume from a checkpoint before step {step - self._num_in_a_row}, with a "
                "lower `learning_rate`."
            )
        self.trainer.model_wrapped.zero_grad(set_to_none=True)  # an optimizer passes over what has no gradient
        self.trainer.sums.leave_out_step()
        number = self.trainer.sums.num_left_out
        logger.warning(f"Left out step {step}, whose loss or gradient is not finite ({number} so far).")

    def check(self):
        """Refuse a step that was not finite, and weights that are not. Call it on all processes.

        Raises:
            FloatingPointError: On all of them.
        """
        self._raise_if_last_was_not_finite()
        parts = [
            weight.to_local() if isinstance(weight, DTensor) else weight for weight in trainable(self.trainer.model)
        ]
        if not self._agreed(torch.stack([part.isfinite().all() for part in parts]).all()):
            raise FloatingPointError(
                f"the weights after step {self.trainer.state.global_step} are not finite, though its gradient was: the "
                "training has stopped, and its checkpoints are from before. Lower `learning_rate`."
            )

    def _agreed(self, is_finite: Tensor) -> Tensor:
        """Whether something holds on all processes."""
        agreed = is_finite.to(self.trainer.args.device, torch.int32)
        if self.trainer.args.world_size > 1:
            torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MIN)
        return agreed

    def _raise_if_last_was_not_finite(self):
        if self._last is None:
            return
        step, is_finite = self._last
        if not is_finite.read():
            raise FloatingPointError(
                f"the loss or gradient of step {step} is not finite: the training has stopped, and its checkpoints are "
                f'from before. Lower `learning_rate`, or leave such steps out with `on_nonfinite="{SKIP}"`.'
            )
