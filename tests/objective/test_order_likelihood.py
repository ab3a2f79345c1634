# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Likelihood of an order, by enumeration: sums to one, is what the sampler does, and depends on no batch."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from diffusers import DDPMScheduler
from tiny import quiet, random_image_model, random_model, seeded, training_arguments
from toy import DRAWS, LEAST_P, ToyWorld, p_value

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4Config, MD4Trainer
from md4_hf.cli.options import POLICY_ORDERS
from md4_hf.core.opening_orders import ORDERS
from md4_hf.evaluation.rounds import Stopping, evaluate_in_rounds
from md4_hf.objective.order_likelihood import OrderLikelihood


WORLD = ToyWorld(vocab=3, length=4, seed=1)
CONFIG = MD4Config(vocab_size=4, mask_token_id=3)
FIRST = torch.zeros(len(WORLD.sequences), dtype=torch.long)  # all sequences as the same example: with the same noise
MANY_STEPS = 2**16  # in which two of four positions hardly ever open at once
EXACT_ORDERS = [
    *({"order": name} for name in ("confidence", "margin", "entropy", "sequential")),
    {"order": "confidence", "num_inference_steps": 1},
    {"order": "confidence", "num_inference_steps": 3, "quota": "floor", "timestep_grid": "uniform"},
    {"order": "margin", "num_inference_steps": 2},
    {"order": "threshold", "threshold": 0.5},
    {"order": "factor", "factor": 1.5},
    {"order": "entropy_bound", "entropy_bound": 0.8},
    {"order": "klass", "threshold": 0.4, "kl_bound": 2.0},
]
DRAWN_ORDERS = [
    {"order": "random"},
    {"order": "random", "num_inference_steps": 3},
    {"order": "confidence", "num_inference_steps": 3, "quota": "binomial"},
    {"order": "entropy", "order_temperature": 0.7},
]


def name_of(options):
    return "-".join(map(str, options.values()))


exact_orders = pytest.mark.parametrize("options", EXACT_ORDERS, ids=name_of)
all_orders = pytest.mark.parametrize("options", EXACT_ORDERS + DRAWN_ORDERS, ids=name_of)


def likelihood_of(config=CONFIG, **options):
    """Likelihood under a sampler of 16 steps, unless told otherwise."""
    scheduler = MaskedDiffusionScheduler(config.mask_token_id, **{"num_inference_steps": 16, **options})
    return OrderLikelihood(scheduler, config)


def exact_denoiser(input_ids, timesteps, position_mask):
    return SimpleNamespace(logits=WORLD.exact_logits(input_ids)[position_mask])


def network(length=4, std=0.4, **options):
    """A random network in float64, as rounding would swap positions that are nearly tied."""
    options = {"time_conditioning": False, **options}
    return random_model(4, length, std, **options).eval().double()


# The law of the sampler -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sees_time", [False, True])
@all_orders
def test_the_probabilities_of_all_sequences_sum_to_one(options, sees_time):
    likelihood = likelihood_of(**options)
    for model in (exact_denoiser, network(time_conditioning=sees_time)):
        nats = likelihood.nats(model, {"input_ids": WORLD.sequences}, FIRST, num_draws=1 if likelihood.is_exact else 3)
        totals = (-nats).exp().sum(dim=1)
        torch.testing.assert_close(totals, torch.ones_like(totals), rtol=0, atol=1e-10)


@all_orders
def test_with_the_exact_denoiser_and_one_token_a_step_it_is_minus_log_p(options):
    """By the chain rule, in any order."""
    if "threshold" in options or "factor" in options or "entropy_bound" in options:
        options = {**options, "threshold": 1.0, "factor": 1e-9, "entropy_bound": 0.0}
    likelihood = likelihood_of(**{**options, "num_inference_steps": MANY_STEPS, "quota": "ceil"})
    nats = likelihood.nats(exact_denoiser, {"input_ids": WORLD.sequences}, torch.arange(len(WORLD.sequences)))
    torch.testing.assert_close(nats[0], -WORLD.probability.log(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sees_time", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"order": "confidence", "num_inference_steps": 2},
        {"order": "entropy_bound", "entropy_bound": 1.2, "num_inference_steps": 8},
        {"order": "sequential", "num_inference_steps": 4, "temperature": 1.0},
    ],
    ids=name_of,
)
def test_it_is_the_frequency_of_the_samplers_draws(options, sees_time):
    model = network(time_conditioning=sees_time)
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(CONFIG.mask_token_id, **options)))
    sample = pipe(num_samples=DRAWS // 4, length=4, generator=seeded(3), output_type="ids").sequences
    nats = OrderLikelihood(pipe.scheduler, model.config).nats(model, {"input_ids": WORLD.sequences}, FIRST)
    assert p_value(WORLD, sample, (-nats[0]).exp()) > LEAST_P


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_of_random_orders_the_mean_probability_is_that_of_the_enumerated_chain(steps):
    likelihood, model = likelihood_of(num_inference_steps=steps), network()
    expected = WORLD.exact_chain(lambda xt: model(xt).logits, likelihood.scheduler.unmask_probabilities())
    draws = 200
    rows, index = WORLD.sequences.repeat(draws, 1), torch.arange(draws).repeat_interleave(len(WORLD.sequences))
    p = (-likelihood.nats(model, {"input_ids": rows}, index)[0]).exp().view(draws, -1)
    error = p.std(dim=0) / math.sqrt(draws)
    assert ((p.mean(dim=0) - expected).abs() < 4.5 * error + 1e-12).all()


def test_of_random_orders_the_mean_of_nats_is_the_any_order_bound_above_minus_log_p():
    model, x0 = network(), WORLD.sequences[40][None]
    orders = list(itertools.permutations(range(4)))
    states = torch.stack([x0[0].index_fill(0, torch.tensor(order[k:]), 3) for order in orders for k in range(4)])
    mu = model(states).logits.log_softmax(dim=-1).view(len(orders), 4, 4, 4)
    of_order = torch.stack(
        [sum(-mu[i, k, n, x0[0, n]] for k, n in enumerate(order)) for i, order in enumerate(orders)]
    )
    likelihood, draws = likelihood_of(num_inference_steps=MANY_STEPS), 1500
    nats = likelihood.nats(model, {"input_ids": x0.repeat(draws, 1)}, torch.arange(draws), seed=5)[0]
    assert torch.isclose(nats[:, None], of_order, rtol=0, atol=1e-10).any(dim=1).float().mean() > 0.99
    assert abs(nats.mean() - of_order.mean()) < 4.0 * nats.std() / math.sqrt(draws)
    minus_log_p = -(-of_order).exp().mean().log()
    groups = -(-nats.view(-1, 2)).exp().mean(dim=1).log()  # of the mean of two draws: biased upwards, by less
    assert minus_log_p < groups.mean() < nats.mean()


@all_orders
def test_given_tokens_are_a_condition(options):
    """The probabilities of all that may stand in the gaps sum to one, and prompts are not scored."""
    prompt = torch.tensor([1, 0, 0, 2])
    rows = WORLD.sequences[(WORLD.sequences[:, [0, 3]] == prompt[[0, 3]]).all(dim=1)]
    labels = rows.clone()
    labels[:, [0, 3]] = -100
    likelihood, model = likelihood_of(**options), network()
    nats = likelihood.nats(model, {"input_ids": rows, "labels": labels}, FIRST[: len(rows)])
    torch.testing.assert_close((-nats).exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-10)
    given = {"input_ids": rows, "labels": torch.full_like(labels, -100)}
    nats, num_tokens = likelihood(model, given, FIRST[: len(rows)], seed=0, num_draws=2)
    assert not nats.any() and not num_tokens.any()


def test_images_have_a_likelihood_too():
    model = random_image_model(2, 4, std=0.3).eval().double()
    fill = torch.tensor([0, 3, 9])
    images = torch.zeros(8, 16, dtype=torch.long)
    images[:, fill] = torch.tensor(list(itertools.product(range(2), repeat=3)))
    labels = torch.full_like(images, -100).index_copy(1, fill, images[:, fill])
    inputs = {"input_ids": images.view(8, 1, 4, 4), "labels": labels.view(8, 1, 4, 4)}
    for order in ("confidence", "random"):
        nats = likelihood_of(model.config, order=order, num_inference_steps=2).nats(model, inputs, FIRST[:8])
        assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-10)


def test_the_schedulers_temperature_and_cuts_do_not_count_and_no_position_is_decoded_by_arg_max():
    plain, model = likelihood_of(num_inference_steps=2), network()
    options = {"temperature": 0.3, "top_k": 1, "top_p": 0.4, "final_decode": "argmax", "schedule_eps": 0.2}
    cut = likelihood_of(num_inference_steps=2, **options)
    for likelihood in (plain, cut):
        nats = likelihood.nats(model, {"input_ids": WORLD.sequences}, FIRST)
        assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-10)


def test_a_token_that_is_never_drawn_has_no_likelihood():
    model = random_model(6, 4, std=0.4, unused_token_ids=[[4, 5]], mask_token_id=5, time_conditioning=False).eval()
    nats = likelihood_of(model.config, order="confidence").nats(
        model, {"input_ids": torch.tensor([[0, 1, 2, 3], [0, 4, 2, 3]])}, torch.arange(2)
    )
    assert nats[0, 0].isfinite() and nats[0, 1] == math.inf


# Batches --------------------------------------------------------------------------------------------------------------


def padded(rows, pad):
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])}


@pytest.mark.parametrize("pad", [0, 3])  # also by the mask
@all_orders
def test_a_row_depends_neither_on_the_batch_nor_on_padding(options, pad):
    rows = [[0, 1, 2, 2, 1, 0, 0], [2, 1, 0], [1], [1, 1, 0, 2, 0]]
    likelihood, model = likelihood_of(**options), network(length=8, time_conditioning=True)
    together = likelihood.nats(model, padded(rows, pad), torch.tensor([4, 0, 2, 9]), seed=3, num_draws=2)
    for row, index, nats in zip(rows, [4, 0, 2, 9], together.T, strict=True):
        given = {"input_ids": torch.tensor([row])}
        alone = likelihood.nats(model, given, torch.tensor([index]), seed=3, num_draws=2)
        torch.testing.assert_close(alone[:, 0], nats, rtol=1e-9, atol=1e-9)


def test_packed_documents_have_the_likelihoods_of_each():
    documents = [[0, 1, 2], [2, 2, 1, 0, 1]]
    likelihood, model = likelihood_of(order="sequential", num_inference_steps=64), network(length=8)
    packed = {
        "input_ids": torch.tensor([[*documents[0], *documents[1]]]),
        "document_ids": torch.tensor([[0] * 3 + [1] * 5]),
    }
    together = likelihood.nats(model, packed, torch.tensor([0]))
    alone = likelihood.nats(model, padded(documents, 0), torch.tensor([0, 1]))
    assert together.item() == pytest.approx(alone.sum().item(), abs=1e-9)


@exact_orders
def test_there_are_as_many_calls_as_the_sampler_makes_and_no_more_than_tokens(options):
    model, masked = network(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: masked.append(int((kwargs["input_ids"] == 3).sum())), with_kwargs=True
    )
    likelihood = likelihood_of(**options)
    likelihood.nats(model, {"input_ids": WORLD.sequences[:1]}, torch.tensor([0]))
    assert 1 <= len(masked) <= min(4, likelihood.scheduler.num_inference_steps)
    assert masked[0] == 4 and sorted(set(masked), reverse=True) == masked


def examples(count=9):
    generator = seeded(0)
    rows = [torch.randint(3, (3 + n % 5,), generator=generator).tolist() for n in range(count)]
    return Dataset.from_dict({"input_ids": rows, "num_characters": [float(len(row)) for row in rows]})


def make_trainer(folder, likelihood, **options):
    trainer = MD4Trainer(model=network(length=8).float(), args=training_arguments(folder, **options))
    trainer.evaluate_by(likelihood)
    return trainer


@pytest.mark.parametrize("options", [{"order": "confidence"}, {"order": "random"}], ids=name_of)
def test_a_trainer_evaluates_by_it_in_any_batches_and_order(tmp_path, options):
    likelihood, losses = likelihood_of(**options), []
    for batch in (1, 4, 16):
        trainer = make_trainer(tmp_path, likelihood, per_device_eval_batch_size=batch, eval_draws=2)
        metrics = trainer.evaluate(examples().shuffle(seed=batch))
        losses.append(metrics["eval_loss"])
        assert metrics["eval_num_draws"] == (0 if likelihood.is_exact else 2)
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
    rounds = evaluate_in_rounds(trainer, examples(), Stopping(rounds=2))
    assert len(rounds.nelbo) == (1 if likelihood.is_exact else 2)
    assert rounds.metrics()["bits_per_character"] > 0.0 and rounds.metrics()["loss_stderr"] > 0.0
    if not likelihood.is_exact:
        assert rounds.monte_carlo_stderr > 0.0


# What has no such likelihood ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "candidate"}, "`order` must not depend on the tokens that are drawn.*, got 'candidate'"),
        ({"remasking": "cap"}, "`remasking` must be None for a likelihood, in which a decided token stays, got 'cap'"),
        ({"corrector_steps": 2}, "`corrector_steps` must be 0 for a likelihood"),
    ],
)
def test_samplers_without_a_likelihood_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        likelihood_of(**options)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"is_causal": True}, "a causal model"),
        ({"learn_masking_schedule": True}, "GenMD4"),
        ({"block_size": 2}, "a block model"),
    ],
)
def test_models_without_a_likelihood_of_orders_are_refused(options, kind):
    config = MD4Config(vocab_size=4, mask_token_id=3, **{"masking_schedule": "poly", **options})
    with pytest.raises(ValueError, match=f"`estimator` must not be 'policy' for {kind}"):
        likelihood_of(config)


def test_a_scheduler_of_another_library_is_refused():
    with pytest.raises(ValueError, match="`scheduler` must be a MaskedDiffusionScheduler, for a likelihood, got DDPM"):
        OrderLikelihood(DDPMScheduler(), CONFIG)


def test_masks_among_the_tokens_are_refused():
    for labels in ([0, 1, 2, 3], [0, 1, 2, -100]):
        inputs = {"input_ids": torch.tensor([[0, 1, 2, 3]]), "labels": torch.tensor([labels])}
        with pytest.raises(
            ValueError, match="`input_ids` must be clean, for the likelihood of an order, got the mask"
        ):
            likelihood_of().nats(exact_denoiser, inputs, torch.tensor([0]))


def test_the_command_offers_all_orders_that_have_a_likelihood():
    assert set(POLICY_ORDERS) == {"random", *(name for name, cls in ORDERS.items() if not cls.depends_on_draws)}
