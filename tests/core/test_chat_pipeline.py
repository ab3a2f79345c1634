# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`messages=` of the pipeline: the prompt that the template writes, and the answer without what belongs to the chat."""

import pytest
import torch
from tiny import quiet, random_image_model, random_model, seeded

from md4_hf import build_byte_tokenizer, make_pipeline
from md4_hf.core.chat_messages import encode_prompt
from md4_hf.data.conversations import CHATML


LENGTH, EOS, MASK = 96, 256, 257
PLAIN = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
WITH_EOS = PLAIN.replace("m.content +", "m.content + (eos_token if m.role == 'assistant' else '') +")
HELLO = [{"role": "user", "content": "hi"}]
LONGER = [*HELLO, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"}]


def pipeline_with(template, **kwargs):
    options = {"mask_token_id": MASK, "time_conditioning": False, **kwargs}
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    return quiet(make_pipeline(random_model(258, LENGTH, std=0.2, **options), tokenizer))


def writes(pipeline, text, prompt_length):
    """A processor of logits that lets a row be these ids behind its prompt, and then EOS."""
    ids = [*pipeline.tokenizer(text, add_special_tokens=False)["input_ids"]]
    wanted = torch.tensor(ids + [EOS] * LENGTH)

    def process(input_ids, logits):
        place = (input_ids == MASK).int().argmax(dim=1) - prompt_length
        return torch.zeros_like(logits).scatter(1, wanted[place][:, None], 100.0)

    return process


def answer(pipeline, text, **kwargs):
    prompt = encode_prompt(pipeline.tokenizer, HELLO)
    steps = {"order": "sequential", "temperature": 0.0, "num_inference_steps": 64, **kwargs}
    return pipeline(messages=HELLO, logits_processor=writes(pipeline, text, len(prompt)), **steps)


@pytest.mark.parametrize("block_size", [None, 8])
def test_messages_are_drawn_as_the_ids_that_the_template_writes(block_size):
    pipeline = pipeline_with(WITH_EOS, block_size=block_size)
    prompts = [encode_prompt(pipeline.tokenizer, messages) for messages in (HELLO, LONGER)]
    how = {"num_inference_steps": 4, "max_new_tokens": 20, "num_samples": 2}
    found = pipeline(messages=[HELLO, LONGER], generator=seeded(), **how)
    expected = pipeline(input_ids=prompts, eos_early_stop=True, generator=seeded(), **how)
    assert [ids.tolist() for ids in found.sequences] == [ids.tolist() for ids in expected.sequences]
    for number, text in enumerate(expected.texts):
        prompt = pipeline.tokenizer.decode(prompts[number // 2], skip_special_tokens=True)
        assert prompt + found.texts[number] in (text, text.removesuffix("\n"))


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (PLAIN, "yes\n"),
        (PLAIN, "yes"),
        (WITH_EOS, "yes<|endoftext|>\n"),
        (CHATML, "yes<|im_end|>\n"),
        (CHATML, "yes<|im_end|>and more"),
        (CHATML, "yes"),
    ],
)
def test_an_answer_ends_where_the_template_ends_it_or_with_eos(template, written):
    output = answer(pipeline_with(template), written)
    assert output.texts == ["yes"]
    assert len(output.sequences[0]) == LENGTH, "with the prompt, and EOS tokens behind the end"


def test_an_end_that_is_one_special_token_ends_an_answer():
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model = random_model(260, LENGTH, std=0.2, mask_token_id=MASK, time_conditioning=False)
    output = answer(quiet(make_pipeline(model, tokenizer)), "yes<|im_end|>and more")
    assert output.texts == ["yes"]
    assert output.sequences[0].tolist().count(259) == 2, "of the prompt and of the answer"
    assert EOS in output.sequences[0] and ord("m") not in output.sequences[0][-20:]


def test_stop_strings_of_a_call_end_an_answer_too():
    assert answer(pipeline_with(CHATML), "yes! no", stop_strings="!").texts == ["yes!"]
    assert answer(pipeline_with(CHATML), "yes<|im_end|>!", stop_strings=["!"]).texts == ["yes"]
    with pytest.raises(ValueError, match="`stop_strings` must be one or more strings that are not empty, got 3"):
        answer(pipeline_with(CHATML), "yes", stop_strings=3)


def test_an_answer_is_all_of_the_canvas_where_no_end_is_asked_for():
    pipeline = pipeline_with(WITH_EOS)
    assert answer(pipeline, "a<|endoftext|>b", max_new_tokens=3).texts == ["a"]
    assert answer(pipeline, "a<|endoftext|>b", max_new_tokens=3, eos_early_stop=False).texts == ["ab"]
    shown = answer(pipeline, "a", max_new_tokens=3, eos_early_stop=False, skip_special_tokens=False)
    assert shown.texts == ["a<|endoftext|><|endoftext|>"]


def test_a_block_model_answers_beyond_its_length_until_eos():
    pipeline = pipeline_with(WITH_EOS, block_size=8)
    prompt = len(encode_prompt(pipeline.tokenizer, HELLO))
    text = "0123456789" * 9
    output = answer(pipeline, text, num_inference_steps=8)
    assert output.texts == [text] and prompt + len(text) > LENGTH
    assert len(output.sequences[0]) == prompt + LENGTH


def test_a_tuple_and_ids_have_the_prompt_too():
    pipeline = pipeline_with(PLAIN)
    prompt = encode_prompt(pipeline.tokenizer, HELLO)
    sequences, texts = pipeline(messages=HELLO, num_inference_steps=2, return_dict=False)
    assert sequences[0, : len(prompt)].tolist() == prompt and len(texts) == 1
    assert pipeline(messages=HELLO, num_inference_steps=2, output_type="ids").texts is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": HELLO, "prompt": "hi"}, "Only one of `messages`, `prompt` and `input_ids` may be given"),
        ({"messages": "hi"}, "`messages` must be a list of messages, or a list of these, got 'hi'"),
        ({"messages": []}, r"`messages` must be a list of messages \(\{role, content\}\), got \[\]"),
        ({"messages": [HELLO, []]}, r"`messages\[1\]` must be a list of messages"),
        ({"messages": [{"role": "user"}]}, "`messages` must have a role and a content in message 0"),
        ({"messages": [HELLO, [{"role": "me", "content": ""}]]}, r"`messages\[1\]` must have roles among .* got 'me'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "without lone surrogates as content of message 0"),
        ({"messages": HELLO, "max_new_tokens": 96}, "`max_new_tokens` must leave room for the prompt: at most 89 of"),
    ],
)
def test_what_cannot_be_answered_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline_with(PLAIN)(**arguments)


def test_messages_need_text_a_tokenizer_and_a_template():
    with pytest.raises(ValueError, match="`tokenizer` must have a chat template to read messages"):
        pipeline_with(None)(messages=HELLO)
    with pytest.raises(ValueError, match="`messages` needs a pipeline with a tokenizer"):
        make_pipeline(random_model(258, LENGTH, std=0.2))(messages=HELLO)
    with pytest.raises(ValueError, match="`messages` must be None: the model is not one of text"):
        make_pipeline(random_image_model(4, 4))(messages=HELLO)
