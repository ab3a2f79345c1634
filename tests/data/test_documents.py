# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
import json
import math
from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import HfArgumentParser, PreTrainedTokenizerFast

from md4_hf import PaddingCollator, pack
from md4_hf.data import documents as data_module
from md4_hf.data import pieces as pieces_module
from md4_hf.data.arguments import DataArguments
from md4_hf.data.documents import hold_out, load_documents, load_train_validation
from md4_hf.data.python_texts import pydoc_documents
from md4_hf.data.tokenizers import build_byte_tokenizer, build_text8_tokenizer
from md4_hf.evaluation.baselines import ngram_bits_per_character


DOCUMENTS = ["The first: 1 text.", "", "second", None, "x", "Ünïcödé 日本", "a longer document " * 7]
EOS = 256


@pytest.fixture(autouse=True)
def cache_in_tmp_path(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def as_dataset(texts: list) -> Dataset:
    return Dataset.from_dict({"text": texts})


def joined_bytes(texts: list) -> list[int]:
    """The stream that `pack` cuts, written by hand."""
    stream = []
    for text in filter(None, texts):
        stream += [*text.encode(), EOS]
    return stream


def word_tokenizer(**special_tokens) -> PreTrainedTokenizerFast:
    words = ["<unk>", "</s>", "<sep>", "\n", *"the first second document".split()]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special_tokens)


# Packing


@pytest.mark.parametrize("block_size", [1, 7, 32])
def test_nothing_is_dropped_but_the_last_remainder(block_size):
    blocks, report = pack(as_dataset(DOCUMENTS), build_byte_tokenizer(), block_size)
    stream = joined_bytes(DOCUMENTS)
    num_blocks, num_dropped = divmod(len(stream), block_size)
    assert [len(ids) for ids in blocks["input_ids"]] == [block_size] * num_blocks
    assert [i for ids in blocks["input_ids"] for i in ids] == stream[: len(stream) - num_dropped]
    assert (report.num_documents, report.num_tokens) == (5, len(stream))
    assert (report.num_blocks, report.num_dropped_tokens) == (num_blocks, num_dropped)


@pytest.mark.parametrize("build_tokenizer", [build_text8_tokenizer, build_byte_tokenizer])
def test_streaming_gives_the_same_blocks_in_the_same_order(build_tokenizer):
    blocks, _ = pack(as_dataset(DOCUMENTS), build_tokenizer(), 8)
    stream, report = pack(as_dataset(DOCUMENTS).to_iterable_dataset(), build_tokenizer(), 8)
    assert isinstance(stream, IterableDataset) and report is None
    for _ in range(2):  # a second pass starts afresh
        assert list(stream) == list(blocks)
    assert stream.features == blocks.features


def test_stream_logs_the_report_at_the_end_of_a_pass(caplog):
    _, report = pack(as_dataset(DOCUMENTS), build_text8_tokenizer(), 8)
    stream, _ = pack(as_dataset(DOCUMENTS).to_iterable_dataset(), build_text8_tokenizer(), 8)
    caplog.clear()
    with caplog.at_level("INFO", logger="md4_hf.data.packing"):
        next(iter(stream))
        assert not caplog.messages
        list(stream)
    assert caplog.messages == [f"Packed {report}"]


def test_workers_do_not_change_the_result():
    documents = as_dataset(DOCUMENTS * 30)
    blocks, report = pack(documents, build_byte_tokenizer(), 16)
    blocks_of_two, report_of_two = pack(documents, build_byte_tokenizer(), 16, num_proc=2)
    assert blocks[:] == blocks_of_two[:] and report == report_of_two


def test_second_call_reads_the_cache(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 100)

    def load_and_pack():
        blocks, report = pack(load_documents(str(tmp_path / "a.txt")), build_text8_tokenizer(), 8)
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        return blocks[:], report, {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")}

    first = load_and_pack()
    assert len(first[2]) == 3  # documents, pieces, blocks
    assert load_and_pack() == first


def test_changed_file_is_packed_again(tmp_path):
    for text in ("one text", "another text"):
        (tmp_path / "a.txt").write_text(text)
        blocks, _ = pack(load_documents(str(tmp_path / "a.txt")), build_byte_tokenizer(), len(text))
        assert bytes(blocks[0]["input_ids"]).decode() == text


@pytest.mark.parametrize("streaming", [False, True])
def test_characters_are_those_of_the_text_before_a_normaliser(streaming):
    texts = ["AT 9: “ÜBER”", "plain text"]  # "at nine ber " has a character more, of another text
    documents = as_dataset(texts).to_iterable_dataset() if streaming else as_dataset(texts)
    blocks, _ = pack(documents, build_text8_tokenizer(), 1)
    separator = 1
    assert sum(block["num_characters"] for block in blocks) == pytest.approx(sum(map(len, texts)) + separator)


def test_normalised_text_has_one_character_per_token_of_text8():
    blocks, report = pack(as_dataset(["anarchism originated as", "a term of abuse"]), build_text8_tokenizer(), 8)
    assert set(blocks["num_characters"]) == {8.0}
    assert report.num_characters == report.num_tokens


def test_characters_are_spread_over_the_tokens_of_their_document():
    # "éé" is 2 characters in 4 bytes, "ab" 2 in 2; the eos after each counts none.
    blocks, report = pack(as_dataset(["éé", "ab"]), build_byte_tokenizer(), 1)
    assert blocks["num_characters"][:] == [0.5, 0.5, 0.5, 0.5, 0.0, 1.0, 1.0, 0.0]
    assert report.num_characters == 4


def test_characters_of_blocks_and_remainder_add_up_to_the_corpus():
    num_characters = sum(len(text) for text in DOCUMENTS if text)
    one, report = pack(as_dataset(DOCUMENTS), build_byte_tokenizer(), 1)
    assert sum(one["num_characters"]) == pytest.approx(num_characters, abs=1e-9)
    assert report.num_characters == num_characters
    blocks, report = pack(as_dataset(DOCUMENTS), build_byte_tokenizer(), 32)
    dropped = one["num_characters"][len(one) - report.num_dropped_tokens :]
    assert sum(blocks["num_characters"]) + sum(dropped) == pytest.approx(num_characters, abs=1e-9)


def test_bytes_of_blocks_and_remainder_add_up_to_the_corpus():
    blocks, report = pack(as_dataset(["é", "漢字"]), build_byte_tokenizer(), 1)
    assert blocks["num_characters"][:] == [0.5, 0.5, 0.0, *[1 / 3] * 6, 0.0]
    assert blocks["num_bytes"][:] == [1.0, 1.0, 0.0, *[1.0] * 6, 0.0]
    assert (report.num_characters, report.num_bytes) == (3, 8)


@pytest.mark.parametrize(
    "special_tokens, separator",
    [({"eos_token": "</s>", "sep_token": "<sep>"}, [1]), ({"sep_token": "<sep>"}, [2]), ({}, [])],
)
def test_documents_end_with_eos_or_sep_or_are_separated_by_a_line_break(special_tokens, separator):
    # This tokenizer writes a line break as nothing at all.
    blocks, report = pack(as_dataset(["the first", "second"]), word_tokenizer(**special_tokens), 1)
    assert [ids[0] for ids in blocks["input_ids"]] == [4, 5, *separator, 6, *separator]
    assert report.num_characters == len("the first") + len("second")


def test_text8_separator_is_a_space_of_one_character():
    blocks, report = pack(as_dataset(["ab", "", "c"]), build_text8_tokenizer(), 4)
    assert blocks[:] == {"input_ids": [[0, 1, 26, 2]], "num_characters": [4.0], "num_bytes": [4.0]}
    assert report.num_documents == 2


def test_names_of_special_tokens_in_documents_are_these_tokens_but_that_of_the_mask():
    text = "a[MASK]<|endoftext|>b"
    blocks, _ = pack(as_dataset([text]), build_byte_tokenizer(), 9)
    assert blocks["input_ids"][0] == [*b"a[MASK]", 256, *b"b"]
    text8, report = pack(as_dataset([text]), build_text8_tokenizer(), 1)
    assert 27 not in [ids[0] for ids in text8["input_ids"]]
    assert report.num_tokens == len("a mask endoftext b") and report.num_characters == len(text)


@pytest.mark.parametrize("build_tokenizer", [build_text8_tokenizer, build_byte_tokenizer])
def test_long_documents_are_cut_into_pieces_without_a_trace(build_tokenizer, monkeypatch):
    texts = ["Some words, 12 Ünïts. " * 50, "nospace" * 50, "one two  three - four 5 six é seven\n" * 30]
    tokenizer = build_tokenizer()
    monkeypatch.setattr(pieces_module, "CHARACTERS_PER_CALL", 60)
    at_once = pieces_module.Pieces.of_texts(texts, tokenizer)
    split_long_text = pieces_module.split_long_text
    monkeypatch.setattr(pieces_module, "split_long_text", lambda text: split_long_text(text, max_characters=20))
    pieces = pieces_module.Pieces.of_texts(texts, tokenizer)
    assert len(at_once) == 3 and len(pieces) > 50
    np.testing.assert_array_equal(pieces.input_ids, at_once.input_ids)
    assert pieces.starts_document.sum() == 3
    assert set(map(tuple, pieces.sizes_per_token)) == set(map(tuple, at_once.sizes_per_token))
    of_table = pieces_module.Pieces.of_table(pieces.table())
    assert all(np.array_equal(getattr(of_table, name), value) for name, value in vars(pieces).items())
    assert all("".join(split_long_text(text, max_characters=20)) == text for text in texts)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "texts, block_size, message",
    [
        (["abc"], 0, "`block_size` must be an integer >= 1, got 0."),
        (["abc", "de"], 8, "`block_size` must be at most the 7 tokens of `documents`, got 8."),
        (["", None], 4, "`documents` must contain text, got none."),
        ([], 4, "`documents` must contain text, got none."),
    ],
)
def test_pack_names_what_is_wrong(texts, block_size, message, streaming):
    documents = as_dataset(texts)
    if streaming:
        documents = IterableDataset.from_generator(lambda: ({"text": text} for text in texts))
    with pytest.raises(ValueError) as error:
        blocks, _ = pack(documents, build_byte_tokenizer(), block_size)
        list(blocks)
    assert str(error.value) == message


# Documents


def test_pydoc_corpus_is_sorted_text_and_its_held_out_part_disjoint():
    texts = pydoc_documents()
    assert sum(map(len, texts)) > 100_000 and all(texts)
    train, validation = load_train_validation(DataArguments())
    assert train["text"][:] + validation["text"][:] == texts
    assert not set(train["text"]) & set(validation["text"])
    held_out = sum(map(len, validation["text"])) / sum(map(len, texts))
    assert 0.05 < held_out < 0.15


def test_text_file_is_one_document(tmp_path):
    (tmp_path / "a [1].log").write_text("line one\n\nligne deux é\n", encoding="utf-8")
    for streaming in (False, True):
        documents = load_documents(str(tmp_path / "a [1].log"), streaming=streaming)
        assert list(documents) == [{"text": "line one\n\nligne deux é\n"}]


def test_folder_gives_one_document_per_txt_file_sorted(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.txt", "a.txt", "b/z.txt", "b/notes.md"):
        (tmp_path / name).write_text(name)
    assert load_documents(str(tmp_path))["text"][:] == ["a.txt", "b/z.txt", "c.txt"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_table_files_give_their_text_column(suffix, streaming, tmp_path):
    table = Dataset.from_dict({"id": [1, 2], "content": ["first", "second"], "text": ["no", "no"]})
    path = str(tmp_path / f"table{suffix}")
    table.to_json(path) if suffix == ".jsonl" else table.to_parquet(path)
    documents = load_documents(path, text_column="content", streaming=streaming)
    assert list(documents) == [{"text": "first"}, {"text": "second"}]


@pytest.mark.parametrize("streaming", [False, True])
def test_data_set_in_the_layout_of_the_hub_gives_its_splits(streaming, tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        as_dataset([f"{split} text"]).to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    args = DataArguments(data=str(tmp_path), validation_split="validation", streaming=streaming)
    train, validation = load_train_validation(args)
    assert list(train) == [{"text": "train text"}]
    assert list(validation) == [{"text": "validation text"}]


def test_validation_data_may_be_another_source(tmp_path):
    (tmp_path / "train.txt").write_text("train")
    (tmp_path / "validation.txt").write_text("validation")
    args = DataArguments(data=str(tmp_path / "train.txt"), validation_data=str(tmp_path / "validation.txt"))
    train, validation = load_train_validation(args)
    assert (train["text"][:], validation["text"][:]) == (["train"], ["validation"])


def test_hold_out_never_cuts_one_of_several_documents():
    texts = ["a" * 30, "", "b" * 40, None, "c" * 20, "d" * 10]
    for fraction, num_train in ((0.01, 3), (0.1, 3), (0.29, 2), (0.99, 1)):
        train, validation = hold_out(as_dataset(texts), fraction)
        kept = [text for text in texts if text]
        assert (train["text"][:], validation["text"][:]) == (kept[:num_train], kept[num_train:])


def test_hold_out_cuts_a_single_document_at_the_fraction():
    train, validation = hold_out(as_dataset(["", "é" * 90 + "b" * 10]), 0.1)
    assert (train["text"][:], validation["text"][:]) == (["é" * 90], ["b" * 10])


@pytest.mark.parametrize("name", ["missing.txt", "./missing", "missing/", "a/b/c", "data/missing.parquet"])
def test_missing_path_is_not_looked_up_on_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_module, "load_dataset", lambda *args, **kwargs: pytest.fail("looked up"))
    if name == "missing/":
        name = f"{tmp_path}/missing/"
    with pytest.raises(
        FileNotFoundError, match=r'`data` must be "pydoc", "docstrings", an existing file or folder, .* got '
    ):
        load_documents(name)


def test_unknown_hub_data_set_is_named(monkeypatch):
    def not_found(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("no such data set")

    monkeypatch.setattr(data_module, "load_dataset", not_found)
    with pytest.raises(FileNotFoundError, match="`data` must be .* got 'someone/something'"):
        load_documents("someone/something")


def test_local_errors_name_file_and_reason(tmp_path, monkeypatch):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"`data` must contain text, got the empty file '.*empty.txt'"):
        load_documents(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"`data` must be UTF-8 text, got '.*latin.txt': .*0xe9"):
        load_documents(str(tmp_path / "latin.txt"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"`data` must be a folder with .txt .jsonl .* files, got .*no files"):
        load_documents(str(tmp_path / "folder"))
    monkeypatch.setattr(data_module, "MAX_TEXT_FILE_BYTES", 3)
    (tmp_path / "large.txt").write_text("large")
    with pytest.raises(ValueError, match=r"at most 3 bytes, got '.*large.txt' with 5"):
        load_documents(str(tmp_path / "large.txt"))


@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_text_column_names_the_columns_there_are(streaming, tmp_path):
    Dataset.from_dict({"body": ["a"], "id": [1]}).to_parquet(str(tmp_path / "a.parquet"))
    path = str(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"`text_column` must be one of the columns \['body', 'id'\], got 'text'"):
        load_documents(path, streaming=streaming)
    with pytest.raises(ValueError, match=r"`text_column` must hold strings, got 'id' with Value"):
        load_documents(path, text_column="id", streaming=streaming)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"streaming": True}, "`validation_data` or `validation_split` must be given with `streaming`"),
        ({"validation_split": "test"}, "`validation_split` must be None where `data`"),
        ({"data": "a/b", "validation_split": "train"}, "`validation_split` must differ from `data_split`"),
        ({"validation_fraction": 0.0}, "`validation_fraction` must lie between 0 and 1, got 0.0"),
        ({"validation_fraction": 1.0}, "`validation_fraction` must lie between 0 and 1, got 1.0"),
    ],
)
def test_contradictory_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_train_validation(DataArguments(**arguments))


def test_hold_out_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="`data` must contain text, got 2 empty documents"):
        hold_out(as_dataset(["", ""]), 0.1)
    with pytest.raises(ValueError, match="`data` must contain text, got 0 empty documents"):
        hold_out(as_dataset([]), 0.1)


def test_arguments_parse_from_the_command_line_and_document_themselves():
    assert all(argument.metadata["help"] for argument in fields(DataArguments))
    argv = "--data a.txt --streaming --num_proc 2 --validation_split test".split()
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(argv)
    assert args == DataArguments(data="a.txt", streaming=True, num_proc=2, validation_split="test")


# Baselines


def test_ngram_baselines_by_hand():
    train, heldout = np.array([0, 0, 1, 0]), np.array([0, 1, 1])
    # Unigrams with add-one: p(0) = (3 + 1) / (4 + 2), p(1) = (1 + 1) / (4 + 2).
    unigram = -(math.log2(4 / 6) + 2 * math.log2(2 / 6)) / 3
    assert ngram_bits_per_character(train, heldout, 1, 2) == pytest.approx(unigram, abs=1e-12)
    # Bigrams 00, 01, 10 once each: p(1|0) = (1 + 1) / (2 + 2), p(1|1) = (0 + 1) / (1 + 2).
    bigram = -(math.log2(2 / 4) + math.log2(1 / 3)) / 2
    assert ngram_bits_per_character(train, heldout, 2, 2) == pytest.approx(bigram, abs=1e-12)


def test_ngram_model_without_evidence_is_uniform_and_repetition_is_predictable():
    assert ngram_bits_per_character(np.array([5]), np.array([1, 2, 3]), 1, 8) == pytest.approx(math.log2(9))
    period = np.tile(np.arange(4), 5000)
    assert ngram_bits_per_character(period, period, 1, 4) == pytest.approx(2, abs=1e-6)
    assert ngram_bits_per_character(period, period, 2, 4) < 0.01


@pytest.mark.parametrize(
    "train, heldout, order, num_symbols, message",
    [
        ([0], [0], 0, 2, "`order` must be >= 1, got 0"),
        ([0], [0], 2, 2, "`train_ids` must have at least `order` = 2 symbols, got 1"),
        ([0, 1], [0, 2], 1, 2, r"`heldout_ids` must lie in \[0, 2\), got ids from 0 to 2"),
        ([0, -1], [0], 1, 2, r"`train_ids` must lie in \[0, 2\), got ids from -1 to 0"),
        ([0], [0], 3, 50257, r"`num_symbols \*\* order` must be at most 2\*\*28, got 50257\*\*3"),
    ],
)
def test_ngram_errors_name_the_argument(train, heldout, order, num_symbols, message):
    with pytest.raises(ValueError, match=message):
        ngram_bits_per_character(np.array(train), np.array(heldout), order, num_symbols)


# Documents apart


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("block_size", [1, 7, 32])
def test_document_ids_tell_the_documents_of_a_block_apart(block_size, streaming):
    documents = as_dataset(DOCUMENTS)
    if streaming:
        documents = documents.to_iterable_dataset()
    blocks, _ = pack(documents, build_byte_tokenizer(), block_size, document_ids=True)
    stream = joined_bytes(DOCUMENTS)
    numbers = np.cumsum([0, *(token == EOS for token in stream[:-1])])
    rows = list(blocks)
    assert len(rows) == len(stream) // block_size
    for start, row in zip(range(0, len(stream), block_size), rows, strict=False):
        expected = numbers[start : start + block_size]
        assert np.array_equal(row["input_ids"], stream[start : start + block_size])
        assert np.array_equal(row["document_ids"], expected - expected[0])


def test_padding_belongs_to_no_document():
    rows = [{"input_ids": [1, 2, 3], "document_ids": [0, 0, 1]}, {"input_ids": [1], "document_ids": [0]}]
    batch = PaddingCollator()(rows)
    assert batch["document_ids"].tolist() == [[0, 0, 1], [0, -1, -1]]


def test_bars_say_what_is_done_and_no_part_is_called_a_split(tmp_path, capsys):
    lines = [json.dumps({"text": f"some words of row {row}"}) for row in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for _ in range(2):
        pack(load_documents(str(tmp_path / "a.jsonl")), build_byte_tokenizer(), 16)
        assert "split" not in capsys.readouterr().err
        assert not datasets.are_progress_bars_disabled()
