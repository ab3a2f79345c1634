# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The models of images: sizes, outputs, loss and gradients, classes, saving, errors for wrong inputs."""

import copy
import math
import warnings

import pytest
import torch
from accelerate.utils import compute_module_sizes
from test_modeling import inputs_of
from test_modeling import loss_gradients as gradients
from transformers import AutoModel

from md4_hf import MD4Config, MD4ForMaskedDiffusion, MD4Model, make_schedule, nelbo_weight, token_nelbo
from md4_hf.core.modeling_md4_layers import logits_of
from md4_hf.core.modeling_md4_unet import MD4AttentionBlock, MD4DiTLayer, MD4ResnetBlock


LEVELS = 6
MASK = LEVELS
UNET = {"backbone": "unet", "hidden_size": 64, "image_size": [3, 5], "num_channels": 2}
UVIT = {
    "backbone": "uvit",
    "hidden_size": 32,
    "image_size": 8,
    "num_channels": 2,
    "channel_multipliers": [1, 2],
    "dit_hidden_size": 16,
    "dit_num_hidden_layers": 2,
    "dit_num_attention_heads": 2,
}
VARIANTS = {
    "unet": {**UNET, "num_classes": 3},
    "unet, time-agnostic": {**UNET, "time_conditioning": False},
    "uvit": {**UVIT, "num_classes": 3, "class_dropout": 0.2},
    "uvit, time-agnostic": {**UVIT, "time_conditioning": False},
}
every_variant = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
both_networks = pytest.mark.parametrize("overrides", [VARIANTS["unet"], VARIANTS["uvit"]], ids=["unet", "uvit"])


def make_model(**overrides):
    """One block at each resolution, initialised as a new model, and at random where that is zero."""
    torch.manual_seed(0)
    model = MD4ForMaskedDiffusion(MD4Config(vocab_size=LEVELS + 1, num_hidden_layers=1, **overrides))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_batch(config, batch=3, scored=True, seed=1, shape=None):
    """Images of which about half the values are masked, and what else the model needs."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *(shape or config.sample_shape))
    labels = torch.randint(LEVELS, shape, generator=generator)
    is_masked = torch.rand(shape, generator=generator) < 0.5
    inputs = {"input_ids": labels.masked_fill(is_masked, MASK)}
    if config.time_conditioning or scored:
        inputs["timesteps"] = torch.linspace(0.2, 0.9, batch)
    if config.num_classes is not None:
        inputs["class_labels"] = torch.arange(batch) % config.num_classes
    return {**inputs, "labels": labels} if scored else inputs


def assert_close(actual, expected, atol=1e-5, rtol=0.0):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def assert_same_gradients(actual, expected, atol=1e-5):
    """Compare gradients, with a tolerance relative to the largest entry of all."""
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert largest > 0
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], atol=atol * largest, rtol=0.0, msg=name)


# Shapes ---------------------------------------------------------------------------------------------------------------

SIZES = [
    {**UNET, "image_size": [1, 1], "num_channels": 1},
    {**UNET, "image_size": [7, 2], "num_channels": 4},
    {**UNET, "image_size": [4, 8], "channel_multipliers": [1, 2, 1]},
    {**UVIT, "image_size": 2, "channel_multipliers": [2]},
    {**UVIT, "image_size": 16, "channel_multipliers": [1, 1, 2], "num_channels": 1},
    {**UVIT, "conditioning_size": 9, "dit_hidden_size": 12, "dit_num_attention_heads": 3},
]


@pytest.mark.parametrize("overrides", SIZES, ids=str)
def test_networks_of_other_sizes_give_a_logit_for_every_value_of_every_pixel(overrides):
    model = make_model(**overrides)
    batch = make_batch(model.config, scored=False)
    logits = model(**batch).logits
    assert logits.shape == (*batch["input_ids"].shape, LEVELS + 1)
    assert logits[..., :MASK].isfinite().all() and logits[..., :MASK].std() > 0.01
    assert (logits[..., MASK] == torch.finfo(logits.dtype).min).all()


def test_the_unet_takes_images_of_other_sizes_than_its_own():
    model = make_model(**UNET)
    batch = make_batch(model.config, scored=False, shape=(2, 9, 4))
    assert model(**batch).logits.shape == (3, 2, 9, 4, LEVELS + 1)


@every_variant
def test_examples_do_not_see_each_other_and_every_pixel_sees_every_other(overrides):
    model = make_model(**overrides).double()
    batch = make_batch(model.config, scored=False)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 0, 0, 0] = (changed["input_ids"][0, 0, 0, 0] + 1) % LEVELS
    with torch.no_grad():
        difference = (model(**batch).logits - model(**changed).logits)[..., :MASK].abs().amax(dim=-1)
    assert not difference[1:].any()
    assert (difference[0] > 0).all()


@both_networks
def test_time_and_class_matter(overrides):
    model = make_model(**overrides)
    batch = make_batch(model.config, scored=False)
    logits = model(**batch).logits
    for name in ("timesteps", "class_labels"):
        other = model(**{**batch, name: batch[name].roll(1)}).logits
        assert ((logits - other)[..., :MASK].abs().amax(dim=(1, 2, 3, 4)) > 1e-3).all(), name


@every_variant
def test_position_mask_gives_the_selected_rows_of_the_logits(overrides):
    model = make_model(**overrides)
    batch = make_batch(model.config, scored=False)
    logits = model(**batch).logits
    for selected in (batch["input_ids"] == MASK, torch.zeros_like(batch["input_ids"], dtype=torch.bool)):
        assert_close(model(**batch, position_mask=selected).logits, logits[selected])


@both_networks
def test_hidden_states_are_those_of_the_residual_blocks(overrides):
    model = make_model(**overrides)
    batch = make_batch(model.config, scored=False)
    output = model(**batch, output_hidden_states=True)
    blocks = sum(isinstance(module, MD4ResnetBlock) for module in model.modules())
    assert len(output.hidden_states) == blocks + 1
    assert torch.equal(output.hidden_states[-1], model.model(**batch).last_hidden_state)
    assert output.hidden_states[0].shape[1:] == (model.config.hidden_size, *model.config.sample_shape[1:])


def test_the_states_between_the_blocks_have_the_channels_last():
    model = make_model(**VARIANTS["uvit"])
    for state in model(**make_batch(model.config, scored=False), output_hidden_states=True).hidden_states[:-1]:
        assert state.is_contiguous(memory_format=torch.channels_last)


# Loss and gradients ---------------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_loss_is_the_nelbo_per_scored_value_and_given_pixels_do_not_count(overrides, training):
    model = make_model(**overrides)
    batch = make_batch(model.config)
    batch["labels"][:, 0, 0] = -100
    batch["input_ids"][:, 0, 0] = 1
    logits = model(**{name: x for name, x in batch.items() if name != "labels"}).logits
    weight = nelbo_weight(make_schedule("linear"), batch["timesteps"])
    expected = token_nelbo(logits, batch["labels"], batch["input_ids"], weight, MASK)
    output = model.train(training)(**batch)
    assert (output.logits is None) == training
    assert_close(output.token_nelbo, expected)
    assert not output.token_nelbo[:, 0, 0].any()
    num_scored = (batch["labels"] != -100).sum()
    reconstruction = 1e-4 * num_scored / 3 * math.log(LEVELS)
    assert_close(output.reconstruction_nelbo, reconstruction.expand(3), atol=0.0, rtol=1e-3)
    assert_close(output.loss, (expected.sum() + output.reconstruction_nelbo.sum()) / num_scored)


@both_networks
def test_the_gradient_is_that_of_finite_differences(overrides):
    model = make_model(**overrides).double().train()
    batch = make_batch(model.config)
    _, gradient = gradients(model, **batch)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        direction = {name: torch.randn(x.shape, generator=generator).double() for name, x in gradient.items()}
        losses = []
        for step in (1e-6, -1e-6):
            moved = {name: x.detach() + step * direction[name] for name, x in model.named_parameters()}
            with torch.no_grad():
                losses.append(torch.func.functional_call(model, moved, kwargs=batch).loss)
        expected = sum((gradient[name] * direction[name]).sum() for name in gradient)
        assert_close((losses[0] - losses[1]) / 2e-6, expected, atol=1e-6, rtol=1e-5)


@every_variant
def test_training_without_logits_has_the_loss_and_gradients_of_evaluation(overrides):
    model = make_model(**overrides)
    batch = make_batch(model.config)
    loss, expected = gradients(model, **batch)
    model.train()
    for options in ({}, {"max_masked": batch["input_ids"].numel()}, {"output_logits": True}):
        actual_loss, actual = gradients(model, **batch, **options)
        assert_close(actual_loss, loss)
        assert_same_gradients(actual, expected)


@both_networks
def test_micro_batches_sum_to_the_loss_and_gradients_of_the_whole(overrides):
    model = make_model(**overrides).train()
    batch = make_batch(model.config, batch=4)
    loss, expected = gradients(model, **batch)
    model.zero_grad()
    parts = [{name: x[part] for name, x in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    losses = [model(**part, num_items_in_batch=batch["labels"].numel()).loss for part in parts]
    sum(losses).backward()
    assert_close(sum(losses), loss)
    assert_same_gradients({name: x.grad for name, x in model.named_parameters()}, expected)


@both_networks
@pytest.mark.parametrize("genmd4", [False, True], ids=["md4", "genmd4"])
def test_copies_are_the_mean_of_their_losses(overrides, genmd4):
    if genmd4:
        overrides = {**overrides, "learn_masking_schedule": True, "masking_schedule": "poly"}
    model = make_model(**overrides)
    first, second = (make_batch(model.config, seed=seed) for seed in (1, 2))
    ids = torch.where(second["input_ids"] == MASK, MASK, first["labels"])
    copies = torch.stack([first["input_ids"], ids], dim=1)
    output = model(**{**first, "input_ids": copies})
    assert output.logits.shape == (*copies.shape, LEVELS + 1)
    outputs = [model(**{**first, "input_ids": copies[:, k]}) for k in range(2)]
    for k in range(2):
        assert_close(output.token_nelbo[:, k], outputs[k].token_nelbo, rtol=1e-5)
    assert_close(output.loss, (outputs[0].loss + outputs[1].loss) / 2, rtol=1e-5)
    if genmd4:
        training = model.train()(**{**first, "input_ids": copies})
        training.loss.backward()
        assert_close(training.nelbo, output.nelbo.detach(), rtol=1e-5)
        assert model.token_schedule.free_exponents.grad[:LEVELS].any()


@both_networks
def test_a_fresh_model_guesses_uniformly_and_its_nelbo_is_log_v(overrides):
    """+-4 %: four standard errors, as for text; the noise is drawn in the forward."""
    model = MD4ForMaskedDiffusion(MD4Config(vocab_size=LEVELS + 1, num_hidden_layers=1, **overrides)).eval()
    images = torch.randint(LEVELS, (1024, *model.config.sample_shape))
    with torch.no_grad():
        output = model(images, labels=images, class_labels=torch.zeros(1024, dtype=torch.long))
    assert not output.logits[..., :MASK].any()
    assert output.loss.item() == pytest.approx(math.log(LEVELS), rel=0.04)


def test_genmd4_draws_two_copies_in_training():
    model = make_model(**UNET, learn_masking_schedule=True, masking_schedule="poly").train()
    images = torch.randint(LEVELS, (3, *model.config.sample_shape))
    assert model(images, labels=images).token_nelbo.shape == (3, 2, *model.config.sample_shape)


@every_variant
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_does_not_change_gradients(overrides, use_reentrant):
    model = make_model(**overrides, residual_dropout=0.2).train()
    batch = make_batch(model.config)
    torch.manual_seed(0)
    loss, expected = gradients(model, **batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer transformers prefer another name
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    blocks = [x for x in model.modules() if isinstance(x, (MD4ResnetBlock, MD4AttentionBlock, MD4DiTLayer))]
    assert all(block.gradient_checkpointing for block in blocks)
    torch.manual_seed(0)
    checkpointed_loss, actual = gradients(model, **batch)
    assert_close(checkpointed_loss, loss)
    assert_same_gradients(actual, expected)


def test_dropout_acts_in_training_only():
    model = make_model(**UNET, residual_dropout=0.5)
    batch = make_batch(model.config)
    for training in (False, True):
        model.train(training)
        assert torch.equal(model(**batch).loss, model(**batch).loss) == (not training)


# Classes --------------------------------------------------------------------------------------------------------------


@both_networks
def test_no_label_is_the_null_class(overrides):
    model = make_model(**{**overrides, "class_dropout": 0.2})
    batch = make_batch(model.config)
    batch.pop("class_labels")
    expected = model(**batch, class_labels=torch.full((3,), 3))
    assert model.config.null_class == 3
    assert torch.equal(model(**batch).logits, expected.logits)
    assert torch.equal(model(**batch).loss, expected.loss)


def test_labels_are_dropped_in_the_training_of_a_forward_that_draws_its_noise_and_nowhere_else():
    """1000 draws: within 5 standard errors of the probability."""
    model = make_model(**UNET, num_classes=3, class_dropout=0.3)
    images = torch.randint(LEVELS, (1000, 2, 1, 1))
    labels = torch.arange(1000) % 3
    with torch.no_grad(), inputs_of(model.model) as calls:
        model(images, labels=images, class_labels=labels)
        model.train()(images, labels=images, class_labels=labels, timesteps=torch.rand(1000))
        model(images, labels=images, class_labels=labels)
    seen = [call["class_labels"] for call in calls]
    assert torch.equal(seen[0], labels) and torch.equal(seen[1], labels)
    dropped = seen[2] == 3
    assert torch.equal(seen[2][~dropped], labels[~dropped])
    assert abs(dropped.float().mean().item() - 0.3) <= 5 * (0.3 * 0.7 / 1000) ** 0.5


def test_text_has_a_null_class_too():
    sizes = {"vocab_size": LEVELS + 1, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = MD4ForMaskedDiffusion(MD4Config(**sizes, num_classes=2, class_dropout=0.1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    ids, t = torch.randint(LEVELS, (2, 4)), torch.tensor([0.2, 0.7])
    assert model.model.conditioning.class_embedding.num_embeddings == 3
    expected = model(ids, timesteps=t, class_labels=torch.tensor([2, 2])).logits
    assert torch.equal(model(ids, timesteps=t).logits, expected)
    assert not torch.equal(model(ids, timesteps=t, class_labels=torch.tensor([0, 1])).logits, expected)


# Saving and loading ---------------------------------------------------------------------------------------------------


@every_variant
def test_saved_models_come_back_from_shards_and_from_disk_with_the_same_logits(overrides, tmp_path):
    model = make_model(**overrides)
    batch = make_batch(model.config, scored=False)
    model.save_pretrained(tmp_path / "model", max_shard_size="200KB")
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    config = {**model.config.to_diff_dict(), "architectures": ["MD4ForMaskedDiffusion"]}
    assert type(loaded) is MD4ForMaskedDiffusion and loaded.config.to_diff_dict() == config
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    size = compute_module_sizes(model)[""]
    limits = {"max_memory": {"cpu": size * 7 // 10}, "offload_folder": tmp_path / "offload"}
    offloaded = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "model", device_map="auto", **limits)
    assert set(offloaded.hf_device_map.values()) == {"cpu", "disk"}
    assert_close(offloaded(**batch).logits, model(**batch).logits)
    model.model.save_pretrained(tmp_path / "bare")
    bare = AutoModel.from_pretrained(tmp_path / "bare")
    assert type(bare) is MD4Model
    assert torch.equal(bare(**batch).last_hidden_state, model.model(**batch).last_hidden_state)


@every_variant
def test_weights_that_a_checkpoint_lacks_are_initialised_as_in_a_new_model(overrides):
    config = MD4Config(vocab_size=LEVELS + 1, num_hidden_layers=1, **overrides)
    new = MD4ForMaskedDiffusion(config)
    loaded = MD4ForMaskedDiffusion.from_pretrained(None, config=config, state_dict={})
    for (name, expected), actual in zip(new.named_parameters(), loaded.parameters(), strict=True):
        # Zero, one or a table; else 6 standard errors of both moments.
        if expected.dim() == 1 or "position_embedding" in name or not expected.any():
            assert torch.equal(actual, expected), name
        else:
            error = 6.0 * expected.std() / expected.numel() ** 0.5
            assert abs(expected.mean() - actual.mean()) <= 1.5 * error, name
            assert abs(expected.std() - actual.std()) <= error, name


@both_networks
def test_half_precision_and_autocast_are_near_float32(overrides, tmp_path):
    """Within 5 % of the logits' spread, and 2 % of the loss: bfloat16 has 8 bits."""
    model = make_model(**overrides)
    batch = make_batch(model.config)
    expected = model(**batch)
    model.save_pretrained(tmp_path)
    half = MD4ForMaskedDiffusion.from_pretrained(tmp_path, dtype=torch.bfloat16)
    spread = expected.logits[..., :MASK].std()
    assert (half(**batch).logits.float() - expected.logits)[..., :MASK].std() < 0.05 * spread
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, grads = gradients(model.train(), **batch)
    assert loss.dtype == torch.float32
    assert_close(loss, expected.loss.detach(), atol=0.0, rtol=0.02)
    assert all(gradient.isfinite().all() for gradient in grads.values())


@every_variant
def test_hidden_states_are_those_of_the_blocks_and_attentions_are_refused(overrides):
    model = make_model(**overrides)
    inputs = make_batch(model.config, scored=False)
    asked = model(**inputs, output_hidden_states=True)
    blocks = [module for module in model.modules() if isinstance(module, MD4ResnetBlock)]
    assert len(asked.hidden_states) == len(blocks) + 1
    last = logits_of(model.lm_head, asked.hidden_states[-1], model.config)
    assert_close(last, asked.logits, atol=0.0)
    as_tuple = model(**inputs, output_hidden_states=True, return_dict=False)
    assert_close(as_tuple, asked.to_tuple(), atol=0.0)
    for options, message in (
        ({"output_attentions": True}, "`output_attentions` must be False for a model of images"),
        ({"output_hidden_states": -1}, "`output_hidden_states` must be True or False for a model of images, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs, **options)


def test_the_compiled_and_the_exported_model_give_the_same():
    torch.compiler.reset()
    model = make_model(**{**VARIANTS["uvit"], "channel_multipliers": [1], "dit_num_hidden_layers": 1})
    inputs, batch = make_batch(model.config, scored=False), make_batch(model.config)
    exported = torch.export.export(model, (), inputs).module()
    other = make_batch(model.config, scored=False, seed=2)
    assert_close(exported(**other).logits, model(**other).logits)
    compiled = torch.compile(model.train(), fullgraph=True, backend="eager")
    loss, expected = gradients(model, **batch)
    compiled_loss, actual = gradients(compiled, **batch, max_masked=300)
    assert_close(compiled_loss, loss)
    assert_same_gradients({name.removeprefix("_orig_mod."): x for name, x in actual.items()}, expected)


# Errors ---------------------------------------------------------------------------------------------------------------

IDS = torch.zeros(2, 2, 3, 5, dtype=torch.long)
TEXT = IDS[:, 0, 0]
T = torch.tensor([0.3, 0.7])
WRONG_INPUTS = {
    "text": ({"input_ids": IDS[:, 0, 0]}, r"`input_ids` must have shape \(None, 2, None, None\), got \(2, 5\)"),
    "labelled text": ({"input_ids": TEXT, "labels": TEXT}, r"must have 4 axes, or 5 with copies, got shape \(2, 5\)"),
    "one image": ({"input_ids": IDS[0]}, r"`input_ids` must have shape \(None, 2, None, None\), got \(2, 3, 5\)"),
    "channels last": ({"input_ids": IDS.permute(0, 2, 3, 1)}, r"must have shape .* got \(2, 3, 5, 2\)"),
    "id too large": ({"input_ids": IDS + 7}, r"`input_ids` must be in \[0, 6\], got values from 7 to 7"),
    "floats": ({"input_ids": IDS.float()}, "`input_ids` must .*integers"),
    "attention mask": ({"attention_mask": IDS[:, 0, 0]}, "`attention_mask` must be None for images, got Tensor"),
    "positions": ({"position_ids": IDS[:, 0, 0]}, "`position_ids` must be None for images"),
    "documents": ({"document_ids": IDS[:, 0, 0]}, "`document_ids` must be None for images"),
    "embeddings": ({"input_ids": None, "inputs_embeds": torch.zeros(2, 3, 64)}, "`inputs_embeds` must be None for im"),
    "labels of another shape": ({"labels": IDS[:, :1]}, r"`labels` must have .*\(2, 2, 3, 5\), got \(2, 1, 3, 5\)"),
    "labels hold the mask": ({"labels": IDS + MASK}, "`labels` must be clean ids, got the mask id 6"),
    "mask of another shape": ({"position_mask": IDS[:, 0] > 0}, r"`position_mask` must have shape \(2, 2, 3, 5\)"),
    "masked": ({"input_ids": IDS + MASK, "labels": IDS, "timesteps": None}, "must be clean where `labels` are scored"),
    "noise of another shape": (
        {"labels": IDS, "mask_noise": torch.rand(2, 2, 15)},
        r"`mask_noise` must have shape \(2, 2, 3, 5\) or \(2, None, 2, 3, 5\)",
    ),
}


@pytest.mark.parametrize("inputs, message", WRONG_INPUTS.values(), ids=WRONG_INPUTS.keys())
def test_wrong_inputs_are_refused_with_the_argument_and_the_rule(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**UNET)(**{"input_ids": IDS, "timesteps": T, **inputs})


@pytest.mark.parametrize(
    "overrides, shape, message",
    [
        (UVIT, (2, 4, 4), r"`input_ids` must have shape \(None, 2, 8, 8\), got \(1, 2, 4, 4\)"),
        (
            {**UNET, "image_size": 4, "channel_multipliers": [1, 1]},
            (2, 4, 5),
            r"`input_ids` must have a height and width that are multiples of 2, got \(1, 2, 4, 5\)",
        ),
    ],
    ids=["uvit", "unet"],
)
def test_sizes_that_a_network_cannot_take_are_refused(overrides, shape, message):
    with pytest.raises(ValueError, match=message):
        make_model(**overrides)(torch.zeros(1, *shape, dtype=torch.long), timesteps=T[:1])


@pytest.mark.parametrize(
    "class_labels, class_dropout, message",
    [
        (None, 0.0, "`class_labels` must be given: the model is class-conditional"),
        (torch.tensor([0, 3]), 0.0, r"`class_labels` must be in \[0, 2\], got values from 0 to 3"),
        (torch.tensor([0, 4]), 0.1, r"`class_labels` must be in \[0, 3\], got values from 0 to 4"),
        (torch.tensor([0, -1]), 0.1, r"`class_labels` must be in \[0, 3\]"),
    ],
)
def test_wrong_class_labels_are_refused(class_labels, class_dropout, message):
    model = make_model(**UNET, num_classes=3, class_dropout=class_dropout)
    with pytest.raises(ValueError, match=message):
        model(IDS, timesteps=T, class_labels=class_labels)


def test_the_levels_of_a_model_cannot_be_resized():
    model = make_model(**UNET)
    state = copy.deepcopy(model.state_dict())
    for part in (model, model.model):
        with pytest.raises(ValueError, match="`new_num_tokens` must be left out for a model of images, got 9"):
            part.resize_token_embeddings(9)
    assert model.config.vocab_size == 7
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
