# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""GenMD4: the official numbers of its schedules, losses and gradients, and proofs on an enumerable world."""

import itertools
import math

import numpy as np
import pytest
import torch
from test_scheduling import p_value
from tiny import seeded
from toy import ToyWorld

from md4_hf import (
    MaskedDiffusionScheduler,
    MD4ForMaskedDiffusion,
    TokenPolynomialSchedule,
    config_from_official,
    convert_flax_params,
    genmd4_reconstruction_nelbo,
    genmd4_token_nelbo,
    log_forward_probability,
    rloo_surrogate,
    stratified_times,
)
from md4_hf.core.masked_diffusion import rescale_times, top_p_logits


def schedule_of(free_exponents, eps=1e-4):
    """A schedule with these parameters for the data tokens, and one more for the mask, which comes last."""
    schedule = TokenPolynomialSchedule(len(free_exponents) + 1, eps=eps)
    with torch.no_grad():
        schedule.free_exponents[:-1] = free_exponents
    return schedule


def close(actual, expected, rel=1e-5, absolute=0.0):
    torch.testing.assert_close(actual, expected, rtol=rel, atol=absolute + rel * expected.abs().max().item())


# The official numbers -------------------------------------------------------------------------------------------------


def test_schedules_agree_with_the_official_ones(golden):
    tensors, _ = golden("schedules_genmd4")
    schedule, t = schedule_of(tensors["w"]), tensors["t"]
    close(schedule.exponents[:-1], tensors["power"])
    close(schedule.alpha(t)[:, :-1], tensors["alpha"])
    inner = t > 0
    close(schedule.alpha_prime(t)[inner][:, :-1], tensors["dalpha"][inner])
    weight = schedule.alpha_prime(t) / (1.0 - schedule.alpha(t))
    late = t > 0.1  # nearer to 0, float32 loses 1 - alpha
    close(weight[late][:, :-1], tensors["dgamma_times_alpha"][late], rel=1e-3)
    for power, w in zip(tensors["init_power"], tensors["init_w"], strict=True):
        fresh = TokenPolynomialSchedule(8, power=float(power))
        close(fresh.free_exponents[:-1], w)


def test_losses_and_gradients_agree_with_the_official_ones(golden):
    tensors, record = golden("loss_genmd4")
    mask, t1 = record["mask_token_id"], record["config"]["t1"]
    schedule = schedule_of(tensors["w"])
    x0, t = tensors["x"].long(), tensors["t"]
    close(schedule.alpha_of(t, x0), tensors["keep_prob"])
    logits = [tensors[f"logits_{k}"].requires_grad_() for k in (1, 2)]
    states = [tensors[f"zt_{k}"].long() for k in (1, 2)]
    with_mask = [torch.nn.functional.pad(x, (0, 1), value=torch.finfo(x.dtype).min) for x in logits]
    pairs = zip(with_mask, states, strict=True)
    losses = [genmd4_token_nelbo(x, x0, xt, schedule.exponents, t, mask).sum(1) for x, xt in pairs]
    log_q = [log_forward_probability(schedule, t, x0, xt, mask).sum(1) for xt in states]
    recon = genmd4_reconstruction_nelbo(x0, schedule, t1, mask).sum(1)
    close(losses[0], tensors["loss_diff_1"])
    close(losses[1], tensors["loss_diff_2"])
    close(recon, tensors["loss_recon"])
    losses, log_q = torch.stack(losses, 1), torch.stack(log_q, 1)
    surrogate = rloo_surrogate(losses, log_q)
    close(surrogate - losses.mean(1), tensors["reinforce"], rel=1e-4)

    bits = x0.shape[1] * math.log(2)
    total = surrogate.mean() + recon.mean()
    close(total, tensors["total_nats"])
    close(total / bits, tensors["call/loss"])
    close((losses.mean() + recon.mean()) / bits, tensors["call/loss_nelbo"])
    parts = {"total_nats": total, "mean_loss_recon": recon.mean(), "mean_loss_diff": losses.mean()}
    for name, value in parts.items():
        (gradient,) = torch.autograd.grad(value, schedule.free_exponents, retain_graph=True)
        close(gradient[:-1], tensors[f"grad_w/{name}"], rel=1e-4)
        assert gradient[-1] == 0, "the mask's own exponent has no effect"
    for k in (0, 1):
        (gradient,) = torch.autograd.grad(total / bits, logits[k], retain_graph=True)
        close(gradient, tensors[f"grad_logits_{k + 1}/call_loss"])


def test_the_whole_training_loss_agrees_with_the_official_one(golden):
    tensors, record = golden("loss_genmd4_model")
    config = config_from_official(record["config"])
    model = MD4ForMaskedDiffusion(config).train()
    model.load_state_dict(convert_flax_params(tensors, config))
    states = torch.stack([tensors["zt_1"], tensors["zt_2"]], dim=1).long()
    output = model(input_ids=states, timesteps=tensors["t_used"], labels=tensors["x"].long())
    close(output.loss / math.log(2), tensors["out/loss"])
    close(output.nelbo / math.log(2), tensors["out/loss_nelbo"])
    close(output.reconstruction_nelbo.mean() / tensors["x"].shape[1] / math.log(2), tensors["out/loss_recon"])
    (output.loss / math.log(2)).backward()
    flat = {name.removeprefix("grads/"): value for name, value in tensors.items() if name.startswith("grads/")}
    expected = convert_flax_params(flat, config)
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name], rel=1e-4)


def test_the_probability_to_unmask_in_a_short_step_is_not_rounded_away():
    """r_j = w_j (t - s) / t to first order; in float32, s / t would be 1."""
    schedule = schedule_of(torch.tensor([0.0, 1.0, 3.0]))
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5 - 1e-9, dtype=torch.float64)
    r = schedule.unmask_probabilities(t, s)
    torch.testing.assert_close(r, 2e-9 * schedule.exponents.double(), rtol=1e-6, atol=0.0)


def test_times_are_rescaled_as_in_the_official_code(golden):
    tensors, record = golden("loss_genmd4_model")
    t = stratified_times(tensors["t0"], torch.arange(4), 4)
    close(rescale_times(t, record["config"]["t1"]), tensors["t_used"])


# Proofs on an enumerable world ----------------------------------------------------------------------------------------

EXPONENTS = torch.tensor([0.5, 1.0, 2.5, 1.0], dtype=torch.float64)  # of three tokens, and of the mask


@pytest.fixture
def world():
    return ToyWorld(vocab=3, length=3, seed=1)


def world_schedule(exponents=EXPONENTS, eps=0.0):
    schedule = TokenPolynomialSchedule(len(exponents), eps=eps).double()
    with torch.no_grad():
        schedule.free_exponents.copy_(torch.log(torch.expm1(exponents)))
    return schedule


def exact_denoiser(world, schedule):
    """The denoiser of the world under these schedules, a function of states and time."""
    return lambda xt, t: world.exact_logits_at(xt, t, schedule.exponents.detach())


def enumerated_loss(world, x0, t, schedule, logits_of):
    """E over x_t of the diffusion part of the NELBO of one sequence at time t, by enumeration."""
    states, _ = world.all_maskings(x0)
    x0s, times = x0.expand_as(states), torch.full((len(states),), t, dtype=torch.float64)
    log_q = log_forward_probability(schedule, times, x0s, states, world.mask).sum(1)
    loss = genmd4_token_nelbo(logits_of(states, t), x0s, states, schedule.exponents, times, world.mask).sum(1)
    return (log_q.exp() * loss).sum()


def quadrature(first_time, points=160):
    """Nodes and weights for the integral over t from `first_time` to 1, even in log t."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    log_t = math.log(first_time) * (1.0 - nodes) / 2.0
    t = np.exp(log_t)
    return t, weights * -math.log(first_time) / 2.0 * t


@pytest.mark.parametrize(
    "exponents", [EXPONENTS, EXPONENTS.flip(0), torch.tensor([1.0, 1.0, 1.0, 1.0]).double()], ids=str
)
def test_the_bound_of_the_exact_denoiser_is_the_likelihood_for_any_exponents(world, exponents):
    schedule, first_time = world_schedule(exponents), 1e-16
    logits_of = exact_denoiser(world, schedule)
    for x0, probability in zip(world.sequences[::5], world.probability[::5], strict=True):
        t, weights = quadrature(first_time)
        losses = [enumerated_loss(world, x0, float(time), schedule, logits_of).item() for time in t]
        recon = genmd4_reconstruction_nelbo(x0, schedule, first_time, world.mask).sum().item()
        nelbo = float(np.dot(losses, weights)) + recon
        # What is left to guess at t_1 is 1e-16 ** 0.5 per token.
        assert nelbo == pytest.approx(-math.log(probability), abs=1e-5)


def test_discrete_time_tends_to_continuous_time(world):
    """The T-step bound, sum of the KL between the two tables of a step, approaches the integral as 1/T."""
    schedule, x0, first = world_schedule(), world.sequences[7], 0.05
    w = schedule.exponents.detach()
    logits_of = world.exact_logits
    states, _ = world.all_maskings(x0)
    mu = logits_of(states).softmax(-1)
    own = mu[..., :-1].gather(-1, x0.expand_as(states)[..., None]).squeeze(-1)

    def step_bound(t, s):
        r = 1.0 - (s / t) ** w
        stay = 1.0 - (r * mu).sum(-1)
        r_own = r[x0]
        divergence = -r_own * own.log() + (1.0 - r_own) * ((1.0 - r_own).log() - stay.log())
        times = torch.full((len(states),), t, dtype=torch.float64)
        q = log_forward_probability(schedule, times, x0.expand_as(states), states, world.mask).sum(1).exp()
        return (q[:, None] * torch.where(states == world.mask, divergence, 0.0)).sum().item()

    t, weights = quadrature(first)
    with torch.no_grad():
        expected = sum(
            w_t * enumerated_loss(world, x0, float(time), schedule, lambda xt, _: logits_of(xt)).item()
            for time, w_t in zip(t, weights, strict=True)
        )
        errors = []
        for steps in (20, 200, 2000):
            grid = np.linspace(1.0, first, steps + 1)
            errors.append(sum(step_bound(float(a), float(b)) for a, b in itertools.pairwise(grid)) - expected)
    assert abs(errors[2]) < 2e-3 * expected
    assert errors[1] / errors[2] == pytest.approx(10.0, rel=0.1)


def gradient_estimates(world, copies, baseline, batches=100, size=300):
    """Estimates of the gradient of the loss at t=0.6 with respect to the parameters, one per batch of draws."""
    schedule, x0, t = world_schedule(eps=1e-4), world.sequences[11], 0.6
    generator = seeded(0)
    estimates = []
    for _ in range(batches):
        x0s = x0.expand(size, copies, -1)
        times = torch.full((size,), t, dtype=torch.float64)
        noise = torch.rand(x0s.shape, generator=generator, dtype=torch.float64)
        xt = torch.where(noise < schedule.alpha_of(times, x0s), x0s, world.mask).flatten(0, 1)
        x0s, times = x0s.flatten(0, 1), times.repeat_interleave(copies)
        losses = genmd4_token_nelbo(world.exact_logits(xt), x0s, xt, schedule.exponents, times, world.mask).sum(1)
        log_q = log_forward_probability(schedule, times, x0s, xt, world.mask).sum(1)
        losses, log_q = losses.view(size, copies), log_q.view(size, copies)
        surrogate = rloo_surrogate(losses, log_q) if baseline else (losses + losses.detach() * log_q).mean(1)
        (gradient,) = torch.autograd.grad(surrogate.mean(), schedule.free_exponents)
        estimates.append(gradient[:-1])
    return torch.stack(estimates)


@pytest.mark.parametrize("copies", [2, 3])
def test_the_leave_one_out_gradient_is_unbiased_and_varies_less_than_plain_reinforce(copies):
    # Of a longer sequence, as the baseline pays where the loss is larger than its spread: that grows with the length.
    world = ToyWorld(vocab=3, length=5, seed=1)
    schedule = world_schedule(eps=1e-4)
    loss = enumerated_loss(world, world.sequences[11], 0.6, schedule, lambda xt, _: world.exact_logits(xt))
    expected = torch.autograd.grad(loss, schedule.free_exponents)[0][:-1]
    ours, plain = (gradient_estimates(world, copies, baseline) for baseline in (True, False))
    for estimates in (ours, plain):
        # 100 batches of 300 examples: within 4.5 standard errors of the mean, for all three coordinates.
        error = (estimates.mean(0) - expected).abs() / (estimates.std(0) / math.sqrt(len(estimates)) + 1e-12)
        assert error.max() < 4.5
    assert ours.var(0).sum() < 0.8 * plain.var(0).sum()


def test_one_copy_has_no_leave_one_out_baseline():
    with pytest.raises(ValueError, match="`losses` must hold at least 2 copies, got 1"):
        rloo_surrogate(torch.ones(3, 1), torch.ones(3, 1))


# The sampler ----------------------------------------------------------------------------------------------------------


def sample_world(world, schedule, logits_of, steps, count, sampler="ancestral", planned=False, seed=0, **arguments):
    """Draw `count` sequences, one denoiser call per step for all masked positions, or for the plan's candidates."""
    scheduler = MaskedDiffusionScheduler(world.mask, "poly", 1.0, 0.0, "uniform", sampler, num_inference_steps=steps)
    scheduler.set_token_schedule(schedule)
    generator = seeded(seed)
    sample = torch.full((count, world.length), world.mask)
    asked = 0
    for t in scheduler.timesteps:
        logits = logits_of(sample, float(t))
        if planned:
            plan = scheduler.plan_step(t, sample, generator)
            asked += int(plan.candidates.sum())
            sample = scheduler.step(logits[plan.candidates], t, sample, plan=plan, **arguments).prev_sample
        else:
            asked += int((sample == world.mask).sum())
            sample = scheduler.step(logits, t, sample, generator=generator, **arguments).prev_sample
    return sample, asked


def token_probabilities(schedule, steps):
    grid = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    with torch.no_grad():
        r = schedule.unmask_probabilities(grid[:-1], grid[1:])
    r[:, -1] = 0.0
    return r


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("sampler", ["ancestral", "mean"])
@pytest.mark.parametrize("planned", [False, True])
def test_samples_have_the_distribution_of_the_enumerated_chain(world, steps, sampler, planned):
    schedule = world_schedule()
    times = torch.linspace(1.0, 0.0, steps + 1)[:-1].tolist()
    logits_of, r = exact_denoiser(world, schedule), token_probabilities(schedule, steps)
    expected = world.exact_chain(lambda xt, step: logits_of(xt, times[step]), r, takes_step=True)
    sample, _ = sample_world(world, schedule, logits_of, steps, 20_000, sampler, planned)
    assert p_value(world, sample, expected) > 1e-3


def test_filtered_samples_have_the_distribution_of_the_filtered_chain(world):
    schedule = world_schedule()

    def filtered(states, step=None):
        return top_p_logits(world.exact_logits(states), 0.7)

    expected = world.exact_chain(filtered, token_probabilities(schedule, 4))
    sample, _ = sample_world(world, schedule, lambda xt, t: world.exact_logits(xt), 4, 20_000, planned=True, top_p=0.7)
    assert p_value(world, sample, expected) > 1e-3


def test_many_steps_of_the_exact_denoiser_sample_the_data(world):
    schedule = world_schedule()
    sample, _ = sample_world(world, schedule, exact_denoiser(world, schedule), 400, 10_000, planned=True)
    assert p_value(world, sample, world.probability) > 1e-3


@pytest.mark.parametrize("sampler", ["ancestral", "mean"])
def test_thinning_gives_the_same_samples_with_fewer_questions(world, sampler):
    schedule, logits_of = world_schedule(), lambda xt, t: world.exact_logits(xt)
    full, all_asked = sample_world(world, schedule, logits_of, 50, 500, sampler)
    thinned, asked = sample_world(world, schedule, logits_of, 50, 500, sampler, planned=True)
    assert torch.equal(full, thinned)
    assert asked < 0.2 * all_asked


def test_the_exponent_of_the_mask_asks_no_questions(world):
    plans = []
    for own in (1e-3, 1e3):
        exponents = EXPONENTS.clone()
        exponents[world.mask] = own
        scheduler = MaskedDiffusionScheduler(world.mask, "poly", 1.0, 0.0, "uniform", num_inference_steps=50)
        scheduler.set_token_schedule(world_schedule(exponents))
        state = torch.full((300, world.length), world.mask)
        plans.append(scheduler.plan_step(1.0, state, seeded(0)).candidates)
    assert torch.equal(*plans) and not plans[0].all()


@pytest.mark.parametrize("planned", [False, True])
def test_rows_may_stand_at_different_times(world, planned):
    scheduler = MaskedDiffusionScheduler(world.mask, "poly", 1.0, 0.0, "uniform", num_inference_steps=4)
    scheduler.set_token_schedule(world_schedule())
    sample = torch.full((4 * 100, world.length), world.mask)
    times, logits = scheduler.timesteps.repeat_interleave(100), world.exact_logits(sample)

    def step(rows, t):
        generators = [seeded(seed) for seed in range(400)][rows]
        if not planned:
            return scheduler.step(logits[rows], t, sample[rows], generator=generators).prev_sample
        plan = scheduler.plan_step(t, sample[rows], generators)
        return scheduler.step(logits[rows][plan.candidates], t, sample[rows], plan=plan).prev_sample

    together = step(slice(None), times)
    for index, t in enumerate(scheduler.timesteps):
        rows = slice(100 * index, 100 * (index + 1))
        assert torch.equal(together[rows], step(rows, t))
    opened = (together != world.mask).view(4, -1).double().mean(1)
    assert opened[0] < 0.5 and opened[-1] == 1.0


def test_equal_exponents_are_the_scalar_sampler(world):
    power = 1.5
    schedule = world_schedule(torch.full((4,), power, dtype=torch.float64))
    scalar = MaskedDiffusionScheduler(world.mask, "poly", power, 0.0, "uniform", num_inference_steps=7)
    learned = MaskedDiffusionScheduler(world.mask, "poly", power, 0.0, "uniform", num_inference_steps=7)
    learned.set_token_schedule(schedule)
    states = [torch.full((300, world.length), world.mask)] * 2
    for t in scalar.timesteps:
        for number, scheduler in enumerate((scalar, learned)):
            generator = seeded(int(1000 * t))
            logits = world.exact_logits(states[number])
            states[number] = scheduler.step(logits, t, states[number], generator=generator).prev_sample
        assert torch.equal(*states)


def test_noise_is_added_by_each_tokens_own_schedule():
    scheduler = MaskedDiffusionScheduler(3, "poly", 1.0, 0.0)
    scheduler.set_token_schedule(world_schedule())
    x0 = torch.tensor([[0, 1, 2]]).expand(4000, 3)
    noised = scheduler.add_noise(x0, torch.full((4000,), 0.5), generator=seeded(0))
    masked = (noised == 3).double().mean(0)
    # Probability t^w; the standard error of 4000 draws is below 0.008.
    torch.testing.assert_close(masked, 0.5 ** EXPONENTS[:3], atol=4 * 0.008, rtol=0)
