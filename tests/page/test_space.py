# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 export --space`: the files of a Gradio Space, which starts with the source of the package that it carries."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from commands import failure
from gradio_pages import values
from tiny import random_model

from md4_hf import build_byte_tokenizer, load_pipeline, make_pipeline
from md4_hf.cli import main
from md4_hf.page.space import GRADIO_VERSION, readme, requirements, write_space
from md4_hf.utils.libraries import LIBRARIES


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("runs") / "tiny", build_byte_tokenizer()
    make_pipeline(random_model(len(tokenizer), 24, std=0.2), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def space(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spaces") / "space"
    main(["export", model, str(folder), "--space"])
    return folder


def test_a_space_has_model_package_and_page(space):
    assert {path.name for path in space.iterdir()} == {"README.md", "app.py", "md4_hf", "model", "requirements.txt"}
    compile((space / "app.py").read_text(encoding="utf-8"), "app.py", "exec")
    assert load_pipeline(str(space / "model"), device="cpu").tokenizer is not None
    package = {path.relative_to(space) for path in (space / "md4_hf").rglob("*") if path.is_file()}
    source = {path.relative_to(ROOT / "src") for path in (ROOT / "src" / "md4_hf").rglob("*") if path.is_file()}
    assert package == {path for path in source if "__pycache__" not in path.parts}


def test_the_card_tells_the_hub_how_to_run_it(space):
    entries = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert (entries["title"], entries["sdk"], entries["app_file"]) == ("tiny", "gradio", "app.py")
    assert entries["sdk_version"] == GRADIO_VERSION and entries["python_version"] == f"3.{sys.version_info.minor}"
    of_hub = yaml.safe_load(readme("a: b", "me/model").split("---\n")[1])
    assert "models" not in entries and (of_hub["models"], of_hub["title"]) == (["me/model"], "a: b")


def test_all_requirements_are_pinned(space):
    lines = (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    assert {line.partition("==")[0] for line in lines} == {"gradio", *LIBRARIES}
    assert f"gradio=={GRADIO_VERSION}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert requirements("md4_hf @ git+https://x", ["peft"])[0] == "md4_hf @ git+https://x"


def test_a_model_of_the_hub_is_named(tmp_path):
    write_space(tmp_path / "space", 'a "title"', "me/model", {"revision": "v1"}, package="md4_hf==0.1.0")
    assert {path.name for path in (tmp_path / "space").iterdir()} == {"README.md", "app.py", "requirements.txt"}
    app = (tmp_path / "space" / "app.py").read_text(encoding="utf-8")
    compile(app, "app.py", "exec")
    assert "MODEL = 'me/model'\nOPTIONS = {'revision': 'v1'}" in app and "pathlib" not in app


def test_a_folder_that_holds_anything_is_refused_and_a_failure_leaves_nothing(model, tmp_path, capsys):
    (tmp_path / "kept").write_text("x", encoding="utf-8")
    assert "FOLDER must be empty or absent for a Space" in failure(capsys, ["export", model, str(tmp_path), "--space"])

    def broken(folder):
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_space(tmp_path / "space", "t", broken)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("words", [["--overwrite"], ["--push_to_hub", "me/x"]])
def test_options_of_other_exports_are_refused(model, tmp_path, words, capsys):
    assert words[0] in failure(capsys, ["export", model, str(tmp_path / "space"), "--space", *words])
    assert not (tmp_path / "space").exists()


def test_the_package_is_named_for_a_space_alone(model, tmp_path, capsys):
    assert "--package" in failure(capsys, ["export", model, str(tmp_path / "x"), "--package", "md4_hf"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio: pip install 'md4_hf[demo]'")
def test_a_space_starts_and_fills_a_gap(space, tmp_path):
    from gradio_client import Client

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8"))):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        with urllib.request.urlopen(f"{found[0]}/config") as answer:
            assert json.load(answer)["title"] == "tiny"
        fields = {"Text with gaps": "ab<mask:4>", "Steps": 4, "Seed": "1"}
        client = Client(found[0], verbose=False)
        shown, note, _ = client.predict(*values(client, "/infill", **fields), api_name="/infill")
        assert "done" in note and shown.count('class="drawn"') == 4
    finally:
        process.kill()
        process.wait()
