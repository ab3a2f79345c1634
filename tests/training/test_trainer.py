# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training: the same numbers however a step is cut up, averaged weights, honest evaluation, safe checkpoints."""

import json
import math
import os
import re
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny import (
    at_once_and_in_parts,
    logged,
    random_image_model,
    random_model,
    trained,
    training_arguments,
    unbroken_and_resumed,
    weights,
)
from transformers import AutoModel, BertConfig, BertForMaskedLM, TrainerCallback, TrainerState

from md4_hf import (
    DataCollatorForMaskedDiffusion,
    LoraArguments,
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForMaskedDiffusion,
    MD4ImageProcessor,
    MD4Trainer,
    PaddingCollator,
    add_adapter,
    build_byte_tokenizer,
    build_text8_tokenizer,
    nelbo_metrics,
)
from md4_hf.objective.example_order import OrderedExamples
from md4_hf.objective.noise import evaluation_mask_noise, evaluation_times
from md4_hf.objective.objectives import Objective
from md4_hf.training.batches import most_masked_tokens
from md4_hf.training.model_card import CardFacts, make_model_card
from md4_hf.training.trainer import check_model


LENGTH, VOCAB = 8, 5
EVALUATE_EVERY_STEP = {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1}
EVALUATE_EVERY_STEP["metric_for_best_model"] = "eval_loss"
KEEP_BEST = {**EVALUATE_EVERY_STEP, "save_steps": 1, "load_best_model_at_end": True}


def tiny_model(seed=0, **kwargs):
    return random_model(VOCAB + 1, LENGTH, std=0.1, seed=seed, **kwargs)


def sequences(count=64, seed=0):
    ids = np.random.default_rng(seed).integers(VOCAB, size=(count, LENGTH))
    ids[:, 1::2] = ids[:, ::2]  # something to learn: every second token repeats the one before
    return ids


def dataset(count=64, seed=0, **columns):
    return Dataset.from_dict({"input_ids": sequences(count, seed).tolist(), **columns})


def make_trainer(folder, model=None, train=None, evaluation=None, callbacks=None, data_collator=None, **kwargs):
    return MD4Trainer(
        model=tiny_model() if model is None else model,
        data_collator=data_collator,
        args=training_arguments(folder, **kwargs),
        train_dataset=train if train is not None else dataset(),
        eval_dataset=evaluation,
        callbacks=callbacks,
    )


# A model and the arguments of its training.
KINDS = {
    "md4": ({}, {}),
    "blocks": ({"block_size": 3}, {}),
    "clipped blocks": ({"block_size": 4, "time_conditioning": False}, {"schedule_clip": [0.3, 0.8]}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def losses(trainer):
    return logged(trainer, "loss")


# Equal numbers --------------------------------------------------------------------------------------------------------


def assert_accumulation_changes_nothing(folder, batch, accumulation, train=None, kind="md4"):
    """Train in whole batches and in micro-batches, in float64: AdamW divides a gradient by its size, and with it the
    rounding of float32, which depends on the processor and on the shape of a batch.
    """

    model, own = KINDS[kind]

    def make(folder, **options):
        return make_trainer(folder, tiny_model(**model).double(), train, **own, **options)

    at_once, in_parts = at_once_and_in_parts(make, folder, batch, accumulation)
    assert losses(in_parts) == pytest.approx(losses(at_once), abs=1e-5)
    torch.testing.assert_close(weights(in_parts.model), weights(at_once.model), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), pytest.param(2, 4, marks=pytest.mark.slow), (1, 8)])
@each_kind
def test_accumulation_changes_neither_losses_nor_weights(tmp_path, batch, accumulation, kind):
    assert_accumulation_changes_nothing(tmp_path, batch, accumulation, kind=kind)


@each_kind
def test_accumulation_weighs_each_token_of_ragged_sequences_alike(tmp_path, kind):
    """Neither the padding that a batch adds nor the number of tokens in a micro-batch changes a step."""
    ragged = Dataset.from_dict({"input_ids": [row[: 1 + i % LENGTH] for i, row in enumerate(sequences().tolist())]})
    assert_accumulation_changes_nothing(tmp_path, 1, 8, ragged, kind)


@each_kind
def test_resuming_gives_the_unbroken_runs_weights(tmp_path, kind):
    model, own = KINDS[kind]

    def make(folder, seed=0, **options):
        return make_trainer(folder, tiny_model(seed, **model), **own, **options)

    options = {"max_steps": 6, "ema_decay": 0.9, "resumed": {"seed": 9}}
    unbroken, resumed = unbroken_and_resumed(make, tmp_path, 3, **options)
    assert torch.equal(weights(resumed.model), weights(unbroken.model))
    with resumed.ema_weights(), unbroken.ema_weights():
        assert torch.equal(weights(resumed.model), weights(unbroken.model))


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_resuming_in_the_middle_of_a_later_epoch_goes_on_with_its_order(tmp_path, strategy):
    options = {"train": dataset(24), "max_steps": 6, "train_sampling_strategy": strategy}  # epochs of three steps
    unbroken, resumed = unbroken_and_resumed(make_trainer, tmp_path, 4, **options)
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


def test_the_global_generator_does_not_reach_the_noise(tmp_path):
    class Draws(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            torch.rand(7)

    first, second = (trained(make_trainer(tmp_path / x, callbacks=y)) for x, y in (("a", None), ("b", [Draws()])))
    assert losses(first) == losses(second)


def test_every_step_has_noise_of_its_own(tmp_path):
    same = Dataset.from_dict({"input_ids": sequences(1).repeat(8, axis=0).tolist()})
    assert len(set(losses(trained(make_trainer(tmp_path, train=same, learning_rate=0.0))))) == 4


def test_another_seed_is_another_run(tmp_path):
    runs = [trained(make_trainer(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    assert losses(runs[0]) != losses(runs[1])
    assert [run.args.data_seed for run in runs] == [0, 1]


def test_a_stream_trains_as_a_map_style_data_set_in_the_same_order(tmp_path):
    blocks = dataset(32)
    stream = IterableDataset.from_generator(lambda: iter(blocks))
    mapped = trained(make_trainer(tmp_path / "a", train=blocks, train_sampling_strategy="sequential"))
    streamed = trained(make_trainer(tmp_path / "b", train=stream))
    assert losses(streamed) == pytest.approx(losses(mapped), abs=1e-6)


# Learning -------------------------------------------------------------------------------------------------------------


def markov_chain(count, length, seed):
    """Sequences of a known Markov chain and its entropy in nats per token."""
    transition = np.array([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8], [0.45, 0.45, 0.1]])
    start = np.linalg.matrix_power(transition, 200)[0]
    rng = np.random.default_rng(seed)
    ids = np.empty((count, length), dtype=np.int64)
    ids[:, 0] = rng.choice(3, size=count, p=start)
    for n in range(1, length):
        ids[:, n] = (rng.random(count)[:, None] > transition[ids[:, n - 1]].cumsum(-1)).sum(-1)
    per_step = -(transition * np.log(transition)).sum(-1)
    return ids, (-(start * np.log(start)).sum() + (length - 1) * start @ per_step) / length


@pytest.mark.parametrize(
    "use_muon", [pytest.param(True, id="muon"), pytest.param(False, id="adamw", marks=pytest.mark.slow)]
)
def test_a_trained_model_comes_near_the_entropy_of_its_source_from_above(tmp_path, use_muon):
    length = 8
    train, entropy = markov_chain(8192, length, seed=0)
    heldout, _ = markov_chain(1024, length, seed=1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": length}
    # Eager attention is the fastest on a processor for sequences as short as these.
    config = MD4Config(vocab_size=4, time_conditioning=False, attn_implementation="eager", **sizes)
    options = {"learning_rate": 1e-2 if use_muon else 5e-3, "use_muon": use_muon, "lr_scheduler_type": "cosine"}
    options |= {"max_steps": 250, "per_device_train_batch_size": 128, "per_device_eval_batch_size": 512}
    options |= {"eval_draws": 16, "logging_steps": 50, "ema_decay": 0.95}
    train, heldout = (Dataset.from_dict({"input_ids": ids}) for ids in (train, heldout))
    model = MD4ForMaskedDiffusion(config)
    metrics = trained(make_trainer(tmp_path, model, train, heldout, **options)).evaluate()
    assert metrics["eval_loss"] > entropy - 3 * metrics["eval_loss_stderr"], "a bound cannot beat the entropy"
    assert metrics["eval_loss"] < entropy + 0.06, f"{metrics['eval_loss']} against {entropy}"


# Evaluation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_evaluation_depends_neither_on_the_batch_size_nor_on_the_order(tmp_path, strategy):
    evaluation, options = dataset(21, seed=1), {"eval_draws": 2, "train_sampling_strategy": strategy}
    cases = [(rows, batch) for batch in (1, 4, 21, 64) for rows in (evaluation, evaluation.shuffle(seed=batch))]
    trainers = (make_trainer(tmp_path, evaluation=x, per_device_eval_batch_size=n, **options) for x, n in cases)
    results = [trainer.evaluate() for trainer in trainers]
    for result in results:
        assert result["eval_num_tokens"] == 21 * LENGTH
        assert result["eval_loss"] == pytest.approx(results[0]["eval_loss"], abs=1e-6)


def test_an_evaluation_has_every_example_also_where_training_leaves_some_out(tmp_path):
    options = {"evaluation": dataset(21, seed=1), "per_device_eval_batch_size": 4}
    trainer = make_trainer(tmp_path, dataloader_drop_last=True, **options)
    metrics = trainer.evaluate()
    assert metrics["eval_num_tokens"] == 21 * LENGTH
    assert metrics["eval_loss"] == make_trainer(tmp_path, **options).evaluate()["eval_loss"]
    assert len(trainer.predict(dataset(21, seed=1)).predictions) == 21


def test_evaluation_is_what_the_formula_says(tmp_path):
    model, ids, draws = tiny_model().eval(), torch.from_numpy(sequences(10, seed=1)), 3
    metrics = make_trainer(tmp_path, model=model, evaluation=dataset(10, seed=1), eval_draws=draws).evaluate()
    schedule, total = model.masking_schedule, 0.0
    index = torch.tensor([example["noise_index"] for example in OrderedExamples(dataset(10, seed=1))])
    for draw in range(draws):
        t = evaluation_times(0, index, draw, draws)
        noise = evaluation_mask_noise(0, index, draw, ids.shape)
        xt = torch.where(noise < schedule.alpha(t)[:, None], ids, VOCAB)
        with torch.no_grad():
            total += model(xt, timesteps=t, labels=ids).loss.item() / draws
    assert metrics["eval_loss"] == pytest.approx(total, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(total), rel=1e-5)
    assert metrics["eval_bits_per_token"] == pytest.approx(total / math.log(2), rel=1e-5)


def test_more_draws_bring_the_estimate_nearer_and_the_error_is_honest(tmp_path):
    """The estimates of 1 draw scatter about the value of 200 draws by no more than their standard errors say."""
    options = {"model": tiny_model(), "evaluation": dataset(128, seed=1), "per_device_eval_batch_size": 128}

    def evaluate(draws, seed):
        return make_trainer(tmp_path, eval_draws=draws, eval_seed=seed, **options).evaluate()

    exact = evaluate(200, 99)["eval_loss"]
    singles = [evaluate(1, seed) for seed in range(12)]
    scaled = [(single["eval_loss"] - exact) / single["eval_loss_stderr"] for single in singles]
    assert max(map(abs, scaled)) < 3.5
    errors = np.array([single["eval_loss"] - exact for single in singles])
    assert abs(evaluate(32, 0)["eval_loss"] - exact) < np.abs(errors).max()


def test_characters_and_bytes_give_bits_of_each(tmp_path):
    evaluation = dataset(6, seed=1, num_characters=[2.0 * LENGTH] * 6, num_bytes=[3.0 * LENGTH] * 6)
    metrics = make_trainer(tmp_path, evaluation=evaluation).evaluate()
    assert metrics["eval_bits_per_character"] == pytest.approx(metrics["eval_bits_per_token"] / 2)
    assert metrics["eval_bits_per_byte"] == pytest.approx(metrics["eval_bits_per_token"] / 3)
    assert metrics["eval_bits_per_character_stderr"] > 0 and metrics["eval_bits_per_byte_stderr"] > 0
    unknown = make_trainer(tmp_path, evaluation=dataset(6)).evaluate()
    assert not {"eval_bits_per_character", "eval_bits_per_byte"} & unknown.keys()


def test_evaluating_leaves_the_random_state_and_the_weights_alone(tmp_path):
    trainer = trained(make_trainer(tmp_path, evaluation=dataset(8), ema_decay=0.5))
    before, state = weights(trainer.model), torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(weights(trainer.model), before) and torch.equal(torch.get_rng_state(), state)


@each_kind
def test_ragged_sequences_are_scored_without_their_padding(tmp_path, kind):
    rows = [sequence[: 3 + index % 5].tolist() for index, sequence in enumerate(sequences(20, seed=1))]
    evaluation = Dataset.from_dict({"input_ids": rows})
    model, own = KINDS[kind]
    trainers = (
        make_trainer(tmp_path, tiny_model(**model), evaluation=evaluation, per_device_eval_batch_size=batch, **own)
        for batch in (20, 1)
    )
    padded, alone = (trainer.evaluate() for trainer in trainers)
    assert padded["eval_num_tokens"] == alone["eval_num_tokens"] == sum(map(len, rows))
    assert padded["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-6)


def test_figures_weigh_examples_by_their_tokens_and_their_error_is_that_of_a_ratio():
    metrics = nelbo_metrics(torch.tensor([10.0, 60.0]), torch.tensor([10.0, 30.0]), torch.tensor([20.0, 60.0]))
    assert metrics["loss"] == pytest.approx(70 / 40)
    assert metrics["bits_per_character"] == pytest.approx(70 / 80 / math.log(2))
    # Residuals 10 - 7/4 * 10 and 60 - 7/4 * 30 are -7.5 and 7.5; sqrt(2 / (2 - 1) * 112.5) = 15, over 40 tokens.
    assert metrics["loss_stderr"] == pytest.approx(15 / 40)
    assert metrics["bits_per_character_stderr"] == pytest.approx(15 / 80 / math.log(2))
    with pytest.raises(ValueError, match="at least one scored token"):
        nelbo_metrics(torch.zeros(1), torch.zeros(1))


# Weights and checkpoints ----------------------------------------------------------------------------------------------


def test_averaged_weights_are_evaluated_and_saved_and_training_goes_on_with_the_raw_ones(tmp_path):
    options = {"ema_decay": 0.9, "save_strategy": "steps", "save_steps": 4}
    trainer = trained(make_trainer(tmp_path, evaluation=dataset(8), **options))
    raw = weights(trainer.model)
    with trainer.ema_weights():
        averaged = weights(trainer.model)
        of_average = trainer.evaluate()["eval_loss"]
    assert not torch.equal(raw, averaged) and torch.equal(weights(trainer.model), raw)
    assert trainer.evaluate()["eval_loss"] == of_average
    trainer.save_model()
    checkpoint = tmp_path / "checkpoint-4"
    for folder, expected in ((tmp_path, averaged), (checkpoint / "ema", averaged), (checkpoint, raw)):
        assert torch.equal(weights(AutoModel.from_pretrained(folder)), expected), folder


def test_the_samples_of_the_card_are_of_the_averaged_weights(tmp_path):
    def share(name, model, **kwargs):
        args = training_arguments(tmp_path / "run", max_steps=1, card_samples=2, **kwargs)
        trainer = MD4Trainer(model, args, train_dataset=dataset(8), processing_class=tokenizer)
        trainer.train()
        for parameter in trainer.model.parameters() if args.ema_decay else ():  # far from the average
            torch.nn.init.normal_(parameter, std=0.3)
        trainer.save_repository(tmp_path / name)
        return (tmp_path / name / "README.md").read_text().split("## Samples")[1].split("## Licence")[0]

    tokenizer = build_byte_tokenizer()
    card = share("averaged", random_model(len(tokenizer), LENGTH, std=0.3), ema_decay=0.999)
    averaged = AutoModel.from_pretrained(tmp_path / "averaged")
    assert card == share("plain", averaged, learning_rate=0.0)


def test_the_average_follows_its_formula(tmp_path):
    history = []

    class Record(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            history.append(weights(model))

    trainer = make_trainer(tmp_path, ema_decay=0.3, callbacks=[Record()])
    average = weights(trainer.model)
    trainer.train()
    for step, new in enumerate(history, start=1):
        decay = 0.0 if step == 1 else min(0.3, step / (9 + step))
        average = decay * average + (1 - decay) * new
    with trainer.ema_weights():
        torch.testing.assert_close(weights(trainer.model), average, atol=1e-6, rtol=0)


def test_a_checkpoint_appears_only_when_it_is_complete(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=4, ema_decay=0.5)

    def disk_full(self, output_dir):
        if self.state.global_step == 4:
            raise OSError("No space left on device")

    monkeypatch.setattr(MD4Trainer, "_save_scaler", disk_full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = make_trainer(tmp_path, max_steps=4, ema_decay=0.5)
    monkeypatch.undo()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4 and not list(tmp_path.glob(".checkpoint*"))


def test_old_checkpoints_are_removed_and_the_best_is_kept(tmp_path):
    trainer = trained(make_trainer(tmp_path, evaluation=dataset(8), max_steps=5, save_total_limit=2, **KEEP_BEST))
    names = {path.name for path in tmp_path.glob("checkpoint-*")}
    best = f"checkpoint-{trainer.state.best_global_step}"
    assert len(names) == 2 and {best, "checkpoint-5"} <= names | {best}
    assert Path(trainer.state.best_model_checkpoint) == tmp_path / best
    recorded = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert recorded["best_model_checkpoint"] == str(tmp_path / best)


def test_the_best_model_is_loaded_with_its_average(tmp_path):
    """A learning rate that ruins the model after the first step: the best is the first checkpoint."""
    trainer = trained(make_trainer(tmp_path, evaluation=dataset(16), learning_rate=0.3, ema_decay=0.5, **KEEP_BEST))
    evaluations = logged(trainer, "eval_loss")
    assert trainer.state.best_metric == min(evaluations) < evaluations[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_a_best_evaluation_without_a_checkpoint_does_not_end_the_run(tmp_path):
    options = {"save_steps": 2, "max_steps": 5, "save_total_limit": 1, **EVALUATE_EVERY_STEP}
    trainer = trained(make_trainer(tmp_path, evaluation=dataset(8), **options))
    assert trainer.state.global_step == 5 and list(tmp_path.glob("checkpoint-*"))


def tied_model(**sizes):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **sizes}
    return MD4ForMaskedDiffusion(
        MD4Config(vocab_size=VOCAB + 1, max_position_embeddings=LENGTH, tie_word_embeddings=True, **sizes)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, r"\S+ is \(32,\); the model's is \(64,\)"),
        ({"num_hidden_layers": 2}, r"layers.1.\S+ is not there; the model's is \("),
    ],
)
def test_resuming_a_model_of_other_sizes_is_an_error_before_anything_is_moved(tmp_path, change, message):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, tied_model(), **options).train()
    before = sorted(tmp_path.rglob("*"))
    trainer = make_trainer(tmp_path, tied_model(**change), **options)
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must have weights of the sizes.*{message}"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sorted(tmp_path.rglob("*")) == before
    again = make_trainer(tmp_path, tied_model(), **options)
    assert again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2")).global_step == 4


def test_resuming_without_the_averaged_weights_is_an_error(tmp_path):
    trained(make_trainer(tmp_path, save_strategy="steps", save_steps=4))
    trainer = make_trainer(tmp_path, max_steps=6, ema_decay=0.9)
    with pytest.raises(FileNotFoundError, match="must hold the averaged weights in 'ema'"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(tmp_path):
    class PressCtrlC(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    trainer = trained(make_trainer(tmp_path, max_steps=6, callbacks=[PressCtrlC()]))
    assert trainer.interrupted and trainer.state.global_step == 3
    assert signal.getsignal(signal.SIGINT) is handler
    unbroken = trained(make_trainer(tmp_path / "unbroken", max_steps=6))
    resumed = trained(make_trainer(tmp_path, max_steps=6), checkpoint=True)
    assert not resumed.interrupted and torch.equal(weights(resumed.model), weights(unbroken.model))


# The contract ---------------------------------------------------------------------------------------------------------


def test_norms_and_biases_do_not_decay(tmp_path):
    trainer = make_trainer(tmp_path, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.1 for p in group["params"]}
    kept = {id(p) for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert id(parameter) in (decayed if parameter.ndim > 1 else kept), name


def test_a_model_that_is_not_md4_is_refused(tmp_path):
    config = BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    plain = torch.nn.Linear(2, 2)
    plain.config = tied_model().config
    for model, name in ((BertForMaskedLM(config), "BertForMaskedLM"), (None, "NoneType"), (plain, "Linear")):
        with pytest.raises(ValueError, match=f"`model` must be an MD4 model, .* got {name}"):
            MD4Trainer(model=model, args=training_arguments(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrap", [torch.compile, partial(add_adapter, arguments=LoraArguments(lora_r=2))])
def test_an_md4_model_in_a_wrapper_is_not_refused(tmp_path, wrap):
    check_model(wrap(tiny_model()))


def eager(model):
    return torch.compile(model, backend="eager")


def test_a_model_compiled_before_trains_resumes_and_is_saved_as_any_other(tmp_path):
    columns = {"label": [1] * 64, "text": ["a word"] * 64}  # which the model does not take
    options = {"ema_decay": 0.9, "train": dataset(**columns), "evaluation": dataset(16, seed=1, text=["a word"] * 16)}
    options |= {"save_strategy": "steps", "save_steps": 2}
    plain = trained(make_trainer(tmp_path / "plain", **options))
    compiled = trained(make_trainer(tmp_path / "compiled", eager(tiny_model()), **options))
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    assert compiled.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4)
    resumed = make_trainer(tmp_path / "compiled", eager(tiny_model(seed=1)), **options)
    again = trained(resumed, tmp_path / "compiled" / "checkpoint-2")
    assert losses(again)[-2:] == pytest.approx(losses(plain)[-2:], rel=1e-4)
    compiled.save_repository(tmp_path / "repository")
    plain.save_repository(tmp_path / "repository of plain")
    saved, expected = (
        MD4ForMaskedDiffusion.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "repository", tmp_path / "repository of plain")
    )
    torch.testing.assert_close(saved, expected, rtol=1e-3, atol=1e-5)


def test_the_best_weights_of_a_compiled_model_are_loaded(tmp_path):
    trainer = trained(make_trainer(tmp_path, eager(tiny_model()), evaluation=dataset(16), **KEEP_BEST))
    for parameter in trainer.model.parameters():
        parameter.data.add_(1.0)
    trainer._load_best_model()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


@pytest.mark.parametrize("wrap", [lambda model: model, eager], ids=["plain", "compiled"])
@pytest.mark.parametrize("column", [{"weight": [1.0] * 64}, {"text": ["a word"] * 64}], ids=["numbers", "strings"])
def test_a_column_that_the_model_does_not_take_is_named(tmp_path, wrap, column):
    (name,) = column
    trainer = make_trainer(
        tmp_path, wrap(tiny_model()), dataset(**column), dataset(**column), remove_unused_columns=False
    )
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match=f"(?s)olumn.*{name}.*emove"):
            run()


class Noising(PaddingCollator):
    """Changes every second id of a batch, and scores only these, as collators of masked language models do."""

    def __init__(self, new_ids, scores_all=False):
        super().__init__()
        self.new_ids, self.scores_all = new_ids, scores_all

    def __call__(self, features):
        batch = super().__call__(features)
        ids, labels = batch["input_ids"].clone(), batch["input_ids"].clone()
        ids[:, ::2] = self.new_ids(ids[:, ::2])
        if not self.scores_all:
            labels[:, 1::2] = -100
        return {**batch, "input_ids": ids, "labels": labels}


NOISING_COLLATORS = {
    "mask ids": Noising(lambda ids: torch.full_like(ids, VOCAB)),
    "mask ids, all scored": Noising(lambda ids: torch.full_like(ids, VOCAB), scores_all=True),
    "other tokens": Noising(lambda ids: (ids + 1) % VOCAB),
    "the collator for a plain Trainer": DataCollatorForMaskedDiffusion(MD4Config(vocab_size=VOCAB + 1)),
}


@pytest.mark.parametrize("is_stream", [False, True], ids=["map-style", "stream"])
@pytest.mark.parametrize("collator", NOISING_COLLATORS.values(), ids=NOISING_COLLATORS)
def test_a_collator_that_masks_by_itself_is_refused(tmp_path, collator, is_stream):
    data = dataset().to_iterable_dataset() if is_stream else dataset()
    trainer = make_trainer(tmp_path, train=data, evaluation=data, data_collator=collator)
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match="`input_ids` must be clean, equal to `labels`"):
            run()


def test_masks_that_are_not_scored_are_no_noise(tmp_path):
    labels = sequences()
    labels[:, 0] = -100
    ids = sequences()
    ids[:, 0] = VOCAB
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    assert np.isfinite(losses(trained(make_trainer(tmp_path, train=data)))).all()


def test_the_last_batch_of_an_epoch_may_be_short(tmp_path):
    trainer = trained(make_trainer(tmp_path, train=dataset(13), max_steps=-1, num_train_epochs=2))
    assert trainer.state.global_step == 4 and all(map(math.isfinite, losses(trainer)))


def test_bf16_autocast_trains(tmp_path):
    half, full = trained(make_trainer(tmp_path / "a", bf16=True)), trained(make_trainer(tmp_path / "b"))
    assert losses(half) == pytest.approx(losses(full), rel=0.03)


def test_the_model_card_tells_the_run(tmp_path):
    trainer = trained(make_trainer(tmp_path, evaluation=dataset(8), eval_strategy="steps", eval_steps=2))
    trainer.create_model_card(data="eight sequences", samples=["abc"])
    card = (tmp_path / "README.md").read_text()
    assert f"{logged(trainer, 'eval_loss')[-1]:.4f}" in card and "eight sequences" in card and "abc" in card
    assert "library_name: transformers" in card
    for row in ("Optimizer steps | 4", "Sequences per step | 8", "Optimizer | adamw_torch_fused"):
        assert f"| {row} |" in card
    assert "name: eight sequences, held-out part" in card and "the held-out part of the data named above." in card
    trainer.create_model_card(data="eight sequences", validation_data="others", datasets=["user/eight"])
    card = (tmp_path / "README.md").read_text()
    assert "name: others" in card and "type: custom" in card and "estimated on\nothers." in card


@pytest.mark.parametrize("kind", ["text", "images"])
def test_the_code_of_a_card_opens_the_model(tmp_path, monkeypatch, kind):
    """As it stands, with every version of transformers, without torchvision."""
    monkeypatch.chdir(tmp_path)
    images, text = random_image_model(levels=3, image_size=4), random_model(28, LENGTH, std=0.1)
    model, component = {"text": (text, build_text8_tokenizer()), "images": (images, MD4ImageProcessor(4, 1, 3))}[kind]
    name = "tokenizer" if kind == "text" else "image_processor"
    MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(), **{name: component}).save_pretrained(tmp_path)
    card = make_model_card(model, training_arguments(tmp_path), TrainerState(), CardFacts(location=str(tmp_path)))
    namespace = {}
    for code in re.findall(r"```python\n(.+?)```", card.text, re.DOTALL):
        exec(code, namespace)
    assert type(namespace[name]).__name__ == type(component).__name__ and (tmp_path / "sample.png").exists() == (
        kind == "images"
    )


@pytest.mark.parametrize("use_muon", [False, True])
def test_the_card_names_the_optimizer_that_ran(tmp_path, use_muon):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 1}
    trainer = make_trainer(tmp_path, use_muon=use_muon, optim="sgd", **options)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert ("| Optimizer | Muon, AdamW " in card, "| Optimizer | sgd |" in card) == (use_muon, not use_muon)
    assert "| Sequences per step | 6 |" in card


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ema_decay": 1.0}, r"`ema_decay` must be in \[0, 1\), got 1.0"),
        ({"eval_draws": 0}, "`eval_draws` must be >= 1, got 0"),
        ({"num_copies": 1}, "`num_copies` must be >= 2, got 1"),
        ({"schedule_lr_multiplier": 0.0}, "`schedule_lr_multiplier` must be > 0, got 0.0"),
        ({"card_samples": -1}, "`card_samples` must be >= 0, got -1"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be >= 1, got 0"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be >= 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be >= 1, got 0"),
        ({"eval_accumulation_steps": 0}, "`eval_accumulation_steps` must be >= 1, got 0"),
        ({"learning_rate": math.nan}, "`learning_rate` must be >= 0 and finite, got nan"),
        ({"learning_rate": math.inf}, "`learning_rate` must be >= 0 and finite, got inf"),
        ({"max_steps": 0}, "`max_steps` must be >= 1, or `num_train_epochs` > 0"),
        ({"save_steps": -3}, "`save_steps` must be > 0 .*, got -3"),
        ({"save_steps": 0, "save_strategy": "steps"}, "`save_steps` must be > 0 .*, got 0"),
        ({"eval_steps": -0.5}, "`eval_steps` must be > 0 .*, got -0.5"),
        ({"logging_steps": -2}, "`logging_steps` must be > 0 .*, got -2"),
    ],
)
def test_bad_arguments_are_named(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        training_arguments(tmp_path, **kwargs)


@pytest.mark.parametrize("is_scored", [False, True])
@pytest.mark.parametrize("options", [{"logging_steps": 2}, {"logging_steps": 50}, {"save_steps": 1}])
def test_a_training_that_scores_no_token_says_so_once(tmp_path, caplog, options, is_scored):
    labels = np.full_like(sequences(), -100)
    if is_scored:
        labels[:, 0] = sequences()[:, 0]
    saving = {"save_strategy": "steps"} if "save_steps" in options else {}
    trainer = make_trainer(tmp_path, train=dataset(labels=labels.tolist()), max_steps=4, **saving, **options)
    trainer.train()
    said = [message for message in caplog.messages if "all `labels` are -100" in message]
    assert len(said) == (not is_scored)


@pytest.mark.parametrize("name", ["eval_do_concat_batches", "average_tokens_across_devices"])
def test_arguments_that_would_change_the_figures_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be True for an MD4 model, got False"):
        make_trainer(tmp_path, **{name: False})


@pytest.mark.parametrize("objective", ["md4", "genmd4"])
def test_a_step_that_scores_nothing_changes_nothing(tmp_path, objective):
    learned = {"masking_schedule": "poly", "learn_masking_schedule": True} if objective == "genmd4" else {}
    rows = [{"input_ids": row.tolist(), "labels": [-100] * LENGTH} for row in sequences(16)]
    model = random_model(VOCAB + 1, LENGTH, std=0.2, **learned)
    before = weights(model)
    trainer = trained(make_trainer(tmp_path, model=model, train=Dataset.from_list(rows), weight_decay=0.0))
    assert trainer.state.global_step == 4 and trainer.state.num_input_tokens_seen == 0
    assert torch.equal(weights(trainer.model), before)


def test_tokens_are_counted_once_where_several_devices_have_their_number(tmp_path):
    """With DataParallel, transformers repeats the number of items for each device."""
    trainer = trained(make_trainer(tmp_path))
    trainer.args._n_gpu = 2
    trainer._uncounted_tokens, seen = 0, trainer.state.num_input_tokens_seen
    batches, num_items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    assert num_items.shape == (2, 1)
    trainer._count_tokens()
    assert trainer.state.num_input_tokens_seen - seen == batches[0]["input_ids"].numel() == num_items[0]


def test_what_an_elbo_has_no_use_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`compute_metrics` must be None for an MD4 model"):
        MD4Trainer(model=tiny_model(), args=training_arguments(tmp_path), compute_metrics=len)
    with pytest.raises(ValueError, match="`model_init` must be None for an MD4 model"):
        MD4Trainer(args=training_arguments(tmp_path), model_init=tiny_model)
    with pytest.raises(ValueError, match="ids below the model's number of rows"):
        MD4Trainer(model=tiny_model(), args=training_arguments(tmp_path), processing_class=build_byte_tokenizer())
    with pytest.raises(ValueError, match="`args` must be MD4TrainingArguments, got NoneType"):
        MD4Trainer(model=tiny_model())


def test_document_ids_reach_the_model_in_training_and_evaluation(tmp_path):
    documents = [[0] * 3 + [1] * (LENGTH - 3)] * 16
    data = {"train": dataset(16, document_ids=documents), "evaluation": dataset(8, document_ids=documents[:8])}
    trainer, seen = make_trainer(tmp_path, max_steps=2, **data), []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((module.training, kwargs["document_ids"][0].tolist())),
        with_kwargs=True,
    )
    trainer.train()
    trainer.evaluate()
    assert {training for training, _ in seen} == {True, False}
    assert all(ids == documents[0] for _, ids in seen)


def test_a_compiled_training_has_the_same_losses(tmp_path):
    plain = trained(make_trainer(tmp_path / "plain"))
    compiled = make_trainer(tmp_path / "compiled", torch_compile=True, torch_compile_backend="aot_eager")
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    blocks = compiled.model.model.layers
    assert all(block._compiled_call_impl is not None for block in blocks), "block by block"
    assert compiled.model._compiled_call_impl is None and compiled.model_wrapped is compiled.model


def test_an_accelerator_is_told_how_many_tokens_are_masked_at_most(tmp_path):
    args, objective = training_arguments(tmp_path), Objective.of(tiny_model())
    ids = torch.empty(64, 128, device="meta")
    bound = most_masked_tokens(ids, objective, args, 64, True)
    assert ids.numel() / 2 < bound < 0.8 * ids.numel()
    assert most_masked_tokens(ids, objective, args, 64, all_scored=False) is None
    assert most_masked_tokens(ids[:2], objective, args, 2, True) is None, "far above the number of masked tokens"
    assert most_masked_tokens(torch.empty(64, 128), objective, args, 64, True) is None


def test_workers_of_a_preset_may_be_switched_off(tmp_path):
    args = training_arguments(tmp_path, dataloader_num_workers=0, dataloader_persistent_workers=True)
    assert not args.dataloader_persistent_workers


@pytest.mark.parametrize("lengths", [[LENGTH] * 6, [3, 8, 1, 5, 8, 2]])
def test_rows_reach_the_collator_as_tensors_and_give_the_batches_of_lists(tmp_path, lengths):
    rows = [ids[:n].tolist() for ids, n in zip(sequences(6), lengths, strict=True)]
    data = Dataset.from_dict({"input_ids": rows, "labels": rows, "num_characters": [1.5] * 6})
    seen = []

    class Recording(PaddingCollator):
        def __call__(self, features):
            seen.extend(features)
            return super().__call__(features)

    trainer = make_trainer(tmp_path, train=data, data_collator=Recording())
    (batch,) = trainer.get_test_dataloader(data)
    assert all(isinstance(row["input_ids"], torch.Tensor) for row in seen)
    expected = PaddingCollator()(data.to_list())
    assert sorted(batch.pop("noise_index").tolist()) == [*range(6)]
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], x) and batch[name].dtype == x.dtype for name, x in expected.items())
