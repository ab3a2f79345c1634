# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/blocks.py`: trainings and texts that are kept, bytes of the cache, parts that keep their figures."""

import json
import shutil

import blocks
import pytest
from block_parts import bounds, speed
from block_parts.models import AUTOREGRESSIVE, BIDIRECTIONAL, MODELS, SIZES
from block_parts.texts import REAL, WAYS
from kept_runs import kept, trained, with_error


def options(tmp_path, *argv):
    return blocks.parse_arguments(["--work_dir", str(tmp_path / "work"), "--seeds", "0", "--threads", "1", *argv])


@pytest.fixture
def timing(tmp_path):
    """Options of a timing of short texts."""
    argv = ["--parts", "speed", "--lengths", "32", "64", "--batch", "2", "--repeats", "1"]
    return options(tmp_path, *argv, "--output", str(tmp_path / "blocks.md"))


def test_a_result_is_computed_once_for_the_same_facts(tmp_path):
    computed = []

    def compute():
        computed.append(len(computed))
        return computed[-1]

    assert [kept(tmp_path, {"a": 1, "b": 2}, compute) for _ in range(2)] == [0, 0]
    assert kept(tmp_path, {"b": 2, "a": 1}, compute) == 0  # their order is no fact
    assert kept(tmp_path, {"a": 1, "b": 3}, compute) == 1
    assert kept(None, {"a": 1, "b": 2}, compute) == 2
    facts = [json.loads(path.read_text())["facts"] for path in tmp_path.iterdir()]
    assert {"a": 1, "b": 2} in facts and len(facts) == 2


def test_means_of_one_value_have_no_error():
    assert with_error([2.0]) == "2.000" and with_error([1.0, 3.0]) == "2.000 ± 1.000"


def test_an_unfinished_training_is_begun_anew(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be " * 200)
    chosen = {"preset": "tiny", "data": tmp_path / "text.txt", "hidden_size": 32, "num_hidden_layers": 1}
    chosen = {name: str(value) for name, value in {**chosen, "max_steps": 1, "final_eval_draws": 1}.items()}
    folder, figures = trained(tmp_path / "work", chosen)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "leftover").touch()
    assert trained(tmp_path / "work", chosen) == (folder, figures)  # what is kept is not asked of the folder
    (tmp_path / "work" / f"{folder.name}.json").unlink()
    again = trained(tmp_path / "work", chosen)[1]
    assert again["eval_loss"] == figures["eval_loss"] and not (folder / "leftover").exists()


def test_the_speed_of_each_way_and_the_bytes_of_the_cache(timing, monkeypatch):
    monkeypatch.setattr(speed, "NETWORK", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2})
    text = blocks.report(timing, ["--parts", "speed"])
    rows = json.loads((timing.work_dir / "speed.json").read_text())["figures"]["rows"]
    floats_of_a_token = 2 * speed.NETWORK["num_hidden_layers"] * speed.NETWORK["hidden_size"]
    assert [row["length"] for row in rows] == [32, 64]
    assert [row["cache_bytes"] for row in rows] == [4 * floats_of_a_token * (n - speed.BLOCK) for n in (32, 64)]
    ways = (speed.EXACT, speed.NONE, speed.APPROXIMATE)
    assert all(row[way] > 0.0 for row in rows for way in ways)
    assert text.count("\n| ") == 4 and "Processor time" in text and "blocks.py --parts speed" in text


def test_a_part_that_is_not_run_keeps_its_figures_and_its_command(timing):
    figures = {"settings": {"repeats": 1, "batch": 2, "parameters": 3, "is_processor_time": False}, "rows": []}
    found = {"machine": "Another machine.", "command": "python benchmarks/blocks.py --old", "figures": figures}
    timing.work_dir.mkdir()
    timing.parts, timing.output = [], None
    assert "Speed" not in blocks.report(timing, [])
    (timing.work_dir / "speed.json").write_text(json.dumps(found))
    text = blocks.report(timing, ["--new"])
    assert "Another machine." in text and "--old" in text and "--new" not in text


def test_the_section_of_bounds_has_a_row_for_each_model_and_a_plot(tmp_path):
    found = {name: {"bits": [2.0, 2.5], "error_of_estimate": 0.01, "seconds": 1.0} for name in MODELS}
    figures = {"settings": {"max_steps": 1, "draws": 1, "seeds": 2}, "data": {"one": found, "other": found}}
    lines = bounds.section(figures, tmp_path / "blocks")
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert len(rows) == len(MODELS) == len(SIZES) + 3
    assert all(line.count("2.250 ± 0.250 (0.010)") == 2 for line in rows)
    assert (tmp_path / "blocks_bounds.png").stat().st_size > 0
    assert rows[0].startswith(f"| {AUTOREGRESSIVE} |") and rows[-1].startswith(f"| {BIDIRECTIONAL} |")


@pytest.mark.slow
def test_trainings_and_texts_are_made_once(tmp_path):
    (tmp_path / "plays.txt").write_text("to be or not to be that is the question " * 250)
    argv = ["--parts", "bounds", "texts", "--data", str(tmp_path / "plays.txt"), "--max_steps", "1", "--draws", "1"]
    args = options(
        tmp_path, *argv, "--judge_steps", "1", "--num_samples", "1", "--output", str(tmp_path / "blocks.md")
    )
    text = blocks.report(args, argv)
    assert all(f"\n| {name} | " in text for name in [*MODELS, *WAYS, REAL])
    results = {path: path.stat().st_mtime_ns for path in args.work_dir.glob("*.json") if len(path.stem) == 16}
    assert len(results) == len(MODELS) + 1 + len(WAYS)  # trainings, with that of the judge, and texts
    assert blocks.report(args, argv) == text
    assert all(path.stat().st_mtime_ns == time for path, time in results.items())
