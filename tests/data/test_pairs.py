# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Prompts and responses: what is scored, what follows a response, and what is left out."""

import json

import pytest
import torch
from datasets import Dataset

from md4_hf import (
    DataArguments,
    DataCollatorForMaskedDiffusion,
    MD4Config,
    PairArguments,
    build_byte_tokenizer,
    build_text8_tokenizer,
    encode_pairs,
    load_pairs,
)


EOS = 256


def columns(eos="padded"):
    return PairArguments("prompt", "response", eos=eos)


def pairs(*rows):
    prompts, responses = zip(*rows, strict=True)
    return Dataset.from_dict({"prompt": list(prompts), "response": list(responses)})


def encode(*rows, eos="padded", block_size=8, **options):
    return encode_pairs(pairs(*rows), build_byte_tokenizer(), block_size, columns(eos), **options)


@pytest.mark.parametrize(("eos", "tail"), [("padded", [EOS, EOS, EOS, EOS]), ("scored", [EOS]), ("none", [])], ids=str)
def test_the_prompt_is_given_and_the_response_with_its_end_is_scored(eos, tail):
    examples, report = encode(("ab", "cd"), eos=eos)
    assert examples[0]["input_ids"] == [97, 98, 99, 100, *tail]
    assert examples[0]["labels"] == [-100, -100, 99, 100, *tail]
    assert (report.num_pairs, report.num_kept, report.num_scored_tokens) == (1, 1, 2 + len(tail))


@pytest.mark.parametrize(("size", "count"), [(2, 2), (3, 2), (4, 4), (5, 1), (7, 3), (16, 4)])
def test_padding_ends_with_the_block_of_a_block_model_and_with_the_row(size, count):
    examples, _ = encode(("ab", "cd"), diffusion_block_size=size)
    assert examples[0]["input_ids"] == [97, 98, 99, 100] + [EOS] * count


def test_a_response_that_ends_with_eos_has_no_other():
    for eos in ("scored", "none"):
        assert encode(("ab", "c<|endoftext|>"), eos=eos)[0][0]["labels"] == [-100, -100, 99, EOS]


@pytest.mark.parametrize(("earlier", "eos"), [("fill", "padded"), ("eos", "scored"), ("none", "none")])
def test_an_earlier_name_of_the_end_is_replaced_with_a_warning(earlier, eos):
    with pytest.warns(FutureWarning, match=f"`response_end` is deprecated: write `eos` '{eos}'"):
        arguments = PairArguments("prompt", "response", earlier)
    assert arguments == columns(eos)
    with pytest.raises(ValueError, match="`response_end` must be left out with `eos`"):
        PairArguments("prompt", "response", earlier, eos="none" if eos == "padded" else "padded")


def test_what_does_not_fit_or_says_nothing_is_left_out_and_counted():
    examples, report = encode(("a", "b"), ("abcd", "efgh"), ("abc", "efgh"), ("a", ""), ("", "c"))
    assert [row["input_ids"][:3] for row in examples] == [[97, 98, EOS], [97, 98, 99], [99, EOS, EOS]]
    assert (report.num_too_long, report.num_empty, report.num_kept) == (1, 1, 3)


def test_names_of_special_tokens_are_these_tokens_but_that_of_the_mask():
    examples, _ = encode(("<|endoftext|>", "[MASK]"), block_size=32)
    assert examples[0]["input_ids"][:8] == [EOS, *b"[MASK]", EOS]


def test_no_token_of_a_prompt_is_ever_masked():
    examples, _ = encode(("ab", "cd"), ("abcd", "ef"))
    collator = DataCollatorForMaskedDiffusion(MD4Config(vocab_size=258), generator=torch.Generator().manual_seed(0))
    for _ in range(50):
        batch = collator(list(examples))
        prompt = batch["labels"] == -100
        assert (batch["input_ids"][prompt] != 257).all() and prompt.sum() == 6


def test_bad_columns_and_tokenizers_are_named():
    tokenizer = build_byte_tokenizer()
    with pytest.raises(ValueError, match=r"`prompt_column` must be one of the columns .* got 'q'"):
        encode_pairs(pairs(("a", "b")), tokenizer, 8, PairArguments("q", "response"))
    numbers = Dataset.from_dict({"prompt": ["a"], "response": [1]})
    with pytest.raises(ValueError, match="`response_column` must hold strings or lists of messages, got 'response'"):
        encode_pairs(numbers, tokenizer, 8, columns())
    with pytest.raises(ValueError, match='`eos` must be "none" for a tokenizer without an EOS token'):
        encode_pairs(pairs(("a", "b")), build_text8_tokenizer(), 8, columns())
    with pytest.raises(
        ValueError,
        match=r"`block_size` must leave some of the 2 pairs, got 2: 1 are longer \(up to 5 tokens\), 1 have",
    ):
        encode(("abc", "d"), ("a", ""), block_size=2)
    with pytest.raises(ValueError, match="`prompt_column` and `response_column` must be given together"):
        PairArguments("prompt")
    with pytest.raises(ValueError, match="`response_end` must be one of"):
        PairArguments("prompt", "response", "stop")
    with pytest.raises(ValueError, match="`eos` must be one of"):
        PairArguments("prompt", "response", eos="stop")
    with pytest.raises(ValueError, match="`messages_column` must be left out with `prompt_column`"):
        PairArguments("prompt", "response", messages_column="messages")


def write_pairs(path, count):
    rows = [json.dumps({"prompt": f"p{n}", "response": f"r{n}"}) for n in range(count)]
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def test_the_last_rows_are_held_out(tmp_path):
    train, heldout = load_pairs(DataArguments(data=write_pairs(tmp_path / "pairs.jsonl", 10), validation_fraction=0.2))
    assert (len(train), heldout["prompt"][:]) == (8, ["p8", "p9"])


def test_validation_pairs_may_be_another_file(tmp_path):
    data = write_pairs(tmp_path / "a.jsonl", 3)
    other = write_pairs(tmp_path / "b.jsonl", 2)
    train, heldout = load_pairs(DataArguments(data=data, validation_data=other))
    assert (len(train), len(heldout)) == (3, 2)


def test_streams_and_single_rows_are_refused(tmp_path):
    data = write_pairs(tmp_path / "pairs.jsonl", 1)
    with pytest.raises(ValueError, match="`streaming` must be False with prompts and responses"):
        load_pairs(DataArguments(data=data, streaming=True))
    with pytest.raises(ValueError, match="`data` must hold at least two pairs to hold some out, got 1"):
        load_pairs(DataArguments(data=data))
    with pytest.raises(ValueError, match=r"`data` must be a \.jsonl or \.parquet file"):
        (tmp_path / "x.txt").write_text("text")
        load_pairs(DataArguments(data=str(tmp_path / "x.txt")))
