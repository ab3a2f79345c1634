# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Stopping a training cleanly: signals in the process that trains, and in the workers of its data loader."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..utils.hardware import HostCopy


logger = logging.get_logger(__name__)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve_on(init: Callable[[int], None] | None, worker_id: int):
    """Begin a worker of a data loader that lets signals pass: terminals and launchers send them to all processes.

    The process that trains ends its workers when it stops, and they end by themselves when it dies. `init` is the
    loader's own `worker_init_fn`, which is called too.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if init is not None:
        init(worker_id)


class InterruptCallback(TrainerCallback):
    """Ends training at the end of a step, with a checkpoint, when the process is asked to stop.

    The first Ctrl-C (or SIGTERM) asks; a second Ctrl-C acts at once. Several processes agree at every step, so that all
    stop at the same one, whichever was asked; what they have not agreed on by the end of training does not count.
    """

    def __init__(self):
        self.interrupted = self._asked = False
        self._agreement: HostCopy | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handle the signals within the context; does nothing outside the main thread."""
        self.interrupted = self._asked = False
        self._agreement, self._process = None, os.getpid()
        is_main = threading.current_thread() is threading.main_thread()  # which alone can handle signals
        self._previous = {n: signal.signal(n, self._ask_to_stop) for n in SIGNALS} if is_main else {}
        try:
            yield
        finally:
            for number in self._previous:
                self._restore(number)

    def _restore(self, number: signal.Signals):
        handler = self._previous[number]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask_to_stop(self, number: int, frame):
        if os.getpid() != self._process or self._asked:  # a child that has just begun, or a second one asks
            return
        self._asked = True
        # Several processes have to agree first: one that left alone would keep the others waiting forever.
        self.interrupted = not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1)
        self._restore(signal.SIGINT)
        logger.warning("Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once without one.")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Save and stop if asked to."""
        if args.world_size > 1:
            if self._agreement is not None:  # of the last step: nothing waits for the accelerator
                self.interrupted = bool(self._agreement.read())
            asked = torch.full((), int(self._asked), device=args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            self._agreement = HostCopy(asked)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True
        return control
