# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments have their newer names on every release of transformers, and do what they say."""

import pytest
from test_trainer import losses, make_trainer, training_arguments

from md4_hf.core.modeling_md4_layers import MD4Layer


OPTIONS = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}


def is_checkpointed(model):
    return {layer.gradient_checkpointing for layer in model.modules() if isinstance(layer, MD4Layer)}


@pytest.mark.parametrize("is_on", [False, True])
def test_a_training_checkpoints_its_activations(tmp_path, is_on):
    trainer = make_trainer(tmp_path / "other", **{**OPTIONS, "activation_checkpointing": is_on})
    trainer.train()
    assert is_checkpointed(trainer.model) == {is_on}
    plain = make_trainer(tmp_path / "plain")
    plain.train()
    assert losses(trainer) == pytest.approx(losses(plain), abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")
def test_both_names_have_the_value_of_the_one_that_is_given(tmp_path):
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        args = training_arguments(tmp_path, **{name: True, f"{name}_kwargs": '{"use_reentrant": false}'})
        assert args.activation_checkpointing is args.gradient_checkpointing is True
        assert args.activation_checkpointing_kwargs == args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    args = training_arguments(tmp_path)
    assert args.activation_checkpointing is args.gradient_checkpointing is False
