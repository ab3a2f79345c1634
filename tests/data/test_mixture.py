# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Several sources: joined, or mixed in given shares."""

import itertools
import json

import datasets
import numpy as np
import pytest
from datasets import Dataset

from md4_hf import build_byte_tokenizer, load_train_validation, pack
from md4_hf.cli import main
from md4_hf.cli.arguments import parse_arguments
from md4_hf.data import documents as data_module
from md4_hf.data.arguments import DataArguments
from md4_hf.data.documents import load_sources
from md4_hf.data.mixture import mix, mixed_indices, next_source, prepare_sources
from md4_hf.data.python_texts import pydoc_documents


@pytest.fixture(autouse=True)
def cache_in_tmp_path(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def files(tmp_path):
    rows = [json.dumps({"body": f"row {i} of a"}) for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.txt").write_text("all of b is one document. " * 8)
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")]


def table(name, count):
    return Dataset.from_dict({"input_ids": [[name, i] for i in range(count)]})


@pytest.mark.parametrize(
    "lengths, weights", [([7, 3], [0.7, 0.3]), ([100, 4], [1, 3]), ([5, 5, 5], [2, 1, 1]), ([1, 50], [9, 1])]
)
def test_each_beginning_has_the_shares_and_each_source_is_seen_in_whole(lengths, weights):
    lengths = np.array(lengths)
    indices = mixed_indices(lengths, weights)
    sources = np.searchsorted(np.cumsum(lengths), indices, side="right")
    counts = np.cumsum(sources[:, None] == np.arange(len(lengths)), axis=0)
    wanted = np.arange(1, len(indices) + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - wanted).max() < 1
    assert set(indices) == set(range(lengths.sum()))
    assert (np.bincount(indices) == 1).sum() >= lengths[np.argmax(lengths / np.array(weights))]  # nothing needlessly
    taken = [0] * len(lengths)
    for source in sources:  # a stream mixes in the same order
        assert next_source(taken, weights) == source
        taken[source] += 1


def test_a_mixture_of_data_sets_repeats_the_small_ones():
    mixed = mix([table(0, 6), table(1, 2)], [0.5, 0.5])
    assert [tuple(ids) for ids in mixed["input_ids"]] == [pair for i in range(6) for pair in ((0, i), (1, i % 2))]
    with pytest.raises(ValueError, match=r"must have examples in each source to mix them, got \[6, 0\]"):
        mix([table(0, 6), table(1, 6).select([])], [0.5, 0.5])


def test_sources_are_joined_and_each_is_divided_by_itself(files):
    args = DataArguments(data=files, text_column="body", validation_fraction=0.25)
    train, heldout = load_train_validation(args)
    assert (len(train), len(heldout)) == (16, 6)
    assert heldout["text"][-2:] == ["row 19 of a", ("all of b is one document. " * 8)[156:]]


def test_weights_are_shares_of_the_blocks(files):
    args = DataArguments(data=files, data_weights=[1, 2], text_column="body", block_size=8)
    parts = {}

    def prepare(name, documents):
        parts[name] = pack(documents, build_byte_tokenizer(), args.block_size)[0]
        return parts[name]

    train, heldout = prepare_sources(args, load_sources, prepare)
    names = [f"training data ({files[0]})", f"training data ({files[1]})", "held-out data"]
    assert [*parts] == names and heldout is parts["held-out data"]
    blocks_of_b = {tuple(ids) for ids in parts[names[1]]["input_ids"]}
    of_b = [tuple(ids) in blocks_of_b for ids in train["input_ids"]]
    assert abs(sum(of_b) - len(train) * 2 / 3) < 1
    again = prepare_sources(args, load_sources, prepare)[0]
    assert again["input_ids"][:] == train["input_ids"][:]


@pytest.mark.parametrize("weights", [None, [1, 2], [2, 1]])
@pytest.mark.parametrize("text_first", [False, True])
def test_validation_data_have_the_column_of_the_tables_though_a_source_is_text(weights, text_first, files, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"body": "row of c"}))
    (tmp_path / "d.jsonl").write_text(json.dumps({"other": "row of d"}))
    sources = files[::-1] if text_first else files

    def heldout(validation_data, **options):
        data = {"data": sources, "data_weights": weights, "text_column": "body", "validation_data": validation_data}
        return prepare_sources(DataArguments(**data, **options), load_sources, lambda _, part: part)[1]

    assert heldout(str(tmp_path / "c.jsonl"))["text"][:] == ["row of c"]
    assert heldout(str(tmp_path / "d.jsonl"), validation_text_column="other")["text"][:] == ["row of d"]
    assert heldout(files[1])["text"][:] == ["all of b is one document. " * 8]


@pytest.mark.parametrize("weights", [None, [1, 2]])
def test_validation_data_of_several_sources_are_loaded_once(weights, files, monkeypatch):
    loaded, load_documents = [], data_module.load_documents

    def load_and_count(data, **options):
        loaded.append(data)
        return load_documents(data, **options)

    monkeypatch.setattr(data_module, "load_documents", load_and_count)
    args = DataArguments(data=files, data_weights=weights, text_column="body", validation_data="pydoc")
    _, heldout = prepare_sources(args, load_sources, lambda _, part: part)
    assert loaded == [*files, "pydoc"] and heldout["text"][:] == pydoc_documents()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data_weights": [1.0]}, "`data_weights` must have a weight for each of several `data`"),
        ({"data": ["a", "b"], "data_weights": [1.0]}, "`data_weights` must have a weight for each of several `data`"),
        ({"data": ["a", "b"], "data_weights": [1.0, 0.0]}, r"must be positive numbers, got \[1.0, 0.0\]"),
        ({"data": ["a", "b"], "data_weights": [1.0, float("nan")]}, "must be positive numbers"),
        ({"data": []}, r"`data` must be a name, or a list of names, got \[\]"),
        ({"data": ["a", 3]}, r"`data` must be a name, or a list of names, got \['a', 3\]"),
    ],
)
def test_weights_that_fit_no_data_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**options)


def test_an_option_that_no_source_has_is_an_error(files, tmp_path):
    for options in ({"data_config": "en"}, {"data_revision": "v1"}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be left out"):
            load_train_validation(DataArguments(data=files, text_column="body", **options))
    with pytest.raises(ValueError, match="`text_column` must be left out for text"):
        load_train_validation(DataArguments(data=[files[1], "pydoc"], text_column="body"))


def test_the_command_line_and_its_file_take_several_data(files, tmp_path):
    (tmp_path / "options.yaml").write_text(f"data: {json.dumps(files)}\ndata_weights: [0.7, 0.3]\n")
    for argv in (["--data", *files, "--data_weights", "0.7", "0.3"], ["--config", str(tmp_path / "options.yaml")]):
        data_args, _ = parse_arguments([DataArguments], argv, prog="x", description="x")
        assert (data_args.data, data_args.data_weights) == (files, [0.7, 0.3])
    assert DataArguments(data=files[:1]).data == files[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_md4_train_on_a_mixture(streaming, files, tmp_path, capsys):
    small = "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --block_size 16 --tokenizer bytes".split()
    argv = ["--data", *files, "--data_weights", "1", "3", "--text_column", "body", *small, "--max_steps", "2"]
    argv += ["--streaming", "--validation_data", files[1]] if streaming else []
    main(["train", *argv, "--output_dir", str(tmp_path / "run"), "--final_eval_draws", "1", "--use_cpu"])
    assert "b.txt" in capsys.readouterr().out
    assert "a.jsonl and b.txt" in (tmp_path / "run" / "README.md").read_text()


def test_streams_are_mixed_without_end_by_the_training(files):
    streams = [table(0, 6).to_iterable_dataset(), table(1, 2).to_iterable_dataset()]
    mixed = mix(streams, [1, 1])
    assert (mixed.streams, mixed.weights) == (streams, [1, 1])
    ids = [tuple(row["input_ids"]) for row in itertools.islice(mixed, 15)]
    assert ids == [((0, i // 2 % 6), (1, i // 2 % 2))[i % 2] for i in range(15)]
