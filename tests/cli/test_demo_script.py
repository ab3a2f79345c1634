# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`make demo` and `md4 train`: what they print in a pipe and on a terminal, and that an interrupted demo resumes."""

import re
import runpy
import signal
import sys
from pathlib import Path

import pytest
from launching import kill, run, start
from terminal import PseudoTerminal


DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"
SMALL = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --tokenizer bpe:300 --eval_steps 100".split()
SENTENCE = "If the value is not a string, an error is raised. This method returns the number of elements in it.\n"
NOISE = ("{'", "Loading weights", "\r", "\x1b", "%|")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "my.txt").write_text(SENTENCE * 200)
    return [*SMALL, "--logging_steps", "10", "--data", str(folder / "my.txt"), "--output_dir", str(folder / "run")]


def test_an_interrupted_demo_resumes_and_prints_a_table_samples_and_an_infilling(options):
    command = [sys.executable, DEMO, *options, "--max_steps", "200"]
    process, seen = start(command), ""
    try:
        for line in process.stdout:
            seen += line
            if re.match(r" +10 ", line):
                process.send_signal(signal.SIGINT)
                break
        seen += process.communicate(timeout=60)[0]
        assert process.returncode == 130 and "To resume" in seen, seen
    finally:
        kill(process)
    stopped = int(re.search(r"Stopped at step (\d+)", seen)[1])
    status, printed = run(command)
    assert status == 0, printed
    assert not any(text in seen + printed for text in NOISE)
    steps = [int(step) for step in re.findall(r"^ +(\d+) +\d+\.\d ", printed, re.MULTILINE)]
    assert stopped < steps[0] and steps[-1] == 200 and "bits/character" in printed
    folder = options[-1]
    assert f"loss.png and model card are in {folder}" in printed
    samples, infilled = printed.split("Samples, which begin with")[1].split("A text with gaps")
    assert samples.count("\n\n") >= 3 and max(map(len, samples.splitlines())) <= 100
    assert "--- 1 ---" in infilled and " of the given" in infilled
    assert f"md4 infill {folder}" in infilled.split("Next:")[1]
    status, printed = run(command)
    assert status == 0 and "holds a trained model already" in printed and samples in printed


def test_a_training_on_a_terminal_prints_rows_for_evaluations_alone(options, tmp_path):
    train = ["train", "--preset", "tiny", *options[:-1], str(tmp_path / "run"), "--max_steps", "100"]
    terminal = PseudoTerminal(*train)
    shown = terminal.read_until("loss.png and model card are in")
    terminal.ended()
    assert "{'" not in shown and "Loading weights" not in shown
    rows = re.findall(r"^ +(\d+) +\d+\.\d .*bits/character", shown.replace("\r", "\n"), re.MULTILINE)
    assert rows == ["100"]


@pytest.mark.parametrize(
    "text, lines",
    [
        ("One sentence. Another one! A third that is cut", ["One sentence. Another one!"]),
        ("All of it is whole.", ["All of it is whole."]),
        ("None of it ends", ["None of it ends"]),
        ("Version 3.11 of it.\nNext line.\nThe last", ["Version 3.11 of it.", "Next line."]),
    ],
)
def test_a_sample_ends_with_its_last_whole_sentence(text, lines):
    assert runpy.run_path(str(DEMO))["whole"](text) == lines
