# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 frontier` as a user runs it on tiny models: figures, equal entropy, resumption, processes, errors."""

import json
import math
import sys

import PIL.Image
import pytest
import torch
from commands import failure
from launching import TORCHRUN, succeed
from tiny import quiet, random_image_model, random_model, seeded
from transformers import GPT2Config, GPT2LMHeadModel

from md4_hf import MaskedDiffusionPipeline, build_text8_tokenizer, generative_perplexity, make_pipeline
from md4_hf.cli import main
from md4_hf.evaluation.frontier import (
    Point,
    best_points,
    frontier_summary,
    make_settings,
    perplexity_stderr,
    read_sampler,
    relative_perplexities,
)
from md4_hf.evaluation.sample_statistics import token_statistics
from md4_hf.evaluation.samples import mauve


LENGTH = 16
REAL = "the quick brown fox jumps over the lazy dog " * 20
SAMPLERS = ["random", "confidence:quota=floor", "threshold:threshold=0.3,temperature=0.5", "remasking=cap:eta=0.5"]
SAMPLERS += ["corrector=informed:corrector_steps=1,corrector_size=2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of text8, a GenMD4 model of the same, one of images, one without a tokenizer, and a judge."""
    folder = tmp_path_factory.mktemp("frontier")
    tokenizer = build_text8_tokenizer()
    model = random_model(28, LENGTH, std=0.3, time_conditioning=False)
    make_pipeline(model, tokenizer).save_pretrained(folder / "model")
    make_pipeline(model).save_pretrained(folder / "ids")
    learned = {"masking_schedule": "poly", "learn_masking_schedule": True}
    make_pipeline(random_model(28, LENGTH, std=0.3, **learned), tokenizer).save_pretrained(folder / "genmd4")
    make_pipeline(random_image_model(17, 8)).save_pretrained(folder / "images")
    torch.manual_seed(1)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32, "initializer_range": 0.5}
    judge = GPT2LMHeadModel(GPT2Config(vocab_size=28, **sizes, bos_token_id=0, eos_token_id=0))
    judge.save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    (folder / "real.txt").write_text(REAL)
    return folder


def command(folders, out, *options, samplers=SAMPLERS):
    judging = ["--judge", folders / "judge", "--references", folders / "real.txt", "--batch_size", 2]
    sweep = ["--samplers", *samplers, "--steps", 4, 8, "--temperatures", 0.7, 1.2, "--num_samples", 3]
    words = ["frontier", folders / "model", *judging, *sweep, "--device", "cpu", "--output_dir", out, *options]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def swept(folders, tmp_path_factory):
    """The folder of a sweep."""
    out = tmp_path_factory.mktemp("out") / "frontier"
    main(command(folders, out))
    return out


def results_of(out):
    return json.loads((out / "frontier.json").read_text(encoding="utf-8"))


def without_seconds(results):
    return [{**p, "figures": {n: x for n, x in p["figures"].items() if n != "seconds"}} for p in results["results"]]


# Samplers and settings ------------------------------------------------------------------------------------------------


def test_a_sampler_is_read_as_entries_of_the_scheduler():
    assert read_sampler("entropy") == ("entropy", {"order": "entropy"})
    assert read_sampler("entropy_bound:entropy_bound=0.5") == (
        "entropy_bound:entropy_bound=0.5",
        {"order": "entropy_bound", "entropy_bound": 0.5},
    )
    name, options = read_sampler("remasking=loop:eta=1e-2,temperature=0.9,top_k=5")
    assert name == "remasking=loop:eta=1e-2,top_k=5"
    assert options == {"remasking": "loop", "eta": 0.01, "temperature": 0.9, "top_k": 5}
    assert read_sampler("random:temperature=1")[0] == "random"


def test_settings_have_as_many_steps_as_calls_allow_and_each_is_there_once():
    scheduler = make_pipeline(random_model(28, LENGTH, std=0.3), build_text8_tokenizer()).scheduler
    samplers = ["random", "corrector=gibbs:corrector_steps=3", "random", "random:temperature=0.5"]
    settings = make_settings(samplers, [4, 16], [1.0, 0.5], scheduler)
    found = [(s.sampler, s.steps, s.temperature, s.scheduler.config.num_inference_steps) for s in settings]
    corrected = "corrector=gibbs:corrector_steps=3"
    assert found == [
        *(("random", n, t, n) for n in (4, 16) for t in (1.0, 0.5)),
        *((corrected, n, t, n // 4) for n in (4, 16) for t in (1.0, 0.5)),
    ]


# Equal entropy --------------------------------------------------------------------------------------------------------


def point(sampler, entropy, nats, steps=8, temperature=1.0):
    return Point(sampler, steps, temperature, {"token_entropy": entropy, "perplexity": math.exp(nats)})


def test_perplexities_are_compared_at_equal_entropy():
    curve = [point("random", 2.0, 1.0), point("random", 3.0, 2.0), point("random", 2.0, 9.0, steps=4)]
    points = [*curve, point("x", 2.5, 1.2), point("x", 3.1, 0.1), point("x", 2.5, math.nan), point("y", 2.25, 1.5)]
    relative = relative_perplexities(points, "random")
    expected = [1.0, 1.0, 1.0, math.exp(1.2 - 1.5), math.nan, math.nan, math.exp(1.5 - 1.25)]
    assert relative == pytest.approx(expected, nan_ok=True)
    points = [
        Point(p.sampler, p.steps, p.temperature, {**p.figures, "relative_perplexity": x})
        for p, x in zip(points, relative, strict=True)
    ]
    best = best_points(points, "random")
    assert [*best] == [8], "at 4 steps there is nothing to compare with"
    assert best[8].sampler == "x"
    summary = frontier_summary(points)
    assert "- at most 8 calls: x at temperature 1, 0.741 at an entropy of 2.500" in summary
    assert "MAUVE" not in summary and summary.count("\n| ") == len(points) + 1


def test_the_error_of_a_perplexity_is_that_of_a_ratio():
    assert math.isnan(perplexity_stderr([3.0], [2]))
    nats = torch.tensor([3.0, 5.0, 4.0, 7.0], dtype=torch.float64)
    mean_error = (nats / 2).std() / 2  # of four texts of two tokens each
    expected = math.exp(nats.mean() / 2) * mean_error
    assert perplexity_stderr(nats.tolist(), [2] * 4) == pytest.approx(expected.item())


# The command ----------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_samples(folders, swept):
    results = results_of(swept)["results"]
    found = [(r["sampler"], r["steps"], r["temperature"]) for r in results]
    assert len(set(found)) == len(found) == 2 * (4 * 2 + 1) and ("threshold:threshold=0.3", 4, 0.5) in found
    judge = GPT2LMHeadModel.from_pretrained(folders / "judge")
    pipeline = quiet(MaskedDiffusionPipeline.from_pretrained(folders / "model"))
    rows = [json.loads(x) for x in next(iter((swept / "samples").glob("*.jsonl"))).read_text().splitlines()]
    generators = [seeded(row["seed"]) for row in rows]
    for result in results:
        made = pipeline.scheduler.with_options(**read_sampler(result["sampler"])[1])
        calls = 2 if result["sampler"].startswith("corrector") else 1
        drawing = MaskedDiffusionPipeline(pipeline.model, made, pipeline.tokenizer)
        generators = [seeded(row["seed"]) for row in rows]
        output = quiet(drawing)(
            num_samples=3,
            num_inference_steps=result["steps"] // calls,
            temperature=result["temperature"],
            generator=generators,
        )
        figures, tokens = result["figures"], token_statistics(output.sequences)
        assert {name: figures[name] for name in tokens} == tokens
        scores = generative_perplexity(output.texts, judge, pipeline.tokenizer)
        assert figures["perplexity"] == pytest.approx(scores["perplexity"], rel=1e-5)
        assert 0 < figures["calls"] <= result["steps"] and figures["seconds"] > 0


def test_what_is_written(folders, swept, capsys):
    assert {path.name for path in swept.iterdir()} == {
        *("frontier.json", "frontier.md", "frontier.png", "samples", "figures")
    }
    with PIL.Image.open(swept / "frontier.png") as picture:
        assert picture.width > picture.height
    page, results = (swept / "frontier.md").read_text(encoding="utf-8"), results_of(swept)
    assert page.count("\n| ") == 2 + len(results["results"]) + 1
    for words in ("perplexity", "entropy", "repeated 4-grams", "distinct-2", "calls", "seconds", "real text"):
        assert words in page
    assert "md4 frontier" in page and "There is no MAUVE" in page and "(frontier.png)" in page
    assert results["references"]["perplexity"] > 1 and results["options"]["seed"] == 0


def test_a_rerun_draws_nothing_and_more_samples_only_those(folders, swept, monkeypatch, capsys):
    before, drawn = results_of(swept), []
    call = MaskedDiffusionPipeline.__call__
    monkeypatch.setattr(
        MaskedDiffusionPipeline, "__call__", lambda self, **x: drawn.append(len(x["generator"])) or call(self, **x)
    )
    main(command(folders, swept))
    assert not drawn and results_of(swept)["results"] == before["results"]
    main(command(folders, swept, "--num_samples", 5, samplers=["random"]))
    assert drawn == [2] * 4 and all(r["figures"]["num_sequences"] == 5 for r in results_of(swept)["results"])
    main(command(folders, swept))
    assert results_of(swept)["results"] == before["results"], "of the first three samples again"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_sweep_goes_on_where_it_was_interrupted(folders, swept, tmp_path, monkeypatch, capsys, batch):
    call, calls = MaskedDiffusionPipeline.__call__, []

    def interrupted(self, **options):
        calls.append(options)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return call(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedDiffusionPipeline, "__call__", interrupted)
        with pytest.raises(SystemExit) as stop:
            main(command(folders, tmp_path, "--batch_size", batch, samplers=SAMPLERS[:2]))
    assert stop.value.code == 130
    kept = 4 if batch == 1 else 12
    assert f"{kept} of 24 samples are kept. To resume, run the same command again." in capsys.readouterr().err
    assert not (tmp_path / "frontier.json").exists()
    main(command(folders, tmp_path, "--batch_size", batch, samplers=SAMPLERS[:2]))
    entropies, of_one_run = (
        [r["figures"]["token_entropy"] for r in results_of(out)["results"]] for out in (tmp_path, swept)
    )
    assert len(entropies) == 8 and entropies == of_one_run[:8], "in any batches"


@pytest.mark.slow  # several new processes
def test_processes_divide_the_samples_and_change_none(folders, tmp_path):
    main(command(folders, tmp_path / "one"))
    output = succeed([*TORCHRUN, "-m", "md4_hf", *command(folders, tmp_path / "two")], OMP_NUM_THREADS="1")
    assert output.count("the samples are in") == 1
    assert without_seconds(results_of(tmp_path / "two")) == without_seconds(results_of(tmp_path / "one"))
    names = [sorted(path.name for path in (tmp_path / n / "samples").iterdir()) for n in ("one", "two")]
    assert names[0] == names[1]


def test_samples_without_tokens_for_the_judge_do_not_end_a_sweep(folders, tmp_path, monkeypatch):
    """All letters but one are suppressed in the weights: the texts are spaces, which the judge's tokenizer drops."""
    pipeline = MaskedDiffusionPipeline.from_pretrained(folders / "model")
    pipeline.model.lm_head.weight.data.zero_()
    space = pipeline.tokenizer.convert_tokens_to_ids(" ")
    head = pipeline.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
    head.bias.data[space] = 50.0
    monkeypatch.setattr("md4_hf.cli.frontier.load_pipeline", lambda *args, **kwargs: pipeline)
    main(command(folders, tmp_path, samplers=["random"]))
    results = results_of(tmp_path)["results"]
    assert all(r["figures"]["perplexity"] is None and r["figures"]["token_entropy"] == 0 for r in results)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--samplers", "confidense"], "`order` must be one of"),
        (["--samplers", "confidence:treshold=0.5"], "Did you mean 'threshold'?"),
        (["--samplers", "threshold:threshold=high"], "`threshold` must be float"),
        (["--samplers", "threshold:threshold=0.5,threshold=0.6"], "with each key once"),
        (["--samplers", "random:num_inference_steps=5"], "--samplers must be an order or key=value"),
        (["--samplers", "confidence:remasking=cap"], "--samplers must be samplers of this model"),
        (["--samplers", "entropy_bound:entropy_bound=-1"], "`entropy_bound` must be finite and >= 0, got -1"),
        (["--samplers", "remasking=cap:eta=2"], "`eta` must be in [0, 1], got 2"),
        (["--samplers", "corrector=informed:corrector_steps=5"], "--steps must be >= 6, the network calls of a step"),
        (["--steps", "0"], "--steps must be >= 1, got 0"),
        (["--temperatures", "-1"], "must be finite and >= 0, got -1.0"),
        (["--num_samples", "0"], "--num_samples must be >= 1, got 0"),
        (["--length", "17"], "--length must be in [1, 16], the length of the model, got 17"),
        (["--judge", "MODEL"], "--judge must be a folder or Hub id of a causal language model"),
        (["--references", "no.txt"], "--references must be"),
        (["--output_dir", "FILE"], "--output_dir must be a folder that can be written"),
        (["--max_length", "99"], "--max_length must be <= 32"),
    ],
)
def test_errors_come_before_any_work(folders, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr(MaskedDiffusionPipeline, "__call__", lambda *_, **__: pytest.fail("drawn"))
    (tmp_path / "file").write_text("mine")
    names = {"MODEL": folders / "model", "FILE": tmp_path / "file"}
    argv = command(folders, tmp_path / "out", *(names.get(word, word) for word in options))
    if "--max_length" in argv:  # no references are measured then, but the judge is tried
        argv = [word for word in argv if word not in ("--references", str(folders / "real.txt"))]
    assert message in failure(capsys, argv)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "model, samplers, message",
    [
        ("images", ["random"], "MODEL must be a masked diffusion model of text with a tokenizer, got images"),
        ("ids", ["random"], "MODEL must be a masked diffusion model of text with a tokenizer, got no tokenizer"),
        ("genmd4", ["confidence"], '`order` must be "random" with the schedules of GenMD4'),
        ("genmd4", ["remasking=loop"], "with the schedules of GenMD4, got 'loop'"),
    ],
)
def test_models_that_a_sampler_is_not_defined_for(folders, tmp_path, capsys, model, samplers, message):
    argv = command(folders, tmp_path / "out", samplers=samplers)
    argv[1] = str(folders / model)
    assert message in failure(capsys, argv)
    assert not list(tmp_path.iterdir())


def test_genmd4_is_swept_too(folders, tmp_path):
    argv = command(folders, tmp_path, "--steps", 4, samplers=["random", "remasking=cap"])
    argv[1] = str(folders / "genmd4")
    main(argv)
    assert len(results_of(tmp_path)["results"]) == 4


# MAUVE ----------------------------------------------------------------------------------------------------------------


def test_without_its_library_mauve_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)  # as if it were not installed
    judge = GPT2LMHeadModel.from_pretrained(folders / "judge")
    with pytest.raises(ImportError, match="pip install mauve-text"):
        mauve(["a text"], ["a text"], judge, build_text8_tokenizer())


def test_mauve_is_high_for_like_texts_and_low_for_others(folders):
    pytest.importorskip("mauve", reason="needs mauve-text")
    judge = GPT2LMHeadModel.from_pretrained(folders / "judge")
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [letters[i % 26] * 2 + letters[i // 26 % 26] * 3 for i in range(120)]
    shuffled = texts[::-1]
    alike, other = (
        mauve(given, texts, judge, build_text8_tokenizer()) for given in (shuffled, ["zzzzzzzz qqqq"] * 120)
    )
    assert alike > 0.9 and other < 0.2
