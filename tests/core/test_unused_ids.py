# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Rows without a token: a model with them is the model without them, and they are never drawn."""

import json
from itertools import pairwise

import pytest
import torch
from tiny import quiet, random_model, seeded, training_arguments
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from md4_hf import (
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForCausalLM,
    MD4ForMaskedDiffusion,
    MD4Trainer,
    build_byte_tokenizer,
    load_tokenizer,
    make_pipeline,
)
from md4_hf.cli import main
from md4_hf.core.input_checks import match_tokenizer
from md4_hf.core.modeling_md4 import MaskedDiffusionOutput


LENGTH = 8
# Ids of the tokens 0, 1, 2, ... of a small vocabulary, the mask last; the rows of the large one.
LAYOUTS = {
    "padded": ([0, 1, 2, 3, 4, 5], 16),
    "gaps": ([1, 2, 5, 6, 9, 10], 11),
    "gaps and padded, mask within": ([12, 1, 7, 0, 3, 5], 16),
}
KINDS = {
    "md4": {},
    "no time": {"time_conditioning": False},
    "tied": {"tie_word_embeddings": True},
    "genmd4": {"learn_masking_schedule": True, "masking_schedule": "poly"},
    "autoregressive": {"is_causal": True},
}


def unused(ids, rows):
    bounds = sorted({-1, *ids, rows})
    return [[a + 1, b] for a, b in pairwise(bounds) if b > a + 1]


def small_and_large(ids, rows, **kwargs):
    """A model, and one with the same weights at these ids and large ones in between."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    kind = MD4ForCausalLM if kwargs.get("is_causal") else MD4ForMaskedDiffusion
    torch.manual_seed(0)
    small = kind(MD4Config(vocab_size=len(ids), **sizes, **kwargs))
    tokens = {"vocab_size": rows, "mask_token_id": ids[-1], "unused_token_ids": unused(ids, rows)}
    large = kind(MD4Config(**tokens, **sizes, **kwargs))
    for (name, parameter), other in zip(small.named_parameters(), large.parameters(), strict=True):
        torch.nn.init.normal_(parameter, std=0.3, mean=1.0 if "exponents" in name else 0.0)
        other.data.fill_(5.0)
        if parameter.shape == other.shape:
            other.data.copy_(parameter)
        else:
            other.data[ids] = parameter.data
    return small, large


def inputs_of(small, ids):
    x0 = torch.randint(len(ids) - 1, (4, LENGTH), generator=seeded(1))
    noise = torch.rand(4, 2, LENGTH, generator=seeded(2)) if small.config.learn_masking_schedule else None
    return x0, {"timesteps": torch.tensor([0.1, 0.4, 0.7, 0.9]), "mask_noise": noise}


def loss_and_gradients(model, x0, is_training):
    torch.manual_seed(5)
    model.train(is_training)
    model.zero_grad()
    loss = model(input_ids=x0, labels=x0).loss if model.config.is_causal else model(labels=x0, input_ids=x0).loss
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_training", [True, False])
def test_loss_and_gradients_are_those_of_the_model_without_such_rows(kind, layout, is_training):
    ids, rows = LAYOUTS[layout]
    small, large = small_and_large(ids, rows, **KINDS[kind])
    x0 = torch.randint(len(ids) - 1, (4, LENGTH), generator=seeded(1))
    loss, gradients = loss_and_gradients(small, x0, is_training)
    other_loss, other_gradients = loss_and_gradients(large, torch.tensor(ids)[x0], is_training)
    torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-5)
    no_token = [i for i in range(rows) if i not in ids]
    for gradient, other in zip(gradients, other_gradients, strict=True):
        if gradient.shape != other.shape:
            assert (other[no_token] == 0).all(), "rows without a token do not train"
            other = other[ids]
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_without_a_token_are_suppressed_also_after_saving(layout, tmp_path):
    ids, rows = LAYOUTS[layout]
    small, large = small_and_large(ids, rows, time_conditioning=False)
    large.save_pretrained(tmp_path)
    xt = torch.full((2, LENGTH), len(ids) - 1)
    expected = small.eval()(xt).logits
    for model in (large.eval(), AutoModel.from_pretrained(tmp_path).eval()):
        logits = model(torch.tensor(ids)[xt]).logits
        torch.testing.assert_close(logits[..., ids], expected, rtol=1e-5, atol=1e-5)
        no_token = [i for i in range(rows) if i not in ids]
        assert (logits[..., no_token] == torch.finfo(logits.dtype).min).all()


def test_a_configuration_without_such_rows_is_saved_as_before(tmp_path):
    MD4Config(vocab_size=9).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("unused_token_ids") is None
    assert MD4Config(vocab_size=9).num_data_tokens == 8
    assert MD4Config(vocab_size=9, mask_token_id=2, unused_token_ids=[[0, 1], [5, 9]]).num_data_tokens == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_scored_has_no_id_without_a_token_in_its_place(layout, monkeypatch):
    """A compiled step has a row for every position, also where nothing is scored."""
    small, large = small_and_large(*LAYOUTS[layout])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ids = torch.tensor(LAYOUTS[layout][0])
    labels = torch.tensor([[0, 1, 2, -100, -100, 3, 4, 0]] * 2)
    losses = []
    for model, tokens in ((small, torch.arange(len(ids))), (large, ids)):
        x0 = torch.where(labels >= 0, tokens[labels.clamp(min=0)], -100)
        xt = torch.where(labels >= 0, tokens[-1], tokens[0])
        losses.append(model.train()(input_ids=xt, timesteps=torch.tensor([0.3, 0.8]), labels=x0).loss)
    torch.testing.assert_close(losses[1], losses[0])


def test_labels_without_a_token_are_refused():
    _, model = small_and_large(*LAYOUTS["gaps"])
    with pytest.raises(ValueError, match="`labels` must be ids of tokens"):
        model(input_ids=torch.full((1, LENGTH), 10), timesteps=torch.ones(1), labels=torch.full((1, LENGTH), 3))


def test_what_has_no_token_is_known_after_any_number_of_resizings():
    def resized(rows, gaps, *arguments, **options):
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = MD4ForMaskedDiffusion(
            MD4Config(vocab_size=rows, unused_token_ids=gaps, mask_token_id=rows - 1, **sizes)
        )
        model.resize_token_embeddings(*arguments, **options)
        return model

    model = resized(12, None, pad_to_multiple_of=8)
    assert model.config.unused_token_ids == [[12, 16]]
    model.resize_token_embeddings(pad_to_multiple_of=8)
    assert model.config.unused_token_ids == [[12, 16]]
    model.resize_token_embeddings(pad_to_multiple_of=32)
    assert model.config.unused_token_ids == [[12, 32]]
    model.resize_token_embeddings(14, pad_to_multiple_of=8)
    assert model.config.unused_token_ids == [[14, 16]]
    assert resized(20, [[4, 10]], 8).config.unused_token_ids == [[4, 7]]  # the last row is the mask's


@pytest.mark.parametrize("ranges", [[[3, 3]], [[4, 2]], [[5, 12]], [[-1, 2]], [[4, 6], [1, 2]], [[1, 2, 3]], [[6, 9]]])
def test_ranges_that_are_none_are_errors(ranges):
    with pytest.raises(ValueError, match="`unused_token_ids` must be ascending ranges"):
        MD4Config(vocab_size=9, mask_token_id=8, unused_token_ids=ranges)


@pytest.mark.parametrize("temperature", [1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_temperature_draws_a_suppressed_token(temperature, dtype):
    logits = torch.zeros(4, 500, 6, dtype=dtype)
    logits[..., [1, 4]] = torch.finfo(dtype).min
    scheduler = MaskedDiffusionScheduler(mask_token_id=5)
    scheduler.set_timesteps(1)
    xt = torch.full((4, 500), 5)
    drawn = scheduler.step(logits, scheduler.timesteps[0], xt, temperature=temperature, generator=seeded()).prev_sample
    assert set(drawn.unique().tolist()) <= {0, 2, 3, 5}


def test_resizing_with_padding_records_what_has_no_token():
    model = random_model(258, LENGTH, std=0.1, time_conditioning=False)
    model.resize_token_embeddings(258, pad_to_multiple_of=64)
    assert (model.config.vocab_size, model.config.unused_token_ids) == (320, [[258, 320]])
    model.resize_token_embeddings(300, pad_to_multiple_of=64)
    assert model.config.unused_token_ids == [[300, 320]]
    model.resize_token_embeddings(300)
    assert model.config.unused_token_ids is None


# Tokenizers -----------------------------------------------------------------------------------------------------------


def tokenizer_with_gaps(folder, eos_id):
    """A tokenizer of letters whose EOS token has this id, saved without a mask token and opened by name."""
    vocab = {character: i for i, character in enumerate("abcdefghijklmnopqrstuvwxyz ")} | {"<eos>": eos_id}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("eos_id", [27, 28, 30, 40])
def test_the_mask_token_is_above_all_ids_and_takes_none_of_them(tmp_path, eos_id):
    tokenizer = tokenizer_with_gaps(tmp_path / "first", eos_id)
    tokenizer.save_pretrained(tmp_path / "again")
    for opened in (tokenizer, load_tokenizer(str(tmp_path / "again"))):
        assert opened.mask_token_id == eos_id + 1 and opened.eos_token_id == eos_id
        ids = opened("ab[MASK]<eos>").input_ids
        assert ids == [0, 1, eos_id + 1, eos_id] and len(set(opened.get_vocab().values())) == 29


def test_models_train_and_sample_with_more_rows_than_tokens(tmp_path):
    tokenizer = build_byte_tokenizer()
    model = random_model(258, LENGTH, std=0.1, time_conditioning=False, mask_token_id=257)
    model.resize_token_embeddings(320)  # as one that another library has padded
    model.lm_head.weight.data[258:] = 1.0
    model.model.norm.weight.data.fill_(3.0)
    rows = [{"input_ids": [65 + i % 3] * LENGTH} for i in range(16)]
    trainer = MD4Trainer(
        model=model, args=training_arguments(tmp_path), train_dataset=rows, processing_class=tokenizer
    )
    assert model.config.unused_token_ids == [[258, 320]]
    trainer.train()
    sampled = quiet(make_pipeline(model, tokenizer))(num_samples=20, num_inference_steps=4, output_type="ids")
    assert max(int(row.max()) for row in sampled.sequences) < 257


def test_a_denoiser_of_ones_own_is_never_drawn_outside_the_tokenizer():
    class Denoiser(PreTrainedModel):
        config_class = PreTrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, input_ids, timesteps, position_mask, **kwargs):
            logits = self.scale * torch.zeros(int(position_mask.sum()), self.config.vocab_size)
            logits[:, 258:] = 50.0  # of the rows that fill up the vocabulary
            return MaskedDiffusionOutput(logits=logits)

    config = PreTrainedConfig(vocab_size=320, mask_token_id=257, max_position_embeddings=LENGTH)
    pipeline = MaskedDiffusionPipeline(Denoiser(config), MaskedDiffusionScheduler(), build_byte_tokenizer())
    sampled = quiet(pipeline)(num_samples=8, num_inference_steps=4, output_type="ids").sequences
    assert max(int(row.max()) for row in sampled) < 257


def test_more_tokens_than_rows_is_the_error(tmp_path):
    tokenizer = tokenizer_with_gaps(tmp_path, 40)
    config = MD4Config(vocab_size=64, mask_token_id=41)
    match_tokenizer(tokenizer, config)
    assert config.unused_token_ids == [[27, 40], [42, 64]]
    with pytest.raises(ValueError, match="`tokenizer` must have ids below .* rows, 30, got up to 41"):
        match_tokenizer(tokenizer, MD4Config(vocab_size=30))
    with pytest.raises(ValueError, match=r"`tokenizer` must have the model's mask id 63, got 41 \('\[MASK\]'\)"):
        match_tokenizer(tokenizer, MD4Config(vocab_size=64))


@pytest.mark.parametrize("multiple", [1, 64])
def test_the_command_trains_with_gaps_and_padding(tmp_path, multiple):
    tokenizer_with_gaps(tmp_path / "gaps", 40)
    (tmp_path / "text.txt").write_text("plain text " * 200)
    sizes = ["--preset", "tiny", "--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
    data = ["--tokenizer", str(tmp_path / "gaps"), "--data", str(tmp_path / "text.txt"), "--block_size", "16"]
    run = ["--max_steps", "2", "--output_dir", str(tmp_path / "run"), "--card_samples", "0"]
    main(["train", *sizes, *data, *run, "--pad_vocab_to_multiple_of", str(multiple)])
    config = MD4Config.from_pretrained(tmp_path / "run")
    padding = [[42, 64]] if multiple == 64 else []
    assert (config.vocab_size, config.unused_token_ids) == (64 if padding else 42, [[27, 40], *padding])
    main(["sample", str(tmp_path / "run"), "--num_samples", "1", "--num_inference_steps", "2"])
