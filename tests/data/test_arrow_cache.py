# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets of tables in the cache of `datasets`."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Features, List, Value

from md4_hf.data.arrow_cache import cached_tables
from md4_hf.data.documents import load_documents
from md4_hf.data.packing import pack
from md4_hf.data.tokenizers import build_byte_tokenizer


FEATURES = Features(ids=List(Value("int32"), length=2), size=Value("float64"))


@pytest.fixture(autouse=True)
def cache_in_tmp_path(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def tables(counts, log):
    with open(log, "a") as file:
        file.write("called\n")
    for count in counts:
        ids = pa.FixedSizeListArray.from_arrays(np.arange(2 * count, dtype=np.int32), 2)
        yield pa.table({"ids": ids, "size": np.full(count, 0.5)}, schema=FEATURES.arrow_schema)


def test_rows_are_those_of_all_tables_and_on_disk(tmp_path):
    rows = cached_tables(tables, FEATURES, {"counts": (3, 1, 2), "log": str(tmp_path / "log")})
    assert rows["ids"][:] == [[0, 1], [2, 3], [4, 5], [0, 1], [0, 1], [2, 3]] and rows["size"][:] == [0.5] * 6
    assert rows.features == FEATURES and all(Path(entry["filename"]).exists() for entry in rows.cache_files)


def test_a_second_call_reads_the_cache_and_other_arguments_do_not(tmp_path):
    log = tmp_path / "log"
    first, again, other = (cached_tables(tables, FEATURES, {"counts": n, "log": str(log)}) for n in ((3,), (3,), (4,)))
    assert log.read_text() == "called\n" * 2
    assert first._fingerprint == again._fingerprint != other._fingerprint and len(other) == 4


def test_blocks_are_written_many_at_a_time(tmp_path):
    (tmp_path / "text.txt").write_text("a line of some words\n" * 5000)
    blocks, report = pack(load_documents(str(tmp_path / "text.txt")), build_byte_tokenizer(), block_size=64)
    assert len(blocks) == report.num_blocks > 1000
    assert blocks.data.column("input_ids").num_chunks < len(blocks) / 100
