# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversations: what the chat template writes, which answers are scored, where they end, what is refused."""

import json

import pytest
import torch
from datasets import Dataset
from tiny import random_model
from transformers import set_seed

from md4_hf import (
    DataArguments,
    DataCollatorForMaskedDiffusion,
    PairArguments,
    build_byte_tokenizer,
    encode_pairs,
    load_pairs,
)
from md4_hf.core.chat_messages import encode_prompt
from md4_hf.data.pairs import find_pair_columns
from md4_hf.data.row_packing import pack_rows, rows_of_lengths


EOS = 256
TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
NEXT = "{% if add_generation_prompt %}<assistant>{% endif %}"
PLAIN = TURN + "\n{% endfor %}" + NEXT
WITH_EOS = TURN + "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}" + NEXT
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{{ '\n' }}{% else %}<{{ m.role }}>{{ m.content }}\n{% endif %}{% endfor %}" + NEXT
)
# Earlier answers are shortened, as templates do that drop the thoughts of all answers but the last.
FORGETFUL = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role == 'user' else m.content[:1] }}\n"
    "{% endfor %}" + NEXT
)
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + PLAIN
TALK = [("user", "a"), ("assistant", "bcd"), ("user", "e"), ("assistant", "fgh")]


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def tokenizer_with(template):
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def encode(*conversations, template=WITH_EOS, block_size=256, **options):
    data = Dataset.from_list([{"messages": messages(*turns)} for turns in conversations])
    arguments = PairArguments(messages_column="messages", **{"eos": "scored", **options})
    return encode_pairs(data, tokenizer_with(template), block_size, arguments)


def text_of(ids):
    return build_byte_tokenizer().decode(ids)


def scored_text(example):
    return text_of([label for label in example["labels"] if label != -100])


END = "<|endoftext|>"


@pytest.mark.parametrize("template", [PLAIN, WITH_EOS, MARKED], ids=["plain", "with_eos", "marked"])
def test_each_answer_is_scored_given_what_was_said_before(template):
    examples, report = encode(TALK, template=template)
    behind = "\n" if template is PLAIN else ""
    assert [scored_text(row) for row in examples] == [f"bcd{behind}{END}", f"fgh{behind}{END}"]
    for row in examples:
        is_prompt = [label == -100 for label in row["labels"]]
        assert is_prompt == sorted(is_prompt, reverse=True), "nothing follows an answer"
    earlier = "bcd" if template is PLAIN else f"bcd{END}"
    assert text_of(examples[1]["input_ids"]).startswith(f"<user>a\n<assistant>{earlier}\n<user>e\n<assistant>fgh")
    assert (report.num_pairs, report.num_rows, report.num_kept) == (2, 1, 2)


@pytest.mark.parametrize("template", [WITH_EOS, MARKED], ids=["prefixes", "marked"])
def test_all_answers_together_are_one_example(template):
    examples, report = encode(TALK, template=template, turns="together")
    (row,) = examples
    assert scored_text(row) == f"bcd{END}fgh{END}"
    assert text_of(row["input_ids"]) == f"<user>a\n<assistant>bcd{END}\n<user>e\n<assistant>fgh{END}"
    assert (report.num_pairs, report.num_scored_tokens) == (1, 8)


@pytest.mark.parametrize("template", [PLAIN, WITH_EOS, MARKED, FORGETFUL])
def test_a_prompt_has_the_ids_that_it_is_sampled_with(template):
    examples, _ = encode(TALK, template=template)
    for row, number in zip(examples, (1, 3), strict=True):
        prompt = encode_prompt(tokenizer_with(template), messages(*TALK[:number]))
        assert row["input_ids"][: len(prompt)] == prompt and set(row["labels"][: len(prompt)]) == {-100}
        assert row["labels"][len(prompt)] != -100


@pytest.mark.parametrize(("eos", "count"), [("padded", 7), ("scored", 1), ("none", 0)])
def test_the_end_of_an_answer_that_the_template_does_not_end(eos, count):
    prompt = len("<user>a\n<assistant>")
    examples, _ = encode(TALK[:2], template=PLAIN, eos=eos, block_size=prompt + len("bcd\n") + 7)
    assert examples[0]["labels"][prompt:] == [*b"bcd\n"] + [EOS] * count


@pytest.mark.parametrize(("eos", "count"), [("padded", 7), ("scored", 1), ("none", 1)])
def test_the_end_that_the_template_writes_is_not_repeated(eos, count):
    prompt = len("<user>a\n<assistant>")
    examples, _ = encode(TALK[:2], eos=eos, block_size=prompt + len("bcd") + 7)
    assert examples[0]["labels"][prompt:] == [*b"bcd"] + [EOS] * count


def test_answers_that_are_empty_or_too_long_are_left_out_and_counted():
    silent = [("user", "a"), ("assistant", " "), ("user", "b"), ("assistant", "c")]
    examples, report = encode(silent, [("user", "?")], [("user", "x" * 99), ("assistant", "d")], block_size=90)
    assert [scored_text(row) for row in examples] == [f"c{END}"]
    assert (report.num_pairs, report.num_rows) == (4, 3)
    assert (report.num_kept, report.num_empty, report.num_too_long) == (1, 2, 1)
    assert report.max_tokens == len("<user>") + 99 + len("\n<assistant>d") + 1
    together, report = encode(silent, turns="together")
    assert scored_text(together[0]) == f"c{END}" and report.num_empty == 0


@pytest.mark.parametrize("turns", ["each", "together"])
def test_a_completion_of_messages_is_scored_and_answers_in_the_prompt_are_not(turns):
    rows = [{"prompt": messages(*TALK[:3]), "completion": messages(TALK[3])}]
    arguments = PairArguments("prompt", "completion", eos="scored", turns=turns)
    examples, report = encode_pairs(Dataset.from_list(rows), tokenizer_with(WITH_EOS), 256, arguments)
    assert [scored_text(row) for row in examples] == [f"fgh{END}"] and report.num_pairs == 1
    assert examples["input_ids"][0] == encode(TALK)[0]["input_ids"][1]


def test_the_name_of_the_mask_is_spelled_out_and_never_masks_a_prompt():
    examples, _ = encode([("user", "[MASK]"), ("assistant", "[MASK]")])
    assert 257 not in examples[0]["input_ids"] and scored_text(examples[0]) == f"[MASK]{END}"
    assert 257 not in encode_prompt(tokenizer_with(PLAIN), messages(("user", "[MASK]")))


BAD = {
    "role": (
        [("robot", "a")],
        PLAIN,
        r"`messages_column`: .* row 2 must have roles among .* got 'robot' in message 0",
    ),
    "forgetful": (TALK, FORGETFUL, r"row 2: the chat template must mark answers .* message 1 in another way"),
    "strict": ([("assistant", "a")], STRICT, r"row 2 must be a conversation that the chat template takes: begin with"),
    "none": (TALK, None, "`tokenizer` must have a chat template to read messages, got none"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_written_names_the_row_and_the_rule(name):
    turns, template, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        encode([("user", "a"), ("assistant", "b")], turns, template=template, turns="together")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"row 1 must be a list of messages \(\{role, content\}\), got \[\]"),
        ([{"role": "user", "content": None}], "row 1 must have a string as content of message 0, got None"),
        ([{"role": "user", "text": "a"}], "row 1 must have a role and a content in message 0"),
        (["hello"], "row 1 must have a role and a content in message 0, got 'hello'"),
        ("hello", "`messages_column` must hold lists of messages, got 'messages' with Value"),
        (3, "`messages_column` must hold lists of messages, got 'messages' with Value"),
    ],
)
def test_what_is_no_conversation_names_the_row_and_the_rule(value, message):
    data = Dataset.from_dict({"messages": [value]})
    with pytest.raises(ValueError, match=message):
        encode_pairs(data, tokenizer_with(PLAIN), 64, PairArguments(messages_column="messages"))


def test_a_prompt_of_messages_needs_a_completion_of_messages():
    data = Dataset.from_dict({"prompt": [messages(("user", "a"))], "completion": ["b"]})
    with pytest.raises(ValueError, match="must both hold strings or both hold messages"):
        encode_pairs(data, tokenizer_with(PLAIN), 64, PairArguments("prompt", "completion"))


# Files ----------------------------------------------------------------------------------------------------------------


def write_rows(folder, rows, suffix):
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows))
    return DataArguments(data=str(path), validation_fraction=0.5)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_conversations_are_read_whatever_else_they_hold(suffix, tmp_path):
    rows = [
        {"messages": [{"content": f"q{n}", "role": "user", "n": n}, {"role": "assistant", "content": "a"}], "id": n}
        for n in range(4)
    ]
    if suffix != ".parquet":
        rows[3]["messages"][0]["n"] = rows[3]["id"] = "three"
    data = write_rows(tmp_path, rows, suffix)
    arguments = find_pair_columns(data, PairArguments())
    assert arguments.columns == {"messages_column": "messages"}
    train, heldout = load_pairs(data, arguments)
    assert [row["messages"] for row in (*train, *heldout)] == [
        messages(("user", f"q{n}"), ("assistant", "a")) for n in range(4)
    ]


def test_a_row_that_is_no_conversation_is_named_by_its_file(tmp_path):
    rows = [{"messages": messages(("user", "a"))}, {"messages": "b"}]
    data = write_rows(tmp_path, rows, ".jsonl")
    with pytest.raises(ValueError, match=r"data\.jsonl.* row 2 must have a list of messages .* 'messages', got 'b'"):
        load_pairs(data, PairArguments(messages_column="messages"))
    with pytest.raises(ValueError, match="`messages_column` must hold lists of messages .* got 'n' with int"):
        load_pairs(write_rows(tmp_path, [{"n": 1}, {"n": 2}], ".jsonl"), PairArguments(messages_column="n"))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "a", "completion": "b", "response": "c"}, {"prompt": "completion"}),
        ({"prompt": "a", "response": "b", "id": 1}, {"prompt": "response"}),
        ({"prompt": messages(("user", "a")), "completion": messages(("assistant", "a"))}, {"prompt": "completion"}),
        ({"text": "a", "messages": []}, {}),
    ],
)
def test_columns_are_found_where_none_are_named(row, columns, tmp_path):
    found = find_pair_columns(write_rows(tmp_path, [row] * 2, ".jsonl"), PairArguments(eos="none"))
    assert found == PairArguments(*next(iter(columns.items()), ()), eos="none")


def test_data_without_known_columns_name_those_that_they_have(tmp_path):
    data = write_rows(tmp_path, [{"question": "a", "answer": "b"}] * 2, ".jsonl")
    with pytest.raises(ValueError, match=r"`data` must have a column `text`, `messages`, .* \['answer', 'question'\]"):
        find_pair_columns(data, PairArguments())
    named = PairArguments("question", "answer")
    assert find_pair_columns(data, named) is named


# Rows of several examples ---------------------------------------------------------------------------------------------


def test_rows_are_as_few_as_best_fit_makes_them_and_hold_every_example_once():
    set_seed(0)
    lengths = torch.randint(1, 17, (500,)).tolist()
    rows = rows_of_lengths(lengths, 16)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 16
    assert len(rows) <= 1.03 * sum(lengths) / 16
    assert rows_of_lengths([9, 7, 8, 8], 16) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="`block_size` must be at least the 9 tokens of an example, got 8"):
        rows_of_lengths([9, 7], 8)


def test_packed_examples_keep_their_ids_labels_and_order():
    examples, _ = encode(TALK, [("user", "x"), ("assistant", "y")])
    rows = pack_rows(examples, 128)
    found = []
    for row in rows:
        documents = torch.tensor(row["document_ids"])
        for number in documents.unique().tolist():
            chosen = (documents == number).nonzero().flatten().tolist()
            found.append({name: [row[name][place] for place in chosen] for name in ("input_ids", "labels")})
    assert len(rows) < len(examples)
    assert sorted(found, key=str) == sorted(examples, key=str)


@pytest.mark.parametrize("block_size", [None, 8])
def test_a_packed_example_has_the_loss_that_it_has_alone(block_size):
    model = random_model(258, 128, std=0.2, block_size=block_size, time_conditioning=False).eval()
    examples, _ = encode(TALK, [("user", "x"), ("assistant", "y")])
    (packed,) = pack_rows(examples, 256)
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]["input_ids"]))
    alone = DataCollatorForMaskedDiffusion(model.config)([examples[i] for i in order])
    place, inputs = 0, {name: [] for name in ("input_ids", "timesteps", "labels")}
    alone["timesteps"] = torch.full_like(alone["timesteps"], 0.5)
    for number, index in enumerate(order):
        length = len(examples[index]["input_ids"])
        assert packed["input_ids"][place : place + length] == examples[index]["input_ids"]
        inputs["input_ids"].append(alone["input_ids"][number, :length])
        inputs["labels"].append(alone["labels"][number, :length])
        place += length
    joined = {name: torch.cat(inputs[name])[None] for name in ("input_ids", "labels")}
    documents = torch.tensor(packed["document_ids"])[None]
    with torch.no_grad():
        expected = model(**alone).token_nelbo.sum()
        found = model(**joined, timesteps=torch.full((1,), 0.5), document_ids=documents).token_nelbo.sum()
    assert expected > 0
    torch.testing.assert_close(found, expected)
