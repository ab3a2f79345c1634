# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints whose network is one of transformers, published under another type: recognised, equal, or refused."""

import json

import pytest
import torch
from commands import failure, outcome
from peers import publish, state_of, words_tokenizer
from safetensors.torch import load_file, save_file
from tiny import quiet
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from md4_hf import MD4ForMaskedDiffusion, load_pipeline
from md4_hf.hub.convert import convert


ROWS, WORDS, LENGTH = 40, 35, 12
SIZES = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 24}
SPECIAL = {"pad_token_id": 0, "cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
NETWORKS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 77.0}),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
    "gpt2": GPT2Config(vocab_size=ROWS, n_embd=32, n_layer=3, n_head=4, n_positions=24),
    "bert": BertConfig(**SIZES, pad_token_id=0),
    "roberta": RobertaConfig(**{**SIZES, "max_position_embeddings": 25, "pad_token_id": 0}),
    "modernbert": ModernBertConfig(**SIZES, **SPECIAL, global_attn_every_n_layers=2, local_attention=4),
}
MASKED = ("bert", "roberta", "modernbert")
# Fields that say of which type a checkpoint is.
DRESSES = {
    "its own type": lambda name, kind: {},
    "its type with more": lambda name, kind: {"model_type": f"a2d-{name}", "architectures": ["Diffusion"]},
    "its class with more": lambda name, kind: {"model_type": "diffusion", "architectures": [f"A2D{kind}LMHeadModel"]},
    "nothing": lambda name, kind: {"model_type": "diffusion", "architectures": None},
}


def language_model(name, seed=0):
    torch.manual_seed(seed)
    auto = AutoModelForMaskedLM if name in MASKED else AutoModelForCausalLM
    model = auto.from_config(NETWORKS[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def redressed(folder, name, dress="its type with more", **fields):
    """A language model's checkpoint in another dress, with a tokenizer that names no mask; and the model."""
    model = language_model(name)
    model.save_pretrained(folder)
    words_tokenizer(WORDS).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    kind = type(model).__name__.partition("For")[0].partition("LMHead")[0]
    config = json.loads((folder / "config.json").read_text()) | DRESSES[dress](name, kind) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return model


def some_ids():
    return torch.randint(3, WORDS, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same_logits(folder, model, is_masked):
    """The converted model's are those of the language model that attends both ways, but for the mask and no tokens."""
    found = AutoModel.from_pretrained(folder)
    both_ways = {} if is_masked else {"is_causal": False}
    expected = model(some_ids(), **both_ways).logits
    others = [found.config.mask_token_id, *range(WORDS, ROWS)]
    tokens = [i for i in range(ROWS) if i not in others]
    logits = found(some_ids()).logits
    torch.testing.assert_close(logits[..., tokens], expected[..., tokens], atol=1e-5, rtol=0.0)
    assert (logits[..., others] == torch.finfo(logits.dtype).min).all()


@pytest.mark.parametrize(
    ("name", "dress"),
    [
        ("llama", "its type with more"),
        ("qwen2", "its class with more"),
        ("qwen2", "nothing"),
        ("qwen3", "its type with more"),
        ("qwen3", "nothing"),
        ("gpt2", "nothing"),
        ("bert", "its own type"),
        ("roberta", "nothing"),
        ("modernbert", "its class with more"),
        ("modernbert", "nothing"),
    ],
)
def test_the_network_is_recognised_and_attends_both_ways(tmp_path, name, dress):
    model = redressed(tmp_path / "peer", name, dress)
    assert convert(str(tmp_path / "peer"), tmp_path / "out", mask_token="w34") == "transformers"
    assert_same_logits(tmp_path / "out", model, name in MASKED)
    config = AutoModel.from_pretrained(tmp_path / "out").config
    assert (config.mask_token_id, config.unused_token_ids) == (34, [[WORDS, ROWS]])
    pipeline = load_pipeline(str(tmp_path / "out"), device="cpu")
    assert pipeline.tokenizer.mask_token == "w34" and pipeline.scheduler.config.schedule_eps == 0.0


def test_dreams_network_is_a_qwen2_that_predicts_the_next_token(golden, tmp_path):
    tensors, record = golden("peers/dream_h64")
    config = record["config"] | {"model_type": "a2d-qwen2", "architectures": ["A2DQwen2LMHeadModel"]}
    folder = publish(tmp_path / "peer", state_of(tensors), config)
    command = ["convert", folder, "--output_dir", str(tmp_path / "out"), "--predicts_next", "true"]
    status, printed = outcome(command)
    assert status == 0 and "(transformers)" in printed
    model = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(tensors["inputs/input_ids"]).logits
    tokens = [i for i in range(128) if i != record["mask_token_id"]]
    torch.testing.assert_close(
        logits[..., tokens], tensors["outputs/logits_shifted"][..., tokens], atol=1e-4, rtol=0.0
    )


@pytest.mark.parametrize("where", ["config", "tokenizer", "id"])
def test_the_mask_is_that_of_the_config_or_the_tokenizer_unless_it_is_given(tmp_path, where):
    peer = tmp_path / "peer"
    redressed(peer, "llama", **({"mask_token_id": 34} if where == "config" else {}))
    if where == "tokenizer":
        tokenizer = words_tokenizer(WORDS)
        tokenizer.add_special_tokens({"mask_token": "w34"})
        tokenizer.save_pretrained(peer)
    convert(str(peer), tmp_path / "out", mask_token="34" if where == "id" else None)
    assert load_pipeline(str(tmp_path / "out"), device="cpu").tokenizer.mask_token_id == 34


def test_bfloat16_shards_and_old_buffers_are_read(tmp_path):
    model = redressed(tmp_path / "peer", "qwen2").bfloat16()
    state = {key: x.clone() for key, x in model.state_dict().items() if key != "model.embed_tokens.weight"}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # and the head in place of the embedding
    save_file(state, tmp_path / "peer" / "model.safetensors", metadata={"format": "pt"})
    convert(str(tmp_path / "peer"), tmp_path / "out", mask_token="w34")
    found = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "out")
    assert found.dtype == torch.bfloat16 and found.lm_head.weight is found.get_input_embeddings().weight
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)


BAD = {
    "no mask": ({}, {}, r"`mask_token` must be given \(--mask_token\).* 'a2d-llama'.*--backbone_name_or_path"),
    "no such mask": ({}, {"mask_token": "w77"}, "`mask_token` must be a token of the tokenizer, or an id, got 'w77'"),
    "mask behind the rows": ({}, {"mask_token": "40"}, "`mask_token_id` must be"),
    "layers": ({"num_hidden_layers": 2}, {"mask_token": "w34"}, "got also .'model.layers.2"),
    "shapes": ({"intermediate_size": 50}, {"mask_token": "w34"}, r"gate_proj.weight' of shape \(50, 32\)"),
    "blocks": ({"bd_size": 8}, {"mask_token": "w34"}, "`bd_size` must be the length of the text, 24, or be joined by"),
    "other blocks": ({"block_length": 8}, {"mask_token": "w34"}, "Give `block_size` if they do not"),
    "blocks with windows": (
        {"model_type": "a2d-mistral", "block_size": 4, "sliding_window": 8},
        {"mask_token": "w34"},
        "`block_size` must be None for a backbone of type 'mistral' with sliding windows of 8, got 4",
    ),
    "fields": ({"hidden_size": "wide"}, {"mask_token": "w34"}, "`checkpoint` must have the config of a 'llama'"),
    "recurrent": ({"model_type": "a2d-mamba"}, {"mask_token": "w34"}, "attend to all tokens, got 'mamba'"),
    "nothing": (
        {"model_type": "new", "num_hidden_layers": 2},
        {"mask_token": "w34", "family": "transformers"},
        "`model_type` must be a type of transformers in the config, or hold one as a2d-qwen3, got new",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_other_checkpoints_are_refused_and_nothing_is_written(tmp_path, name):
    fields, options, message = BAD[name]
    redressed(tmp_path / "peer", "llama", **{"architectures": ["Diffusion"], **fields})
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "peer"), tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peer"]


def test_tensors_of_no_family_are_an_error_that_lists_families_and_keys(tmp_path):
    publish(tmp_path / "peer", {"encoder.weight": torch.ones(2, 2)}, {"model_type": "new"})
    message = (
        r"recognised as one of \['mdlm'.*'sdar'.*'transformers'\].* type 'new' with the keys \['encoder.weight'\]"
    )
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "peer"), tmp_path / "out")


def test_options_that_contradict_a_family_are_refused(golden, tmp_path, capsys):
    tensors, record = golden("peers/dream_h64")
    folder = publish(tmp_path / "peer", state_of(tensors), record["config"])
    command = ["convert", folder, "--output_dir", str(tmp_path / "out")]
    assert "--predicts_next must be True for a checkpoint of the family 'dream'" in failure(
        capsys, [*command, "--predicts_next", "false"]
    )
    tensors, record = golden("peers/radd_h64")
    folder = publish(tmp_path / "radd", state_of(tensors), record["config"])
    command = ["convert", folder, "--output_dir", str(tmp_path / "out")]
    assert "--mask_token must be 99 for a checkpoint of the family 'radd', got 3" in failure(
        capsys, [*command, "--mask_token", "3"]
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sdar(golden, tmp_path_factory):
    """The record of an SDAR, and the folder that its published form became."""
    tensors, record = golden("peers/sdar_h64_block4")
    root = tmp_path_factory.mktemp("sdar")
    assert convert(publish(root / "peer", state_of(tensors), record["config"]), root / "out") == "sdar"
    return tensors, record, root / "out"


@torch.no_grad()
def test_an_sdar_becomes_a_block_model_with_its_logits(sdar):
    tensors, record, folder = sdar
    model, ids, cache = AutoModel.from_pretrained(folder), tensors["inputs/input_ids"], DynamicCache()
    assert model.config.block_size == record["block_size"]
    cached = [model(block, past_key_values=cache).logits for block in ids.split(record["block_size"], dim=1)]
    tokens = [i for i in range(record["vocab_size_including_mask"]) if i != record["mask_token_id"]]
    for logits in (model(ids).logits, torch.cat(cached, dim=1)):
        torch.testing.assert_close(logits[..., tokens], tensors["outputs/logits"][..., tokens], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "run", ["sequential", "sequential_2", "static", "static_fewer", "dynamic", "dynamic_temperature_top_p"]
)
def test_runs_of_an_sdar_are_runs_of_the_pipeline(sdar, run, use_cache):
    tensors, record, folder = sdar
    settings, start = record["generate"][run], tensors[f"generate/{run}/start"]
    orders = {"sequential": "sequential", "low_confidence_static": "confidence", "low_confidence_dynamic": "threshold"}
    found = quiet(load_pipeline(str(folder), device="cpu"))(
        input_ids=start,
        num_inference_steps=settings["denoising_steps"],
        order=orders[settings["remasking_strategy"]],
        threshold=settings.get("confidence_threshold"),
        logits_processor=[TemperatureLogitsWarper(settings["temperature"]), TopPLogitsWarper(settings["top_p"])],
        temperature=0.0,
        use_cache=use_cache,
        output_type="ids",
    ).sequences
    assert torch.equal(found, tensors[f"generate/{run}/states"][-1])


def test_an_sdar_whose_block_is_all_of_the_text_attends_both_ways(tmp_path):
    model = redressed(tmp_path / "peer", "qwen3", model_type="sdar", architectures=["SDARForCausalLM"])
    config_file = tmp_path / "peer" / "config.json"
    config = json.loads(config_file.read_text()) | {"attn_implementation": "flex_attention"}
    config_file.write_text(json.dumps({**config, "block_size": None}))
    with pytest.raises(ValueError, match="`block_size` must be in the config"):
        convert(str(tmp_path / "peer"), tmp_path / "out", mask_token="w34")
    config_file.write_text(json.dumps({**config, "block_size": 24}))
    assert convert(str(tmp_path / "peer"), tmp_path / "out", mask_token="w34") == "sdar"
    assert_same_logits(tmp_path / "out", model, is_masked=False)
    assert "model.backbone.model.layers.0.self_attn.q_norm.weight" in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize(("name", "predicts_next"), [("llama", False), ("qwen2", True)])
@torch.no_grad()
def test_blocks_that_the_config_names_are_the_model_s(tmp_path, name, predicts_next):
    redressed(tmp_path / "peer", name, block_size=4, bd_size=4, predicts_next=predicts_next)
    convert(str(tmp_path / "peer"), tmp_path / "out", mask_token="w34")
    model, ids = AutoModel.from_pretrained(tmp_path / "out"), some_ids()
    assert (model.config.block_size, model.config.predicts_next) == (4, predicts_next)
    torch.testing.assert_close(model(ids[:, :8]).logits, model(ids).logits[:, :8], atol=1e-5, rtol=0.0)
