# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Suppressed ids and logits processors: in every sampler, for MD4's own models and others."""

from types import SimpleNamespace

import pytest
import torch
from test_scheduling import DRAWS, LEAST_P, p_value
from tiny import quiet, random_image_model, random_model, seeded
from toy import ToyWorld
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler
from md4_hf.core.masked_diffusion import suppress_mask


VOCAB, MASK, LENGTH = 6, 6, 10
SUPPRESSED = [1, 4]


class Denoiser(torch.nn.Module):
    """A denoiser of one's own that prefers the mask and a suppressed id."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(mask_token_id=MASK, vocab_size=VOCAB + 1, max_position_embeddings=LENGTH)
        self.logits = torch.nn.Parameter(torch.tensor([0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 9.0]))

    def forward(self, input_ids, timesteps=None, class_labels=None, attention_mask=None, position_mask=None):
        return SimpleNamespace(logits=self.logits.expand(int(position_mask.sum()), -1))


def text_model(**options):
    return random_model(VOCAB + 1, LENGTH, std=0.3, **options)


SAMPLERS = {
    "planned": (text_model, {}, {}),
    "step by step": (text_model, {}, {"callback_on_step_end": lambda *given: {}}),
    "blocks": (text_model, {"time_conditioning": False}, {"block_length": 4, "length": 25}),
    "genmd4": (text_model, {"learn_masking_schedule": True, "masking_schedule": "poly"}, {}),
    "guided": (text_model, {"num_classes": 3, "class_dropout": 0.1}, {"class_labels": 1, "guidance_scale": 3.0}),
    "images": (lambda **options: random_image_model(VOCAB, 4), {}, {}),
    "a denoiser of one's own": (Denoiser, {}, {}),
    "greedy": (text_model, {}, {"temperature": 0.0}),
    "nucleus": (text_model, {}, {"top_p": 0.5, "top_k": 3}),
}


def sampler(name):
    """A function of a call's further arguments that draws 20 samples with this sampler, as one row of ids."""
    make, options, call = SAMPLERS[name]
    pipe = quiet(MaskedDiffusionPipeline(make(**options), MaskedDiffusionScheduler(num_inference_steps=5)))
    call = {"num_samples": 20, "output_type": "ids", **call}
    return lambda **arguments: pipe(**call, generator=seeded(), **arguments).sequences.flatten()


@pytest.mark.parametrize("name", SAMPLERS)
def test_suppressed_ids_are_never_drawn(name):
    draw = sampler(name)
    drawn = set(draw(suppress_tokens=SUPPRESSED).tolist())
    assert not drawn & {*SUPPRESSED, MASK}
    assert set(draw().tolist()) & set(SUPPRESSED), "without it they are"
    if name != "greedy":
        assert len(drawn) > 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_processors_of_transformers_do_the_same(name):
    draw = sampler(name)
    expected = draw(suppress_tokens=SUPPRESSED)
    processor = SuppressTokensLogitsProcessor(SUPPRESSED)
    for given in (processor, [processor], LogitsProcessorList([processor]), LogitsProcessorList([processor] * 2)):
        assert torch.equal(draw(logits_processor=given), expected)
    assert torch.equal(draw(logits_processor=LogitsProcessorList()), draw())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_processor_cannot_bring_back_the_mask_or_what_is_suppressed(name):
    def prefer(input_ids, logits):
        return torch.full_like(logits, 0.0).index_fill(-1, torch.tensor([MASK, 1]), 1e4)

    assert not set(sampler(name)(logits_processor=prefer, suppress_tokens=[1]).tolist()) & {MASK, 1}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_processor_sees_the_row_of_each_position(name):
    """One that forbids what the row already has gives each row different tokens, as far as they open one by one."""
    seen = []

    def look(input_ids, logits):
        seen.append(input_ids)
        assert len(input_ids) == len(logits) and logits.shape[1] == VOCAB + 1 and logits.dtype == torch.float32
        assert (input_ids == MASK).any(dim=1).all(), "the position itself is still masked"
        return logits

    draw = sampler(name)
    assert torch.equal(draw(logits_processor=look), draw())
    lengths = {ids.shape[1] for ids in seen}
    assert lengths == ({4, 8, 12, 16, 20, 24, 25} if name == "blocks" else {16} if name == "images" else {LENGTH})


def test_a_processor_sees_the_tokens_that_were_drawn_before():
    """Never the token that lies to the left: with one position open at a time, no two neighbours are equal."""

    def no_repetition(input_ids, logits):
        given = torch.nn.functional.one_hot(input_ids, VOCAB + 1).sum(dim=1) > 0
        return logits.masked_fill(given, -torch.inf)

    pipe = quiet(MaskedDiffusionPipeline(text_model(time_conditioning=False), MaskedDiffusionScheduler()))
    call = {"input_ids": torch.full((30, VOCAB - 1), MASK), "output_type": "ids", "logits_processor": no_repetition}
    for arguments in ({"num_inference_steps": 100_000}, {"block_length": 1, "num_inference_steps": 1}):
        for row in pipe(**call, **arguments, generator=seeded()).sequences:
            assert len(set(row.tolist())) == VOCAB - 1


@pytest.mark.parametrize("name", ["suppress_tokens", "logits_processor"])
def test_samples_have_the_distribution_of_the_chain_with_such_logits(name):
    world = ToyWorld()
    model = random_model(world.vocab + 1, world.length, std=0.5, time_conditioning=False).eval()
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=4)))
    bias = torch.linspace(-1.0, 1.0, world.vocab + 1)

    def logits_of(states):
        with torch.no_grad():
            logits = model(states).logits
        return (suppress_mask(logits, 1) if name == "suppress_tokens" else logits + bias).double()

    given = {"suppress_tokens": [1]} if name == "suppress_tokens" else {"logits_processor": lambda ids, x: x + bias}
    expected = world.exact_chain(logits_of, pipe.scheduler.unmask_probabilities())
    sample = pipe(num_samples=DRAWS // 4, generator=seeded(2), output_type="ids", **given).sequences
    assert p_value(world, sample, expected) > LEAST_P


def test_a_prompt_keeps_the_ids_that_are_not_drawn():
    pipe = quiet(MaskedDiffusionPipeline(text_model(), MaskedDiffusionScheduler()))
    ids = pipe(input_ids=[[1, MASK, 4, MASK]], suppress_tokens=SUPPRESSED, output_type="ids").sequences[0].tolist()
    assert ids[0] == 1 and ids[2] == 4 and not {ids[1], ids[3]} & {*SUPPRESSED, MASK}


def test_logits_of_a_callback_are_suppressed_too():
    pipe = quiet(MaskedDiffusionPipeline(text_model(), MaskedDiffusionScheduler(num_inference_steps=3)))

    def prefer(pipeline, step, t, tensors):
        return {"logits": torch.zeros_like(tensors["logits"]).index_fill(-1, torch.tensor([1]), 50.0)}

    names = {"callback_on_step_end": prefer, "callback_on_step_end_tensor_inputs": ["logits"]}
    ids = pipe(num_samples=4, output_type="ids", suppress_tokens=[1], **names).sequences
    assert not (ids == 1).any()


def test_logits_of_md4s_own_models_are_suppressed_once(monkeypatch):
    model = text_model(unused_token_ids=[[4, 6]])
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=2)))
    pipe(output_type="ids")
    assert not len(pipe._token_filter.ids)
    ids = pipe(num_samples=20, output_type="ids", logits_processor=lambda ids, logits: logits * 0.0).sequences
    assert set(ids.unique().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_processor_that_leaves_nothing_is_an_error(temperature):
    pipe = quiet(MaskedDiffusionPipeline(text_model(), MaskedDiffusionScheduler(num_inference_steps=2)))
    only_one = {"logits_processor": lambda ids, x: x.index_fill(-1, torch.tensor([0, 2, 3, 4, 5]), -torch.inf)}
    with pytest.raises(ValueError, match="must be finite, with a token to draw"):
        pipe(suppress_tokens=[1], temperature=temperature, output_type="ids", **only_one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suppress_tokens": [7]}, r"`suppress_tokens` must be a list of ids in \[0, 7\), got \[7\]"),
        ({"suppress_tokens": [-1]}, r"in \[0, 7\), got \[-1\]"),
        ({"suppress_tokens": [[1]]}, r"in \[0, 7\), got \[\[1\]\]"),
        ({"suppress_tokens": 3}, r"in \[0, 7\), got 3"),
        ({"suppress_tokens": ["e"]}, r"in \[0, 7\), got \['e'\]"),
        ({"suppress_tokens": [0.5]}, r"in \[0, 7\), got \[0.5\]"),
        ({"suppress_tokens": [True]}, r"in \[0, 7\), got \[True\]"),
        ({"suppress_tokens": [0, 1, 2, 3, 4, 5]}, "`suppress_tokens` must leave a token to draw, got all 6 of them"),
        ({"logits_processor": 3}, "`logits_processor` must be a callable of .* or a list of them, got 3"),
        ({"logits_processor": [3]}, r"or a list of them, got \[3\]"),
    ],
)
def test_bad_arguments_are_named_before_any_work(monkeypatch, arguments, message):
    pipe = quiet(MaskedDiffusionPipeline(text_model(), MaskedDiffusionScheduler()))
    monkeypatch.setattr(pipe.model, "forward", None)
    with pytest.raises(ValueError, match=message):
        pipe(output_type="ids", **arguments)


@pytest.mark.parametrize("processor", [lambda ids, logits: None, lambda ids, logits: logits[:1, :2]])
def test_a_processor_returns_logits_of_their_shape(processor):
    pipe = quiet(MaskedDiffusionPipeline(text_model(), MaskedDiffusionScheduler(num_inference_steps=1)))
    with pytest.raises(ValueError, match="`logits_processor` must return logits of shape"):
        pipe(output_type="ids", logits_processor=processor)
