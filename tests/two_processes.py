# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Run by `test_trainer.py` under torchrun: train on two ranks in two ways and leave the results."""

import sys
from pathlib import Path

import torch
from test_trainer import dataset, losses, make_trainer, weights


folder = Path(sys.argv[1])
for batch in (4, 2):
    trainer = make_trainer(
        folder / f"ranks-{batch}",
        evaluation=dataset(21, seed=1),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=4 // batch,
        per_device_eval_batch_size=4,
    )
    assert trainer.args.world_size == 2
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        result = {"losses": losses(trainer), "weights": weights(trainer.model), "metrics": metrics}
        torch.save(result, folder / f"result-{batch}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
