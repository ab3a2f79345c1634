# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Language models of transformers as block models: one pass, cache, the two limits, and which are refused."""

import pytest
import torch
from test_auto_backbone import CAUSAL, IDS, MASKED, POSITIONS, ROWS, SIZES, open_source, save_language_model
from test_blocks import LENGTH, draw
from tiny import seeded
from torch.testing import assert_close
from transformers import (
    BloomConfig,
    DynamicCache,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
)

from md4_hf import MD4Config, MD4ForMaskedDiffusion


KINDS = {
    **CAUSAL,
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "gemma": GemmaConfig(**SIZES, **IDS, num_key_value_heads=1, head_dim=8),
    "phi": PhiConfig(**SIZES, **IDS),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, pad_token_id=1),
}
QUICK = ("llama", "qwen3", "gpt2")
each_kind = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KINDS]
)
aligned = pytest.mark.parametrize("predicts_next", [False, True])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model of each kind with normal weights, saved without a tokenizer."""
    root = tmp_path_factory.mktemp("block_backbones")
    for seed, (name, config) in enumerate(KINDS.items()):
        save_language_model(config, root / name, seed)
    return root


def adapted(folders, name, block_size, **options):
    return MD4ForMaskedDiffusion.from_backbone(folders / name, block_size=block_size, **options).double()


def noised(block_size, batch=2):
    """Clean ids, times of tokens, and x_t."""
    x0 = torch.randint(3, ROWS, (batch, LENGTH), generator=seeded())
    times = torch.rand(batch, -(-LENGTH // block_size), generator=seeded(1)).clamp(min=0.3)
    t = times.repeat_interleave(block_size, dim=1)[:, :LENGTH]
    return x0, t, torch.where(torch.rand(batch, LENGTH, generator=seeded(2)) < 1.0 - t, x0, ROWS)


@each_kind
@aligned
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_one_pass_and_a_cache_give_each_block_the_logits_it_has_behind_clean_ones(
    folders, name, predicts_next, attention
):
    model = adapted(folders, name, 4, predicts_next=predicts_next, attn_implementation=attention)
    x0, t, xt = noised(4)
    found, cache = model(xt, timesteps=t, labels=x0).logits, DynamicCache()
    for start in range(0, LENGTH, 4):
        block = slice(start, start + 4)
        alone = model(torch.cat([x0[:, :start], xt[:, block]], dim=1)).logits[:, start:]
        assert_close(found[:, block], alone, atol=1e-5, rtol=0)
        cache_of_step = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
        assert_close(model(xt[:, block], past_key_values=cache_of_step).logits, alone, atol=1e-5, rtol=0)
        model(x0[:, block], past_key_values=cache)


@each_kind
@aligned
def test_a_block_as_long_as_the_row_is_md4(folders, name, predicts_next):
    block, md4 = (adapted(folders, name, size, predicts_next=predicts_next) for size in (LENGTH, None))
    x0, t, xt = noised(LENGTH)
    found, expected = block(xt, timesteps=t, labels=x0), md4(xt, timesteps=t[:, 0], labels=x0)
    for field in ("loss", "token_nelbo", "reconstruction_nelbo"):
        assert_close(found[field], expected[field], atol=1e-6, rtol=1e-6)
    found.loss.backward()
    expected.loss.backward()
    for one, other in zip(block.parameters(), md4.parameters(), strict=True):
        assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5)


@each_kind
@torch.no_grad()
def test_blocks_of_one_token_are_the_causal_language_model(folders, name):
    """All masked, at weight 1, and predicting the next token: the likelihood of the weights as they were published."""
    model = adapted(folders, name, 1, predicts_next=True, schedule_eps=0.0)
    x0 = torch.randint(3, ROWS, (2, LENGTH), generator=seeded())
    output = model(torch.full_like(x0, ROWS), timesteps=torch.ones(2, LENGTH), labels=x0)
    logits = open_source(folders, name).double()(x0).logits
    nll = -logits[:, :-1].log_softmax(-1).gather(-1, x0[:, 1:, None]).squeeze(-1)
    assert_close(output.token_nelbo[:, 1:].double(), nll, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", pytest.param("opt", marks=pytest.mark.slow)])
@aligned
def test_padding_and_packed_documents_are_each_as_alone(folders, name, predicts_next):
    model = adapted(folders, name, 4, predicts_next=predicts_next)
    x0, t, xt = noised(4, batch=1)
    with torch.no_grad():
        alone = [model(xt[:, a:b], timesteps=t[:, a:b], labels=x0[:, a:b]).token_nelbo for a, b in ((0, 7), (0, 5))]
        join = [torch.cat([x[:, :7], x[:, :5]], dim=1) for x in (xt, t, x0)]
        documents = torch.tensor([[0] * 7 + [1] * 5])
        packed = model(join[0], timesteps=join[1], labels=join[2], document_ids=documents).token_nelbo
        padding = [torch.nn.functional.pad(x[:, :7], (0, 5)) for x in (xt, t, x0)]
        mask = torch.tensor([[1] * 7 + [0] * 5])
        labels = padding[2].masked_fill(mask == 0, -100)
        padded = model(padding[0], timesteps=padding[1], labels=labels, attention_mask=mask).token_nelbo
    assert_close(packed, torch.cat(alone, dim=1), atol=1e-6, rtol=1e-6)
    assert_close(padded[:, :7], alone[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@aligned
@pytest.mark.parametrize("options", [{}, {"order": "confidence"}, {"remasking": "cap", "eta": 0.3}])
def test_with_a_cache_and_without_one_text_is_written(folders, name, predicts_next, options):
    model = adapted(folders, name, 4, predicts_next=predicts_next)
    rows = [[5, 6, 7, 8, 9], [11, 12, 13, 14, 15, 16, 17]]
    cached, whole = (draw(model, rows, use_cache=use_cache, **options) for use_cache in (True, False))
    assert torch.equal(cached, whole) and (cached != ROWS).all()
    assert torch.equal(draw(model, rows[:1], **options)[0], cached[0]), "a row does not depend on the batch"
    if name == "gpt2":
        with pytest.raises(ValueError, match="`length` must be at most 24, the network's positions, got 72"):
            draw(model, rows, length=3 * POSITIONS, **options)
    else:
        assert (draw(model, rows, length=3 * POSITIONS, **options) != ROWS).all()


@each_kind
@aligned
def test_ragged_prompts_are_written_with_a_cache_as_without_one(folders, name, predicts_next):
    model = adapted(folders, name, 4, predicts_next=predicts_next)
    rows = [[5], [*range(5, 14)], [7, 8, 9, 10, 11], []]
    cached, whole = (draw(model, rows, use_cache=use_cache, gen_length=3) for use_cache in (True, False))
    assert all(torch.equal(*pair) for pair in zip(cached, whole, strict=True))


def test_it_comes_back_from_disk(folders, tmp_path):
    model = adapted(folders, "qwen3", 4, predicts_next=True)
    model.save_pretrained(tmp_path)
    again, ids = MD4ForMaskedDiffusion.from_pretrained(tmp_path), noised(4)[0]
    assert again.config.block_size == 4 and torch.equal(again(ids).logits, model(ids).logits)


def test_a_cache_of_a_model_that_keeps_no_states_is_refused(folders):
    cache, ids = DynamicCache(), torch.full((1, 4), 5)
    adapted(folders, "llama", 4)(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="`past_key_values` must come from this model"):
        adapted(folders, "llama", 4, predicts_next=True)(ids, past_key_values=cache)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MASKED["bert"], "'bert' that keeps no keys and values of decided blocks, got 4"),
        (MASKED["modernbert"], "'modernbert' that keeps no keys"),
        (LlamaConfig(**SIZES), r"'llama' that stays causal \(`is_causal=False` in its configuration opens it\)"),
        (MistralConfig(**SIZES, sliding_window=8, is_causal=False), "'mistral' with sliding windows of 8"),
        (BloomConfig(vocab_size=ROWS, hidden_size=32, n_layer=2, n_head=4), "'bloom' without transformers' attention"),
    ],
)
def test_backbones_that_have_no_blocks_are_refused_when_the_model_is_made(config, message):
    if config.model_type == "bloom":
        config.is_causal = False
    with pytest.raises(ValueError, match=f"`block_size` must be None for a backbone of type {message}"):
        MD4ForMaskedDiffusion(MD4Config(backbone="auto", backbone_config=config, block_size=4))


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 4])
@torch.no_grad()
def test_flex_attention_keeps_blocks_and_documents_apart(block_size):
    """Compiled for the CPU, where heads have to be 24 wide, and kernels for any length do not compile (torch 2.13)."""
    torch.compiler.reset()
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "hidden_size": 128}, is_causal=False)
    model = MD4ForMaskedDiffusion(MD4Config(backbone="auto", backbone_config=config, block_size=block_size)).eval()
    x0, t, _ = noised(4)
    x0, xt = x0 % (ROWS - 1), torch.where(x0 % 3 == 0, ROWS - 1, x0 % (ROWS - 1))
    inputs = {"timesteps": t} if block_size else {"timesteps": t[:, 0]}
    inputs["document_ids"] = torch.tensor([[0] * 5 + [1] * 7]).expand(2, -1)
    expected = model(xt, labels=x0, **inputs).token_nelbo
    model.set_attn_implementation("flex_attention")
    assert_close(model(xt, labels=x0, **inputs).token_nelbo, expected, atol=1e-4, rtol=1e-4)


def test_the_lean_loss_and_checkpointing_give_the_gradients_of_all_logits(folders):
    x0, t, xt = noised(4)
    gradients = []
    for training in (False, True):
        model = adapted(folders, "qwen3", 4, predicts_next=True).train(training)
        if training:
            model.gradient_checkpointing_enable()
        output = model(xt, timesteps=t, labels=x0)
        assert (output.logits is None) == training
        output.loss.backward()
        gradients.append([output.loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert_close(*gradients, atol=1e-5, rtol=1e-4)
