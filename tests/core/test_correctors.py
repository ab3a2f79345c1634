# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Correctors: they leave q(x_t) as it is, by enumeration and by draws, and look as often as they say."""

import itertools

import pytest
import torch
from scipy import stats
from test_genmd4 import world_schedule
from test_planned_sampling import CallRecorder
from test_scheduling import LEAST_P, make
from tiny import quiet, random_image_model, random_model, seeded
from toy import ToyWorld

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, TokenPolynomialSchedule
from md4_hf.core.remasking import CORRECTORS, ForwardBackwardCorrector, GibbsCorrector
from md4_hf.core.reverse_steps import RowMemory


DRAWS, MASK = 20_000, 6
TIMES = torch.tensor([0.9, 0.6, 0.25, 0.01], dtype=torch.float64)


# Invariance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "tokens"])
def test_forward_backward_leaves_the_marginal_invariant(eta, schedule):
    world, corrector = ToyWorld(), ForwardBackwardCorrector(eta)
    if schedule == "tokens":
        with torch.no_grad():
            alpha, times = world_schedule().alpha(TIMES), TIMES[:, None]
    else:
        alpha, times = make(world, masking_schedule=schedule, schedule_eps=0.0).schedule.alpha(TIMES), TIMES
    rates = corrector.rates(alpha, times)
    for number, opens, sigma in zip(alpha, rates.opens, rates.remasks, strict=True):
        assert (eta > 0.0) == bool((sigma > 0.0).all()) and sigma.max() <= eta
        found = world.joint_step(number, opens, sigma)
        torch.testing.assert_close(found, world.marginal(number), atol=1e-12, rtol=0.0)


def gibbs_kernel(world, size):
    """P(next state | state) where `size` random decided tokens (or all) are drawn anew together, by enumeration."""
    states, kernel = world.states(), torch.zeros(len(world.states()), len(world.states()), dtype=torch.float64)
    for row, state in enumerate(states):
        decided = [n for n in range(world.length) if state[n] != world.mask]
        choices = list(itertools.combinations(decided, min(size, len(decided))))
        for chosen in choices:
            rest = [n for n in decided if n not in chosen]
            weights = world.probability * (world.sequences[:, rest] == state[rest]).all(-1)
            drawn = state.repeat(len(world.sequences), 1)
            drawn[:, list(chosen)] = world.sequences[:, list(chosen)]
            kernel[row].index_add_(0, world.index(drawn), weights / weights.sum() / len(choices))
    return kernel


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gibbs_leaves_the_marginal_invariant(size):
    """Of any number of tokens if they are drawn together; the denoiser draws each by itself, so that one is exact."""
    world = ToyWorld()
    for alpha in (0.1, 0.6, 1.0):
        marginal = world.marginal(torch.tensor(alpha, dtype=torch.float64))
        torch.testing.assert_close(marginal @ gibbs_kernel(world, size), marginal, atol=1e-12, rtol=0.0)


def states_after_correction(world, number, **options):
    """The distribution q(x_t) after the second of three steps, and numbers of the states that corrections lead to."""
    scheduler = make(world, corrector_steps=1, num_inference_steps=3, timestep_grid="uniform", **options)
    alpha = scheduler.schedule.alpha(torch.tensor([1 / 3], dtype=torch.float64))
    marginal, states = world.marginal(alpha), world.states()
    sample = states[torch.multinomial(marginal, DRAWS, replacement=True, generator=seeded(1))]
    generator, memory = seeded(2), RowMemory.of_start(torch.ones_like(sample, dtype=torch.bool))
    for _ in range(number):
        t = scheduler.timesteps[1]
        plan = scheduler.plan_correction(t, sample, generator, memory)
        logits = world.exact_logits(sample.masked_fill(plan.candidates, world.mask))
        sample = scheduler.step(logits, t, sample, plan=plan).prev_sample
    return marginal, world.index(sample).bincount(minlength=len(states)), scheduler


def p_value(counts, expected):
    """Chi-square, with the rare states taken together."""
    expected = expected * counts.sum()
    rare = expected < 5
    pooled = [torch.cat([x[~rare], x[rare].sum()[None]]).double() for x in (counts, expected)]
    return stats.chisquare(*(x[pooled[1] > 0].numpy() for x in pooled)).pvalue


@pytest.mark.parametrize("number", [1, 4])
def test_gibbs_of_one_token_with_the_exact_denoiser_samples_the_same_marginal(number):
    marginal, counts, _ = states_after_correction(ToyWorld(), number, corrector="gibbs")
    assert p_value(counts, marginal) > LEAST_P


def test_forward_backward_steps_are_those_of_the_enumerated_kernel():
    """The denoiser draws tokens independently, so that two that become visible together are not quite q(x_t)."""
    world = ToyWorld()
    marginal, counts, scheduler = states_after_correction(world, 1, corrector_eta=0.4)
    third = torch.tensor([1 / 3], dtype=torch.float64)
    rates = scheduler.corrector.rates(scheduler.schedule.alpha(third), third)
    opens, finish = rates.opens[0], torch.tensor(1.0, dtype=torch.float64)
    # To the end by one more step, of the counts as of the distribution: the chain of the world gives final states.
    expected, found = (
        world.exact_chain(
            world.exact_logits, torch.stack([*first, finish]), start=start, remasks=torch.stack([*again, 0 * finish])
        )
        for first, again, start in (
            ([opens], [rates.remasks[0]], marginal),
            ([], [], counts.double() / counts.sum()),
        )
    )
    assert (expected - found).abs().max() < 5 * 0.5 / DRAWS**0.5  # five standard deviations


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("remasking", [None, "confidence"])
def test_a_plain_loop_corrects_what_it_has_drawn_and_no_prompt(corrector, remasking):
    """The scheduler keeps the memory, also after its first step, where all tokens are new."""
    options = {"corrector": corrector, "corrector_steps": 2, "corrector_eta": 1.0, "corrector_size": 4}
    scheduler = MaskedDiffusionScheduler(MASK, remasking=remasking, num_inference_steps=6, **options)
    prompt = torch.tensor([[1, 2, 3, *[MASK] * 21]] * 5)
    sample, generator, changed = prompt, seeded(0), []
    for t in scheduler.timesteps:
        logits = torch.randn(*sample.shape, MASK + 1, generator=generator)
        sample = scheduler.step(logits, t, sample, generator=generator).prev_sample
        before = sample
        for _ in range(2):
            plan = scheduler.plan_correction(t, sample, generator)
            logits = torch.randn(*sample.shape, MASK + 1, generator=generator)
            sample = scheduler.step(logits, t, sample, plan=plan).prev_sample
        assert torch.equal(sample[:, :3], prompt[:, :3])
        changed.append(bool(((before != sample) & (before != MASK)).any()))
    assert (sample != MASK).all() and all(changed[:-1])


def test_the_share_of_forward_backward_is_not_divided_among_tokens_by_confidence():
    """As that of `remasking="confidence"` is: sigma = min(eta, (1 - alpha) / alpha) is of each token."""
    settings = {"num_inference_steps": 4, "timestep_grid": "uniform", "corrector_steps": 1, "corrector_eta": 0.3}
    sample = torch.randint(MASK, (50, 200), generator=seeded(0))
    remasked = []
    for remasking in (None, "confidence"):
        scheduler = MaskedDiffusionScheduler(MASK, remasking=remasking, **settings)
        memory = RowMemory.of_start(torch.ones_like(sample, dtype=torch.bool))
        remasked.append(scheduler.plan_correction(scheduler.timesteps[1], sample, seeded(1), memory).remasked)
    assert torch.equal(*remasked)
    assert remasked[0].float().mean() == pytest.approx(0.3, abs=5 * 0.5 / 100)


# Selection ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 15), (8, 1, 3, 5)])
@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("corrector", ["gibbs", "informed"])
def test_the_tokens_that_are_drawn_anew_are_those_of_brute_force(shape, size, corrector):
    """The least confident or, by the plan's noise, random ones, of those that were masked once; ties: the first."""
    sample = torch.randint(MASK + 1, shape, generator=seeded(0))
    fillable = (torch.rand(shape, generator=seeded(1)) < 0.7) | (sample == MASK)
    confidence = (torch.rand(shape, generator=seeded(2), dtype=torch.float64) * 5).round() / 5  # with ties
    scheduler = MaskedDiffusionScheduler(MASK, corrector=corrector, corrector_steps=1, corrector_size=size)
    plan = scheduler.plan_correction(scheduler.timesteps[9], sample, seeded(3), RowMemory(fillable, confidence))
    noise = torch.rand((*shape, 2), generator=seeded(3), dtype=torch.float64)[..., 0]
    rank_by = (confidence if corrector == "informed" else noise).flatten(1).tolist()
    for row in range(8):
        may = (fillable[row] & (sample[row] != MASK)).flatten().nonzero().squeeze(1).tolist()
        expected = sorted(may, key=lambda n: (rank_by[row][n], n))[:size]
        assert plan.candidates[row].flatten().nonzero().squeeze(1).tolist() == sorted(expected)


def test_the_informed_corrector_ranks_greedy_tokens_by_the_denoisers_belief():
    """Of a run at temperature 0 whose tokens all have probability 1 otherwise: the least certain one goes first."""
    settings = {"corrector": "informed", "corrector_steps": 1, "num_inference_steps": 1}
    chosen = set()
    for seed in range(6):
        model = random_model(MASK + 1, 12, std=0.4, seed=seed, time_conditioning=False).eval().double()
        pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(**settings)))
        recorder = CallRecorder(model)
        pipe(input_ids=[[*[MASK] * 5, 1, *[MASK] * 5, 3]], temperature=0.0, output_type="ids")
        recorder.hook.remove()
        with torch.no_grad():
            mu = model(recorder.calls[0]["input_ids"], timesteps=torch.ones(1)).logits[0, :, :MASK].softmax(-1)
        confidence = mu.amax(-1).index_fill(0, torch.tensor([5, 11]), 1.0)
        (position,) = recorder.calls[1]["position_mask"][0].nonzero().squeeze(1).tolist()
        assert position == confidence.argmin()
        chosen.add(position)
    assert len(chosen) > 1, "not the first, whatever is there"


# Calls ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrector", ["gibbs", "informed"])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_run_calls_the_network_once_a_step_and_once_a_correction(corrector, number):
    model = random_model(MASK + 1, 16, std=0.3).eval()
    options = {"order": "confidence", "timestep_grid": "uniform", "corrector": corrector, "corrector_steps": number}
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=4, **options)))
    recorder = CallRecorder(model)
    pipe(num_samples=2, output_type="ids")
    recorder.hook.remove()
    assert len(recorder.calls) == 4 * (1 + number)
    wanted = [call["position_mask"].sum(dim=1).tolist() for call in recorder.calls]
    assert all(x == [1, 1] for n, x in enumerate(wanted) if n % (1 + number))
    assert all(bool((call["input_ids"] == MASK)[call["position_mask"]].all()) for call in recorder.calls)


@pytest.mark.parametrize("corrector", CORRECTORS)
def test_images_are_corrected_too(corrector):
    model = random_image_model(MASK, 4).eval()
    options = {"corrector": corrector, "corrector_steps": 1, "corrector_eta": 0.5, "num_inference_steps": 5}
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(**options)))
    images = pipe(num_samples=2, generator=seeded(0), output_type="ids").sequences
    assert images.shape == (2, 1, 4, 4) and (images != MASK).all()


# Callbacks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"corrector": "gibbs", "corrector_steps": 2, "corrector_size": 5},
        {"remasking": "cap", "eta": 1.0},
        {"order": "klass", "kl_bound": 1.0, "threshold": 0.01},
    ],
)
def test_what_a_callback_puts_in_is_kept_and_what_it_masks_is_filled(options):
    model = random_model(MASK + 1, 16, std=0.3).eval()
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=8, **options)))
    seen, put_in = [], []

    def change(pipe, step, t, tensors):
        sample = tensors["sample"].clone()
        if step == 1:
            put_in.append((sample[:, 4:7] + 1) % MASK)
            sample[:, 4:7] = put_in[0]
        elif step == 3:
            sample[:, 0] = MASK
        else:
            seen.append(sample[:, 4:7].clone())
        return {"sample": sample}

    ids = [[1, 2, *[MASK] * 14]] * 3
    sequences = pipe(input_ids=ids, generator=seeded(0), output_type="ids", callback_on_step_end=change).sequences
    assert all(torch.equal(x, put_in[0]) for x in (sequences[:, 4:7], *seen[1:]))
    assert (sequences[:, 1] == 2).all() and (sequences != MASK).all()


def test_an_interrupted_run_keeps_what_it_has():
    model = random_model(MASK + 1, 16, std=0.3).eval()
    scheduler = MaskedDiffusionScheduler(num_inference_steps=8, remasking="cap", corrector_steps=1)
    pipe = quiet(MaskedDiffusionPipeline(model, scheduler))

    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 4
        return {}

    sequences = pipe(input_ids=[[1, *[MASK] * 15]], output_type="ids", callback_on_step_end=stop).sequences
    assert sequences[0, 0] == 1 and 0 < (sequences == MASK).sum() < 15


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrector": "best"}, r"`corrector` must be one of \['forward_backward', 'gibbs', 'informed'\], got 'best'"),
        ({"corrector_eta": 1.1}, r"`corrector_eta` must be in \[0, 1\], got 1.1"),
        ({"corrector": "gibbs", "corrector_eta": -1.0}, r"`corrector_eta` must be in \[0, 1\]"),
        ({"corrector_size": 0}, "`corrector_size` must be >= 1, got 0"),
        ({"corrector": "gibbs", "corrector_size": 1.5}, "`corrector_size` must be >= 1, got 1.5"),
        ({"corrector_steps": -1}, "`corrector_steps` must be an integer >= 0, got -1"),
        ({"corrector_steps": True}, "`corrector_steps` must be an integer >= 0, got True"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedDiffusionScheduler(MASK, **options)


@pytest.mark.parametrize("corrector", ["gibbs", "informed"])
def test_gibbs_is_refused_with_the_schedules_of_genmd4(corrector):
    scheduler = MaskedDiffusionScheduler(MASK, corrector=corrector)
    scheduler.set_token_schedule(TokenPolynomialSchedule(MASK + 1))  # as no correction is asked for
    with pytest.raises(ValueError, match="`corrector` must be one for tokens that each have their own time"):
        scheduler.with_options(corrector_steps=1)


def test_corrections_need_a_number_of_them_in_the_config():
    scheduler = MaskedDiffusionScheduler(MASK, corrector="gibbs")
    with pytest.raises(ValueError, match="`corrector_steps` must be >= 1 in the scheduler's config"):
        scheduler.plan_correction(1.0, torch.full((1, 3), MASK))


def test_a_gibbs_corrector_draws_as_many_tokens_as_it_says():
    noise = torch.rand(3, 10, generator=seeded(0), dtype=torch.float64)
    chosen = GibbsCorrector(3).chosen(torch.ones(3, 10, dtype=torch.bool), noise, noise)
    assert chosen.sum(dim=1).tolist() == [3, 3, 3]
