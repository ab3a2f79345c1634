# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/gpu.py` as a program: what was measured stays, whatever happens to a part; wheels and corpus to carry."""

import gzip
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gpu_corpus
import gpu_figures
import gpu_wheels
import pytest
from gpu_parts import PARTS, running
from gpu_parts.learning import read_text
from gpu_parts.part import Options, Part
from gpu_parts.report import Report
from packaging.requirements import Requirement


ROOT = Path(__file__).parents[2]

FAKE_PARTS = {
    "fails": "yield Row('first', {'x': 1.5})\n    raise RuntimeError('no kernel')",
    "dies": "yield Row('first', {'x': 2.5})\n    os._exit(3)",
    "hangs": "yield Row('first', {'x': 3.5}, ok=True)\n    time.sleep(600)",
    "is_right": "yield Row('first', {'environment': os.environ['ASKED_FOR']}, ok=True)",
}


@pytest.fixture
def fake_parts(tmp_path, monkeypatch):
    """Parts that go wrong in all ways, and one that does not, as modules that a new process can import."""
    for name, body in FAKE_PARTS.items():
        source = f"import os, time\nfrom gpu_parts.part import Row\ndef run(context):\n    {body}\n"
        (tmp_path / f"part_that_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    environment = {"ASKED_FOR": "yes"}
    return [Part(name, name, 1.0, environment, module=f"part_that_{name}") for name in FAKE_PARTS]


def test_a_part_that_fails_dies_or_hangs_takes_nothing_along(tmp_path, monkeypatch, fake_parts):
    monkeypatch.setattr(running, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(running, "LEAST_SECONDS", 0.0)
    report = Report(tmp_path / "gpu.json", {"machine": "a machine"})
    options = Options("cpu", tmp_path, tiny=True)
    fails, dies, hangs, is_right = fake_parts
    running.run_parts([fails, dies], options, report, time.time() + 120.0)
    running.run_parts([hangs], options, report, time.time() + 4.0)
    running.run_parts([is_right], options, report, time.time() + 120.0)
    parts = json.loads(report.path.read_text())["parts"]
    assert {name: part["state"] for name, part in parts.items()} == {
        "fails": "failed",
        "dies": "failed",
        "hangs": "stopped",
        "is_right": "done",
    }
    assert all(len(part["rows"]) == 1 for part in parts.values())
    assert "RuntimeError: no kernel" in parts["fails"]["error"] and "exit code 3" in parts["dies"]["error"]
    assert parts["is_right"]["rows"][0]["values"] == {"environment": "yes"}
    table = report.table()
    assert "fails (fails): failed" in table and "RuntimeError: no kernel" in table and "1 of 1 checks hold" in table


def test_rows_are_on_disk_while_a_part_still_runs(tmp_path, fake_parts):
    report = Report(tmp_path / "gpu.json", {"machine": "a machine"})
    part = fake_parts[0]
    report.begin(part)
    report.add(part, next(iter(part.run(None))))
    found = json.loads(report.path.read_text())["parts"]["fails"]
    assert found["state"] == "running" and found["rows"][0]["values"] == {"x": 1.5}


def test_a_second_call_keeps_the_parts_that_it_does_not_run(tmp_path, fake_parts):
    for part in fake_parts[:2]:
        report = Report(tmp_path / "gpu.json", {"machine": "a machine"})
        report.begin(part)
        report.end(part, "done", None, 1.0)
    assert set(json.loads(report.path.read_text())["parts"]) == {"fails", "dies"}


def test_a_part_is_stopped_with_the_run(tmp_path, monkeypatch, fake_parts):
    def stop_after_a_row(self, part, row):
        add(self, part, row)
        raise SystemExit("stopped")

    add = Report.add
    monkeypatch.setattr(Report, "add", stop_after_a_row)
    report = Report(tmp_path / "gpu.json", {"machine": "a machine"})
    with pytest.raises(SystemExit):
        running.run_parts(fake_parts[2:3], Options("cpu", tmp_path), report, time.time() + 120.0)
    found = json.loads(report.path.read_text())["parts"]["hangs"]
    assert found["state"] == "stopped" and len(found["rows"]) == 1


def test_no_part_begins_without_time(tmp_path, fake_parts):
    report = Report(tmp_path / "gpu.json", {"machine": "a machine"})
    running.run_parts(fake_parts[:1], Options("cpu", tmp_path), report, time.time())
    assert report.content["parts"]["fails"]["state"] == "left out"


def gpu(*arguments, **kwargs):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, **kwargs)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--minutes", "0"], "`minutes` must be > 0"),
        (["--corpus", "nowhere.txt"], "`corpus` must be a file"),
        (["--parts", "nothing"], "invalid choice"),
    ],
)
def test_wrong_options_end_the_program_before_anything_runs(tmp_path, arguments, message):
    result = gpu(*arguments, "--output", str(tmp_path / "out"))
    assert result.returncode == 2 and message in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_program_runs_on_a_processor(tmp_path):
    result = gpu("--minutes", "12", "--output", str(tmp_path))
    assert result.returncode == 0, result.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys([p.name for p in PARTS], "done")
    failed = [row for part in parts.values() for row in part["rows"] if row["ok"] is False]
    assert not failed
    assert {"learning.png", "throughput.png", "samples.txt"} <= {path.name for path in tmp_path.iterdir()}
    assert "checks hold" in result.stdout
    figures = {label: figure({"parts": parts}) for label, figure in gpu_figures.FIGURES.items()}
    of_gpus = {label for label in figures if any(word in label for word in ("waits", "memory", "Liger", "64 samples"))}
    assert {label for label, figure in figures.items() if figure is None} == of_gpus


# The table of the documentation ---------------------------------------------------------------------------------------


def test_the_documentation_has_the_figures_of_the_recorded_runs():
    page = gpu_figures.PAGE.read_text(encoding="utf-8")
    assert page == gpu_figures.with_table(page, gpu_figures.table(gpu_figures.recorded()))


def test_figures_are_those_of_the_rows_and_never_a_guess():
    rows = [
        {"name": "openwebtext-small, eager, batch 8", "values": {"tokens_per_s": 1000.0, "mfu": 0.25}, "ok": None},
        {"name": "openwebtext-small, eager, batch 16", "values": {"tokens_per_s": 1500.0, "mfu": 0.31}, "ok": None},
        {"name": "openwebtext-small, eager, batch 32", "values": {}, "ok": None},
    ]
    written = gpu_figures.table({"h200": {"machine": "one H200", "parts": {"training_speed": {"rows": rows}}}})
    lines = written.splitlines()
    assert lines[0] == "| | h200 |" and lines[-1] == "- h200: one H200"
    assert "| openwebtext-small, tokens/s, eager | 1,500 |" in lines
    assert "| openwebtext-small, share of the matrix product | 31% |" in lines
    assert sum(gpu_figures.MISSING in line for line in lines) == len(gpu_figures.FIGURES) - 2


# Wheels ---------------------------------------------------------------------------------------------------------------


def write_wheel(folder, name, requirements=()):
    """A wheel of one empty module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {x}" for x in requirements)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_what_wheels_need_and_the_machine_lacks_is_carried(tmp_path):
    needs = {
        "a": ["b>=1", "there>=2", "too_old>=3", 'other; sys_platform == "win32"', 'extra_one; extra == "all"'],
        "b": ["c", "a"],
        "c": ["known_by_name>=9"],
        "too_old": [],
    }
    have = tmp_path / "have.txt"
    have.write_text("# the machine\nthere==2.1\ntoo-old==1.0\nknown_by_name\n")
    asked = []

    def fetch(requirement):
        asked.append(requirement)
        name = Requirement(requirement).name
        return write_wheel(tmp_path, name, needs[name.replace("-", "_")])

    closure = gpu_wheels.Closure(gpu_wheels.Machine.read(have, "3.12"), {"b": "1.5", "too-old": "2.0"}, fetch)
    closure.add(Requirement("a"))
    assert asked == ["a", "b==1.5", "c", "too-old>=3"]  # a pin that does not satisfy a requirement is not taken


def test_wheels_are_installed_from_their_files_alone(tmp_path):
    write_wheel(tmp_path, "carried_module")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_wheels.py"), "install", "--folder", str(tmp_path)]
    subprocess.run([*command, "--target", str(tmp_path / "site")], check=True, capture_output=True)
    assert (tmp_path / "site" / "carried_module.py").exists()


def test_the_tested_versions_are_carried():
    pins = gpu_wheels.pinned(ROOT / "constraints.txt")
    machine = gpu_wheels.Machine.read(gpu_wheels.HERE / "gpu_machine.txt", "3.12")
    assert {*gpu_wheels.CARRIED} - {*pins} == {"liger-kernel"}, "which is there to compare with"
    assert machine.packages["torch"] == "2.11.0" and "diffusers" not in machine.packages


# Corpus ---------------------------------------------------------------------------------------------------------------


def test_sources_that_cannot_be_had_are_named_and_left_out(monkeypatch):
    def missing(folder):
        raise gpu_corpus.MissingSourceError("no network")

    monkeypatch.setitem(gpu_corpus.SOURCES, "dictionary", missing)
    text, found = gpu_corpus.corpus(["dictionary", "manual"])
    assert found == {"dictionary": "left out: no network", "manual": len(text)} and len(text) > 100_000
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_the_dictionary_is_read_from_its_package(tmp_path, monkeypatch):
    def unpacked(packages, folder):
        (folder / "gcide.dict.dz").write_bytes(gzip.compress(b'Absolute \\Ab"so*lute\\, n.'))
        return folder

    monkeypatch.setattr(gpu_corpus, "unpacked", unpacked)
    assert gpu_corpus.corpus(["dictionary"])[0] == "absolute ab so lute n "


def test_docstrings_are_read_from_sources_that_parse(tmp_path):
    prose = "A sentence that is long enough. " * 10
    path = tmp_path / "module.py"
    path.write_text(f'def f():\n    """{prose}"""\n\ndef g():\n    """Short."""\n')
    assert [text.strip() for text in gpu_corpus.docstrings_of(path)] == [prose.strip()]
    path.write_text("def f(:\n")
    assert list(gpu_corpus.docstrings_of(path)) == []


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.xz"])
def test_what_is_written_is_what_is_learned_from(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", ["gpu_corpus.py", "--output", str(tmp_path / name), "--sources", "manual"])
    gpu_corpus.main()
    assert read_text(tmp_path / name) == gpu_corpus.corpus(["manual"])[0]
