# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The autoregressive baseline: exact likelihoods from the same network, data and training."""

import json
import math

import pytest
import torch
import transformers
from commands import failure
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny import logged, trained, training_arguments, with_normal_weights
from transformers import AutoModel, AutoModelForCausalLM, Trainer

from md4_hf import (
    MD4Config,
    MD4ForCausalLM,
    MD4ForMaskedDiffusion,
    MD4Trainer,
    MD4TrainingArguments,
    load_model,
)
from md4_hf.cli import main


VOCAB, LENGTH = 5, 8
SIZES = {"vocab_size": VOCAB + 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def causal_model(seed=0, std=0.3, **kwargs):
    config = MD4Config(**SIZES, max_position_embeddings=LENGTH, is_causal=True, **kwargs)
    return with_normal_weights(config, std, seed, MD4ForCausalLM).eval()


def ids(count=4, length=LENGTH, seed=0):
    return torch.randint(VOCAB, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("time_conditioning", [True, False])
def test_it_has_the_parameters_of_the_masked_diffusion_model(time_conditioning):
    options = {**SIZES, "time_conditioning": time_conditioning}
    causal = MD4ForCausalLM(MD4Config(**options, is_causal=True))
    diffusion = MD4ForMaskedDiffusion(MD4Config(**options))
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (causal, diffusion)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("time_conditioning", [True, False])
def test_no_token_sees_its_successors(time_conditioning, attention):
    model = causal_model(time_conditioning=time_conditioning, attn_implementation=attention)
    x, y = ids(), ids()
    y[:, 5] = (y[:, 5] + 1) % VOCAB
    change = (model(x).logits - model(y).logits).abs().amax(dim=(0, 2))
    assert (change[:5] < 1e-5).all() and (change[5:] > 1e-4).all()


def test_probabilities_of_all_sequences_add_up_to_one():
    model = causal_model()
    grid = torch.cartesian_prod(*[torch.arange(VOCAB)] * 3)
    with torch.no_grad():
        nats = model(grid, labels=grid).token_nelbo.double().sum(dim=1)
    assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_the_loss_is_that_of_the_logits_and_honours_the_number_of_items():
    model, x = causal_model(), ids()
    labels = x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3, -100)
    output, logits = model(x, labels=labels), model(x).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    torch.testing.assert_close(output.token_nelbo[:, 1:], expected)
    scored = (labels != -100).sum()
    torch.testing.assert_close(output.loss, output.token_nelbo.sum() / scored)
    torch.testing.assert_close(model(x, labels=labels, num_items_in_batch=10).loss, output.token_nelbo.sum() / 10)
    with_logits = model(x, labels=labels, output_logits=True)
    torch.testing.assert_close(with_logits.loss, output.loss)
    torch.testing.assert_close(with_logits.logits, logits)
    assert (logits[..., VOCAB] == torch.finfo(logits.dtype).min).all(), "the mask is never predicted"


def test_the_logits_at_a_position_are_those_that_its_token_is_predicted_with():
    model, x = causal_model(), ids()
    where = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    where[0, 0], where[1, -1] = True, True
    nelbo = model(x, labels=x).token_nelbo
    logits = model(x, position_mask=where).logits
    torch.testing.assert_close(-logits.log_softmax(-1).gather(1, x[where][:, None])[:, 0], nelbo[where])
    with pytest.raises(ValueError, match="`position_mask` cannot be used with `labels`"):
        model(x, labels=x, position_mask=where)
    with pytest.raises(ValueError, match=r"`position_mask` must have shape \(4, 8\), got \(4, 7\)"):
        model(x, position_mask=where[:, 1:])


WHERE = torch.arange(4 * LENGTH).reshape(4, LENGTH) % 3 == 0
CALLS = {
    "logits": {},
    "loss": {"labels": ids()},
    "loss and logits": {"labels": ids(), "output_logits": True},
    "some logits": {"position_mask": WHERE},
}


@pytest.mark.parametrize("time_conditioning", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_hidden_states_and_attentions_are_those_of_the_given_tokens(call, time_conditioning):
    model = causal_model(time_conditioning=time_conditioning, attn_implementation="eager")
    plain = model(ids(), **call)
    asked = model(ids(), **call, output_hidden_states=True, output_attentions=True)
    assert [tuple(x.shape) for x in asked.hidden_states] == [(4, LENGTH, 32)] * 3
    assert [tuple(x.shape) for x in asked.attentions] == [(4, 2, LENGTH, LENGTH)] * 2
    with torch.no_grad():
        last = model.lm_head(asked.hidden_states[-1])[..., :VOCAB]
    torch.testing.assert_close(last, model(ids()).logits[..., :VOCAB], atol=1e-5, rtol=0)
    for attention in asked.attentions:
        assert not attention.triu(1).any(), "of the tokens before"
        shares = attention.sum(-1)  # the rest is that of the mask token before the first
        assert (shares > 0.0).all() and (shares < 1.0 + 1e-5).all() and shares.mean() < 0.99
    for name, value in plain.items():
        torch.testing.assert_close(asked[name], value, atol=1e-5, rtol=0)
    as_tuple = model(ids(), **call, output_hidden_states=True, output_attentions=True, return_dict=False)
    torch.testing.assert_close(as_tuple, asked.to_tuple(), atol=0, rtol=0)
    model.config.output_hidden_states = model.config.output_attentions = True
    torch.testing.assert_close(model(ids(), **call).to_tuple(), as_tuple, atol=0, rtol=0)
    model.config.return_dict = False
    torch.testing.assert_close(model(ids(), **call), as_tuple, atol=0, rtol=0)


@pytest.mark.skipif(transformers.__version__.startswith("5.17."), reason="transformers 5.17 returns all states")
def test_some_hidden_states_are_chosen_by_their_numbers():
    model = causal_model()
    every = model(ids(), output_hidden_states=True).hidden_states
    for numbers in (-1, [0, 2]):
        some = model(ids(), output_hidden_states=numbers).hidden_states
        given = [2] if numbers == -1 else numbers
        assert [x is not None for x in some] == [number in given for number in range(3)]
        assert all(x is None or torch.equal(x, y) for x, y in zip(some, every, strict=True))


def test_padding_changes_nothing():
    model, x = causal_model(), ids(length=5)
    padded = torch.nn.functional.pad(x, (0, 3), value=1)
    mask = (torch.arange(8) < 5).long().expand(4, 8)
    labels = padded.masked_fill(mask == 0, -100)
    output = model(padded, labels=labels, attention_mask=mask)
    torch.testing.assert_close(output.token_nelbo[:, :5], model(x, labels=x).token_nelbo)


def test_saved_and_opened_it_is_the_same(tmp_path):
    model, x = causal_model(), ids()
    model.save_pretrained(tmp_path)
    for loader in (load_model, AutoModel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        loaded = loader(str(tmp_path))
        assert isinstance(loaded, MD4ForCausalLM)
        torch.testing.assert_close(loaded(x).logits, model(x).logits)


def test_what_it_is_not_for_is_an_error():
    with pytest.raises(ValueError, match="`config` must have `is_causal=False` for MD4ForMaskedDiffusion, got True"):
        MD4ForMaskedDiffusion(MD4Config(**SIZES, is_causal=True))
    with pytest.raises(ValueError, match="`config` must have `is_causal=True` for MD4ForCausalLM, got False"):
        MD4ForCausalLM(MD4Config(**SIZES))
    with pytest.raises(ValueError, match="`learn_masking_schedule` must be False for a causal model"):
        MD4Config(**SIZES, is_causal=True, learn_masking_schedule=True, masking_schedule="poly")
    with pytest.raises(ValueError, match="`is_causal` must be False for images"):
        MD4Config(vocab_size=5, hidden_size=32, backbone="unet", image_size=4, is_causal=True)
    with pytest.raises(ValueError, match="`document_ids` must be None for a causal model"):
        causal_model()(ids(), document_ids=ids())


# Training -------------------------------------------------------------------------------------------------------------


def trained_losses(folder, batch, accumulation):
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    args = training_arguments(folder, learning_rate=1e-2, ema_decay=0.9, **options)
    rows = Dataset.from_dict({"input_ids": ids(64)})
    trainer = trained(MD4Trainer(model=causal_model(std=0.1), args=args, train_dataset=rows))
    return logged(trainer, "loss"), trainer


@pytest.mark.parametrize("trainer_class", [MD4Trainer, Trainer])
def test_the_first_token_counts_in_training_too(tmp_path, trainer_class):
    """A fresh model knows nothing: log V for each of the tokens, of which none is left out of their number."""
    torch.manual_seed(0)
    model = MD4ForCausalLM(MD4Config(**SIZES, max_position_embeddings=LENGTH, is_causal=True))
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids(8, 2)]
    args = MD4TrainingArguments(str(tmp_path), max_steps=1, logging_steps=1, use_cpu=True, report_to="none")
    trainer = trainer_class(model=model, args=args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(VOCAB), abs=1e-4)


def test_a_step_is_the_same_however_it_is_cut_up(tmp_path):
    at_once, trainer = trained_losses(tmp_path, 8, 1)
    in_parts, _ = trained_losses(tmp_path, 2, 4)
    assert at_once == pytest.approx(in_parts, abs=1e-5)
    x = ids(6, seed=1)
    metrics = trainer.evaluate(Dataset.from_dict({"input_ids": x}))
    with trainer.ema_weights(), torch.no_grad():
        exact = trainer.model.eval()(x, labels=x).loss.item()
    assert metrics["eval_loss"] == pytest.approx(exact, rel=1e-5) and metrics["eval_num_draws"] == 0


def test_md4_train_makes_and_evaluates_the_baseline(tmp_path, capsys):
    run = tmp_path / "ar"
    sizes = ["--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--block_size", "32"]
    sizes += ["--bf16", "false"]  # as `md4 evaluate` computes
    main(["train", "--preset", "tiny", "--objective", "ar", *sizes, "--max_steps", "2", "--output_dir", str(run)])
    assert "−log p, nats per token" in capsys.readouterr().out
    assert isinstance(load_model(str(run)), MD4ForCausalLM)
    card = ModelCard.load(run / "README.md")
    assert "autoregressive" in card.data.tags and "masked-diffusion" not in card.data.tags
    assert "upper bound" not in card.content and "The likelihood is exact" in card.content
    assert not (run / "scheduler_config.json").exists()
    scores = tmp_path / "scores.json"
    main(["evaluate", str(run), "--output_file", str(scores)])
    recorded = json.loads((run / "eval_results.json").read_text())
    metrics = json.loads(scores.read_text())["metrics"]
    assert metrics["eval_loss"] == pytest.approx(recorded["eval_loss"], rel=1e-5)
    assert math.isfinite(metrics["eval_bits_per_character"])
    for option in (["--draws", "4"], ["--seed", "1"], ["--rounds", "2"], ["--estimator", "any_order"]):
        message = failure(capsys, ["evaluate", str(run), *option])
        assert f"{option[0]} must be left out for a causal model, got " in message
    main(["sample", str(run), "--prompt", "the ", "--temperature", "0.9", "--device", "cpu"])
    assert "\nthe " in capsys.readouterr().out
    main(["score", str(run), "--num_samples", "3", "--device", "cpu"])
    assert "3 samples of" in capsys.readouterr().out
    message = failure(capsys, ["sample", str(run), "--num_inference_steps", "3", "--device", "cpu"])
    assert "--num_inference_steps must be left out for an autoregressive model, got 3" in message
    train = ["train", "--objective", "ar", "--output_dir", str(tmp_path / "x")]
    message = "--document_mask must be False for an autoregressive model"
    assert message in failure(capsys, [*train, "--data", "pydoc", "--document_mask"])
    assert "--objective must be" in failure(capsys, [*train, "--preset", "digits"])
