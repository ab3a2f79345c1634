# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training of models whose network is a backbone of transformers: annealed attention, rates, the command line."""

import json
import math

import pytest
import torch
from datasets import Dataset
from tiny import training_arguments
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

from md4_hf import MD4Config, MD4ForMaskedDiffusion, MD4Trainer, build_byte_tokenizer, load_model
from md4_hf.cli import main
from md4_hf.objective.noise import annealed_attention
from md4_hf.training.batches import annealed_mask
from md4_hf.training.optimizers import muon_with_adamw


LENGTH = 16
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A causal language model of bytes with its tokenizer, which has a mask token that the model has no row for."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, vocab_size=257, max_position_embeddings=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    return folder


def make_trainer(backbone, folder, **options):
    model = MD4ForMaskedDiffusion.from_backbone(backbone, dtype=torch.float32)
    rows = [{"input_ids": torch.randint(256, (LENGTH,)).tolist()} for _ in range(32)]
    return MD4Trainer(model, training_arguments(folder, **options), train_dataset=Dataset.from_list(rows))


def test_later_tokens_become_visible_with_a_probability_that_rises_from_0_to_1():
    length, device = 64, torch.device("cpu")
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    assert torch.equal(annealed_attention(0, 0, 10, length, device), earlier)
    later = length * (length - 1) / 2
    for step in (3, 7):
        is_open = annealed_attention(0, step, 10, length, device)
        assert is_open[earlier].all()
        share, error = step / 10, math.sqrt(step / 10 * (1 - step / 10) / later)
        assert abs(is_open[~earlier].float().mean().item() - share) < 4 * error
        assert torch.equal(is_open, annealed_attention(0, step, 10, length, device))
        assert not torch.equal(is_open, annealed_attention(1, step, 10, length, device))


def test_padding_stays_hidden_while_attention_is_annealed(tmp_path):
    args = training_arguments(tmp_path, attention_annealing_steps=2)
    inputs = {"labels": torch.zeros(1, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 0]])}
    expected = [[True, False, False], [True, True, False], [True, True, True]]
    assert annealed_mask(inputs, args, 0, 3).tolist() == [[expected]]


def test_the_first_step_of_annealing_is_causal_and_those_after_it_see_all(backbone, tmp_path):
    trainer, masks = make_trainer(backbone, tmp_path, attention_annealing_steps=2), []
    forward = trainer.model.model.forward

    def spy(*args, **kwargs):
        masks.append(kwargs["attention_mask"])
        return forward(*args, **kwargs)

    trainer.model.model.forward = spy
    trainer.train()
    assert masks[0].shape == (8, 1, LENGTH, LENGTH)
    earlier = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    assert (masks[0] == earlier).all() and masks[1][:, 0].any(dim=0)[~earlier].float().mean() > 0.2
    assert masks[2] is None and masks[3] is None


def test_the_noise_of_annealing_does_not_depend_on_the_micro_batches(backbone, tmp_path):
    weights = []
    for name, sizes in (("whole", (8, 1)), ("parts", (2, 4))):
        sizes = dict(zip(("per_device_train_batch_size", "gradient_accumulation_steps"), sizes, strict=True))
        torch.manual_seed(0)
        trainer = make_trainer(backbone, tmp_path / name, attention_annealing_steps=4, max_steps=3, **sizes)
        trainer.train()
        weights.append([parameter.detach() for parameter in trainer.model.parameters()])
    assert_close(*weights, rtol=0, atol=2e-5)


def test_layers_of_the_backbone_have_a_rate_of_their_own_and_keep_their_decay(backbone, tmp_path):
    options = {"backbone_lr_multiplier": 0.1, "weight_decay": 0.5, "learning_rate": 1e-2}
    trainer = make_trainer(backbone, tmp_path, **options)
    optimizer = trainer.create_optimizer()
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    model = trainer.model
    assert of.keys() == {id(p) for p in model.parameters()}
    layer = model.model.backbone.model.layers[0]
    for parameter, rate, decay in (
        (model.get_input_embeddings().weight, 1e-2, 0.5),
        (model.lm_head.weight, 1e-2, 0.5),
        (layer.mlp.up_proj.weight, 1e-3, 0.5),
        (layer.input_layernorm.weight, 1e-3, 0.0),
    ):
        assert of[id(parameter)]["lr"] == pytest.approx(rate)
        assert of[id(parameter)]["weight_decay"] == decay


@pytest.mark.parametrize("kind", [BertConfig, GPT2Config, LlamaConfig])
def test_muon_has_the_matrices_of_the_blocks_whatever_list_they_are_in(kind):
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MD4ForMaskedDiffusion(MD4Config(backbone="auto", backbone_config=kind(**sizes)))
    muon, adamw = muon_with_adamw(model, 1e-3, (0.9, 0.99), 0.0).parts
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert len(matrices) == 2 * {BertConfig: 6, GPT2Config: 4, LlamaConfig: 7}[kind]
    assert not any("embed" in name or "lm_head" in name or "wte" in name for name in matrices)
    assert matrices | {names[id(p)] for group in adamw.param_groups for p in group["params"]} == {*names.values()}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backbone_lr_multiplier": 0.0}, "`backbone_lr_multiplier` must be > 0"),
        ({"backbone_lr_multiplier": 2.0, "use_muon": True}, "`backbone_lr_multiplier` must be 1 with `use_muon`"),
        ({"attention_annealing_steps": -1}, "`attention_annealing_steps` must be >= 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        training_arguments(tmp_path, **options)


@pytest.mark.parametrize("is_causal", [True, None])
def test_annealing_is_refused_where_no_attention_is_opened(backbone, tmp_path, is_causal):
    if is_causal:
        model = MD4ForMaskedDiffusion.from_backbone(backbone, is_causal=True)
    else:
        config = BertConfig(**SIZES, vocab_size=30)
        model = MD4ForMaskedDiffusion(MD4Config(backbone="auto", backbone_config=config))
    with pytest.raises(ValueError, match="`attention_annealing_steps` must be 0 for a model that was not"):
        MD4Trainer(model, training_arguments(tmp_path, attention_annealing_steps=2))


def test_annealing_is_refused_where_blocks_say_what_is_seen(backbone, tmp_path):
    model = MD4ForMaskedDiffusion.from_backbone(backbone, block_size=4)
    with pytest.raises(ValueError, match="`attention_annealing_steps` must be 0 for a model whose blocks see"):
        MD4Trainer(model, training_arguments(tmp_path, attention_annealing_steps=2))


@pytest.mark.parametrize("blocks", [None, 8])
def test_a_backbone_trains_is_evaluated_and_finetuned_from_the_command_line(backbone, tmp_path, capsys, blocks):
    text = tmp_path / "my.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 40)
    run, common = tmp_path / "run", ["--data", str(text), "--per_device_train_batch_size", "4", "--max_steps", "2"]
    common += ["--save_strategy", "no"]
    options = ["--predicts_next", "true", "--backbone_lr_multiplier", "0.5"]
    options += ["--diffusion_block_size", "8"] if blocks else ["--attention_annealing_steps", "1"]
    options += ["--block_size", "24", "--ema_decay", "0", "--masking_schedule", "cosine"]
    assert not main(["train", "--backbone_name_or_path", str(backbone), *options, *common, "--output_dir", str(run)])
    config = json.loads((run / "config.json").read_text())
    assert (config["backbone"], config["vocab_size"], config["mask_token_id"]) == ("auto", 258, 257)
    assert config["block_size"] == blocks
    assert config["backbone_config"]["model_type"] == "llama" and config["backbone_config"]["is_causal"] is False
    assert (
        config["predicts_next"] and config["masking_schedule"] == "cosine" and config["max_position_embeddings"] == 24
    )
    card = (run / "README.md").read_text()
    assert "2 layers of width 16, llama of transformers, bidirectional" in card
    assert not main(["evaluate", str(run), "--data", str(text), "--draws", "1", "--estimator", "any_order"])
    length = "50" if blocks else "8"
    assert not main(["sample", str(run), "--length", length, "--num_inference_steps", "2", "--quiet"])
    adapter = tmp_path / "adapter"
    assert not main(["finetune", str(run), *common, "--output_dir", str(adapter)])
    assert load_model(str(adapter)).config.backbone == "auto"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--hidden_size", "32"], "--hidden_size must be left out with --backbone_name_or_path"),
        (["--objective", "ar"], '--objective must be "md4" or "genmd4" with --backbone_name_or_path'),
        (["--block_size", "65"], "--block_size must be at most the model's 64 tokens"),
        (["--time_conditioning", "true"], "--time_conditioning must be left out"),
        (["--diffusion_block_size", "2000"], "--diffusion_block_size must fit into the model's length, got 2000"),
        (
            ["--diffusion_block_size", "4", "--keep_causal", "true"],
            "--diffusion_block_size must be None for a backbone",
        ),
        (["--model_name_or_path", "runs/x"], "--model_name_or_path must be left out with --backbone_name_or_path"),
        (
            ["--document_mask", "true", "--attention_annealing_steps", "3"],
            "--attention_annealing_steps must be left out with --document_mask, got 3",
        ),
        (["--tokenizer", "text8"], None),
    ],
)
def test_options_that_do_not_fit_a_backbone_end_before_anything_is_written(
    backbone, tmp_path, capsys, options, message
):
    text, run = tmp_path / "my.txt", tmp_path / "run"
    text.write_text("some text, and more of it. " * 40)
    command = ["train", "--backbone_name_or_path", str(backbone), "--data", str(text), "--output_dir", str(run)]
    if message is None:  # a smaller tokenizer fits; its mask takes the row behind its tokens
        assert not main([*command, *options, "--prepare_only", "true"])
        return
    with pytest.raises(SystemExit):
        main([*command, *options])
    printed = capsys.readouterr().err
    assert message in printed and "caused by: --block_size" not in printed and not run.exists()
