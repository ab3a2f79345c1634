# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A run on several processes, of which the last has a loss of NaN at step 3, for `test_distributed.py`.

Each process has a part of the gradient's norm, and the sum is left to do, as torch 2.9 does under FSDP2.

torchrun --nproc-per-node 2 finite_ranks.py FOLDER stop|skip
"""

import math
import sys
from pathlib import Path

import torch
from distributed_runs import make_trainer
from torch.distributed.tensor import DTensor, Partial, init_device_mesh
from transformers import Trainer


def divide_norm(norms):
    """Give the processes equal parts of each gradient's norm, and note the whole."""
    get_norm = Trainer._get_grad_norm

    def part_of_norm(trainer, *args, **kwargs):
        norms.append(get_norm(trainer, *args, **kwargs))
        mesh = init_device_mesh("cpu", (trainer.args.world_size,))
        return DTensor.from_local(norms[-1] / trainer.args.world_size, mesh, [Partial()])

    Trainer._get_grad_norm = part_of_norm


def main(folder, on_nonfinite):
    """Train, and leave a file for each process: the error or nothing, the steps left out, norms and weights."""
    options = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(Path(folder) / "run", "md4", on_nonfinite=on_nonfinite, **options)
    rank, last = trainer.args.process_index, trainer.args.world_size - 1

    def poison(model, args, output):
        if rank == last and model.training and trainer.state.global_step == 2:
            output.loss = output.loss + math.nan

    trainer.model.register_forward_hook(poison)
    norms, error = [], ""
    divide_norm(norms)
    try:
        trainer.train()
    except FloatingPointError as raised:
        error = str(raised)
    weights = [parameter.detach() for parameter in trainer.repository.model.parameters()]
    result = {"error": error, "left_out": trainer.sums.num_left_out, "weights": weights}
    result["norms"] = {step: norm.item() for step, norm in enumerate(norms, 1)}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    result["logged norms"] = {entry["step"]: entry["grad_norm"] for entry in logs}
    torch.save(result, Path(folder) / f"result-{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    torch.distributed.destroy_process_group()
