# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Statistics of samples by hand-computed examples and identities, and `md4 score` as a user runs it."""

import json
import math

import pytest
import torch
from commands import failure
from datasets import Dataset
from tiny import random_image_model, random_model, row_generators
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from md4_hf import (
    MaskedDiffusionPipeline,
    MD4Config,
    MD4ForCausalLM,
    build_byte_tokenizer,
    build_text8_tokenizer,
    distinct_n,
    generative_perplexity,
    generative_perplexity_of_ids,
    image_sample_metrics,
    make_pipeline,
    pack,
    repetition,
    token_entropy,
)
from md4_hf.cli import main
from md4_hf.cli.draw import Sampling
from md4_hf.cli.kept_samples import drawn_rows
from md4_hf.cli.options import SamplerArguments
from md4_hf.cli.sample_files import print_texts, read_printed_texts, unfinished
from md4_hf.evaluation.images import load_inception
from md4_hf.evaluation.sample_statistics import token_statistics
from md4_hf.evaluation.samples import check_same_tokens


LENGTH = 24
REAL = ("--references", "digits")
REFERENCES = "the quick brown fox jumps over the lazy dog. pack my box with five dozen liquor jugs. " * 12


def make_judge(tokenizer, length=64):
    torch.manual_seed(1)
    # Large initial weights: otherwise all tokens are nearly alike to it, and a mistake would not show.
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": length, "initializer_range": 0.5}
    special = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **special))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of bytes and of text8, judges of both, a real text."""
    folder = tmp_path_factory.mktemp("samples")
    for name, tokenizer in (("bytes", build_byte_tokenizer()), ("text8", build_text8_tokenizer())):
        model = random_model(len(tokenizer), LENGTH, std=0.3, time_conditioning=False)
        pipeline = make_pipeline(model, tokenizer)
        pipeline.scheduler.register_to_config(num_inference_steps=8)
        pipeline.save_pretrained(folder / name)
        make_judge(tokenizer).save_pretrained(folder / f"judge-{name}")
        tokenizer.save_pretrained(folder / f"judge-{name}")
    (folder / "real.txt").write_text(REFERENCES)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "model"
    model = random_image_model(17, 8, num_classes=10, class_dropout=0.1)
    make_pipeline(model).save_pretrained(folder)
    return folder


# Statistics -----------------------------------------------------------------------------------------------------------


def test_distinct_n_of_known_sequences():
    rows = [[1, 2, 1, 2], [1, 2, 3]]  # 2-grams 12 21 12 and 12 23
    expected = {"distinct_n": 3 / 5, "mean_distinct_n": pytest.approx((2 / 3 + 1) / 2), "num_ngrams": 5}
    assert distinct_n(rows, 2) == {**expected, "num_sequences": 2}
    assert distinct_n(rows, 1)["distinct_n"] == 3 / 7
    assert distinct_n(rows, 4) == {"distinct_n": 1.0, "mean_distinct_n": 1.0, "num_ngrams": 1, "num_sequences": 1}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_of_extremes(n):
    different = torch.arange(30).view(3, 10)
    assert distinct_n(different, n)["distinct_n"] == distinct_n(different, n)["mean_distinct_n"] == 1.0
    same = torch.full((3, 10), 7)
    num_ngrams = 10 - n + 1
    assert distinct_n(same, n)["distinct_n"] == pytest.approx(1 / (3 * num_ngrams))
    assert distinct_n(same, n)["mean_distinct_n"] == pytest.approx(1 / num_ngrams)


def test_copies_lower_distinct_n_of_all_samples_and_not_that_within_them():
    row = [1, 2, 3, 4]
    assert distinct_n([row] * 4, 2)["distinct_n"] == 1 / 4 and distinct_n([row] * 4, 2)["mean_distinct_n"] == 1.0


def test_repetition_of_known_sequences():
    # 2-grams 12 23 31 12 23: the last two have begun before, they cover the last three of six tokens.
    expected = {"seq_rep_n": pytest.approx(1 - 3 / 5), "repeated_tokens": 3 / 6, "num_duplicates": 0}
    assert repetition([[1, 2, 3, 1, 2, 3]], 2) == {**expected, "num_sequences": 1}
    assert repetition([[1, 2, 3, 4], [9]], 4)["repeated_tokens"] == 0.0
    assert repetition([[5] * 5], 4)["repeated_tokens"] == 4 / 5
    assert repetition([[1, 2], [1, 2], [2, 1], [1, 2]], 1)["num_duplicates"] == 2


@pytest.mark.parametrize("n", [1, 2, 4])
def test_seq_rep_is_what_distinct_n_leaves(n):
    ids = torch.randint(3, (6, 20))
    assert repetition(ids, n)["seq_rep_n"] == pytest.approx(1 - distinct_n(ids, n)["mean_distinct_n"])
    assert repetition(torch.arange(20)[None], n)["seq_rep_n"] == 0.0


def test_the_statistics_are_those_of_the_functions_and_nan_where_samples_are_too_short():
    ids = torch.randint(4, (5, 12))
    statistics = token_statistics(ids)
    assert statistics["token_entropy"] == pytest.approx(token_entropy(ids)["token_entropy"])
    assert [statistics[f"distinct_{n}"] for n in (1, 2, 3)] == [distinct_n(ids, n)["distinct_n"] for n in (1, 2, 3)]
    assert statistics["seq_rep_4"] == repetition(ids)["seq_rep_n"]
    assert statistics["repeated_tokens_4"] == repetition(ids)["repeated_tokens"]
    assert (statistics["num_sequences"], statistics["num_tokens"]) == (5, 60)
    short = token_statistics([[1, 1], [1, 1]])
    assert (short["distinct_2"], short["num_duplicates"]) == (0.5, 1)
    assert all(math.isnan(short[name]) for name in ("distinct_3", "seq_rep_4", "repeated_tokens_4"))


@pytest.mark.parametrize("function", [distinct_n, repetition])
def test_statistics_refuse_what_has_no_ngrams(function):
    with pytest.raises(ValueError, match="`n` must be at most the tokens of the longest sequence, 2, got 3"):
        function([[1, 2]], 3)
    with pytest.raises(ValueError, match="`n` must be an integer >= 1, got 0"):
        function([[1, 2]], 0)
    with pytest.raises(ValueError, match="got none"):
        function([], 1)


# Perplexity of own tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"add_bos": True}, {"max_length": 9}, {"batch_size": 2}])
def test_own_tokens_and_texts_agree_where_the_texts_have_the_same_tokens(options):
    tokenizer = build_byte_tokenizer()
    judge, texts = make_judge(tokenizer), ["the quick", "brown fox jumps", "over"]
    ids = [list(text.encode()) for text in texts]
    expected = generative_perplexity(texts, judge, tokenizer, **options)
    assert generative_perplexity_of_ids(ids, judge, tokenizer, tokenizer, **options) == expected
    assert {"perplexity", "mean_perplexity", "token_entropy"} <= set(expected)


def test_own_tokens_differ_from_texts_where_the_split_differs():
    """The text of two tokens may be one token: that is the difference between the two definitions."""
    tokenizer = build_byte_tokenizer()
    tokenizer.add_tokens("ab")
    judge = make_judge(tokenizer)
    ids = tokenizer("ab cd")["input_ids"]
    split = [*b"ab cd"]
    assert tokenizer.decode(ids) == tokenizer.decode(split) and len(split) == len(ids) + 1
    of_texts = generative_perplexity(["ab cd"], judge, tokenizer)
    of_ids = generative_perplexity_of_ids([split], judge, tokenizer, tokenizer)
    assert (of_texts["num_tokens"], of_ids["num_tokens"]) == (len(ids) - 1, len(ids))
    assert of_texts["perplexity"] != pytest.approx(of_ids["perplexity"], rel=1e-3)


def test_tokens_have_to_agree_as_far_as_they_are_used():
    bytes_, text8 = build_byte_tokenizer(), build_text8_tokenizer()
    more = build_byte_tokenizer()
    more.add_tokens("ab")  # id 258, behind all others
    check_same_tokens([[0, 97, 256]], bytes_, more)
    with pytest.raises(ValueError, match="`tokenizer` must have the tokens .* got None for id 258, which is 'ab'"):
        check_same_tokens([[97, 258]], bytes_, more)
    judge = make_judge(bytes_)
    with pytest.raises(ValueError, match="under the same ids, got .* for id 3, which is 'd' in the samples"):
        generative_perplexity_of_ids([[3, 4]], judge, bytes_, text8)
    with pytest.raises(ValueError, match="got None for id 999, which is None"):
        generative_perplexity_of_ids([[97, 999]], judge, bytes_, bytes_)
    with pytest.raises(ValueError, match="`sequences` must have at least 2 tokens each, got 1 at index 1"):
        generative_perplexity_of_ids([[97, 98], [97]], judge, bytes_, bytes_)


# Samples and their files ----------------------------------------------------------------------------------------------


def test_what_sample_prints_is_read_again(capsys):
    texts = ["one", " two\nlines ", "", "--- 1 not a rule\n", "last\n"]
    print_texts(texts)
    assert read_printed_texts(capsys.readouterr().out) == texts
    assert read_printed_texts("--- 2 \nany other text\n") == ["--- 2 \nany other text\n"]


def draw(folder, path, num_samples=5, batch_size=2, seed=3, **options):
    pipeline = MaskedDiffusionPipeline.from_pretrained(folder)
    sampler = SamplerArguments(num_samples=num_samples, seed=seed, **options)
    sampling = Sampling(pipeline, sampler)
    rows = drawn_rows(sampling, sampling.recipe(), batch_size, path)
    return [{name: value for name, value in row.items() if name != "recipe"} for row in rows]


def test_the_samples_are_those_of_md4_sample_whatever_the_batch(folders, capsys):
    main(["sample", str(folders / "text8"), "--num_samples", "5", "--seed", "3", "--device", "cpu"])
    expected = read_printed_texts(capsys.readouterr().out)
    for batch_size in (2, 5):
        assert [row["text"] for row in draw(folders / "text8", None, batch_size=batch_size)] == expected


def test_samples_that_are_kept_are_not_drawn_again(folders, tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    expected = draw(folders / "text8", None)
    assert draw(folders / "text8", path, num_samples=3) == expected[:3]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
    assert draw(folders / "text8", path) == expected, "two more, as if all were drawn at once"
    monkeypatch.setattr(MaskedDiffusionPipeline, "__call__", lambda *_, **__: pytest.fail("drawn again"))
    assert draw(folders / "text8", path) == expected and draw(folders / "text8", path, num_samples=2) == expected[:2]
    assert len(path.read_text().splitlines()) == 5


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_run_goes_on(folders, tmp_path, monkeypatch, torn):
    path = tmp_path / "samples.jsonl"
    expected = draw(folders / "text8", None)
    call, calls = MaskedDiffusionPipeline.__call__, []

    def interrupted(self, **options):
        calls.append(options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedDiffusionPipeline, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt, match="2 of 5 samples are kept"):
            draw(folders / "text8", path)
    assert not path.exists(), "a file under its own name is whole"
    if torn:  # as by a SIGKILL while a line is written
        text = unfinished(path).read_text(encoding="utf-8")
        unfinished(path).write_text(text[:-30], encoding="utf-8")
    assert draw(folders / "text8", path) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_samples_of_another_recipe_are_not_taken(folders, tmp_path):
    path = tmp_path / "samples.jsonl"
    draw(folders / "text8", path, num_samples=2)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match="`samples_file` must continue with .* which differ in seed, temperature: name another"
    ):
        draw(folders / "text8", path, seed=4, temperature=0.5)
    with pytest.raises(ValueError, match="which differ in .*weights_sha256"):
        draw(folders / "bytes", path)
    path.write_text('{"text": "mine"}\n')
    with pytest.raises(ValueError, match="`samples_file` must be a file of this version of `md4 score`, got another"):
        draw(folders / "text8", path)
    assert before and path.read_text() == '{"text": "mine"}\n'


def test_options_that_the_pipeline_refuses_leave_no_file(folders, tmp_path):
    with pytest.raises(ValueError, match="`top_p`"):
        draw(folders / "text8", tmp_path / "samples.jsonl", top_p=2.0)
    assert not list(tmp_path.iterdir())


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(folders, tmp_path_factory):
    """Scores of the model of bytes under the judge of bytes, and the samples."""
    out = tmp_path_factory.mktemp("scored")
    options = ["--num_samples", "6", "--batch_size", "4", "--seed", "2", "--device", "cpu"]
    options += ["--judge", str(folders / "judge-bytes"), "--retokenise", "false"]
    options += ["--references", str(folders / "real.txt"), "--samples_file", str(out / "samples.jsonl")]
    main(["score", str(folders / "bytes"), *options, "--output_file", str(out / "scores.json")])
    return out


def test_the_scores_are_those_of_the_functions(folders, scored):
    scores = json.loads((scored / "scores.json").read_text())
    tokenizer = build_byte_tokenizer()
    judge = GPT2LMHeadModel.from_pretrained(folders / "judge-bytes")
    rows = [json.loads(line) for line in (scored / "samples.jsonl").read_text().splitlines()]
    ids = [row["ids"] for row in rows]
    assert [len(row) for row in ids] == [LENGTH] * 6 and not any(257 in row for row in ids)
    expected = generative_perplexity_of_ids(ids, judge, tokenizer, tokenizer, batch_size=4)
    assert scores["samples"]["judge"] == {**expected, "num_too_short": 0}
    assert scores["samples"]["tokens"] == {"are": "own tokens", **token_statistics(ids)}
    blocks, _ = pack(Dataset.from_dict({"text": [REFERENCES]}), tokenizer, LENGTH)
    spread = [blocks[i * len(blocks) // 6]["input_ids"] for i in range(6)]
    expected = generative_perplexity_of_ids(spread, judge, tokenizer, tokenizer, batch_size=4)
    assert scores["references"]["judge"] == {**expected, "num_too_short": 0}
    assert scores["references"]["judge"]["num_tokens"] == 6 * (LENGTH - 1)


def test_the_recipe_has_what_a_repetition_needs(folders, scored, tmp_path):
    recipe = json.loads((scored / "scores.json").read_text())["recipe"]
    assert recipe["model"] == str(folders / "bytes") and recipe["judge"] == str(folders / "judge-bytes")
    expected = {"seed": 2, "num_samples": 6, "num_inference_steps": 8, "temperature": 1.0, "retokenise": False}
    expected |= {"add_bos": False, "max_length": None, "judge_length": 64, "judge_dtype": "float32", "revision": None}
    assert {name: recipe[name] for name in expected} == expected
    assert recipe["scheduler"]["masking_schedule"] == "linear" and len(recipe["weights_sha256"]) == 64
    assert {"md4_hf", "torch", "transformers"} <= set(recipe["versions"])
    again = draw(folders / "bytes", None, num_samples=6, batch_size=6, seed=recipe["seed"])
    lines = (scored / "samples.jsonl").read_text().splitlines()
    assert [row["ids"] for row in again] == [json.loads(line)["ids"] for line in lines]


def test_the_table_never_shows_a_perplexity_without_the_entropy(folders, scored, tmp_path, capsys):
    text = tmp_path / "samples.txt"
    text.write_text("the quick brown fox")
    judge = ["--judge", str(folders / "judge-bytes"), "--device", "cpu"]
    for argv in ([str(text)], [str(scored / "samples.jsonl")], [str(folders / "text8"), "--num_samples", "2"]):
        main(["score", *argv, *judge])
        output = capsys.readouterr().out
        for label in ("perplexity, over tokens", "mean perplexity", "token entropy, nats, judge's", "distinct-2"):
            assert label in output
        assert "seq-rep-4" in output and "duplicates" in output


def test_samples_of_a_file_score_as_those_of_the_model(folders, scored, tmp_path):
    expected = json.loads((scored / "scores.json").read_text())["samples"]
    options = ["--judge", str(folders / "judge-bytes"), "--retokenise", "false", "--tokenizer", "bytes"]
    options += ["--device", "cpu", "--output_file", str(tmp_path / "scores.json"), "--batch_size", "4"]
    main(["score", str(scored / "samples.jsonl"), *options])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["samples"] == expected
    assert scores["recipe"]["samples_recipe"]["seed"] == 2, "the file says how its samples were drawn"
    main(["score", str(scored / "samples.jsonl"), *options, "--num_samples", "2"])
    assert json.loads((tmp_path / "scores.json").read_text())["samples"]["judge"]["num_texts"] == 2


def test_without_a_judge_there_is_what_needs_none(folders, capsys):
    main(["score", str(folders / "text8"), "--num_samples", "3", "--device", "cpu"])
    output = capsys.readouterr().out
    assert "perplexity" not in output and "judge" not in output.replace("a judge's name", "")
    assert "token entropy, nats" in output and "distinct-1" in output


def test_texts_without_ids_are_counted_in_the_judges_tokens_and_short_ones_left_out(folders, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abcd", "a", "", "abcd")))
    output_file = tmp_path / "scores.json"
    options = ["--judge", str(folders / "judge-bytes"), "--device", "cpu", "--output_file", str(output_file)]
    main(["score", str(file), *options])
    assert "2 samples of less than two tokens have no perplexity" in capsys.readouterr().out
    scores = json.loads(output_file.read_text())["samples"]
    assert (scores["judge"]["num_texts"], scores["judge"]["num_too_short"]) == (2, 2)
    assert scores["tokens"]["are"] == "judge's tokens" and scores["tokens"]["num_duplicates"] == 1


def test_a_file_that_cannot_be_written_leaves_the_old_one(folders, scored, tmp_path, monkeypatch, capsys):
    path = tmp_path / "scores.json"
    path.write_text("old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left" in failure(capsys, ["score", str(scored / "samples.jsonl"), "--output_file", str(path)])
    assert path.read_text() == "old"


def test_a_model_that_sees_the_tokens_to_come_is_no_judge(folders, scored, tmp_path, capsys):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=258, initializer_range=0.5, **sizes)).save_pretrained(tmp_path / "bert")
    build_byte_tokenizer().save_pretrained(tmp_path / "bert")
    message = failure(capsys, ["score", str(scored / "samples.jsonl"), "--judge", str(tmp_path / "bert")])
    assert "--judge must be a causal language model" in message and "sees the tokens to come" in message
    message = failure(capsys, ["score", str(scored / "samples.jsonl"), "--judge", str(folders / "bytes")])
    assert "--judge must be" in message and "no causal language model of type 'md4'" in message


def test_the_autoregressive_baseline_is_a_judge(scored, tmp_path, capsys):
    tokenizer = build_byte_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MD4Config(vocab_size=len(tokenizer), **sizes, is_causal=True)
    MD4ForCausalLM(config).save_pretrained(tmp_path / "ar")
    tokenizer.save_pretrained(tmp_path / "ar")
    main(["score", str(scored / "samples.jsonl"), "--judge", str(tmp_path / "ar")])
    printed = capsys.readouterr().out
    assert f"{len(tokenizer) - 1:.2f}" in printed, "all tokens but the mask are alike to a new model"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["no.jsonl"], "MODEL_OR_FILE must be a model or a file of samples, got no.jsonl, which is not there"),
        (["./no-such-model"], "MODEL_OR_FILE must be a model's or adapter's folder or a Hub id, got ./no-such-model"),
        (["text.txt"], "--judge or --tokenizer must be given for the samples of text.txt"),
        (["text.txt", "--tokenizer", "bytes", "--temperature", "0.5"], "--temperature must be left out for a file"),
        (["text.txt", "--samples_file", "x.jsonl"], "--samples_file must be left out for a file of samples"),
        (["text.txt", "--num_samples", "0"], "--num_samples must be >= 1, got 0"),
        (["text.txt", "--batch_size", "0"], "--batch_size must be >= 1, got 0"),
        (["text.txt", "--max_length", "1"], "--max_length must be >= 2, got 1"),
        (["text.txt", "--samples_file", "x.txt"], "--samples_file must end in .jsonl, got x.txt"),
        (["text.txt", "--output_file", "no/x.json"], "--output_file must be a file in a folder that exists"),
        (["text.txt", "--judge", "./no-judge"], "--judge must be a folder or Hub id of a causal language model"),
        (["text.txt", "--retokenise", "false"], "--retokenise must be left out without a --judge, got False"),
        (["text.txt", "--add_bos"], "--add_bos must be left out without a --judge, got True"),
        (["MODEL", "--max_length", "9"], "--max_length must be left out without a --judge, got 9"),
        (["MODEL", "--text_column", "body"], "--text_column must be left out without --references, got 'body'"),
        (["MODEL", "--references_split", "test"], "--references_split must be left out without --references, got 'te"),
        (["text.txt", "--tokenizer", "bytes", "--seed", "3"], "--seed must be left out for a file of samples, got 3"),
        (["IMAGES", "--resize"], "--resize must be left out without --references, got True"),
        (
            ["IMAGES", *REAL, "--text_column", "body"],
            "--text_column must be left out for a model of images, got 'body'",
        ),
        (["IMAGES", *REAL, "--judge", "JUDGE", "--add_bos"], "--judge must be left out for a model of images, got"),
        (["IMAGES", *REAL, "--retokenise", "false"], "--retokenise must be left out without a --judge, got False"),
        (["IMAGES", *REAL, "--add_bos"], "--add_bos must be left out without a --judge, got True"),
        (["empty.jsonl", "--tokenizer", "bytes"], "MODEL_OR_FILE must hold a text for each sample"),
        (["torn.jsonl", "--tokenizer", "bytes"], "MODEL_OR_FILE must be JSON lines, got line 1 of torn.jsonl"),
        (["list.jsonl", "--tokenizer", "bytes"], "MODEL_OR_FILE must be JSON objects, got b'[1]' in line 1"),
        (["latin.txt", "--tokenizer", "bytes"], "MODEL_OR_FILE must be UTF-8 text, got latin.txt"),
        (["text.txt", "--tokenizer", "bytes", "--references", "no.txt"], "--references must be"),
        (["text.txt", "--tokenizer", "bytes", "--resize"], "options of images must be left out for a model of text"),
        (["MODEL", "--tokenizer", "bytes"], "--tokenizer must be left out for a model, which has its own"),
        (["MODEL", "--num_samples", "-1"], "--num_samples must be >= 1, got -1"),
        (["MODEL", "--judge", "JUDGE", "--retokenise", "false"], "--tokenizer must have the tokens of the samples"),
    ],
)
def test_bad_input_is_one_clear_message(folders, image_folder, argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.jsonl").write_text('{"text": "a')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    before = sorted(tmp_path.iterdir())
    names = {"MODEL": str(folders / "text8"), "JUDGE": str(folders / "judge-bytes"), "IMAGES": str(image_folder)}
    errors = failure(capsys, ["score", *(names.get(word, word) for word in argv)])
    assert message in errors and "Traceback" not in errors
    assert sorted(tmp_path.iterdir()) == before


# Images ---------------------------------------------------------------------------------------------------------------


def channel_means(images):
    """Three features of each image."""
    return images.float().mean(dim=(2, 3))


@pytest.fixture
def torchmetrics():
    return pytest.importorskip("torchmetrics.image.fid", reason="needs torchmetrics: pip install 'md4_hf[fid]'")


def test_without_the_libraries_the_message_names_the_extra(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.fid", None)  # as if it were not installed
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for function in (load_inception, lambda: image_sample_metrics(images, images)):
        with pytest.raises(ImportError, match=r"pip install 'md4_hf\[fid\]'"):
            function()
    path = tmp_path / "samples.jsonl"
    message = failure(capsys, ["score", str(image_folder), "--samples_file", str(path), "--device", "cpu"])
    assert "FID and Inception score need torchmetrics" in message and "md4_hf[fid]" in message
    assert not list(tmp_path.iterdir()), "nothing was drawn"


def test_the_distance_is_the_one_computed_by_hand(torchmetrics):
    """Of diagonal covariances, ‖μ_s − μ_r‖² + Σ_d (σ_s − σ_r)²."""
    grid = torch.cartesian_prod(*[torch.tensor([0, 2])] * 3)  # covariance 8/7 times the identity
    as_images = lambda values: values.to(torch.uint8)[..., None, None].expand(-1, 3, 4, 4)  # noqa: E731
    samples, references = as_images(grid + 10), as_images(3 * grid + 20)
    metrics = image_sample_metrics(samples, references, features=channel_means, batch_size=3)
    mean = 3 * ((10 + 1) - (20 + 3)) ** 2
    assert metrics["fid"] == pytest.approx(mean + 3 * (8 / 7) * (3 - 1) ** 2, rel=1e-9)
    assert (metrics["num_samples"], metrics["num_references"]) == (8, 8) and "inception_score" not in metrics
    assert image_sample_metrics(samples, samples, features=channel_means)["fid"] == pytest.approx(0.0, abs=1e-9)


def test_the_inception_score_of_sure_and_of_unsure_classifiers(torchmetrics):
    images = torch.arange(4, dtype=torch.uint8).repeat(50)[:, None, None, None].expand(-1, 3, 4, 4)
    sure = lambda x: 1e3 * torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 4).double()  # noqa: E731
    options = {"features": channel_means, "num_splits": 1}
    metrics = image_sample_metrics(images, class_logits=sure, **options)
    assert metrics["inception_score"] == pytest.approx(4.0) and "fid" not in metrics
    assert math.isnan(metrics["inception_score_std"])
    unsure = image_sample_metrics(images, class_logits=lambda x: torch.zeros(len(x), 4), **options)
    assert unsure["inception_score"] == pytest.approx(1.0)
    options["num_splits"] = 10
    torch.manual_seed(5)
    state = torch.get_rng_state()
    parts = [image_sample_metrics(images, class_logits=sure, seed=seed, **options) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2] and 1 < parts[0]["inception_score"] < 4
    assert torch.equal(torch.get_rng_state(), state), "the global generator is as it was"
    assert image_sample_metrics(images[:5], class_logits=sure, **options)["num_splits"] == 2


@pytest.mark.parametrize(
    "samples, options, message",
    [
        (torch.zeros(4, 3, 8, 8), {}, r"`samples` must be a uint8 tensor \(n, 3, height, width\), got .*float32"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), {}, r"`samples` must be a uint8 tensor .* got .*\(4, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}, "`samples` must hold at least two images, got 1"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), {"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), {"num_splits": 0}, "`num_splits` must be an integer >= 1, got 0"),
    ],
)
def test_what_are_no_images_is_refused(samples, options, message):
    with pytest.raises(ValueError, match=message):
        image_sample_metrics(samples, features=channel_means, **options)


def test_features_have_to_be_rows(torchmetrics):
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"`features` must give a tensor \(1, d\) for 1 images, got \(1, 3, 8, 8\)"):
        image_sample_metrics(images, images, features=lambda x: x)
    with pytest.raises(ValueError, match="`class_logits` must give a tensor .* got list"):
        image_sample_metrics(images, features=channel_means, class_logits=lambda x: [1])


def test_images_of_a_model_are_scored_and_kept(torchmetrics, image_folder, tmp_path, monkeypatch, capsys):
    """With features in place of Inception's, whose weights would have to be downloaded."""
    monkeypatch.setattr("md4_hf.cli.score.load_inception", lambda device: (channel_means, channel_means))
    output_file, path = tmp_path / "scores.json", tmp_path / "samples.jsonl"
    options = ["--references", "digits", "--class_labels", "3", "7", "--num_samples", "2", "--batch_size", "3"]
    options += ["--num_inference_steps", "3", "--samples_file", str(path), "--output_file", str(output_file)]
    main(["score", str(image_folder), *options, "--device", "cpu"])
    output = capsys.readouterr().out
    assert "FID" in output and "Inception score" in output and "perplexity" not in output
    scores = json.loads(output_file.read_text())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["class_label"] for row in rows] == [3, 3, 7, 7]
    pipeline = MaskedDiffusionPipeline.from_pretrained(image_folder)
    expected = pipeline(class_labels=[3, 7], num_samples=2, num_inference_steps=3, generator=row_generators(0, 4))
    ids = torch.tensor([row["ids"] for row in rows])
    assert torch.equal(ids, expected.sequences), "the samples of one call, and in three batches"
    pixels = (pipeline.image_processor.postprocess(ids, output_type="pt") * 255).round().byte().expand(-1, 3, -1, -1)
    measured = image_sample_metrics(pixels, class_logits=channel_means, features=channel_means)
    assert scores["samples"]["images"]["num_references"] == 1797
    assert scores["samples"]["images"]["inception_score"] == pytest.approx(measured["inception_score"])
    message = failure(capsys, ["score", str(image_folder), "--judge", "gpt2"])
    assert "--judge must be left out for a model of images, got 'gpt2'" in message
