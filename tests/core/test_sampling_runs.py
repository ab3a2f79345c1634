# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""One loop for all samplers: prompts are kept, no mask is left, rows do not depend on others, callbacks change none."""

import pytest
import torch
from test_planned_sampling import CallRecorder
from tiny import quiet, random_model, seeded

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler
from md4_hf.core.opening_orders import ORDERS, ranked
from md4_hf.core.remasking import CORRECTORS, REMASKINGS


MASK, STEPS = 27, 20
PROMPTS = [[1, 2, 3, *[MASK] * 13], [1, 2, 3, 4, 5, 6, *[MASK] * 6]]  # also of two lengths
PROMPTS += [[MASK] * 16, [MASK] * 11]  # where this network, which sees positions by rotation alone, predicts alike
SAMPLERS = [
    *({"order": name} for name in ("random", *ORDERS)),
    *({"order": "confidence", "quota": name} for name in ("floor", "binomial")),
    {"order": "entropy", "order_temperature": 0.5, "temperature": 0.7, "top_p": 0.9},
    {"order": "entropy_bound", "entropy_bound": 2.0},
    *({"remasking": name, "eta": 0.5} for name in REMASKINGS),
    *({"corrector": name, "corrector_steps": 2, "corrector_eta": 0.3, "corrector_size": 3} for name in CORRECTORS),
    {"order": "threshold", "corrector": "informed", "corrector_steps": 1},
    {"remasking": "cap", "eta": 0.3, "corrector": "gibbs", "corrector_steps": 1},
]
any_sampler = pytest.mark.parametrize("options", SAMPLERS, ids=lambda options: "-".join(map(str, options.values())))


@pytest.fixture(scope="module")
def model():
    # In float64, as padding changes the last bits of float32, by which positions would be ranked.
    return random_model(MASK + 1, 16, std=0.2).eval().double()


def draw(model, rows, options, **arguments):
    """Sequences of a pipeline with such a scheduler."""
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=STEPS, **options)))
    given = {"input_ids": rows, "generator": [seeded(len(row)) for row in rows], "output_type": "ids", **arguments}
    return pipe(**given).sequences


@any_sampler
def test_prompts_are_kept_and_no_mask_is_left(model, options):
    for row, prompt in zip(draw(model, PROMPTS, options), PROMPTS, strict=True):
        given = torch.tensor(prompt)
        assert (row != MASK).all() and torch.equal(row[given != MASK], given[given != MASK])


@any_sampler
def test_a_row_does_not_depend_on_the_batch(model, options):
    together = draw(model, PROMPTS, options)
    for row, prompt in zip(together, PROMPTS, strict=True):
        assert torch.equal(draw(model, [prompt], options)[0], row)


@any_sampler
def test_a_callback_that_looks_on_changes_nothing(model, options):
    seen = []
    arguments = {"callback_on_step_end": lambda pipe, step, t, tensors: seen.append(step)}
    for watched, row in zip(draw(model, PROMPTS, options, **arguments), draw(model, PROMPTS, options), strict=True):
        assert torch.equal(watched, row)
    assert seen == list(range(STEPS))


@pytest.mark.parametrize("name", REMASKINGS)
def test_remasking_of_strength_zero_is_the_ancestral_sampler_draw_for_draw(model, name):
    if name == "loop":
        pytest.skip("a loop that replaces nothing is the ancestral sampler on another grid")
    ancestral = MaskedDiffusionScheduler(MASK, num_inference_steps=STEPS)
    none = MaskedDiffusionScheduler(MASK, num_inference_steps=STEPS, remasking=name, eta=0.0)
    samples, logits = [torch.full((4, 16), MASK)] * 2, torch.randn(4, 16, MASK + 1, generator=seeded())
    for number, t in enumerate(ancestral.timesteps):
        plans = [s.plan_step(t, x, seeded(number)) for s, x in zip((ancestral, none), samples, strict=True)]
        assert torch.equal(plans[0].candidates, plans[1].candidates)
        samples = [
            s.step(logits, t, x, plan=plan).prev_sample
            for s, x, plan in zip((ancestral, none), samples, plans, strict=True)
        ]
        assert torch.equal(*samples)
    pairs = zip(draw(model, PROMPTS, {}), draw(model, PROMPTS, {"remasking": name, "eta": 0.0}), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_bound_of_zero_on_the_entropy_unmasks_one_token_a_step(model):
    recorder = CallRecorder(model)
    options = {"order": "entropy_bound", "entropy_bound": 0.0}
    draw(model, PROMPTS[:1], options, num_inference_steps=1000)
    recorder.hook.remove()
    masked = [int((call["input_ids"] == MASK).sum()) for call in recorder.calls]
    assert masked == list(range(13, 0, -1))


def test_scores_that_differ_by_rounding_are_ties_which_go_to_the_first_position():
    scores = torch.tensor([[0.3, 0.5, 0.5 + 3e-7, 0.7, 0.5 - 2e-7, -torch.inf, 0.1]], dtype=torch.float64)
    assert ranked(scores).tolist() == [[3, 1, 2, 4, 0, 6, 5]]
    assert ranked(scores.flip(1)).tolist() == [[3, 2, 4, 5, 6, 0, 1]]
