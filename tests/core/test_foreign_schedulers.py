# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Schedulers of diffusers in our pipeline, and ours in a plain loop of theirs."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from diffusers import BlockRefinementScheduler, ConfigMixin, DDPMScheduler, EntropyBoundScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from test_planned_sampling import CallRecorder
from tiny import quiet, random_image_model, random_model, seeded

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4Config, load_pipeline
from md4_hf.core.modeling_md4_causal import MD4ForCausalLM
from md4_hf.core.pipeline_baselines import CausalPipeline


MASK, LENGTH = 27, 16
PROMPT = [[1, 2, 3, *[MASK] * 13], [4, MASK, 5, MASK, MASK, 6]]


@pytest.fixture(scope="module")
def model():
    return random_model(MASK + 1, LENGTH, std=0.4, time_conditioning=False).eval()


def pipeline(model, scheduler=None, **options):
    return quiet(MaskedDiffusionPipeline(model, scheduler or BlockRefinementScheduler(**options)))


def plain_loop(model, scheduler, sample, steps, **arguments):
    """The loop of diffusers over all times, until nothing is masked; the number of calls too."""
    scheduler.set_timesteps(steps, block_length=int((sample == MASK).sum()))
    calls = 0
    for t in scheduler.timesteps:
        with torch.no_grad():
            logits = model(sample, timesteps=torch.ones(1)).logits
        sample = scheduler.step(logits, t, sample, mask_token_id=MASK, **arguments).prev_sample
        calls += 1
        if not (sample == MASK).any() and not scheduler.config.editing_threshold:
            break
    return sample, calls


# Theirs in our pipeline -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 16, 30])
@pytest.mark.parametrize("threshold", [0.15, 0.95])
def test_a_run_is_the_plain_loop_over_the_scheduler_of_diffusers(model, steps, threshold):
    recorder = CallRecorder(model)
    pipe = pipeline(model, threshold=threshold)
    found = pipe(input_ids=PROMPT[:1], num_inference_steps=steps, output_type="ids").sequences
    recorder.hook.remove()
    theirs = BlockRefinementScheduler(threshold=threshold)
    expected, calls = plain_loop(model, theirs, torch.tensor(PROMPT[:1]), steps)
    assert torch.equal(found, expected) and (found != MASK).all()
    assert len(recorder.calls) == calls <= steps


def test_options_of_a_call_reach_the_step_that_takes_them(model):
    pipe, prompt = pipeline(model), torch.tensor(PROMPT[:1])
    found = pipe(input_ids=prompt, num_inference_steps=16, threshold=0.2, output_type="ids").sequences
    expected, _ = plain_loop(model, BlockRefinementScheduler(), prompt, 16, threshold=0.2)
    assert torch.equal(found, expected)
    drawn = [
        pipe(input_ids=prompt, generator=seeded(seed), output_type="ids", **options).sequences
        for seed, options in [
            *((seed, {"temperature": 1.0}) for seed in (1, 1, 2)),
            *((seed, {}) for seed in (1, 2)),
        ]
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[3], drawn[4])  # greedy by default, as theirs
    with pytest.raises(ValueError, match="`order` must be left out for BlockRefinementScheduler"):
        pipe(input_ids=prompt, order="margin", output_type="ids")
    with pytest.raises(ValueError, match="`temperature` must be finite and >= 0"):
        pipe(input_ids=prompt, temperature=-1.0, output_type="ids")
    with pytest.raises(ValueError, match="`num_inference_steps` must be >= 1"):
        pipe(input_ids=prompt, num_inference_steps=0, output_type="ids")


@pytest.mark.parametrize("arguments", [{}, {"temperature": 0.9, "top_p": 0.9}])
def test_a_row_does_not_depend_on_the_batch_and_keeps_its_prompt(arguments):
    model = random_model(MASK + 1, LENGTH, std=0.2).eval().double()  # as padding changes the last bits of float32
    pipe = pipeline(model, threshold=0.2, num_inference_steps=6)
    options = {"output_type": "ids", **arguments}
    together = pipe(input_ids=PROMPT, generator=[seeded(1), seeded(2)], **options).sequences
    for row, prompt, seed in zip(together, PROMPT, (1, 2), strict=True):
        assert torch.equal(pipe(input_ids=[prompt], generator=[seeded(seed)], **options).sequences[0], row)
        given = torch.tensor(prompt)
        assert (row != MASK).all() and torch.equal(row[given != MASK], given[given != MASK])


def test_tokens_are_edited_but_no_prompt_until_nothing_changes(model):
    options = {"threshold": 0.3, "editing_threshold": 0.2}
    pipe, prompt = pipeline(model, **options), torch.tensor([[9, *[MASK] * 14, 9]])
    states, steps = [], 12

    def note(pipe, step, t, tensors):
        states.append(tensors["sample"].clone())

    found = pipe(input_ids=prompt, num_inference_steps=steps, output_type="ids", callback_on_step_end=note).sequences
    edited = [bool(((a != b) & (a != MASK)).any()) for a, b in pairwise(states)]
    assert any(edited) and found[0, 0] == found[0, -1] == 9 and (found != MASK).all()
    theirs, sample = BlockRefinementScheduler(**options), prompt
    theirs.set_timesteps(steps, block_length=14)
    for number, t in enumerate(theirs.timesteps):
        with torch.no_grad():
            logits = model(sample, timesteps=torch.ones(1)).logits
        output = theirs.step(logits, t, sample, mask_token_id=MASK, prompt_mask=prompt[0] != MASK)
        sample = output.prev_sample
        assert torch.equal(states[number], sample)
        if not (sample == MASK).any() and not output.editing_transfer_index.any():
            break
    assert torch.equal(found, sample)


def test_the_denoiser_is_told_the_share_of_masks_that_are_left():
    model = random_model(MASK + 1, LENGTH, std=0.3, time_conditioning=True).eval()
    recorder = CallRecorder(model)
    pipeline(model, num_inference_steps=4)(num_samples=2, output_type="ids")
    recorder.hook.remove()
    assert [call["timesteps"].tolist() for call in recorder.calls] == [[x, x] for x in (1.0, 0.75, 0.5, 0.25)]


def test_images_and_suppressed_tokens_and_processors_are_served_too(model):
    images = pipeline(random_image_model(6, 4).eval(), num_inference_steps=5)(num_samples=2, output_type="ids")
    assert images.sequences.shape == (2, 1, 4, 4) and (images.sequences < 6).all()
    plain = pipeline(model)(num_samples=1, output_type="ids").sequences
    often = int(plain.flatten().mode().values)
    assert not (pipeline(model)(num_samples=1, suppress_tokens=[often], output_type="ids").sequences == often).any()
    only = pipeline(model)(
        num_samples=1,
        output_type="ids",
        logits_processor=lambda ids, logits: logits.index_fill(1, torch.tensor(3), 99.0),
    )
    assert (only.sequences == 3).all()


@pytest.mark.parametrize("use_cache", [True, False])
def test_blocks_are_filled_one_by_one(model, use_cache):
    pipe = pipeline(model, num_inference_steps=4)
    found = pipe(input_ids=PROMPT, block_length=4, length=LENGTH, use_cache=use_cache, output_type="ids").sequences
    assert found.shape == (2, LENGTH) and (found != MASK).all() and found[0, :3].tolist() == [1, 2, 3]


def test_a_callback_may_put_in_tokens_and_masks(model):
    def change(pipe, step, t, tensors):
        sample = tensors["sample"].clone()
        if step == 2:
            sample[:, 8], sample[:, 0] = 7, MASK
        return {"sample": sample}

    arguments = {"num_inference_steps": 8, "output_type": "ids", "callback_on_step_end": change}
    found = pipeline(model, threshold=0.05)(input_ids=PROMPT[:1], **arguments).sequences
    assert found[0, 8] == 7 and (found != MASK).all() and found[0, 1:3].tolist() == [2, 3]


def test_a_pipeline_is_saved_and_opened_with_the_scheduler_of_diffusers(model, tmp_path):
    pipe = pipeline(model, threshold=0.5, num_inference_steps=7)
    pipe.save_pretrained(tmp_path)
    options = {"input_ids": PROMPT, "output_type": "ids"}
    for loaded in (load_pipeline(str(tmp_path), device="cpu"), MaskedDiffusionPipeline.from_pretrained(tmp_path)):
        assert type(loaded.scheduler) is BlockRefinementScheduler and loaded.scheduler.config.threshold == 0.5
        for found, expected in zip(quiet(loaded)(**options).sequences, pipe(**options).sequences, strict=True):
            assert torch.equal(found, expected)


class OneByOne(SchedulerMixin, ConfigMixin):
    """A scheduler of someone's own with the least that the contract asks for, and with a state of its own."""

    @register_to_config
    def __init__(self, shift: int = 0):
        self.timesteps = torch.arange(4)

    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.arange(num_inference_steps)
        self.number = 0

    def step(self, model_output, timestep, sample, mask_token_id):
        assert int(timestep) == self.number and len(sample) == 1
        self.number += 1
        first = int((sample[0] == mask_token_id).int().argmax())
        is_first = torch.arange(sample.shape[1]) == first
        return SimpleNamespace(prev_sample=torch.where(is_first, model_output.argmax(-1), sample))


def test_a_scheduler_of_ones_own_is_stepped_row_by_row_and_what_it_leaves_masked_stays_so(model):
    pipe = pipeline(model, OneByOne())
    found = pipe(input_ids=[[1, 2, *[MASK] * 6], [3, *[MASK] * 7]], num_inference_steps=4, output_type="ids").sequences
    assert (found == MASK).sum(dim=1).tolist() == [2, 3]
    with pytest.raises(ValueError, match="`num_inference_steps` must be >= 1 where the config of OneByOne has none"):
        pipe(num_samples=1, output_type="ids")


@pytest.mark.parametrize("scheduler", [EntropyBoundScheduler(), DDPMScheduler()])
def test_schedulers_of_processes_without_masks_are_refused(model, scheduler):
    with pytest.raises(ValueError, match=f"takes `mask_token_id`, got {type(scheduler).__name__}"):
        pipeline(model, scheduler)


def test_the_schedules_of_genmd4_need_our_scheduler():
    model = random_model(MASK + 1, LENGTH, std=0.3, learn_masking_schedule=True, masking_schedule="poly").eval()
    with pytest.raises(ValueError, match="`scheduler` must be a MaskedDiffusionScheduler for a GenMD4 model"):
        pipeline(model)(num_samples=1, output_type="ids")


def test_an_autoregressive_model_needs_our_scheduler():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    model = MD4ForCausalLM(MD4Config(vocab_size=MASK + 1, is_causal=True, **sizes))
    with pytest.raises(ValueError, match="`scheduler` must be a MaskedDiffusionScheduler for an autoregressive model"):
        CausalPipeline(model, BlockRefinementScheduler())


# Ours in a loop of theirs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": "confidence"},
        {"order": "klass", "kl_bound": 1.0, "threshold": 0.2},
        {"order": "entropy_bound", "entropy_bound": 3.0},
        {"remasking": "cap", "eta": 0.5},
        {"remasking": "confidence"},
        {"corrector": "informed", "corrector_steps": 1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_ours_runs_in_a_plain_loop(model, options):
    """`for t in scheduler.timesteps: scheduler.step(...)`: the memory of remasking and of orders is the scheduler's."""
    scheduler = MaskedDiffusionScheduler(MASK, **options)
    for _ in range(2):  # a second run begins anew
        scheduler.set_timesteps(8)
        sample, generator, remasked = torch.tensor(PROMPT[:1] * 3), seeded(0), 0
        for t in scheduler.timesteps:
            with torch.no_grad():
                logits = model(scheduler.scale_model_input(sample, t), timesteps=t.expand(3)).logits
            output = scheduler.step(logits, t, sample, generator=generator)
            sample, remasked = output.prev_sample, remasked + int(output.remasked.sum())
        assert (sample != MASK).all() and (sample[:, :3] == torch.tensor([1, 2, 3])).all()
        assert (remasked > 0) == ("remasking" in options)
