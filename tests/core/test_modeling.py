# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The model as a member of transformers: saving, the loss and its noise, attention backends, precisions, resizing."""

import contextlib
import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny import logged, training_arguments
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, Trainer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from md4_hf import (
    MD4Config,
    MD4ForMaskedDiffusion,
    MD4Model,
    corrupt,
    make_schedule,
    nelbo_weight,
    reconstruction_nelbo,
)
from md4_hf.core.modeling_md4_layers import MD4Layer, MD4RotaryEmbedding, eager_attention_forward


SMALL = {"vocab_size": 11, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL["max_position_embeddings"] = 16
VARIANTS = {
    "time": {},
    "time and class": {"num_classes": 3, "modulation": "adaln", "mlp_type": "glu"},
    "class": {"num_classes": 3, "time_conditioning": False},
    "unconditional": {"time_conditioning": False, "mlp_type": "geglu"},
    "outside embedding": {"embedding_size": 16, "masking_schedule": "cosine"},
    "tied": {"tie_word_embeddings": True},
    "mask is not last": {"mask_token_id": 4},
}
every_variant = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
MASK = 10
NO_LABEL = -100


def randomise(model, seed=0, std=0.2):
    """Give all parameters random values: a fresh head and fresh gates are zero, and would hide what lies behind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_model(seed=0, **overrides):
    return randomise(MD4ForMaskedDiffusion(MD4Config(**{**SMALL, **overrides})), seed)


def make_batch(config, batch=4, length=6, seed=1, scored=True):
    """Clean ids, noised ids, times and all other inputs of the model; with some tokens unscored."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(config.vocab_size - 1, (batch, length), generator=generator)
    x0 += x0 >= config.mask_token_id
    t = torch.linspace(0.2, 0.9, batch)
    labels = x0.clone()
    labels[0, -2:] = NO_LABEL
    xt = corrupt(x0, 1.0 - t, config.mask_token_id, generator=generator)
    xt = torch.where(labels == NO_LABEL, x0, xt)
    inputs = {"input_ids": xt, "timesteps": t}
    if config.num_classes is not None:
        inputs["class_labels"] = torch.arange(batch) % config.num_classes
    return {**inputs, "labels": labels} if scored else inputs


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def loss_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), gradients(model)


def assert_close(actual, expected, atol=1e-6, rtol=1e-6):
    """The relative part is 8 units in the last place: logits reach 10, and their rounding depends on the processor."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


@contextlib.contextmanager
def inputs_of(module):
    """Collects the keyword arguments of every call of `module`."""
    calls = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


# Saving and loading ---------------------------------------------------------------------------------------------------

SAVED = {**VARIANTS, "sharded": {}, "bare": {}, "grown": {}}


@pytest.mark.parametrize("name", SAVED)
def test_the_auto_classes_load_the_same_model(name, tmp_path):
    model = make_model(**SAVED[name])
    if name == "grown":
        model.resize_token_embeddings(13)
    saved, auto_classes = (model.model, [AutoModel]) if name == "bare" else (model, [AutoModel, AutoModelForMaskedLM])
    saved.save_pretrained(tmp_path, max_shard_size="20KB" if name == "sharded" else "1GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (name == "sharded")
    config = {**saved.config.to_dict(), "architectures": [type(saved).__name__]}
    # Loading names its source and its dtype; everything else is what was saved.
    notes = dict.fromkeys(("_name_or_path", "dtype", "transformers_version"))
    assert {**AutoConfig.from_pretrained(tmp_path).to_dict(), **notes} == {**config, **notes}
    inputs = make_batch(model.config, scored=False)
    for auto_class in auto_classes:
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is type(saved)
        assert_close(loaded(**inputs)[0], saved(**inputs)[0])


def test_the_bare_model_loads_from_a_folder_with_a_head_and_the_reverse(tmp_path):
    model = make_model()
    inputs = make_batch(model.config, scored=False)
    hidden_states = model.model(**inputs).last_hidden_state
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "bare")
    assert_close(MD4Model.from_pretrained(tmp_path / "whole")(**inputs).last_hidden_state, hidden_states)
    with_new_head = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "bare")
    assert_close(with_new_head.model(**inputs).last_hidden_state, hidden_states)
    assert not with_new_head.lm_head.weight.any()


def test_a_model_on_the_meta_device_has_no_storage_and_loading_fills_the_rotary_buffers(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = MD4ForMaskedDiffusion(model.config)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    loaded = MD4ForMaskedDiffusion.from_pretrained(tmp_path)
    buffers = dict(loaded.named_buffers())
    assert buffers
    for name, buffer in model.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    inputs = make_batch(model.config, scored=False)
    assert_close(loaded(**inputs).logits, model(**inputs).logits)


# The loss -------------------------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_loss_is_the_nelbo_per_scored_token(overrides, training):
    model = make_model(**overrides).train(training)
    batch = make_batch(model.config)
    output = model(**batch)
    scored = (batch["labels"] != NO_LABEL).sum()
    reconstruction = reconstruction_nelbo(model.masking_schedule, scored, model.config.vocab_size - 1)
    assert_close(output.loss, (output.token_nelbo.sum() + reconstruction) / scored)
    masked = batch["input_ids"] == model.config.mask_token_id
    assert masked.any() and not masked.all()
    assert torch.equal(output.token_nelbo != 0, masked)
    logits = model.eval()(**{name: x for name, x in batch.items() if name != "labels"}).logits
    nll = -logits.log_softmax(-1).gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    weight = nelbo_weight(model.masking_schedule, batch["timesteps"])
    assert_close(output.token_nelbo, weight[:, None] * nll * masked, atol=1e-5)


def test_with_times_given_the_forward_draws_no_randomness():
    model = make_model().train()
    state = torch.get_rng_state()
    first, second = (model(**make_batch(model.config)).loss for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_in_batch_is_what_the_loss_is_divided_by(as_tensor):
    model = make_model()
    batch = make_batch(model.config)
    scored = (batch["labels"] != NO_LABEL).sum()
    loss = model(**batch, num_items_in_batch=torch.tensor(50) if as_tensor else 50).loss
    assert_close(loss * 50, model(**batch).loss * scored, atol=1e-4)


@every_variant
def test_micro_batches_sum_to_the_loss_and_gradients_of_the_whole(overrides):
    model = make_model(**overrides).train()
    batch = make_batch(model.config)
    scored = (batch["labels"] != NO_LABEL).sum()
    full_loss, full_gradients = loss_gradients(model, **batch)
    model.zero_grad()
    loss = 0.0
    for rows in ([0], [1, 2], [3]):
        micro = {name: x[rows] for name, x in batch.items()}
        micro_loss = model(**micro, num_items_in_batch=scored).loss
        micro_loss.backward()
        loss += micro_loss.detach()
    assert_close(loss, full_loss, atol=1e-5)
    for name, gradient in gradients(model).items():
        assert_close(gradient, full_gradients[name], atol=1e-5)


@every_variant
def test_training_without_logits_has_the_loss_and_gradients_of_evaluation(overrides):
    model = make_model(**overrides)
    batch = make_batch(model.config)
    assert model.train()(**batch).logits is None
    loss, expected = loss_gradients(model.eval(), **batch)
    for inputs in (batch, {**batch, "output_logits": True}):
        train_loss, actual = loss_gradients(model.train(), **inputs)
        assert_close(train_loss, loss, atol=1e-5)
        for name, gradient in actual.items():
            assert_close(gradient, expected[name], atol=1e-5)


def test_training_returns_logits_when_asked_and_evaluation_omits_them_when_asked():
    model = make_model()
    batch = make_batch(model.config)
    logits = model(**batch).logits
    assert logits.shape == (*batch["input_ids"].shape, model.config.vocab_size)
    assert_close(model.train()(**batch, output_logits=True).logits, logits)
    assert model.eval()(**batch, output_logits=False).logits is None


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_unscored_positions_do_not_count_even_when_they_hold_the_mask(training):
    model = make_model().train(training)
    batch = make_batch(model.config)
    batch["input_ids"][0, -2:] = model.config.mask_token_id
    assert not model(**batch).token_nelbo[0, -2:].any()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("scored", [False, True], ids=["nothing scored", "nothing masked"])
def test_a_batch_without_a_scored_mask_has_a_finite_loss_and_zero_gradients(scored, training):
    model = make_model().train(training)
    x0 = torch.arange(6).view(2, 3)
    labels = x0 if scored else torch.full_like(x0, NO_LABEL)
    loss, grads = loss_gradients(model, input_ids=x0, labels=labels, timesteps=torch.tensor([0.1, 0.2]))
    reconstruction = reconstruction_nelbo(model.masking_schedule, 1, MASK) if scored else torch.tensor(0.0)
    assert_close(loss, reconstruction)
    assert all(not gradient.any() for gradient in grads.values())


def test_loss_is_finite_at_both_ends_of_time_without_an_epsilon():
    model = make_model(schedule_eps=0.0).train()
    x0 = torch.arange(6).view(2, 3)
    xt = torch.stack([x0[0], torch.full((3,), MASK)])
    loss, grads = loss_gradients(model, input_ids=xt, labels=x0, timesteps=torch.tensor([0.0, 1.0]))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in grads.values())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_discrete_time_weighs_by_the_step_of_its_grid(training):
    steps = 5
    # With the linear schedule both weights are the same.
    model = make_model(num_train_timesteps=steps, masking_schedule="cosine").train(training)
    batch = make_batch(model.config)
    t = batch["timesteps"] = torch.tensor([0.2, 0.4, 0.8, 1.0])
    output = model(**batch, output_logits=True)
    schedule = make_schedule("cosine")
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(t - 1 / steps)
    weight = steps * (alpha_s - alpha_t) / (1 - alpha_t)
    assert ((weight - nelbo_weight(schedule, t)).abs() > 1e-2).all()
    nll = -output.logits.log_softmax(-1).gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    assert_close(output.token_nelbo, weight[:, None] * nll * (batch["input_ids"] == MASK), atol=1e-4)
    assert_close(model(**batch).loss, output.loss, atol=1e-5)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("overrides", [{}, {"mask_token_id": 0}, {"masking_schedule": "cosine"}], ids=str)
def test_a_fresh_model_guesses_uniformly_and_its_nelbo_is_log_v(overrides, training):
    """Every masked token costs weight * ln V; over stratified times this is ln V, +-4 % (4 standard errors: the
    variance per example is below ln(1/eps)/length = 0.036, over 512 examples).
    """
    config = MD4Config(**{**SMALL, "hidden_size": 8, "num_attention_heads": 1, **overrides})
    model = MD4ForMaskedDiffusion(config).train(training)
    x0 = torch.randint(1, 10, (512, 256))
    with torch.no_grad(), inputs_of(model.model) as calls:
        output = model(x0, labels=x0)
    if not training:
        data = [token for token in range(config.vocab_size) if token != config.mask_token_id]
        assert not output.logits[..., data].any()
    masked = calls[0]["input_ids"] == config.mask_token_id
    weight = nelbo_weight(model.masking_schedule, calls[0]["timesteps"])
    assert_close(output.token_nelbo, weight[:, None] * math.log(10) * masked, atol=0.0, rtol=1e-5)
    assert output.loss.item() == pytest.approx(math.log(10), rel=0.04)


# The convenience: labels without times --------------------------------------------------------------------------------


def drawn_noise(model, x0, labels):
    with inputs_of(model.model) as calls:
        output = model(x0, labels=labels)
    return calls[0]["input_ids"], calls[0]["timesteps"], output


def test_without_times_the_noise_is_stratified_and_leaves_unscored_tokens_alone():
    model = make_model()
    x0 = torch.randint(10, (8, 64))
    labels = x0.clone()
    labels[:, ::3] = NO_LABEL
    xt, t, output = drawn_noise(model, x0, labels)
    assert sorted((t * 8).long().tolist()) == list(range(8))
    unscored = labels == NO_LABEL
    assert torch.equal(xt[unscored], x0[unscored])
    masked = xt == MASK
    assert torch.equal(xt[~masked], x0[~masked])
    # Of 42 scored tokens a share t is masked, within 5 standard deviations.
    share = masked.sum(-1) / (~unscored).sum(-1)
    assert ((share - t).abs() < 5 * (t * (1 - t) / 42).sqrt() + 1e-3).all()
    assert_close(output.loss, model(xt, timesteps=t, labels=labels).loss)


def test_without_times_the_noise_comes_from_the_global_generator():
    model = make_model()
    x0 = torch.randint(10, (4, 32))
    torch.manual_seed(3)
    first, second = (drawn_noise(model, x0, x0) for _ in range(2))
    torch.manual_seed(3)
    again = drawn_noise(model, x0, x0)
    for i in range(2):
        assert torch.equal(first[i], again[i])
        assert not torch.equal(first[i], second[i])
    assert torch.equal(first[2].loss, again[2].loss)


def test_without_times_discrete_time_draws_from_its_grid():
    model = make_model(num_train_timesteps=4)
    x0 = torch.randint(10, (16, 8))
    _, t, output = drawn_noise(model, x0, x0)
    assert_close(t.sort().values, torch.arange(1, 5).repeat_interleave(4) / 4)
    assert output.loss.isfinite()


def test_without_times_genmd4_draws_none_before_its_first():
    model = make_model(masking_schedule="poly", learn_masking_schedule=True, schedule_first_time=0.5)
    x0 = torch.randint(10, (16, 8))
    _, t, output = drawn_noise(model, x0, x0)
    assert sorted(((t - 0.5) * 32).long().tolist()) == list(range(16)) and output.loss.isfinite()


def test_a_plain_trainer_normalises_the_loss_over_the_whole_step(tmp_path):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    examples = [{"input_ids": row, "labels": row.clone()} for row in torch.randint(10, (8, 6))]
    examples[0]["labels"][-3:] = NO_LABEL
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = Trainer(model=model, args=training_arguments(tmp_path, **options), train_dataset=examples)
    assert trainer.model_accepts_loss_kwargs is True
    with inputs_of(model) as calls:
        trainer.train()
    assert trainer.state.global_step == 2
    assert len(calls) == 4
    for step in (calls[:2], calls[2:]):
        scored = sum((call["labels"] != NO_LABEL).sum().item() for call in step)
        assert [int(call["num_items_in_batch"]) for call in step] == [scored, scored]
    losses = logged(trainer, "loss")
    assert len(losses) == 2 and all(0 < loss < math.inf for loss in losses)
    assert any(not torch.equal(x, before[name]) for name, x in model.state_dict().items())


# Logits ---------------------------------------------------------------------------------------------------------------


@every_variant
def test_the_mask_is_never_predicted(overrides):
    model = make_model(**overrides)
    logits = model(**make_batch(model.config, scored=False)).logits
    mask = model.config.mask_token_id
    assert (logits[..., mask] == torch.finfo(logits.dtype).min).all()
    is_data = torch.arange(logits.shape[-1]) != mask
    assert (logits[..., is_data] > torch.finfo(logits.dtype).min).all()
    assert (logits.argmax(-1) != mask).all()
    assert not (logits.softmax(-1)[..., mask]).any()


@every_variant
def test_position_mask_gives_the_selected_rows_of_the_logits(overrides):
    model = make_model(**overrides)
    inputs = make_batch(model.config, scored=False)
    selected = torch.rand(inputs["input_ids"].shape) < 0.4
    assert selected.any()
    assert_close(model(**inputs, position_mask=selected).logits, model(**inputs).logits[selected], atol=1e-5)
    nothing = model(**inputs, position_mask=torch.zeros_like(selected)).logits
    assert nothing.shape == (0, model.config.vocab_size)


def test_embeddings_given_in_place_of_ids_give_the_same_logits():
    for overrides in ({}, {"embedding_size": 16}):
        model = make_model(**overrides)
        inputs = make_batch(model.config, scored=False)
        logits = model(**inputs).logits
        embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
        assert_close(model(inputs_embeds=embeddings, **inputs).logits, logits)


def test_outputs_come_as_asked():
    model = make_model()
    batch = make_batch(model.config)
    output = model(**batch)
    assert output.attentions is None
    loss, logits, nelbo, *_ = model(**batch, return_dict=False)
    assert_close((loss, logits, nelbo), (output.loss, output.logits, output.token_nelbo))
    (hidden_states,) = model.model(**make_batch(model.config, scored=False), return_dict=False)
    assert hidden_states.shape == (4, 6, 32)


def test_logits_see_both_directions():
    model = make_model()
    inputs = make_batch(model.config, scored=False)
    for end, other_end in ((0, -1), (-1, 0)):
        changed = inputs["input_ids"].clone()
        changed[:, end] = (changed[:, end] + 1) % 10
        difference = (model(**inputs).logits - model(**{**inputs, "input_ids": changed}).logits).abs().amax(-1)
        assert (difference[:, other_end] > 1e-3).all()


def test_only_relative_positions_count():
    model = make_model()
    inputs = make_batch(model.config, scored=False)
    positions = torch.arange(6).expand(4, 6)
    logits = model(**inputs).logits
    assert_close(model(**inputs, position_ids=positions).logits, logits)
    assert_close(model(**inputs, position_ids=positions + 100).logits, logits, atol=1e-4)
    assert (model(**inputs, position_ids=2 * positions).logits - logits).abs().max() > 1e-2


def test_examples_of_a_batch_do_not_see_each_other():
    model = make_model(num_classes=3)
    inputs = make_batch(model.config, scored=False)
    logits = model(**inputs).logits
    for row in range(4):
        alone = {name: x[row : row + 1] for name, x in inputs.items()}
        assert_close(model(**alone).logits, logits[row : row + 1], atol=1e-5)


def test_time_and_class_matter():
    model = make_model(num_classes=3)
    inputs = make_batch(model.config, scored=False)
    logits = model(**inputs).logits
    for name, value in (("timesteps", inputs["timesteps"] / 2), ("class_labels", 2 - inputs["class_labels"])):
        assert (model(**{**inputs, name: value}).logits - logits).abs().max() > 1e-2


# Attention backends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [VARIANTS["time"], VARIANTS["unconditional"]], ids=["time", "unconditional"])
@pytest.mark.parametrize(
    "backend", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]
)  # flex attention is compiled, which takes half a minute on a CPU
def test_backends_agree_and_padding_is_not_seen(backend, overrides):
    model = make_model(**overrides, attn_implementation="sdpa")
    inputs = make_batch(model.config, scored=False)
    logits = model(**inputs).logits.detach()
    model.set_attn_implementation(backend)
    with torch.no_grad():
        assert_close(model(**inputs).logits, logits, atol=1e-5)
        for padding in ((0, 3), (2, 0)):
            padded = {**inputs, "input_ids": F.pad(inputs["input_ids"], padding, value=7)}
            real = F.pad(torch.ones(4, 6, dtype=torch.long), padding)
            seen = model(**padded, attention_mask=real).logits[real.bool()].view_as(logits)
            assert_close(seen, logits, atol=1e-5)
            assert (model(**padded).logits[real.bool()].view_as(logits) - logits).abs().max() > 1e-2


@pytest.mark.parametrize("hidden_size", [16, 32, 64])
def test_heads_are_wide_enough_for_flex_attention_on_a_cpu(hidden_size, monkeypatch):
    """In heads of 8 or 16, torch's kernel for CPUs reads keys past the last at lengths like 8 and 24: NaN or worse."""
    model = make_model(hidden_size=hidden_size, attn_implementation="sdpa")
    inputs = make_batch(model.config, scored=False)
    logits = model(**inputs).logits
    widths = []

    def attend(module, query, key, value, *args, **kwargs):
        widths.extend((query.shape[-1], key.shape[-1]))
        return eager_attention_forward(module, query, key, value, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flex_attention", attend)
    model.set_attn_implementation("flex_attention")
    seen = model(**inputs, attention_mask=torch.zeros(4, 1, 6, 6)).logits  # given as it is to the backend
    assert_close(seen, logits, atol=1e-5)
    assert set(widths) == {max(24, model.config.head_dim)}


def test_gradients_of_eager_and_sdpa_agree():
    model = make_model()
    batch = make_batch(model.config)
    batch["attention_mask"] = (batch["labels"] != NO_LABEL).long()
    results = []
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        results.append(loss_gradients(model, **batch))
    assert_close(results[0][0], results[1][0], atol=1e-5)
    for name, gradient in results[0][1].items():
        assert_close(gradient, results[1][1][name], atol=1e-5)


def test_short_sequences_in_bf16_on_a_cpu_attend_by_plain_products(monkeypatch):
    model = make_model(attn_implementation="sdpa").bfloat16()
    batch = make_batch(model.config)
    results = []
    for longest in (0, 1024):  # torch's kernel, and ours
        monkeypatch.setattr("md4_hf.core.modeling_md4_layers.PLAIN_CPU_LENGTH", longest)
        results.append(loss_gradients(model, **batch))
    assert_close(results[0][0], results[1][0], atol=1e-2, rtol=1e-2)
    differences = [(gradient - results[1][1][name]).norm() for name, gradient in results[0][1].items()]
    assert max(differences) > 0
    assert sum(differences) < 0.05 * sum(gradient.norm() for gradient in results[0][1].values())


def test_eager_attention_returns_its_probabilities():
    model = make_model()
    model.set_attn_implementation("eager")
    inputs = make_batch(model.config, scored=False)
    real = torch.ones(4, 6, dtype=torch.long)
    real[1, -2:] = 0
    attentions = model(**inputs, attention_mask=real, output_attentions=True).attentions
    assert len(attentions) == model.config.num_hidden_layers
    for probabilities in attentions:
        assert probabilities.shape == (4, 2, 6, 6)
        assert_close(probabilities.sum(-1), torch.ones(4, 2, 6))
        assert not probabilities[1, :, :, -2:].any()


# Training: checkpointing and dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("overrides", [VARIANTS["time"], VARIANTS["unconditional"]], ids=["time", "unconditional"])
def test_gradient_checkpointing_does_not_change_gradients(overrides, use_reentrant, dropout):
    model = make_model(**overrides, residual_dropout=dropout, attention_dropout=dropout).train()
    batch = make_batch(model.config)
    torch.manual_seed(0)
    loss, expected = loss_gradients(model, **batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer transformers prefer another name
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert all(layer.gradient_checkpointing for layer in model.modules() if isinstance(layer, MD4Layer))
    torch.manual_seed(0)
    checkpointed_loss, actual = loss_gradients(model, **batch)
    assert_close(checkpointed_loss, loss)
    assert any(gradient.any() for gradient in expected.values())
    for name, gradient in actual.items():
        assert_close(gradient, expected[name])


def test_residual_dropout_drops_whole_channels_of_an_example():
    config = MD4Config(**SMALL, residual_dropout=0.5, time_conditioning=False)
    dropout = MD4Layer(config, 0).residual_dropout
    # Two examples, many channels; the layer drops along (batch, channels, length).
    ones = torch.ones(2, 1000, 5)
    dropped = dropout.train()(ones)
    assert torch.equal(dropped, dropped[..., :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(dropped[0], dropped[1])
    # Half of 2000 channels, within 5 standard deviations.
    assert abs((dropped[..., 0] == 0).sum().item() - 1000) < 5 * math.sqrt(2000 / 4)
    assert torch.equal(dropout.eval()(ones), ones)


def test_a_layer_leaves_dropped_channels_as_they_were_at_all_positions():
    config = MD4Config(**SMALL, residual_dropout=0.5, time_conditioning=False)
    config._attn_implementation = "eager"
    layer = randomise(MD4Layer(config, 0)).train()
    hidden_states = torch.randn(3, 6, 32)
    rotation = MD4RotaryEmbedding(config)(hidden_states, torch.arange(6)[None])
    change = layer(hidden_states, None, rotation=rotation) - hidden_states
    unchanged = change == 0
    assert torch.equal(unchanged, unchanged[:, :1].expand_as(unchanged))
    assert not torch.equal(unchanged[0], unchanged[1]) and not torch.equal(unchanged[1], unchanged[2])
    # A channel stays as it was where both branches drop it: a quarter of 96, within 5 standard deviations.
    assert abs(unchanged[:, 0].sum().item() - 24) < 5 * math.sqrt(96 * 3 / 16)


def test_dropout_acts_in_training_only():
    rates = {"embedding_dropout": 0.3, "attention_dropout": 0.3, "residual_dropout": 0.3}
    for name in rates:
        model = make_model(**{name: rates[name]})
        inputs = make_batch(model.config, scored=False)
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)
        assert not torch.equal(model.train()(**inputs).logits, model(**inputs).logits)


def test_embedding_dropout_is_not_applied_with_an_outside_embedding():
    model = make_model(embedding_dropout=0.5, embedding_size=16)
    inputs = make_batch(model.config, scored=False)
    assert torch.equal(model.train()(**inputs).logits, model.eval()(**inputs).logits)


# Compilation and export -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_compiled_model_gives_the_same_in_one_graph(backend):
    torch.compiler.reset()
    model = make_model()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    inputs, batch = make_batch(model.config, scored=False), make_batch(model.config)
    with torch.no_grad():
        assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-4)
    for training in (False, True):
        model.train(training)
        expected_loss, expected = loss_gradients(model, **batch)
        loss, actual = loss_gradients(compiled, **batch)
        assert_close(loss, expected_loss, atol=1e-4)
        for name, gradient in actual.items():
            assert_close(gradient, expected[name.removeprefix("_orig_mod.")], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("hidden_size", "size"), [(32, {}), (64, {}), (64, {"batch": 1, "length": 1})])
def test_flex_attention_agrees_in_a_compiled_model(hidden_size, size):
    """Compiled, torch's kernel for CPUs takes a view that begins inside its storage for the storage's beginning."""
    torch.compiler.reset()
    model = make_model(hidden_size=hidden_size, attn_implementation="sdpa")
    inputs = make_batch(model.config, scored=False, **size)
    logits = model(**inputs).logits.detach()
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        assert_close(torch.compile(model)(**inputs).logits, logits, atol=1e-4)


def test_the_model_exports_with_any_batch_and_length():
    model = make_model()
    dim = torch.export.Dim
    shapes = {"input_ids": {0: dim("batch", max=64), 1: dim("length", max=16)}, "timesteps": {0: dim("batch", max=64)}}
    inputs = make_batch(model.config, scored=False)
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False).module()
    for size in ({}, {"batch": 3, "length": 9}):
        inputs = make_batch(model.config, scored=False, **size)
        assert_close(exported(**inputs).logits, model(**inputs).logits, atol=1e-5)


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_loss_under_bfloat16_autocast_is_near_that_in_float32(training):
    """Within 2 %: bfloat16 has 8 bits, and the relative error of the loss is of the order of one unit, 0.4 %."""
    model = make_model().train(training)
    batch = make_batch(model.config)
    expected = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, grads = loss_gradients(model, **batch)
    assert loss.dtype == torch.float32
    assert_close(loss, expected.detach(), atol=0.0, rtol=0.02)
    assert all(gradient.isfinite().all() for gradient in grads.values())


def test_a_model_loads_and_runs_in_bfloat16(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    batch = make_batch(model.config)
    expected = model(**batch)
    loaded = MD4ForMaskedDiffusion.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = copy.deepcopy(model).to(torch.bfloat16)
    for half in (loaded, cast):
        assert half.dtype == torch.bfloat16
        output = half(**batch)
        assert output.logits.dtype == torch.bfloat16
        assert (output.logits[..., MASK] == torch.finfo(torch.bfloat16).min).all()
        assert output.token_nelbo.dtype == output.loss.dtype == torch.float32
        assert_close(output.loss, expected.loss, atol=0.0, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_cast_of_the_model_leaves_the_rotary_angles_in_float32(dtype):
    """In bfloat16 a frequency is off by up to 0.2 %: at position 1000 that is a wrong angle, not a rounding error."""
    config = MD4Config(**{**SMALL, "num_attention_heads": 1})
    positions = torch.tensor([[0, 10, 1000]])
    expected = MD4RotaryEmbedding(config)(torch.zeros(1), positions)
    rotary = MD4ForMaskedDiffusion(config).to(dtype).model.rotary_emb
    for actual, angle in zip(rotary(torch.zeros(1, dtype=dtype), positions), expected, strict=True):
        assert_close(actual, angle, atol=1e-6)


# Embeddings -----------------------------------------------------------------------------------------------------------


def test_embeddings_can_be_read_and_replaced():
    model = make_model()
    assert model.get_input_embeddings() is model.model.get_input_embeddings() is model.model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    embeddings, head = nn.Embedding(11, 32), nn.Linear(32, 11, bias=False)
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(head)
    assert model.get_input_embeddings() is embeddings
    assert model.get_output_embeddings().weight is head.weight
    assert model(**make_batch(model.config)).loss.isfinite()


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}, {"embedding_size": 16}], ids=str)
def test_a_grown_vocabulary_keeps_the_mask_and_the_logits_of_the_old_tokens(overrides):
    model = make_model(**overrides)
    batch = make_batch(model.config)
    logits = model(**batch).logits.detach()
    model.resize_token_embeddings(15)
    assert (model.config.vocab_size, model.config.mask_token_id) == (15, MASK)
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().out_features == 15
    output = model(**batch)
    assert output.logits.shape[-1] == 15
    assert_close(output.logits[..., :11], logits, atol=1e-5)
    assert (output.logits[..., 11:] > torch.finfo(torch.float32).min).all()
    assert output.loss.isfinite()
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shared == model.config.tie_word_embeddings


@pytest.mark.parametrize("tie", [False, True])
def test_a_shrunk_vocabulary_keeps_the_logits_of_the_tokens_that_stay(tie):
    model = make_model(tie_word_embeddings=tie, mask_token_id=0)
    inputs = {"input_ids": torch.tensor([[0, 3, 7, 0]]), "timesteps": torch.tensor([0.5])}
    logits = model(**inputs).logits
    model.resize_token_embeddings(8)
    assert (model.config.vocab_size, model.config.mask_token_id) == (8, 0)
    assert_close(model(**inputs).logits, logits[..., :8], atol=1e-5)
    with pytest.raises(ValueError, match=r"`input_ids` must be in \[0, 7\]"):
        model(torch.tensor([[8]]), timesteps=torch.tensor([0.5]))


@pytest.mark.parametrize("part", ["whole", "bare"])
def test_the_last_token_becomes_the_mask_when_the_masks_own_row_is_cut_off(part, tmp_path, caplog):
    """transformers never refuses a size; a mask without a row would make a model that cannot be saved and opened."""
    model = make_model()
    embeddings = model.get_input_embeddings().weight.detach().clone()
    transformers.logging.enable_propagation()
    (model if part == "whole" else model.model).resize_token_embeddings(8)
    assert "the mask token is now 7" in caplog.text
    assert (model.config.vocab_size, model.config.mask_token_id) == (8, 7)
    assert torch.equal(model.get_input_embeddings().weight, embeddings[:8])
    if part == "whole":
        assert model(**make_batch(model.config)).logits.shape[-1] == 8
    (model if part == "whole" else model.model).save_pretrained(tmp_path)
    assert MD4Config.from_pretrained(tmp_path).mask_token_id == 7


# Errors ---------------------------------------------------------------------------------------------------------------

IDS = torch.tensor([[1, MASK, 3], [4, 5, MASK]])
CLEAN = torch.tensor([[1, 2, 3], [4, 5, 6]])
T = torch.tensor([0.3, 0.7])
EMBEDS = torch.zeros(2, 3, 32)
WRONG_INPUTS = {
    "no times": ({"timesteps": None}, "`timesteps` must be given: the model is time-conditioned"),
    "scalar time": ({"timesteps": T[0]}, r"`timesteps` must have shape \(2,\)"),
    "too many times": ({"timesteps": torch.rand(3)}, r"`timesteps` must have shape \(2,\).* \(3,\)"),
    "times of every token": ({"timesteps": torch.rand(2, 3)}, "one per example, got"),
    "negative time": ({"timesteps": T - 0.5}, r"`timesteps` must be in \[0, 1\]"),
    "time above 1": ({"timesteps": T + 0.5}, r"`timesteps` must be in \[0, 1\]"),
    "time is nan": ({"timesteps": T * math.nan}, r"`timesteps` must be in \[0, 1\]"),
    "id too large": ({"input_ids": IDS + 1}, r"`input_ids` must be in \[0, 10\], got .* to 11"),
    "negative id": ({"input_ids": IDS - 2}, r"`input_ids` must be in \[0, 10\], got values from -1"),
    "ids of one sequence": ({"input_ids": IDS[0]}, r"`input_ids` must have shape \(batch, length\)"),
    "ids and embeddings": ({"inputs_embeds": EMBEDS}, "Exactly one of `input_ids`"),
    "neither ids nor embeddings": ({"input_ids": None}, "Exactly one of `input_ids`"),
    "labels of another shape": (
        {"labels": CLEAN[:, :2]},
        r"`labels` must have the batch and length of `input_ids` \(2, 3\), got \(2, 2\)",
    ),
    "labels hold the mask": ({"labels": IDS}, "must be clean ids, got the mask id"),
    "label too large": ({"labels": CLEAN * 11}, r"`labels` must be in \[0, 10\]"),
    "labels without ids": ({"input_ids": None, "inputs_embeds": EMBEDS, "labels": CLEAN}, "`labels` need `input_ids`"),
    "labels with position_mask": ({"labels": CLEAN, "position_mask": IDS == MASK}, "cannot be used with `labels`"),
    "nan positions": ({"position_ids": EMBEDS[..., 0] * math.nan}, "`position_ids` must be .* integers, got floating"),
    "document numbers": ({"document_ids": EMBEDS[..., 0]}, "`document_ids` must be .* integers, got floating-point"),
    "labels and a wrong time": ({"timesteps": T + 0.5, "labels": CLEAN}, "`timesteps` must be in"),
}
WRONG_CLASSES = {
    "none": (None, "`class_labels` must be given: the model is class-conditional"),
    "too large": (torch.tensor([0, 3]), r"`class_labels` must be in \[0, 2\], got values from 0 to 3"),
    "negative": (torch.tensor([0, -1]), r"`class_labels` must be in \[0, 2\]"),
    "too many": (torch.tensor([0, 1, 2]), r"`class_labels` must have shape \(2,\)"),
}


@pytest.mark.parametrize("inputs, message", WRONG_INPUTS.values(), ids=WRONG_INPUTS.keys())
def test_wrong_inputs_are_refused_with_the_argument_and_the_rule(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**{"input_ids": IDS, "timesteps": T, **inputs})


@pytest.mark.parametrize("class_labels, message", WRONG_CLASSES.values(), ids=WRONG_CLASSES.keys())
def test_wrong_class_labels_are_refused(class_labels, message):
    with pytest.raises(ValueError, match=message):
        make_model(num_classes=3)(input_ids=IDS, timesteps=T, class_labels=class_labels)


def test_the_loss_of_a_model_without_time_checks_the_times_too():
    model = make_model(time_conditioning=False)
    assert model(input_ids=IDS).logits.shape == (2, 3, 11)
    for t, message in ((T[:1], "must have shape"), (T + 0.5, "must be in")):
        with pytest.raises(ValueError, match=f"`timesteps` {message}"):
            model(input_ids=IDS, timesteps=t, labels=CLEAN)
