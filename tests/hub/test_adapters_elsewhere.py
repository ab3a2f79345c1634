# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""An adapter is one model: with tied weights, with its base elsewhere, trained further, and on top of another."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import random_model, training_arguments, unbroken_and_resumed, weights
from transformers import AutoModel

from md4_hf import (
    LoraArguments,
    MD4Config,
    MD4ForCausalLM,
    MD4Trainer,
    add_adapter,
    build_byte_tokenizer,
    load_model,
    load_pipeline,
)
from md4_hf.hub.adapters import fingerprint, save_base_record


LENGTH, VOCAB = 8, 258
TIED = [
    {"target_modules": ["lm_head"]},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["embed_tokens", "lm_head", "qkv_proj"]},
    {"target_modules": ["lm_head"], "use_dora": True},
    {"target_modules": ["qkv_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["qkv_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["qkv_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
]


def save_base(folder, is_causal=False, **kwargs):
    model = random_model(VOCAB, LENGTH, std=0.1, time_conditioning=False, **kwargs)
    if is_causal:
        model = MD4ForCausalLM(MD4Config(**{**model.config.to_dict(), "is_causal": True, "architectures": None}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    return str(folder)


def changed(model):
    """The model, with weights of its adapter that do something."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def save_adapter(model, folder):
    model.save_pretrained(folder)
    save_base_record(fingerprint(model.get_base_model()), folder)
    return str(folder)


def logits(model):
    ids = torch.randint(VOCAB - 1, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(ids).logits[..., : VOCAB - 1]


def trainer_of(model, folder, **kwargs):
    rows = Dataset.from_dict({"input_ids": [[(i + j) % 5 for j in range(LENGTH)] for i in range(32)]})
    args = training_arguments(folder, **{"learning_rate": 1e-2, **kwargs})
    return MD4Trainer(model=model, args=args, train_dataset=rows, processing_class=build_byte_tokenizer())


@pytest.mark.parametrize("options", TIED, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_with_tied_weights_live_saved_merged_and_exported_are_one_model(tmp_path, options, is_causal):
    base = save_base(tmp_path / "base", tie_word_embeddings=True, is_causal=is_causal)
    plain = logits(load_model(base))
    trainer = trainer_of(get_peft_model(load_model(base), LoraConfig(r=2, **options)), tmp_path / "run", max_steps=1)
    model = changed(trainer.model)
    live = logits(model)
    assert (live - plain).abs().max() > 0.01, "the adapter does something"
    trainer.save_repository(tmp_path / "adapter")
    merged = load_model(str(tmp_path / "adapter"))
    merged.save_pretrained(tmp_path / "merged")
    models = [load_model(str(tmp_path / "adapter"), merge_adapter=False), merged, load_model(str(tmp_path / "merged"))]
    if not is_causal:
        load_pipeline(str(tmp_path / "adapter"), device="cpu").save_pretrained(tmp_path / "exported")
        models.append(AutoModel.from_pretrained(tmp_path / "exported"))
    for other in (*models, model.merge_and_unload()):
        torch.testing.assert_close(logits(other), live, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(load_model(base)), plain, atol=0, rtol=0)
    assert isinstance(merged, MD4ForCausalLM) == is_causal


def test_an_adapter_of_other_layers_leaves_the_weights_tied(tmp_path):
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    save_adapter(changed(add_adapter(load_model(base), LoraArguments(lora_r=2))), tmp_path / "adapter")
    merged = load_model(str(tmp_path / "adapter"))
    assert merged.config.tie_word_embeddings and merged.lm_head.weight is merged.model.embed_tokens.weight


# The base -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder in which an adapter was trained on a base that it names by a relative path."""
    monkeypatch.chdir(tmp_path)
    save_base("runs/base")
    save_adapter(changed(add_adapter(load_model("runs/base"), LoraArguments(lora_r=2))), "runs/adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "runs"


def rename_base(adapter, name):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": name}))


@pytest.mark.parametrize("name", ["runs/base", "base", "../base", "./runs/base", "/no/such/place/base"])
@pytest.mark.parametrize("moved", [False, True])
def test_the_base_is_found_from_the_folder_of_the_adapter(runs, tmp_path, name, moved):
    rename_base(runs / "adapter", name)
    expected = logits(load_model(str(runs / "adapter"), base=str(runs / "base")))
    if moved:
        shutil.move(runs, tmp_path / "far" / "runs")
        runs = tmp_path / "far" / "runs"
    opened = load_model(str(runs / "adapter"), merge_adapter=False)
    torch.testing.assert_close(logits(opened), expected, atol=1e-5, rtol=0)
    found = opened.active_peft_config.base_model_name_or_path
    assert (runs / "base").samefile(found), "what is saved from here on names the base where it is"


@pytest.mark.parametrize("name", ["runs/gone", "gone", "../gone", "/no/such/place/gone", "runs/of/gone"])
def test_a_base_that_is_nowhere_is_an_error_that_names_the_option(runs, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rename_base(runs / "adapter", name)
    with pytest.raises(FileNotFoundError, match=rf"`base` must be given: the adapter .* names .*{name}"):
        load_model(str(runs / "adapter"))
    assert load_model(str(runs / "adapter"), base=str(runs / "base")) is not None


@pytest.mark.parametrize("name", ["base", "user/base", "deep/base"])
def test_a_folder_further_up_is_not_taken_for_the_base(runs, tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rename_base(runs / "adapter", name)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.move(runs / "base", tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"`base` must be given"):
        load_model(str(runs / "adapter"))


@pytest.mark.parametrize("name", ["gone", "./gone", "/no/such/base"])
def test_a_base_that_is_given_and_not_there_is_named_as_given(runs, name):
    with pytest.raises(
        FileNotFoundError, match=f"`base` must be a model's or adapter's folder or a Hub id, got {name}"
    ):
        load_model(str(runs / "adapter"), base=name)


def test_a_folder_of_the_right_name_with_other_weights_is_not_the_base(runs):
    rename_base(runs / "adapter", "/no/such/place/base")
    random_model(VOCAB, LENGTH, std=0.1, time_conditioning=False, seed=7).save_pretrained(runs / "base")
    with pytest.raises(ValueError, match="`adapter` must belong to the base model"):
        load_model(str(runs / "adapter"))


def test_an_adapter_that_names_itself_is_an_error(runs):
    rename_base(runs / "adapter", str(runs / "adapter"))
    with pytest.raises(ValueError, match="is the adapter itself"):
        load_model(str(runs / "adapter"))


# Training further -----------------------------------------------------------------------------------------------------


def test_an_adapter_trains_further_from_where_it_is(runs, tmp_path):
    model = load_model(str(runs / "adapter"), merge_adapter=False, is_trainable=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(model, tmp_path / "run")
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all("lora_" in name for name in moved)
    trainer.save_repository(tmp_path / "further")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "further"))), logits(model), atol=1e-5, rtol=0)


def test_what_cannot_train_says_how(runs, tmp_path):
    frozen = load_model(str(runs / "adapter"), merge_adapter=False)
    with pytest.raises(ValueError, match="(?s)`model` must have parameters that train, got none.*is_trainable=True"):
        trainer_of(frozen, tmp_path / "run").train()
    with pytest.raises(ValueError, match="`is_trainable` must be False where the adapter is merged"):
        load_model(str(runs / "adapter"), is_trainable=True)
    with pytest.raises(ValueError, match="(?s)`model` must be without an adapter.*is_trainable=True"):
        add_adapter(frozen, LoraArguments())


def test_an_adapter_on_top_of_another_opens_with_both(runs, tmp_path):
    first = load_model(str(runs / "adapter"))
    trainer = trainer_of(changed(add_adapter(first, LoraArguments(lora_r=3))), tmp_path / "run")
    trainer.train()
    live = logits(trainer.model)
    trainer.save_repository(tmp_path / "second")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "second"))), live, atol=1e-5, rtol=0)


def test_an_adapter_beside_another_trains_alone_and_is_in_a_folder_of_its_own(runs, tmp_path):
    model = load_model(str(runs / "adapter"), merge_adapter=False)
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    model.set_adapter("second")
    trainer = trainer_of(model, tmp_path / "run")
    trainer.train()
    trainer.save_repository(tmp_path / "both")
    merged = load_model(str(tmp_path / "both" / "second"))
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=0)
    with model.disable_adapter():
        plain = logits(model)
    assert (logits(merged) - plain).abs().max() > 1e-3
    model.set_adapter("default")  # which did not train
    torch.testing.assert_close(logits(load_model(str(tmp_path / "both"))), logits(model), atol=1e-5, rtol=0)


def test_a_second_adapter_and_its_average_go_on_from_a_checkpoint(runs, tmp_path):
    def make_trainer(folder, **options):
        model = load_model(str(runs / "adapter"), merge_adapter=False)
        torch.manual_seed(0)
        model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
        model.set_adapter("second")
        return trainer_of(model, folder, ema_decay=0.5, **options)

    unbroken, resumed = unbroken_and_resumed(make_trainer, tmp_path, step=2)
    for first, second in zip(unbroken.ema.values, resumed.ema.values, strict=True):
        assert torch.equal(first, second)
    torch.testing.assert_close(weights(resumed.model), weights(unbroken.model), atol=0, rtol=0)
