# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A watched call draws what the call draws, shows it on the way, and ends when nobody watches."""

import threading

import pytest
import torch
from tiny import random_model, row_generators

from md4_hf import build_byte_tokenizer, make_pipeline
from md4_hf.page.running import frames, generators


STEPS = 12


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = build_byte_tokenizer()
    made = make_pipeline(random_model(len(tokenizer), 24, std=0.2, time_conditioning=False), tokenizer)
    made.set_progress_bar_config(disable=True)
    return made


def masks(trajectories):
    return sum(row.ids.count(row.mask_token_id) for row in trajectories)


def test_pictures_end_with_the_samples_of_the_same_call(pipeline):
    how = {"num_samples": 2, "num_inference_steps": STEPS}
    found = list(frames(pipeline, masks, interval=0, generator=generators(5, 2), **how))
    expected = pipeline(generator=row_generators(5, 2), **how)
    assert found[-1].output.texts == expected.texts and found[-1].shown == 0
    assert [frame.output for frame in found[:-1]] == [None] * (len(found) - 1)
    left = [frame.shown for frame in found]
    assert left == sorted(left, reverse=True) and len(set(left)) > 4
    assert found[-1].num_calls == len({frame.num_calls for frame in found}) and found[-1].num_calls <= 2 * STEPS
    assert "<html" in found[-1].replay and not any(frame.replay for frame in found[:-1])


def test_few_pictures_are_made_of_a_fast_call(pipeline):
    found = list(frames(pipeline, masks, interval=60, generator=generators(5, 1), num_inference_steps=STEPS))
    assert len(found) <= 2 and found[-1].output is not None


def test_a_call_ends_when_nobody_watches(pipeline):
    before, seen = threading.active_count(), []

    def show(rows):
        seen.append(masks(rows))
        return seen[-1]

    call = frames(pipeline, show, interval=0, generator=generators(5, 1), num_inference_steps=1024)
    next(call)
    call.close()
    assert threading.active_count() == before and seen[-1] > 0


def test_errors_of_the_call_are_raised_where_it_is_watched(pipeline):
    with pytest.raises(ValueError, match="`temperature`"):
        next(frames(pipeline, masks, temperature=-1.0))


def test_an_error_of_the_picture_is_raised_too(pipeline):
    def show(rows):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(frames(pipeline, show, interval=0, num_inference_steps=2))


def test_samples_are_those_of_the_command_line():
    pairs = zip(generators(7, 4), row_generators(7, 4), strict=True)
    assert all(torch.equal(ours.get_state(), theirs.get_state()) for ours, theirs in pairs)
