# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 sample` as a user runs it on many samples: batches, processes, prompts, files, interruptions."""

import dataclasses
import io
import json
import os
import signal
import sys
import time

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from commands import failure
from launching import TORCHRUN, kill, run, start, succeed
from tiny import quiet, random_image_model, random_model, row_generators, seeded

from md4_hf import MaskedDiffusionPipeline, build_byte_tokenizer, build_text8_tokenizer, make_pipeline
from md4_hf.cli import main, options
from md4_hf.cli.draw import IN_USE, suppressed_ids
from md4_hf.cli.sample_files import read_printed_texts, unfinished
from md4_hf.core.opening_orders import ORDERS, QUOTAS, RANDOM
from md4_hf.core.remasking import CORRECTORS, REMASKINGS
from md4_hf.core.reverse_steps import SAMPLER_OPTIONS


LENGTH = 16
MD4 = [sys.executable, "-m", "md4_hf"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of text8."""
    pipeline = make_pipeline(random_model(28, LENGTH, std=0.3, time_conditioning=False), build_text8_tokenizer())
    pipeline.scheduler.register_to_config(num_inference_steps=8)
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def sample(model, tmp_path, monkeypatch):
    """Runs `md4 sample` in a folder of its own; the texts and rows of the file that it writes, if it does."""
    monkeypatch.chdir(tmp_path)

    def call(*options, output="x.jsonl"):
        main(["sample", model, "--device", "cpu", *(["--output", output] if output else []), *map(str, options)])
        return rows_of(tmp_path / output) if output and output.endswith(".jsonl") else None

    return call


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_labelled_and_seen_on_terminals_only(sample, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr("md4_hf.cli.draw.shows_bars", lambda: is_terminal)
    sample("--num_samples", 3, "--batch_size", 2)
    shown = capsys.readouterr().err
    assert ("Sampling:" in shown) == ("Steps:" in shown) == ("\r" in shown) == is_terminal


def test_a_row_says_what_it_is_and_is_drawn_again_from_its_seed(sample, model):
    rows = sample("--num_samples", 5, "--seed", 7, "--temperature", 0.8)
    assert [row["index"] for row in rows] == [*range(5)] and rows[0]["seed"] == 7
    assert len({row["seed"] for row in rows}) == 5 and max(row["seed"] for row in rows) < 2**53
    pipeline = quiet(MaskedDiffusionPipeline.from_pretrained(model))
    for row in rows:
        assert set(row) == {"index", "seed", "text", "ids", "settings"}
        alone = pipeline(generator=seeded(row["seed"]), temperature=0.8)
        assert alone.texts == [row["text"]] and alone.sequences[0].tolist() == row["ids"]
    (again,) = sample("--seed", rows[3]["seed"], "--temperature", 0.8)
    assert again["text"] == rows[3]["text"]


def test_samples_are_those_of_any_batch_and_of_the_pipeline(sample, model):
    rows = sample("--num_samples", 7, "--seed", 2)
    for batch_size in (1, 3):
        assert sample("--num_samples", 7, "--seed", 2, "--batch_size", batch_size) == rows
    together = quiet(MaskedDiffusionPipeline.from_pretrained(model))(num_samples=7, generator=row_generators(2, 7))
    assert [row["text"] for row in rows] == together.texts
    assert sample("--num_samples", 4, "--seed", 2) == rows[:4]


def test_without_a_seed_it_is_told_and_draws_the_samples_again(sample, capsys):
    rows = sample("--num_samples", 2)
    told = capsys.readouterr().err
    assert f"--seed {rows[0]['seed']} draws these samples again" in told
    assert sample("--num_samples", 2, "--seed", rows[0]["seed"]) == rows
    assert sample("--num_samples", 2) != rows


# Samplers -------------------------------------------------------------------------------------------------------------


def test_the_choices_are_those_of_the_scheduler():
    assert {*options.ORDER_NAMES} == {RANDOM, *ORDERS} and set(options.QUOTA_NAMES) == set(QUOTAS)
    assert {*options.REMASKING_NAMES} == {*REMASKINGS} and options.CORRECTOR_NAMES == CORRECTORS
    fields = {field.name for field in dataclasses.fields(options.SamplerArguments)}
    assert fields >= {*SAMPLER_OPTIONS} and set(IN_USE) < {*SAMPLER_OPTIONS}


@pytest.mark.parametrize(
    "arguments",
    [
        {"order": "entropy", "order_temperature": 0.5, "quota": "floor"},
        {"order": "threshold", "threshold": 0.1, "block_length": 4, "use_cache": False},
        {"order": "factor", "factor": 0.5, "block_length": 4},
        {"order": "klass", "kl_bound": 0.1},
        {"order": "entropy_bound", "entropy_bound": 0.0},
        {"remasking": "cap", "eta": 0.3, "corrector": "informed", "corrector_steps": 1, "corrector_size": 2},
        {"corrector_steps": 1, "corrector_eta": 0.4},
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())),
)
def test_samplers_are_those_of_the_pipeline_and_each_row_says_which(sample, model, arguments):
    given = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    rows = sample("--num_samples", 3, "--seed", 1, "--prompt", "ab", "--gen_length", 9, *given)
    pipeline = quiet(MaskedDiffusionPipeline.from_pretrained(model))
    for row in rows:
        output = pipeline(prompt="ab", gen_length=9, generator=seeded(row["seed"]), **arguments)
        assert output.texts == [row["text"]] and len(row["text"]) == 11
        again = pipeline(prompt=row["prompt"], generator=seeded(row["seed"]), **row["settings"])
        assert again.texts == [row["text"]]
        assert row["settings"].items() >= arguments.items() and row["settings"]["num_inference_steps"] == 8
    assert (
        sample("--num_samples", 3, "--seed", 1, "--prompt", "ab", "--gen_length", 9, *given, "--batch_size", 2) == rows
    )


def test_settings_of_the_models_scheduler_are_told_too(sample, model):
    (row,) = sample("--seed", 1)
    given = {"use_cache": True, "eos_early_stop": False, "guidance_scale": 1.0}
    assert row["settings"] == {
        **given,
        "num_inference_steps": 8,
        "order": "random",
        "corrector_steps": 0,
        "temperature": 1.0,
    }


def test_a_scheduler_of_diffusers_takes_its_own_options(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipeline = MaskedDiffusionPipeline.from_pretrained(model)
    pipeline.save_pretrained("refined")
    diffusers.BlockRefinementScheduler().save_pretrained("refined")
    command = ["sample", "refined", "--device", "cpu", "--seed", "0", "--num_inference_steps", "9"]
    main([*command, "--threshold", "0.5", "--output", "x.jsonl"])
    (row,) = rows_of(tmp_path / "x.jsonl")
    assert row["settings"]["threshold"] == 0.5 and "order" not in row["settings"] and len(row["text"]) == LENGTH
    assert "--order must be left out for BlockRefinementScheduler" in failure(capsys, [*command, "--order", "margin"])


def test_a_text_ends_with_its_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = make_pipeline(random_model(258, 16, std=0.3, time_conditioning=False), build_byte_tokenizer())
    pipeline.save_pretrained("bytes")
    unwanted = [str(token) for token in range(257) if token not in (97, 98, 256)]
    command = ["sample", "bytes", "--device", "cpu", "--seed", "0", "--num_samples", "5", "--output", "x.jsonl"]
    main([*command, "--eos_early_stop", "--order", "sequential", "--suppress_tokens", *unwanted])
    rows = rows_of(tmp_path / "x.jsonl")
    assert any(256 in row["ids"] for row in rows)
    for row in rows:
        end = row["ids"].index(256) if 256 in row["ids"] else 16
        assert row["ids"][end:] == [256] * (16 - end) and row["text"] == bytes(row["ids"][:end]).decode()
    letters = [str(token) for token in range(257) if token not in (97, 98)]
    main(
        [
            *command[:-1],
            "y.jsonl",
            "--stop_strings",
            "bb",
            "aba",
            "--order",
            "sequential",
            "--suppress_tokens",
            *letters,
        ]
    )
    texts = [row["text"] for row in rows_of(tmp_path / "y.jsonl")]
    assert any(len(text) < 16 for text in texts)
    for text in texts:
        assert "bb" not in text[:-1] and "aba" not in text[:-1] and (len(text) == 16 or text.endswith(("bb", "aba")))


# Prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_come_from_a_file_of_lines_of_rows_or_the_standard_input(sample, tmp_path, monkeypatch):
    prompts = ["the ", "a <mask:3> c", "of [MASK][MASK] x"]
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([prompts[0], "", *prompts[1:]]).encode())
    lines = [json.dumps({"prompt": prompt, "id": 3}) for prompt in prompts]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    options = ["--num_samples", 2, "--seed", 0, "--batch_size", 3]
    rows = sample("--prompt_file", "lines.txt", *options)
    assert [row["prompt"] for row in rows] == [prompt for prompt in prompts for _ in range(2)]
    texts = [row["text"] for row in rows]
    assert all(text.startswith("the ") and len(text) == LENGTH for text in texts[:2])
    assert all(text.startswith("a ") and text.endswith(" c") and len(text) == 7 for text in texts[2:4])
    assert all(text.startswith("of ") and text.endswith(" x") and len(text) == 7 for text in texts[4:])
    assert len(set(texts)) == 6
    assert sample("--prompt_file", "rows.jsonl", *options) == rows
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff" + "\n".join(prompts) + "\n"))
    assert sample("--prompt", "-", *options) == rows


def test_a_standard_input_in_another_encoding_is_named(model, monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO("für".encode("latin-1")), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    errors = failure(capsys, ["sample", model, "--device", "cpu", "--prompt", "-"])
    assert "--prompt must be utf-8 text in the standard input" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt_file", "no.txt"], "--prompt_file must be a file, got no.txt, which is not there"),
        (["--prompt_file", "empty.txt"], "--prompt_file must have at least one prompt, got none in empty.txt"),
        (["--prompt_file", "latin.txt"], "--prompt_file must have well-formed files, got latin.txt"),
        (["--prompt_file", "torn.jsonl"], "--prompt_file must be JSON lines, got line 2 of torn.jsonl"),
        (
            ["--prompt_file", "other.jsonl"],
            "--prompt_file must have a string under 'prompt' in each row, got none in row 1",
        ),
        (["--prompt_file", "empty.txt", "--prompt", "a"], "Only one of --prompt and --prompt_file may be given"),
        (["--prompt", "-"], "--prompt must have at least one prompt, got none in the standard input"),
        (["--batch_size", "0"], "--batch_size must be >= 1, got 0"),
        (["--seed", str(2**64)], "--seed must be in [-2^63, 2^64), got 18446744073709551616"),
        (["--dtype", "int8"], "must be one of float32, bfloat16, float16, got 'int8'"),
        (["--output", "no/x.jsonl"], "--output must lie in a folder that is there, got no/x.jsonl"),
        (["--output", "x.png"], "--output must be left out for a model of text, got 'x.png'"),
        (["--output", "x.csv"], "--output must end in .jsonl, .txt or as a picture does, such as .png, got x.csv"),
        (["--suppress_tokens", "28"], "--suppress_tokens must be a list of ids in [0, 28), got [28]"),
        (
            ["--suppress_tokens", "the"],
            "--suppress_tokens must be ids, or texts of one token each, got 'the', which is ['t",
        ),
        (["--prompt", "<mask:0>", "--output", "x.jsonl"], "--prompt must have gaps <mask:n> with n >= 1"),
        (["--order", "entropi"], "--order: must be one of random, confidence,"),
        (["--remasking", "all"], "must be one of cap, rescale, confidence, loop, flow, got 'all'"),
        (["--length", "9", "--gen_length", "4"], "Only one of --length and --gen_length may be given, got 9 and 4"),
        (["--eta", "0.5"], "--eta must be left out where it has no effect, with --order 'random', --remasking None"),
        (["--threshold", "0.5", "--order", "margin"], "--threshold must be left out where it has no effect"),
        (["--eos_early_stop", "--output", "x.jsonl"], "--eos_early_stop needs an EOS token"),
    ],
)
def test_bad_options_are_one_clear_message_and_leave_no_file(model, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b')
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n')
    before = sorted(tmp_path.iterdir())
    errors = failure(capsys, ["sample", model, "--device", "cpu", *options])
    assert message in errors and "Traceback" not in errors
    assert sorted(tmp_path.iterdir()) == before


# Options --------------------------------------------------------------------------------------------------------------


def test_suppressed_tokens_are_ids_or_texts_of_one_token(sample):
    by_text = sample("--num_samples", 20, "--seed", 0, "--suppress_tokens", "e", "a", " ")
    assert not {"e", "a", " "} & set("".join(row["text"] for row in by_text))
    ids = map(str, build_text8_tokenizer().encode("ea ", add_special_tokens=False))
    assert sample("--num_samples", 20, "--seed", 0, "--suppress_tokens", *ids) == by_text
    tokenizer = build_byte_tokenizer()
    assert suppressed_ids(["65", "A", "[MASK]", 7], tokenizer) == [65, *tokenizer.encode("A"), 257, 7]
    assert suppressed_ids(None, None) is None
    with pytest.raises(ValueError, match=r"got 'ß', which is \[.*, .*\]\."):
        suppressed_ids(["ß"], tokenizer)
    with pytest.raises(ValueError, match="got 'e' for a model without a tokenizer"):
        suppressed_ids(["e"], None)


def test_texts_are_printed_or_written_alike_and_quiet_is_nothing_else(sample, capsys, tmp_path):
    rows = sample("--num_samples", 5, "--seed", 1)
    assert "5 samples are in x.jsonl" in capsys.readouterr().out
    sample("--num_samples", 5, "--seed", 1, "--batch_size", 2, "--quiet", output=None)
    printed = capsys.readouterr()
    assert read_printed_texts(printed.out) == [row["text"] for row in rows] and printed.err == ""
    sample("--num_samples", 5, "--seed", 1, "--quiet", output="x.txt")
    assert capsys.readouterr() == ("", "") and (tmp_path / "x.txt").read_text() == printed.out
    sample(output="one.txt")
    assert "1 sample is in one.txt" in capsys.readouterr().out


def test_the_precision_of_the_weights_can_be_chosen(sample, monkeypatch):
    seen = []
    call = MaskedDiffusionPipeline.__call__
    monkeypatch.setattr(
        MaskedDiffusionPipeline, "__call__", lambda self, **x: seen.append(self.dtype) or call(self, **x)
    )
    sample("--dtype", "bfloat16")
    sample()
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(("size", "factor"), [(4, 16), (12, 6), (64, 1)])
def test_small_images_are_enlarged(tmp_path, size, factor):
    make_pipeline(random_image_model(5, size, hidden_size=32)).save_pretrained(tmp_path / "model")
    options = ["--num_inference_steps", "1", "--seed", "0", "--output"]
    main(["sample", str(tmp_path / "model"), *options, str(tmp_path / "a.png")])
    main(["sample", str(tmp_path / "model"), *options, str(tmp_path / "b.png"), "--enlarge", "1"])
    main(["sample", str(tmp_path / "model"), *options, str(tmp_path / "c.jsonl")])
    large, small = (np.asarray(PIL.Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert small.shape == (size, size) and large.shape == (size * factor, size * factor)
    np.testing.assert_array_equal(large, small.repeat(factor, 0).repeat(factor, 1))
    (row,) = rows_of(tmp_path / "c.jsonl")
    assert np.shape(row["ids"]) == (1, size, size) and "text" not in row


# Interruptions --------------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, number, error=KeyboardInterrupt):
    """Let the pipeline be interrupted at its call of this number."""
    call, calls = MaskedDiffusionPipeline.__call__, []

    def interrupted(self, **options):
        calls.append(options)
        if len(calls) == number:
            raise error
        return call(self, **options)

    monkeypatch.setattr(MaskedDiffusionPipeline, "__call__", interrupted)


OPTIONS = ("--num_samples", 7, "--batch_size", 2, "--temperature", 0.9)


@pytest.mark.parametrize("output", ["x.jsonl", "x.txt"])
@pytest.mark.parametrize("seed", [(), ("--seed", 5)])
@pytest.mark.parametrize("is_torn", [False, True])
def test_the_same_command_goes_on_where_it_was_interrupted(sample, tmp_path, monkeypatch, output, seed, is_torn):
    hidden = unfinished(tmp_path / output)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            sample(*OPTIONS, *seed, output=output)
    assert [path.name for path in tmp_path.iterdir()] == [hidden.name], "a file under its own name is whole"
    header, *rows = rows_of(hidden)
    assert len(rows) == 4
    if is_torn:  # as by a SIGKILL while a line is written
        hidden.write_bytes(hidden.read_bytes()[:-20])
    drawn = []
    call = MaskedDiffusionPipeline.__call__
    with monkeypatch.context() as patch:
        patch.setattr(
            MaskedDiffusionPipeline, "__call__", lambda self, **x: drawn.append(len(x["generator"])) or call(self, **x)
        )
        sample("--batch_size", 4, *OPTIONS[:2], *OPTIONS[4:], *seed, output=output)
    assert sum(drawn) == (4 if is_torn else 3)
    assert [path.name for path in tmp_path.iterdir()] == [output]
    finished = (tmp_path / output).read_bytes()
    sample(*OPTIONS, "--seed", header["recipe"]["seed"], output=output)
    assert (tmp_path / output).read_bytes() == finished, "as in one run"


def test_another_command_does_not_go_on(sample, model, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            sample(*OPTIONS, "--seed", 5)
    before = unfinished(tmp_path / "x.jsonl").read_bytes()
    base = ["sample", model, "--device", "cpu", "--output", "x.jsonl", *map(str, OPTIONS)]
    for changed, names in (
        (["--seed", "6"], "seed"),
        (["--seed", "5", "--temperature", "0.8", "--suppress_tokens", "e"], "suppress_tokens, temperature"),
        (["--seed", "5", "--prompt", "the "], "given_sha256"),
        (["--seed", "5", "--dtype", "bfloat16"], "dtype, weights_sha256"),
    ):
        message = failure(capsys, [*base, *changed])
        assert f".x.jsonl.unfinished, which differ in {names}: name another file, or remove that one" in message
    assert unfinished(tmp_path / "x.jsonl").read_bytes() == before
    unfinished(tmp_path / "x.jsonl").write_text("mine\n")
    assert "--output must continue with samples of this command, got another file" in failure(capsys, base)
    assert unfinished(tmp_path / "x.jsonl").read_text() == "mine\n"


@pytest.mark.slow  # several new processes
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_what_the_command_goes_on_from(model, tmp_path, end):
    options = ["--num_samples", "3000", "--batch_size", "50", "--seed", "3", "--output", tmp_path / "x.jsonl"]
    command = [*MD4, "sample", model, "--device", "cpu", *options]
    process = start(command)
    try:
        deadline = time.monotonic() + 60
        while not unfinished(tmp_path / "x.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, end)
        output, _ = process.communicate(timeout=60)
    finally:
        kill(process) if process.poll() is None else None
    if end == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in output
        assert "of 3,000 samples are kept. To resume, run the same command again." in output
    assert not (tmp_path / "x.jsonl").exists()
    succeed([*command, "--num_samples", "200"])
    rows = rows_of(tmp_path / "x.jsonl")
    succeed([*command[:-1], tmp_path / "y.jsonl", "--num_samples", "200"])
    assert rows == rows_of(tmp_path / "y.jsonl") and len(rows) == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jsonl", "y.jsonl"]


# Processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # several new processes
def test_processes_divide_the_samples_and_change_none(model, tmp_path, sample):
    (tmp_path / "prompts.txt").write_text("the \na [MASK]\n")
    options = [
        "--prompt_file",
        "prompts.txt",
        "--num_samples",
        "5",
        "--batch_size",
        "2",
        "--seed",
        "4",
        "--order",
        "entropy",
    ]
    rows = sample(*options)
    command = ["sample", model, *options, "--output", tmp_path / "two.jsonl"]
    status, output = run([*TORCHRUN, "-m", "md4_hf", *command], OMP_NUM_THREADS="1")
    assert status == 0, output
    assert output.count("10 samples are in") == 1 and rows_of(tmp_path / "two.jsonl") == rows
