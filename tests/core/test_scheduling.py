# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The reverse process: exact in distribution against enumeration, and true to its contract."""

import pytest
import torch
from tiny import seeded
from toy import DRAWS, LEAST_P, ToyWorld, p_value

from md4_hf import MaskedDiffusionScheduler, make_schedule


def make(world, **kwargs):
    return MaskedDiffusionScheduler(mask_token_id=world.mask, **kwargs)


def run_chain(world, scheduler, draws, seed, logits_of=None, **step_arguments):
    """Sample `draws` sequences step by step."""
    generator, sample = seeded(seed), torch.full((draws, world.length), world.mask)
    for t in scheduler.timesteps:
        logits = (logits_of or world.exact_logits)(sample)
        sample = scheduler.step(logits, t, sample, generator=generator, **step_arguments).prev_sample
    return sample


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("sampler", ["ancestral", "mean"])
@pytest.mark.parametrize(("schedule", "grid"), [("linear", "cosine"), ("cosine", "uniform"), ("geometric", "uniform")])
def test_samples_have_the_distribution_of_the_enumerated_chain(steps, sampler, schedule, grid):
    world = ToyWorld()
    scheduler = make(world, masking_schedule=schedule, timestep_grid=grid, sampler=sampler, num_inference_steps=steps)
    expected = world.exact_chain(world.exact_logits, scheduler.unmask_probabilities())
    assert p_value(world, run_chain(world, scheduler, DRAWS, seed=1), expected) > LEAST_P


@pytest.mark.parametrize("sampler", ["ancestral", "mean"])
@pytest.mark.parametrize(
    "arguments", [{"top_p": 0.6}, {"top_k": 2}, {"temperature": 0.5}, {"temperature": 1.7, "top_p": 0.8}]
)
def test_filtered_samples_have_the_distribution_of_the_filtered_chain(sampler, arguments):
    world = ToyWorld()
    scheduler = make(world, sampler=sampler, num_inference_steps=4)

    def filtered(states):
        logits = world.exact_logits(states)[..., :-1] / arguments.get("temperature", 1.0)
        ordered = logits.softmax(-1).sort(descending=True)
        kept = torch.ones_like(logits, dtype=torch.bool)
        if "top_k" in arguments:
            kept &= torch.zeros_like(kept).scatter(-1, ordered.indices[..., : arguments["top_k"]], True)
        if "top_p" in arguments:
            nucleus = ordered.values.cumsum(-1) - ordered.values < arguments["top_p"]
            kept &= torch.zeros_like(kept).scatter(-1, ordered.indices, nucleus)
        return torch.nn.functional.pad(logits.masked_fill(~kept, -1e9), (0, 1))

    expected = world.exact_chain(filtered, scheduler.unmask_probabilities())
    expected[expected < 1e-12] = 0
    assert p_value(world, run_chain(world, scheduler, DRAWS, seed=2, **arguments), expected) > LEAST_P


def test_many_steps_of_the_exact_denoiser_sample_the_data():
    """With 200 steps two tokens hardly ever open at once: what is left of that is below the test's power."""
    world = ToyWorld()
    scheduler = make(world, timestep_grid="uniform", num_inference_steps=200)
    assert p_value(world, run_chain(world, scheduler, DRAWS, seed=3), world.probability) > LEAST_P


@pytest.mark.parametrize("final_decode", ["sample", "argmax"])
def test_rows_may_stand_at_different_times(final_decode):
    """Half of the rows run one step behind the other half; both end with the chain's distribution."""
    world = ToyWorld()
    scheduler = make(world, num_inference_steps=3, final_decode=final_decode)
    generator, half = seeded(4), DRAWS // 2
    sample = torch.full((DRAWS, world.length), world.mask)
    times = scheduler.timesteps
    ahead = scheduler.step(world.exact_logits(sample[:half]), times[0], sample[:half], generator=generator).prev_sample
    sample = torch.cat([ahead, sample[half:]])
    for step in range(2):
        timestep = torch.cat([times[step + 1].expand(half), times[step].expand(half)])
        sample = scheduler.step(world.exact_logits(sample), timestep, sample, generator=generator).prev_sample
    assert (sample[:half] != world.mask).all()
    logits = world.exact_logits(sample[half:])
    behind = scheduler.step(logits, times[2], sample[half:], generator=generator).prev_sample
    sample = torch.cat([sample[:half], behind])
    if final_decode == "sample":
        expected = world.exact_chain(world.exact_logits, scheduler.unmask_probabilities())
        assert p_value(world, sample, expected) > LEAST_P
    assert (sample != world.mask).all()


def test_a_step_keeps_decided_tokens_and_its_inputs():
    world, generator = ToyWorld(), seeded(0)
    scheduler = make(world, num_inference_steps=5)
    sample = torch.randint(4, (200, 3), generator=generator)
    logits = torch.randn(200, 3, 4, generator=generator)
    before = sample.clone(), logits.clone()
    for t in scheduler.timesteps:
        output = scheduler.step(logits, t, sample, generator=generator)
        decided = sample != world.mask
        assert torch.equal(output.prev_sample[decided], sample[decided])
        new = output.sampled_tokens != world.mask
        assert not (new & decided).any()
        assert torch.equal(output.prev_sample[new], output.sampled_tokens[new])
        assert ((output.sampled_probs > 0) == new).all() and (output.sampled_probs <= 1).all()
        assert output.prev_sample.dtype == sample.dtype
    assert torch.equal(before[0], sample) and torch.equal(before[1], logits)


def test_logits_of_the_masked_positions_alone_give_the_same_step():
    world = ToyWorld()
    scheduler = make(world, num_inference_steps=3)
    sample = torch.randint(4, (50, 3), generator=seeded(0))
    logits = torch.randn(50, 3, 4, generator=seeded(1))
    of_all, of_masked = (
        scheduler.step(x, scheduler.timesteps[1], sample, generator=seeded(2)).prev_sample
        for x in (logits, logits[sample == world.mask])
    )
    assert torch.equal(of_all, of_masked)


def test_a_rows_own_generator_makes_it_independent_of_the_batch():
    world = ToyWorld(length=6, vocab=3)
    scheduler = make(world, num_inference_steps=4)
    logits = torch.randn(3, 6, 4, generator=seeded(1))
    sample = torch.full((3, 6), world.mask)
    t = scheduler.timesteps[2]
    together = scheduler.step(logits, t, sample, generator=[seeded(seed) for seed in (5, 6, 7)]).prev_sample
    alone = scheduler.step(logits[1:2], t, sample[1:2], generator=seeded(6)).prev_sample
    assert torch.equal(together[1:2], alone)


def test_zero_temperature_takes_the_most_probable_token():
    world = ToyWorld()
    scheduler = make(world, num_inference_steps=1)
    sample = torch.full((1, 3), world.mask)
    output = scheduler.step(world.exact_logits(sample), 1.0, sample, temperature=0.0)
    assert torch.equal(output.prev_sample, world.exact_logits(sample)[..., :3].argmax(-1))
    assert torch.equal(output.sampled_probs, torch.ones(1, 3))


def test_the_mask_is_never_drawn_however_large_its_logit():
    world = ToyWorld()
    scheduler = make(world, num_inference_steps=1)
    logits = torch.zeros(100, 3, 4)
    logits[..., 3] = 1e4
    for arguments in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 1}):
        assert (scheduler.step(logits, 1.0, torch.full((100, 3), 3), **arguments).prev_sample < 3).all()


@pytest.mark.parametrize("arguments", [{"top_p": 0.5}, {"top_k": 2}])
def test_the_logit_of_the_mask_takes_no_place_among_the_most_probable(arguments):
    world = ToyWorld()
    scheduler, sample = make(world, num_inference_steps=1), torch.full((100, 3), 3)
    logits = torch.randn(100, 3, 4, generator=seeded(0))
    outputs = []
    for own in (-1e4, 1e4):
        logits[..., 3] = own
        generator = seeded(1)
        outputs.append(scheduler.step(logits, 1.0, sample, generator=generator, **arguments))
    assert torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)
    assert torch.equal(outputs[0].sampled_probs, outputs[1].sampled_probs)


def test_states_of_images_are_stepped_too():
    scheduler = MaskedDiffusionScheduler(mask_token_id=4, num_inference_steps=2)
    sample = torch.full((2, 3, 5, 5), 4)
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.randn(2, 3, 5, 5, 5), t, sample).prev_sample
    assert sample.shape == (2, 3, 5, 5) and (sample < 4).all()


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_timesteps_fall_from_one_and_stay_above_zero(grid, steps):
    scheduler = MaskedDiffusionScheduler(0, timestep_grid=grid)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    assert len(times) == len(scheduler) == steps and times[0] == 1.0 and times[-1] > 0
    assert (times.diff() < 0).all()
    assert scheduler.unmask_probabilities()[-1] == 1.0


def test_draws_have_the_precision_of_float64():
    scheduler = MaskedDiffusionScheduler(mask_token_id=5, num_inference_steps=1)
    noise = scheduler.plan_step(1.0, torch.full((2, 50), 5), seeded(0)).noise
    assert noise.dtype == torch.float64 and (noise.float().double() != noise).all(dim=(0, 1)).all()


def test_logits_of_low_precision_are_divided_and_filtered_in_float64():
    world = ToyWorld(vocab=40, length=1)
    logits = torch.randn(200, 1, 41, generator=seeded(0)).bfloat16()
    sample = torch.full((200, 1), world.mask)
    outputs = [
        make(world, num_inference_steps=1).step(x, 1.0, sample, temperature=0.7, top_p=0.9, generator=seeded(1))
        for x in (logits, logits.double())
    ]
    assert torch.equal(outputs[0].sampled_tokens, outputs[1].sampled_tokens)
    assert torch.equal(outputs[0].sampled_probs, outputs[1].sampled_probs)


def test_add_noise_masks_by_the_schedule():
    scheduler = MaskedDiffusionScheduler(9)
    x0 = torch.zeros(2, 10_000, dtype=torch.long)
    xt = scheduler.add_noise(x0, torch.tensor([0.25, 1.0]), generator=seeded(0))
    assert (xt[0] == 9).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (xt[1] == 9).float().mean().item() == pytest.approx(1.0, abs=0.002)
    assert scheduler.scale_model_input(xt, 0.5) is xt


def test_the_schedule_has_the_power_and_eps_of_the_configuration():
    scheduler = MaskedDiffusionScheduler(5, "poly", schedule_power=2.5, schedule_eps=0.01)
    assert scheduler.schedule == make_schedule("poly", power=2.5, eps=0.01)


ONE = {"model_output": torch.zeros(1, 2, 4), "timestep": 1.0, "sample": torch.full((1, 2), 3)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timestep": 0.123}, "`timestep` must be one of the 4 times"),
        ({"timestep": torch.ones(3)}, r"must be one time or have shape"),
        ({"model_output": torch.zeros(1, 3, 4)}, "`model_output` must have shape"),
        ({"temperature": -1.0}, "`temperature` must be"),
        ({"top_p": 1.5}, r"`top_p` must be in \(0, 1\]"),
        ({"top_k": 0}, "`top_k` must be >= 1"),
        ({"generator": [torch.Generator()] * 2}, "one generator per row, 1, got 2"),
    ],
)
def test_bad_arguments_of_a_step_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedDiffusionScheduler(3, num_inference_steps=4).step(**{**ONE, **arguments})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskedDiffusionScheduler().set_timesteps(0), "`num_inference_steps` must be >= 1, got 0"),
        (lambda: MaskedDiffusionScheduler(timestep_grid="log"), "`timestep_grid` must be one of"),
        (lambda: MaskedDiffusionScheduler(sampler="gibbs"), "`sampler` must be one of"),
        (lambda: MaskedDiffusionScheduler(final_decode="none"), "`final_decode` must be one of"),
        (lambda: MaskedDiffusionScheduler().add_noise(torch.ones(1, 2), torch.ones(1)), "must be set in .* got None"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
