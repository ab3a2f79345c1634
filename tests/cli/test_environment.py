# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 env`: versions, devices and settings for a bug report, whatever is broken, and never a secret."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
import transformers
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_packaging import PROJECT

import md4_hf
from md4_hf.cli import main
from md4_hf.cli.environment import (
    LIBRARIES,
    OPTIONAL_LIBRARIES,
    commit_of_checkout,
    describe_device,
    report,
    variables,
)


ROOT = Path(__file__).parents[2]
SECRET = "hf_" + "Zq8" * 12
SECTIONS = ["installation:", "libraries:", "hardware:", "accelerate default config:", "environment variables:"]


def run_env(**own):
    """Output of `md4 env` in a process with these variables."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **own}
    command = [sys.executable, "-m", "md4_hf", "env"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_the_report_has_versions_devices_and_threads(capsys):
    main(["env"])
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line and not line.startswith(" ")] == SECTIONS
    lines = {re.sub(" +", " ", line.strip()) for line in text.splitlines()}
    for module in (torch, transformers, accelerate):
        assert f"{module.__name__} {importlib.metadata.version(module.__name__)}" in lines
    assert f" {md4_hf.__version__}, in " in text and f"{sys.version_info.major}.{sys.version_info.minor}." in text
    assert f"{os.cpu_count()} cores" in text and f"{torch.get_num_threads()} within an operation" in text
    assert (torch.version.cuda or torch.version.hip or "processors only") in text


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_commit_of_a_checkout_and_of_its_worktrees_is_told(tmp_path, is_packed):
    def git(*arguments, folder=tmp_path / "checkout"):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "checkout").mkdir()
    git("init", "--quiet", "--initial-branch", "topic/one")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    git("worktree", "add", "--quiet", "../other", "-b", "two")
    if is_packed:
        git("pack-refs", "--all")
    commit = git("rev-parse", "HEAD")[:12]
    for name in ("checkout", "other"):
        assert commit_of_checkout(tmp_path / name / "src" / "md4_hf") == commit
    git("checkout", "--quiet", "--detach")
    assert commit_of_checkout(tmp_path / "checkout" / "src" / "md4_hf") == commit
    assert commit_of_checkout(tmp_path / "nowhere" / "src" / "md4_hf") is None


def test_every_library_that_the_package_can_use_is_in_the_report():
    def names(lines):
        return {canonicalize_name(Requirement(line).name) for line in lines} - {canonicalize_name(PROJECT["name"])}

    def canonical(libraries):
        return {*map(canonicalize_name, libraries)}

    extras = {
        name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in ("test", "dev", "docs")
    }
    assert names(PROJECT["dependencies"]) <= canonical(LIBRARIES)
    assert names(line for lines in extras.values() for line in lines) <= canonical(OPTIONAL_LIBRARIES)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HF_TOKEN", SECRET, "***"),
        ("HUGGING_FACE_HUB_TOKEN", SECRET, "***"),
        ("WANDB_API_KEY", "0123abc", "***"),
        ("WANDB_APIKEY", "0123abc", "***"),
        ("https_proxy", "http://me:word@proxy:8080", "http://***@proxy:8080"),
        (
            "HF_ENDPOINT",
            f"https://hub.example/?access_token={SECRET}&x=1",
            "https://hub.example/?access_token=***&x=1",
        ),
        ("CUDA_EXTRA", f"a {SECRET} b", "a *** b"),
        ("HF_HOME", f"/data/x{SECRET}", "/data/x***"),
        ("HF_HOME", "/data/hf_cache", "/data/hf_cache"),
        ("TOKENIZERS_PARALLELISM", "false", "false"),
        ("CUDA_VISIBLE_DEVICES", "", ""),
        ("TORCH_LOGS", "+dynamo", "+dynamo"),
    ],
)
def test_variables_are_shown_without_secrets(name, value, shown):
    assert dict(variables({name: value, "MY_PASSWORD": SECRET})) == {name: shown}


def test_a_broken_library_is_told_and_the_rest_of_the_report_is_there(tmp_path):
    (tmp_path / "torch.py").write_text(
        f"raise ImportError('libcudart.so.12: no such file; {SECRET}')", encoding="utf-8"
    )
    text = run_env(PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]), MD4_TEST="here")
    assert re.search(r"error +ImportError: libcudart.so.12: no such file; \*\*\*\n", text)
    assert "MD4_TEST" in text and f"transformers     {transformers.__version__}" in text


def test_the_default_config_of_accelerate_is_shown_without_its_secrets(tmp_path):
    (tmp_path / "accelerate").mkdir()
    config = "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\naws_secret_access_key: abc\n"
    (tmp_path / "accelerate" / "default_config.yaml").write_text(config, encoding="utf-8")
    text = run_env(HF_HOME=str(tmp_path), HOME=str(tmp_path.parent))
    assert "distributed_type: FSDP" in text and "  fsdp_version: 2" in text
    assert "aws_secret_access_key: ***" in text and "abc" not in text
    assert str(tmp_path) not in text and f"~/{tmp_path.name}/accelerate" in text, "the folder of the user is private"


def test_one_process_of_a_launch_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    main(["env"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("properties", "shown"),
    [
        (
            {"name": "NVIDIA X", "total_memory": 80 * 2**30, "major": 9, "minor": 0},
            "NVIDIA X, 80.0 GiB, compute capability 9.0",
        ),
        ({"name": "AMD Y", "total_memory": 3 * 2**29}, "AMD Y, 1.5 GiB"),
    ],
)
def test_a_device_is_described_as_far_as_its_properties_tell(properties, shown):
    assert describe_device(lambda index: SimpleNamespace(**properties), 0) == shown
    assert describe_device(None, 0) == "no properties"


@pytest.mark.gpu
def test_each_gpu_has_a_line():
    text = report()
    for index in range(torch.cuda.device_count()):
        assert re.search(rf"cuda:{index} +{re.escape(torch.cuda.get_device_name(index))}, [\d.]+ GiB", text)


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.stem)
def test_a_form_for_issues_is_complete(path):
    """The keys that GitHub requires; without them the form is not shown."""
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len({*ids})


def test_a_report_of_a_bug_asks_for_the_environment():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text(encoding="utf-8"))
    (part,) = (part for part in form["body"] if part["id"] == "environment")
    assert "`md4 env`" in part["attributes"]["description"] and part["validations"]["required"]
