# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The documentation as a site: every page is in its navigation, and reads there as it does on GitHub."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
FENCE = re.compile(r"^```(\w*)\n.*?^```$", re.MULTILINE | re.DOTALL)


def pages_of(nav):
    """Files that a navigation names, in order, at any depth."""
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_the_navigation_has_every_page_once():
    pages = list(pages_of(CONFIG["nav"]))
    assert len(pages) == len({*pages}) and all((ROOT / page).is_file() for page in pages)
    folders = {
        path.relative_to(ROOT).as_posix() for name in ("docs", "model_cards") for path in ROOT.glob(f"{name}/*.md")
    }
    assert {*pages} == folders | {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"}
    assert pages[0] == "README.md"


def test_every_page_has_one_title():
    for page in pages_of(CONFIG["nav"]):
        text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
        assert len(re.findall("^# ", text, re.MULTILINE)) == 1, page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install 'md4_hf[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def article(site, page):
    """Text of a page in the site."""
    path = Path(page)
    name = path.parent if path.stem in ("README", "index") else path.with_suffix("")
    return re.search("<article.*</article>", (site / name / "index.html").read_text(encoding="utf-8"), re.DOTALL)[0]


@pytest.mark.slow
@pytest.mark.parametrize("page", list(pages_of(CONFIG["nav"])))
def test_a_page_has_the_blocks_that_github_shows(site, page):
    """Tables, code, items and pictures: where Markdown is read in another way, they are left as text."""
    text = re.sub(r"\A---\n.*?\n---\n", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)  # of a card
    outside, html = FENCE.sub("", text), article(site, page)
    assert html.count("<table>") == len(re.findall(r"^\|( *:?-+:? *\|)+$", outside, re.MULTILINE))
    assert html.count("<li") == len(re.findall(r"^ *(?:[-*]|\d+\.) ", outside, re.MULTILINE))
    assert html.count("<img") == outside.count("![")
    assert html.count("<pre") >= len(FENCE.findall(text))
    assert "```" not in re.sub("<code>.*?</code>", "", html, flags=re.DOTALL)


@pytest.mark.slow
def test_what_pages_link_to_is_in_the_site(site):
    for path in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#?]+)', path.read_text(encoding="utf-8")):
            target = site / link.lstrip("/") if link.startswith("/") else path.parent / link
            is_elsewhere = re.match(r"\w+:", link) is not None
            assert is_elsewhere or target.exists(), f"{path.relative_to(site)}: {link}"


@pytest.mark.slow
def test_sources_and_folders_are_shown(site):
    assert "PRESETS" in article(site, "src/md4_hf/training/presets.py.md")
    assert "sampling" in article(site, "benchmarks/results/index.md")
    assert "quick_start.ipynb" in article(site, "docs/notebooks/index.md")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_all_its_cells(site, path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    html = article(site, f"docs/notebooks/{path.name}.md")
    assert html.count("<h1") == 1
    assert html.count("<pre") == sum(cell["cell_type"] == "code" for cell in cells)


@pytest.mark.slow
def test_nothing_is_loaded_from_other_sites(site):
    html = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="https?:[^"]*(?:\.js|\.css|\.png|fonts)[^"]*"', html)
