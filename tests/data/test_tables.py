# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""What is no data set, tokenizer or image that a function takes is an error that names the argument."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from tiny import random_model

from md4_hf import (
    DataCollatorForMaskedDiffusion,
    MD4Config,
    MD4ImageProcessor,
    PaddingCollator,
    PairArguments,
    build_byte_tokenizer,
    digits,
    encode_images,
    encode_pairs,
    ensure_mask_token,
    load_documents,
    load_images,
    load_pairs,
    load_table,
    load_tokenizer,
    load_train_validation,
    pack,
    save_image_grid,
)


TEXTS = Dataset.from_dict({"text": ["some text"] * 3})
PAIRS = Dataset.from_dict({"prompt": ["a"], "response": ["b"]})
BYTES = build_byte_tokenizer()
PAIR_ARGUMENTS = PairArguments(prompt_column="prompt", response_column="response", eos="none")


def unread(rows):
    """A stream that knows its columns only when it is read."""
    return IterableDataset.from_generator(lambda: iter(rows))


def packed(documents, tokenizer=BYTES):
    return list(pack(documents, tokenizer, 4)[0])


def paired(pairs=PAIRS, tokenizer=BYTES, arguments=PAIR_ARGUMENTS):
    return encode_pairs(pairs, tokenizer, 8, arguments)


def encoded(images):
    return encode_images(images, MD4ImageProcessor(8, 1, 17))


NO_TABLE = "must be a `Dataset` or `IterableDataset`, got {}.*from_list"
NO_PAIRS = "must be a `Dataset`, got {}.*from_list"
CASES = {
    "list of texts": (packed, ["text"], "`documents` " + NO_TABLE.format("list")),
    "list of rows": (packed, [{"text": "text"}], "`documents` " + NO_TABLE.format("list")),
    "name": (packed, "pydoc", "`documents` " + NO_TABLE.format("'pydoc'")),
    "nothing": (packed, None, "`documents` " + NO_TABLE.format("None")),
    "splits": (packed, DatasetDict(train=TEXTS), r"`documents` must be one split of the data, .*\['train'\]"),
    "other column": (packed, TEXTS.rename_column("text", "content"), r"a column 'text', got \['content'\]"),
    "numbers": (packed, Dataset.from_dict({"text": [1]}), r"strings in the column 'text', got Value\('int64'\)"),
    "stream of numbers": (packed, Dataset.from_dict({"text": [1]}).to_iterable_dataset(), "strings in the column"),
    "stream of another column": (packed, unread([{"content": "a"}]), r"a column 'text', got \['content'\]"),
    "stream of more numbers": (packed, unread([{"text": "a"}, {"text": 1}]), "strings in the column 'text', got 1"),
    "tokenizer of pack": (lambda name: packed(TEXTS, name), "bytes", "`tokenizer` must be .*load_tokenizer` opens"),
    "list of pairs": (paired, [*PAIRS], "`pairs` " + NO_PAIRS.format("list")),
    "splits of pairs": (paired, DatasetDict(train=PAIRS), "`pairs` must be one split of the data"),
    "stream of pairs": (paired, PAIRS.to_iterable_dataset(), "`pairs` " + NO_PAIRS.format("IterableDataset")),
    "tokenizer of pairs": (lambda name: paired(tokenizer=name), "bytes", "`tokenizer` must be .*got 'bytes'"),
    "arguments of pairs": (
        lambda value: paired(arguments=value),
        None,
        "`arguments` must be a `PairArguments`, got None",
    ),
    "list of images": (encoded, [torch.zeros(8, 8)], "`images` " + NO_TABLE.format("list")),
    "splits of images": (encoded, DatasetDict(train=TEXTS), "`images` must be one split of the data"),
    "processor": (lambda value: encode_images(digits(), value), BYTES, "`processor` must be an `MD4ImageProcessor`"),
    "files": (load_documents, ["a.txt"], "`data` must be a `str` or `PathLike`, got list"),
    "tables": (load_table, None, "`data` must be a `str` or `PathLike`, got None"),
    "name of texts": (load_train_validation, "pydoc", "`args` must be a `DataArguments`, got 'pydoc'"),
    "name of pairs": (load_pairs, "a.jsonl", "`data` must be a `DataArguments`, got 'a.jsonl'"),
    "name of images": (load_images, "digits", "`args` must be a `DataArguments`, got 'digits'"),
    "an open tokenizer": (load_tokenizer, BYTES, "`name_or_path` must be a `str` or `PathLike`"),
    "a tokenizer's name": (ensure_mask_token, "bytes", "`tokenizer` must be a `PreTrainedTokenizerBase`, got 'bytes'"),
    "a batch of columns": (PaddingCollator(), {"input_ids": [[1]]}, "`features` must be examples with `input_ids`"),
    "rows of ids": (PaddingCollator(), [[1, 2]], r"`features` must be examples with .*got \[\[1, 2\]\]"),
    "no batch": (PaddingCollator(), None, "`features` must be examples with `input_ids`"),
    "a model": (
        DataCollatorForMaskedDiffusion,
        random_model(5, 4, 0.1),
        "`config` must be .*`model.config`, got MD4For",
    ),
    "no model": (DataCollatorForMaskedDiffusion, None, "`config` must be .*, got NoneType"),
    "arrays": (
        lambda images: save_image_grid(images, "grid.png"),
        [torch.zeros(2, 2)],
        "`images` must be a list of PIL",
    ),
    "no images": (lambda images: save_image_grid(images, "grid.png"), None, "`images` must be a list of PIL"),
}


@pytest.mark.parametrize("case", CASES)
def test_other_kinds_of_data_are_named(case):
    function, value, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        function(value)


def test_the_right_kinds_are_taken(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    assert load_documents(tmp_path / "a.txt")["text"] == ["some text"]
    for documents in (
        TEXTS,
        TEXTS.to_iterable_dataset(),
        unread([*TEXTS]),
        Dataset.from_dict({"text": [None, "text"]}),
    ):
        assert packed(documents)
    assert len(paired()[0]) == 1
    of_other_code = SimpleNamespace(num_levels=17, to_dict=MD4ImageProcessor(8, 1, 17).to_dict)  # as a repository's
    assert len(encode_images(digits().select(range(3)), of_other_code)) == 3
    DataCollatorForMaskedDiffusion(MD4Config(vocab_size=5, mask_token_id=4))
