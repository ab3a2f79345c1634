# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training at clipped mask rates (`schedule_clip`): the rates and weights, a loss that is no bound, and who says so."""

import math

import pytest
import torch
from test_trainer import LENGTH, VOCAB, dataset, make_trainer, sequences, tiny_model
from tiny import logged, training_arguments
from torch.testing import assert_close

from md4_hf import MD4Config, MD4ForCausalLM, MD4ForMaskedDiffusion, MD4Trainer, make_schedule
from md4_hf.cli import main
from md4_hf.core.masked_diffusion import nelbo_weight
from md4_hf.objective.clipping import ClippedRates, clipped_rates
from md4_hf.objective.objectives import Objective


CLIP = [0.3, 0.8]
SCHEDULES = [make_schedule(name, power=2.0) for name in ("linear", "cosine", "poly", "geometric", "loglinear")]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=[schedule.name for schedule in SCHEDULES])


@each_schedule
def test_rates_are_uniform_in_the_range_for_any_schedule(schedule):
    uniform, rates = torch.arange(64) / 64, ClippedRates(*CLIP)
    t = rates.times(schedule, uniform)
    assert_close(1.0 - schedule.alpha(t), 0.3 + 0.5 * uniform, atol=1e-5, rtol=0)
    assert_close(rates.weights(schedule, t), 1.0 / (0.3 + 0.5 * uniform), atol=0, rtol=1e-4)
    assert (ClippedRates(0.6, 0.9).weights(schedule, t) == 1.0).all()
    assert_close(ClippedRates(1.0, 1.0).times(schedule, uniform), torch.ones(64), atol=1e-5, rtol=0)


@each_schedule
def test_the_whole_range_has_the_bound_of_the_schedule(schedule):
    """The bound is an integral over rates: of w(t) f(rate) over times, and of f(rate) / rate over rates."""
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000

    def terms(t):  # as a cross entropy of the tokens that are masked
        rate = 1.0 - schedule.alpha(t)
        return rate * (1.0 + rate)

    low, high = (1.0 - schedule.alpha(torch.tensor(t, dtype=torch.float64)).item() for t in (0.0, 1.0))
    rates = ClippedRates(low, high)
    t = rates.times(schedule, uniform).double()
    over_rates = (high - low) * (rates.weights(schedule, t) * terms(t)).mean()
    assert_close((nelbo_weight(schedule, uniform) * terms(uniform)).mean(), over_rates, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("documents", [False, True])
def test_each_time_is_drawn_in_the_range_and_weighs_its_tokens(block_size, documents):
    if documents and block_size is None:
        pytest.skip("one time for a row")
    model = tiny_model(block_size=block_size, time_conditioning=False, masking_schedule="cosine").eval()
    objective = Objective.of(model).clipped(ClippedRates(*CLIP))
    ids = torch.tensor(sequences(16))
    inputs = {"input_ids": ids}
    if documents:
        inputs["document_ids"] = torch.tensor([[0] * 5 + [1] * 3]).expand(16, -1)
    shape = (16,) if block_size is None else (16, 2)
    noise = torch.rand(16, LENGTH, generator=torch.Generator().manual_seed(1))
    noised = objective.noised(inputs, torch.arange(math.prod(shape)).view(shape) / math.prod(shape), noise)
    rate = 1.0 - model.masking_schedule.alpha(noised["timesteps"])
    assert (rate > 0.3 - 1e-5).all() and (rate < 0.8 + 1e-5).all()
    assert_close(noised["loss_weights"], 1.0 / rate)
    xt = noised["input_ids"]
    output = model(**noised)
    nll = -output.logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    weights = noised["loss_weights"] if block_size else noised["loss_weights"][:, None]
    assert_close(output.loss, (weights * nll * (xt == VOCAB)).sum() / ids.numel(), rtol=1e-5, atol=0)
    assert output.nelbo is None and output.token_nelbo is None
    assert_close(model(**noised, output_logits=False).loss, output.loss, rtol=1e-5, atol=0)
    masked, bound = (xt == VOCAB).sum(), objective.most_masked(16, 16, LENGTH)
    assert masked <= bound <= ids.numel()


def test_training_is_clipped_and_evaluation_is_not(tmp_path):
    runs = []
    for clip in (None, CLIP):
        model = tiny_model(block_size=4)
        trainer = make_trainer(
            tmp_path / str(clip),
            model,
            evaluation=dataset(16, seed=1),
            schedule_clip=clip,
            max_steps=2,
            logging_steps=1,
        )
        before = trainer.evaluate()
        trainer.train()
        runs.append((before, trainer))
    assert runs[0][0]["eval_loss"] == runs[1][0]["eval_loss"]
    unclipped, clipped = (trainer for _, trainer in runs)
    assert len(logged(unclipped, "bits_per_token")) == 2 and not logged(clipped, "bits_per_token")
    assert logged(clipped, "loss") != logged(unclipped, "loss")
    clipped.create_model_card()
    card = (tmp_path / str(CLIP) / "README.md").read_text()
    assert "uniform in [0.3, 0.8] in training, whose losses are no bounds" in card


@pytest.mark.parametrize(
    "clip", [[0.8, 0.3], [-0.1, 0.5], [0.5, 1.5], [0.0, 0.0], [0.5], [0.1, 0.2, 0.3], 0.5, ["a", 1]]
)
def test_what_is_no_range_is_refused(tmp_path, clip):
    with pytest.raises(
        ValueError, match=r"`schedule_clip` must be two mask rates, 0 <= low <= high <= 1 and high > 0"
    ):
        training_arguments(tmp_path, schedule_clip=clip)
    assert clipped_rates((0, 1)) == ClippedRates(0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"masking_schedule": "poly", "learn_masking_schedule": True}, "of GenMD4, whose tokens have schedules"),
        ({"is_causal": True}, "of a causal model"),
        ({"num_train_timesteps": 8}, "in discrete time, of 8 steps"),
    ],
)
def test_trainings_without_one_rate_are_refused(tmp_path, options, found):
    config = MD4Config(vocab_size=VOCAB + 1, max_position_embeddings=LENGTH, **{**TINY, **options})
    model = (MD4ForCausalLM if config.is_causal else MD4ForMaskedDiffusion)(config)
    with pytest.raises(ValueError, match=f"`schedule_clip` must be None (for a training )?{found}.*got .0.3, 0.8."):
        MD4Trainer(model, training_arguments(tmp_path, schedule_clip=CLIP), train_dataset=dataset())


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_weights_of_a_loss_go_with_labels_and_times():
    model, ids = tiny_model(), torch.zeros(2, LENGTH).long()
    weights, t = torch.ones(2), torch.ones(2)
    with pytest.raises(ValueError, match="`loss_weights` need `labels`.*got no `labels`"):
        model(ids, t, loss_weights=weights)
    with pytest.raises(ValueError, match="got no `timesteps`"):
        model(ids, labels=ids, loss_weights=weights)
    with pytest.raises(ValueError, match=r"`loss_weights` must have shape \(2,\)"):
        model(ids, t, labels=ids, loss_weights=torch.ones(2, LENGTH))
    learned = tiny_model(masking_schedule="poly", learn_masking_schedule=True)
    with pytest.raises(ValueError, match="`loss_weights` must be None for GenMD4"):
        learned(ids, t, labels=ids, loss_weights=weights)


def test_the_command_line_takes_two_numbers(tmp_path, capsys):
    text, run = tmp_path / "my.txt", tmp_path / "run"
    text.write_text("It was the best of times, it was the worst of times. " * 40)
    command = ["train", "--preset", "tiny", "--data", str(text), "--output_dir", str(run), "--max_steps", "2"]
    command += ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--block_size", "16"]
    command += ["--diffusion_block_size", "4", "--schedule_clip"]
    with pytest.raises(SystemExit):
        main([*command, "0.8", "0.3"])
    assert "--schedule_clip must be two mask rates" in capsys.readouterr().err and not run.exists()
    assert not main([*command, "0.3", "0.8"])
    assert "0.3" in (run / "options.yaml").read_text() and "Mask rates" in (run / "README.md").read_text()
