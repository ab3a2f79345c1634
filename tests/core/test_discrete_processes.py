# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Kernels and bounds of the baselines: recorded cases of their authors, and an enumerable world."""

import math

import numpy as np
import pytest
import torch
from discrete_world import World, chain

from md4_hf import make_schedule, token_nelbo
from md4_hf.core.discrete_kernels import Kernel, score_entropy, uniform_nelbo
from md4_hf.core.discrete_processes import (
    PROCESSES,
    AbsorbingChain,
    ChainProcess,
    MultinomialChain,
    ScoreProcess,
    UniformChain,
    UniformProcess,
)
from md4_hf.core.masked_diffusion import nelbo_weight
from md4_hf.core.schedules import LogLinearSchedule


MASK = 8  # of the recorded absorbing chain
CHAINS = [
    (kind, steps, suffix)
    for kind, suffix in [("absorbing", ""), ("absorbing", "_without_mask"), ("uniform", ""), ("multinomial", "")]
    for steps in (8, 1000)
]


def recorded_chain(kind, steps, num_states):
    """Process of a record."""
    if kind == "absorbing":
        return AbsorbingChain(Kernel(num_states, MASK), steps)
    return {"uniform": UniformChain, "multinomial": MultinomialChain}[kind](Kernel(num_states), steps)


def worst(x, y):
    return (x - y).abs().max().item()


# Recorded cases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "steps", "suffix"), CHAINS)
def test_chains_agree_with_their_authors(golden, kind, steps, suffix):
    """Marginals, posteriors, reverse steps, terms of the bound and prior of D3PM and multinomial diffusion."""
    tensors, record = golden("peers/d3pm_v16")
    case = {key.split("/", 2)[2]: x for key, x in tensors.items() if key.startswith(f"{kind}/T{steps}/")}
    exact = "exact_" if kind != "multinomial" else ""  # theirs add 1e-6 to probabilities
    logits, x0, xt = case["logits" + suffix], case["x0"], case["xt"]
    process = recorded_chain(kind, steps, logits.shape[-1])
    t = (case["t"].double() + 1) / steps  # their steps count from 0
    s = case["t"].double() / steps
    alpha_t, alpha_s = process.alpha(t), process.alpha(s)
    one_hot = process.kernel.one_hot(x0, logits.double())
    tolerance = record["tolerance"]["probabilities"]
    assert worst(process.kernel.marginal(one_hot, alpha_t), case["q_xt_probs"]) < tolerance
    posterior = process.kernel.posterior(one_hot, xt, alpha_t, alpha_s)
    assert worst(posterior, case[exact + "q_posterior_probs"]) < tolerance
    assert worst(process.reverse(logits, xt, t, s), case[exact + "p_probs" + suffix]) < tolerance
    expected = case[exact + "vb_token" + suffix]
    found = process.token_nelbo(logits, x0, xt, t.float()) / steps
    if kind == "multinomial":  # our first step's divergence from x_0 is their -log p(x_0 | x_1)
        assert worst(found.sum(dim=1), case["vb_sequence"]) < 1e-4 * max(1.0, case["vb_sequence"].max())
    assert worst(found, expected) < 1e-4 * expected.max()
    if kind != "absorbing":
        assert abs(process.prior_nats * x0.shape[1] - case["prior_kl"][0].item()) < 5e-6
    if kind == "uniform":
        ends = torch.arange(1, steps + 1).double() / steps
        keeps = process.alpha(ends) / process.alpha(ends - 1.0 / steps)
        assert worst(1.0 - keeps, case["betas"]) < record["tolerance"]["betas"]


def test_the_hybrid_loss_is_recorded_up_to_a_factor(golden):
    """Our weighted mean is D3PM's sum of the bound and lambda times the cross entropy, times a constant."""
    tensors, record = golden("peers/d3pm_v16")
    case = {key.split("/", 2)[2]: x for key, x in tensors.items() if key.startswith("uniform/T1000/")}
    process = UniformChain(Kernel(16), 1000, hybrid_weight=record["config"]["hybrid_coeff"])
    t = (case["t"] + 1) / 1000
    nelbo = process.token_nelbo(case["logits"], case["x0"], case["xt"], t)
    loss = process.token_loss(nelbo, case["logits"], case["x0"]) * (1.0 + 1000 * process.hybrid_weight) / 1000
    expected = case["exact_vb_token"] + process.hybrid_weight * case["cross_entropy_token"]
    assert worst(loss, expected) < 1e-5 * expected.max()


@pytest.mark.parametrize("name", ["log-linear", "cosine"])
def test_the_uniform_kernel_agrees_with_duo(golden, name):
    """Loss per token, posteriors and the last step, at their values of alpha."""
    tensors, record = golden("peers/duo_v24")
    logits, x0 = tensors["inputs/logits"], tensors["inputs/x0"]
    alpha, alpha_prime, xt = (tensors[f"{name}/{key}"] for key in ("alpha", "dalpha", "xt"))
    found = uniform_nelbo(logits.double(), x0, xt, alpha.double(), alpha_prime.double())
    expected = tensors[f"{name}/loss_token"]
    most = 1e-4 * expected.amax(dim=1).clamp(min=1.0)
    assert ((found - expected).abs().amax(dim=1) < most).all()
    kernel, prediction = Kernel(24), logits.double().softmax(dim=-1)
    ones = torch.ones_like(alpha)
    last = kernel.posterior(prediction, xt, alpha.double(), ones.double())
    assert worst(last, tensors[f"{name}/last_step_probs"]) < record["tolerance"]["probabilities"]
    if name == "log-linear":
        schedule, t = LogLinearSchedule(eps=1e-3), tensors["inputs/t"].double()
        process = UniformProcess(kernel, schedule)
        assert worst(process.alpha(t), alpha) < 1e-6
        p_probs = process.reverse(logits, xt, t, t - tensors["inputs/dt"])
        assert worst(p_probs, tensors[f"{name}/p_probs"]) < record["tolerance"]["probabilities"]


def test_the_score_entropy_agrees_with_sedd(golden):
    """Loss and steps of the recorded SEDD, of its head's values as logits."""
    tensors, record = golden("peers/sedd_absorb_h64")
    mask, num_states = record["config"]["tokens"], record["config"]["tokens"] + 1
    process = ScoreProcess(Kernel(num_states, mask), LogLinearSchedule(eps=1e-3))
    x0, xt, t = (tensors[f"inputs/{key}"] for key in ("x0", "input_ids", "t"))
    logits, is_masked = tensors["outputs/head_logits"], xt == mask
    log_score = process.log_score(logits, t)
    expected = tensors["outputs/log_score"][is_masked]
    assert worst(log_score[is_masked][:, :mask], expected[:, :mask]) < 1e-4
    entropy = score_entropy(log_score, x0, xt, process.alpha(t), mask)
    assert worst(entropy, tensors["outputs/score_entropy_token"]) < 1e-4 * entropy.max()
    loss = tensors["outputs/loss_token"]
    assert worst(process.token_nelbo(logits, x0, xt, t), loss) < 1e-4 * loss.max()


# Enumerable world -----------------------------------------------------------------------------------------------------


CHAIN_NAMES = [name for name, process in PROCESSES.items() if issubclass(process, ChainProcess)]


@pytest.mark.parametrize("name", CHAIN_NAMES)
def test_a_chain_bounds_its_own_probability(name):
    """For any denoiser, the bound of each sequence is at least -log of its probability at the end of the chain."""
    world, process = World(3, 2), chain(name, 3, 5)
    generator = torch.Generator().manual_seed(1)
    shape = (len(world.states(process)), world.length, process.kernel.num_states)
    tables = {k: 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64) for k in range(1, 6)}
    if process.is_absorbing:
        for table in tables.values():
            table[..., -1] = -1e4

    def logits_of(t):
        return tables[round(t.item() * 5)]

    bound = world.chain_bound(process, logits_of)
    probability = world.chain_probability(process, logits_of, process.num_timesteps)
    assert abs(probability.sum() - 1.0) < 1e-9
    assert (bound > -probability.log() - 1e-9).all()
    assert (bound + probability.log()).max() > 0.01  # this is no exact denoiser


@pytest.mark.parametrize("name", CHAIN_NAMES)
def test_of_a_single_token_the_exact_chain_has_no_gap(name):
    """Steps factorise over tokens, so that for one token the bound of the exact denoiser is -log p."""
    world, process = World(4, 1), chain(name, 4, 6)

    def logits_of(t):
        is_first = round(t.item() * 6) == 1 and name != "multinomial"  # D3PM's first step is the prediction itself
        return world.exact_logits(process, t, sees_itself=is_first)

    gap = world.chain_bound(process, logits_of) + world.probability.log()
    # The chain ends near its noise, not in it: the reverse process starts a little off.
    assert gap.abs().max() < 1e-4
    assert (world.probability * gap).sum() > -1e-12


@pytest.mark.parametrize("name", CHAIN_NAMES)
def test_more_steps_close_the_gap(name):
    """With the exact denoiser the expected bound falls towards the entropy as the number of steps grows."""
    world, gaps = World(3, 2), []
    for steps in (4, 16, 64):
        process = chain(name, 3, steps)

        def logits_of(t, process=process, steps=steps):
            is_first = round(t.item() * steps) == 1 and name != "multinomial"
            return world.exact_logits(process, t, sees_itself=is_first)

        gaps.append((world.probability * (world.chain_bound(process, logits_of) + world.probability.log())).sum())
    assert gaps[0] > 2.5 * gaps[1] > 5 * gaps[2] > 0


def test_an_absorbing_chain_is_md4_in_discrete_time():
    """Beyond the first step, D3PM's term is MD4's cross entropy with its weight, 1/k, if the mask is none."""
    steps, vocab = 10, 5
    process = chain("d3pm-absorb", vocab, steps)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(vocab, (9, 7), generator=generator)
    t = torch.arange(2, steps + 1) / steps
    xt = process.draw_xt(x0, t, torch.rand(9, 7, 2, generator=generator))
    logits = torch.randn(9, 7, vocab + 1, generator=generator, dtype=torch.float64)
    logits[..., vocab] = torch.finfo(logits.dtype).min
    schedule = make_schedule("linear", eps=0.0)
    expected = token_nelbo(logits, x0, xt, nelbo_weight(schedule, t.double(), steps), vocab)
    torch.testing.assert_close(process.token_nelbo(logits, x0, xt, t), expected, atol=1e-6, rtol=1e-6)


def quadrature(function, points=60):
    """Integral over t in (0, 1); t = u^2, as the integrand has a logarithm at 0."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    u, weights = (torch.tensor(x) / 2.0 for x in (nodes + 1.0, weights))
    return sum(2.0 * u_i * w * function(u_i**2) for u_i, w in zip(u, weights, strict=True))


def test_in_continuous_time_the_exact_uniform_process_has_no_gap():
    """Its bound is -log p of each sequence."""
    world, process = World(3, 2), chain("uniform", 3, None)
    bound = quadrature(lambda t: world.bound_at(process, t, world.exact_logits(process, t)))
    bound += process.prior_nats * world.length
    torch.testing.assert_close(bound, -world.probability.log(), atol=2e-4, rtol=0)


def test_the_exact_score_gives_the_bound_of_md4():
    """Of a consistent score, SEDD's terms are those of MD4; of any other they are more."""
    vocab = 4
    process = chain("sedd-absorb", vocab, None)
    generator = torch.Generator().manual_seed(3)
    x0, t = torch.randint(vocab, (6, 5), generator=generator), torch.linspace(0.05, 1.0, 6)
    xt = process.draw_xt(x0, t, torch.rand(6, 5, 2, generator=generator))
    logits = torch.randn(6, 5, vocab + 1, generator=generator, dtype=torch.float64)
    logits[..., vocab] = torch.finfo(logits.dtype).min
    score = logits.log_softmax(dim=-1) + math.log(vocab)
    torch.testing.assert_close(process.total_score(score), torch.ones(6, 5, dtype=torch.float64))
    expected = token_nelbo(logits, x0, xt, nelbo_weight(process.schedule, t.double()), vocab)
    torch.testing.assert_close(process.token_nelbo(score, x0, xt, t), expected, atol=1e-5, rtol=1e-5)
    for factor in (0.5, 3.0):  # an inconsistent one costs factor - 1 - log(factor) at each rate of unmasking
        more = process.token_nelbo(score + math.log(factor), x0, xt, t) - expected
        rate = nelbo_weight(process.schedule, t.double())[:, None] * (xt == vocab)
        torch.testing.assert_close(more, rate * (factor - 1 - math.log(factor)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_euler", [False, True])
def test_steps_of_the_exact_score_are_steps_of_md4(is_euler):
    """Analytic and Euler steps agree with the reverse step of MD4 on the log-linear schedule."""
    vocab = 4
    schedule = LogLinearSchedule(eps=1e-3)
    process = ScoreProcess(Kernel(vocab + 1, vocab), schedule, is_euler)
    logits = torch.randn(3, 2, vocab + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[..., vocab] = torch.finfo(logits.dtype).min
    t = torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64)
    s = torch.tensor([0.7, 0.5, 0.0], dtype=torch.float64)
    xt = torch.tensor([[vocab, 1], [vocab, vocab], [0, vocab]])
    table = process.reverse(logits.log_softmax(dim=-1) + math.log(vocab), xt, t, s)
    opens = ((schedule.alpha(s) - schedule.alpha(t)) / (1.0 - schedule.alpha(t)))[:, None, None]
    expected = opens * logits.softmax(dim=-1)
    expected[..., vocab] = 1.0 - opens.squeeze(-1)
    expected = torch.where((xt == vocab)[..., None], expected, process.kernel.one_hot(xt, expected))
    torch.testing.assert_close(table, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_is_drawn_from_the_marginal(name):
    """Frequencies of noised states, at a middle time, are those of the kernel's marginal."""
    process, vocab, draws = chain(name, 5, 20), 5, 40_000
    x0, t = torch.full((1, draws), 2), torch.tensor([0.6])
    xt = process.draw_xt(x0, t, torch.rand(1, draws, 2, generator=torch.Generator().manual_seed(0)))
    one_hot = process.kernel.one_hot(x0[:, :1], torch.zeros((), dtype=torch.float64))
    expected = process.kernel.marginal(one_hot, process.alpha(t))[0, 0]
    found = xt[0].bincount(minlength=process.kernel.num_states) / draws
    assert len(expected) == vocab + process.is_absorbing
    assert (found - expected).abs().max() < 5 * math.sqrt(0.25 / draws)  # five standard deviations
