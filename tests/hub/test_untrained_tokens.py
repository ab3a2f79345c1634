# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Tokens that a base was never trained on are found by its head, and an adapter on them trains the head too."""

import json

import pytest
import torch
from datasets import Dataset
from tiny import random_model, training_arguments

from md4_hf import LoraArguments, MD4Config, MD4ForMaskedDiffusion, MD4Trainer, build_byte_tokenizer, load_model
from md4_hf.cli import main
from md4_hf.hub.untrained_tokens import train_head_too, untrained_ids


LENGTH, EOS = 32, 256
SEEN = sorted(set(b"the quick brown fox"))
QUICK = "--save_strategy no --eval_strategy no --final_eval_draws 1 --card_samples 0 --use_cpu".split()


def new_model(**kwargs):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    torch.manual_seed(0)
    return MD4ForMaskedDiffusion(MD4Config(vocab_size=258, mask_token_id=257, **{**sizes, **kwargs}))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base of bytes that has seen some letters, and no EOS."""
    folder = tmp_path_factory.mktemp("untrained") / "base"
    rows = Dataset.from_dict({"input_ids": [list((b"the quick brown fox " * 2)[:LENGTH])] * 64})
    options = {"max_steps": 30, "learning_rate": 1e-2, "weight_decay": 0.1}
    trainer = MD4Trainer(model=new_model(), args=training_arguments(folder, **options), train_dataset=rows)
    trainer.train()
    trainer.model.save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    return folder


def test_the_ids_that_a_training_has_not_seen_are_found(base):
    unseen = sorted(set(range(257)) - set(SEEN))
    assert untrained_ids(load_model(str(base)), range(258)) == unseen
    assert untrained_ids(load_model(str(base)), [*SEEN, EOS]) == [EOS]
    half = load_model(str(base), dtype=torch.bfloat16)
    assert untrained_ids(half, range(258)) == unseen


def test_a_new_head_knows_no_token_and_random_rows_are_told_apart():
    assert untrained_ids(new_model(unused_token_ids=[[10, 20]]), [1, 2, 15, 257]) == [1, 2]
    assert untrained_ids(random_model(258, LENGTH, std=0.1), range(258)) == []


def test_one_token_alone_can_be_told_from_the_others(base):
    model = load_model(str(base))
    with torch.no_grad():
        model.lm_head.weight[:EOS] += torch.randn(EOS, 32)
    assert untrained_ids(model, range(258)) == []


def test_layers_that_are_saved_already_are_not_named_twice():
    model = new_model()
    assert train_head_too(model, LoraArguments()).modules_to_save == "lm_head,model.embed_tokens"
    asked = LoraArguments(modules_to_save="lm_head,o_proj")
    assert train_head_too(model, asked).modules_to_save == "lm_head,o_proj,model.embed_tokens"


def pairs_of(tmp_path, response):
    path = tmp_path / "pairs.jsonl"
    path.write_text((json.dumps({"prompt": "the ", "response": response}) + "\n") * 4)
    columns = ["--prompt_column", "prompt", "--response_column", "response"]
    return [
        "--data",
        str(path),
        "--validation_data",
        str(path),
        *columns,
        *QUICK,
        "--output_dir",
        str(tmp_path / "out"),
    ]


def test_fine_tuning_on_eos_trains_and_saves_the_head_and_says_so(base, tmp_path, capsys):
    main(["finetune", str(base), *pairs_of(tmp_path, "fox"), "--max_steps", "120", "--learning_rate", "2e-2"])
    printed = capsys.readouterr().out
    assert "never trained on '<|endoftext|>', which the data have: lm_head and model.embed_tokens train in" in printed
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"]
    assert set(saved) == {"lm_head", "model.embed_tokens"}
    result = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert result["eval_loss"] < 0.5, "with the head frozen it stays at ln(241) = 5.5"
    main(["sample", str(tmp_path / "out"), "--prompt", "the ", "--temperature", "0", "--device", "cpu"])
    text = capsys.readouterr().out.splitlines()[-1]
    assert text.startswith("the ") and len(text) < 12, "EOS ends a response that is as short as those it has seen"


def test_fine_tuning_on_known_tokens_leaves_the_head_alone(base, tmp_path, capsys):
    main(["finetune", str(base), *pairs_of(tmp_path, "quick fox"), "--eos", "none", "--max_steps", "1"])
    assert "never trained" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] is None
