# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""What can be done on the page, without the page: texts, gaps, answers, images, and the settings offered for each."""

import html
import re

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import random_image_model, random_model, row_generators, with_normal_weights

from md4_hf import (
    MD4Config,
    MD4ForCausalLM,
    MD4ForDiscreteDiffusion,
    build_byte_tokenizer,
    build_text8_tokenizer,
    make_pipeline,
)
from md4_hf.page.controls import arguments_of, class_control, guidance_control, sampler_controls, seed_of
from md4_hf.page.pictures import ImageActions, box_of
from md4_hf.page.text_view import framed, with_gap
from md4_hf.page.texts import TextActions


LENGTH, STEPS = 48, 6
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content + (eos_token if m.role == 'assistant' else '') + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}


def text_pipeline(template=None, **kwargs):
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    return make_pipeline(random_model(len(tokenizer), LENGTH, std=0.2, time_conditioning=False, **kwargs), tokenizer)


@pytest.fixture(scope="module")
def texts():
    return TextActions(text_pipeline(TEMPLATE))


@pytest.fixture(scope="module")
def images():
    return ImageActions(make_pipeline(random_image_model(4, [8, 6], num_classes=3, class_dropout=0.1)))


def text_of(shown):
    """The text of rows of HTML."""
    rows = re.findall(r'<div class="md4-text">(.*?)</div>', shown, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]+>", "", row)) for row in rows]


# Texts ----------------------------------------------------------------------------------------------------------------


def test_texts_are_those_of_the_pipeline_with_this_seed(texts):
    *_, (shown, note, replay) = texts.sample("a<b ", seed="3", num_samples=2, length=20, num_inference_steps=STEPS)
    generator = row_generators(3, 2)
    expected = texts.pipeline("a<b ", num_samples=2, length=20, num_inference_steps=STEPS, generator=generator)
    pieces = [texts.pipeline.tokenizer.decode(ids, skip_special_tokens=False) for ids in expected.sequences]
    assert text_of(shown) == pieces and "<b " not in shown
    assert "seed 3" in note and "done" in note and "slider" in replay


@pytest.mark.parametrize("color_by", ["step", "confidence"])
def test_tokens_have_step_and_probability(texts, color_by):
    *_, (shown, _, _) = texts.infill("ab<mask:5>", seed=0, color_by=color_by, num_inference_steps=STEPS)
    assert shown.count('class="given"') == 2 and len(re.findall(r"step \d of 6 · probability [01]\.\d{3}", shown)) == 5


@pytest.mark.parametrize("text", ["", "no gap", "mask:3"])
def test_a_text_without_gaps_is_refused(texts, text):
    with pytest.raises(ValueError, match="must have a gap such as <mask:12>"):
        next(texts.infill(text))


def test_errors_are_those_of_the_pipeline(texts):
    with pytest.raises(ValueError, match="`length`"):
        next(texts.sample(length=LENGTH + 1))


@pytest.mark.parametrize(
    ("text", "selected", "expected"),
    [
        ("the value of", "value", "the <mask:5> of"),
        ("the value", "the value", "<mask:9>"),
        ("😀 is 😀!", "😀!", "😀 is <mask:5>"),
        ("a <mask:3> b", "b", "a <mask:3> <mask:1>"),
    ],
)
def test_a_selection_becomes_a_gap_of_its_tokens(text, selected, expected):
    start = len(text[: text.rindex(selected)].encode("utf-16-le")) // 2
    end = start + len(selected.encode("utf-16-le")) // 2
    assert with_gap(text, start, end, build_byte_tokenizer()) == expected


def test_a_gap_of_a_word_takes_its_space_where_that_is_part_of_the_token():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"the": 0, "Ġvalue": 1, "Ġof": 2, "Ġ": 3, "[UNK]": 4, "<mask>": 5}
    vocab |= {character: number for number, character in enumerate("thevaluof", start=6) if character not in vocab}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "v"), ("Ġv", "a"), ("Ġva", "l"), ("Ġval", "u"), ("Ġvalu", "e")]
    vocab |= {word: 30 + number for number, word in enumerate(("th", "Ġv", "Ġva", "Ġval", "Ġvalu"))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>", unk_token="[UNK]")
    assert with_gap("the value", 4, 9, tokenizer) == "the<mask:1>"


@pytest.mark.parametrize("place", [(0, 0), (3, 2), (0, 99), (-1, 2)])
def test_no_selection_is_no_gap(place):
    with pytest.raises(ValueError, match="Select some text"):
        with_gap("text", *place, build_byte_tokenizer())


def test_answers_are_those_of_the_pipeline(texts):
    messages = [{"role": "user", "content": "hi"}]
    how = {"max_new_tokens": 8, "num_inference_steps": STEPS}
    found = list(texts.answer(messages, seed=1, **how))
    (expected,) = texts.pipeline(messages=messages, generator=row_generators(1, 1), **how).texts
    assert found[-1][0] == [*messages, {"role": "assistant", "content": expected}] and "seed 1" in found[-1][1]


def test_a_long_conversation_loses_its_oldest_turns_in_what_the_model_reads(texts):
    messages = [{"role": role, "content": "x" * 12} for role in ("user", "assistant", "user")]
    *_, (shown, note) = texts.answer(messages, seed=1, max_new_tokens=16, num_inference_steps=2)
    assert shown[:3] == messages and "the oldest 1 turn left out" in note
    with pytest.raises(ValueError, match="A message must have at most 32 tokens"):
        next(texts.answer([{"role": "user", "content": "x" * 99}], max_new_tokens=16))


def test_examples_that_the_tokenizer_cannot_read_are_left_out():
    tokenizer = build_text8_tokenizer()
    pipeline = make_pipeline(random_model(len(tokenizer), LENGTH, std=0.2), tokenizer)
    examples = ["the <mask:3>", "the <mask:3> is <mask:2> a", "<mask:4>", "The <mask:3>", "is <mask:3>."]
    assert TextActions(pipeline, examples).examples == examples[:3]


def test_a_model_without_tokenizer_samples_ids():
    actions = TextActions(make_pipeline(random_model(9, 12, std=0.2)))
    assert not actions.can_infill and not actions.can_chat and actions.examples == []
    *_, (shown, _, _) = actions.sample(seed=0, num_inference_steps=2)
    assert len(text_of(shown)[0].split()) == 12


def test_a_page_within_the_page_is_escaped():
    page = '<!DOCTYPE html>"&'
    assert html.unescape(re.search(r'srcdoc="(.*?)"', framed(page))[1]) == page and framed("") == ""


# Images ---------------------------------------------------------------------------------------------------------------


def test_images_are_those_of_the_pipeline_with_this_seed(images):
    *_, (shown, note, replay) = images.sample(seed=2, num_inference_steps=STEPS, class_labels="1", guidance_scale=2.0)
    how = {"num_inference_steps": STEPS, "class_labels": 1, "guidance_scale": 2.0, "generator": row_generators(2, 1)}
    (expected,) = images.pipeline(**how).images
    assert shown.size == tuple(side * images.enlarge for side in images.size)
    assert np.array_equal(shown.resize(images.size, 0), expected)
    assert "seed 2" in note and "slider" in replay


def test_a_filled_part_leaves_the_rest(images):
    picture = images.one(seed=0, num_inference_steps=2)
    box = (1, 2, 4, 6)
    *_, (shown, _, _) = images.inpaint(picture, box, seed=0, num_inference_steps=STEPS)
    given, found = (np.asarray(x.resize(images.size, 0)) for x in (picture, shown))
    outside = np.ones_like(given, dtype=bool)
    outside[2:6, 1:4] = False
    assert (given == found)[outside].all() and not (given == found).all()


@pytest.mark.parametrize(("given", "missing"), [((None, (0, 0, 1, 1)), "image"), (("picture", None), "part")])
def test_a_picture_and_a_part_are_needed(images, given, missing):
    picture = PIL.Image.new("L", images.size) if given[0] else None
    with pytest.raises(ValueError, match=f"{missing}.* is needed"):
        next(images.inpaint(picture, given[1]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "P"])
def test_pictures_of_any_kind_fit(images, mode):
    fitted = images.fitted(PIL.Image.new(mode, (90, 40), 1))
    assert (fitted.size, fitted.mode) == (images.size, "L")
    *_, (shown, _, _) = images.inpaint(fitted, images.part("middle"), seed=0, num_inference_steps=1)
    assert shown.size == images.shown(fitted).size


def test_two_clicks_mark_a_part(images):
    width, height = images.shown(PIL.Image.new("L", images.size)).size
    corners = [images.pixel((width - 1, 0)), images.pixel((0, height - 1))]
    assert box_of(corners) == (0, 0, *images.size)
    assert images.pixel((width + 5, -3)) == (images.size[0] - 1, 0)
    marked = images.shown(PIL.Image.new("L", images.size), box_of([(2, 3)]))
    tinted = (np.asarray(marked).max(axis=2) > 0).sum()
    assert tinted == images.enlarge**2


# Settings -------------------------------------------------------------------------------------------------------------


def baseline(model_class, **kwargs):
    tokenizer = build_byte_tokenizer()
    config = MD4Config(vocab_size=len(tokenizer), **SIZES, **kwargs)
    return make_pipeline(with_normal_weights(config, 0.2, model_class=model_class), tokenizer)


def names(pipeline):
    return [control.name for control in sampler_controls(pipeline)]


def test_settings_are_those_that_the_pipeline_takes():
    masked = text_pipeline()
    causal = baseline(MD4ForCausalLM, is_causal=True)
    discrete = baseline(MD4ForDiscreteDiffusion, baseline="d3pm-absorb")
    assert names(masked) == ["num_inference_steps", "temperature", "top_p", "order"]
    assert names(causal) == ["temperature", "top_p"]
    assert names(discrete) == ["num_inference_steps", "temperature", "top_p"]
    for pipeline in (masked, causal, discrete):
        defaults = {control.name: control.value for control in sampler_controls(pipeline)}
        *_, (_, note, _) = TextActions(pipeline).sample("ab", seed=0, length=12, **defaults)
        assert "done" in note
    assert not TextActions(causal).can_infill


def test_defaults_are_those_of_the_scheduler():
    pipeline = text_pipeline()
    pipeline.scheduler = pipeline.scheduler.with_options(order="confidence", temperature=0.5, top_p=0.9)
    pipeline.scheduler.set_timesteps(7)
    found = {control.name: control.value for control in sampler_controls(pipeline)}
    assert (found["order"], found["temperature"], found["top_p"]) == ("confidence", 0.5, 0.9)


def test_classes_are_offered_where_there_are_any(images):
    assert class_control(images.pipeline).choices == ("any", "0", "1", "2")
    assert guidance_control(images.pipeline).value == 1
    assert class_control(text_pipeline()) is None and guidance_control(text_pipeline()) is None
    assert arguments_of({"class_labels": "any", "top_p": None, "x": 1}) == {"x": 1}


def test_a_seed_is_a_whole_number_or_new():
    assert seed_of(" 12 ") == 12 and 0 <= seed_of("") < 2**31 and 0 <= seed_of(None) < 2**31
    for text in ("-1", "1.5", "x", str(2**31)):
        with pytest.raises(ValueError, match="`seed`"):
            seed_of(text)


def test_torch_is_asked_for_no_global_noise(texts):
    state = torch.get_rng_state()
    list(texts.sample(seed=0, num_inference_steps=2))
    assert torch.equal(state, torch.get_rng_state())
