# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`generate` of the models: the draws of the pipeline, laid out as transformers lays out its own."""

import inspect

import pytest
import torch
from diffusers import BlockRefinementScheduler
from test_causal import causal_model
from tiny import quiet, random_image_model, random_model, seeded, with_normal_weights
from transformers import AutoModel, BertConfig, GPT2Config

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4Config, MD4Model, make_pipeline
from md4_hf.core.reverse_steps import DRAW_OPTIONS, SAMPLER_OPTIONS


MASK, LENGTH, EOS, PAD = 27, 16, 5, 3
PROMPTS = [[1, 2, 9, 4], [7], [8, 9]]
OPTIONS = [
    {},
    {"order": "confidence", "temperature": 0.7, "top_k": 9},
    {"remasking": "cap", "eta": 0.3},
    {"corrector": "gibbs", "corrector_steps": 1, "top_p": 0.9},
    {"block_length": 3, "use_cache": False, "order": "threshold"},
    {"block_length": 3},
    {"guidance_scale": 1.5, "suppress_tokens": [1]},
]


@pytest.fixture(scope="module")
def model():
    return random_model(MASK + 1, LENGTH, std=0.2, time_conditioning=False).eval().double()


def backbone(kind):
    sizes = {"vocab_size": MASK + 1, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "bert":
        language_model = BertConfig(vocab_size=MASK + 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                    intermediate_size=16, max_position_embeddings=LENGTH)  # fmt: skip
    else:
        language_model = GPT2Config(**sizes, n_embd=16, n_layer=1, n_head=2, n_positions=LENGTH)
        language_model.is_causal = False
    return with_normal_weights(MD4Config(vocab_size=MASK + 1, backbone="auto", backbone_config=language_model), 0.3)


def from_pipeline(model, rows, steps=256, **arguments):
    """Sequences of the pipeline, with the same seed."""
    scheduler = MaskedDiffusionScheduler.for_model(model.config, num_inference_steps=steps)
    pipe = quiet(make_pipeline(model, scheduler=scheduler))
    return pipe(input_ids=rows, generator=seeded(3), output_type="ids", **arguments).sequences


def padded(rows, side, value=PAD):
    """A batch of prompts, and its attention mask."""
    to_length = {"batch_first": True, "padding_side": side}
    rows = [torch.tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, padding_value=value, **to_length)
    return ids, torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], **to_length)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_new_tokens_are_those_of_the_pipeline_wherever_the_padding_is(model, options, side):
    expected = from_pipeline(model, PROMPTS, gen_length=8, num_inference_steps=5, **options)
    ids, attention_mask = padded(PROMPTS, side)
    found = model.generate(ids, attention_mask, max_new_tokens=8, num_inference_steps=5, seed=3, **options)
    assert found.shape == (3, 12) and torch.equal(found[:, :4], ids) and (found != MASK).all()
    for row, other in zip(found, expected, strict=True):
        assert torch.equal(row[4:], other[-8:])
    lists = model.generate(PROMPTS, max_new_tokens=8, num_inference_steps=5, seed=3, pad_token_id=PAD, **options)
    assert torch.equal(lists[:, 4:], found[:, 4:]) and torch.equal(lists[:, :4], padded(PROMPTS, "left")[0])
    generators = [seeded(number) for number in range(3)]
    by_generators = model.generate(ids, attention_mask, max_new_tokens=8, generator=generators, **options)
    alone = model.generate([PROMPTS[1]], max_new_tokens=8, generator=[seeded(1)], **options)
    if options.get("use_cache", True) and "block_length" in options:
        return  # blocks of all rows begin together
    assert torch.equal(by_generators[1, 4:], alone[0, 1:])


@pytest.mark.parametrize("kind", ["md4", "timed", "block", "genmd4", "ddit", "bert", "gpt2", "classes", "causal"])
def test_every_kind_of_model_of_text_generates(kind):
    learned = {"learn_masking_schedule": True, "masking_schedule": "poly"}
    fields = {"md4": {"time_conditioning": False}, "block": {"block_size": 4}, "genmd4": learned}
    fields |= {"ddit": {"backbone": "ddit"}, "classes": {"num_classes": 3, "class_dropout": 0.1}, "timed": {}}
    if kind in fields:
        made = random_model(MASK + 1, LENGTH, std=0.3, **fields[kind]).eval()
    else:
        made = causal_model() if kind == "causal" else backbone(kind).eval()
    vocab, length = made.config.vocab_size, made.config.max_position_embeddings
    rows, steps = [[1, 2], [3]], {} if kind == "causal" else {"num_inference_steps": 3}
    more = {"class_labels": [2, 0], "guidance_scale": 2.0} if kind == "classes" else {}
    found = made.generate(rows, max_new_tokens=5, seed=3, eos_early_stop=False, **steps, **more)
    assert found.shape == (2, 7) and found.max() < vocab - 1
    for row, other in zip(found, from_pipeline(made, rows, gen_length=5, **steps, **more), strict=True):
        assert torch.equal(row[2:], other[-5:])
    whole = made.generate(seed=0, eos_early_stop=False, **steps)
    assert whole.shape == (1, length), "without a prompt, a text of the model's length"


def test_masks_in_a_prompt_are_filled_in(model):
    rows = [[1, MASK, MASK, 2, MASK], [MASK, 4, 4]]
    expected = from_pipeline(model, rows)
    ids, attention_mask = padded(rows, "left")
    found = model.generate(ids, attention_mask, seed=3)
    assert found.shape == ids.shape and found[1, :2].tolist() == [PAD, PAD]
    assert all(torch.equal(row[-len(other) :], other) for row, other in zip(found, expected, strict=True))
    more = model.generate(ids, attention_mask, max_new_tokens=4, seed=3)
    assert more.shape == (2, 9) and (more != MASK).all() and torch.equal(more[0, [0, 3]], ids[0, [0, 3]])


def test_several_sequences_of_a_prompt_follow_each_other(model):
    ids = torch.tensor([[1, 2], [3, 4]])
    found = model.generate(ids, max_new_tokens=6, num_return_sequences=3, seed=3)
    assert torch.equal(found[:, :2], ids.repeat_interleave(3, dim=0)) and len(found.unique(dim=0)) == 6
    assert torch.equal(found, from_pipeline(model, ids, gen_length=6, num_samples=3))


def prefer_eos(input_ids, logits):
    return logits + torch.nn.functional.one_hot(torch.tensor(EOS), MASK + 1) * 4.0


def test_rows_end_with_eos_and_are_padded(model):
    arguments = {"max_new_tokens": 10, "logits_processor": prefer_eos, "seed": 3, "order": "sequential"}
    full = model.generate(PROMPTS, **arguments)
    early = model.generate(PROMPTS, **arguments, eos_token_id=[EOS], pad_token_id=PAD)
    assert full.shape == (3, 14) and early.shape[1] < 14, "columns of padding alone are left out"
    for row, whole in zip(early[:, 4:], full[:, 4:], strict=True):
        end = whole.tolist().index(EOS)
        assert torch.equal(row[: end + 1], whole[: end + 1]) and (row[end + 1 :] == PAD).all()
    on = model.generate(PROMPTS, **arguments, eos_token_id=EOS, eos_early_stop=False)
    assert torch.equal(on[:, 4:], full[:, 4:])


def test_the_scheduler_is_that_of_the_folder_and_the_pipelines(model, tmp_path):
    settings = {"num_inference_steps": 7, "order": "margin", "temperature": 0.5}
    pipe = quiet(MaskedDiffusionPipeline(model.float(), MaskedDiffusionScheduler(**settings)))
    pipe.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    expected = pipe(input_ids=[[1]], gen_length=9, generator=seeded(1), output_type="ids").sequences
    assert torch.equal(again.generate([[1]], max_new_tokens=9, seed=1), expected)
    assert torch.equal(again.generate([[1]], max_new_tokens=9, seed=1, scheduler=pipe.scheduler), expected)
    other = again.generate([[1]], max_new_tokens=9, seed=1, order="random")
    assert not torch.equal(other, expected) and torch.equal(again.generate([[1]], max_new_tokens=9, seed=1), expected)


def test_another_mask_id_and_another_kind_of_scheduler_are_noticed(tmp_path):
    model = random_model(MASK + 1, LENGTH, std=0.2)
    model.generate([[1]], num_inference_steps=2)
    model.resize_token_embeddings(20)  # whose last row becomes the mask's
    assert (model.generate([[1]], num_inference_steps=2, num_return_sequences=9) < 19).all()
    model.save_pretrained(tmp_path)
    BlockRefinementScheduler().save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`scheduler` must be given where another kind is saved .* BlockRefinement"):
        again.generate([[1]])
    refined = again.generate([[1]], scheduler=BlockRefinementScheduler(), num_inference_steps=8, seed=0)
    assert refined.shape == (1, LENGTH) and (refined < 19).all()


def test_it_is_no_generation_mixin_and_its_arguments_are_those_of_the_pipeline(model):
    assert not model.can_generate() and not hasattr(MD4Model, "generate")
    names = {*inspect.signature(model.generate).parameters}
    assert {*SAMPLER_OPTIONS, *DRAW_OPTIONS} <= names
    assert names - {*inspect.signature(MaskedDiffusionPipeline.__call__).parameters} == {
        *("attention_mask", "num_return_sequences", "eos_token_id", "pad_token_id", "tokenizer", "seed", "scheduler")
    }
    assert model.train().generate([[1]], max_new_tokens=2).shape == (1, 3) and model.training
    model.eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, r"`max_new_tokens` must be in \[1, 16\]"),
        ({"max_new_tokens": 13}, "`max_new_tokens` must leave room for the prompt: at most 12 of the model's 16"),
        ({"input_ids": torch.ones(1, 17).long()}, "A prompt must not be longer than the model's 16 tokens, got 17"),
        ({"input_ids": [[28]]}, r"`input_ids` must be in \[0, 28\), got values from 28 to 28"),
        ({"attention_mask": torch.ones(1, 3)}, r"`attention_mask` must have shape \(1, 4\), got \(1, 3\)"),
        (
            {"attention_mask": torch.tensor([[1, 0, 1, 1]])},
            r"`attention_mask` must be 0 at the ends of a row only, got \[1, 0, 1, 1\]",
        ),
        ({"input_ids": [[1]], "attention_mask": torch.ones(1, 1)}, "`attention_mask` must be None with lists of ids"),
        ({"input_ids": None, "attention_mask": torch.ones(1, 1)}, "`attention_mask` must be None without `input_ids`"),
        ({"seed": 1, "generator": seeded()}, "Only one of `generator` and `seed` may be given"),
        ({"seed": 1.5}, r"`seed` must be an integer in \[0, 2\*\*64\), got 1.5"),
        ({"num_return_sequences": 0}, "`num_return_sequences` must be >= 1, got 0"),
        ({"eos_token_id": 99}, r"`eos_token_id` must be one or more ids in \[0, 28\), got 99"),
        ({"pad_token_id": -1}, r"`pad_token_id` must be in \[0, 28\), got -1"),
        ({"eos_early_stop": True}, "`eos_early_stop` needs an EOS token"),
        ({"temperature": -1.0}, "`temperature` must be finite and >= 0, got -1.0"),
        ({"order": "first"}, "`order` must be one of"),
        ({"class_labels": 1}, "`class_labels` must be None: the model is not class-conditional"),
    ],
)
def test_bad_arguments_are_named_before_any_work(model, monkeypatch, arguments, message):
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": torch.tensor([[1, 2, 3, 4]]), **arguments})


def test_arguments_of_transformers_that_are_not_ours_are_named(model):
    for name in ("do_sample", "num_beams", "max_length"):
        with pytest.raises(TypeError, match=name):
            model.generate([[1]], **{name: 3})
    with pytest.raises(ValueError, match="`generate` must be called on a model of text"):
        random_image_model(5, 4).generate()
    with pytest.raises(ValueError, match="`order` must be left out for an autoregressive model, got 'margin'"):
        causal_model().generate([[1]], order="margin")
