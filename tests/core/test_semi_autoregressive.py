# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Blocks from the left without a cache: the denoiser sees whole rows, and one block of each may be filled."""

import pytest
import torch
from test_planned_sampling import CallRecorder
from test_sampling_runs import MASK, any_sampler, draw
from tiny import quiet, random_model, seeded, with_normal_weights
from transformers import BertConfig

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4Config


PROMPTS = [[1, 2, 3, *[MASK] * 13], [1, 2, 3, 4, 5, 6, *[MASK] * 6]]
BLOCK, STEPS = 4, 3
IN_BLOCKS = {"block_length": BLOCK, "use_cache": False, "num_inference_steps": STEPS}


@pytest.fixture(scope="module")
def model():
    return random_model(MASK + 1, 16, std=0.2, time_conditioning=False).eval().double()


@pytest.fixture(scope="module")
def timed_model():
    return random_model(MASK + 1, 16, std=0.5).eval().double()


@any_sampler
def test_prompts_are_kept_no_mask_is_left_and_rows_do_not_depend_on_the_batch(model, options):
    together = draw(model, PROMPTS, options, **IN_BLOCKS)
    for row, prompt in zip(together, PROMPTS, strict=True):
        given = torch.tensor(prompt)
        assert (row != MASK).all() and torch.equal(row[given != MASK], given[given != MASK])
        assert torch.equal(draw(model, [prompt], options, **IN_BLOCKS)[0], row)


@any_sampler
def test_one_block_of_a_whole_row_is_no_block_at_all(timed_model, options):
    one_block = {"block_length": 16, "use_cache": False}
    rows = [[MASK, 1, 2, *[MASK] * 13], [MASK] * 12]
    pairs = zip(draw(timed_model, rows, options), draw(timed_model, rows, options, **one_block), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_blocks_are_those_of_a_plain_loop_over_whole_rows(model):
    """Greedy confidence, the quota of an even grid: LLaDA's sampler."""
    scheduler = {"order": "confidence", "timestep_grid": "uniform", "schedule_eps": 0.0, "temperature": 0.0}
    found = draw(model, PROMPTS[:1], scheduler, **IN_BLOCKS)[0]
    ids = torch.tensor(PROMPTS[:1])
    for start in range(3, 16, BLOCK):
        block = slice(start, min(start + BLOCK, 16))
        size = block.stop - start
        for step in range(STEPS):
            with torch.no_grad():
                mu = model(ids).logits[0, block].softmax(-1)
            confidence = mu.amax(-1).masked_fill(ids[0, block] != MASK, -1.0)
            chosen = confidence.topk(size // STEPS + (step < size % STEPS)).indices
            ids[0, block][chosen] = mu.argmax(-1)[chosen]
    assert torch.equal(found, ids[0])


def test_only_one_block_is_filled_at_a_time_and_later_masks_are_seen(model):
    recorder = CallRecorder(model)
    draw(model, PROMPTS, {"order": "entropy"}, **IN_BLOCKS)
    recorder.hook.remove()
    for call in recorder.calls:
        for ids, wanted in zip(call["input_ids"], call["position_mask"], strict=True):
            start, end = (6, 12) if ids[:6].tolist() == PROMPTS[1][:6] else (3, 16)
            where = wanted.nonzero().squeeze(1)
            block = start + (where[0] - start) // BLOCK * BLOCK
            assert (where < block + BLOCK).all() and (ids[:block] != MASK).all()
            assert (ids[block + BLOCK : end] == MASK).all()
    assert len(recorder.calls) == 3 * STEPS + 1, "the last block has one position"


def test_a_model_that_sees_the_time_is_told_the_time_of_the_masks_that_are_left(timed_model):
    recorder = CallRecorder(timed_model)
    scheduler = {"order": "confidence", "timestep_grid": "uniform", "schedule_eps": 0.0}
    draw(timed_model, [[MASK] * 16], scheduler, **{**IN_BLOCKS, "num_inference_steps": 4})
    recorder.hook.remove()
    masked_share = torch.tensor([(call["input_ids"] == MASK).double().mean() for call in recorder.calls])
    told = torch.cat([call["timesteps"] for call in recorder.calls]).double()
    assert len(told) == 16
    torch.testing.assert_close(told, masked_share, atol=1e-6, rtol=0)


def test_a_callback_sees_whole_rows_and_all_steps(model):
    seen = []

    def look(pipe, step, t, tensors):
        seen.append((step, tensors["sample"].clone()))
        assert t in pipe.scheduler.timesteps
        return {}

    watched = draw(model, PROMPTS, {}, **IN_BLOCKS, callback_on_step_end=look)
    for row, plain in zip(watched, draw(model, PROMPTS, {}, **IN_BLOCKS), strict=True):
        assert torch.equal(row, plain)
    assert [step for step, _ in seen] == [*range(4 * STEPS)]
    assert all(sample.shape == (2, 16) for _, sample in seen)
    masked = [(sample[0] == MASK).sum() for _, sample in seen]
    assert masked[STEPS - 1 :: STEPS] == [9, 5, 1, 0]


def test_what_a_callback_changes_stays_and_its_masks_are_filled(model):
    def change(pipe, step, t, tensors):
        sample = tensors["sample"].clone()
        if step == STEPS:  # within the second block
            sample[0, 4], sample[0, 15] = 9, 11
            sample[0, 7] = MASK
        return {"sample": sample}

    row = draw(model, PROMPTS[:1], {}, **IN_BLOCKS, callback_on_step_end=change)[0]
    assert row[4] == 9 and row[15] == 11 and (row != MASK).all()


def test_a_classifier_may_guide_blocks_that_it_sees_whole(model):
    shapes = []

    def classifier(one_hot, t):
        shapes.append(one_hot.shape[1:])
        return one_hot[..., 5].sum(dim=1) * 40.0

    rows = draw(model, PROMPTS[:1], {}, **IN_BLOCKS, classifier=classifier)
    assert {*shapes} == {(16, MASK + 1)} and (rows[0, 3:] == 5).all()


def test_genmd4_is_sampled_in_blocks_unless_it_sees_the_time():
    learned = {"learn_masking_schedule": True, "masking_schedule": "poly"}
    model = random_model(MASK + 1, 16, std=0.2, time_conditioning=False, **learned).eval().double()
    together = draw(model, PROMPTS, {}, **IN_BLOCKS)
    for row, prompt in zip(together, PROMPTS, strict=True):
        assert (row != MASK).all() and torch.equal(draw(model, [prompt], {}, **IN_BLOCKS)[0], row)
    with pytest.raises(
        ValueError, match="`block_length` needs a model without `time_conditioning` where the schedule"
    ):
        draw(random_model(MASK + 1, 16, std=0.2, **learned), PROMPTS, {}, **IN_BLOCKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_length": 17}, r"`block_length` must be in \[1, 16\], got 17"),
        ({"block_length": 0}, r"`block_length` must be in \[1, 16\], got 0"),
        ({"length": 17}, r"`length` must be in \[1, 16\] \(the model's length\) with `use_cache=False`, got 17"),
        ({"use_cache": None}, "`use_cache` must be True or False, got None"),
    ],
)
def test_bad_arguments_are_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(model, PROMPTS, {}, **{**IN_BLOCKS, **arguments})


# With a cache ---------------------------------------------------------------------------------------------------------


@any_sampler
def test_any_sampler_fills_cached_blocks(model, options):
    cached = {"block_length": BLOCK, "num_inference_steps": STEPS}
    for row, prompt in zip(draw(model, PROMPTS, options, **cached), PROMPTS, strict=True):
        given = torch.tensor(prompt)
        assert (row != MASK).all() and torch.equal(row[given != MASK], given[given != MASK])
    equal = [prompt[:3] + [MASK] * 9 for prompt in PROMPTS]
    for row, prompt in zip(draw(model, equal, options, **cached), equal, strict=True):
        alone = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(**options)))
        arguments = {"generator": [seeded(len(prompt))], "output_type": "ids", **cached}
        assert torch.equal(alone(input_ids=[prompt], **arguments).sequences[0], row)


def test_rows_without_masks_ahead_are_not_run_again(model):
    recorder = CallRecorder(model)
    rows = [[1, 2, *[MASK] * 4, *range(8)], [MASK] * 14]
    found = draw(model, rows, {}, block_length=BLOCK)
    recorder.hook.remove()
    decided = [len(call["input_ids"]) for call in recorder.calls if not call["position_mask"].any()]
    assert decided == [2, 1, 1], "after the first two blocks only the second row continues"
    assert all((row != MASK).all() for row in found)


def test_a_backbone_without_a_cache_names_the_blocks_that_it_can_have():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertConfig(vocab_size=MASK + 1, max_position_embeddings=16, **sizes)
    config = MD4Config(vocab_size=MASK + 1, backbone="auto", backbone_config=bert)
    backbone = with_normal_weights(config, 0.2).eval()
    with pytest.raises(ValueError, match="sample from it in blocks with `use_cache=False`"):
        draw(backbone, PROMPTS, {}, block_length=BLOCK)
    assert all((row != MASK).all() for row in draw(backbone, PROMPTS, {}, **IN_BLOCKS))
