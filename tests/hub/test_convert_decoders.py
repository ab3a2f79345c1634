# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""LLaDA and Dream checkpoints in their published form: logits, loss, special ids, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from commands import outcome
from peers import publish, state_of, words_tokenizer
from tiny import losses_of_steps, quiet, same_texts
from transformers import AutoModel

from md4_hf import LoraArguments, MD4ForMaskedDiffusion, add_adapter, load_pipeline
from md4_hf.hub.convert import convert


LLADA, DREAM = "peers/llada_h64", "peers/dream_h64"
every_case = pytest.mark.parametrize("case", [LLADA, DREAM])


@pytest.fixture(scope="module")
def converted(golden, tmp_path_factory):
    """`converted(case)` gives the folder of a record's converted model, with a tokenizer smaller than the model."""
    folders = {}

    def folder_of(case):
        if case not in folders:
            tensors, record = golden(case)
            root = tmp_path_factory.mktemp("decoder")
            source = publish(root / "published", state_of(tensors), record["config"])
            words_tokenizer(record["tokenizer_size"]).save_pretrained(source)
            assert convert(source, root / "converted") == record["family"]
            folders[case] = root / "converted"
        return folders[case]

    return folder_of


def assert_same_logits(found, expected, record):
    """To 1e-4 for the tokenizer's ids, of which the mask is one; the mask and rows without a token are suppressed."""
    tokens = [i for i in range(record["tokenizer_size"]) if i != record["mask_token_id"]]
    torch.testing.assert_close(found[..., tokens], expected[..., tokens], atol=1e-4, rtol=0.0)
    others = [record["mask_token_id"], *range(record["tokenizer_size"], expected.shape[-1])]
    assert (found[..., others] == torch.finfo(found.dtype).min).all()


@pytest.mark.parametrize(("case", "name"), [(LLADA, "logits"), (DREAM, "logits_shifted")])
@torch.no_grad()
def test_logits_are_those_of_the_authors_program(golden, converted, case, name):
    tensors, record = golden(case)
    model = AutoModel.from_pretrained(converted(case))
    assert type(model) is MD4ForMaskedDiffusion
    assert_same_logits(model(tensors["inputs/input_ids"]).logits, tensors[f"outputs/{name}"], record)


@every_case
@torch.no_grad()
def test_padding_is_not_attended_to(golden, converted, case):
    tensors, record = golden(case)
    model, mask = AutoModel.from_pretrained(converted(case)), tensors["inputs/attention_mask"]
    model.config.predicts_next = False  # Dream's are recorded without the shift
    logits = model(tensors["inputs/input_ids"], attention_mask=mask).logits
    expected = tensors["outputs/logits_attention_mask"]
    seen = mask.bool()
    assert_same_logits(logits[seen], expected[seen], record)


@torch.no_grad()
def test_the_bound_is_the_pre_training_loss_but_for_ids_that_are_no_data(golden, converted):
    """LLaDA's loss counts logits of the mask and of rows without a token, which its model has to learn to avoid."""
    tensors, record = golden(LLADA)
    model = AutoModel.from_pretrained(converted(LLADA))
    x0, xt, p = (tensors[f"inputs/{name}"] for name in ("x0", "input_ids", "p_mask"))
    p = p.reshape(len(x0), -1)[:, 0]
    found = model(input_ids=xt, labels=x0, timesteps=p).token_nelbo
    logits, tokens = tensors["outputs/logits"], torch.ones(128, dtype=torch.bool)
    tokens[record["tokenizer_size"] :] = tokens[record["mask_token_id"]] = False
    excess = (logits.logsumexp(-1) - logits[..., tokens].logsumexp(-1)) / p[:, None]
    expected = tensors["outputs/pretrain_loss_token"] - excess * (xt == record["mask_token_id"])
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=0.0)


@every_case
def test_special_ids_and_tokenizer_come_along(golden, converted, case):
    _, record = golden(case)
    pipeline = quiet(load_pipeline(str(converted(case)), device="cpu"))
    config, source = pipeline.model.config, record["config"]
    ids = ("mask_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(config, name) for name in ids] == [source[name] for name in ids]
    assert config.unused_token_ids == [[record["tokenizer_size"], 128]]
    assert pipeline.tokenizer.mask_token_id == record["mask_token_id"]
    assert (pipeline.scheduler.config.timestep_grid, pipeline.scheduler.config.schedule_eps) == ("uniform", 0.0)
    assert len(pipeline(num_samples=2, length=8, num_inference_steps=4).texts) == 2


def test_dreams_own_tokenizer_is_opened_without_its_code(golden, tmp_path):
    """The published files name a class of code beside them, which is that of Qwen2."""
    tensors, record = golden(DREAM)
    folder = Path(publish(tmp_path / "peer", state_of(tensors), record["config"]))
    symbols = [chr(i) for i in (*range(33, 127), *range(0xA1, 0xA1 + 11), *range(0xAE, 0xAE + 7))]
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    fields = {"tokenizer_class": "DreamTokenizer", "mask_token": "<|mask|>", "chat_template": "{{ messages }}"}
    fields["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    mask = {"content": "<|mask|>", "special": True, "normalized": False}
    mask |= dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    fields["added_tokens_decoder"] = {"112": mask}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "tokenization_dream.py").write_text("raise SystemExit('ran')")
    convert(str(folder), tmp_path / "out")
    tokenizer = load_pipeline(str(tmp_path / "out"), device="cpu").tokenizer
    assert tokenizer.mask_token_id == 112 and tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.decode(tokenizer("abc").input_ids) == "abc"


@every_case
def test_a_converted_model_trains_an_adapter(converted, case):
    model = add_adapter(MD4ForMaskedDiffusion.from_pretrained(converted(case)).train(), LoraArguments(lora_r=2))
    losses = losses_of_steps(model, lambda: same_texts(100, 4, 12), learning_rate=0.1)
    assert losses[-1] < losses[0]


@every_case
def test_the_harness_has_the_likelihood_of_an_answer_of_one_token(converted, case):
    """For one token the bound is exact: the probability that the model gives it, seeing the question."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from md4_hf.evaluation.harness import MD4LM

    lm = MD4LM(str(converted(case)), draws=2, device="cpu")
    pairs = [("w7 w8 w9", " w20"), ("w3", " w50")]
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    for (question, answer), (bound, is_greedy) in zip(pairs, found, strict=True):
        ids = lm.tokenizer(question).input_ids
        (token,) = lm.tokenizer(answer).input_ids
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*ids, lm.tokenizer.mask_token_id]])).logits[0, -1]
        assert bound == pytest.approx(logits.log_softmax(-1)[token].item(), abs=1e-4)
        assert is_greedy == (logits.argmax().item() == token)


@pytest.mark.slow
@every_case
def test_all_commands_take_a_converted_model(converted, case, tmp_path):
    model, tuned, text = str(converted(case)), str(tmp_path / "tuned"), str(tmp_path / "words.txt")
    Path(text).write_text(" ".join(f"w{i % 90}" for i in range(900)))
    steps, blocks = ["--num_inference_steps", "3"], ["--block_size", "16", "--use_cpu"]
    training = ["--output_dir", tuned, "--max_steps", "2", "--per_device_train_batch_size", "4", "--lora_r", "4"]
    for command in (
        ["evaluate", model, "--validation_data", text, "--draws", "1", *blocks],
        ["sample", model, "--prompt", "w3 w4", "--length", "8", *steps],
        ["infill", model, "w1 w2 <mask:3> w4", *steps],
        ["score", model, "--num_samples", "3", "--length", "8", "--references", text, *steps],
        ["finetune", model, "--data", text, *training, *blocks],
        ["evaluate", tuned, "--validation_data", text, "--draws", "1", *blocks],
        ["infill", tuned, "w1 w2 <mask:3> w4", *steps],
        ["export", tuned, str(tmp_path / "exported")],
    ):
        status, printed = outcome(command)
        assert status == 0, printed
    assert load_pipeline(str(tmp_path / "exported"), device="cpu").tokenizer.decode([5]) == "w5"


@pytest.mark.parametrize(("case", "head"), [(LLADA, "model.transformer.ff_out.weight"), (DREAM, "lm_head.weight")])
def test_tied_heads_and_bfloat16_are_kept(golden, tmp_path, case, head):
    tensors, record = golden(case)
    state = {key: x.bfloat16() for key, x in state_of(tensors).items() if key != head}
    tied = {"weight_tying": True, "tie_word_embeddings": True}
    convert(publish(tmp_path / "peer", state, record["config"] | tied), tmp_path / "out")
    model = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.get_input_embeddings().weight and model.dtype == torch.bfloat16


BAD = {
    "normed embedding": (LLADA, {"input_emb_norm": True}, "`input_emb_norm` must be False"),
    "biases": (LLADA, {"include_qkv_bias": True}, "`include_qkv_bias` must be False"),
    "activation": (LLADA, {"activation_type": "swiglu"}, "`activation_type` must be 'silu'"),
    "width": (LLADA, {"mlp_hidden_size": 128}, r"ff_proj.weight' of shape \(128, 64\) by its config, got \(160, 64\)"),
    "rows": (LLADA, {"embedding_size": 120}, r"wte.weight' of shape \(120, 64\)"),
    "no mask": (LLADA, {"mask_token_id": None}, "`mask_token_id` must be int, got None"),
    "layers": (DREAM, {"num_hidden_layers": 1}, "got also .'model.layers.1"),
    "window": (DREAM, {"use_sliding_window": True}, "`use_sliding_window` must be False"),
    "rope": (DREAM, {"rope_scaling": {"type": "yarn"}}, "`rope_scaling` must be None"),
    "heads": (DREAM, {"num_key_value_heads": 4}, "k_proj"),
}


@pytest.mark.parametrize("name", BAD)
def test_another_network_is_refused_and_nothing_is_written(golden, tmp_path, name):
    case, fields, message = BAD[name]
    tensors, record = golden(case)
    folder = publish(tmp_path / "peer", state_of(tensors), record["config"] | fields)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peer"]
