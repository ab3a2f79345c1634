# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Models, objectives and samplers of the discrete baselines."""

import itertools
import math

import pytest
import torch
from discrete_world import World
from tiny import with_normal_weights
from toy import DRAWS, LEAST_P, p_value
from transformers import AutoModel

from md4_hf import (
    MD4Config,
    MD4ForDiscreteDiffusion,
    MD4ForMaskedDiffusion,
    Objective,
    build_text8_tokenizer,
    example_nelbo,
    load_model,
    make_pipeline,
    nelbo_given_noise,
)
from md4_hf.core.configuration_md4 import BASELINES
from md4_hf.core.discrete_processes import PROCESSES, TokenStates, discrete_process
from md4_hf.core.masked_diffusion import masked_count_weights
from md4_hf.core.pipeline_masked_diffusion import MaskedDiffusionPipeline
from md4_hf.objective.estimators import NelboEstimate


def config_of(baseline, vocab=4, length=3, **fields):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": length}
    return MD4Config(vocab_size=vocab, baseline=baseline, **sizes, **fields)


def model_of(baseline, std=0.4, **fields):
    config = config_of(baseline, **fields)
    return with_normal_weights(config, std, model_class=MD4ForDiscreteDiffusion).eval()


# Configuration and model ----------------------------------------------------------------------------------------------


def test_each_name_has_a_process_and_settings():
    assert set(BASELINES) == {*PROCESSES, "ardm"}
    for name, facts in BASELINES.items():
        config = config_of(name)
        assert config.num_train_timesteps == (1000 if facts.is_chain else None)
        assert config.architectures == [facts.model_class]
        assert Objective.of_config(config).is_masking == (name == "ardm")
    assert config_of("uniform").masking_schedule == "loglinear"
    assert config_of("ardm").schedule_eps == 0.0
    assert not config_of("ardm").time_conditioning


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"baseline": "ardm", "masking_schedule": "cosine"}, "`masking_schedule` must be 'linear'"),
        ({"baseline": "uniform", "num_train_timesteps": 8}, "`num_train_timesteps` must be None"),
        ({"baseline": "multinomial", "num_train_timesteps": 1}, "`num_train_timesteps` must be at least 2"),
        ({"baseline": "sedd-absorb", "is_causal": True}, "`baseline` must be None for causal"),
        ({"baseline": "sedd-absorb", "block_size": 2}, "`baseline` must be None for causal, GenMD4, block"),
        ({"baseline": "multinomial", "hybrid_weight": 0.1}, "`hybrid_weight` must be in"),
        ({"hybrid_weight": 0.1}, "`hybrid_weight` must be in"),
        ({"baseline": "d3pm-absorb", "hybrid_weight": -0.1}, "`hybrid_weight` must be in"),
        (
            {"baseline": "d3pm-absorb", "backbone": "unet"},
            "`baseline` must be None for causal, GenMD4",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MD4Config(**{"vocab_size": 4, "hidden_size": 32, "num_attention_heads": 2, **fields})


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match="must have a `baseline` among"):
        MD4ForDiscreteDiffusion(config_of("ardm"))


@pytest.mark.parametrize("baseline", PROCESSES)
def test_a_saved_model_opens_as_its_class_and_scores_alike(baseline, tmp_path):
    """The loss is a sum over the scored tokens: the bound, whoever opens the folder."""
    model = model_of(baseline)
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, (4, 3), generator=torch.Generator().manual_seed(0))
    t, labels = torch.tensor([0.3, 0.5, 0.8, 1.0]), ids.masked_fill(torch.arange(3) == 0, -100)
    noise = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1))
    objective = Objective.of(model)
    inputs = objective.noised({"input_ids": ids, "labels": labels}, t * 0.999, noise)
    assert (inputs["input_ids"][:, 0] == ids[:, 0]).all()  # not scored, and so not noised
    outputs = model(**inputs)
    assert (outputs.token_nelbo[:, 0] == 0).all() and outputs.logits is None
    expected = (outputs.token_nelbo.sum() + outputs.reconstruction_nelbo.sum()) / 8
    torch.testing.assert_close(outputs.loss, expected)
    for opened in (AutoModel.from_pretrained(tmp_path), load_model(str(tmp_path))):
        assert type(opened) is MD4ForDiscreteDiffusion
        assert torch.equal(opened(**inputs).loss, outputs.loss)


@pytest.mark.parametrize("baseline", PROCESSES)
def test_a_plain_batch_trains(baseline):
    """With labels alone the forward draws times and noise, and every parameter gets a gradient."""
    model = model_of(baseline).train()
    ids = torch.randint(3, (16, 3))
    model(ids, labels=ids).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(x is not None and x.isfinite().all() for x in gradients.values())
    assert gradients["lm_head.weight"].abs().sum() > 0


def test_the_hybrid_loss_is_of_training_only():
    model = model_of("d3pm-uniform", hybrid_weight=0.5, num_train_timesteps=10)
    ids, t = torch.randint(3, (4, 3)), torch.tensor([0.2, 0.4, 0.6, 1.0])
    inputs = Objective.of(model).noised({"input_ids": ids}, t - 0.05, torch.rand(4, 3, 2))
    bound = model(**inputs)
    assert Objective.of(model).training_bound == "nelbo" and torch.equal(bound.loss, bound.nelbo)
    trained = model.train()(**inputs)
    torch.testing.assert_close(trained.nelbo, bound.nelbo)
    assert (trained.loss - trained.nelbo).abs() > 1e-3


@pytest.mark.parametrize("baseline", ["d3pm-uniform", "sedd-absorb"])
def test_ids_without_a_token_are_no_states(baseline):
    """The mask may be any id, and ids without a token are neither noise nor drawn."""
    config = config_of(baseline, vocab=8, mask_token_id=2, unused_token_ids=[[4, 6]])
    states = TokenStates(config)
    assert states.ids.tolist() == [0, 1, 3, 6, 7] + [2] * states.is_absorbing
    assert states.tokens(states.states(states.ids)).tolist() == states.ids.tolist()
    model = with_normal_weights(config, 0.05, model_class=MD4ForDiscreteDiffusion).eval()
    sequences = make_pipeline(model)(num_samples=64, num_inference_steps=4, output_type="ids").sequences
    assert set(sequences.flatten().tolist()) == {0, 1, 3, 6, 7}


# Evaluation -----------------------------------------------------------------------------------------------------------


BLIND_CHAINS = ["d3pm-absorb", "d3pm-uniform"]  # whose first step predicts all tokens anew


@pytest.mark.parametrize("steps", [2, 3, 49, 1000])
@pytest.mark.parametrize("baseline", BLIND_CHAINS)
def test_the_first_step_is_one_stratum_and_the_others_are_the_rest(baseline, steps):
    process = discrete_process(config_of(baseline, num_train_timesteps=steps))
    uniform = (torch.arange(64 * (steps - 1)) + 0.5) / (64 * (steps - 1))
    found = (process.times(process.beyond_first(uniform)) * steps).round().long()
    assert found.bincount().tolist() == [0, 0] + [64] * (steps - 1)
    ends = process.beyond_first(torch.tensor([0.0, 1.0 - 2.0**-24]))
    assert (process.times(ends) * steps).round().tolist() == [2, steps]
    assert process.first_share == 1 / steps and process.times(torch.zeros(1)).item() == pytest.approx(1 / steps)


@pytest.mark.parametrize("baseline", BLIND_CHAINS)
@torch.no_grad()
def test_an_evaluation_estimates_the_enumerated_bound_with_less_noise(baseline):
    """Its mean is the chain's bound; at equal calls, its variance is far below that of draws of all steps alike."""
    steps, count = 50, 4000
    model = model_of(baseline, std=0.15, vocab=4, length=2, num_train_timesteps=steps)
    world, process, states = World(3, 2), discrete_process(model.config), TokenStates(model.config)
    ids = states.tokens(world.states(process))

    def logits_of(t):
        return states.columns(model(ids, t.float().expand(len(ids))).logits)

    expected = world.chain_bound(process, logits_of)[5]
    objective, index = Objective.of(model), torch.arange(count)
    inputs = {"input_ids": world.sequences[5].expand(count, 2)}
    found, num_tokens = example_nelbo(model, objective, inputs, index, seed=1, num_draws=1)
    error = found.std() / math.sqrt(count)
    assert abs(found.mean() - expected) < 4 * error and (num_tokens == 2).all()
    generator = torch.Generator().manual_seed(0)
    plain = torch.zeros(count)
    for _ in range(2):  # the calls of one draw of the first step and one of the others
        uniform, noise = torch.rand(count, generator=generator), torch.rand(count, 2, 2, generator=generator)
        plain += sum(nelbo_given_noise(model, objective, inputs, uniform, noise)) / 2
    assert abs(plain.mean() - expected) < 4 * plain.std() / math.sqrt(count)
    assert found.var() < plain.var() / 10


@torch.no_grad()
def test_an_evaluation_of_a_chain_does_not_depend_on_the_batch():
    model = model_of("d3pm-absorb", length=6, num_train_timesteps=20)
    objective, ids = Objective.of(model), torch.randint(3, (6, 6), generator=torch.Generator().manual_seed(0))

    def nats(rows):
        inputs, index = {"input_ids": ids[rows]}, torch.arange(6)[rows]
        return example_nelbo(model, objective, inputs, index, seed=3, num_draws=4)[0]

    torch.testing.assert_close(torch.cat([nats(slice(0, 1)), nats(slice(1, 6))]), nats(slice(0, 6)))
    facts = NelboEstimate(objective, num_timesteps=20).facts
    assert facts == {"estimator": "time", "timesteps": 20, "first_step_draws": 1}


# ARDM -----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_ardm_is_md4_that_does_not_see_the_time():
    """Over all numbers and choices of masks, ARDM's loss is MD4's bound with the weights 1 / n."""
    model = with_normal_weights(config_of("ardm", vocab=5, length=4), 0.4).eval()
    assert type(model) is MD4ForMaskedDiffusion
    x0, size = torch.tensor([[1, 0, 3, 2]]), 4
    objective, losses = Objective.of(model), []
    for n, order in itertools.product(range(size), itertools.permutations(range(size))):
        noise = torch.tensor([order]).argsort() / size
        inputs = objective.noised({"input_ids": x0}, torch.tensor([(n + 0.5) / size]), noise)
        assert (inputs["input_ids"] == 4).sum() == n + 1
        losses.append(model(**inputs).token_nelbo.sum())
    weights = masked_count_weights(model.masking_schedule, size)
    expected = torch.zeros((), dtype=torch.float64)
    for pattern in itertools.product([False, True], repeat=size):
        masked = torch.tensor([pattern])
        if not masked.any():
            continue
        n = int(masked.sum())
        xt = x0.masked_fill(masked, 4)
        nats = -model(xt).logits.log_softmax(-1).gather(-1, x0[..., None]).squeeze(-1)[masked].sum()
        expected += weights[n] * nats / math.comb(size, n)
    torch.testing.assert_close(torch.stack(losses).mean().double(), expected, atol=1e-5, rtol=1e-5)


# Sampling -------------------------------------------------------------------------------------------------------------


class Recorder:
    """Streamer that keeps what it is given."""

    given, ended = (), False

    def put(self, ids):
        self.given = (*self.given, ids.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("baseline", PROCESSES)
@torch.no_grad()
def test_samples_come_from_the_enumerated_chain(baseline):
    """Chi-square of the pipeline's samples against the chain of the model's own steps, state by state."""
    steps = 3
    chain_length = {"num_train_timesteps": steps} if BASELINES[baseline].is_chain else {}
    model = model_of(baseline, vocab=4, length=2, **chain_length)
    world, process, states = World(3, 2), discrete_process(model.config), TokenStates(model.config)
    ids = states.tokens(world.states(process))

    def logits_of(t):
        return states.columns(model(ids, t.float().expand(len(ids))).logits)

    expected = world.chain_probability(process, logits_of, steps)
    assert abs(expected.sum() - 1.0) < 1e-6
    pipeline = make_pipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(num_samples=DRAWS, num_inference_steps=steps, generator=generator, output_type="ids").sequences
    assert p_value(world, drawn, expected) > LEAST_P


def test_a_prompt_is_kept_and_the_seed_decides():
    pipeline = make_pipeline(model_of("uniform", length=6))
    given = torch.tensor([1, 3, 2, 3, 3, 0])  # 3 is the mask

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        call = {"input_ids": given, "num_samples": 5, "num_inference_steps": 6, "output_type": "ids"}
        return pipeline(**call, generator=generator).sequences

    drawn = draw(0)
    assert (drawn[:, given != 3] == given[given != 3]).all() and (drawn != 3).all()
    assert torch.equal(drawn, draw(0)) and not torch.equal(drawn, draw(1))


@pytest.mark.parametrize(
    ("baseline", "options", "message"),
    [
        ("uniform", {"order": "confidence"}, "`order` must be left out for a discrete diffusion baseline"),
        ("uniform", {"block_length": 2}, "`block_length` must be left out"),
        (
            "uniform",
            {"callback_on_step_end": print},
            "`callback_on_step_end` must be left out for a discrete diffusion",
        ),
        ("sedd-absorb", {"temperature": 0.5}, "`temperature`, `top_p` and `top_k` must be left out for sedd-absorb"),
    ],
)
def test_options_that_have_no_meaning_are_refused(baseline, options, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(model_of(baseline))(num_samples=1, output_type="ids", **options)


def test_a_model_generates_what_its_pipeline_draws():
    model = model_of("multinomial", length=6, num_train_timesteps=6)
    prompt = torch.tensor([[1, 0], [2, 2]])
    new = model.generate(prompt, max_new_tokens=4, num_inference_steps=6, seed=3)
    call = {"input_ids": prompt, "length": 6, "num_inference_steps": 6, "output_type": "ids"}
    drawn = make_pipeline(model)(**call, generator=torch.Generator().manual_seed(3)).sequences
    assert torch.equal(new, drawn) and torch.equal(new[:, :2], prompt)


@pytest.mark.parametrize("baseline", PROCESSES)
def test_a_text_ends_with_its_first_eos(baseline):
    """By default where the model has an EOS token, as with the other kinds: the draws are those of full rows."""
    chain_length = {"num_train_timesteps": 4} if BASELINES[baseline].is_chain else {}
    model = model_of(baseline, std=0.05, vocab=4, length=8, eos_token_id=2, **chain_length)
    call = {"num_return_sequences": 24, "num_inference_steps": 4, "seed": 0}
    prompt = torch.tensor([[2, 1]])  # an EOS of the prompt ends nothing
    full = model.generate(prompt, eos_early_stop=False, **call)
    ended = model.generate(prompt, pad_token_id=3, **call)
    expected = full.clone()
    for row in expected:
        ends = (row[2:] == 2).nonzero()
        if len(ends):
            row[3 + int(ends[0]) :] = 3
    width = int((expected != 3).sum(dim=1).max())
    assert torch.equal(ended, expected[:, :width]) and (expected == 3).any() and not (full == 3).any()
    drawn = make_pipeline(model)(
        input_ids=prompt[0],
        num_samples=24,
        num_inference_steps=4,
        eos_early_stop=True,
        output_type="ids",
        generator=torch.Generator().manual_seed(0),
    ).sequences
    assert torch.equal(drawn.masked_fill(expected == 3, 3), expected)
    assert (drawn[expected == 3] == 2).all(), "behind the end there are EOS tokens"


def test_a_text_ends_with_a_stop_string_and_the_streamer_hears_no_more():
    model, tokenizer = model_of("uniform", vocab=28, length=12), build_text8_tokenizer()
    call = {"num_inference_steps": 4, "tokenizer": tokenizer, "seed": 1, "eos_early_stop": False}
    (full,) = model.generate(**call)
    text = tokenizer.decode(full)
    streamer = Recorder()
    (ended,) = model.generate(**call, stop_strings=text[4:6], streamer=streamer)
    assert tokenizer.decode(ended) == text[: text.index(text[4:6]) + 2]
    assert streamer.ended and [token for ids in streamer.given for token in ids] == ended.tolist()


def test_a_streamer_gets_the_prompt_and_then_the_text():
    streamer, model = Recorder(), model_of("uniform", length=6)
    new = model.generate(torch.tensor([[1, 0]]), max_new_tokens=4, num_inference_steps=3, streamer=streamer, seed=0)
    assert streamer.ended and streamer.given == ([1, 0], new[0, 2:].tolist())


def test_a_low_temperature_draws_the_most_probable_token():
    """At temperature 0 each step draws from the posterior of the most probable tokens, and the last one them."""
    pipeline = make_pipeline(model_of("d3pm-uniform"))
    call = {"num_samples": 50, "num_inference_steps": 8, "temperature": 0.0, "output_type": "ids"}
    assert len(pipeline(**call).sequences.unique(dim=0)) < 27


def test_the_pipeline_of_masked_diffusion_refuses_other_processes():
    model = model_of("uniform")
    scheduler = make_pipeline(model).scheduler
    with pytest.raises(ValueError, match="must be an MD4ForMaskedDiffusion for MaskedDiffusionPipeline"):
        MaskedDiffusionPipeline(model, scheduler)
