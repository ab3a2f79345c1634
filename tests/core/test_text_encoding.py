# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""One rule from texts to ids, for tokenizers of every kind: markers, masks, and texts that continue others."""

import pytest
from tiny import random_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from md4_hf import PairArguments, build_byte_tokenizer, encode_pairs, ensure_mask_token, make_pipeline, pack
from md4_hf.core.text_encoding import decode_continuation, depends_on_place, encode_texts
from md4_hf.data import pieces as pieces_module
from md4_hf.data.tokenizers import build_text8_tokenizer
from md4_hf.evaluation.samples import checked_token_ids


from datasets import Dataset  # isort: skip


CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome; that of Spain is Madrid.",
    "Caps, 12 numbers, a few words of no great length and some more, as in abcd or efgh.",
    "We play, they played; playing is what players do. [MASK] [is] this, if not a word: a word!",
] * 4
MARKER = "<|user|>"
SPECIAL = ["<unk>", "</s>"]


def wrap(backend, **options):
    """The tokenizer with a marker of a chat and a mask."""
    return with_marker(PreTrainedTokenizerFast(tokenizer_object=backend, **options))


def with_marker(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": [MARKER]})
    return ensure_mask_token(tokenizer)


def train(backend, trainer):
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_level(add_prefix_space):
    """GPT-2's kind."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return wrap(train(backend, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet)), eos_token="</s>")


def prepend():
    """Llama 2's kind: a normalizer puts the sign of a space before every text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # in training: no token has two words
    train(backend, trainers.BpeTrainer(vocab_size=160, special_tokens=SPECIAL))
    backend.pre_tokenizer = None
    return wrap(backend, unk_token="<unk>")


def metaspace(scheme):
    """The kind of T5 and Mistral, whose template ends each text with EOS."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    train(backend, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>"))
    backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return wrap(backend, unk_token="<unk>", eos_token="</s>")


def split_metaspace():
    """The kind of older T5 and XLM-R: spaces at the ends and line breaks are lost."""
    tokenizer = metaspace("always")
    metaspaces = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspaces])
    return tokenizer


def word_piece():
    """BERT's kind, with the mask in the vocabulary."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    train(backend, trainers.WordPieceTrainer(vocab_size=140, special_tokens=["[UNK]", "[SEP]", "[MASK]"]))
    return wrap(backend, unk_token="[UNK]", sep_token="[SEP]", mask_token="[MASK]")


def spaced_mask():
    """RoBERTa's kind: the mask takes the space before it."""
    tokenizer = byte_level(True)
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    return tokenizer


KINDS = {
    "bytes": lambda: with_marker(build_byte_tokenizer()),
    "Python": lambda: with_marker(ByT5Tokenizer()),
    "byte-level": lambda: byte_level(False),
    "byte-level with a space": lambda: byte_level(True),
    "prepend": prepend,
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "split metaspace": split_metaspace,
    "WordPiece": word_piece,
    "spaced mask": spaced_mask,
}
# Of the others, decoding does not give back every text: spaces are lost or put between words.
TO_THE_LETTER = ["bytes", "Python", "byte-level", "prepend", "metaspace always", "metaspace first", "metaspace never"]
WITH_SPACE = ["byte-level with a space", "spaced mask"]  # which decoding leaves at the beginning


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request):
    return KINDS[request.param]()


def only(*kinds):
    return pytest.mark.parametrize("tokenizer", kinds, indirect=True)


def decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


PAIRS = [
    ("The capital is ", "Paris."),
    ("The capital is", " Paris."),
    ("The capital is", "Paris."),
    ("play", "ing is"),
    ("The ", "  words"),
    (f"{MARKER}The capital", "12 words"),
    (MARKER, "Paris"),
    ("", "Paris"),
]


@pytest.mark.parametrize("prompt, response", PAIRS)
@only(*TO_THE_LETTER)
def test_pairs_decode_to_the_letter(tokenizer, prompt, response):
    first, second = encode_texts(tokenizer, [prompt, response], after=[None, prompt])
    assert decode(tokenizer, first + second) == prompt + response
    rows, _ = encode_pairs(
        Dataset.from_dict({"prompt": [prompt], "response": [response]}),
        tokenizer,
        64,
        PairArguments("prompt", "response", eos="none"),
    )
    assert rows[0]["input_ids"] == first + second
    assert rows[0]["labels"] == [-100] * len(first) + second


@only(*WITH_SPACE, "split metaspace", "WordPiece")
def test_pairs_have_the_spaces_of_the_text_alone(tokenizer):
    for prompt, response in [("The capital is ", "Paris."), ("play", "ing is"), ("The capital is", " Paris.")]:
        first, second = encode_texts(tokenizer, [prompt, response], after=[None, prompt])
        found = decode(tokenizer, first + second).replace(" .", ".").replace("play ing", "playing")
        assert found.lstrip() == prompt + response


def test_a_text_has_its_own_ids_whatever_is_encoded_with_it(tokenizer):
    texts = ["The capital", f"of{MARKER} Italy", "", "Paris", "[MASK]", "a word"]
    after = [None, None, "x", "", None, "The "]
    rows = encode_texts(tokenizer, texts, after=after)
    for row, text, previous in zip(rows, texts, after, strict=True):
        assert encode_texts(tokenizer, [text], after=[previous]) == [row]


def test_nothing_is_added_and_beginnings_are_the_tokenizers_own(tokenizer):
    texts = ["The capital is Paris.", "  two spaces", "12"]
    assert encode_texts(tokenizer, texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_markers_are_one_token_and_masks_are_read_in_prompts_alone(tokenizer):
    mask, text = tokenizer.mask_token, f"The {{}} capital{{}}{MARKER}"
    marker = tokenizer.convert_tokens_to_ids(MARKER)
    (prompt,) = encode_texts(tokenizer, [text.format(mask, mask)], reads_masks=True)
    assert prompt.count(tokenizer.mask_token_id) == 2 and prompt.count(marker) == 1
    (clean,) = encode_texts(tokenizer, [text.format(mask, mask)])
    assert tokenizer.mask_token_id not in clean and clean.count(marker) == 1 and len(clean) > len(prompt)
    assert encode_texts(tokenizer, [text.format("", "")]) == encode_texts(
        tokenizer, [text.format("", "")], reads_masks=True
    )


@only(*TO_THE_LETTER)
def test_clean_texts_with_the_name_of_the_mask_decode_to_the_letter(tokenizer):
    text = f"The {tokenizer.mask_token}{tokenizer.mask_token} is [this]"
    (ids,) = encode_texts(tokenizer, [text])
    assert decode(tokenizer, ids) == text


def test_the_name_of_the_mask_may_be_one_character_if_there_is_another_token_for_it():
    tokenizer = build_byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "█"})
    assert encode_texts(tokenizer, ["a█b"]) == [list("a█b".encode())]
    backend = Tokenizer(models.WordLevel({"_": 0, "a": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="_")
    with pytest.raises(ValueError, match="`tokenizer` must have a token besides the mask for '_' in texts, got 'a _'"):
        encode_texts(words, ["a", "a _"])


def test_the_mask_as_a_word_of_the_vocabulary_is_not_in_clean_texts():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "[MASK]": 1, "the": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", mask_token="[MASK]")
    assert encode_texts(tokenizer, ["the [MASK] the"], reads_masks=True) == [[2, 1, 2]]
    (ids,) = encode_texts(tokenizer, ["the [MASK] the"])
    assert set(ids) == {0, 2}


@only(*TO_THE_LETTER)
def test_long_documents_have_no_spaces_at_their_cuts(tokenizer, monkeypatch):
    text = " ".join(CORPUS)
    (at_once,) = encode_texts(tokenizer, [text])
    split_long_text = pieces_module.split_long_text
    monkeypatch.setattr(pieces_module, "split_long_text", lambda text: split_long_text(text, max_characters=20))
    blocks, report = pack(Dataset.from_dict({"text": [text]}), tokenizer, 1)
    ids = [block[0] for block in blocks["input_ids"]][: len(at_once)]  # without what ends the document
    assert decode(tokenizer, ids) == decode(tokenizer, at_once)
    assert ids == at_once and report.num_documents == 1


@only(*TO_THE_LETTER)
def test_gaps_have_no_spaces_after_them(tokenizer):
    mask, size = tokenizer.mask_token, len(tokenizer)
    pipeline = make_pipeline(random_model(size, 64, 0.3, mask_token_id=tokenizer.mask_token_id), tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    for text in (f"ab{mask}{mask}cd", f"{mask}cd", f"The capital {mask} is{mask} Paris."):
        (sequence,) = pipeline(prompt=text, num_inference_steps=2, output_type="ids").sequences
        (ids,) = encode_texts(tokenizer, [text], reads_masks=True)
        assert ids.count(tokenizer.mask_token_id) == text.count(mask) and len(sequence) == len(ids)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert all(id_ in (new, tokenizer.mask_token_id) for id_, new in zip(ids, sequence.tolist(), strict=True))


@only(*WITH_SPACE, "split metaspace")
def test_gaps_have_no_spaces_after_them_of_tokenizers_that_lose_others(tokenizer):
    mask = tokenizer.mask_token
    (ids,) = encode_texts(tokenizer, [f"ab{mask}{mask}cd{mask} Paris"], reads_masks=True)
    assert decode(tokenizer, ids).lstrip() == f"ab{mask}{mask}cd{mask} Paris"


def test_a_text_has_the_same_ids_everywhere(tokenizer):
    text = f"{MARKER}The capital{MARKER} is"
    (expected,) = encode_texts(tokenizer, [text])
    documents = Dataset.from_dict({"text": [text], "prompt": [text], "response": ["Paris"]})
    blocks, _ = pack(documents.select_columns("text"), tokenizer, 1)
    rows, _ = encode_pairs(documents, tokenizer, 64, PairArguments("prompt", "response", eos="none"))
    (row,) = rows
    model = random_model(len(tokenizer), 64, 0.3, mask_token_id=tokenizer.mask_token_id)
    pipeline = make_pipeline(model, tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    (sampled,) = pipeline(prompt=text, length=len(expected) + 2, num_inference_steps=1, output_type="ids").sequences
    found = {
        "documents": [ids[0] for ids in blocks["input_ids"]],
        "pairs": [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100],
        "prompts": sampled.tolist()[: len(expected)],
        "samples": checked_token_ids([text], tokenizer, batch_size=1, max_length=None)[0],
    }
    assert {name: ids[: len(expected)] for name, ids in found.items()} == dict.fromkeys(found, expected)
    assert len(found["pairs"]) == len(expected)


def test_ids_are_those_of_a_call_of_the_tokenizer(tokenizer):
    texts = ["", *CORPUS[:2], " ".join(CORPUS[:2]), "Ünïcödé 日本 \U0001f600", f"a\n\n  b {MARKER}{MARKER}"]
    if depends_on_place(tokenizer):
        texts.pop()  # between markers, its segments are encoded one by one
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer.backend_tokenizer.enable_truncation(2)
        tokenizer.backend_tokenizer.enable_padding(length=50)
    assert encode_texts(tokenizer, texts) == expected


def test_a_class_that_encodes_in_its_own_way_is_asked():
    class Shouting(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *args, **kwargs):
            return super()._encode_plus([one.upper() for one in text], *args, **kwargs)

    tokenizer = Shouting(tokenizer_object=build_byte_tokenizer().backend_tokenizer, mask_token="[MASK]")
    assert encode_texts(tokenizer, ["ab"]) == [[*b"AB"]]


def test_which_kinds_depend_on_the_place():
    found = {name: depends_on_place(make()) for name, make in KINDS.items()}
    independent = {"bytes", "Python", "byte-level", "metaspace never"}
    assert {name for name, depends in found.items() if not depends} == independent
    assert not depends_on_place(build_text8_tokenizer())


@only(*TO_THE_LETTER)
def test_continuations_decode_with_their_space(tokenizer):
    for text in (" Paris", "Paris"):
        (ids,) = encode_texts(tokenizer, [text], after=[""])
        assert decode_continuation(tokenizer, ids) == text
