# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Remasking: the marginals of the forward process for any strength, and the enumerated chain, draw by draw."""

import pytest
import torch
from test_genmd4 import exact_denoiser, world_schedule
from test_scheduling import LEAST_P, make, p_value, run_chain
from tiny import quiet, random_model, seeded
from toy import ToyWorld

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, TokenPolynomialSchedule
from md4_hf.core.remasking import REMASKINGS, make_remasking, most_remasked
from md4_hf.core.reverse_steps import RowMemory


DRAWS = 8000
EXACT = {
    "cap": [{"eta": 0.02}, {"eta": 0.4}, {"eta": 1.0}],
    "rescale": [{"eta": 0.05}, {"eta": 1.0}],
    "loop": [{"eta": 0.1, "loop_start": 0.7, "loop_end": 0.2, "loop_alpha": 0.8}, {"eta": 1.0}],
    "flow": [{"eta": 0.3}, {"eta": 1.0}],
}
CASES = [(name, options) for name, choices in EXACT.items() for options in choices]
every_exact_one = pytest.mark.parametrize(("name", "options"), CASES)


def uniform(steps):
    """Times of a uniform grid, `(steps + 1,)` float64."""
    return 1.0 - torch.arange(steps + 1, dtype=torch.float64) / steps


def inexact(world):
    """A denoiser that knows nothing of the data: logits of each state from a table of random numbers."""
    table = torch.randn(len(world.states()), world.length, world.vocab + 1, generator=seeded(9), dtype=torch.float64)
    return lambda states: 2.0 * table[world.index(states)]


# Marginals ------------------------------------------------------------------------------------------------------------


@every_exact_one
@pytest.mark.parametrize(("schedule", "eps"), [("linear", 0.0), ("cosine", 1e-4), ("geometric", 0.01)])
def test_each_step_keeps_the_marginals_of_the_forward_process(name, options, schedule, eps):
    """With x0 ~ p(x0 | x_t): for one token in closed form, and over all states of sequences whose tokens depend."""
    remasking, grid = make_remasking(name, **options), uniform(7)
    noise = make(ToyWorld(), masking_schedule=schedule, schedule_eps=eps).schedule
    alpha, rates = remasking.alpha(noise, grid), remasking.rates(noise, grid)
    assert ((rates.opens >= 0.0) & (rates.opens <= 1.0) & (rates.remasks >= 0.0)).all()
    assert (rates.remasks <= most_remasked(alpha[:-1], alpha[1:]) + 1e-12).all() and rates.remasks.any()
    kept = alpha[:-1] * (1.0 - rates.remasks) + (1.0 - alpha[:-1]) * rates.opens
    torch.testing.assert_close(kept, alpha[1:], atol=1e-12, rtol=0.0)
    world, step = ToyWorld(vocab=2, length=3), 4
    found = world.joint_step(alpha[step], rates.opens[step], rates.remasks[step])
    torch.testing.assert_close(found, world.marginal(alpha[step + 1]), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "loop"])  # of one alpha
def test_each_token_keeps_its_own_marginals_with_the_schedules_of_genmd4(name, options):
    world, schedule, grid = ToyWorld(), world_schedule(), uniform(5)
    with torch.no_grad():
        rates = make_remasking(name, **options).token_rates(schedule, grid[:-1], grid[1:])
        alpha = schedule.alpha(grid)
    assert rates.remasks.any()
    for step in range(5):
        found = world.joint_step(alpha[step], rates.opens[step], rates.remasks[step])
        torch.testing.assert_close(found, world.marginal(alpha[step + 1]), atol=1e-12, rtol=0.0)


# Runs -----------------------------------------------------------------------------------------------------------------


@every_exact_one
@pytest.mark.parametrize("denoiser", ["exact", "inexact"])
def test_a_plain_loop_of_steps_has_the_distribution_of_the_enumerated_chain(name, options, denoiser):
    """The scheduler keeps the memory: which tokens were masked at the start, and may be masked again."""
    world = ToyWorld()
    scheduler = make(world, remasking=name, num_inference_steps=6, timestep_grid="uniform", **options)
    logits_of = world.exact_logits if denoiser == "exact" else inexact(world)
    rates = scheduler.remasking.rates(scheduler.schedule, uniform(6))
    expected = world.exact_chain(logits_of, scheduler.unmask_probabilities(), remasks=rates.remasks)
    assert p_value(world, run_chain(world, scheduler, DRAWS, seed=1, logits_of=logits_of), expected) > LEAST_P


@pytest.mark.parametrize("options", [{"remasking": "cap", "eta": 0.4}, {"remasking": "flow", "corrector_steps": 1}])
def test_the_pipeline_has_the_distribution_of_its_models_enumerated_chain(options):
    """Remasking alone, and with the forward-backward corrector at the time that each step has reached."""
    model, world, steps = random_model(4, 3, std=0.5, time_conditioning=True).eval(), ToyWorld(), 4
    settings = {"num_inference_steps": steps, "timestep_grid": "uniform", "corrector_eta": 0.5, **options}
    scheduler = MaskedDiffusionScheduler(3, **settings)
    grid, each = uniform(steps), 1 + scheduler.config.corrector_steps
    rates = scheduler.remasking.rates(scheduler.schedule, grid)
    corrections = scheduler.corrector.rates(scheduler.remasking.alpha(scheduler.schedule, grid)[1:], grid[1:])
    opens, remasks = [
        torch.stack([of_steps, *[of_corrections] * (each - 1)], dim=1).flatten()
        for of_steps, of_corrections in (
            (scheduler.unmask_probabilities(), corrections.opens),
            (rates.remasks, corrections.remasks),
        )
    ]

    def logits_of(states, step):
        with torch.no_grad():
            time = grid[step // each + int(step % each > 0)].float()
            return model(states, timesteps=time.expand(len(states))).logits.double()

    expected = world.exact_chain(logits_of, opens, takes_step=True, remasks=remasks)
    pipe = quiet(MaskedDiffusionPipeline(model, scheduler))
    sample = pipe(num_samples=DRAWS // 2, generator=seeded(2), output_type="ids").sequences
    assert p_value(world, sample, expected) > LEAST_P


@pytest.mark.parametrize("name", ["cap", "rescale", "flow"])
def test_genmd4_has_the_distribution_of_the_enumerated_chain(name):
    world, schedule, steps = ToyWorld(), world_schedule(), 4
    scheduler = make(world, remasking=name, eta=0.7, num_inference_steps=steps, timestep_grid="uniform")
    scheduler.set_token_schedule(schedule)
    grid, logits_of = uniform(steps), exact_denoiser(world, schedule)
    with torch.no_grad():
        rates = scheduler.remasking.token_rates(schedule, grid[:-1], grid[1:])

    def at_step(states, step):
        return logits_of(states, grid[step].item())

    expected = world.exact_chain(at_step, rates.opens, takes_step=True, remasks=rates.remasks)
    generator, sample = seeded(3), torch.full((DRAWS, world.length), world.mask)
    for t in scheduler.timesteps:
        sample = scheduler.step(logits_of(sample, t.item()), t, sample, generator=generator).prev_sample
    assert p_value(world, sample, expected) > LEAST_P


@pytest.mark.parametrize("name", REMASKINGS)
@pytest.mark.parametrize("shape", [(40, 12), (10, 3, 2, 6)])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_prompts_are_never_masked_and_no_mask_is_left(name, shape, steps):
    scheduler = MaskedDiffusionScheduler(5, remasking=name, eta=1.0, num_inference_steps=steps)
    given = torch.randint(5, shape, generator=seeded(0))
    is_prompt = torch.rand(shape, generator=seeded(1)) < 0.4
    is_prompt[0], is_prompt[1] = True, False  # also rows with nothing and with all to fill
    sample, generator, remasked = given.masked_fill(~is_prompt, 5), seeded(2), 0
    for t in scheduler.timesteps:
        before = sample
        logits = torch.randn(*shape, 6, generator=generator)
        output = scheduler.step(logits, t, sample, generator=generator)
        sample = output.prev_sample
        remasked += int(output.remasked.sum())
        assert torch.equal(sample[is_prompt], given[is_prompt])
        assert torch.equal(output.remasked, (before != 5) & (sample == 5))
        assert torch.equal(output.committed_mask, (before == 5) & (sample != 5))
    assert (sample != 5).all() and (remasked > 0 or steps < 30)


# By confidence --------------------------------------------------------------------------------------------------------


def test_tokens_are_masked_again_by_a_softmax_of_their_confidence():
    """Against a plain computation by its docstring: the noise of the plan decides, as it is drawn anew here."""
    scheduler = MaskedDiffusionScheduler(9, remasking="confidence", eta=0.8, num_inference_steps=10)
    sample = torch.randint(10, (6, 20), generator=seeded(0)).masked_fill(
        torch.rand(6, 20, generator=seeded(1)) < 0.4, 9
    )
    is_prompt = (torch.rand(6, 20, generator=seeded(2)) < 0.2) & (sample != 9)
    confidence = torch.rand(6, 20, generator=seeded(3), dtype=torch.float64)
    step = 4
    plan = scheduler.plan_step(scheduler.timesteps[step], sample, seeded(4), RowMemory(~is_prompt, confidence))
    u = torch.rand(6, 20, 2, generator=seeded(4), dtype=torch.float64)[..., 0]
    grid = torch.cos(torch.pi / 2 * torch.arange(11, dtype=torch.float64) / 10)
    alpha_t, alpha_s = scheduler.schedule.alpha(grid)[step : step + 2].tolist()
    number = 0
    for row in range(6):
        decided = [n for n in range(20) if sample[row, n] != 9 and not is_prompt[row, n]]
        total = sum(torch.exp(-confidence[row, n]).item() for n in decided)
        for n in range(20):
            share = torch.exp(-confidence[row, n]).item() / total if n in decided else 0.0
            sigma = 0.8 * min(1.0, (1.0 - alpha_s) / alpha_t) * share
            assert plan.remasked[row, n] == (u[row, n] < sigma)
            opens = sample[row, n] == 9 and u[row, n] < (alpha_s - alpha_t) / (1.0 - alpha_t)
            assert plan.candidates[row, n] == opens
            number += int(u[row, n] < sigma)
    assert number > 0


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"temperature": 0.5, "top_p": 0.5}, {"top_k": 1}])
def test_confidence_is_that_of_the_denoiser_before_temperature_and_cuts(arguments):
    """Else all tokens of a greedy run would have the confidence 1."""
    scheduler = MaskedDiffusionScheduler(9, remasking="confidence", num_inference_steps=2, timestep_grid="uniform")
    sample, logits = torch.full((4, 50), 9), torch.randn(4, 50, 10, generator=seeded(0))
    memory = RowMemory.of_start(sample == 9)
    plan = scheduler.plan_step(scheduler.timesteps[0], sample, seeded(1), memory)
    output = scheduler.step(logits, scheduler.timesteps[0], sample, plan=plan, **arguments)
    found = plan.remembered(output.committed_mask, output.sampled_probs).confidence
    mu = logits[..., :9].double().softmax(-1)
    tokens, decided = output.prev_sample, output.committed_mask
    expected = mu.gather(-1, tokens.clamp(max=8)[..., None]).squeeze(-1)
    torch.testing.assert_close(found[decided], expected[decided], atol=1e-6, rtol=0.0)
    assert (found[~decided] == 1.0).all() and decided.any() and not decided.all()


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"remasking": "cup"},
            r"`remasking` must be None or one of \['cap', 'confidence', 'flow', 'loop', 'rescale'\]",
        ),
        ({"remasking": "cap", "eta": 1.01}, r"`eta` must be in \[0, 1\], got 1.01"),
        ({"remasking": "flow", "eta": -0.1}, r"`eta` must be in \[0, 1\]"),
        ({"remasking": "cap", "eta": float("nan")}, r"`eta` must be in \[0, 1\]"),
        ({"eta": 2.0}, r"`eta` must be in \[0, 1\]"),
        ({"remasking": "loop", "loop_start": 0.1, "loop_end": 0.2}, "`loop_end` must be less than `loop_start`"),
        ({"remasking": "loop", "loop_start": 1.0}, "`loop_end` must be less than `loop_start`, and that less than 1"),
        ({"remasking": "loop", "loop_end": 0.0}, r"`loop_end` must be in \(0, 1\]"),
        ({"loop_alpha": 1.0}, r"`loop_alpha` must be in \(0, 1\)"),
        ({"remasking": "cap", "order": "entropy"}, '`remasking` must be None with `order="entropy"`'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedDiffusionScheduler(5, **options)


def test_a_loop_is_refused_with_the_schedules_of_genmd4_before_anything_is_drawn():
    with pytest.raises(ValueError, match="`remasking` must be one for tokens that each have their own time"):
        MaskedDiffusionScheduler(5, remasking="loop").set_token_schedule(TokenPolynomialSchedule(6))


@pytest.mark.parametrize("options", [{"remasking": "cap"}, {"order": "margin"}, {"corrector_steps": 1}])
def test_openings_are_planned_for_the_ancestral_sampler_only(options):
    with pytest.raises(ValueError, match="`plan_openings` needs"):
        MaskedDiffusionScheduler(5, **options).plan_openings(torch.full((1, 4), 5))
