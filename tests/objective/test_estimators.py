# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Estimators of one bound: by time, and by the number of masked tokens; rounds, and when they end."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import random_model, training_arguments
from toy import ToyWorld

from md4_hf import (
    MD4Config,
    MD4Trainer,
    MD4TrainingArguments,
    Objective,
    example_nelbo,
    make_schedule,
    masked_count_weights,
    nelbo_weight,
    reconstruction_nelbo,
    token_nelbo,
)
from md4_hf.core.masked_diffusion import MD4Process, mask_lowest
from md4_hf.evaluation.rounds import SEED_STRIDE, Rounds, Stopping, evaluate_in_rounds
from md4_hf.objective.objectives import MD4Objective


VOCAB, LENGTH = 5, 8
WORLD = ToyWorld(vocab=3, length=4, seed=1)


def examples(count=12, seed=0):
    """Sequences of several lengths, of which not every token is scored."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(VOCAB, size=rng.integers(3, LENGTH + 1)) for _ in range(count)]
    labels = [np.where(rng.random(len(row)) < 0.3, -100, row) for row in rows]
    for label, row in zip(labels, rows, strict=True):
        label[0] = row[0]
    return Dataset.from_dict({"input_ids": [r.tolist() for r in rows], "labels": [x.tolist() for x in labels]})


def make_trainer(folder, model=None, **kwargs):
    model = model or random_model(VOCAB + 1, LENGTH, std=0.3, time_conditioning=False)
    return MD4Trainer(model=model, args=training_arguments(folder, **kwargs))


@torch.no_grad()
def estimate(model, ids, index, **options):
    """Nats of each example, with the noise of seed 0."""
    return example_nelbo(model, Objective.of(model), {"input_ids": ids}, index, seed=0, **options)[0]


def exact_denoiser(schedule, num_timesteps=None):
    """The exact denoiser of the toy world, which does not see the time, in the place of a model."""

    def model(input_ids, timesteps, labels, output_logits):
        weight = nelbo_weight(schedule, timesteps.double(), num_timesteps)
        nelbo = token_nelbo(WORLD.exact_logits(input_ids), labels, input_ids, weight, WORLD.mask)
        reconstruction = reconstruction_nelbo(schedule, (labels != -100).sum(dim=1), WORLD.vocab)
        return SimpleNamespace(token_nelbo=nelbo, reconstruction_nelbo=reconstruction)

    return model


# The any-order form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_timesteps", [None, 1, 7])
@pytest.mark.parametrize("eps", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("name", ["linear", "cosine", "poly", "geometric"])
def test_weights_of_counts_are_the_weight_integrated_over_the_time(name, eps, num_timesteps):
    schedule, tokens = make_schedule(name, power=2.0, eps=eps), 4
    if num_timesteps is None:
        t = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    else:
        t = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
    weight, masked = nelbo_weight(schedule, t, num_timesteps), 1.0 - schedule.alpha(t)
    n = torch.arange(1, tokens + 1)[:, None]
    binomial = torch.tensor([math.comb(tokens, int(k)) for k in n])[:, None] * masked**n * (1 - masked) ** (tokens - n)
    weights = masked_count_weights(schedule, tokens, num_timesteps)
    assert weights[0] == 0.0
    torch.testing.assert_close(weights[1:], (weight * binomial).mean(dim=1), rtol=2e-4, atol=2e-6)


def test_without_eps_a_count_has_its_inverse_as_weight_under_any_schedule():
    for name in ("linear", "cosine", "poly"):
        weights = masked_count_weights(make_schedule(name, power=3.0, eps=0.0), 1024)
        torch.testing.assert_close(weights[1:], 1.0 / torch.arange(1, 1025, dtype=torch.float64))


def test_weights_of_rows_of_a_thousand_lengths_are_computed_once():
    schedule = make_schedule("linear")
    first = [masked_count_weights(schedule, tokens) for tokens in range(1, 1025)]
    assert all(masked_count_weights(schedule, len(weights) - 1) is weights for weights in first)


def test_the_lowest_noise_is_masked_and_every_choice_is_equally_likely():
    x0, scored = torch.arange(5).expand(6000, 5), torch.tensor([True, True, False, True, True]).expand(6000, 5)
    noise = torch.rand(6000, 5, generator=torch.Generator().manual_seed(0))
    xt = mask_lowest(x0, scored, torch.full((6000,), 2), 9, noise)
    assert ((xt == 9).sum(dim=1) == 2).all() and (xt[:, 2] == 2).all() and (xt == 9).logical_or(xt == x0).all()
    pairs = itertools.combinations((0, 1, 3, 4), 2)
    counts = torch.tensor([((xt[:, a] == 9) & (xt[:, b] == 9)).sum().item() for a, b in pairs])
    chi_square = ((counts - 1000) ** 2 / 1000).sum().item()
    assert chi_square < 20.5, "the 99.9 % quantile for 5 degrees of freedom"


def test_the_any_order_sum_of_the_exact_denoiser_is_minus_log_p():
    schedule, x0 = make_schedule("cosine", eps=0.0), WORLD.sequences[40]
    xt, count = WORLD.all_maskings(x0)
    nats = token_nelbo(WORLD.exact_logits(xt), x0.expand_as(xt), xt, torch.ones(len(xt)), WORLD.mask).sum(dim=1)
    weights = masked_count_weights(schedule, WORLD.length)
    means = torch.stack([nats[count == n].mean() for n in range(WORLD.length + 1)])
    assert (weights * means).sum().item() == pytest.approx(-WORLD.probability[40].log().item(), rel=1e-9)


@pytest.mark.parametrize("num_timesteps", [None, 5])
@pytest.mark.parametrize(("name", "eps"), [("linear", 0.0), ("linear", 1e-2), ("cosine", 0.0), ("poly", 0.0)])
def test_both_estimators_estimate_one_bound_and_the_any_order_one_varies_less(name, eps, num_timesteps):
    schedule = make_schedule(name, eps=eps, **({"power": 3.0} if name == "poly" else {}))
    diffusion = MD4Objective(MD4Process(schedule, WORLD.mask, WORLD.mask, num_timesteps), sees_time=False)
    rows = {"input_ids": WORLD.sequences[::9]}
    count = len(rows["input_ids"])
    model, values = exact_denoiser(schedule, num_timesteps), {}
    for estimator in ("time", "any_order"):
        draws = [
            example_nelbo(model, diffusion, rows, torch.arange(count), seed=seed, num_draws=16, estimator=estimator)[0]
            for seed in range(60)
        ]
        values[estimator] = torch.stack(draws).double()
    means = {name: value.mean(dim=0) for name, value in values.items()}
    errors = {name: value.std(dim=0) / math.sqrt(60) for name, value in values.items()}
    error = (errors["time"] ** 2 + errors["any_order"] ** 2).sqrt()
    assert ((means["time"] - means["any_order"]).abs() < 4.0 * error).all()
    assert (errors["any_order"] < 0.5 * errors["time"]).all()


@pytest.mark.parametrize("block_size", [None, 3])
def test_the_model_gives_one_bound_by_both_estimators_for_rows_of_any_length(tmp_path, block_size):
    model = random_model(VOCAB + 1, LENGTH, std=0.3, time_conditioning=False, block_size=block_size)
    trainers = [make_trainer(tmp_path, model, eval_estimator=name, eval_draws=20) for name in ("time", "any_order")]
    one, other = (evaluate_in_rounds(trainer, examples(), Stopping(rounds=8)) for trainer in trainers)
    error = math.hypot(one.monte_carlo_stderr, other.monte_carlo_stderr)
    assert abs(one.metrics()["loss"] - other.metrics()["loss"]) < 4.0 * error
    assert other.monte_carlo_stderr < 0.6 * one.monte_carlo_stderr
    assert one.num_tokens.tolist() == other.num_tokens.tolist()


def test_with_blocks_of_one_token_a_draw_of_the_any_order_estimator_is_minus_log_p():
    model = random_model(VOCAB + 1, LENGTH, std=0.3, time_conditioning=False, block_size=1, schedule_eps=0.0).eval()
    ids = torch.randint(VOCAB, (3, LENGTH))
    xt, t = torch.full_like(ids, VOCAB), torch.ones(ids.shape)
    expected = model(xt, timesteps=t, labels=ids).token_nelbo.sum(dim=1)
    found = estimate(model, ids, torch.arange(3), num_draws=1, estimator="any_order")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_packed_documents_in_blocks_have_the_counts_of_each_alone():
    """All choices of each block, once on average: the mean over draws is that of the documents alone."""
    model = random_model(VOCAB + 1, LENGTH, std=0.3, time_conditioning=False, block_size=2, schedule_eps=0.0).eval()
    first, second = torch.randint(VOCAB, (1, 3)), torch.randint(VOCAB, (1, 5))
    packed = {"input_ids": torch.cat([first, second], dim=1), "document_ids": torch.tensor([[0] * 3 + [1] * 5])}

    @torch.no_grad()
    def nats(inputs, seed):
        options = {"seed": seed, "num_draws": 64, "estimator": "any_order"}
        return example_nelbo(model, Objective.of(model), inputs, torch.arange(1), **options)[0].item()

    together = [nats(packed, seed) for seed in range(8)]
    apart = [nats({"input_ids": first}, seed) + nats({"input_ids": second}, seed) for seed in range(8)]
    error = math.hypot(np.std(together, ddof=1), np.std(apart, ddof=1)) / math.sqrt(8)
    assert abs(np.mean(together) - np.mean(apart)) < 5.0 * error and error < 0.02 * np.mean(apart)


@pytest.mark.parametrize("power", [25.0, 1000.0])
def test_the_any_order_estimate_is_that_of_the_linear_schedule_however_steep_another_is(power):
    """Without eps the bound does not depend on the schedule, and the noise chooses the same tokens."""
    ids, index = torch.randint(VOCAB, (6, LENGTH)), torch.arange(6)
    values = []
    for options in ({"masking_schedule": "linear"}, {"masking_schedule": "poly", "schedule_power": power}):
        torch.manual_seed(0)
        model = random_model(VOCAB + 1, LENGTH, std=0.3, time_conditioning=False, schedule_eps=0.0, **options).eval()
        values.append(estimate(model, ids, index, num_draws=4, estimator="any_order"))
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("estimator", ["time", "any_order"])
def test_an_estimate_depends_neither_on_the_batch_nor_on_the_order(tmp_path, estimator, block_size):
    losses, options = [], {"eval_estimator": estimator, "eval_draws": 3}
    for batch in (1, 4, 16):
        model = random_model(VOCAB + 1, LENGTH, std=0.3, time_conditioning=False, block_size=block_size)
        trainer = make_trainer(tmp_path, model, per_device_eval_batch_size=batch, **options)
        losses.append(trainer.evaluate(examples(11).shuffle(seed=batch))["eval_loss"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    model = random_model(VOCAB + 1, LENGTH, std=0.3, time_conditioning=False, block_size=block_size).eval()
    ids, order = torch.randint(VOCAB, (6, LENGTH)), torch.tensor([4, 2, 0, 5, 1, 3])
    options = {"num_draws": 2, "estimator": estimator}
    values = estimate(model, ids, torch.arange(6), **options)
    torch.testing.assert_close(estimate(model, ids[order], order, **options), values[order])


@pytest.mark.parametrize("options", [{"time_conditioning": True}, {"masking_schedule": "poly", "learn": True}])
def test_the_any_order_estimator_refuses_models_it_is_not_for(tmp_path, options):
    learn = options.pop("learn", False)
    model = random_model(VOCAB + 1, LENGTH, 0.1, learn_masking_schedule=learn, **options)
    with pytest.raises(ValueError, match="`estimator` must be 'time' for a model that sees the time or learns"):
        make_trainer(tmp_path, model, eval_estimator="any_order")


def test_an_unknown_estimator_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"`estimator` must be one of \['any_order', 'time'\], got 'importance'"):
        MD4TrainingArguments(str(tmp_path), eval_estimator="importance", use_cpu=True)


def test_the_objective_of_a_configuration_is_the_one_of_its_model():
    options = {"masking_schedule": "poly", "schedule_power": 1.5, "schedule_eps": 1e-3, "num_train_timesteps": 10}
    model = random_model(VOCAB + 1, LENGTH, 0.1, **options)
    diffusion = Objective.of(model)
    assert diffusion.process.schedule == model.masking_schedule == make_schedule("poly", power=1.5, eps=1e-3)
    assert (diffusion.process.mask_token_id, diffusion.process.num_timesteps) == (VOCAB, 10)
    ids, t = torch.zeros(3, LENGTH, dtype=torch.long), torch.tensor([0.0, 0.55, 0.99])
    noised = diffusion.noised({"input_ids": ids}, t, torch.full(ids.shape, 0.5))
    torch.testing.assert_close(noised["timesteps"], torch.tensor([0.1, 0.6, 1.0]))
    assert Objective.of_config(MD4Config()).sees_time
    assert not Objective.of_config(MD4Config(time_conditioning=False)).sees_time


# Rounds ---------------------------------------------------------------------------------------------------------------


def test_one_round_is_an_evaluation_and_the_second_has_noise_of_its_own(tmp_path):
    trainer = make_trainer(tmp_path, eval_draws=2)
    rounds = evaluate_in_rounds(trainer, examples(), Stopping(rounds=2))
    first = trainer.evaluate(examples())
    trainer.args.eval_seed = SEED_STRIDE
    second = trainer.evaluate(examples())
    per_token = rounds.nelbo.sum(axis=1) / rounds.num_tokens.sum()
    assert per_token == pytest.approx([first["eval_loss"], second["eval_loss"]], rel=1e-6)
    assert per_token[0] != per_token[1]
    assert rounds.metrics()["loss"] == pytest.approx(per_token.mean())


def test_the_error_of_the_draws_is_what_rounds_scatter_by(tmp_path):
    rounds = evaluate_in_rounds(make_trainer(tmp_path), examples(8), Stopping(rounds=40))
    scatter = (rounds.nelbo.sum(axis=1) / rounds.num_tokens.sum()).std(ddof=1) / math.sqrt(40)
    assert 0.6 * scatter < rounds.monte_carlo_stderr < 2.0 * scatter


def test_the_error_of_the_draws_is_that_of_the_mean_of_each_example():
    nelbo = np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 16.0]])
    rounds = Rounds(nelbo, num_tokens=np.array([2.0, 8.0]), num_characters=np.full(2, np.nan))
    # Unbiased variances 4 and 12; of the mean of three rounds a third of them; ten tokens.
    assert rounds.monte_carlo_stderr == pytest.approx(math.sqrt((4 + 12) / 3) / 10)
    assert rounds.metrics()["loss"] == pytest.approx((3 + 12) / 10)


def test_rounds_of_neighbouring_seeds_share_no_noise(tmp_path):
    trainers = (make_trainer(tmp_path, eval_seed=seed) for seed in (0, 1))
    first, second = (evaluate_in_rounds(trainer, examples(2), Stopping(rounds=3)).nelbo for trainer in trainers)
    assert not any(np.array_equal(a, b) for a, b in itertools.product(first, second))


def test_rounds_go_on_until_the_target_is_reached_or_there_are_too_many(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    reached = evaluate_in_rounds(trainer, examples(), Stopping(target_stderr=0.15))
    before = reached.nelbo[:-1]
    assert reached.monte_carlo_stderr <= 0.15 and len(before) >= 2
    error = math.sqrt(before.var(axis=0, ddof=1).sum() / len(before)) / reached.num_tokens.sum()
    assert error > 0.15, "no round more than is needed"
    stopped = evaluate_in_rounds(trainer, examples(), Stopping(target_stderr=1e-9, max_rounds=3))
    assert len(stopped.nelbo) == 3 and "above the target" in caplog.text


def test_an_interrupted_evaluation_goes_on_with_the_rounds_it_has(tmp_path):
    unbroken = evaluate_in_rounds(make_trainer(tmp_path), examples(), Stopping(rounds=4))
    stored = {"store": tmp_path / "deep" / "rounds", "recipe": {"model": "tiny"}}

    def interrupt(rounds):
        if len(rounds.nelbo) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_in_rounds(make_trainer(tmp_path), examples(), Stopping(rounds=4), report=interrupt, **stored)
    trainer, calls = make_trainer(tmp_path), []
    predict = trainer.predict
    trainer.predict = lambda *args, **kwargs: calls.append(trainer.args.eval_seed) or predict(*args, **kwargs)
    resumed = evaluate_in_rounds(trainer, examples(), Stopping(rounds=4), **stored)
    assert np.array_equal(resumed.nelbo, unbroken.nelbo) and calls == [2 * SEED_STRIDE, 3 * SEED_STRIDE]
    evaluate_in_rounds(trainer, examples(), Stopping(rounds=4), **stored)
    assert len(calls) == 2, "nothing is left to do"
    fewer = evaluate_in_rounds(trainer, examples(), Stopping(rounds=3), **stored)
    assert np.array_equal(fewer.nelbo, unbroken.nelbo[:3]), "as if the others had not been done"
    other = evaluate_in_rounds(trainer, examples(), Stopping(rounds=1), **stored | {"recipe": {"model": "another"}})
    assert len(calls) == 3 and len(other.nelbo) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_store_is_passed_over_with_a_warning(tmp_path, caplog, damage):
    store = tmp_path / "rounds"
    evaluate_in_rounds(make_trainer(tmp_path), examples(), store=store)
    (path,) = store.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    rounds = evaluate_in_rounds(make_trainer(tmp_path), examples(), store=store)
    assert len(rounds.nelbo) == 1 and "cannot be read" in caplog.text
    assert [*store.rglob("*round*")] == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "`rounds` must be >= 1, got 0"),
        ({"max_rounds": 0}, "`max_rounds` must be >= 1, got 0"),
        ({"target_stderr": 0.0}, "`target_stderr` must be > 0 nats per token, got 0.0"),
    ],
)
def test_numbers_of_rounds_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Stopping(**options)
