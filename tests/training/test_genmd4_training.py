# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training GenMD4: the same numbers however a step is cut up, exponents that learn, and what is logged and saved."""

import math

import numpy as np
import pytest
import torch
from commands import failure
from datasets import Dataset
from tiny import (
    at_once_and_in_parts,
    logged,
    quiet,
    random_model,
    seeded,
    trained,
    training_arguments,
    unbroken_and_resumed,
)

from md4_hf import (
    DataCollatorForMaskedDiffusion,
    LoraArguments,
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForMaskedDiffusion,
    MD4Trainer,
    add_adapter,
    build_text8_tokenizer,
)
from md4_hf.cli import main
from md4_hf.evaluation.schedule_plots import (
    plot_exponents,
    plot_masking_schedules,
    plot_token_schedules,
    plot_unmasked_per_step,
)


LENGTH, VOCAB = 8, 5


def genmd4_model(vocab_size=VOCAB + 1, length=LENGTH, **kwargs):
    learned = {"masking_schedule": "poly", "schedule_power": 1.0, "learn_masking_schedule": True}
    model = random_model(vocab_size, length, std=0.1, **learned, **kwargs)
    with torch.no_grad():
        model.token_schedule.free_exponents.copy_(torch.linspace(-0.5, 1.5, vocab_size))
    return model


def dataset(count=64):
    ids = np.random.default_rng(0).choice(VOCAB, size=(count, LENGTH), p=[0.6, 0.25, 0.1, 0.04, 0.01])
    ids[:, 1::2] = ids[:, ::2]
    return Dataset.from_dict({"input_ids": ids.tolist()})


def make_trainer(folder, model=None, evaluation=None, **kwargs):
    args = training_arguments(folder, **kwargs)
    return MD4Trainer(model or genmd4_model(), args, train_dataset=dataset(), eval_dataset=evaluation)


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("copies", [2, 3])
def test_an_adapter_may_train_the_schedules_with_it(tmp_path, copies):
    """PEFT wraps the schedules then: they stay schedules, do not decay, and have their own rate."""
    model = add_adapter(genmd4_model(), LoraArguments(lora_r=2, modules_to_save="token_schedule"))
    torch.testing.assert_close(bound_of(model), bound_of(genmd4_model()), atol=1e-5, rtol=0)
    options = {"schedule_lr_multiplier": 10.0, "weight_decay": 0.5, "num_copies": copies, "max_steps": 2}
    trainer = trained(make_trainer(tmp_path, model=model, **options))
    (name,) = (name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora" not in name)
    assert name.endswith("token_schedule.modules_to_save.default.free_exponents")
    (group,) = (g for g in trainer.optimizer.param_groups if any(p is model.get_parameter(name) for p in g["params"]))
    assert group["initial_lr"] == 10 * trainer.args.learning_rate and group["weight_decay"] == 0.0
    assert not torch.equal(model.get_parameter(name), genmd4_model().token_schedule.free_exponents)


@torch.no_grad()
def bound_of(model):
    ids = torch.arange(3 * LENGTH).view(3, LENGTH) % VOCAB
    noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    return model.eval()(ids, labels=ids, timesteps=torch.tensor([0.2, 0.5, 0.9]), mask_noise=noise).loss


def assert_same(first, second):
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("size, accumulation", [(4, 2), (1, 8)])
def test_accumulation_changes_neither_losses_nor_weights(tmp_path, size, accumulation):
    """In float64: AdamW divides a gradient by its size, and with it the rounding of float32."""

    def make(folder, **options):
        return make_trainer(folder, genmd4_model().double(), **options)

    at_once, in_parts = at_once_and_in_parts(make, tmp_path, size, accumulation)
    assert_same(weights(at_once), weights(in_parts))
    for name in ("loss", "nelbo"):
        assert logged(at_once, name) == pytest.approx(logged(in_parts, name), rel=1e-4)
    assert logged(at_once, "nelbo") != pytest.approx(logged(at_once, "loss"), rel=1e-3), "the loss is a surrogate"


def test_resuming_gives_the_unbroken_run(tmp_path):
    unbroken, resumed = unbroken_and_resumed(make_trainer, tmp_path, 2, ema_decay=0.5)
    assert_same(weights(unbroken), weights(resumed))
    assert logged(unbroken, "nelbo")[2:] == pytest.approx(logged(resumed, "nelbo")[2:], rel=1e-4)


def test_the_exponents_learn_without_weight_decay_and_at_a_rate_of_their_own(tmp_path):
    def exponents_after(name, **kwargs):
        trainer = make_trainer(tmp_path / name, **kwargs)
        before = trainer.model.token_schedule.free_exponents.detach().clone()
        trainer.train()
        return trainer.model.token_schedule.free_exponents.detach() - before

    plain = exponents_after("plain", max_steps=1)
    assert (plain[:-1] != 0).all() and plain[-1] == 0, "all but the mask's, which has no effect and is not decayed"
    torch.testing.assert_close(exponents_after("decay", max_steps=1, weight_decay=0.5), plain)
    slower = exponents_after("slower", max_steps=1, schedule_lr_multiplier=0.1)
    torch.testing.assert_close(slower, 0.1 * plain, atol=1e-7, rtol=1e-2)


def test_exponents_have_float32_gradients_under_bf16_autocast():
    model, x0 = genmd4_model().train(), torch.tensor(dataset(16)["input_ids"][:])
    noise, t = torch.rand(16, 2, LENGTH), torch.linspace(0.05, 0.95, 16)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(x0, timesteps=t, labels=x0, mask_noise=noise).loss.backward()
        gradients.append(model.token_schedule.free_exponents.grad.clone())
        model.zero_grad()
    assert gradients[1].dtype == torch.float32
    torch.testing.assert_close(gradients[1], gradients[0], atol=0.02 * gradients[0].abs().max().item(), rtol=0)


def test_the_model_masks_by_its_own_schedules_as_if_it_were_given_the_states():
    model, x0 = genmd4_model().train(), torch.tensor(dataset(6)["input_ids"][:])
    noise, t = torch.rand(6, 3, LENGTH), torch.linspace(0.1, 0.9, 6)
    own = model(x0, timesteps=t, labels=x0, mask_noise=noise)
    alpha = model.token_schedule.alpha_of(t, x0)[:, None]
    states = torch.where(noise < alpha, x0[:, None].expand(noise.shape), VOCAB)
    given = model(states, timesteps=t, labels=x0)
    torch.testing.assert_close(own.loss, given.loss)
    torch.testing.assert_close(own.token_nelbo, given.token_nelbo)
    assert own.token_nelbo.shape == (6, 3, LENGTH)


def test_copies_are_the_mean_of_single_states_for_any_schedule():
    for model in (genmd4_model(), random_model(VOCAB + 1, LENGTH, std=0.1)):
        model.eval()
        x0, t = torch.tensor(dataset(4)["input_ids"][:]), torch.tensor([0.2, 0.4, 0.6, 0.8])
        noise = torch.rand(4, 2, LENGTH)
        both = model(x0, timesteps=t, labels=x0, mask_noise=noise)
        single = [model(x0, timesteps=t, labels=x0, mask_noise=noise[:, copy]).nelbo for copy in range(2)]
        torch.testing.assert_close(both.nelbo, torch.stack(single).mean())
        assert both.logits.shape == (4, 2, LENGTH, VOCAB + 1)


def test_evaluation_depends_neither_on_the_batch_size_nor_on_the_mode(tmp_path):
    options = {"evaluation": dataset(16), "eval_draws": 4}
    trainers = [make_trainer(tmp_path, per_device_eval_batch_size=size, **options) for size in (3, 16)]
    first, second = (trainer.evaluate()["eval_loss"] for trainer in trainers)
    assert first == pytest.approx(second, rel=1e-5)


def test_training_lowers_the_bound_and_moves_the_exponents_apart(tmp_path):
    options = {"max_steps": 150, "learning_rate": 1e-2, "eval_draws": 16, "logging_steps": 50}
    trainer = make_trainer(tmp_path, evaluation=dataset(64), **options)
    with torch.no_grad():
        trainer.model.token_schedule.free_exponents.fill_(math.log(math.e - 1))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.3
    assert trainer.model.token_schedule.exponents.std() > 0.02


def test_the_logged_bound_is_the_mean_since_the_last_log_and_the_bits_are_its(tmp_path):
    trainer, seen = make_trainer(tmp_path, max_steps=4, logging_steps=2), []
    trainer.model.register_forward_hook(lambda _, inputs, output: seen.append(output.nelbo.item()))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "nelbo" in entry]
    assert [entry["nelbo"] for entry in logs] == pytest.approx([sum(seen[:2]) / 2, sum(seen[2:]) / 2])
    for entry in logs:
        assert entry["bits_per_token"] == pytest.approx(entry["nelbo"] / math.log(2))
        assert entry["loss"] != pytest.approx(entry["nelbo"], rel=1e-3), "a surrogate"


def test_saving_keeps_the_exponents_and_the_pipeline_samples_with_them(tmp_path):
    model = genmd4_model(28, 16).eval()
    scheduler = MaskedDiffusionScheduler(num_inference_steps=8)
    pipe = quiet(MaskedDiffusionPipeline(model, scheduler, build_text8_tokenizer()))
    expected = pipe(num_samples=3, generator=seeded(0)).texts
    pipe.save_pretrained(tmp_path)
    loaded = quiet(MaskedDiffusionPipeline.from_pretrained(tmp_path))
    assert torch.equal(loaded.model.token_schedule.free_exponents, model.token_schedule.free_exponents)
    assert loaded(num_samples=3, generator=seeded(0)).texts == expected
    with torch.no_grad():
        model.token_schedule.free_exponents.fill_(1.0)
    assert pipe(num_samples=3, generator=seeded(0)).texts != expected


def test_exponents_stay_in_float32_and_follow_the_vocabulary(tmp_path):
    model = genmd4_model()
    expected = model.token_schedule.free_exponents.detach().clone()
    model.save_pretrained(tmp_path)
    loaded = MD4ForMaskedDiffusion.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert loaded.token_schedule.free_exponents.dtype == torch.float32
    assert torch.equal(loaded.token_schedule.free_exponents, expected)
    model.resize_token_embeddings(VOCAB + 3)
    assert torch.equal(model.token_schedule.free_exponents[: VOCAB + 1], expected)
    torch.testing.assert_close(model.token_schedule.exponents[VOCAB + 1 :], torch.ones(2))
    x0 = torch.tensor(dataset(4)["input_ids"][:])
    assert model.train()(x0, labels=x0).loss.isfinite()


def test_the_collator_leaves_the_masking_to_the_model():
    config = genmd4_model().config
    batch = DataCollatorForMaskedDiffusion(config)([{"input_ids": [1] * LENGTH}] * 3)
    assert batch["mask_noise"].shape == (3, 2, LENGTH) and (batch["input_ids"] == 1).all()
    assert (batch["timesteps"] >= config.schedule_first_time).all()
    assert genmd4_model().train()(**batch).loss.isfinite()


def test_bad_configurations_and_arguments_are_named(tmp_path):
    for kwargs, message in (
        ({"masking_schedule": "linear"}, '`masking_schedule` must be "poly" to be learned'),
        ({"num_train_timesteps": 10}, "`num_train_timesteps` must be None"),
        ({"schedule_first_time": 0.0}, r"`schedule_first_time` must be in \(0, 1\), got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            MD4Config(vocab_size=6, learn_masking_schedule=True, **{"masking_schedule": "poly", **kwargs})
    with pytest.raises(ValueError, match="`losses` must hold at least 2 copies, got 1"):
        x0 = torch.zeros(2, LENGTH, dtype=torch.long)
        genmd4_model().train()(x0, timesteps=torch.tensor([0.5, 0.5]), labels=x0)
    with pytest.raises(ValueError, match="`mask_noise` needs `labels`"):
        genmd4_model()(x0, timesteps=torch.tensor([0.5, 0.5]), mask_noise=torch.rand(2, LENGTH))


# Learned schedules ----------------------------------------------------------------------------------------------------

SMALL = ["--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--block_size", "32"]


def test_the_command_trains_and_shows_what_was_learned(tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--max_steps", "4", "--final_eval_draws", "1", "--total_batch_size", "8", "--use_muon", "false"]
    main(["train", "--preset", "tiny", "--objective", "genmd4", *SMALL, *options, "--output_dir", str(run)])
    assert "learned for each token, GenMD4" in (run / "README.md").read_text()
    assert MD4ForMaskedDiffusion.from_pretrained(run).config.learn_masking_schedule
    main(["schedules", str(run), "--rows", "3", "--output_dir", str(tmp_path / "pictures"), "--format", "svg"])
    output = capsys.readouterr().out
    assert "27 tokens, exponents from" in output and "smallest exponents" in output
    assert "'e'" not in output.split("w")[0]
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    expected = {"exponents", "token_schedules", "masking_schedules", "unmasked_per_step"}
    assert names == {f"{name}.svg" for name in expected}


def test_a_model_without_learned_schedules_has_none_to_show(tmp_path, capsys):
    random_model(28, 16, std=0.1).save_pretrained(tmp_path)
    build_text8_tokenizer().save_pretrained(tmp_path)
    assert "MODEL must be a GenMD4 model" in failure(capsys, ["schedules", str(tmp_path)])
    options = ["--data", "pydoc", "--masking_schedule", "cosine", "--output_dir", str(tmp_path / "x")]
    message = failure(capsys, ["train", "--objective", "genmd4", *options])
    assert "--masking_schedule must be left out" in message


def test_token_schedules_are_drawn_as_differences_from_the_linear_one(tmp_path, figures):
    plot_token_schedules({"'e'": 0.5, "'$$'": 2.0}, tmp_path / "schedules.png")
    (figure,) = figures
    earlier, later, linear = figure.axes[0].lines
    for line, w in ((earlier, 0.5), (later, 2.0)):
        t, difference = line.get_xydata().T
        np.testing.assert_allclose(difference, (1 - t**w) - (1 - t), atol=1e-12)
    assert set(linear.get_ydata()) == {0.0}
    assert [text.get_text() for text in figure.legends[0].get_texts()][1] == "'$$'  w = 2.00"


def test_pictures_are_drawn(tmp_path, figures):
    exponents = torch.linspace(0.5, 2.0, 27)
    plot_exponents(exponents, tmp_path / "a.png")
    plot_token_schedules({"'e'": 0.8, "'q'": 1.4}, tmp_path / "b.png")
    plot_masking_schedules(tmp_path / "c.png")
    plot_unmasked_per_step(tmp_path / "d.png", num_tokens=64, num_steps=16)
    for name in "abcd":
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for figure in figures:
        (legend,) = figure.legends
        last = figure.axes[-1].get_window_extent()
        assert legend.get_window_extent().x0 >= last.x1, "beside the panels, not on the lines"
