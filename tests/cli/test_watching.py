# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`--watch`, `--html` and `--gif`: the unmasking of the samples of a command, which they do not change."""

import json
import re
import sys

import numpy as np
import PIL.Image
import pytest
from commands import failure
from terminal import PseudoTerminal, Terminal, wrapped
from tiny import random_image_model, random_model

from md4_hf import MD4ImageProcessor, build_byte_tokenizer, load_pipeline, make_pipeline
from md4_hf.cli import main
from md4_hf.cli.draw import Sampling
from md4_hf.cli.options import SampleArguments, WatchArguments
from md4_hf.cli.watching import Unmasking
from md4_hf.utils.processes import Processes
from md4_hf.utils.text_rows import visible


STEPS = ["--num_inference_steps", "6", "--seed", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of bytes."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), build_byte_tokenizer()
    network = random_model(len(tokenizer), 24, std=0.2, time_conditioning=False)
    make_pipeline(network, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """A model of small images."""
    folder, network = tmp_path_factory.mktemp("images"), random_image_model(4, 8)
    make_pipeline(network, image_processor=MD4ImageProcessor.for_config(network.config)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data_of(page):
    (text,) = re.findall(r'id="trajectory">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(text)


def end_of(sample):
    """Values of a sample of a page at its end."""
    values = list(sample["start"])
    for _, entries in sample["changes"]:
        for place, value, *_ in entries:
            values[place] = value
    return values


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_page_has_the_samples_that_are_printed(model, folder, capsys):
    command = ["infill", model, "a </script> <mask:8>.", "--num_samples", "3", "--batch_size", "2", *STEPS]
    main(command)
    printed = capsys.readouterr().out
    main([*command, "--html", "page.html", "--gif", "film.gif", "--color_by", "confidence", "--seconds", "12"])
    captured = capsys.readouterr()
    assert captured.out == printed and "The unmasking is in page.html and film.gif" in captured.err
    data = data_of(folder / "page.html")
    texts = ["".join(end_of(sample)) for sample in data["samples"]]
    assert len(texts) == 3 and all(text in printed for text in texts)
    assert data["colorBy"] == "confidence" and data["labels"][-1] == "step 6 of 6"
    with PIL.Image.open(folder / "film.gif") as film:
        assert film.n_frames > 1 and 1000 < film.info["duration"] < 3000, "twelve seconds of six steps and their start"


@pytest.mark.parametrize("total", [5, 20])
def test_a_page_has_the_first_samples_also_of_a_command_that_was_interrupted(model, folder, monkeypatch, total):
    command = ["sample", model, "--num_samples", str(total), "--batch_size", "2", *STEPS, "--length", "6"]
    command += ["--output", "x.jsonl", "--html", "page.html", "--quiet"]
    rows = Sampling.rows

    def until_the_third_batch(sampling, indices):
        if indices.start == 4:
            raise KeyboardInterrupt
        return rows(sampling, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "rows", until_the_third_batch)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            main(command)
    assert not (folder / "page.html").exists() and not (folder / "x.jsonl").exists()
    main(command)
    pages = ["".join(end_of(sample)) for sample in data_of(folder / "page.html")["samples"]]
    assert [page.replace("<|endoftext|>", "") for page in pages] == [
        row["text"] for row in rows_of(folder / "x.jsonl")
    ][:16]


def test_images_need_no_other_output(image_model, folder):
    main(["sample", image_model, "--num_samples", "3", *STEPS, "--html", "page.html", "--gif", "film.gif"])
    assert {path.name for path in folder.iterdir()} == {"page.html", "film.gif"}
    main(["sample", image_model, "--num_samples", "3", *STEPS, "--html", "again.html", "--output", "x.jsonl"])
    assert (folder / "again.html").read_bytes() == (folder / "page.html").read_bytes()
    images = [np.ravel(row["ids"]).tolist() for row in rows_of(folder / "x.jsonl")]
    assert [end_of(sample) for sample in data_of(folder / "page.html")["samples"]] == images
    picture = PIL.Image.new("L", (8, 8), 85)
    mask = PIL.Image.new("L", (8, 8), 0)
    mask.paste(255, (4, 0, 8, 8))
    picture.save("given.png")
    mask.save("mask.png")
    main(["infill", image_model, "--image", "given.png", "--mask", "mask.png", *STEPS, "--html", "infill.html"])
    (sample,) = data_of(folder / "infill.html")["samples"]
    assert np.reshape(sample["start"], (8, 8))[:, :4].tolist() == [[1] * 4] * 8 and sample["start"].count(None) == 32


@pytest.mark.parametrize(
    "options, message",
    [
        (["--html", "page.txt"], "--html must end in .html, got page.txt"),
        (["--gif", "film.png"], "--gif must end in .gif, got film.png"),
        (["--html", "nowhere/page.html"], "--html must lie in a folder that is there"),
        (["--color_by", "confidence"], "--color_by must be left out without"),
        (["--html", "page.html", "--seconds", "3"], "--seconds must be left out without --watch or --gif"),
        (["--gif", "film.gif", "--seconds", "0"], "--seconds must be > 0, got 0"),
    ],
)
def test_errors_come_before_the_model_is_loaded(model, monkeypatch, capsys, options, message):
    monkeypatch.setattr("md4_hf.cli.sample.load_pipeline", None)
    assert message in failure(capsys, ["sample", model, *options])


# On a terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_texts_are_seen_on_a_terminal_while_they_are_unmasked(model, folder, capsys):
    command = ["infill", model, "a naïve <mask:8>.", "--num_samples", "2", *STEPS]
    main([*command, "--watch"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed, "nothing of it in a pipe"
    main(command)
    assert capsys.readouterr().out == printed
    terminal = PseudoTerminal(*command, "--watch", "--html", "page.html")
    try:
        shown = terminal.read_until("The unmasking is in page.html")
        assert terminal.ended() == 0
    finally:
        terminal.process.kill()
    assert "░" in shown and "\x1b[38;5;" in shown
    shown = shown[shown.index("--- 1") : shown.index("The unmasking is in")]
    screen = Terminal(80)
    screen.write(shown)
    assert screen.rows == wrapped("".join(visible(character) for character in printed), 80)
    texts = ["".join(end_of(sample)) for sample in data_of(folder / "page.html")["samples"]]
    assert len(texts) == 2 and all(text.replace("<|endoftext|>", "") in printed for text in texts)


def test_watch_is_refused_where_nothing_could_be_seen(image_model, model, monkeypatch, capsys):
    command = ["sample", image_model, "--output", "x.png", "--watch", *STEPS]
    assert "--watch must be left out for a model of images" in failure(capsys, command)
    monkeypatch.setattr("md4_hf.cli.watching.watches", lambda stream: True)
    sampling = Sampling(load_pipeline(model), SampleArguments(seed=0))
    with pytest.raises(ValueError, match="`watch` must be left out with several processes, got 2"):
        Unmasking(sampling, WatchArguments(watch=True), 4, Processes(world_size=2), "")
