# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Identities of the mathematics, proven by enumeration and quadrature in float64."""

import itertools

import numpy as np
import pytest
import torch
from toy import ToyWorld

from md4_hf import (
    corrupt,
    discretize_times,
    forward_rate,
    make_schedule,
    mean_from_score,
    nelbo_weight,
    reconstruction_nelbo,
    reverse_probabilities,
    reverse_rate,
    score_from_mean,
    stratified_times,
    token_nelbo,
    unmask_probability,
)
from md4_hf.core.masked_diffusion import denoiser_probabilities, draw_categorical, top_k_logits, top_p_logits


SCHEDULES = [("linear", 1.0), ("cosine", 1.0), ("poly", 0.5), ("poly", 2.0), ("poly", 3.0), ("geometric", 1.0)]
EVERY = [*SCHEDULES, ("loglinear", 1.0)]  # which begins at 1 whatever eps is
IDS = [f"{name}{power:g}" if name == "poly" else name for name, power in EVERY]
every_schedule = pytest.mark.parametrize(("name", "power"), EVERY, ids=IDS)


def quadrature(power: float, nodes: int = 200):
    """Gauss-Legendre nodes and weights on [0, 1]; after t = u^2 where alpha' is infinite at t = 0."""
    u, w = np.polynomial.legendre.leggauss(nodes)
    u, w = torch.from_numpy((u + 1) / 2), torch.from_numpy(w / 2)
    return (u**2, w * 2 * u) if power < 1 else (u, w)


def expected_nelbo(world, logits_of, x0, schedule, times, weights, num_timesteps=None):
    """The NELBO of one sequence, its expectation over times and maskings summed out."""
    xt, masked = world.all_maskings(x0)
    logits = logits_of(xt)
    total = 0.0
    for t, w in zip(times, weights, strict=True):
        alpha = schedule.alpha(t)
        probability = (1 - alpha) ** masked * alpha ** (world.length - masked)
        weight = nelbo_weight(schedule, t, num_timesteps).expand(len(xt))
        nelbo = token_nelbo(logits, x0.expand_as(xt), xt, weight, world.mask).sum(-1)
        total += w * (probability * nelbo).sum()
    return total


def test_the_log_linear_schedule_ends_at_eps_and_weighs_by_the_inverse_time():
    schedule, t = make_schedule("loglinear", eps=1e-3), torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    assert schedule.alpha(t[[0, -1]]).tolist() == pytest.approx([1.0, 1e-3], abs=1e-15)
    torch.testing.assert_close(nelbo_weight(schedule, t[1:]), 1.0 / t[1:])
    torch.testing.assert_close(unmask_probability(schedule, t[1:], t[:-1]), 1.0 - t[:-1] / t[1:])
    assert reconstruction_nelbo(schedule, 7, 100) == 0.0


@every_schedule
def test_nelbo_of_the_exact_denoiser_is_the_negative_log_likelihood(name, power):
    world, schedule = ToyWorld(), make_schedule(name, power=power, eps=0.0)
    times, weights = quadrature(power)
    # The geometric schedule stops short of its ends: exp(-1e-5) and exp(-20).
    tolerance = 1e-4 if name == "geometric" else 1e-8
    for index in (0, 7, 26):
        nelbo = expected_nelbo(world, world.exact_logits, world.sequences[index], schedule, times, weights)
        assert nelbo.item() == pytest.approx(-world.probability[index].log().item(), abs=tolerance)


@every_schedule
def test_continuous_nelbo_of_any_time_agnostic_denoiser_does_not_depend_on_the_schedule(name, power):
    world = ToyWorld()
    table = torch.randn(4, 4, 4, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits_of = lambda xt: table[tuple(xt.unbind(-1))].index_fill(-1, torch.tensor([3]), -1e9)  # noqa: E731
    x0 = world.sequences[5]
    nelbo, reference = (
        expected_nelbo(world, logits_of, x0, make_schedule(n, power=p, eps=0.0), *quadrature(p)).item()
        for n, p in ((name, power), ("linear", 1.0))
    )
    assert nelbo == pytest.approx(reference, abs=2e-4 if name == "geometric" else 1e-8)


@every_schedule
def test_discrete_time_nelbo_falls_to_the_continuous_one(name, power):
    if name == "geometric":
        pytest.skip("its steep middle needs far more steps than an enumeration allows")
    world, schedule = ToyWorld(), make_schedule(name, power=power, eps=0.0)
    x0, exact = world.sequences[5], -ToyWorld().probability[5].log().item()
    gaps = []
    for steps in (4, 16, 64, 256):
        times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        weights = torch.full((steps,), 1 / steps, dtype=torch.float64)
        nelbo = expected_nelbo(world, world.exact_logits, x0, schedule, times, weights, num_timesteps=steps)
        gaps.append(nelbo.item() - exact)
    assert all(later < earlier for earlier, later in itertools.pairwise(gaps))
    assert gaps[-1] > 0, "the bound of fewer steps is looser"
    assert gaps[-1] < 0.02 and gaps[-1] / gaps[-2] < 0.55


@every_schedule
def test_alpha_prime_is_the_derivative_of_alpha(name, power):
    schedule = make_schedule(name, power=power, eps=1e-4)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.alpha_prime(t), derivative, rtol=1e-10, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.1])
def test_alpha_falls_from_one_minus_eps_to_eps(name, power, eps):
    schedule = make_schedule(name, power=power, eps=eps)
    alpha = schedule.alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert (alpha.diff() < 1e-12).all()
    assert alpha[0].item() == pytest.approx(1 if name == "loglinear" else 1 - eps, abs=2e-5)
    assert alpha[-1].item() == pytest.approx(eps, abs=1e-8)


@every_schedule
def test_reverse_step_undoes_the_forward_process(name, power):
    """If x_t has the forward marginal at t, one exact reverse step gives it the forward marginal at s."""
    schedule = make_schedule(name, power=power)
    data = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    logits = torch.nn.functional.pad(data.log(), (0, 1))
    t, s = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)

    def marginal(time):
        alpha = schedule.alpha(time)
        return torch.cat([alpha * data, (1 - alpha)[None]])

    at_t = marginal(t)
    table = reverse_probabilities(logits[None], unmask_probability(schedule, t, s)[None], 3)[0]
    at_s = torch.cat([at_t[:3], torch.zeros(1)]) + at_t[3] * table
    torch.testing.assert_close(at_s, marginal(s), atol=1e-12, rtol=0)


@every_schedule
def test_rates_are_the_limits_of_small_steps(name, power):
    schedule, t = make_schedule(name, power=power), torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    step = 1e-7
    masked = 1 - schedule.alpha(t + step) / schedule.alpha(t)
    torch.testing.assert_close(masked / step, forward_rate(schedule, t), rtol=1e-4, atol=1e-9)
    opened = unmask_probability(schedule, t + step, t)
    torch.testing.assert_close(opened / step, reverse_rate(schedule, t), rtol=1e-4, atol=1e-9)


def test_score_view_satisfies_detailed_balance_of_rates_and_inverts():
    """Reverse rate = forward rate x score: -alpha'/(1-alpha) mu_j = beta(t) s_j."""
    schedule, t = make_schedule("cosine"), torch.tensor([0.2, 0.7], dtype=torch.float64)
    mean = torch.rand(2, 5, 4, dtype=torch.float64).softmax(-1)
    score = score_from_mean(mean, schedule.alpha(t))
    forward, reverse = (rate(schedule, t)[:, None, None] for rate in (forward_rate, reverse_rate))
    torch.testing.assert_close(forward * score, reverse * mean)
    torch.testing.assert_close(mean_from_score(score, schedule.alpha(t)), mean)


def test_nelbo_weight_is_finite_and_positive_at_both_ends_with_eps():
    for name, power in SCHEDULES:
        weight = nelbo_weight(make_schedule(name, power=max(power, 1.0)), torch.tensor([0.0, 1.0]))
        assert weight.isfinite().all() and (weight >= 0).all(), name


def test_token_nelbo_is_zero_where_nothing_is_masked_even_at_infinite_weight():
    x0 = torch.tensor([[0, 1, 2]])
    nelbo = token_nelbo(torch.randn(1, 3, 4), x0, torch.tensor([[0, 3, 2]]), torch.tensor([torch.inf]), 3)
    assert nelbo[0, 0] == 0 and nelbo[0, 2] == 0 and nelbo[0, 1] == torch.inf


def test_token_nelbo_does_not_score_ignored_tokens():
    x0 = torch.tensor([[0, -100, 2]])
    nelbo = token_nelbo(torch.randn(1, 3, 4), x0, torch.full((1, 3), 3), torch.ones(1), 3)
    assert nelbo[0, 1] == 0 and (nelbo[0, [0, 2]] > 0).all()


def test_corruption_masks_the_right_share_and_nothing_else_changes():
    x0 = torch.randint(5, (400, 500), generator=torch.Generator().manual_seed(0))
    alpha = torch.linspace(0, 1, 400)
    xt = corrupt(x0, alpha, 5, generator=torch.Generator().manual_seed(1))
    assert ((xt == x0) | (xt == 5)).all()
    kept = (xt != 5).float().mean(-1)
    assert (kept - alpha).abs().max() < 4.5 * 0.5 / 500**0.5
    assert (xt[0] == 5).all() and (xt[-1] == x0[-1]).all()


def test_nothing_is_left_where_the_probability_of_staying_is_zero():
    x0, noise = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0.0, 0.5, 1.0 - 2.0**-24]])
    assert (corrupt(x0, torch.tensor([0.0]), 9, noise=noise) == 9).all()
    assert (corrupt(x0, torch.tensor([1.0]), 9, noise=noise) == x0).all()


def test_corruption_takes_one_probability_per_token_too():
    x0 = torch.zeros(2, 3, dtype=torch.long)
    alpha = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert corrupt(x0, alpha, 9).tolist() == [[0, 9, 0], [9, 0, 9]]


def test_corruption_of_noise_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="`noise` must have the shape"):
        corrupt(torch.zeros(2, 3), torch.ones(2), 9, noise=torch.zeros(2, 4))


def test_stratified_times_hit_every_stratum_once():
    times = stratified_times(0.37, torch.arange(16), 16)
    assert sorted((times * 16).long().tolist()) == list(range(16))


def test_discretised_times_lie_on_the_grid_without_zero():
    times = discretize_times(torch.tensor([0.0, 0.124, 0.125, 0.999]), 8)
    torch.testing.assert_close(times, torch.tensor([0.125, 0.125, 0.25, 1.0]))


def test_reconstruction_vanishes_for_the_exact_schedule():
    assert reconstruction_nelbo(make_schedule("linear", eps=0.0), 100, 27) == 0
    value = reconstruction_nelbo(make_schedule("linear", eps=1e-4), 100, 27)
    assert value.item() == pytest.approx(100 * 1e-4 * np.log(27), rel=1e-3)


def test_unmask_probability_is_one_where_all_is_unmasked_already():
    schedule = make_schedule("linear", eps=0.0)
    assert unmask_probability(schedule, torch.tensor(0.0), torch.tensor(0.0)) == 1.0
    assert unmask_probability(schedule, torch.tensor(1.0), torch.tensor(0.0)) == 1.0


def test_denoiser_probabilities_never_give_the_mask_a_chance():
    logits = torch.randn(4, 6)
    logits[:, 2] = 50.0
    mu = denoiser_probabilities(logits, 2)
    assert (mu[:, 2] == 0).all() and mu.dtype == torch.float64
    torch.testing.assert_close(mu.sum(-1), torch.ones(4, dtype=torch.float64))


def test_categorical_draw_inverts_the_cumulative_distribution():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    drawn = draw_categorical(probabilities.expand(6, 6), uniform)
    assert drawn.tolist() == [1, 1, 3, 3, 4, 4]


def test_a_category_of_probability_zero_is_not_drawn_where_the_threshold_is_rounded_up_to_the_total():
    least = 5e-324  # 0.75 of it is rounded to itself
    probabilities = torch.tensor([[0.0, least, 0.0]], dtype=torch.float64)
    assert draw_categorical(probabilities, torch.tensor([0.75], dtype=torch.float64)).item() == 1


def test_categorical_draw_keeps_tails_that_float32_loses():
    """A category of probability 1e-9 lies beyond float32's last step below 1."""
    probabilities = torch.tensor([[1 - 1e-9, 1e-9]], dtype=torch.float64)
    assert draw_categorical(probabilities, torch.tensor([1 - 5e-10], dtype=torch.float64)).item() == 1


def test_top_k_and_top_p_keep_at_least_the_most_probable_token():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    for filtered in (top_p_logits(logits, 1e-9), top_k_logits(logits, 1)):
        assert (filtered > torch.finfo(torch.float32).min).tolist() == [[True, False, False, False]]
    assert top_p_logits(torch.full((2, 3), torch.nan), 0.5).shape == (2, 3), "the draw says what is wrong"
    assert torch.equal(top_p_logits(logits, 1.0), logits) and torch.equal(top_k_logits(logits, 9), logits)
    assert torch.equal(logits, torch.tensor([[3.0, 1.0, 2.0, 0.0]])), "the input is not modified"


def test_a_nucleus_that_reaches_top_p_exactly_is_large_enough():
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    assert logits.softmax(-1)[0] == 0.5
    lowest = torch.finfo(torch.float64).min
    assert (top_p_logits(logits, 0.5) > lowest).tolist() == [True, False, False]
    assert (top_p_logits(logits, 0.5 + 1e-9) > lowest).tolist() == [True, True, True], "equals stay together"


def test_denoiser_probabilities_of_float32_logits_are_computed_in_float64():
    logits = torch.linspace(-20.0, 0.0, 50)
    mu = denoiser_probabilities(logits, 7)
    weights = logits.double().exp()
    weights[7] = 0.0
    torch.testing.assert_close(mu, weights / weights.sum(), rtol=1e-13, atol=0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_schedule("sigmoid"), "`masking_schedule` must be one of .* got 'sigmoid'"),
        (lambda: make_schedule("linear", eps=0.5), r"`eps` must be in \[0, 0.5\), got 0.5"),
        (lambda: make_schedule("poly", power=0.0), "`power` must be > 0, got 0.0"),
        (lambda: top_p_logits(torch.zeros(1, 2), 0.0), r"`top_p` must be in \(0, 1\], got 0.0"),
        (lambda: top_k_logits(torch.zeros(1, 2), 0), "`top_k` must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
