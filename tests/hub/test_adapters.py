# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA: an adapter on its base is the merged model, trains and resumes exactly, and fits no other base."""

import importlib.metadata
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tiny import ADAPTER_FILES, logged, quiet, random_model, trained, training_arguments, unbroken_and_resumed
from transformers import AutoModel

from md4_hf import (
    LoraArguments,
    MD4ForMaskedDiffusion,
    MD4Trainer,
    add_adapter,
    build_byte_tokenizer,
    load_adapter,
    load_model,
    load_pipeline,
)
from md4_hf.hub.adapters import fingerprint, save_base_record


LENGTH, VOCAB = 8, 258
KINDS = [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": "qkv_proj,down_proj"}]


def tiny_model(seed=0, **kwargs):
    return random_model(VOCAB, LENGTH, std=0.1, seed=seed, time_conditioning=False, **kwargs)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "base"
    tiny_model().save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    return folder


def adapted(base, **kwargs):
    """The base with an adapter that does something."""
    torch.manual_seed(0)
    model = add_adapter(load_model(str(base)), LoraArguments(lora_r=4, **kwargs))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def logits(model):
    ids = torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(ids, timesteps=torch.tensor([0.2, 0.5, 0.9])).logits[..., : VOCAB - 1]


@pytest.mark.parametrize("kwargs", KINDS, ids=str)
def test_an_untrained_adapter_changes_nothing(base, kwargs):
    model = add_adapter(load_model(str(base)), LoraArguments(**kwargs))
    torch.testing.assert_close(logits(model), logits(load_model(str(base))), atol=1e-5, rtol=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained) and not any("lm_head" in name for name in trained)


def test_without_peft_the_error_says_what_to_install(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"LoRA adapters need peft: pip install 'md4_hf\[lora\]'"):
        add_adapter(tiny_model(), LoraArguments())


def test_a_peft_that_is_too_old_is_an_error_before_anything_is_trained(base, tmp_path, monkeypatch):
    model = adapted(base)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.19.1")
    for use in (
        lambda: add_adapter(tiny_model(), LoraArguments()),
        lambda: load_adapter(tiny_model(), str(tmp_path)),
        lambda: MD4Trainer(model, training_arguments(tmp_path)),
    ):
        with pytest.raises(ImportError, match=r"LoRA adapters need peft 0.20.0 or later, got 0.19.1: pip install"):
            use()


def test_an_adapter_without_a_tokenizer_speaks_with_that_of_its_base(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("tokenizer*"))
    pipeline = quiet(load_pipeline(str(tmp_path / "adapter"), device="cpu"))
    assert pipeline.tokenizer.get_vocab() == build_byte_tokenizer().get_vocab()
    assert pipeline("a", num_inference_steps=2).texts[0].startswith("a")


@pytest.mark.parametrize("kwargs", KINDS, ids=str)
def test_adapter_and_base_are_the_merged_model_also_after_saving(base, tmp_path, kwargs):
    model = adapted(base, **kwargs)
    expected = logits(model)
    assert (expected - logits(load_model(str(base)))).abs().max() > 0.01, "the adapter does something"
    model.save_pretrained(tmp_path / "adapter")
    save_base_record(fingerprint(model.get_base_model()), tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {"adapter_model.safetensors", "base_model.json"}
    opened = load_model(str(tmp_path / "adapter"), merge_adapter=False)
    merged = load_model(str(tmp_path / "adapter"))
    assert isinstance(opened, PeftModel) and type(merged) is MD4ForMaskedDiffusion
    merged.save_pretrained(tmp_path / "merged")
    for other in (opened, merged, AutoModel.from_pretrained(tmp_path / "merged"), model.merge_and_unload()):
        torch.testing.assert_close(logits(other), expected, atol=1e-5, rtol=0)


def test_transformers_and_peft_open_the_adapter_by_themselves(base, tmp_path):
    model = adapted(base)
    model.save_pretrained(tmp_path)
    for opened in (AutoModel.from_pretrained(tmp_path), PeftModel.from_pretrained(load_model(str(base)), tmp_path)):
        torch.testing.assert_close(logits(opened), logits(model), atol=1e-5, rtol=0)


def test_an_adapter_for_other_weights_is_refused(base, tmp_path):
    model = adapted(base)
    model.save_pretrained(tmp_path / "adapter")
    save_base_record(fingerprint(model.get_base_model()), tmp_path / "adapter")
    other = tiny_model(seed=7)
    with pytest.raises(ValueError, match="`adapter` must belong to the base model"):
        load_adapter(other, str(tmp_path / "adapter"))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="`adapter` must belong to the base model"):
        load_model(str(tmp_path / "adapter"), base=str(tmp_path / "other"))


def test_an_adapter_of_another_shape_is_refused_without_a_record_too(base, tmp_path):
    adapted(base).save_pretrained(tmp_path)
    wider = tiny_model(intermediate_size=64)
    with pytest.raises(ValueError, match="(?s)`adapter` must fit the base model.*size mismatch"):
        load_adapter(wider, str(tmp_path))


def test_the_fingerprint_is_of_the_base_in_any_precision_and_with_any_adapter(base):
    model = load_model(str(base))
    assert fingerprint(model) == fingerprint(load_model(str(base), dtype=torch.bfloat16))
    assert fingerprint(model) == fingerprint(adapted(base).get_base_model())
    embedding_too = add_adapter(load_model(str(base)), LoraArguments(modules_to_save="embed_tokens"))
    embedding_too.get_base_model().get_input_embeddings().modules_to_save["default"].weight.data.add_(1.0)
    assert fingerprint(embedding_too.get_base_model()) == fingerprint(model)
    assert fingerprint(tiny_model(seed=1)) != fingerprint(model)


def test_bad_arguments_are_named(base, tmp_path):
    for kwargs, message in (
        ({"lora_r": 0}, "`lora_r` must be >= 1, got 0"),
        ({"lora_alpha": 0}, "`lora_alpha` must be > 0, got 0"),
        ({"lora_dropout": 1.0}, r"`lora_dropout` must be in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            LoraArguments(**kwargs)
    for option, layers, message in (
        ("target_modules", "no_such_layer", "got 'no_such_layer'"),
        ("target_modules", "qkv_proj, o_prj", "got 'o_prj'. Did you mean 'o_proj'"),
        ("target_modules", "all-linear,lm_head", "got 'all-linear'"),
        ("modules_to_save", "lm_head,embed_token", "got 'embed_token'. Did you mean 'embed_tokens'"),
        ("modules_to_save", "head", "got 'head'"),
    ):
        with pytest.raises(ValueError, match=f"`{option}` must be names of layers of the model, {message}"):
            add_adapter(load_model(str(base)), LoraArguments(**{option: layers}))
    spaced = add_adapter(load_model(str(base)), LoraArguments(target_modules="qkv_proj, o_proj"))
    assert any("o_proj.lora_A" in name for name, _ in spaced.named_parameters())
    with pytest.raises(ValueError, match="`base` must be left out where `model` is no adapter"):
        load_model(str(base), base=str(base))
    with pytest.raises(FileNotFoundError, match="`model` must be a model's or adapter's folder"):
        load_model(str(tmp_path))


def test_quantisation_without_bitsandbytes_is_an_error(monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="`quantization` must be left out where bitsandbytes is not installed"):
        LoraArguments(quantization="4bit").loading_arguments()


# Training -------------------------------------------------------------------------------------------------------------


def dataset(count=32, **columns):
    ids = np.random.default_rng(0).integers(4, size=(count, LENGTH))
    return Dataset.from_dict({"input_ids": ids.tolist(), **columns})


def make_trainer(base, folder, lora_r=4, **kwargs):
    torch.manual_seed(0)
    return MD4Trainer(
        model=add_adapter(load_model(str(base)), LoraArguments(lora_r=lora_r)),
        args=training_arguments(folder, **{"learning_rate": 1e-2, **kwargs}),
        train_dataset=dataset(),
        eval_dataset=dataset(8),
        processing_class=build_byte_tokenizer(),
    )


def trained_parameters(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=name, **tolerance)


def test_training_moves_the_adapter_alone_and_accumulation_does_not_matter(base, tmp_path):
    sizes = [{"per_device_train_batch_size": n, "gradient_accumulation_steps": 8 // n} for n in (8, 2)]
    trainers = [make_trainer(base, tmp_path / str(n), **options) for n, options in enumerate(sizes)]
    before = trained_parameters(trainers[0])
    frozen = {name: p.clone() for name, p in trainers[0].model.named_parameters() if not p.requires_grad}
    for trainer in trainers:
        trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in trained_parameters(trainers[0]).items())
    for name, parameter in trainers[0].model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])
    assert_same(trained_parameters(trainers[0]), trained_parameters(trainers[1]), atol=1e-5, rtol=1e-4)
    assert logged(trainers[0], "loss") == pytest.approx(logged(trainers[1], "loss"), rel=1e-4)
    assert trainers[0].state.num_input_tokens_seen == 4 * 8 * LENGTH


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_resuming_an_adapter_gives_the_unbroken_run(base, tmp_path, ema_decay):
    unbroken, resumed = unbroken_and_resumed(partial(make_trainer, base), tmp_path, 2, ema_decay=ema_decay)
    assert_same(trained_parameters(unbroken), trained_parameters(resumed), atol=1e-7, rtol=1e-5)
    if ema_decay:
        with unbroken.ema_weights(), resumed.ema_weights():
            assert_same(trained_parameters(unbroken), trained_parameters(resumed), atol=1e-7, rtol=1e-5)
    assert unbroken.evaluate()["eval_loss"] == pytest.approx(resumed.evaluate()["eval_loss"], rel=1e-6)
    assert resumed.state.num_input_tokens_seen == unbroken.state.num_input_tokens_seen


def test_resuming_an_adapter_of_another_rank_is_one_line(base, tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(base, tmp_path, **options).train()
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must have weights of the sizes of") as error:
        make_trainer(base, tmp_path, lora_r=2, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "size mismatch for" in str(error.value) and "\n" not in str(error.value)


def test_the_averaged_adapter_is_what_is_evaluated_and_shared(base, tmp_path):
    trainer = trained(make_trainer(base, tmp_path / "run", ema_decay=0.5))
    raw = trained_parameters(trainer)
    trainer.save_repository(tmp_path / "shared")
    assert_same(trained_parameters(trainer), raw, atol=0, rtol=0)
    merged = load_model(str(tmp_path / "shared"))
    with trainer.ema_weights():
        torch.testing.assert_close(logits(merged), logits(trainer.model), atol=1e-5, rtol=0)
        averaged = trained_parameters(trainer)
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_a_shared_adapter_has_all_that_it_needs(base, tmp_path):
    trainer = trained(make_trainer(base, tmp_path / "run"))
    trainer.evaluate()
    trainer.save_repository(tmp_path / "shared")
    names = {path.name for path in (tmp_path / "shared").iterdir()}
    assert names == ADAPTER_FILES
    card = (tmp_path / "shared/README.md").read_text()
    assert "library_name: peft" in card and f'from_pretrained("{base}"' in card and "LoRA, rank 4" in card
    assert "base_model:" not in card, "which is for ids of the Hub"
    pipeline = quiet(load_pipeline(str(tmp_path / "shared"), device="cpu"))
    assert len(pipeline(output_type="ids", num_inference_steps=2).sequences[0]) == LENGTH
    record = json.loads((tmp_path / "shared/base_model.json").read_text())
    assert record == {"fingerprint": fingerprint(load_model(str(base)))}
