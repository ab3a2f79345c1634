# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Run by `test_streams.py` under torchrun: train on streams in two processes, resume, evaluate, and be refused.

torchrun --nproc-per-node 2 stream_processes.py FOLDER
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from test_streams import LENGTH, TEXTS, heldout, make_trainer, row_stream, text_stream, weights
from tiny import logged

from md4_hf import build_byte_tokenizer, pack
from md4_hf.training.streams import POSITION


class Plain(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from row_stream([40])


def assert_refused(trainer, message, **kwargs):
    with pytest.raises(ValueError, match=message):
        trainer.train(**kwargs)


def rows_read(trainer, **kwargs):
    """Train; the first tokens of every example that this process has trained on."""
    batches, get_batch_samples = [], trainer.get_batch_samples

    def remember(*args):
        taken = get_batch_samples(*args)
        assert not any(POSITION in batch for batch in taken[0])
        batches.extend(batch["input_ids"][:, :2] for batch in taken[0])
        return taken

    trainer.get_batch_samples = remember
    trainer.train(**kwargs)
    return torch.cat(batches).tolist()


folder = Path(sys.argv[1])
one_document = Dataset.from_dict({"text": [" ".join(TEXTS)]}).to_iterable_dataset()
streams = {
    "one": lambda: pack(one_document, build_byte_tokenizer(), LENGTH)[0],
    "text": lambda: text_stream(num_shards=3),
    # 13 rows for one process and 4 for the other, which is therefore ahead by an epoch or more.
    "rows": lambda: row_stream([13, 4]),
}
options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 5, "save_steps": 3}
for name, stream in streams.items():
    trainer = make_trainer(folder / name, stream(), dataloader_num_workers=1, **options)
    rank, checkpoint = trainer.args.process_index, folder / name / "checkpoint-3"
    assert trainer.args.world_size == 2
    read = rows_read(trainer)
    resumed = make_trainer(folder / name, stream(), **options)
    assert rows_read(resumed, resume_from_checkpoint=str(checkpoint)) == read[12:]
    assert logged(resumed, "loss") == logged(trainer, "loss"), name
    assert logged(resumed, "epoch") == pytest.approx(logged(trainer, "epoch"))
    for first, second in zip(weights(trainer), weights(resumed), strict=True):
        assert torch.equal(first, second), name
(folder / f"rows-{rank}.json").write_text(json.dumps(read))

trainer.save_model(str(folder / "model"))
for count in (21, 16, 3):
    metrics = trainer.evaluate(heldout(count))
    if rank == 0:
        (folder / f"eval-{count}.json").write_text(json.dumps(metrics))

divided = row_stream([8, 8]).shard(num_shards=2, index=rank)
unseeded = row_stream([8, 8]).shuffle(buffer_size=4) if rank == 0 else row_stream([8, 8])
for index, (stream, message) in enumerate(
    [
        (divided, "must be the same whole stream on all processes"),
        (unseeded, "must be the same whole stream on all processes"),
        (Plain(), "must be map-style or a stream of `datasets` on 2 processes, got Plain"),
        (row_stream([1]), "must have an example for each of the 2 process"),
        (row_stream([8, 0]), "must have an example for each of the 2 process"),
    ]
):
    assert_refused(make_trainer(folder / f"refused-{index}", stream, dataloader_num_workers=index % 2), message)
dispatched = make_trainer(folder / "dispatched", Plain(), accelerator_config={"dispatch_batches": True})
dispatched.train()
assert dispatched.state.global_step == 4
if rank == 1:  # one process alone has no position
    (checkpoint / "stream-rank-1.json").rename(folder / "gone.json")
    (checkpoint / "manifest.json").write_text('{"files": {}}')
torch.distributed.barrier()
resumed = make_trainer(folder / "rows", row_stream([13, 4]), **options)
assert_refused(resumed, "there is no stream-rank-1.json in it", resume_from_checkpoint=str(checkpoint))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
