# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Streams to train on: every process reads a share of its own, again and again, from a saved position."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from datasets.iterable_dataset import BufferShuffledExamplesIterable
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from ..data.mixture import MixedStream, next_source
from ..data.packing import DOCUMENTS_PER_BATCH, PackedStream, StreamPacker
from ..utils.processes import gather
from .callbacks import serve_on
from .training_state import STREAM_FILES


POSITION, ERROR = "stream_position", "stream_error"  # keys of a batch beside its tensors


class EndlessStream(torch.utils.data.IterableDataset):
    """One process's share of a stream as full batches without end; each batch carries the position after it.

    The share is every `num_ranks`-th shard, where the number of shards is a multiple of it, or else every
    `num_ranks`-th row: documents of a `PackedStream`, examples of any other stream. At the end of the share its next
    epoch begins (`set_epoch`: with another order of the shards, and of the rows if they are shuffled); a block or
    batch that is not full by then is filled from it. Shares therefore need not have the same size.

    A position is the epoch, the state of the data set before the batch of rows last read, the tokens left over in the
    packer, and the number of examples taken since. To resume, only these rows are read again. A stream with a
    shuffle buffer, which `datasets` does not save, is read again from the beginning of the epoch. `position`, for JSON,
    is where the next iteration begins; `take_positions` moves it.

    Args:
        stream: The whole stream; one that is divided, or not the same on all processes, is a ValueError.
        rank, num_ranks: This process, and the number of processes.
        batch_size: Examples of a batch.
        collate: Makes a batch, a dictionary, of a list of examples.
    """

    def __init__(
        self, stream: IterableDataset, rank: int, num_ranks: int, batch_size: int, collate: Callable[[list], dict]
    ):
        self.rank, self.num_ranks, self.batch_size, self.collate = rank, num_ranks, batch_size, collate
        self.file_name = STREAM_FILES.replace("*", str(rank))
        self.fingerprint = _checked_fingerprint(stream, num_ranks)
        self.packer: StreamPacker | _NoPacker
        if isinstance(stream, PackedStream):
            self.source, self.packer = stream.share_of_documents(rank, num_ranks), stream.make_packer()
            self.rows_per_read = DOCUMENTS_PER_BATCH
        else:
            self.source, self.packer = split_dataset_by_node(stream, rank, num_ranks), _NoPacker()
            self.rows_per_read = 1
        self.reads_anew = _has_shuffle_buffer(self.source)
        begin = {"epoch": 0, "reads": 0, "source": None, "packer": self.packer.state_dict(), "taken": 0}
        self.position: dict[str, Any] = begin
        self._has_begun = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            examples = self._examples_after(self.position)
            while True:
                taken = list(itertools.islice(examples, self.batch_size))
                batch = self.collate([example for example, _ in taken])
                batch[POSITION] = taken[-1][1]
                yield batch
        except _NothingToReadError as error:  # as a value, which `take_positions` gives to all processes
            yield {ERROR: str(error)}

    def _examples_after(self, position: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        return self._examples(**position)

    def _examples(self, epoch: int, reads: int, source: dict | None, packer: dict, taken: int):
        """Yield examples, each with the position after it."""
        self.packer.load_state_dict(packer)
        found = reads > 0 or epoch > 0
        while True:
            self.source.set_epoch(epoch)
            if source is not None and not self.reads_anew:
                self.source.load_state_dict(source)
            batches = self.source.iter(self.rows_per_read)
            for rows in itertools.islice(batches, reads if self.reads_anew else 0, None):
                packer = self.packer.state_dict()
                for number, example in enumerate(self.packer.examples(rows), start=1):
                    found = True
                    if number > taken:
                        position = {"reads": reads, "source": source, "packer": packer, "taken": number}
                        yield example, {"epoch": epoch, **position}
                reads, source, taken = reads + 1, self.source.state_dict(), 0
            if not found and not self.packer.ends_with_block():
                raise _NothingToReadError(
                    f"`train_dataset` must have an example for each of the {self.num_ranks} process(es) in a pass, got "
                    f"none for process {self.rank}: take fewer processes, more or smaller shards, or a map-style data "
                    "set (without `--streaming`)."
                )
            epoch, reads, source, taken = epoch + 1, 0, None, 0

    def loader(self, args: TrainingArguments) -> DataLoader:
        """Loader of these batches, with one worker at most: two would each read the share."""
        num_workers = min(1, args.dataloader_num_workers)
        return DataLoader(
            self,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=num_workers,
            pin_memory=args.dataloader_pin_memory,
            multiprocessing_context=args.dataloader_multiprocessing_context if num_workers else None,
            prefetch_factor=args.dataloader_prefetch_factor if num_workers else None,
            worker_init_fn=partial(serve_on, None),
            generator=torch.Generator(),  # the loader draws a seed, which must not come from the training's generator
        )

    def take_positions(self, batches: list[dict[str, Any]]):
        """Remove the positions from the batches of an optimizer step, and move to the last.

        All processes raise a ValueError if one has nothing to read, which the first batches show.
        """
        errors = [batch[ERROR] for batch in batches if ERROR in batch]
        if not self._has_begun:
            errors = [error for of_rank in gather(errors, self.num_ranks) for error in of_rank]
            self._has_begun = True
        if errors:
            raise ValueError(errors[0])
        for batch in batches:
            self.position = batch.pop(POSITION)

    def save(self, folder: str | Path):
        """Write the position into a checkpoint; every process has a file of its own."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        record = {"num_processes": self.num_ranks, "fingerprint": self.fingerprint, "position": self.position}
        text = json.dumps(record, default=lambda value: value.item())  # numpy's numbers
        (Path(folder) / self.file_name).write_text(text + "\n", encoding="utf-8")

    def load(self, folder: str | Path):
        """Resume from the position in a checkpoint. Call it on all processes.

        All raise a ValueError if the checkpoint has no position, or one of another stream or number of processes.
        """
        path, record, problem = Path(folder) / self.file_name, {}, None
        if not path.exists():
            problem = f"there is no {path.name} in it"
        else:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["num_processes"] != self.num_ranks:
                problem = f"it was written by {record['num_processes']} process(es), each with a share of its own"
            elif record["fingerprint"] != self.fingerprint:
                problem = "its stream had another first row or order (a `shuffle` needs a fixed `seed`)"
        problems = [problem for problem in gather(problem, self.num_ranks) if problem is not None]
        if problems:
            raise ValueError(
                f"`resume_from_checkpoint` must have the position of this stream for {self.num_ranks} process(es), got "
                f"{folder}: {problems[0]}. Resume as it was written, or with `ignore_data_skip` to begin the stream "
                "anew; map-style data resume on any number of processes."
            )
        self.position = record["position"]


class EndlessMixture(EndlessStream):
    """One process's shares of several streams as full batches without end, mixed in the shares of a `MixedStream`.

    A position is the positions in the parts, and the number of examples taken of each.

    Args:
        stream: The whole mixture, the same on all processes.
        rank, num_ranks, batch_size, collate: As of an `EndlessStream`.
    """

    def __init__(
        self, stream: MixedStream, rank: int, num_ranks: int, batch_size: int, collate: Callable[[list], dict]
    ):
        super().__init__(stream.streams[0], rank, num_ranks, batch_size, collate)
        self.parts = [EndlessStream(part, rank, num_ranks, batch_size, collate) for part in stream.streams]
        self.weights = stream.weights
        facts = repr(([part.fingerprint for part in self.parts], self.weights))
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()[:16]
        self.position = {"parts": [part.position for part in self.parts], "counts": [0] * len(self.parts)}

    def _examples_after(self, position: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        parts, counts = list(position["parts"]), list(position["counts"])
        examples = [part._examples_after(begin) for part, begin in zip(self.parts, parts, strict=True)]
        # A part with nothing to read is an error in the first batch, which all processes see: later, others would hang.
        examples = [itertools.chain([next(of_part)], of_part) for of_part in examples]
        while True:
            number = next_source(counts, self.weights)
            example, parts[number] = next(examples[number])
            counts[number] += 1
            yield example, {"parts": list(parts), "counts": list(counts)}


def check_torch_stream(dataset: Any, args: TrainingArguments):
    """Raise a ValueError for a stream of other kinds on several processes, unless the first reads it for all.

    Such a stream may be divided already, or unevenly, or not at all.
    """
    is_stream = isinstance(dataset, torch.utils.data.IterableDataset) and not isinstance(dataset, IterableDataset)
    if is_stream and args.world_size > 1 and not args.accelerator_config.dispatch_batches:
        raise ValueError(
            f"`train_dataset` must be map-style or a stream of `datasets` on {args.world_size} processes, got "
            f"{type(dataset).__name__}, which may be uneven. If the first process may read it for all, say so: "
            '`accelerator_config={"dispatch_batches": True}`.'
        )


def _checked_fingerprint(stream: IterableDataset, num_ranks: int) -> str:
    """Fingerprint of a stream, which must not have been divided."""
    source = stream.documents if isinstance(stream, PackedStream) else stream
    split = source._distributed or stream._distributed
    if split is not None:
        raise ValueError(
            "`train_dataset` must be the whole stream, which MD4Trainer divides among the processes itself, got part "
            f"{split.rank} of {split.world_size}: leave out `split_dataset_by_node`."
        )
    fingerprint = _fingerprint(source)
    if len(set(gather(fingerprint, num_ranks))) > 1:
        raise ValueError(
            "`train_dataset` must be the same whole stream on all processes, which MD4Trainer divides itself, got "
            "streams with different first rows or orders: do not divide it, and give `shuffle` a fixed `seed`."
        )
    return fingerprint


class _NothingToReadError(ValueError):
    """Raised where a process finds no example in a pass through its share."""


class _NoPacker:
    """Packer of a stream of examples: a batch of one row is an example."""

    def examples(self, rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {name: values[0] for name, values in rows.items()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def ends_with_block(self) -> bool:
        """False: the end of the rows is no part of an example."""
        return False

    def load_state_dict(self, state: dict[str, Any]):
        """Do nothing: no part of an example is ever left over."""


def _layers(stream: IterableDataset) -> Iterator[Any]:
    """Layers of a stream, from the outermost to its sources."""
    layers = [stream._ex_iterable]
    while layers:
        layer = layers.pop()
        yield layer
        layers += [layer.ex_iterable] if hasattr(layer, "ex_iterable") else getattr(layer, "ex_iterables", [])


def _has_shuffle_buffer(stream: IterableDataset) -> bool:
    shuffles = (layer for layer in _layers(stream) if isinstance(layer, BufferShuffledExamplesIterable))
    return any(layer.buffer_size > 1 for layer in shuffles)


def _fingerprint(stream: IterableDataset) -> str:
    """Hash of the first row and the shuffles' generators: differs for other data, a part of them, or another order."""
    generators = [layer.generator.bit_generator.state for layer in _layers(stream) if hasattr(layer, "generator")]
    text = repr((next(iter(stream), None), generators))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
