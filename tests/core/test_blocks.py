# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Block diffusion: one pass over [x_t; x_0] is each block given the clean ones before it; its two limits; its bound."""

import itertools

import pytest
import torch
from test_planned_sampling import CallRecorder
from tiny import quiet, random_model, seeded
from torch.testing import assert_close
from toy import ToyWorld
from transformers import DynamicCache

from md4_hf import (
    DataCollatorForMaskedDiffusion,
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    make_schedule,
    masked_count_weights,
)
from md4_hf.objective.estimators import example_nelbo
from md4_hf.objective.noise import evaluation_times, training_times
from md4_hf.objective.objectives import Objective


VOCAB, LENGTH = 27, 12
kinds = pytest.mark.parametrize("time_conditioning", [False, True])


def make(block_size, dtype=torch.float64, **kwargs):
    return random_model(VOCAB + 1, LENGTH, std=0.3, block_size=block_size, **kwargs).eval().to(dtype)


def noised(block_size, batch=2, seed=0):
    """Clean ids, times of tokens, and x_t."""
    x0 = torch.randint(VOCAB, (batch, LENGTH), generator=seeded(seed))
    times = torch.rand(batch, -(-LENGTH // block_size), generator=seeded(seed + 1)).clamp(min=0.2)
    t = times.repeat_interleave(block_size, dim=1)[:, :LENGTH]
    noise = torch.rand(batch, LENGTH, generator=seeded(seed + 2))
    return x0, t, torch.where(noise < 1.0 - t, x0, VOCAB)


@kinds
@pytest.mark.parametrize(
    "attention",
    ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)],  # which is compiled
)
@pytest.mark.parametrize("block_size", [1, 4, 5, 12])
def test_one_pass_gives_each_block_the_logits_it_has_behind_clean_ones(block_size, attention, time_conditioning):
    if attention == "flex_attention" and block_size != 4:
        pytest.skip("one size is enough for the slow kernel of the CPU")
    model = make(block_size, torch.float32, time_conditioning=time_conditioning)
    model.set_attn_implementation(attention)
    x0, t, xt = noised(block_size)
    with torch.no_grad():
        found = model(xt, timesteps=t, labels=x0).logits
        for start in range(0, LENGTH, block_size):
            block = slice(start, start + block_size)
            ids = torch.cat([x0[:, :start], xt[:, block]], dim=1)
            times = torch.cat([torch.zeros(2, start), t[:, block]], dim=1)
            alone = model(ids, timesteps=times).logits[:, start:]
            assert_close(found[:, block, :VOCAB], alone[..., :VOCAB], atol=2e-5, rtol=1e-4)


@kinds
def test_a_cache_of_decided_blocks_changes_no_logit(time_conditioning):
    model, cache = make(4, time_conditioning=time_conditioning), DynamicCache()
    x0, t, xt = noised(4)
    with torch.no_grad():
        for start in range(0, LENGTH, 4):
            block = slice(start, start + 4)
            whole = model(torch.cat([x0[:, :start], xt[:, block]], dim=1), timesteps=t[:, start]).logits[:, start:]
            cache_of_step = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
            cached = model(xt[:, block], timesteps=t[:, start], past_key_values=cache_of_step).logits
            assert_close(cached, whole, atol=1e-9, rtol=0)
            model(x0[:, block], timesteps=torch.zeros(2), past_key_values=cache)


@kinds
def test_a_block_as_long_as_the_row_is_md4(time_conditioning):
    block, md4 = (make(size, time_conditioning=time_conditioning) for size in (LENGTH, None))
    md4.load_state_dict(block.state_dict())
    x0, t, xt = noised(LENGTH)
    found, expected = block(xt, timesteps=t, labels=x0), md4(xt, timesteps=t[:, 0], labels=x0)
    for name in ("loss", "token_nelbo", "reconstruction_nelbo"):
        assert_close(found[name], expected[name], atol=1e-6, rtol=1e-6)
    for one, other in zip(block.parameters(), md4.parameters(), strict=True):
        grads = (
            torch.autograd.grad(found.loss, one, retain_graph=True),
            torch.autograd.grad(expected.loss, other, retain_graph=True),
        )
        assert_close(*grads, atol=1e-6, rtol=1e-5)


def test_blocks_of_one_token_are_autoregression():
    """All masked, at weight 1, the bound is the sum of -log p(x_n | x_<n), which the model gives prefix by prefix."""
    model = make(1, time_conditioning=False, schedule_eps=0.0)
    x0 = torch.randint(VOCAB, (2, LENGTH), generator=seeded())
    xt, t = torch.full_like(x0, VOCAB), torch.ones(2, LENGTH)
    with torch.no_grad():
        output = model(xt, timesteps=t, labels=x0)
        nll = 0.0
        for n in range(LENGTH):
            ids = torch.cat([x0[:, :n], xt[:, :1]], dim=1)
            nll = nll - model(ids).logits[:, -1].log_softmax(-1).gather(1, x0[:, n : n + 1]).sum()
    assert_close(output.loss * x0.numel(), nll, rtol=1e-6, atol=0)
    # A draw of the bound has the terms of the masked tokens with weight 1/t, whose mean over t they are.
    nelbo = torch.stack([estimate(model, x0, seed) for seed in range(40)])
    deviation = nelbo.std() / len(nelbo) ** 0.5
    assert abs(nelbo.mean() - nll) < 4 * deviation and deviation < 0.05 * nll


def estimate(model, x0, seed):
    """A Monte-Carlo estimate of the bound of a batch in nats."""
    inputs, index = {"input_ids": x0}, torch.arange(len(x0))
    return example_nelbo(model, Objective.of(model), inputs, index, seed=seed, num_draws=4)[0].sum().double()


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_bound_of_the_exact_denoiser_is_minus_log_p(block_size):
    """Summed over blocks, and in each over its maskings with the weights of their counts."""
    world = ToyWorld()
    total = torch.zeros(len(world.sequences), dtype=torch.float64)
    for start in range(0, world.length, block_size):
        block = list(range(start, min(start + block_size, world.length)))
        weights = masked_count_weights(make_schedule("linear", eps=0.0), len(block))
        for n in range(1, len(block) + 1):
            choices = list(itertools.combinations(block, n))
            for masked in choices:
                xt = world.sequences.clone()
                xt[:, block[-1] + 1 :] = world.mask  # a block does not see later ones
                xt[:, list(masked)] = world.mask
                log_mu = world.exact_logits(xt).gather(-1, world.sequences[..., None]).squeeze(-1)
                total -= weights[n] * log_mu[:, list(masked)].sum(-1) / len(choices)
    assert_close(total, -world.probability.log())


@kinds
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_lean_loss_of_training_is_that_of_all_logits(time_conditioning, checkpointing):
    model = make(4, time_conditioning=time_conditioning)
    x0, t, xt = noised(4)
    labels = x0.clone()
    labels[0, :3] = -100
    xt = torch.where(labels == -100, x0, xt)
    expected = model(xt, timesteps=t, labels=labels)
    expected.loss.backward()
    gradients = {name: x.grad.clone() for name, x in model.named_parameters()}
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable()
    found = model.train()(xt, timesteps=t, labels=labels)
    assert found.logits is None
    assert_close(found.loss, expected.loss, atol=1e-6, rtol=1e-6)
    found.loss.backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-5)


@kinds
def test_padding_and_packed_documents_are_each_as_alone(time_conditioning):
    model = make(4, time_conditioning=time_conditioning)
    x0, t, xt = noised(4, batch=1)
    with torch.no_grad():
        alone = [model(xt[:, a:b], timesteps=t[:, a:b], labels=x0[:, a:b]).token_nelbo for a, b in ((0, 7), (0, 5))]
        join = [torch.cat([x[:, :7], x[:, :5]], dim=1) for x in (xt, t, x0)]
        documents = torch.tensor([[0] * 7 + [1] * 5])
        packed = model(join[0], timesteps=join[1], labels=join[2], document_ids=documents).token_nelbo
        padding = [torch.nn.functional.pad(x[:, :7], (0, 5)) for x in (xt, t, x0)]
        mask = torch.tensor([[1] * 7 + [0] * 5])
        labels = padding[2].masked_fill(mask == 0, -100)
        padded = model(padding[0], timesteps=padding[1], labels=labels, attention_mask=mask).token_nelbo
    assert_close(packed, torch.cat(alone, dim=1), atol=1e-6, rtol=1e-6)
    assert_close(padded[:, :7], alone[0], atol=1e-6, rtol=1e-6)


def test_each_block_of_each_example_has_its_own_stratified_time():
    index = torch.arange(8)
    times = training_times(3, 5, index, 8, 6)
    assert times.shape == (8, 6) and (times.flatten().sort().values * 48).floor().unique().numel() == 48
    halves = torch.cat([training_times(3, 5, half, 8, 6) for half in index.split(4)])
    assert torch.equal(halves, times), "1 x 8 = 8 x 1"
    draws = torch.stack([evaluation_times(0, index, draw, 4, 6) for draw in range(4)])
    assert ((draws * 4).floor().sort(dim=0).values == torch.arange(4.0)[:, None, None]).all()
    config = MD4Config(vocab_size=VOCAB + 1, max_position_embeddings=LENGTH, block_size=4)
    batch = DataCollatorForMaskedDiffusion(config)([{"input_ids": [1] * LENGTH}] * 4)
    assert batch["timesteps"].shape == (4, LENGTH) and len(batch["timesteps"].unique()) == 12
    documents = torch.tensor([[0] * 5 + [1] * 7])
    inputs = {"input_ids": torch.ones(1, LENGTH).long(), "document_ids": documents}
    t = Objective.of_config(config).noised(inputs, torch.rand(1, 3), torch.rand(1, LENGTH))["timesteps"][0]
    assert [int(x) for x in (t[1:] != t[:-1]).nonzero().squeeze(1)] in ([3, 4, 8], [3, 4])


def test_times_do_not_depend_on_the_length_of_the_batch_and_many_are_no_burden():
    config = MD4Config(vocab_size=VOCAB + 1, max_position_embeddings=32768, block_size=4)
    objective, uniform = Objective.of_config(config), torch.rand(2, 8192, generator=seeded())
    long, short = (
        objective.noised({"input_ids": torch.ones(2, n).long()}, uniform, torch.rand(2, n))["timesteps"]
        for n in (12, 7)
    )
    assert torch.equal(long[:, :7], short)
    assert 8 * 1024 // 2 < objective.most_masked(8, 64, 1024) <= 8 * 1024
    times = training_times(0, 1, torch.arange(4, 8), 64, 8192)
    assert times.shape == (4, 8192) and abs(times[:, :16].mean().item() - 0.5) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 0}, "`block_size` must be >= 1 or None, got 0"),
        ({"block_size": 2000}, "`block_size` must fit into the model's length, got 2000"),
        ({"block_size": 4, "is_causal": True}, "`block_size` must be None for a causal model"),
        ({"block_size": 4, "backbone": "unet"}, '`block_size` must be left out with `backbone="unet"`'),
        (
            {"block_size": 4, "masking_schedule": "poly", "learn_masking_schedule": True},
            "`block_size` must be None in GenMD4",
        ),
    ],
)
def test_bad_configurations_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MD4Config(vocab_size=28, **arguments)


def test_bad_inputs_are_named():
    model, ids = make(4, time_conditioning=False), torch.zeros(1, 6).long()
    cache = DynamicCache()
    model(ids[:, :4], past_key_values=cache)
    with pytest.raises(ValueError, match="`input_ids` must lie in one block of 4 tokens"):
        model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match=r"`timesteps` must have shape \(1, 6\)"):
        model(ids, timesteps=torch.rand(1, 3), labels=ids)


# Sampling -------------------------------------------------------------------------------------------------------------


def draw(model, rows, **arguments):
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=4)))
    generators = [seeded(number) for number in range(len(rows))]
    return pipe(input_ids=rows, generator=generators, output_type="ids", **arguments).sequences


@kinds
@pytest.mark.parametrize("options", [{}, {"order": "confidence"}, {"remasking": "cap", "eta": 0.3}])
def test_with_a_cache_and_without_one_text_is_written(time_conditioning, options):
    model = make(4, time_conditioning=time_conditioning)
    rows = [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]
    cached, whole = (draw(model, rows, use_cache=use_cache, **options) for use_cache in (True, False))
    assert torch.equal(cached, whole) and (cached != VOCAB).all() and torch.equal(cached[:, :5], torch.tensor(rows))
    assert torch.equal(draw(model, rows[:1], **options)[0], cached[0]), "a row does not depend on the batch"


@kinds
def test_text_of_any_length_is_that_of_a_chain_of_blocks(time_conditioning):
    """Written at once with a cache, or block by block, each given the text so far as a prompt."""
    model = make(4, time_conditioning=time_conditioning)
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=1)))
    arguments = {"temperature": 0.0, "output_type": "ids"}
    long = pipe(length=LENGTH, **arguments).sequences
    text = torch.empty(1, 0, dtype=torch.long)
    for _ in range(3):
        text = pipe(input_ids=text.tolist(), length=text.shape[1] + 4, use_cache=False, **arguments).sequences
    assert torch.equal(long, text)
    beyond = pipe(length=4 * LENGTH + 1, **arguments).sequences
    assert beyond.shape == (1, 4 * LENGTH + 1) and torch.equal(beyond[:, :LENGTH], long) and (beyond != VOCAB).all()


RAGGED = [[1, 2, 3], [*range(1, 8), 8, 9, 10], [], [4, 5, 6, 7, VOCAB, 9, 10], [2] * 4]
SAMPLERS = [
    {},
    {"order": "threshold", "threshold": 0.1, "temperature": 0.7, "corrector": "gibbs", "corrector_steps": 1},
    {"remasking": "cap", "eta": 0.3, "top_k": 9},
    {"guidance_scale": 1.5},
]


@kinds
@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_each_row_of_ragged_prompts_has_its_own_blocks(time_conditioning, options):
    """With a cache and without one, and beyond the model's length, a row is written as it is alone."""
    model = make(4, time_conditioning=time_conditioning)
    for gen_length in (2, 9):
        rows = [row for row in RAGGED if len(row) + gen_length <= LENGTH]
        cached, whole = (
            draw(model, rows, use_cache=use_cache, gen_length=gen_length, **options) for use_cache in (True, False)
        )
        assert len(rows) > 1 and all(torch.equal(*pair) for pair in zip(cached, whole, strict=True))
    together = draw(model, RAGGED, gen_length=17, **options)
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=4)))
    for number, (row, prompt) in enumerate(zip(together, RAGGED, strict=True)):
        arguments = {"generator": [seeded(number)], "output_type": "ids", "gen_length": 17, **options}
        assert torch.equal(pipe(input_ids=[prompt], **arguments).sequences[0], row) and (row != VOCAB).all()
        given = torch.tensor(prompt)
        assert torch.equal(row[: len(prompt)][given != VOCAB], given[given != VOCAB])


@kinds
def test_logits_with_a_cache_are_those_without_one(time_conditioning):
    model, seen = make(4, torch.float32, time_conditioning=time_conditioning), {True: [], False: []}
    for use_cache, logits in seen.items():

        def look(input_ids, found, logits=logits):
            logits.append(found)
            return found

        rows = [row for row in RAGGED if len(row) < 9]
        draw(model, rows, use_cache=use_cache, gen_length=4, order="entropy", logits_processor=look)
    assert len(seen[True]) == len(seen[False]) > 5
    for one, other in zip(*seen.values(), strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-5)


def network_rows(model, rows, **arguments):
    """Calls of the network that predict, and their rows in all; tokens of each row."""
    recorder = CallRecorder(model)
    sequences = draw(model, rows, gen_length=8, order="confidence", **arguments)
    recorder.hook.remove()
    counts = [len(call["input_ids"]) for call in recorder.calls if call["position_mask"].any()]
    assert all(call["position_mask"].any(dim=1).all() for call in recorder.calls if call["position_mask"].any())
    return len(counts), sum(counts), sequences


def test_rows_are_written_side_by_side_and_leave_the_batch_when_they_have_ended():
    model = make(4, time_conditioning=False, eos_token_id=5)
    rows = [[1, 2, 3], [*range(7, 22)], [6]]
    calls, together, _ = network_rows(model, rows)
    alone = [network_rows(model, [row]) for row in rows]
    assert calls <= 3 * 4 < sum(count for count, _, _ in alone), "three blocks each, of at most four steps"
    assert together == sum(count for _, count, _ in alone), "no row waits for another one's blocks"

    def end_first(input_ids, logits):
        """The first row ends with its first token, the others do not."""
        is_first = (input_ids[:, :3] == torch.tensor(rows[0])).all(dim=1, keepdim=True)
        is_eos = torch.arange(logits.shape[-1]) == 5
        return logits.masked_fill(is_first != is_eos, -1e4)

    ended, fewer, sequences = network_rows(model, rows, eos_early_stop=True, logits_processor=end_first)
    assert sequences[0].tolist() == [1, 2, 3] + [5] * 8 and fewer == together - alone[0][1] + 1
    assert ended <= calls
    generated = model.generate(rows, max_new_tokens=8, order="confidence", logits_processor=end_first, pad_token_id=0)
    assert generated.shape == (3, 23) and generated[0, 15:].tolist() == [5] + [0] * 7


def test_blocks_of_another_length_are_refused():
    with pytest.raises(ValueError, match="`block_length` must be the model's own, 4, or left out, got 3"):
        draw(make(4), [[1]], block_length=3)
