# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A run on several processes, of which the last has a loss of NaN at step 3, for `test_distributed.py`.

torchrun --nproc-per-node 2 finite_ranks.py FOLDER stop|skip
"""

import math
import sys
from pathlib import Path

import torch
from distributed_runs import make_trainer


def main(folder, on_nonfinite):
    """Train, and leave a file for each process: the error or nothing, the steps left out, and the weights."""
    options = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(Path(folder) / "run", "md4", on_nonfinite=on_nonfinite, **options)
    rank, last = trainer.args.process_index, trainer.args.world_size - 1

    def poison(model, args, output):
        if rank == last and model.training and trainer.state.global_step == 2:
            output.loss = output.loss + math.nan

    trainer.model.register_forward_hook(poison)
    error = ""
    try:
        trainer.train()
    except FloatingPointError as raised:
        error = str(raised)
    weights = [parameter.detach() for parameter in trainer.repository.model.parameters()]
    result = {"error": error, "left_out": trainer.sums.num_left_out, "weights": weights}
    torch.save(result, Path(folder) / f"result-{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    torch.distributed.destroy_process_group()
