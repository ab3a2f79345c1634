# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 finetune` and `md4 evaluate` on conversations: columns are found, answers alone are scored, rows are packed."""

import json
import math
from pathlib import Path

import pytest
import torch
from commands import failure
from tiny import random_model
from transformers import AutoTokenizer

from md4_hf import MD4Config, MD4ForMaskedDiffusion, build_byte_tokenizer, build_text8_tokenizer, load_model
from md4_hf.cli import main


QUICK = "--save_strategy no --eval_strategy no --final_eval_draws 8 --card_samples 0 --use_cpu".split()
SHORT = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    MD4ForMaskedDiffusion(MD4Config(vocab_size=258, mask_token_id=257, **sizes)).save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a file of conversations and a chat template, where commands run."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for n in range(16):
        turns = [("user", f"say {n}"), ("assistant", "yes"), ("user", "again"), ("assistant", "yes yes")]
        rows.append({"id": n, "messages": [{"role": role, "content": text} for role, text in turns]})
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "short.jinja").write_text(SHORT)
    return tmp_path


def finetune(base, out, *options):
    options = ("--data", "chat.jsonl", "--chat_template", "short.jinja", *options)
    main(["finetune", str(base), *options, *QUICK, "--output_dir", out])
    return json.loads(Path(out, "eval_results.json").read_text())


def evaluated(capsys, model, *options):
    capsys.readouterr()
    main(["evaluate", str(model), "--draws", "8", *options])
    return capsys.readouterr().out


@pytest.mark.parametrize("packing", [[], ["--packing"]], ids=["rows", "packed"])
def test_fine_tuning_on_conversations_lowers_the_loss_of_their_answers(packing, base, folder, capsys):
    after = finetune(base, "after", "--eos", "scored", "--learning_rate", "0.01", "--max_steps", "40", *packing)
    out = capsys.readouterr().out
    assert "conversations of the column 'messages'; EOS: scored" in out
    assert "training data: 28 of 28 answers in 14 conversations (0 too long, 0 with an empty response left out)" in out
    assert ("28 examples in" in out) == bool(packing)
    assert after["eval_num_tokens"] == 2 * (len("yes") + len("yes yes") + 2), "answers and their ends alone"
    assert after["eval_loss"] < 0.5 * math.log(257), "the head of the base is zero"
    assert f"{after['eval_loss']:9.4f}" in evaluated(capsys, "after"), "by the record of the run"
    assert AutoTokenizer.from_pretrained("after").chat_template == SHORT
    card = (folder / "after" / "README.md").read_text()
    assert "u:say 14" in card and "short.jinja" not in card


def test_all_weights_are_trained_and_saved_as_a_model(base, folder, capsys):
    result = finetune(base, "full", "--full", "--eos", "scored", "--learning_rate", "0.01", "--max_steps", "40")
    assert result["eval_loss"] < 0.5 * math.log(257)
    before, after = load_model(str(base)).state_dict(), load_model("full").state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("qkv_proj" in name for name in changed) and "lm_head.weight" in changed
    assert not list((folder / "full").glob("adapter*")) and (folder / "full" / "chat_template.jinja").exists()
    assert f"{result['eval_loss']:9.4f}" in evaluated(capsys, "full")
    assert "--lora_r must be left out with --full" in failure(
        capsys, ["finetune", str(base), "--data", "chat.jsonl", "--full", "--lora_r", "4", "--output_dir", "x"]
    )


def test_an_evaluation_finds_the_columns_of_its_data_and_names_what_is_missing(base, folder, capsys):
    data = ["--validation_data", "chat.jsonl"]
    message = failure(capsys, ["evaluate", str(base), *data])
    assert "`tokenizer` must have a chat template" in message
    assert "tokens in blocks of 64" in evaluated(capsys, base, *data, "--chat_template", "short.jinja")
    text8 = folder / "text8"
    random_model(28, 64, std=0.1, mask_token_id=27).save_pretrained(text8)
    build_text8_tokenizer().save_pretrained(text8)
    message = failure(capsys, ["evaluate", str(text8), *data, "--chat_template", "short.jinja"])
    assert '--eos must be "none" for a tokenizer without an EOS token' in message
    (folder / "other.jsonl").write_text(json.dumps({"q": "a"}))
    message = failure(capsys, ["evaluate", str(base), "--validation_data", "other.jsonl"])
    assert "--validation_data must have a column `text`, `messages`" in message and "['q']" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--packing"], '--packing must be False with --eos "padded"'),
        (
            ["--chat_template", "absent.jinja"],
            "--chat_template must be one of ['chatml'] or a Jinja file, got 'absent",
        ),
        (["--text_column", "id", "--turns", "together"], "--turns must be left out for text, which has no responses"),
        (["--document_mask"], "--document_mask must be False with prompts and responses"),
        (
            ["--eos", "scored", "--block_size", "8"],
            "--block_size must leave some of the 28 pairs, got 8: 28 are longer",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, base, folder, capsys):
    command = ["finetune", str(base), "--data", "chat.jsonl", "--chat_template", "short.jinja", *options]
    assert message in failure(capsys, [*command, *QUICK, "--output_dir", "out"])
    assert not (folder / "out").exists()
