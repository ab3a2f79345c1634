# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Orders of unmasking against brute-force selection, enumerated laws, and the schedulers of diffusers."""

import itertools
import math

import pytest
import torch
from diffusers import BlockRefinementScheduler, EntropyBoundScheduler
from scipy import stats
from test_planned_sampling import CallRecorder
from test_scheduling import DRAWS, LEAST_P, p_value, run_chain
from tiny import quiet, random_model, seeded
from toy import ToyWorld

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, TokenPolynomialSchedule
from md4_hf.core.opening_orders import ORDERS, make_order


VOCAB, MASK = 7, 6  # the mask is the last of the ids
OPTIONS = {
    **{name: {} for name in ("confidence", "candidate", "margin", "entropy", "sequential")},
    "threshold": {"threshold": 0.5},
    "factor": {"factor": 0.8},
    "entropy_bound": {"entropy_bound": 1.5},
    "klass": {"threshold": 0.3, "kl_bound": 0.05},
}


def make(order="confidence", **options):
    settings = {"num_inference_steps": 5, "timestep_grid": "uniform", "schedule_eps": 0.0, **options}
    return MaskedDiffusionScheduler(MASK, order=order, **settings)


def logits_and_masks(shape, scale=2.0, seed=0):
    """Random logits, large ones of the mask, and ids with masks at about half of all places, at all and at none."""
    logits = scale * torch.randn(*shape, VOCAB, generator=seeded(seed))
    logits[..., MASK] = 9.0
    masked = torch.rand(shape, generator=seeded(seed + 1)) < 0.5
    masked[0], masked[1] = True, False
    return logits, torch.randint(MASK, shape, generator=seeded(seed + 2)).masked_fill(masked, MASK)


# Selection ------------------------------------------------------------------------------------------------------------


def entropy_of(mu):
    return -sum(p * math.log(p) for p in mu if p > 0)


SCORES = {
    "confidence": lambda mu, place, token: max(mu),
    "candidate": lambda mu, place, token: mu[token],
    "margin": lambda mu, place, token: sorted(mu)[-1] - sorted(mu)[-2],
    "entropy": lambda mu, place, token: -entropy_of(mu),
    "sequential": lambda mu, place, token: -place,
}
SCORES |= {"threshold": SCORES["confidence"], "factor": SCORES["confidence"], "klass": SCORES["confidence"]}
SCORES["entropy_bound"] = SCORES["entropy"]


def further(name, scores):
    """How many of the best an adaptive order takes whatever the quota, from scores in decreasing order."""
    if name == "threshold":
        return sum(c >= 0.5 for c in scores)
    if name == "factor":
        number = 1
        while number < len(scores) and scores[number] >= 1.0 - 0.8 / (number + 2):
            number += 1
        return number
    if name == "entropy_bound":
        number = 1
        while number < len(scores) and -sum(scores[:number]) <= 1.5:
            number += 1
        return number
    return 0


def brute_force(name, logits, ids, tokens, quota_of):
    """Set of the positions of a row that are unmasked, by a plain reading of the order's docstring."""
    places = [n for n, token in enumerate(ids) if token == MASK]
    mu = torch.tensor(logits, dtype=torch.float64)[:, :MASK].softmax(-1).tolist()
    scores = {n: SCORES[name](mu[n], n, tokens[n]) for n in places}
    ranked = sorted(places, key=lambda n: (-scores[n], n))
    quota = quota_of(len(places))
    number = max(quota, further(name, [scores[n] for n in ranked])) if ranked and quota else quota
    return set(ranked[:number])


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("shape", [(12, 9), (8, 2, 3, 2)], ids=["text", "images"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("quota", ["ceil", "floor"])
def test_a_step_unmasks_what_brute_force_selects(name, shape, dtype, quota):
    logits, sample = logits_and_masks(shape)
    logits, scheduler = logits.to(dtype), make(name, quota=quota, **OPTIONS[name])
    step = 1
    output = scheduler.step(logits, scheduler.timesteps[step], sample, generator=seeded(5))
    noise = torch.rand((*shape, 2), generator=seeded(5), dtype=torch.float64)[..., 1].flatten(1)
    mu = logits[..., :MASK].double().softmax(-1).flatten(1, -2)
    tokens = (mu.cumsum(-1) <= noise[..., None]).sum(-1).clamp(max=MASK - 1)  # by the inverse of the distribution
    rounded, at_least = (math.ceil, math.floor)[quota == "floor"], int(make_order(name).is_adaptive)

    def quota_of(number):
        return max(rounded(number / (5 - step)), at_least)

    rows = zip(logits.flatten(1, -2).tolist(), sample.flatten(1).tolist(), tokens.tolist(), strict=True)
    for row, (row_logits, ids, row_tokens) in enumerate(rows):
        expected = brute_force(name, row_logits, ids, row_tokens, quota_of)
        assert set(output.committed_mask[row].flatten().nonzero().squeeze(1).tolist()) == expected
    decided = output.committed_mask
    assert torch.equal(output.prev_sample.flatten(1)[decided.flatten(1)], tokens[decided.flatten(1)])
    assert torch.equal(output.prev_sample[~decided], sample[~decided]) and decided.any()


@pytest.mark.parametrize("name", ORDERS)
def test_the_last_step_unmasks_all_and_a_grid_may_have_one_step(name):
    logits, sample = logits_and_masks((6, 9))
    scheduler = make(name, num_inference_steps=1, quota="floor")
    assert (scheduler.step(logits, 1.0, sample, generator=seeded()).prev_sample != MASK).all()


@pytest.mark.parametrize("name", sorted(set(ORDERS) - {"candidate"}))
def test_ties_go_to_the_first_positions(name):
    scheduler = make(name, **{**OPTIONS[name], "threshold": 0.9, "entropy_bound": 0.0, "factor": 0.1})
    output = scheduler.step(torch.zeros(2, 10, VOCAB), 1.0, torch.full((2, 10), MASK), generator=seeded())
    assert output.committed_mask.tolist() == [[True, True, *[False] * 8]] * 2


@pytest.mark.parametrize("name", ORDERS)
def test_a_vocabulary_of_one_token_is_certain_of_it(name):
    scheduler = MaskedDiffusionScheduler(1, order=name, num_inference_steps=3)
    sample = torch.full((2, 4), 1)
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.randn(2, 4, 2), t, sample, generator=seeded()).prev_sample
    assert not sample.any()


def test_suppressed_tokens_count_neither_in_the_score_nor_among_the_draws():
    """Position 0 is certain once token 2 is suppressed, as `suppress_tokens` or -inf of a processor does."""
    logits = torch.tensor([[[9.0, 0.0, 9.0, 0.0], [3.0, 0.0, 0.0, 0.0]]])
    for value in (torch.finfo(torch.float32).min, -torch.inf):
        given = logits.clone()
        given[..., 2] = value
        for name in ("confidence", "margin", "entropy"):
            scheduler = MaskedDiffusionScheduler(3, order=name, num_inference_steps=2, timestep_grid="uniform")
            output = scheduler.step(given, 1.0, torch.full((1, 2), 3), generator=seeded())
            assert output.committed_mask.tolist() == [[True, False]] and output.prev_sample[0, 0] == 0


# Quotas ---------------------------------------------------------------------------------------------------------------


def numbers_unmasked(number, steps, **options):
    """Numbers of positions that each step of a plain loop unmasks, of as many masked ones."""
    scheduler = make(num_inference_steps=steps, **options)
    sample, generator = torch.full((1, number), MASK), seeded(0)
    numbers = []
    for t in scheduler.timesteps:
        output = scheduler.step(torch.randn(1, number, VOCAB, generator=generator), t, sample, generator=generator)
        sample = output.prev_sample
        numbers.append(int(output.committed_mask.sum()))
    return numbers


@pytest.mark.parametrize(("number", "steps"), [(7, 3), (16, 16), (16, 5), (3, 8), (12, 1), (30, 7)])
def test_ceil_shares_tokens_out_among_steps_with_the_larger_shares_first(number, steps):
    expected = [number // steps + (step < number % steps) for step in range(steps)]
    assert numbers_unmasked(number, steps) == expected
    assert sum(numbers_unmasked(number, steps, quota="floor")) == number


@pytest.mark.parametrize("eps", [0.001, 0.02, 0.15])
@pytest.mark.parametrize(("number", "steps"), [(12, 8), (12, 12), (13, 5), (40, 7)])
def test_floor_is_dreams_rule(number, steps, eps):
    """int(m (1 - s/t)) on times from 1 to eps, all of them in the last step: here `schedule_eps` = eps / (1 + eps)."""
    times, left, expected = [1.0 - (1.0 - eps) * step / steps for step in range(steps + 1)], number, []
    for step in range(steps):
        expected.append(left if step == steps - 1 else int(left * (1.0 - times[step + 1] / times[step])))
        left -= expected[-1]
    assert numbers_unmasked(number, steps, quota="floor", schedule_eps=eps / (1.0 + eps)) == expected


# Laws -----------------------------------------------------------------------------------------------------------------


def law_of_sampling_without_replacement(scores, number, temperature):
    """Probability of each set of `number` positions, drawn one by one with weights exp(score / temperature)."""
    law = {}
    for order in itertools.permutations(range(len(scores)), number):
        left, probability = set(range(len(scores))), 1.0
        for n in order:
            weights = {k: math.exp(scores[k] / temperature) for k in left}
            probability *= weights[n] / sum(weights.values())
            left.remove(n)
        law[frozenset(order)] = law.get(frozenset(order), 0.0) + probability
    return law


@pytest.mark.parametrize("quota", ["ceil", "binomial"])
@pytest.mark.parametrize(("name", "temperature"), [("confidence", 0.3), ("entropy", 2.0), ("margin", 0.5)])
def test_a_temperature_draws_positions_without_replacement(quota, name, temperature):
    """Also where their number is drawn: given the number, the positions have the same law."""
    draws, scheduler = 8000, make(name, quota=quota, order_temperature=temperature)
    logits = 2.0 * torch.randn(4, VOCAB, generator=seeded(1))
    sample = torch.full((draws, 4), MASK)
    step = 2  # r = 1/3
    t = scheduler.timesteps[step]
    committed = scheduler.step(logits.expand(draws, 4, VOCAB), t, sample, generator=seeded(2)).committed_mask
    mu = logits[:, :MASK].double().softmax(-1).tolist()
    scores = [SCORES[name](mu[n], n, 0) for n in range(4)]
    chances = {2: 1.0} if quota == "ceil" else dict(enumerate(stats.binom.pmf(range(5), 4, 1 / 3)))
    expected = {
        chosen: chance * p
        for number, chance in chances.items()
        for chosen, p in law_of_sampling_without_replacement(scores, number, temperature).items()
    }
    sets = [frozenset(row.nonzero().squeeze(1).tolist()) for row in committed]
    counts = [sets.count(chosen) for chosen in expected]
    assert sum(counts) == draws
    assert stats.chisquare(counts, [draws * p for p in expected.values()]).pvalue > LEAST_P


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_one_token_a_step_of_the_exact_denoiser_draws_the_data(name, temperature):
    """Whatever the order, as it depends on decided tokens only; that of drawn candidates does not, and fails."""
    world = ToyWorld()
    bounds = {"threshold": 1.0, "factor": 1e-9, "entropy_bound": 0.0}
    settings = {"timestep_grid": "uniform", "schedule_eps": 0.0, "num_inference_steps": 3}
    scheduler = MaskedDiffusionScheduler(world.mask, order=name, order_temperature=temperature, **bounds, **settings)
    p = p_value(world, run_chain(world, scheduler, DRAWS, seed=1), world.probability)
    assert p < 1e-6 if name == "candidate" else p > LEAST_P


@pytest.mark.parametrize(("name", "options"), [("entropy_bound", {"entropy_bound": 0.5}), ("factor", {"factor": 1.2})])
def test_an_adaptive_rule_holds_for_the_positions_that_a_temperature_draws(name, options):
    """Of every set that is unmasked: the quota is one position, and all else is by the rule."""
    scheduler = make(name, num_inference_steps=50, order_temperature=3.0, **options)
    logits, sample = 3.0 * torch.randn(400, 9, VOCAB, generator=seeded(0)), torch.full((400, 9), MASK)
    mu = logits[..., :MASK].double().softmax(-1)
    numbers = []
    for row, chosen in enumerate(scheduler.step(logits, 1.0, sample, generator=seeded(1)).committed_mask):
        scores = [SCORES[name](mu[row, n].tolist(), n, 0) for n in chosen.nonzero().squeeze(1).tolist()]
        numbers.append(len(scores))
        if name == "entropy_bound":
            assert -sum(scores) + min(scores) <= 0.5 + 1e-9
        elif len(scores) > 1:
            assert min(scores) >= 1.0 - 1.2 / (len(scores) + 1)
    assert min(numbers) == 1 and max(numbers) > 2


def test_a_tiny_temperature_takes_the_highest_scores():
    logits, sample = logits_and_masks((6, 9))
    coldest, cold, none = (
        make("entropy", order_temperature=x).step(logits, 1.0, sample, generator=seeded(1)).committed_mask
        for x in (5e-324, 1e-5, 0.0)
    )
    assert torch.equal(coldest, none) and torch.equal(cold, none)


# The schedulers of diffusers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0.0, 0.1, 1.0, 4.0, 100.0])
def test_an_entropy_bound_accepts_the_positions_that_diffusers_accepts(bound):
    """Both apply where all positions are masked, at temperature 1; theirs has no mask, whose logit is -inf here."""
    theirs = EntropyBoundScheduler(entropy_bound=bound, t_max=1.0, t_min=1.0, num_inference_steps=32)
    logits = 3.0 * torch.randn(16, 12, VOCAB, generator=seeded(0))
    logits[..., MASK] = torch.finfo(torch.float32).min
    expected = theirs.step(logits, 0, torch.zeros(16, 12, dtype=torch.long)).accepted_index
    ours = make("entropy_bound", entropy_bound=bound, num_inference_steps=32)
    found = ours.step(logits, 1.0, torch.full((16, 12), MASK), generator=seeded())
    assert torch.equal(found.committed_mask, expected) and expected.any()


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 5, 12])
def test_a_threshold_transfers_what_diffusers_transfers(threshold, steps):
    """In the first step, where both have the same quota; later ones differ, as ours asks for no more than are left."""
    logits, sample = logits_and_masks((16, 12), scale=4.0)
    sample[1:] = MASK
    logits[..., MASK] = torch.finfo(torch.float32).min
    theirs = BlockRefinementScheduler(threshold=threshold)
    theirs.set_timesteps(steps, block_length=12)
    expected = theirs.step(logits, 0, sample, mask_token_id=MASK)
    ours = make("threshold", threshold=threshold, num_inference_steps=steps)
    found = ours.step(logits, 1.0, sample, temperature=0.0)
    assert torch.equal(found.committed_mask, expected.transfer_index)
    assert torch.equal(found.prev_sample, expected.prev_sample)


@pytest.mark.parametrize("steps", [1, 3, 5, 12, 20])
def test_a_run_by_confidence_is_that_of_diffusers(steps):
    theirs, ours = BlockRefinementScheduler(threshold=1.0), make("confidence", num_inference_steps=steps)
    theirs.set_timesteps(steps, block_length=12)
    samples = [torch.full((4, 12), MASK)] * 2
    for step, t in enumerate(ours.timesteps):
        logits = 2.0 * torch.randn(4, 12, VOCAB, generator=seeded(step))
        logits[..., MASK] = torch.finfo(torch.float32).min
        samples = [
            theirs.step(logits, step, samples[0], mask_token_id=MASK).prev_sample,
            ours.step(logits, t, samples[1], temperature=0.0).prev_sample,
        ]
        assert torch.equal(*samples)
    assert (samples[0] != MASK).all()


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return random_model(VOCAB, 16, std=0.4, time_conditioning=False).eval().double()


def calls_of(model, length=16, prompt=(), **options):
    """The sequence and the ids that the denoiser has seen, call by call, of a run with these options."""
    settings = {"timestep_grid": "uniform", "schedule_eps": 0.0, **options}
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(**settings)))
    recorder = CallRecorder(model)
    ids = [[*prompt, *[MASK] * (length - len(prompt))]]
    sequence = pipe(input_ids=ids, generator=seeded(3), temperature=0.0, output_type="ids").sequences
    recorder.hook.remove()
    return sequence, [call["input_ids"] for call in recorder.calls]


def plain_klass(model, prompt, steps, threshold, kl_bound, length=16):
    """KLASS by a plain loop over one row, greedy: ids before each call, and the numbers that were unmasked."""
    number = length - len(prompt)
    ids, before, close, step, states, numbers = [*prompt, *[MASK] * number], {}, {}, 0, [], []
    while MASK in ids:
        states.append(list(ids))
        with torch.no_grad():
            mu = model(torch.tensor([ids]), timesteps=torch.ones(1)).logits[0, :, :MASK].double().softmax(-1)
        masked = [n for n in range(length) if ids[n] == MASK]
        for n in masked:
            kl = (mu[n] * (mu[n] / before[n]).log()).sum().item() if n in before else math.inf
            close[n] = close.get(n, 0) + 1 if kl < kl_bound else 0
            before[n] = mu[n]
        confidence = {n: mu[n].max().item() for n in masked}
        ranked = sorted(masked, key=lambda n: (-confidence[n], n))
        chosen = set(ranked[: max(1, math.ceil(len(masked) / (steps - step)))])
        chosen |= {n for n in masked if confidence[n] >= threshold and close[n] >= 2}
        for n in chosen:
            ids[n] = int(mu[n].argmax())
        numbers.append(len(chosen))
        step += 1
        while step + 1 < steps and number * (1.0 - (step + 1) / steps) >= ids.count(MASK):
            step += 1
    return [*states, ids], numbers


@pytest.mark.parametrize(("threshold", "kl_bound"), [(0.3, 0.01), (0.3, 0.003), (0.35, 0.02)])
def test_klass_is_its_plain_reimplementation(model, threshold, kl_bound):
    states, numbers = plain_klass(model, [1, 2, 3], 16, threshold, kl_bound)
    assert 1 < max(numbers) < 12 and min(numbers) == 1  # both rules are at work
    options = {"order": "klass", "threshold": threshold, "kl_bound": kl_bound, "num_inference_steps": 16}
    sequence, seen = calls_of(model, prompt=(1, 2, 3), **options)
    assert [x[0].tolist() for x in seen] + sequence.tolist() == states


def test_klass_forgets_what_it_has_predicted_where_a_token_is_masked_again():
    """Else such a position would count as stable at once, by predictions of long ago."""
    scheduler = make("klass", threshold=0.2, kl_bound=0.1, num_inference_steps=9)
    sample, logits = torch.full((1, 9), MASK), torch.randn(1, 9, VOCAB, generator=seeded(0))
    numbers = []
    for step in range(7):
        before = sample.index_fill(1, torch.arange(5), MASK) if step == 4 else sample
        sample = scheduler.step(logits, scheduler.timesteps[step], before, temperature=0.0).prev_sample
        numbers.append(int((sample == MASK).sum()))
    assert numbers == [8, 7, 0, 0, 4, 3, 0]  # one by one, until there have been two comparisons


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("steps", [1, 5, 13, 1000])
def test_a_run_calls_the_network_at_most_once_a_step_and_once_a_token(model, name, steps):
    _, seen = calls_of(model, prompt=(1, 2, 3), order=name, num_inference_steps=steps)
    masked = [int((x == MASK).sum()) for x in seen]
    assert masked[0] == 13 and masked == sorted(set(masked), reverse=True)  # each call unmasks something
    if make_order(name).is_adaptive:
        assert len(seen) <= min(steps, 13)
    else:
        assert len(seen) == min(steps, 13)


def test_an_adaptive_run_saves_calls_and_a_quota_rounded_down_skips_steps(model):
    _, seen = calls_of(model, order="threshold", threshold=0.3, num_inference_steps=16)
    assert len(seen) < 16
    _, seen = calls_of(model, order="confidence", quota="floor", num_inference_steps=1000)
    assert len(seen) == 16


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"order": "best"},
            r"`order` must be one of \['candidate', 'confidence', .* 'random', 'sequential', 'threshold'",
        ),
        ({"order": None}, "`order` must be one of"),
        ({"quota": "round"}, r"`quota` must be one of \['binomial', 'ceil', 'floor'\], got 'round'"),
        ({"order": "entropy_bound", "entropy_bound": -1e-9}, "`entropy_bound` must be finite and >= 0, got -1e-09"),
        ({"entropy_bound": float("nan")}, "`entropy_bound` must be finite and >= 0, got nan"),
        ({"order": "factor", "factor": 0.0}, "`factor` must be finite and > 0, got 0.0"),
        ({"factor": -1.0}, "`factor` must be finite and > 0"),
        ({"threshold": 0.0}, r"`threshold` must be in \(0, 1\], got 0.0"),
        ({"threshold": 1.5}, r"`threshold` must be in \(0, 1\]"),
        ({"kl_bound": 0.0}, "`kl_bound` must be finite and > 0"),
        ({"order": "margin", "order_temperature": -1.0}, "`order_temperature` must be finite and >= 0"),
        ({"order_temperature": True}, "`order_temperature` must be finite and >= 0, got True"),
    ],
)
def test_bad_options_are_refused_whatever_order_is_in_use(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedDiffusionScheduler(MASK, **options)


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ([1, 2], "`forced_tokens` must be integers|`forced_tokens` must be a tensor"),
        (torch.zeros(1, 4), "`forced_tokens` must"),
        (torch.zeros(1, 3, dtype=torch.long), "`forced_tokens` must have shape"),
        (torch.full((1, 4), VOCAB), rf"`forced_tokens` must be in \[0, {VOCAB - 1}\]"),
    ],
)
def test_forced_tokens_are_ids_of_the_samples_shape(forced, message):
    with pytest.raises(ValueError, match=message):
        make().step(torch.zeros(1, 4, VOCAB), 1.0, torch.full((1, 4), MASK), forced_tokens=forced)


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_refused_with_the_schedules_of_genmd4(name):
    with pytest.raises(ValueError, match='`order` must be "random" with the schedules of GenMD4'):
        make(name).set_token_schedule(TokenPolynomialSchedule(VOCAB))
