# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The wheel is complete and works away from the checkout; the versions named in several files agree."""

import ast
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from launching import run_python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from md4_hf import __version__
from md4_hf.evaluation.samples import CITATION
from md4_hf.hub.lora_arguments import OLDEST_PEFT
from md4_hf.training.checkpoint_writer import OLDEST_ACCELERATE


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# Libraries whose import has another name than their distribution.
DISTRIBUTION = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built from a copy: a build leaves files behind in its source folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = "-m pip wheel . --no-deps --no-build-isolation --no-index --disable-pip-version-check -w".split()
    run_python(*command, folder, cwd=source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder the wheel is unpacked in."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def place(installed, tmp_path):
    """Options of a process in an empty folder with the unpacked wheel, and nothing of the checkout, on the path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(installed), "PYTHONNOUSERSITE": "1", "PYTHONIOENCODING": "utf-8"}
    return {"cwd": tmp_path, "env": environment}


def sources():
    return sorted(path for path in (ROOT / "src" / "md4_hf").rglob("*.py") if "__pycache__" not in path.parts)


def requirement_lines(path):
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def versions(lines, operator, python):
    """Distribution to the version that `operator` gives it, on the Python version `python`."""
    found = {}
    for requirement in map(Requirement, lines):
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is named twice for Python {python}"
            (specifier,) = requirement.specifier
            assert specifier.operator == operator, f"{requirement}: expected {operator}"
            found[name] = specifier.version
    return found


def top_level_imports(path):
    """The libraries that `path` needs to be imported at all: not those inside functions."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


# The wheel ------------------------------------------------------------------------------------------------------------


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    paths = (path for path in (ROOT / "src" / "md4_hf").rglob("*") if path.is_file())
    assert names == {p.relative_to(ROOT / "src").as_posix() for p in paths if "__pycache__" not in p.parts}


def test_the_wheel_names_package_licence_and_command(installed):
    (info,) = installed.glob("*.dist-info")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    assert re.search(r"^Name: md4[-_]hf$", metadata, re.MULTILINE)
    assert re.search(r"^License-Expression: Apache-2\.0$", metadata, re.MULTILINE)
    assert (info / "licenses" / "LICENSE").is_file()
    entry_points = (info / "entry_points.txt").read_text(encoding="utf-8")
    assert "md4 = md4_hf.cli:main" in entry_points


def test_wheel_version_is_the_one_of_the_package(installed):
    (info,) = installed.glob("*.dist-info")
    init = (ROOT / "src" / "md4_hf" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', init, re.MULTILINE)
    assert f"\nVersion: {version}\n" in (info / "METADATA").read_text(encoding="utf-8")


def test_every_public_name_loads_from_the_wheel(place, installed):
    code = """
import types

import md4_hf

print(md4_hf.__file__)
names = md4_hf.__all__
assert len(names) == len(set(names)), "a name is listed twice"
for name in names:
    value = getattr(md4_hf, name)
    # `md4_hf.x` is the module x once that is imported, whatever was meant by the name x.
    assert not isinstance(value, types.ModuleType), f"md4_hf.{name} is a module"
    assert name in dir(md4_hf), name
from md4_hf import *
assert not hasattr(md4_hf, "no_such_name")
"""
    assert Path(run_python("-c", code, **place).splitlines()[0]).resolve().is_relative_to(installed.resolve())


def test_cli_runs_from_the_wheel(place):
    assert "usage" in run_python("-m", "md4_hf", "--help", **place).lower()


# Citation -------------------------------------------------------------------------------------------------------------


def test_the_paper_is_cited_alike_everywhere():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    assert CITATION in (ROOT / "README.md").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^  (\w+) = {(.+)},?$", CITATION, re.MULTILINE))
    assert fields["author"] == " and ".join(f"{x['family-names']}, {x['given-names']}" for x in paper["authors"])
    keys = {"title": "title", "booktitle": "collection-title", "year": "year", "url": "url"}
    assert {name: fields[name] for name in keys} == {name: str(paper[key]) for name, key in keys.items()}


def test_the_software_is_cited_with_its_version_authors_and_licence():
    software = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (software["cff-version"], software["type"], software["version"]) == ("1.2.0", "software", __version__)
    assert software["authors"] == PROJECT["authors"] and software["license"] == PROJECT["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}] - {software['date-released']}\n" in changes
    entry = (ROOT / "README.md").read_text(encoding="utf-8").split("@software")[1]
    year = software["date-released"][:4]
    assert f"version = {{{__version__}}}" in entry and f"year = {{{year}}}" in entry
    title = re.search("title = {(.+)},", entry)[1]
    assert re.sub(r"[{}\\]", "", title) == software["title"]


# Versions -------------------------------------------------------------------------------------------------------------


def pins(name, python):
    return versions(requirement_lines(ROOT / name), "==", python)


@pytest.mark.parametrize("python", PYTHONS)
def test_lower_bounds_are_the_oldest_versions(python):
    # The same distribution may be in several extras: one at a time, for `versions` to name what it objects to.
    bounds, groups = {}, [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for line in (line for group in groups for line in group if not line.startswith(PROJECT["name"] + "[")):
        for name, version in versions([line], ">=", python).items():
            assert bounds.setdefault(name, version) == version, f"{name} has two lower bounds"
    assert bounds == {**pins("constraints.txt", python), **pins("constraints-oldest.txt", python)}
    assert (bounds["accelerate"], bounds["peft"]) == (OLDEST_ACCELERATE, OLDEST_PEFT)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_newest_versions_are_no_older_than_the_oldest(python):
    newest, oldest = pins("constraints.txt", python), pins("constraints-oldest.txt", python)
    assert set(oldest) <= set(newest)
    assert not [name for name, version in oldest.items() if Version(newest[name]) < Version(version)]


def test_extras_of_extras_exist():
    extras = PROJECT["optional-dependencies"]
    for group in extras.values():
        for requirement in map(Requirement, group):
            if requirement.name == PROJECT["name"]:
                assert requirement.extras <= set(extras)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_every_imported_library_is_declared(path):
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    needed = set(top_level_imports(path)) - set(sys.stdlib_module_names) - {"md4_hf"}
    assert {canonicalize_name(DISTRIBUTION.get(name, name)) for name in needed} <= declared


@pytest.mark.parametrize("path", sorted(ROOT.glob("scripts/*.py")), ids=lambda path: path.name)
def test_help_of_a_script_is_printed_and_changes_nothing(path):
    before = {file: file.stat().st_mtime_ns for file in ROOT.glob("model_cards/*")}
    printed = run_python(path, "--help")
    assert "usage: " in printed or "python scripts/" in printed
    assert before == {file: file.stat().st_mtime_ns for file in ROOT.glob("model_cards/*")}
