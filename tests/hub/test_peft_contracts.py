# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Contracts that peft's own suite checks of every model, with plain peft: both kinds of text, weights tied or not."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import losses_of_steps, with_normal_weights

from md4_hf import MD4Config, MD4ForCausalLM, MD4ForMaskedDiffusion


VOCAB, LENGTH = 12, 6
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
MODELS = {
    "masked": (MD4ForMaskedDiffusion, {}),
    "masked, tied": (MD4ForMaskedDiffusion, {"tie_word_embeddings": True}),
    "causal": (MD4ForCausalLM, {"is_causal": True}),
    "causal, tied": (MD4ForCausalLM, {"is_causal": True, "tie_word_embeddings": True}),
}
every_model = pytest.mark.parametrize("name", MODELS)
SAVED = [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]]
every_saved = pytest.mark.parametrize("saved", SAVED, ids="+".join)


def make_base(name):
    model_class, options = MODELS[name]
    return with_normal_weights(MD4Config(**SIZES, **options), std=0.2, model_class=model_class).eval()


def make_batch(model):
    ids = torch.randint(VOCAB - 1, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    if model.config.is_causal:
        return {"input_ids": ids, "labels": ids}
    noised = ids.clone()
    noised[:, ::2] = model.config.mask_token_id
    return {"input_ids": noised, "labels": ids, "timesteps": torch.linspace(0.2, 0.8, 4)}


def logits(model):
    inputs = {name: value for name, value in make_batch(model).items() if name != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits[..., : VOCAB - 1]


def train(model, steps=3):
    """Some steps on one batch; the losses before each."""
    batch = make_batch(model)
    return losses_of_steps(model.train(), lambda: batch, learning_rate=1e-3, steps=steps)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def lora(saved=None, **options):
    options = {"target_modules": ["qkv_proj", "down_proj"], **options}
    return LoraConfig(r=2, modules_to_save=saved, init_lora_weights=False, **options)


@every_model
@every_saved
def test_saved_modules_train_and_are_saved_loaded_and_merged_with_the_adapter(name, saved, tmp_path):
    base = make_base(name)
    plain = logits(base)
    model = get_peft_model(copy.deepcopy(base), lora(saved))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    losses = train(model)
    assert losses[-1] < losses[0]
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert all(any(f"{module}.modules_to_save.default" in key for key in moved) for module in saved)
    assert all("lora_" in key or "modules_to_save" in key for key in moved)
    live = logits(model)
    with model.disable_adapter():
        assert_same(logits(model), plain)
    assert_same(logits(model), live)
    model.save_pretrained(tmp_path)
    assert_same(logits(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)), live)
    assert_same(logits(model.merge_and_unload()), live)


@every_model
@every_saved
def test_two_adapters_each_have_their_own_saved_modules(name, saved, tmp_path):
    base = make_base(name)
    model = get_peft_model(copy.deepcopy(base), lora(saved), adapter_name="first")
    train(model)
    first = logits(model)
    model.add_adapter("second", lora(saved))
    model.set_adapter("second")
    train(model, steps=4)
    second = logits(model)
    assert (first - second).abs().max() > 1e-3
    model.set_adapter("first")
    assert_same(logits(model), first)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "first", adapter_name="first")
    opened.load_adapter(tmp_path / "second", "second")
    for adapter, expected in (("first", first), ("second", second)):
        opened.set_adapter(adapter)
        assert_same(logits(opened), expected)
    opened.delete_adapter("second")
    opened.set_adapter("first")
    assert_same(logits(opened), first)


@every_model
@pytest.mark.parametrize("pattern", [None, "layers"])
@pytest.mark.parametrize("chosen", [1, [0, 2]], ids=str)
def test_an_adapter_is_put_on_the_chosen_layers_only(name, chosen, pattern):
    model = get_peft_model(make_base(name), lora(layers_to_transform=chosen, layers_pattern=pattern))
    adapted = {key for key, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    numbers = [chosen] if isinstance(chosen, int) else chosen
    names = ("attention.qkv_proj", "mlp.down_proj")
    assert adapted == {f"base_model.model.model.layers.{i}.{module}" for i in numbers for module in names}
    losses = train(model)
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # newer transformers prefer another name
@every_model
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("saved", [None, ["lm_head"], ["embed_tokens"]], ids=str)
@pytest.mark.parametrize("target", ["loss", "logits"])
def test_gradients_are_the_same_with_gradient_checkpointing(name, use_reentrant, saved, target):
    def gradients(switch_before, switch_after):
        torch.manual_seed(0)
        base = make_base(name).train()
        switch_before(base)
        model = get_peft_model(base, lora(saved))
        switch_after(model)
        output = model(**make_batch(model), output_logits=True)
        (output.loss if target == "loss" else output.logits[..., : VOCAB - 1].logsumexp(-1).sum()).backward()
        return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}

    def enable(model):
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})

    def switch(model):
        model.enable_input_require_grads()
        enable(model)

    def nothing(model):
        pass

    expected = gradients(nothing, nothing)
    assert all(gradient is not None for gradient in expected.values())
    # peft itself asks for gradients of the inputs of a model that is checkpointed already.
    for actual in (gradients(nothing, switch), gradients(enable, nothing)):
        assert actual.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(actual[key], gradient, atol=1e-5, rtol=1e-5, msg=key)
