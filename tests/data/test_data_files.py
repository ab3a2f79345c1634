# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Which files and columns are data: one rule for every suffix, folder, source and entrance."""

import errno
import gzip
import json
import os
import resource
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image

from md4_hf import build_byte_tokenizer, encode_pairs, load_documents, load_images, load_pairs, load_train_validation
from md4_hf.data.arguments import DataArguments, PairArguments
from md4_hf.data.files import find_files
from md4_hf.data.loading_errors import cache_errors


TEXTS = ["one", "twö\nlines", "NA"]
BOM = b"\xef\xbb\xbf"


@pytest.fixture(autouse=True)
def cache_in_tmp_path(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def json_lines(columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table_bytes(suffix, columns):
    """Columns in the format of a suffix."""
    if suffix in (".jsonl", ".ndjson"):
        return json_lines(columns)
    if suffix == ".json":
        return b"[" + b",\n".join(json_lines(columns).splitlines()) + b"]"
    if suffix in (".csv", ".tsv"):
        return Dataset.from_dict(columns).to_pandas().to_csv(index=False, sep=",\t"[suffix == ".tsv"]).encode()
    sink = pa.BufferOutputStream()
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), sink)
    else:
        with pa.ipc.new_file(sink, pa.table(columns).schema) as writer:
            writer.write_table(pa.table(columns))
    return sink.getvalue().to_pybytes()


def compress(content, suffix):
    if suffix == ".zst":
        return pa.Codec("zstd").compress(content, asbytes=True)
    if suffix == ".gz":  # two members, as tools that compress in parallel write
        return gzip.compress(content[:7]) + gzip.compress(content[7:])
    return content


def texts(*args, **kwargs):
    return [row["text"] for row in load_documents(*map(str, args), **kwargs)]


def write(folder, **contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


# Formats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
def test_the_suffix_is_the_format_in_any_letter_case(suffix, compression, streaming, tmp_path):
    columns = {"id": [1, 2, 3], "body": TEXTS}
    if compression and suffix in (".parquet", ".arrow"):
        write(tmp_path, **{f"x{suffix}{compression}": b"anything"})
        with pytest.raises(ValueError, match=r"`data` must not compress \w+ files, got .*: unpack it"):
            load_documents(str(tmp_path / f"x{suffix}{compression}"), text_column="body")
        return
    content = compress(table_bytes(suffix, columns), compression)
    for name in (f"a{suffix}{compression}", f"B{suffix.upper()}{compression.upper()}"):
        folder = write(tmp_path / name[0], **{name: content})
        for data in (folder / name, folder):
            assert texts(data, text_column="body", streaming=streaming) == TEXTS


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".TXT"])
def test_a_text_file_is_a_document_in_any_letter_case(suffix, compression, tmp_path):
    write(tmp_path, **{f"a{suffix}{compression}": compress("läne\r\nend".encode(), compression)})
    for data in (tmp_path / f"a{suffix}{compression}", tmp_path):
        assert texts(data) == ["läne\nend"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_text(suffix, streaming, tmp_path):
    content = b"one" if suffix == ".txt" else table_bytes(suffix, {"text": ["one"]})
    write(tmp_path, **{f"a{suffix}": BOM + content})
    assert texts(tmp_path / f"a{suffix}", streaming=streaming) == ["one"]


@pytest.mark.parametrize("writer", [pa.ipc.new_stream, pa.ipc.new_file])
def test_both_formats_of_arrow_and_what_datasets_saves(writer, tmp_path):
    table = pa.table({"text": TEXTS})
    with writer(str(tmp_path / "a.arrow"), table.schema) as sink:
        sink.write_table(table)
    assert texts(tmp_path / "a.arrow") == TEXTS
    DatasetDict(
        {"train": Dataset.from_dict({"text": TEXTS}), "test": Dataset.from_dict({"text": ["x"]})}
    ).save_to_disk(str(tmp_path / "saved"))
    assert texts(tmp_path / "saved") == TEXTS
    assert texts(tmp_path / "saved", split="test") == ["x"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "suffix, content, message",
    [
        (".jsonl", '{"text": "a"}\n{"text": "b"\n', "line 2 must be JSON, got"),
        (".jsonl", '{"text": "a"}\n"b"\n', "line 2 must be an object, got 'b'"),
        (".jsonl", '{"text": "a"}\n{"text": 3}\n', "must hold strings, got 'text' with int"),
        (".jsonl", b'{"text": "\xff"}\n', "UnicodeDecodeError"),
        (".json", '{"text": "a"', "line 1 must be JSON"),
        (".json", '{\n  "text": "a"\n}', r"line 1 must be JSON, got '{': .* \(an object has one line\)"),
        (".parquet", "PAR1 nothing", "x.parquet"),
        (".arrow", "nothing", "x.arrow"),
        (".csv", 'id,text\n1,"never closed', "x.csv': line 2: unexpected end of data; a value with quotes"),
        (".tsv", 'id\ttext\n1\ta\n2\t"Hello" she said\n', "x.tsv': line 3: .* expected after .*doubles those within"),
        (".csv", "text,id\na,1\nb,2,3\n", "x.csv': line 3 must have at most 2 values, got 3"),
        (".tsv", b"text\tid\n\xff\n", "x.tsv"),
        (".zip", "PK", "got the archive '.*x.zip': unpack it"),
        (".tar.gz", "anything", "got the archive '.*x.tar.gz': unpack it"),
        (".jsonl.gz", "not compressed", "x.jsonl.gz"),
        (".txt.gz", "not compressed", "x.txt.gz"),
        (".jsonl.zst", "not compressed", "x.jsonl.zst"),
        (".txt.zst", "not compressed", "x.txt.zst"),
    ],
)
def test_a_damaged_file_is_named(suffix, content, message, streaming, tmp_path):
    write(tmp_path, **{f"x{suffix}": content})
    with pytest.raises(ValueError, match=message):
        texts(tmp_path / f"x{suffix}", streaming=streaming)


def test_a_value_that_is_no_string_late_in_a_file_is_named_with_its_row(tmp_path):
    write(tmp_path, **{"x.jsonl": '{"text": "a"}\n' * 1500 + '{"text": ["b"]}\n'})
    for streaming in (False, True):
        with pytest.raises(
            ValueError, match=r"x.jsonl': row 1501 must have a string in the column 'text', got \['b'\]"
        ):
            texts(tmp_path / "x.jsonl", streaming=streaming)


# Folders --------------------------------------------------------------------------------------------------------------


LEFTOVERS = (
    ".git/description.txt",
    ".ipynb_checkpoints/a-checkpoint{}",
    "._a{}",
    ".hidden{}",
    "__MACOSX/a{}",
    "sub/.cache/b{}",
    "~$a{}",
    "README.md",
    "LICENSE",
    "script.py",
    "dataset_infos.json",
)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("name", ["plain", "corpus [v1]", "a b", "données 日本", "x::y", "100% #1?", "-*-", ".hidden"])
def test_a_folder_has_its_data_alone_whatever_its_name(name, suffix, tmp_path):
    content = {text: text if suffix == ".txt" else table_bytes(suffix, {"text": [text]}) for text in ("one", "two")}
    names = {leftover.format(suffix): "\0\5junk" for leftover in LEFTOVERS}
    names |= {f"a{suffix}": content["one"], f"sub [x]/b{suffix}": content["two"]}
    folder = write(tmp_path / name, **names)
    for streaming in (False, True):
        assert texts(folder, streaming=streaming) == ["one", "two"]
        assert texts(folder / f"sub [x]/b{suffix}", streaming=streaming) == ["two"]


@pytest.mark.parametrize(
    "names, found",
    [
        (["data.jsonl", "LICENSE.txt", "notes.txt"], ["2 .txt (LICENSE.txt, notes.txt)", "1 .jsonl (data.jsonl)"]),
        (["a.txt", "b.txt", "metadata.jsonl"], ["2 .txt (a.txt, b.txt)", "1 .jsonl (metadata.jsonl)"]),
        (["a.csv", "b/c.TSV"], ["1 .csv (a.csv)", "1 .tsv (b/c.TSV)"]),
        (["a.jsonl.gz", "a.parquet"], ["1 .jsonl.gz (a.jsonl.gz)", "1 .parquet (a.parquet)"]),
        (["a.jsonl", "picture.PNG"], ["1 .jsonl (a.jsonl)", "1 .png (picture.PNG)"]),
    ],
)
def test_a_mixture_of_formats_is_an_error_that_lists_them(names, found, tmp_path):
    write(tmp_path, **dict.fromkeys(names, '{"text": "a"}'))
    pairs = PairArguments("prompt", "response")
    for load in (
        lambda: load_documents(str(tmp_path)),
        lambda: load_pairs(DataArguments(data=str(tmp_path)), pairs),
        lambda: load_images(DataArguments(data=str(tmp_path))),
        lambda: load_train_validation(DataArguments(validation_data=str(tmp_path))),
    ):
        with pytest.raises(ValueError, match="data` must be a folder with data of one format") as error:
            load()
        assert all(part in str(error.value) for part in found)


def test_a_folder_without_data_says_what_is_in_it(tmp_path):
    write(tmp_path, **{"a.md": "x", "b.pdf": "x", ".c.txt": "x"})
    with pytest.raises(ValueError, match=r"files, got .* with 1 \.md \(a\.md\), 1 \.pdf \(b\.pdf\)"):
        load_documents(str(tmp_path))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_an_empty_file_among_others_is_skipped_and_reported(suffix, tmp_path, caplog):
    content = "one" if suffix == ".txt" else table_bytes(suffix, {"text": ["one"]})
    write(tmp_path, **{f"a{suffix}": "", f"b{suffix}": content})
    assert texts(tmp_path) == ["one"]
    assert f"`data` has 1 empty file(s), which are skipped: {tmp_path}/a{suffix}" in caplog.text
    with pytest.raises(ValueError, match=rf"`data` must contain text, got the empty file '.*a{suffix}'"):
        load_documents(str(tmp_path / f"a{suffix}"))


def test_a_file_in_no_split_is_skipped_and_reported(tmp_path, caplog):
    rows = {f"{name}.jsonl": table_bytes(".jsonl", {"text": [name]}) for name in ("train", "extra", "test")}
    write(tmp_path, **rows)
    assert texts(tmp_path) == ["train"]
    assert (
        f"`data` has 1 file(s) in no split, beside files named for one, which are skipped: {tmp_path}/extra.jsonl"
        in (caplog.text)
    )


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_linked_folders_and_files_are_read_once_and_a_broken_link_is_missed(suffix, tmp_path):
    content = {name: name if suffix == ".txt" else table_bytes(suffix, {"text": [name]}) for name in ("one", "two")}
    folder = write(tmp_path / "corpus", **{f"a{suffix}": content["one"]})
    elsewhere = write(tmp_path / "elsewhere", **{f"b{suffix}": content["two"]})
    (folder / "linked").symlink_to(elsewhere)
    (folder / "z").symlink_to(folder)
    (elsewhere / "back").symlink_to(elsewhere)
    assert texts(folder) == ["one", "two"]
    (folder / f"gone{suffix}").symlink_to(tmp_path / "nothing")
    with pytest.raises((OSError, ValueError), match=f"gone{suffix}"):
        texts(folder)


def test_data_that_are_neither_file_nor_folder_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for data in (str(tmp_path / "pipe"), os.devnull):
        with pytest.raises(ValueError, match=r"`data` must be a file or a folder, got .* a pipe or a device"):
            load_documents(data)
    for data in ("", " ", ["a.txt", ""]):
        with pytest.raises(ValueError, match="`data` must be a name"):
            DataArguments(data=data)


def test_images_may_have_any_name_and_a_table_beside_them(tmp_path):
    for kind in ("cat [1]", "dog"):
        for number in range(3):
            path = tmp_path / "images [v1]" / kind / f"{number}.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path)
    write(tmp_path / "images [v1]", **{"._0.png": "junk", ".ipynb_checkpoints/0.png": "junk", "notes.md": "x"})
    train, heldout = load_images(DataArguments(data=str(tmp_path / "images [v1]"), validation_fraction=0.2))
    assert len(train) + len(heldout) == 6
    assert train.features["label"].names == ["cat [1]", "dog"]
    table = write(tmp_path / "captions", **{"metadata.csv": "file_name,caption\n0.png,zero\n"})
    Image.new("L", (4, 4)).save(table / "0.png")
    assert find_files(str(table), None, "data").format == "image"


def test_splits_are_those_of_the_hub_s_layout_and_of_readme_s_configurations(tmp_path):
    rows = {name: table_bytes(".jsonl", {"text": [name]}) for name in ("train", "test", "en", "de")}
    write(tmp_path / "a", **{"data/train-0.jsonl": rows["train"], "data/test-0.jsonl": rows["test"]})
    assert (texts(tmp_path / "a"), texts(tmp_path / "a", split="test")) == (["train"], ["test"])
    assert texts(tmp_path / "a", split="train+test") == ["train", "test"]
    card = "---\nconfigs:\n- config_name: en\n  default: true\n  data_files: en/*\n- config_name: de\n  data_files:\n"
    card += "  - split: train\n    path: de/*.jsonl\n---\n# Data\n"
    write(tmp_path / "b", **{"README.md": card, "en/x.jsonl": rows["en"], "de/x.jsonl": rows["de"], "x.csv": "text\n"})
    assert (texts(tmp_path / "b"), texts(tmp_path / "b", config="de")) == (["en"], ["de"])
    with pytest.raises(ValueError, match=r"`data_config` must be one of the configurations \['de', 'en'\].*got 'fr'"):
        load_documents(str(tmp_path / "b"), config="fr")


CARD = "---\nconfigs:\n- config_name: default\n{}---\n# Data\n"


@pytest.mark.parametrize("option, prefix", [("", ""), ("  data_dir: en\n", "en/"), ("  data_dir: ./en/x\n", "en/x/")])
@pytest.mark.parametrize("names", [("train-00000-of-00001", "test-00000-of-00001"), ("train/a", "test/b"), ("a", "b")])
def test_a_configuration_without_data_files_has_the_splits_that_datasets_finds(option, prefix, names, tmp_path):
    files = {f"{prefix}{name}.jsonl": table_bytes(".jsonl", {"text": [name]}) for name in names}
    elsewhere = {"de/c.csv": "text\nde\n"} if prefix else {}
    folder = write(tmp_path / "a", **{"README.md": CARD.format(option), **files, **elsewhere})
    wanted = load_dataset(str(folder))
    assert len(wanted) == (1 if names == ("a", "b") else 2)
    found = {split: texts(folder, split=split) for split in find_files(str(folder), None, "data").splits}
    assert found == {split: rows["text"][:] for split, rows in wanted.items()}


def test_a_configuration_without_data_files_has_one_split_of_text(tmp_path):
    files = {"README.md": CARD.format("  data_dir: en\n"), "en/train.txt": "a", "en/test.txt": "b", "de/c.txt": "c"}
    assert texts(write(tmp_path / "files", **files)) == ["b", "a"]


# Columns --------------------------------------------------------------------------------------------------------------


CHANGES = {
    "null, then an object": ({"x": None}, {"x": {"url": "x"}}),
    "null, then a string": ({"x": None}, {"x": "web"}),
    "a new column": ({}, {"x": 1}),
    "a number, then a string": ({"x": 1}, {"x": "1a"}),
    "an object, then a list": ({"x": {"a": 1}}, {"x": [1, 2]}),
    "lists of other things": ({"x": [1]}, {"x": [{"a": "b"}, "c"]}),
    "a column that ends": ({"x": 1}, {}),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_other_columns_may_change_late_in_a_file_or_between_files(change, streaming, tmp_path):
    first, later = CHANGES[change]
    rows = [json.dumps({"text": f"row {i}", "filler": "x" * 100_000, **first}) for i in range(120)]  # 12 MB
    rows.append(json.dumps({"text": "row 120", **later}))
    write(tmp_path, **{"one.jsonl": "\n".join(rows), "f/a.jsonl": rows[0] + "\n", "f/b.jsonl": rows[-1]})
    assert texts(tmp_path / "one.jsonl", streaming=streaming) == [f"row {i}" for i in range(121)]
    assert texts(tmp_path / "f", streaming=streaming) == ["row 0", "row 120"]


def test_columns_of_pairs_are_read_alone_too(tmp_path):
    rows = [{"q": f"q{i}", "a": f"a{i}", "meta": None if i < 9 else {"x": [i]}} for i in range(10)]
    write(tmp_path, **{"x.jsonl": "\n".join(map(json.dumps, rows))})
    arguments = PairArguments("q", "a", eos="none")
    train, heldout = load_pairs(DataArguments(data=str(tmp_path / "x.jsonl")), arguments)
    assert train.column_names == ["q", "a"] and heldout[:] == {"q": ["q9"], "a": ["a9"]}
    assert len(encode_pairs(train, build_byte_tokenizer(), 8, arguments)[0]) == 9
    with pytest.raises(
        ValueError, match=r"`response_column` must be one of the columns \['a', 'meta', 'q'\], got 'b'"
    ):
        load_pairs(DataArguments(data=str(tmp_path / "x.jsonl")), PairArguments("q", "b"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_strings_of_every_kind_beside_types_that_datasets_does_not_know(kind, suffix, streaming, tmp_path):
    others = {
        "tags": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        "view": pa.array(["x", None], pa.string_view()),
        "interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()) if suffix == ".arrow" else [1, 2],
    }
    columns = {"text": pa.array(["one", "two"], pa.string()).cast(kind), **others}
    write(tmp_path, **{f"x{suffix}": table_bytes(suffix, columns)})
    assert texts(tmp_path / f"x{suffix}", streaming=streaming) == ["one", "two"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_a_column_that_is_missing_is_an_error_in_the_first_file_and_later(suffix, streaming, tmp_path):
    good, bad = (table_bytes(suffix, {name: ["x"], "id": ["y"]}) for name in ("text", "body"))
    write(tmp_path, **{f"a{suffix}": bad, f"f/a{suffix}": good, f"f/b{suffix}": bad})
    with pytest.raises(ValueError, match=r"`text_column` must be one of the columns \['body', 'id'\], got 'text'"):
        load_documents(str(tmp_path / f"a{suffix}"), streaming=streaming)
    with pytest.raises(ValueError, match=rf"b{suffix}' must have the column 'text', got \['body', 'id'\]"):
        texts(tmp_path / "f", streaming=streaming)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_a_table_without_rows_is_named(suffix, tmp_path):
    content = " " if suffix in (".jsonl", ".json") else table_bytes(suffix, {"text": pa.array([], pa.string())})
    if suffix == ".csv":
        content = "text\n"
    write(tmp_path, **{f"x{suffix}": content})
    with pytest.raises(ValueError, match=rf"`data` must have well-formed files, got '.*x{suffix}' without rows"):
        load_documents(str(tmp_path / f"x{suffix}"))


def test_values_of_csv_may_have_quotes_separators_line_ends_and_any_length(tmp_path):
    text = 'a "quoted", word\nand a line' + "x" * 200_000
    write(tmp_path, **{"a.csv": table_bytes(".csv", {"id": [1, 2], "text": [text, "short"]}) + b"3\n"})
    assert texts(tmp_path / "a.csv") == [text, "short", None]


def test_words_that_look_like_nothing_are_words(tmp_path):
    words = ["NA", "null", "None", "nan", "", "1.50", "007"]
    write(tmp_path, **{"a.csv": "text,x\n" + "".join(f"{word},1\n" for word in words)})
    assert texts(tmp_path / "a.csv") == words


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt", None])
def test_options_without_effect_are_errors(suffix, tmp_path):
    data = "pydoc"
    if suffix is not None:
        write(tmp_path, **{f"x{suffix}": "x" if suffix == ".txt" else table_bytes(suffix, {"text": ["x"]})})
        data = str(tmp_path / f"x{suffix}")
    for options, message in [
        ({"split": "validation"}, "`data_split` must be .*got '?validation"),
        ({"split": "train[:x%]"}, "`data_split` must be .*got '?train"),
        ({"split": "train[50%:"}, "`data_split` must be .*got '?train"),
        ({"config": "en"}, "`data_config` must be left out.*got 'en'"),
        ({"revision": "v2"}, "`data_revision` must be left out.*got 'v2'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_documents(data, **options)
        validation = {f"validation_{name}": value for name, value in options.items() if name != "revision"}
        if validation:
            with pytest.raises(ValueError, match=message.replace("`data_", "`validation_")):
                load_train_validation(DataArguments(validation_data=data, **validation))
    if suffix in (".txt", None):
        with pytest.raises(ValueError, match="`text_column` must be left out for text.*got 'body'"):
            load_documents(data, text_column="body")


def test_options_of_data_that_are_not_there_are_errors():
    for options in ({"validation_config": "en"}, {"validation_text_column": "body"}):
        with pytest.raises(ValueError, match="must be left out without `validation_data`"):
            DataArguments(**options)
    with pytest.raises(ValueError, match="`data_config` must be left out"):
        load_images(DataArguments(data="digits", data_config="x"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_slices_of_local_files(suffix, tmp_path):
    rows = [f"row {i}" for i in range(100)]
    write(tmp_path, **{f"x{suffix}": table_bytes(suffix, {"text": rows})})
    data = str(tmp_path / f"x{suffix}")
    assert texts(data, split="train[:10%]") == rows[:10]
    assert texts(data, split="train[95:]+train[:2]") == rows[95:] + rows[:2]
    args = DataArguments(data=data, data_split="train[:80]", validation_split="train[80:]")
    assert [part["text"][:] for part in load_train_validation(args)] == [rows[:80], rows[80:]]
    with pytest.raises(ValueError, match="`data_split` must be a whole split with `streaming`"):
        load_documents(data, split="train[:10%]", streaming=True)


def test_slices_of_the_built_in_corpus():
    every = texts("pydoc")
    assert texts("pydoc", split="train[:3]") == every[:3]
    assert texts("pydoc", split="train[50%:]") == every[round(len(every) / 2) :]


def test_validation_data_have_a_column_of_their_own(tmp_path):
    write(tmp_path, **{"a.jsonl": '{"text": "a"}\n', "b.csv": "body\nb\n", "c.jsonl": '{"body": "c"}\n', "d.txt": "d"})

    def parts(**options):
        options = {name: str(tmp_path / value) if "." in value else value for name, value in options.items()}
        return [part["text"][:] for part in load_train_validation(DataArguments(**options))]

    assert parts(data="a.jsonl", validation_data="b.csv", validation_text_column="body") == [["a"], ["b"]]
    assert parts(data="c.jsonl", text_column="body", validation_data="b.csv") == [["c"], ["b"]]
    assert parts(data="c.jsonl", text_column="body", validation_data="d.txt") == [["c"], ["d"]]
    with pytest.raises(ValueError, match="`text_column` must be left out for text"):
        parts(data="a.jsonl", validation_data="d.txt", validation_text_column="body")


# Cache ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_said_to_be_that(code):
    with pytest.raises(OSError, match="the cache of `datasets` cannot be written.*HF_DATASETS_CACHE"), cache_errors():
        try:
            raise OSError(code, os.strerror(code))
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error


@pytest.mark.parametrize(
    "suffix", [".txt", *(pytest.param(s, marks=pytest.mark.slow) for s in (".jsonl", ".parquet"))]
)
def test_a_full_cache_is_not_a_malformed_file(suffix, tmp_path):
    text = os.urandom(2**16).hex()
    write(tmp_path, **{f"x{suffix}": text if suffix == ".txt" else table_bytes(suffix, {"text": [text]})})
    code = (
        "import sys, resource; from md4_hf import load_documents, pack, build_byte_tokenizer\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, {resource.RLIM_INFINITY}))\n"
        "load_documents(sys.argv[1])"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / f"x{suffix}")], env=environment, capture_output=True, text=True
    )
    assert "the cache of `datasets` cannot be written" in run.stderr.splitlines()[-1]
    assert "well-formed" not in run.stderr


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.parquet", "someone/something"])
def test_a_slice_of_a_stream_is_an_error_before_a_file_is_read_or_the_hub_is_asked(name, tmp_path):
    path = tmp_path / name
    if path.suffix:
        path.write_bytes(b"\xff damaged")  # which would be an error of its own
    with pytest.raises(ValueError, match=r"^`data_split` must be a whole split with `streaming`, got 'train\[:10%\]'"):
        load_documents(str(path) if path.suffix else name, split="train[:10%]", streaming=True)
