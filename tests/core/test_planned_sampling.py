# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling from opening to opening: the same distribution as step by step, and no call of the network too many."""

import pytest
import torch
from test_scheduling import DRAWS, LEAST_P, make, p_value
from tiny import quiet, random_model, seeded
from toy import ToyWorld

import md4_hf.core.reverse_steps as reverse_steps
from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, make_schedule


def make_pipeline(vocab=3, length=3, scheduler_arguments=None, **kwargs):
    """A tiny real model without a tokenizer, and its pipeline."""
    model = random_model(vocab + 1, length, std=0.5, **kwargs).eval()
    scheduler = MaskedDiffusionScheduler(**{"num_inference_steps": 6, **(scheduler_arguments or {})})
    return quiet(MaskedDiffusionPipeline(model, scheduler))


class CallRecorder:
    """Notes the rows, times and wanted positions of each call of a model, and what else is asked for."""

    def __init__(self, model, *names):
        self.calls, self.names = [], ("input_ids", "timesteps", "position_mask", *names)
        self.hook = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.calls.append({name: kwargs[name].clone() for name in self.names if name in kwargs})


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("sampler", ["ancestral", "mean"])
@pytest.mark.parametrize(("schedule", "grid"), [("linear", "cosine"), ("cosine", "uniform")])
def test_planned_steps_have_the_distribution_of_the_enumerated_chain(steps, sampler, schedule, grid):
    world = ToyWorld()
    scheduler = make(world, masking_schedule=schedule, timestep_grid=grid, sampler=sampler, num_inference_steps=steps)
    sample = torch.full((DRAWS, world.length), world.mask)
    plan = scheduler.plan_openings(sample, seeded(1))
    for step, t in enumerate(scheduler.timesteps):
        step_plan = plan.at(step)
        logits = world.exact_logits(sample)[step_plan.candidates]
        sample = scheduler.step(logits, t, sample, plan=step_plan).prev_sample
    expected = world.exact_chain(world.exact_logits, scheduler.unmask_probabilities())
    assert p_value(world, sample, expected) > LEAST_P


@pytest.mark.parametrize("time_conditioning", [True, False])
def test_the_pipeline_has_the_distribution_of_its_models_enumerated_chain(time_conditioning):
    pipe, world = make_pipeline(time_conditioning=time_conditioning), ToyWorld()
    times = pipe.scheduler.timesteps

    def logits_of(states, step):
        with torch.no_grad():
            return pipe.model(states, timesteps=times[step].expand(len(states))).logits.double()

    expected = world.exact_chain(logits_of, pipe.scheduler.unmask_probabilities(), takes_step=True)
    sample = pipe(num_samples=DRAWS // 4, generator=seeded(2), output_type="ids").sequences
    assert p_value(world, sample, expected) > LEAST_P


@pytest.mark.parametrize("final_decode", ["sample", "argmax"])
def test_a_position_opens_at_a_step_with_the_probability_of_the_chain(final_decode):
    scheduler = MaskedDiffusionScheduler(mask_token_id=9, final_decode=final_decode, num_inference_steps=5)
    scheduler.schedule = make_schedule("linear", eps=0.05)
    plan = scheduler.plan_openings(torch.full((100, 1000), 9), seeded(0))
    r = scheduler.unmask_probabilities()
    expected = r * torch.cat([torch.ones(1, dtype=r.dtype), (1 - r).cumprod(0)[:-1]])
    opened = plan.steps[~plan.left_over].flatten().bincount(minlength=5) / plan.steps.numel()
    # Five standard deviations of a share of 100000 draws.
    torch.testing.assert_close(opened, expected.float(), atol=5 * 0.5 / 100_000**0.5, rtol=0)
    left_over = plan.left_over.float().mean().item()
    assert left_over == pytest.approx((1 - r).prod().item(), abs=5 * 0.5 / 100_000**0.5)
    assert (left_over > 0) == (final_decode == "argmax")


def test_left_over_positions_get_the_most_probable_token():
    scheduler = MaskedDiffusionScheduler(mask_token_id=4, final_decode="argmax", num_inference_steps=3)
    scheduler.schedule = make_schedule("linear", eps=0.4)
    sample = torch.full((1, 400), 4)
    plan, logits = scheduler.plan_openings(sample, seeded(0)), torch.randn(1, 400, 5, generator=seeded(1))
    for step, t in enumerate(scheduler.timesteps):
        sample = scheduler.step(logits, t, sample, plan=plan.at(step)).prev_sample
    most_probable = logits[..., :4].argmax(-1)
    assert (sample == most_probable)[plan.left_over].all() and not (sample == most_probable).all()


def test_a_last_step_planned_when_its_turn_has_come_leaves_no_mask():
    scheduler = MaskedDiffusionScheduler(mask_token_id=4, final_decode="argmax", num_inference_steps=1)
    scheduler.schedule = make_schedule("linear", eps=0.4)
    sample = torch.tensor([[4, 1] * 100])
    plan, logits = scheduler.plan_step(1.0, sample, seeded(0)), torch.randn(1, 200, 5, generator=seeded(1))
    assert torch.equal(plan.candidates, sample == 4)
    planned = scheduler.step(logits[plan.candidates], 1.0, sample, plan=plan).prev_sample
    assert torch.equal(planned, scheduler.step(logits, 1.0, sample, generator=seeded(0)).prev_sample)
    assert (planned != 4).all()


@pytest.mark.parametrize("steps", [4, 50, 1000])
def test_the_network_is_called_once_per_distinct_opening_step(steps):
    pipe = make_pipeline(length=24, vocab=27)
    recorder = CallRecorder(pipe.model)
    pipe(num_inference_steps=steps, generator=seeded(3), output_type="ids")
    seed = torch.randint(2**62, (), generator=seeded(torch.randint(2**62, (), generator=seeded(3)).item())).item()
    plan = pipe.scheduler.plan_openings(torch.full((1, 24), 27), seeded(seed))
    distinct = plan.steps.unique()
    assert len(recorder.calls) == len(distinct)
    for call, step in zip(recorder.calls, distinct, strict=True):
        assert call["timesteps"].item() == pipe.scheduler.timesteps[step]
        assert torch.equal(call["position_mask"], plan.steps == step)


def test_rows_of_a_batch_go_from_opening_to_opening_on_their_own():
    pipe = make_pipeline(length=12, vocab=5)
    alone = []
    for seed in range(5):
        recorder = CallRecorder(pipe.model)
        sequence = pipe(num_inference_steps=100, generator=[seeded(seed)], output_type="ids").sequences
        recorder.hook.remove()
        alone.append((sequence, recorder.calls))
    recorder = CallRecorder(pipe.model)
    generators = [seeded(seed) for seed in range(5)]
    together = pipe(num_samples=5, num_inference_steps=100, generator=generators, output_type="ids")
    assert torch.equal(together.sequences, torch.cat([sequence for sequence, _ in alone]))
    assert len(recorder.calls) == max(len(calls) for _, calls in alone), "as often as the busiest row needs"
    assert sum(len(call["input_ids"]) for call in recorder.calls) == sum(len(calls) for _, calls in alone)
    assert all((call["position_mask"].any(1)).all() for call in recorder.calls), "no row that opens nothing"
    first_row = [call["timesteps"][0].item() for call in recorder.calls][: len(alone[0][1])]
    assert first_row == [call["timesteps"].item() for call in alone[0][1]]


def test_a_callback_that_only_looks_changes_nothing():
    pipe = make_pipeline(length=12, vocab=5)
    expected = pipe(num_samples=3, generator=seeded(0), output_type="ids").sequences
    seen = []

    def look(pipeline, step, t, tensors):
        seen.append(int((tensors["sample"] == 5).sum()))

    watched = pipe(num_samples=3, generator=seeded(0), output_type="ids", callback_on_step_end=look).sequences
    assert torch.equal(watched, expected) and len(seen) == 6 and seen[-1] == 0


def test_positions_that_a_callback_masks_again_open_again():
    pipe = make_pipeline(length=12, vocab=5)
    counts = []

    def mask_again(pipeline, step, t, tensors):
        counts.append(int((tensors["sample"] == 5).sum()))
        return {"sample": torch.full_like(tensors["sample"], 5)} if step == 3 else None

    sequences = pipe(num_samples=2, generator=seeded(0), output_type="ids", callback_on_step_end=mask_again).sequences
    assert (sequences != 5).all() and counts[3] < 24 and counts[4] < 24


def test_tokens_that_a_callback_puts_in_are_not_overwritten():
    pipe = make_pipeline(length=12, vocab=5)

    def put_in(pipeline, step, t, tensors):
        return {"sample": torch.full_like(tensors["sample"], 2)}

    done = pipe(num_samples=2, generator=seeded(0), output_type="ids", callback_on_step_end=put_in).sequences
    assert (done == 2).all()


def test_a_prompt_is_kept_and_only_its_masks_are_planned():
    pipe = make_pipeline(length=12, vocab=5)
    recorder = CallRecorder(pipe.model)
    ids = torch.tensor([[0, 5, 1, 2, 5, 3]])
    sequences = pipe(input_ids=ids, num_inference_steps=50, generator=seeded(0), output_type="ids").sequences
    assert torch.equal(sequences[ids != 5], ids[ids != 5]) and (sequences != 5).all()
    assert len(recorder.calls) <= 2
    assert not any(call["position_mask"][ids != 5].any() for call in recorder.calls)


def test_drawing_in_parts_draws_the_same(monkeypatch):
    scheduler = MaskedDiffusionScheduler(mask_token_id=30, num_inference_steps=4)
    sample, logits = torch.full((3, 7), 30), torch.randn(3, 7, 31, generator=seeded(0))
    at_once = scheduler.step(logits, scheduler.timesteps[-1], sample, generator=seeded(1))
    largest = 0
    token_probabilities = reverse_steps.token_probabilities

    def watch(logits, *arguments):
        nonlocal largest
        largest = max(largest, logits.numel())
        return token_probabilities(logits, *arguments)

    monkeypatch.setattr(reverse_steps, "token_probabilities", watch)
    monkeypatch.setattr(reverse_steps, "PROBABILITIES_AT_A_TIME", 64)
    in_parts = scheduler.step(logits, scheduler.timesteps[-1], sample, generator=seeded(1))
    assert torch.equal(in_parts.prev_sample, at_once.prev_sample)
    assert torch.equal(in_parts.sampled_probs, at_once.sampled_probs)
    assert largest <= 64


def test_a_plan_is_refused_where_it_cannot_be_made():
    scheduler = MaskedDiffusionScheduler(mask_token_id=3, num_inference_steps=4)
    with pytest.raises(ValueError, match=r"`first_step` must be in \[0, 4\), got 4"):
        scheduler.plan_openings(torch.full((1, 2), 3), first_step=4)
    model = random_model(4, 2, 0.1, masking_schedule="poly", learn_masking_schedule=True)
    scheduler.set_token_schedule(model.token_schedule)
    with pytest.raises(ValueError, match="`plan_openings` needs one schedule for all tokens"):
        scheduler.plan_openings(torch.full((1, 2), 3))


@pytest.mark.parametrize("options", [{}, {"top_k": 3, "top_p": 0.9}, {"temperature": 0.0}])
def test_a_planned_step_reads_nothing_from_the_device(options):
    """On a device without values, whatever depends on one is an error; on a GPU it would wait for the network."""
    scheduler = MaskedDiffusionScheduler(mask_token_id=9, num_inference_steps=4)
    sample = torch.full((3, 5), 9)
    plan = scheduler.plan_openings(sample, seeded())
    for number, t in enumerate(scheduler.timesteps):
        step = plan.at(number)
        logits = torch.empty(int(step.candidates.sum()), 10, device="meta")
        drawn = scheduler.step(logits, t, sample.to("meta"), plan=step, **options)
        assert drawn.prev_sample.device.type == "meta" and drawn.prev_sample.shape == sample.shape
