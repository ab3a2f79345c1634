# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""MD4Config: values it fills in, values it refuses, and its way to disk and back."""

import json
from typing import get_args

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from md4_hf import MD4Config
from md4_hf.core.configuration_md4 import BACKBONES, default_intermediate_size
from md4_hf.core.modeling_md4 import BODIES


UNUSUAL = {
    "vocab_size": 30,
    "mask_token_id": 7,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "embedding_size": 20,
    "mlp_type": "geglu",
    "time_conditioning": False,
    "conditioning_size": 9,
    "modulation": "adaln",
    "num_classes": 5,
    "class_dropout": 0.1,
    "depth_scaled_init": True,
    "norm_eps": 1e-6,
    "embedding_dropout": 0.1,
    "attention_dropout": 0.2,
    "residual_dropout": 0.3,
    "max_position_embeddings": 33,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "masking_schedule": "poly",
    "schedule_power": 2.5,
    "schedule_eps": 0.0,
    "num_train_timesteps": 40,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


IMAGE = {
    "vocab_size": 17,
    "backbone": "uvit",
    "hidden_size": 96,
    "image_size": [16, 16],
    "num_channels": 2,
    "channel_multipliers": [1, 2],
    "dit_hidden_size": 60,
    "dit_num_hidden_layers": 3,
    "dit_num_attention_heads": 5,
}


@pytest.mark.parametrize("settings", [{}, UNUSUAL, IMAGE], ids=["defaults", "unusual", "image"])
def test_a_configuration_comes_back_from_a_dictionary_and_from_disk(settings, tmp_path):
    config = MD4Config(**settings)
    for name, value in settings.items():
        assert getattr(config, name) == value, name
    assert MD4Config.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert json.loads(config.to_json_string(use_diff=False))["model_type"] == "md4"
    config.save_pretrained(tmp_path)
    for loaded in (MD4Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is MD4Config
        # `_name_or_path` notes where it came from, or does not.
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_every_backbone_has_its_facts_and_its_body():
    assert {*get_args(MD4Config.__annotations__["backbone"])} == {*BACKBONES} == {*BODIES}


def test_unset_values_follow_the_official_rules():
    config = MD4Config(vocab_size=28, hidden_size=96, num_attention_heads=3)
    assert config.mask_token_id == 27
    assert config.intermediate_size == 256  # 2/3 * 4 * 96
    assert config.conditioning_size == config.head_dim == 32
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert not config.tie_word_embeddings


@pytest.mark.parametrize("hidden_size, width", [(8, 32), (12, 32), (13, 64), (96, 256), (100, 288), (768, 2048)])
def test_the_feed_forward_is_two_thirds_of_four_times_the_width_in_steps_of_32(hidden_size, width):
    assert default_intermediate_size(hidden_size) == width


@pytest.mark.parametrize("backbone", ["unet", "uvit"])
def test_unset_values_of_images_follow_the_official_rules(backbone):
    config = MD4Config(backbone=backbone, hidden_size=64)
    assert config.is_image and config.sample_shape == (3, 32, 32)
    assert (config.conditioning_size, config.norm_eps, config.channel_multipliers) == (64, 1e-6, [1])
    text = MD4Config(max_position_embeddings=7)
    assert not text.is_image and text.sample_shape == (7,) and text.norm_eps == 1e-5


def test_tuples_become_lists_as_in_a_file():
    config = MD4Config(backbone="unet", image_size=(4, 6), channel_multipliers=(1, 2), num_channels=1)
    assert (config.image_size, config.channel_multipliers, config.sample_shape) == ([4, 6], [1, 2], (1, 4, 6))


@pytest.mark.parametrize("class_dropout, null_class", [(0.0, None), (0, None), (0.1, 5)])
def test_a_model_that_drops_labels_has_a_null_class(class_dropout, null_class):
    assert MD4Config(num_classes=5, class_dropout=class_dropout).null_class == null_class


def test_given_values_are_kept():
    config = MD4Config(vocab_size=28, mask_token_id=0, intermediate_size=7, conditioning_size=5)
    assert (config.mask_token_id, config.intermediate_size, config.conditioning_size) == (0, 7, 5)


@pytest.mark.parametrize(
    "time_conditioning, num_classes, conditional",
    [(True, None, True), (True, 2, True), (False, 2, True), (False, None, False)],
)
def test_a_model_is_conditional_with_time_or_classes(time_conditioning, num_classes, conditional):
    config = MD4Config(time_conditioning=time_conditioning, num_classes=num_classes)
    assert config.is_conditional is conditional


SIZES = "hidden_size num_hidden_layers num_attention_heads max_position_embeddings num_channels".split()
SIZES += ["dit_hidden_size", "dit_num_hidden_layers", "dit_num_attention_heads"]
OPTIONAL_SIZES = "intermediate_size embedding_size conditioning_size num_classes num_train_timesteps".split()
DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout", "class_dropout")
WRONG_VALUES = [
    *[({name: 0}, f"`{name}` must be >= 1, got 0.") for name in SIZES],
    *[({name: 0}, f"`{name}` must be >= 1 or None, got 0.") for name in OPTIONAL_SIZES],
    ({"vocab_size": 1}, "`vocab_size` must count at least one token and the mask, got 1."),
    ({"hidden_size": 30, "num_attention_heads": 4}, "`hidden_size` must be a multiple of twice .*, got 30 and 4."),
    ({"hidden_size": 12, "num_attention_heads": 4}, r"\(rotary pairs\), got 12 and 4."),
    ({"vocab_size": 5, "mask_token_id": 5}, r"`mask_token_id` must be in \[0, vocab_size\), got 5."),
    ({"mask_token_id": -1}, r"`mask_token_id` must be in \[0, vocab_size\), got -1."),
    *[({x: value}, rf"`{x}` must be in \[0, 1\), got {value}.") for x in DROPOUTS for value in (1.0, -0.1)],
    ({"schedule_eps": 0.5}, r"`schedule_eps` must be in \[0, 0.5\), got 0.5."),
    ({"schedule_eps": -1e-4}, r"`schedule_eps` must be in \[0, 0.5\)"),
    ({"schedule_power": 0.0}, "`schedule_power` must be > 0, got 0.0."),
    ({"conditioning_size": 3}, "`conditioning_size` must be >= 4 with time conditioning, got 3."),
    ({"hidden_size": 8, "num_attention_heads": 4}, "`conditioning_size` must be >= 4 with time conditioning, got 2."),
    ({"tie_word_embeddings": True, "embedding_size": 16}, "`tie_word_embeddings` needs `embedding_size=None`"),
    ({"class_dropout": 0.1}, "`class_dropout` must be 0 without `num_classes`, got 0.1."),
]
WRONG_IMAGES = [
    ({"hidden_size": 48}, "`hidden_size` must be a multiple of 32, got 48."),
    ({"embedding_size": 32}, "`embedding_size` must be None for images, got 32."),
    ({"tie_word_embeddings": True}, "`tie_word_embeddings` must be False for images, got True."),
    *[
        ({"image_size": size}, "`image_size` must be one number or two, each >= 1, got")
        for size in (0, [4, 0], [4], [4, 4, 4], [])
    ],
    *[({"channel_multipliers": x}, "`channel_multipliers` must be numbers >= 1, got") for x in ([], [1, 0])],
    (
        {"image_size": [4, 6], "channel_multipliers": [1, 1, 1]},
        r"`image_size` must be a multiple of 4 for these `channel_multipliers`, got \[4, 6\].",
    ),
    ({"backbone": "uvit", "image_size": 5}, "`image_size` must be a multiple of 2 for these"),
    ({"backbone": "uvit", "image_size": [4, 6]}, r'`image_size` must be a square for "uvit", got \[4, 6\].'),
    *[
        ({"backbone": "uvit", "dit_hidden_size": size, "dit_num_attention_heads": 3}, "a multiple of 4 and of its 3 h")
        for size in (18, 16)
    ],
]


@pytest.mark.parametrize("settings, message", WRONG_VALUES, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MD4Config(**settings)


@pytest.mark.parametrize("settings, message", WRONG_IMAGES, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_image_networks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MD4Config(**{"backbone": "unet", "hidden_size": 32, "image_size": 4, **settings})


@pytest.mark.parametrize("image_size", [1, [3, 5]])
def test_the_unet_of_one_resolution_takes_odd_sizes(image_size):
    assert MD4Config(backbone="unet", hidden_size=32, image_size=image_size).is_image


def test_a_small_conditioning_is_fine_without_time():
    assert MD4Config(time_conditioning=False, num_classes=2, conditioning_size=1).conditioning_size == 1


WRONG_TYPES = {
    "backbone": "lstm",
    "mlp_type": "relu",
    "modulation": "film",
    "masking_schedule": "sigmoid",
    "hidden_size": "32",
    "num_classes": 2.5,
    "image_size": "32",
    "channel_multipliers": [1.5],
    "time_conditioning": "yes",
    "residual_dropout": None,
    "rope_parameters": 10000.0,
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_unknown_choices_and_wrong_types_are_refused(name):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"field '{name}'"):
        MD4Config(**{name: WRONG_TYPES[name]})


def test_unknown_choices_are_refused_in_a_file_and_when_assigned(tmp_path):
    config = MD4Config()
    with pytest.raises(StrictDataclassFieldValidationError, match="'mlp_type'"):
        config.mlp_type = "relu"
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "modulation": "film"}))
    with pytest.raises(StrictDataclassFieldValidationError, match="'modulation'"):
        MD4Config.from_pretrained(tmp_path)
