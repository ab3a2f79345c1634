# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The keyed random numbers: uniform, unrelated, and the same however a step is cut into batches."""

import pytest
import torch
from scipy import stats

from md4_hf import make_schedule
from md4_hf.core.masked_diffusion import MD4Process, discretize_times
from md4_hf.objective.noise import (
    TRAIN_CLASS,
    TRAIN_FLIP,
    evaluation_mask_noise,
    evaluation_times,
    keyed_uniform,
    most_masked_tokens,
    training_example_noise,
    training_mask_noise,
    training_times,
)
from md4_hf.objective.objectives import MD4Objective
from md4_hf.training.batches import number_step_examples


KNOWN = 0.9115993064604949


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_uniform(dtype):
    numbers = keyed_uniform(3, torch.arange(200_000), dtype=dtype)
    assert numbers.dtype == dtype and numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers.double().numpy(), "uniform").pvalue > 1e-3


def test_neighbouring_keys_are_unrelated():
    """Pairs from neighbouring seeds, steps, examples and positions fill the unit square evenly."""
    grid = keyed_uniform(torch.arange(300)[:, None], torch.arange(300))
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid, grid.T)):
        cells = (a.reshape(-1) * 10).long() * 10 + (b.reshape(-1) * 10).long()
        assert stats.chisquare(cells.bincount(minlength=100).numpy()).pvalue > 1e-3


def test_a_known_key_gives_the_known_number():
    """A checkpoint resumes on its own noise only while these numbers stay."""
    assert keyed_uniform(0, 1, 2, dtype=torch.float64).item() == pytest.approx(KNOWN, abs=1e-15)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_noise_of_a_step_is_the_same_on_any_ranks_and_micro_batches(ranks, micro_batches):
    """24 examples, dealt to the ranks in turn as accelerate's sampler does, get the noise of one large batch."""
    examples = torch.arange(24 * 5).view(24, 5)
    expected_times = training_times(7, 3, torch.arange(24), 24)
    expected_noise = training_mask_noise(7, 3, torch.arange(24), examples.shape)
    batches = examples.split(24 // (ranks * micro_batches))
    for rank in range(ranks):
        mine = [{"input_ids": batch} for batch in batches[rank::ranks]]
        number_step_examples(mine, rank, ranks)
        for batch in mine:
            first, total = batch["first_step_example"], batch["num_step_examples"]
            index = torch.arange(first, first + len(batch["input_ids"]))
            rows = batch["input_ids"][:, 0] // 5
            assert torch.equal(training_times(7, 3, index, total), expected_times[rows])
            assert torch.equal(training_mask_noise(7, 3, index, batch["input_ids"].shape), expected_noise[rows])


def test_a_short_last_micro_batch_is_counted_as_it_is():
    batches = [{"input_ids": torch.zeros(4, 2)}, {"input_ids": torch.zeros(3, 2)}]
    number_step_examples(batches, rank=1, world_size=2)
    assert [batch["first_step_example"] for batch in batches] == [4, 11]
    assert [batch["num_step_examples"] for batch in batches] == [14, 14]


def test_steps_and_seeds_have_their_own_noise():
    index, shape = torch.arange(4), torch.Size((4, 6))
    base = training_mask_noise(0, 0, index, shape)
    for seed, step in ((1, 0), (0, 1)):
        assert not torch.equal(training_mask_noise(seed, step, index, shape), base)
        assert not torch.equal(training_times(seed, step, index, 4), training_times(0, 0, index, 4))
    assert not torch.equal(evaluation_mask_noise(0, index, 0, shape), base)


@pytest.mark.parametrize("num_draws", [1, 4, 8, 21, 89])  # the golden section times 89 is nearly a whole number
def test_evaluation_draws_are_stratified_within_an_example_and_over_examples(num_draws):
    times = torch.stack([evaluation_times(0, torch.arange(100), draw, num_draws) for draw in range(num_draws)])
    strata = (times.double() * num_draws).long()
    assert torch.equal(strata.sort(dim=0).values, torch.arange(num_draws)[:, None].expand(num_draws, 100))
    assert stats.kstest(times.flatten().numpy(), "uniform").statistic < 0.03 / num_draws
    assert stats.kstest(times[0].numpy(), "uniform").statistic < 0.05, "more even than random numbers would be"


def test_each_use_has_its_own_noise():
    index = torch.arange(2000)
    one_each = torch.Size((2000, 1))
    uses = [
        training_mask_noise(0, 0, index, one_each)[:, 0],
        evaluation_mask_noise(0, index, 0, one_each)[:, 0],
        evaluation_mask_noise(0, index, 1, one_each)[:, 0],
        evaluation_mask_noise(1, index, 0, one_each)[:, 0],
        *(training_example_noise(0, 0, index, use) for use in (TRAIN_FLIP, TRAIN_CLASS)),
    ]
    correlation = torch.corrcoef(torch.stack(uses)) - torch.eye(len(uses))
    assert correlation.abs().max() < 5 / len(index) ** 0.5


@pytest.mark.parametrize("column", [{"labels": [[0, -100, -100, 0]]}, {"attention_mask": [[1, 0, 0, 1]]}])
def test_unscored_tokens_and_padding_are_neither_scored_nor_masked(column):
    objective = MD4Objective(MD4Process(make_schedule("linear"), 9, 9))
    inputs = {"input_ids": torch.zeros(1, 4, dtype=torch.long)}
    inputs |= {name: torch.tensor(rows) for name, rows in column.items()}
    noised = objective.noised(inputs, torch.ones(1), torch.full((1, 4), 0.5))
    assert noised["input_ids"].tolist() == [[9, 0, 0, 9]] and noised["labels"].tolist() == [[0, -100, -100, 0]]


def test_discrete_time_models_train_on_the_grid():
    objective = MD4Objective(MD4Process(make_schedule("linear"), 9, 9, 4))
    noised = objective.noised({"input_ids": torch.zeros(3, 2)}, torch.tensor([0.0, 0.3, 0.99]), torch.rand(3, 2))
    assert noised["timesteps"].tolist() == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("total", [1, 2, 3, 8, 30, 512])
def test_the_times_of_a_step_are_stratified_and_so_are_those_of_its_micro_batches(total):
    times = training_times(0, 5, torch.arange(total), total)
    offset = times.min()
    torch.testing.assert_close(times.sort().values, offset + torch.arange(total) / total, atol=1e-5, rtol=0)
    for size in (size for size in (4, 8, 16) if size < total):
        for start in range(0, total - size + 1, size):
            mean = times[start : start + size].mean()
            assert abs(mean - 0.5) < 1.0 / size, "a micro-batch has times from all over [0, 1)"


@pytest.mark.parametrize("num_timesteps", [None, 10])
@pytest.mark.parametrize(("name", "size", "total"), [("linear", 8, 64), ("cosine", 4, 4), ("poly", 1, 6)])
def test_no_micro_batch_has_more_masked_tokens_than_was_foreseen(name, size, total, num_timesteps):
    schedule, length = make_schedule(name, power=2.0), 256
    bound = most_masked_tokens(schedule, num_timesteps, size, total, length)
    counts = []
    for step in range(60):
        for first in range(0, total - size + 1, size):
            index = torch.arange(first, first + size)
            t = training_times(1, step, index, total)
            t = t if num_timesteps is None else discretize_times(t, num_timesteps)
            noise = training_mask_noise(1, step, index, torch.Size((size, length)))
            counts.append(int((noise >= schedule.alpha(t)[:, None]).sum()))
    assert max(counts) <= bound <= size * length
    if size > 1 and num_timesteps is None:
        assert bound < size * length, "the bound says something"
