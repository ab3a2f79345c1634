# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Guidance of text by its prompt and by a classifier: the formula, and p(x | y) on an enumerable world."""

from types import SimpleNamespace

import pytest
import torch
from test_scheduling import DRAWS, LEAST_P, p_value
from tiny import quiet, random_model, seeded, with_normal_weights
from toy import ToyWorld

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4Config


VOCAB, LENGTH = 27, 12
PROMPTS = [[1, 2, 3, VOCAB, 4, VOCAB, VOCAB, 5], [7, 8, VOCAB, VOCAB, VOCAB]]


class ExactDenoiser(torch.nn.Module):
    """The exact denoiser of an enumerable world, with the contract of a model."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.config = SimpleNamespace(
            mask_token_id=world.mask, vocab_size=world.vocab + 1, max_position_embeddings=world.length
        )

    def forward(self, input_ids, timesteps, position_mask, **_):
        return SimpleNamespace(logits=self.world.exact_logits(input_ids)[position_mask])


@pytest.fixture(scope="module")
def model():
    return random_model(VOCAB + 1, LENGTH, std=0.3, time_conditioning=False).eval()


def pipeline(model, **scheduler):
    return quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(**{"num_inference_steps": 1, **scheduler})))


# By the prompt --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_the_unconditional_branch_sees_the_prompt_masked(model, scale):
    prompt = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        with_prompt, without = (model(ids).logits for ids in (prompt, torch.full_like(prompt, VOCAB)))
    best = (without + scale * (with_prompt - without))[..., :VOCAB].argmax(-1)
    arguments = {"temperature": 0.0, "guidance_scale": scale, "output_type": "ids"}
    found = pipeline(model)(input_ids=prompt, **arguments).sequences
    assert torch.equal(found, torch.where(prompt == VOCAB, best, prompt))
    in_batch = pipeline(model)(input_ids=PROMPTS, **arguments).sequences
    assert torch.equal(in_batch[0], found[0]), "padding is hidden"


def test_cached_keys_of_the_unconditional_branch_are_those_of_masks(model):
    """One layer has keys of single tokens, so that a cached prompt is what it is in the whole sequence."""
    config = MD4Config(**{**model.config.to_diff_dict(), "num_hidden_layers": 1})
    one_layer = with_normal_weights(config, 1.0, 1).eval()
    arguments = {"input_ids": [PROMPTS[1]], "length": 8, "guidance_scale": 4.0, "temperature": 0.0}
    whole, blocks = (
        pipeline(one_layer)(**arguments, output_type="ids", **more).sequences for more in ({}, {"block_length": 6})
    )
    assert torch.equal(whole, blocks)
    unguided = pipeline(one_layer)(**{**arguments, "guidance_scale": 1.0}, output_type="ids").sequences
    assert not torch.equal(whole, unguided)


@pytest.mark.parametrize("options", [{}, {"order": "confidence"}, {"remasking": "cap", "eta": 0.3}])
def test_a_scale_of_one_is_no_guidance_and_rows_stay_independent(model, options):
    pipe = pipeline(model, num_inference_steps=8, **options)
    arguments = {"output_type": "ids", "generator": [seeded(1), seeded(2)]}
    guided = pipe(input_ids=PROMPTS, guidance_scale=2.0, **arguments).sequences
    alone = pipe(input_ids=PROMPTS[1:], guidance_scale=2.0, output_type="ids", generator=[seeded(2)]).sequences
    assert torch.equal(alone[0], guided[1])
    for row, prompt in zip(guided, PROMPTS, strict=True):
        given = torch.tensor(prompt) != VOCAB
        assert torch.equal(row[given], torch.tensor(prompt)[given]) and (row != VOCAB).all()


def test_guidance_without_a_condition_is_refused(model):
    with pytest.raises(ValueError, match="`guidance_scale` must be 1 without `class_labels` and without a prompt"):
        pipeline(model)(guidance_scale=2.0, output_type="ids")


# By a classifier ------------------------------------------------------------------------------------------------------


def exact_classifier(world, p_y):
    """log p(y | x_t) of one-hot sequences, where p(y | x0) is given for each sequence of the world."""

    def log_probability(one_hot, t):
        xt = one_hot.argmax(-1)
        agrees = ((xt[:, None] == world.sequences) | (xt[:, None] == world.mask)).all(-1)
        weights = agrees * world.probability
        return (weights @ p_y / weights.sum(-1)).log()

    return log_probability


@pytest.mark.parametrize("order", ["random", "sequential", "confidence"])
def test_one_token_at_a_time_guided_samples_have_the_conditional_distribution(order):
    world = ToyWorld()
    p_y = torch.rand(len(world.sequences), generator=seeded(5), dtype=torch.float64).square()
    steps = {"num_inference_steps": 4000} if order == "random" else {"num_inference_steps": world.length}
    pipe = pipeline(ExactDenoiser(world), order=order, timestep_grid="uniform", **steps)
    arguments = {"num_samples": DRAWS // 4, "generator": seeded(0), "output_type": "ids"}
    sample = pipe(classifier=exact_classifier(world, p_y), **arguments).sequences
    assert p_value(world, sample, world.probability * p_y / (world.probability @ p_y)) > LEAST_P
    assert p_value(world, sample, world.probability) < 1e-6, "it is not the unguided distribution"


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_a_log_linear_classifier_is_known_by_its_gradient(model, scale):
    weight = torch.randn(VOCAB + 1, generator=seeded(3))
    arguments = {"input_ids": PROMPTS, "classifier": lambda x, t: (x @ weight).sum(-1), "classifier_scale": scale}
    arguments |= {"output_type": "ids", "num_inference_steps": 8}
    exact, first_order = (
        pipeline(model)(**arguments, classifier_method=name, generator=seeded(0)).sequences
        for name in ("exact", "first_order")
    )
    assert all(torch.equal(*pair) for pair in zip(exact, first_order, strict=True))
    plain = pipeline(model)(input_ids=PROMPTS, output_type="ids", num_inference_steps=8, generator=seeded(0)).sequences
    assert all(torch.equal(*pair) for pair in zip(exact, plain, strict=True)) == (scale == 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classifier": 3}, "`classifier` must be a function of sequences and times, got 3"),
        ({"classifier": lambda x, t: x}, r"`classifier` must return a tensor of shape \(\d+,\)"),
        ({"classifier": print, "classifier_scale": -1.0}, "`classifier_scale` must be finite and >= 0, got -1.0"),
        ({"classifier": print, "classifier_method": "best"}, r"must be one of \['exact', 'first_order'\], got 'best'"),
        ({"classifier": print, "block_length": 4}, "`classifier` must be None with `block_length`"),
    ],
)
def test_bad_arguments_are_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(model)(output_type="ids", **arguments)
