# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The converter of official checkpoints: the configuration field by field, the parameters, and the command."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from commands import failure
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoModel

from md4_hf import MaskedDiffusionScheduler, MD4ForMaskedDiffusion, config_from_official, convert_flax_params
from md4_hf.cli import main
from md4_hf.hub.convert import convert
from md4_hf.hub.convert_md4 import scheduler_from_official


GOLDEN = Path(__file__).parents[1] / "golden"
CASE = "sampling_run"  # time, classes, one block
OFFICIAL = {"vocab_size": 8, "feature_dim": 12, "num_heads": 3, "n_layers": 5}


# Configuration --------------------------------------------------------------------------------------------------------


FIELDS = [
    # Sizes; the official count leaves the mask out.
    ({}, {"vocab_size": 9, "mask_token_id": 8, "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 5}),
    ({}, {"head_dim": 12, "conditioning_size": 12}),
    # What the official defaults stand for.
    ({}, {"masking_schedule": "linear", "schedule_power": 1.0, "schedule_eps": 1e-4}),
    ({}, {"mlp_type": "swiglu", "modulation": "adaln", "time_conditioning": True, "num_classes": None}),
    ({}, {"embedding_size": None, "num_train_timesteps": None, "depth_scaled_init": False, "attention_dropout": 0.0}),
    # Field by field.
    ({"noise_schedule_type": "cosine"}, {"masking_schedule": "cosine", "schedule_power": 1.0}),
    ({"noise_schedule_type": "poly2"}, {"masking_schedule": "poly", "schedule_power": 2.0}),
    ({"noise_schedule_type": "poly0.5"}, {"masking_schedule": "poly", "schedule_power": 0.5}),
    ({"outside_embed": True}, {"embedding_size": 12, "hidden_size": 36}),
    ({"outside_embed": False}, {"embedding_size": None}),
    ({"time_features": "t"}, {"time_conditioning": True, "is_conditional": True}),
    ({"time_features": "none"}, {"time_conditioning": False, "is_conditional": False}),
    ({"time_features": "none", "classes": 4}, {"time_conditioning": False, "is_conditional": True, "num_classes": 4}),
    ({"classes": 10}, {"num_classes": 10}),
    ({"classes": 0}, {"num_classes": None}),
    ({"classes": -1}, {"num_classes": None}),
    ({"cont_time": False, "timesteps": 50}, {"num_train_timesteps": 50}),
    ({"cont_time": False}, {"num_train_timesteps": 1000}),
    ({"cont_time": True, "timesteps": 50}, {"num_train_timesteps": None}),
    ({"cond_type": "adaln_zero"}, {"modulation": "adaln_zero"}),
    ({"mlp_type": "glu"}, {"mlp_type": "glu"}),
    ({"depth_scaled_init": True}, {"depth_scaled_init": True}),
    ({"dropout_rate": 0.02}, {"embedding_dropout": 0.02, "attention_dropout": 0.02, "residual_dropout": 0.02}),
    ({"data_shape": [256]}, {"max_position_embeddings": 256}),
    ({"data_shape": (64,), "n_dit_layers": 0}, {"max_position_embeddings": 64}),
]


@pytest.mark.parametrize("official, expected", FIELDS, ids=lambda x: ",".join(map(str, x)))
def test_a_field_of_the_official_configuration_is_translated(official, expected):
    config = config_from_official({**OFFICIAL, **official})
    assert {name: getattr(config, name) for name in expected} == expected


UVIT = {"feature_dim": 32, "n_dit_layers": 6, "dit_hidden_size": 24, "dit_num_heads": 3, "ch_mult": [1, 2]}
IMAGES = [
    ({"data_shape": (8, 6, 3)}, {"backbone": "unet", "sample_shape": (3, 8, 6), "image_size": [8, 6]}),
    ({"data_shape": (5, 5, 1)}, {"sample_shape": (1, 5, 5), "image_size": 5, "norm_eps": 1e-6}),
    ({"data_shape": (5, 5, 1), "ch_mult": [1, 2]}, {"backbone": "unet", "channel_multipliers": [1]}),
    ({"data_shape": (8, 8, 3)}, {"hidden_size": 32, "conditioning_size": 32, "num_hidden_layers": 5}),
    ({"data_shape": (8, 8, 3), "dropout_rate": 0.1}, {"residual_dropout": 0.1}),
    ({"data_shape": (8, 8, 3), **UVIT}, {"backbone": "uvit", "channel_multipliers": [1, 2]}),
    ({"data_shape": (8, 8, 3), **UVIT}, {"dit_hidden_size": 24, "dit_num_hidden_layers": 6}),
    ({"data_shape": (8, 8, 3), **UVIT}, {"dit_num_attention_heads": 3}),
]


@pytest.mark.parametrize("official, expected", IMAGES, ids=lambda x: ",".join(map(str, x)))
def test_the_configuration_of_an_image_model_is_translated(official, expected):
    config = config_from_official({**OFFICIAL, "feature_dim": 32, **official})
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "official, message",
    [
        ({"data_shape": (8, 8)}, r"`data_shape` must be \(length,\) or \(height, width, channels\), got \(8, 8\)"),
        ({"data_shape": [256], "n_dit_layers": 2}, "`n_dit_layers` must be 0 for text, got 2"),
        ({"data_shape": (8, 8, 3), "n_dit_layers": 2}, "`ch_mult` must be in the official configuration"),
    ],
)
def test_shapes_that_are_of_no_network_are_refused(official, message):
    with pytest.raises(ValueError, match=message):
        config_from_official({**OFFICIAL, "feature_dim": 32, **official})


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_size_is_named(name):
    with pytest.raises(ValueError, match=f"`{name}` must be in the official configuration"):
        config_from_official({key: value for key, value in OFFICIAL.items() if key != name})


@pytest.mark.parametrize(
    "official, name",
    [
        ({"noise_schedule_type": "sigmoid"}, "masking_schedule"),
        ({"mlp_type": "relu"}, "mlp_type"),
        ({"cond_type": "film"}, "modulation"),
    ],
)
def test_an_unknown_choice_is_refused(official, name):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=name):
        config_from_official({**OFFICIAL, **official})


SCHEDULERS = [
    ({}, {"mask_token_id": 8, "masking_schedule": "linear", "timestep_grid": "cosine", "sampler": "ancestral"}),
    ({}, {"top_p": None, "num_inference_steps": 1000}),
    ({"timesteps": 20, "sampling_grid": "uniform"}, {"num_inference_steps": 20, "timestep_grid": "uniform"}),
    ({"sampler": "mean"}, {"sampler": "mean", "top_p": None}),
    ({"sampler": "topp"}, {"sampler": "ancestral", "top_p": 0.98}),
    ({"sampler": "topp", "topp": 0.9}, {"top_p": 0.9}),
    ({"sampler": "ancestral", "topp": 0.9}, {"top_p": None}),
    ({"noise_schedule_type": "poly3"}, {"masking_schedule": "poly", "schedule_power": 3.0}),
]


@pytest.mark.parametrize("official, expected", SCHEDULERS, ids=lambda x: ",".join(map(str, x)))
def test_the_sampler_settings_are_translated(official, expected):
    scheduler = scheduler_from_official({**OFFICIAL, **official})
    assert {name: scheduler.config[name] for name in expected} == expected


# Parameters -----------------------------------------------------------------------------------------------------------

NETWORKS = [
    CASE,
    "net_text_adalnzero_glu_outside",
    "net_text_notime_geglu",
    "net_unet_class_t",
    "net_uvit_class_t_chmult12",
    "net_uvit_uncond",
]


@pytest.fixture(params=NETWORKS)
def network(golden, request):
    """Parameters by their official names without the prefix, and the configuration."""
    tensors, record = golden(request.param)
    params = {name.removeprefix("params/"): x for name, x in tensors.items() if name.startswith("params/")}
    return params, config_from_official(record["config"])


def one_of_each_kind(params):
    """A name of each kind of parameter: those of several blocks differ in numbers only."""
    return sorted({re.sub(r"[0-9]+", "", name): name for name in params}.values())


def test_every_parameter_of_the_model_is_converted_and_the_mask_has_a_row_of_zeros(network):
    params, config = network
    state = convert_flax_params(params, config)
    expected = {name: x.shape for name, x in MD4ForMaskedDiffusion(config).state_dict().items()}
    assert {name: x.shape for name, x in state.items()} == expected
    # One row for text, for images one for each channel.
    head = [x.unflatten(0, (-1, config.vocab_size)) for name, x in state.items() if name.startswith("lm_head.")]
    of_mask = [x[:, config.mask_token_id] for x in head]
    assert not any(x.any() for x in of_mask)
    # These zeros are all that is new.
    new = sum(x.numel() for x in state.values()) - sum(x.numel() for x in params.values())
    assert new == sum(x.numel() for x in of_mask)


def test_arrays_tensors_and_prefixed_names_convert_to_the_same(network):
    params, config = network
    expected = convert_flax_params(params, config)
    arrays = {name: x.numpy() for name, x in params.items()}
    prefixed = {f"params/{name}": x for name, x in params.items()} | {"out/loss": torch.zeros(())}
    for same in (arrays, prefixed):
        state = convert_flax_params(same, config)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], x) for name, x in expected.items())


def test_a_missing_parameter_is_named(network):
    params, config = network
    for name in one_of_each_kind(params):
        rest = {key: x for key, x in params.items() if key != name}
        with pytest.raises(ValueError, match=re.escape(name)):
            convert_flax_params(rest, config)


def test_a_surplus_parameter_is_named(network):
    params, config = network
    for name in ("classifier/Transformer_0/Dense_7/bias", "classifier/Transformer_0/TransformerBlock_9/Dense_0/bias"):
        with pytest.raises(ValueError, match=f"surplus parameters .*{name}"):
            convert_flax_params({**params, name: torch.zeros(3)}, config)


def test_a_parameter_of_another_shape_is_named(network):
    params, config = network
    for name in one_of_each_kind(params):
        x = params[name]
        wrong = [torch.cat([x, x[:1]]), x[None]]
        if x.dim() == 2:
            wrong += [torch.cat([x, x[:, :1]], dim=1), x.flatten()]
        for tensor in wrong:
            with pytest.raises(ValueError) as error:
                convert_flax_params({**params, name: tensor}, config)
            said, layer = str(error.value), name.rpartition("/")[0]
            assert layer in said or re.search(r"`(model|lm_head)\.[\w.]+` must have shape", said)


def test_wrong_shapes_that_add_up_are_refused(golden):
    """Query and key are stacked into one weight: one row too few and one too many must not pass as the right sum."""
    tensors, record = golden(CASE)
    config = config_from_official(record["config"])
    attention = "params/classifier/Transformer_0/TransformerBlock_0/attention"
    size = config.hidden_size
    assert tensors[f"{attention}/wq/kernel"].shape == tensors[f"{attention}/wk/kernel"].shape == (size, size)
    sizes = {"wq": size - 1, "wk": size + 1}
    wrong = {f"{attention}/{name}/kernel": torch.zeros(size, width) for name, width in sizes.items()}
    with pytest.raises(ValueError, match="attention"):
        convert_flax_params({**tensors, **wrong}, config)


# The command ----------------------------------------------------------------------------------------------------------


def convert_checkpoint(checkpoint, config_file, output_dir):
    """Convert an official checkpoint."""
    assert convert(str(checkpoint), output_dir, config_file=config_file) == "official"


def arguments(output_dir, **replaced):
    """Checkpoint, configuration and folder."""
    given = {"checkpoint": GOLDEN / f"{CASE}.safetensors", "config": GOLDEN / f"{CASE}.json", **replaced}
    return [*given.values(), output_dir]


@pytest.mark.parametrize("nested", [True, False], ids=["record", "plain fields"])
def test_the_command_writes_a_folder_that_the_auto_class_and_the_scheduler_load(golden, tmp_path, capsys, nested):
    tensors, record = golden(CASE)
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps(record if nested else record["config"]))
    output_dir = tmp_path / "new" / "model"
    main(["convert", *map(str, arguments(output_dir, config=config_file))])
    assert str(output_dir) in capsys.readouterr().out
    names = {file.name for file in output_dir.iterdir()}
    assert {"config.json", "model.safetensors", "scheduler_config.json"} <= names
    config = config_from_official(record["config"])
    model = MD4ForMaskedDiffusion(config)
    model.load_state_dict(convert_flax_params(tensors, config))
    loaded = AutoModel.from_pretrained(output_dir)
    assert type(loaded) is MD4ForMaskedDiffusion
    inputs = {"input_ids": tensors["z"][3].long(), "timesteps": torch.full((3,), 0.6)}
    inputs["class_labels"] = tensors["label"].long()
    torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits, atol=1e-6, rtol=0.0)

    scheduler = MaskedDiffusionScheduler.from_pretrained(output_dir)
    assert scheduler.config.mask_token_id == loaded.config.mask_token_id == record["mask_token_id"]
    assert scheduler.config.masking_schedule == loaded.config.masking_schedule == "linear"
    assert (scheduler.config.sampler, scheduler.config.timestep_grid) == ("ancestral", "cosine")
    assert len(scheduler.timesteps) == record["config"]["timesteps"]


def test_the_command_writes_into_an_empty_folder_and_refuses_any_other(tmp_path):
    convert_checkpoint(*arguments(tmp_path))
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=f"`output_dir` must be empty, got {re.escape(str(tmp_path))}"):
        convert_checkpoint(*arguments(tmp_path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == written


def test_a_missing_file_is_named_and_nothing_is_written(tmp_path):
    absent, output_dir = tmp_path / "absent.safetensors", tmp_path / "model"
    with pytest.raises(FileNotFoundError, match=f"`checkpoint` must exist, got {re.escape(str(absent))}"):
        convert_checkpoint(*arguments(output_dir, checkpoint=absent))
    with pytest.raises(FileNotFoundError, match="absent.json"):
        convert_checkpoint(*arguments(output_dir, config=tmp_path / "absent.json"))
    assert not output_dir.exists()


def test_a_checkpoint_that_does_not_fit_its_configuration_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="`params` must"):
        convert_checkpoint(*arguments(tmp_path / "model", config=GOLDEN / "net_text_adaln_swiglu.json"))
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(importlib.util.find_spec("orbax") is not None, reason="orbax-checkpoint is installed")
def test_an_orbax_folder_asks_for_orbax(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ImportError, match="pip install orbax-checkpoint"):
        convert_checkpoint(*arguments(tmp_path / "model", checkpoint=tmp_path / "checkpoint"))


def test_the_command_needs_all_its_arguments(tmp_path, capsys):
    assert "output_dir" in failure(capsys, ["convert", *map(str, arguments(tmp_path)[:-1])])
