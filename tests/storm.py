# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A run that `test_survival.py` kills: a checkpoint at every step, resumed from the newest whole one.

storm.py FOLDER [RANK STEP]    (that rank kills itself after that step, once)
"""

import os
import signal
import sys
from pathlib import Path

import torch
from distributed_runs import make_trainer
from transformers import TrainerCallback


class Death(TrainerCallback):
    """Kill the process by SIGKILL, which nothing can handle, unless it has left its mark before."""

    def __init__(self, folder, rank, step):
        self.mark, self.rank, self.step = Path(folder) / "died", int(rank), int(step)

    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == self.rank and state.global_step == self.step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, *death):
    """Train, and leave the averaged weights in `folder/final`."""
    size = 8 // int(os.environ.get("WORLD_SIZE", "1"))
    options = {"per_device_train_batch_size": size, "max_steps": 60, "save_steps": 1, "save_total_limit": 20}
    options["dataloader_num_workers"] = int(os.environ.get("STORM_WORKERS", "0"))
    trainer = make_trainer(Path(folder) / "run", "genmd4", **options)
    if death:
        trainer.add_callback(Death(folder, *death))
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model(str(Path(folder) / "final"))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
