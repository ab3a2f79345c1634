# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Share of a text that a tokenizer keeps."""

import itertools

import numpy as np
import pytest
from datasets import Dataset

from md4_hf.data.fidelity import NUM_WINDOWS, check_text_is_kept, longest_common_subsequence, share_kept
from md4_hf.data.tokenizers import build_byte_tokenizer, build_text8_tokenizer, train_bpe_tokenizer


RUSSIAN = "Съешь ещё этих мягких французских булок, да выпей чаю. " * 200
ENGLISH = "In 1905 Albert Einstein published four papers; the third introduced special relativity. " * 200


def by_dynamic_programme(a, b):
    lengths = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        longer = max(lengths[i, j + 1], lengths[i + 1, j])
        lengths[i + 1, j + 1] = lengths[i, j] + 1 if a[i] == b[j] else longer
    return lengths[-1, -1]


def test_the_longest_common_subsequence_is_that_of_the_dynamic_programme():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = ("".join(rng.choice([*"abcd"], rng.integers(0, 90))) for _ in range(2))
        assert longest_common_subsequence(a, b) == by_dynamic_programme(a, b)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("hello world", 1.0),
        ("Hello, world", 10 / 12),  # the capital and the comma
        ("a 1 b", 4 / 5),  # the digit is spelled out
        ("HELLO", 0.0),
        ("日本語", 0.0),
        ("", 1.0),
    ],
)
def test_text8_keeps_lower_case_letters_and_spaces(text, share):
    assert share_kept([text], build_text8_tokenizer()) == pytest.approx(share)


@pytest.mark.parametrize("text", [ENGLISH, RUSSIAN, "日本語\n\t\x00 👩‍👩‍👧 \r\n"])
def test_bytes_and_a_trained_bpe_keep_every_text(text):
    assert share_kept([text], build_byte_tokenizer()) == 1
    assert share_kept([text], train_bpe_tokenizer([ENGLISH], 300)) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tokenizer_that_loses_most_of_the_text_is_refused(streaming):
    documents = Dataset.from_dict({"text": [RUSSIAN] * 3})
    documents = documents.to_iterable_dataset() if streaming else documents
    message = (
        r"must keep most of the text, got one that keeps 0\.\d% of the characters of the training data .* bytes or"
    )
    with pytest.raises(ValueError, match=message):
        check_text_is_kept(documents, build_text8_tokenizer(), "training data")
    assert check_text_is_kept(documents, build_byte_tokenizer()) == 1


def test_the_sample_is_spread_over_documents_and_within_a_long_one():
    plain, other = "plain words " * 30_000, RUSSIAN * 20
    share = check_text_is_kept(Dataset.from_dict({"text": [plain + other]}), build_text8_tokenizer())
    assert share == pytest.approx(len(plain) / len(plain + other), abs=0.02)
    documents = Dataset.from_dict({"text": [*["plain words"] * 600, *["12345 67"] * 400]})
    assert check_text_is_kept(documents, build_text8_tokenizer()) == pytest.approx(0.69, abs=0.05)


def test_rows_without_text_and_other_columns_do_not_matter():
    rows = Dataset.from_dict({"prompt": ["abc", None, ""], "response": ["ABCDE", "x", None], "n": [1, 2, 3]})
    assert check_text_is_kept(rows, build_byte_tokenizer(), columns=("prompt", "response")) == 1
    with pytest.raises(ValueError, match="44.4%"):
        check_text_is_kept(rows, build_text8_tokenizer(), columns=("prompt", "response"))
    assert check_text_is_kept(rows.select(range(0)), build_text8_tokenizer(), columns=("prompt",)) == 1
    assert len(rows) < NUM_WINDOWS, "all of them are in the sample"
