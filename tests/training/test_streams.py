# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Streams: shares without end that lose nothing, positions that are exact, and what is refused."""

import itertools
import json

import pytest
import torch
from datasets import Dataset, IterableDataset, interleave_datasets, load_dataset
from datasets.distributed import split_dataset_by_node
from launching import HERE, TORCHRUN, succeed
from tiny import logged, random_model, training_arguments

from md4_hf import (
    MD4ForMaskedDiffusion,
    MD4Trainer,
    PaddingCollator,
    build_byte_tokenizer,
    load_documents,
    pack,
)
from md4_hf.data.mixture import mix, next_source
from md4_hf.training.streams import ERROR, POSITION, EndlessMixture, EndlessStream


LENGTH = 8
SHARDS = [[5, 2, 7], [13, 4], [3], [1, 6, 2, 4]]  # rows of each shard
EOS = 256


def rows_of(shards):
    """Rows of distinct first tokens: the shard and the number of the row in it."""
    for shard, count in shards:
        for row in range(count):
            yield {"input_ids": [shard, row, *range(LENGTH - 2)]}


def row_stream(counts):
    return IterableDataset.from_generator(rows_of, gen_kwargs={"shards": list(enumerate(counts))})


TEXTS = [f"document {number}: " + "word " * (number % 7) for number in range(40)]
TOUCHED = []


def documents_of(shards):
    for shard in shards:
        for text in shard:
            TOUCHED.append(text)
            yield {"text": text}


def text_stream(num_shards, num_documents=None, block_size=LENGTH, **kwargs):
    shards = [TEXTS[:num_documents][index::num_shards] for index in range(num_shards)]
    documents = IterableDataset.from_generator(documents_of, gen_kwargs={"shards": shards})
    return packed(documents, block_size=block_size, **kwargs)


def heldout(count):
    rows = Dataset.from_dict({"input_ids": [[i % 5, i // 5, *range(LENGTH - 2)] for i in range(count)]})
    return rows.to_iterable_dataset()


def make_trainer(folder, stream, model=None, **kwargs):
    batch_sizes = {f"per_device_{kind}_batch_size": 4 for kind in ("train", "eval")}
    options = {**batch_sizes, "save_strategy": "steps", "save_steps": 100, "ema_decay": 0.5, **kwargs}
    model = model or random_model(EOS + 2, LENGTH, std=0.1, embedding_dropout=0.1)
    return MD4Trainer(model=model, args=training_arguments(folder, **options), train_dataset=stream)


def weights(trainer):
    return list(trainer.model.parameters())


def endless(stream, rank=0, num_ranks=1, batch_size=4):
    return EndlessStream(stream, rank, num_ranks, batch_size, PaddingCollator())


def examples(stream, count):
    """The ids of the first examples."""
    batches = itertools.islice(stream, -(-count // stream.batch_size))
    return [row for batch in batches for row in batch["input_ids"].tolist()][:count]


# The share of a process ----------------------------------------------------------------------------------------------


def epochs_of(stream, rank, num_ranks, count):
    """The ids of the examples of the first epochs, a list for each."""
    epochs = [[] for _ in range(count + 1)]
    for batch in endless(stream, rank, num_ranks, batch_size=1):
        epochs[batch[POSITION]["epoch"]] += batch["input_ids"].tolist()
        if epochs[count]:
            return epochs[:count]


@pytest.mark.parametrize("counts", SHARDS)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_the_shares_of_an_epoch_have_every_row_once(counts, num_ranks):
    stream = row_stream(counts)
    rows = [row["input_ids"] for row in stream]
    shares = [epochs_of(stream, rank, num_ranks, 3) for rank in range(num_ranks)]
    for epoch in zip(*shares, strict=True):
        assert sorted(itertools.chain.from_iterable(epoch)) == sorted(rows)
        if len(counts) % num_ranks:  # every so many rows
            assert max(map(len, epoch)) - min(map(len, epoch)) <= 1
        else:  # whole shards
            assert len({row[0] for share in epoch for row in share}) == sum(len({r[0] for r in s}) for s in epoch)
    if num_ranks == 1:
        assert shares[0][0] == rows


def shares_of(stream, rank, epochs):
    """The rows of one of two processes in the first epochs, as `datasets` divides them."""
    share, rows = split_dataset_by_node(stream, rank, 2), []
    for epoch in range(epochs):
        share.set_epoch(epoch)
        rows += list(share)
    return rows


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_documents_are_divided_and_nothing_is_lost_at_the_end_of_an_epoch(num_shards, rank):
    stream = text_stream(num_shards)
    texts = [row["text"] for row in shares_of(stream.documents, rank, epochs=3)]
    assert len(texts) == 3 * len(TEXTS) // 2
    tokens = list(itertools.chain.from_iterable([EOS, *text.encode()] for text in texts))[1:]
    count = len(tokens) // LENGTH
    blocks = examples(endless(stream, rank, 2), count)
    assert list(itertools.chain.from_iterable(blocks)) == tokens[: count * LENGTH]


def test_fewer_documents_than_processes_are_cut():
    stream = text_stream(1, num_documents=2)
    shares = [[row["text"] for row in stream.share_of_documents(rank, 3)] for rank in range(3)]
    assert ["".join(parts) for parts in zip(*shares, strict=True)] == TEXTS[:2]
    assert all(len(text) >= len(TEXTS[0]) // 3 for share in shares for text in share)


def test_every_epoch_is_shuffled_anew():
    stream = row_stream([1] * 12).shuffle(seed=1, buffer_size=1)
    shares = [examples(endless(stream, rank, 2), 12) for rank in range(2)]
    epochs = [shares[0][:6] + shares[1][:6], shares[0][6:] + shares[1][6:]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(row["input_ids"] for row in stream)
    assert epochs[0] != epochs[1]


# Positions -----------------------------------------------------------------------------------------------------------


def packed(documents, **kwargs):
    return pack(documents, build_byte_tokenizer(), **{"block_size": LENGTH, **kwargs})[0]


def parquet_stream(tmp_path):
    for index in range(3):
        rows = Dataset.from_dict({"text": TEXTS[index::3]})
        rows.to_parquet(str(tmp_path / f"{index}.parquet"), batch_size=4)  # several row groups
    files = str(tmp_path / "*.parquet")
    return packed(load_dataset("parquet", data_files=files, split="train", streaming=True))


def jsonl_stream(tmp_path):
    Dataset.from_dict({"text": TEXTS}).to_json(str(tmp_path / "a.jsonl"))
    return packed(load_documents(str(tmp_path / "a.jsonl"), streaming=True))


def text_file_stream(tmp_path):
    (tmp_path / "a.txt").write_text("".join(TEXTS), encoding="utf-8")
    return packed(load_documents(str(tmp_path / "a.txt"), streaming=True))


def interleaved_stream(_):
    parts = [row_stream([5, 4]), row_stream([9, 3]).map(lambda row: {"input_ids": row["input_ids"][::-1]})]
    return interleave_datasets(parts, probabilities=[0.7, 0.3], seed=3, stopping_strategy="all_exhausted")


STREAMS = {
    "rows": lambda _: row_stream([5, 2, 7]),
    "rows of a table": lambda _: Dataset.from_list(list(rows_of([(0, 23)]))).to_iterable_dataset(num_shards=4),
    "numpy": lambda _: heldout(23).with_format("numpy"),
    "filtered": lambda _: row_stream([5, 2, 7]).filter(lambda row: row["input_ids"][1] != 1),
    "mapped in batches": lambda _: row_stream([5, 2, 7]).map(lambda rows: rows, batched=True, batch_size=3),
    "shuffled shards": lambda _: row_stream([5, 2, 7, 1]).shuffle(seed=1, buffer_size=1),
    "shuffle buffer": lambda _: row_stream([5, 2, 7]).shuffle(seed=1, buffer_size=6),
    "interleaved": interleaved_stream,
    "taken": lambda _: row_stream([5, 2, 7]).skip(2).take(9),
    "text": lambda _: text_stream(3),
    "text with document ids": lambda _: text_stream(2, block_size=32, document_ids=True),
    "shuffled text": lambda _: packed(text_stream(4).documents.shuffle(seed=1, buffer_size=5)),
    "parquet": parquet_stream,
    "jsonl": jsonl_stream,
    "text file": text_file_stream,
    "blocks as any stream": lambda _: text_stream(2).map(lambda row: row),
}


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("name", STREAMS)
def test_a_saved_position_is_exact(name, num_ranks, tmp_path):
    stream = STREAMS[name](tmp_path)
    rank = num_ranks - 1
    unbroken = endless(stream, rank, num_ranks)
    count = max(12, 2 * len(list(stream)) // num_ranks // 4 + 3)  # batches: into the third epoch
    expected = list(itertools.islice(unbroken, count))
    assert expected[-1][POSITION]["epoch"] >= 2
    for end in {0, 1, 5, count // 2, count - 6}:
        unbroken.position = expected[end][POSITION]
        unbroken.save(tmp_path / "saved")
        for first in (end + 1, end + 3):  # resumed, and resumed again from there
            resumed = endless(stream, rank, num_ranks)
            resumed.load(tmp_path / "saved")
            batches = list(itertools.islice(resumed, 2))
            resumed.take_positions(batches)
            resumed.save(tmp_path / "saved")
            for batch, wanted in zip(batches, expected[first : first + 2], strict=True):
                assert batch.keys() == wanted.keys() - {POSITION}
                assert all(torch.equal(batch[column], wanted[column]) for column in batch)


def test_a_resumed_stream_does_not_read_what_came_before():
    stream = text_stream(num_shards=len(TEXTS))  # `datasets` begins a generator's shard at its beginning
    unbroken = endless(stream)
    unbroken.rows_per_read = 4
    batch = next(itertools.islice(unbroken, 10, None))
    before = batch[POSITION]["reads"] * 4
    assert 8 < before < 30
    resumed = endless(text_stream(num_shards=len(TEXTS)))
    resumed.rows_per_read, resumed.position = 4, batch[POSITION]
    TOUCHED.clear()
    next(iter(resumed))
    assert not set(TOUCHED) & set(TEXTS[: before - 1])
    assert TEXTS[before] in TOUCHED


# Mixtures ------------------------------------------------------------------------------------------------------------


def mixed_stream():
    one_text = IterableDataset.from_generator(lambda: iter([{"text": "one document of its own. " * 9}]))
    return mix([text_stream(3), pack(one_text, build_byte_tokenizer(), LENGTH)[0]], weights=[3, 1])


def endless_mixture(rank=0, num_ranks=1):
    return EndlessMixture(mixed_stream(), rank, num_ranks, 4, PaddingCollator())


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_mixture_has_its_shares_and_each_part_goes_its_own_way(num_ranks):
    rank = num_ranks - 1
    blocks = examples(endless_mixture(rank, num_ranks), 200)
    parts = [examples(endless(part, rank, num_ranks), 152) for part in mixed_stream().streams]
    taken, indices = [iter(part) for part in parts], []
    for _ in blocks:
        indices.append(next_source([indices.count(0), indices.count(1)], [3, 1]))
    assert indices.count(0) == 150
    assert blocks == [next(taken[number]) for number in indices]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_saved_position_in_a_mixture_is_exact(num_ranks, tmp_path):
    rank = num_ranks - 1
    unbroken = endless_mixture(rank, num_ranks)
    expected = list(itertools.islice(unbroken, 60))
    assert all(part["epoch"] >= 1 for part in expected[-1][POSITION]["parts"])
    for end in (0, 1, 30, 55):
        unbroken.position = expected[end][POSITION]
        unbroken.save(tmp_path)
        resumed = endless_mixture(rank, num_ranks)
        resumed.load(tmp_path)
        for batch, wanted in zip(itertools.islice(resumed, 3), expected[end + 1 : end + 4], strict=True):
            assert torch.equal(batch["input_ids"], wanted["input_ids"]) and batch[POSITION] == wanted[POSITION]
    other = EndlessMixture(mix(mixed_stream().streams, [1, 1]), rank, num_ranks, 4, PaddingCollator())
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must have the position of this stream"):
        other.load(tmp_path)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_position_before_a_rare_part_is_exact(num_ranks, tmp_path):
    def mixture():
        return EndlessMixture(mix(mixed_stream().streams, [30, 1]), num_ranks - 1, num_ranks, 4, PaddingCollator())

    unbroken = list(itertools.islice(mixture(), 22))
    assert unbroken[-1][POSITION]["counts"][1] == 3
    resumed = mixture()
    for wanted in unbroken:  # saved and resumed after each batch, most of which have no block of the rare part
        batch = next(iter(resumed))
        assert torch.equal(batch["input_ids"], wanted["input_ids"]) and batch[POSITION] == wanted[POSITION]
        resumed.take_positions([batch])
        resumed.save(tmp_path)
        resumed = mixture()
        resumed.load(tmp_path)


def test_a_training_on_a_mixture_resumes_as_the_unbroken_run(tmp_path):
    unbroken = make_trainer(tmp_path, mixed_stream(), max_steps=6, save_steps=4)
    unbroken.train()
    resumed = make_trainer(tmp_path, mixed_stream(), max_steps=6, save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert logged(resumed, "loss") == logged(unbroken, "loss")
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(unbroken), strict=True))


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "resumed_workers"), [(0, 1), (1, 0)])
def test_resuming_gives_the_unbroken_run(workers, resumed_workers, tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 6, "save_steps": 4}
    unbroken = make_trainer(tmp_path, text_stream(3, 10), **options, dataloader_num_workers=workers)
    unbroken.train()
    checkpoint = tmp_path / "checkpoint-4"
    assert json.loads((checkpoint / "stream-rank-0.json").read_text())["position"]["epoch"] == 1
    assert "stream-rank-0.json" in (checkpoint / "manifest.json").read_text()
    resumed = make_trainer(tmp_path, text_stream(3, 10), **options, dataloader_num_workers=resumed_workers)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert logged(resumed, "loss") == logged(unbroken, "loss")
    assert logged(resumed, "epoch") == pytest.approx(logged(unbroken, "epoch"))
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(unbroken), strict=True))


def test_more_workers_than_one_are_one(tmp_path):
    trainer = make_trainer(tmp_path, text_stream(4), dataloader_num_workers=2, dataloader_persistent_workers=True)
    assert trainer.get_train_dataloader().num_workers == 1
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.slow
def test_two_processes_read_their_shares_resume_and_evaluate_as_one(tmp_path):
    """Uneven shards with accumulation, resumed runs, evaluation and refusals: see `stream_processes.py`."""
    succeed([*TORCHRUN, HERE / "stream_processes.py", tmp_path])
    for rank in range(2):
        read = json.loads((tmp_path / f"rows-{rank}.json").read_text())
        assert read == [row["input_ids"][:2] for row in shares_of(row_stream([13, 4]), rank, epochs=5)[:20]]
    single = make_trainer(tmp_path / "single", None, model=MD4ForMaskedDiffusion.from_pretrained(tmp_path / "model"))
    for count in (21, 16, 3):
        metrics, expected = json.loads((tmp_path / f"eval-{count}.json").read_text()), single.evaluate(heldout(count))
        assert metrics["eval_num_tokens"] == expected["eval_num_tokens"] == count * LENGTH
        for name in ("eval_loss", "eval_loss_stderr"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-5)
    checkpoint = str(tmp_path / "text" / "checkpoint-3")
    with pytest.raises(ValueError, match=r"for 1 process\(es\), got .* it was written by 2 process\(es\).* map-style"):
        make_trainer(tmp_path / "text", text_stream(3)).train(resume_from_checkpoint=checkpoint)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_stream_that_is_already_split_is_refused(is_packed, tmp_path):
    part = split_dataset_by_node(text_stream(2).documents if is_packed else row_stream([3, 4]), 0, 2)
    stream = packed(part) if is_packed else part
    with pytest.raises(ValueError, match=r"must be the whole stream.* part 0 of 2: leave out `split_dataset_by_node`"):
        make_trainer(tmp_path, stream).train()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stream", [row_stream([]), row_stream([0, 0]), text_stream(1, 2, block_size=100)])
def test_a_stream_of_nothing_is_refused(stream, workers, tmp_path):
    with pytest.raises(ValueError, match=r"^`train_dataset` must have an example for each of the 1 process"):
        make_trainer(tmp_path, stream, dataloader_num_workers=workers).train()


@pytest.mark.parametrize("block_size, is_read", [(4, True), (5, False)])
def test_a_share_that_fills_its_first_block_with_its_last_eos_is_read(block_size, is_read):
    documents = Dataset.from_dict({"text": ["abc"]}).to_iterable_dataset()
    batch = next(iter(endless(packed(documents, block_size=block_size), batch_size=2)))
    if is_read:
        assert batch["input_ids"].tolist() == [[*b"abc", EOS]] * 2
    else:
        assert "must have an example for each of the 1 process(es)" in batch[ERROR]


def test_an_empty_share_of_a_rare_part_is_an_error_in_the_first_batch():
    stream = mix([row_stream([5, 4]), row_stream([3, 0])], weights=[30, 1])
    first = [next(iter(EndlessMixture(stream, rank, 2, 4, PaddingCollator()))) for rank in range(2)]
    assert ERROR not in first[0] and first[0][POSITION]["counts"] == [4, 0]
    assert "must have an example for each of the 2 process(es) in a pass, got none for process 1" in first[1][ERROR]


def test_steps_have_to_be_given(tmp_path):
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        make_trainer(tmp_path, row_stream([4]), max_steps=-1)


def test_a_checkpoint_of_another_stream_is_refused(tmp_path):
    endless(row_stream([9]).shuffle(buffer_size=1)).save(tmp_path)
    for other in (row_stream([9]).skip(1), row_stream([9]).shuffle(buffer_size=1)):
        with pytest.raises(ValueError, match=r"another first row or order \(a `shuffle` .*`ignore_data_skip`"):
            endless(other).load(tmp_path)


def test_a_checkpoint_without_a_position_is_refused_unless_the_stream_is_to_begin_anew(tmp_path):
    make_trainer(tmp_path, Dataset.from_list(list(row_stream([9]))), save_steps=2, max_steps=2).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    trainer = make_trainer(tmp_path, row_stream([9]))
    with pytest.raises(ValueError, match=r"there is no stream-rank-0.json in it.*`ignore_data_skip`"):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.args.ignore_data_skip = True
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 4 and logged(trainer, "epoch")[-1] == 1.0
