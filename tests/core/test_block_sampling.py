# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Generation block by block, with cached keys and values: exact for block-causal attention, and beyond the length."""

import pytest
import torch
from test_planned_sampling import CallRecorder, make_pipeline
from tiny import seeded

from md4_hf import MaskedDiffusionScheduler


VOCAB, MASK, LENGTH = 9, 9, 12


@pytest.fixture
def pipe():
    return make_pipeline(vocab=VOCAB, length=LENGTH, time_conditioning=False)


def sample(pipe, **kwargs):
    arguments = {"generator": [seeded(0)], "output_type": "ids", "num_inference_steps": 5, **kwargs}
    return pipe(**arguments).sequences


def test_blocks_are_those_of_block_causal_attention_without_a_cache(pipe):
    """The reference calls the network with all tokens of the row, under a mask that hides later blocks."""
    prompt, block_length = torch.randint(VOCAB, (1, 4), generator=seeded(1)), 3
    pipe.model.config.max_position_embeddings = 40  # so that no context is forgotten
    found = sample(pipe, input_ids=prompt, length=12, block_length=block_length)

    ids = torch.cat([prompt, torch.full((1, 8), MASK)], dim=1)
    block = torch.cat([torch.zeros(4), 1 + torch.arange(8) // block_length])
    may_see = (block[:, None] >= block)[None, None]
    scheduler = MaskedDiffusionScheduler(mask_token_id=MASK, num_inference_steps=5)

    def reseed(generator):
        return seeded(torch.randint(2**62, (), generator=generator).item())

    generator = reseed(seeded(0))
    for start in (4, 7, 10):
        part = slice(start, min(start + block_length, 12))
        plan = scheduler.plan_openings(ids[:, part], [reseed(generator)])
        for step, t in enumerate(scheduler.timesteps):
            with torch.no_grad():
                logits = pipe.model(ids, attention_mask=may_see).logits[:, part]
            step_plan = plan.at(step)
            ids[:, part] = scheduler.step(logits[step_plan.candidates], t, ids[:, part], plan=step_plan).prev_sample
        generator = reseed(generator)
    assert torch.equal(found, ids)


def test_text_of_any_length_comes_with_bounded_context(pipe):
    recorder = CallRecorder(pipe.model)
    ids = sample(pipe, length=50, block_length=4)
    assert ids.shape == (1, 50) and (ids != MASK).all()
    assert max(call["input_ids"].shape[1] for call in recorder.calls if call["position_mask"].any()) == 4


def test_a_row_does_not_depend_on_the_rows_beside_it(pipe):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 0, 1, 2]]
    sizes = {"length": 30, "block_length": 5}
    together = sample(pipe, input_ids=prompts, generator=[seeded(i) for i in range(3)], **sizes)
    assert (together != MASK).all()
    for row, prompt in zip(together, prompts, strict=True):
        assert row[: len(prompt)].tolist() == prompt
    equal = sample(pipe, input_ids=torch.tensor([[1, 2], [3, 4]]), generator=[seeded(7), seeded(8)], **sizes)
    alone = sample(pipe, input_ids=torch.tensor([[3, 4]]), generator=[seeded(8)], **sizes)
    assert torch.equal(equal[1:], alone)


def test_rows_of_different_lengths_are_padded_within_their_blocks(pipe):
    rows = [[1, MASK, MASK, 2, MASK], [MASK] * 8]
    both = sample(pipe, input_ids=rows, block_length=3, generator=[seeded(0), seeded(1)])
    assert [len(row) for row in both] == [5, 8] and all((row != MASK).all() for row in both)
    assert both[0][0] == 1 and both[0][3] == 2


def test_genmd4_samples_in_blocks_too():
    learned = {"masking_schedule": "poly", "learn_masking_schedule": True}
    pipe = make_pipeline(vocab=VOCAB, length=LENGTH, time_conditioning=False, **learned)
    assert (sample(pipe, length=20, block_length=6) != MASK).all()


def test_bad_arguments_are_named(pipe):
    for arguments, message in (
        ({"block_length": 0}, r"`block_length` must be in \[1, 12\), got 0"),
        ({"block_length": 12}, r"`block_length` must be in \[1, 12\), got 12"),
        ({"block_length": 4, "length": 0}, "`length` must be >= 1, got 0"),
        ({"block_length": 4, "input_ids": [[1] * 15]}, "`length` must be given to continue a prompt of 15 tokens"),
        ({"length": 13}, r"`length` must be in \[1, 12\] \(the model's length\) without `block_length`, got 13"),
        ({"block_length": 4, "callback_on_step_end": print}, "`callback_on_step_end` must be None with `block_le"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(pipe, **arguments)
    with pytest.raises(ValueError, match="`block_length` needs a model without `time_conditioning`"):
        sample(make_pipeline(vocab=VOCAB, length=LENGTH), block_length=4)
