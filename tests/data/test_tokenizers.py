# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
import json
import os
import string

import pytest
from launching import run_python
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from md4_hf.data.tokenizers import (
    bpe_size,
    build_byte_tokenizer,
    build_text8_tokenizer,
    ensure_mask_token,
    load_tokenizer,
    train_bpe_tokenizer,
)


UNICODE_TEXT = "".join(chr(code) for code in range(256)) + "  Ünïcödé 日本語 👩‍👩‍👧 e\u0301 \r\n\t'll n't . , !  "


def build_tokenizer_without_mask() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_text8_ids_are_letters_space_mask():
    tokenizer = build_text8_tokenizer()
    assert tokenizer(string.ascii_lowercase + " ")["input_ids"] == list(range(27))
    assert (len(tokenizer), tokenizer.mask_token, tokenizer.mask_token_id) == (28, "[MASK]", 27)
    assert tokenizer.special_tokens_map == {"mask_token": "[MASK]"}


@pytest.mark.parametrize(
    "text, normalized",
    [
        ("Hello, World!", "hello world "),
        ("  a  b ", " a b "),
        ("a1b", "a one b"),
        ("In 2026.", "in two zero two six "),
        ("naïve\n\n-- 0", "na ve zero "),
        ("", ""),
    ],
)
def test_text8_normaliser_follows_the_recipe(text, normalized):
    tokenizer = build_text8_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == normalized


def test_text8_decoding_normalised_text_gives_it_back():
    text = " the quick brown fox n t s ve re m all zero one "
    tokenizer = build_text8_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_text8_recognises_the_mask_before_normalising():
    tokenizer = build_text8_tokenizer()
    assert tokenizer("a[MASK][MASK]b")["input_ids"] == [0, 27, 27, 1]
    assert tokenizer("a [MASK] b")["input_ids"] == [0, 26, 27, 26, 1]
    assert tokenizer.decode([0, 27, 27, 1], skip_special_tokens=False) == "a[MASK][MASK]b"
    assert tokenizer.decode([0, 27, 27, 1], skip_special_tokens=True) == "ab"


def test_byte_ids_are_utf8_bytes():
    tokenizer = build_byte_tokenizer()
    assert tokenizer(UNICODE_TEXT)["input_ids"] == list(UNICODE_TEXT.encode())
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.mask_token_id) == (258, 256, 257)
    assert tokenizer("a<|endoftext|>[MASK]")["input_ids"] == [97, 256, 257]


def test_bytes_round_trip_exactly():
    tokenizer = build_byte_tokenizer()
    assert tokenizer.decode(tokenizer(UNICODE_TEXT)["input_ids"]) == UNICODE_TEXT


@pytest.mark.parametrize("build", [build_text8_tokenizer, build_byte_tokenizer])
def test_saved_tokenizer_opens_without_this_package(build, tmp_path):
    tokenizer = build(model_max_length=64)
    tokenizer.save_pretrained(tmp_path)
    script = f"""
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r})
assert not any(name.startswith("md4_hf") for name in sys.modules)
ids = tokenizer("A[MASK] 1b ")["input_ids"]
print(json.dumps([len(tokenizer), tokenizer.model_max_length, tokenizer.mask_token_id, ids, tokenizer.decode(ids)]))
"""
    # -I: isolated from PYTHONPATH and the current folder
    output = run_python("-I", "-c", script)
    ids = tokenizer("A[MASK] 1b ")["input_ids"]
    assert json.loads(output) == [len(tokenizer), 64, tokenizer.mask_token_id, ids, tokenizer.decode(ids)]


def test_load_tokenizer_by_name_and_folder(tmp_path):
    assert len(load_tokenizer("text8")) == 28
    assert len(load_tokenizer("bytes")) == 258
    build_tokenizer_without_mask().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).mask_token_id == 3


def test_load_tokenizer_names_the_argument_when_nothing_is_there(tmp_path):
    with pytest.raises(ValueError, match="`name_or_path` must be .* got '.*missing'"):
        load_tokenizer(str(tmp_path / "missing"))


def test_ensure_mask_token_adds_the_last_id_once():
    tokenizer = build_tokenizer_without_mask()
    for _ in range(2):
        assert ensure_mask_token(tokenizer) is tokenizer
        assert (len(tokenizer), tokenizer.mask_token, tokenizer.mask_token_id) == (4, "[MASK]", 3)
    assert tokenizer("hello[MASK]world")["input_ids"] == [1, 3, 2]
    assert len(ensure_mask_token(build_text8_tokenizer())) == 28


# Trained on documents -------------------------------------------------------------------------------------------------

TEXTS = ["the cat sat on the mat, the Cat of 1984\n" * 20, "ünï cödé 日本語 " * 20]
BPE_SCRIPT = f"""
from md4_hf.data.tokenizers import train_bpe_tokenizer
print(train_bpe_tokenizer({TEXTS!r}, 280).backend_tokenizer.to_str())
"""


def test_a_trained_bpe_has_bytes_merges_eos_and_mask():
    tokenizer = train_bpe_tokenizer(TEXTS, 280)
    assert len(tokenizer) == 282 and (tokenizer.eos_token_id, tokenizer.mask_token_id) == (280, 281)
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert len(ids) < len(TEXTS[0]) / 2 and tokenizer.decode(ids) == TEXTS[0]
    assert len(train_bpe_tokenizer(["abc"], 1000)) == 258, "no pair occurs twice"


def test_a_trained_bpe_is_without_loss_and_opens_without_this_package(tmp_path):
    tokenizer = train_bpe_tokenizer(TEXTS, 280)
    tokenizer.save_pretrained(tmp_path)
    opened = load_tokenizer(str(tmp_path))
    ids = tokenizer(UNICODE_TEXT)["input_ids"]
    assert opened(UNICODE_TEXT)["input_ids"] == ids and opened.decode(ids) == UNICODE_TEXT


@pytest.mark.slow
def test_a_trained_bpe_is_a_function_of_the_texts():
    expected = train_bpe_tokenizer(iter(TEXTS), 280).backend_tokenizer.to_str()
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        assert run_python("-c", BPE_SCRIPT, env=environment).strip().splitlines()[-1] == expected
    assert train_bpe_tokenizer(TEXTS[:1], 280).backend_tokenizer.to_str() != expected


@pytest.mark.parametrize("name", ["bpe:", "bpe:255", "bpe:2k", "bpe:-1", "bpe:300.0"])
def test_a_size_that_is_none_is_named(name):
    with pytest.raises(ValueError, match=f"`tokenizer` must be bpe:N with N >= 256, .* got '{name}'"):
        bpe_size(name)
    assert bpe_size("bpe:256") == 256 and bpe_size("bytes") is None


@pytest.mark.parametrize("name", ["nosuch/tokenizer.json", "nosuch/tok.json", "./nosuch", "/no/such/folder"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ValueError, match=f"got '{name}': no such file or folder") as error:
        load_tokenizer(name)
    assert "\n" not in str(error.value) and error.value.__cause__ is None
