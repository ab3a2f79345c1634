# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Run the code of the notebooks from top to bottom, with tiny settings in place of their parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
# Values for the cell with the tag "parameters"; the later ones use what the first one made.
SETTINGS = {
    "quick_start": {"max_steps": 4, "num_inference_steps": 4},
    "own_sampler": {"num_samples": 2, "num_inference_steps": 4},
    "fine_tune": {"base_steps": 3, "max_steps": 3},
}


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def program(name):
    """The code cells as one program, in which the settings replace the parameters."""
    parts = []
    for cell in read(name)["cells"]:
        if cell["cell_type"] == "code":
            parts.append("".join(cell["source"]))
            if "parameters" in cell["metadata"].get("tags", []):
                parts += [f"{key} = {value!r}" for key, value in SETTINGS[name].items()]
    return "\n\n".join(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


def run(name, folder):
    path = folder / f"{name}.py"
    path.write_text(program(name), encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run([sys.executable, path.name], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_notebooks_run_from_top_to_bottom(folder):
    outputs = {}
    for name in SETTINGS:
        result = run(name, folder)
        assert result.returncode == 0, f"{name}: {result.stderr}"
        outputs[name] = result.stdout
    assert "bits per letter of held-out text, at most" in outputs["quick_start"]
    assert "<html" in (folder / "runs" / "quick-start" / "unmasking.html").read_text(encoding="utf-8")
    assert outputs["fine_tune"].count(" = ") >= 6, "an answer for each word"
    assert outputs["own_sampler"].count(" bits ") == 4


@pytest.mark.parametrize("name", SETTINGS)
def test_notebooks_are_stored_without_outputs_and_each_parameter_exists(name):
    cells = read(name)["cells"]
    assert all(
        not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    given = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    assert all(key in given for key in SETTINGS[name])
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*SETTINGS}
