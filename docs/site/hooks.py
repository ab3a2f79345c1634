# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Hooks of MkDocs that let the pages of the checkout be a site as they are, with the links that GitHub follows.

Pages keep their place in the checkout: `docs/pretrain.md` links to `../CONTRIBUTING.md` in both. A page outside of
`docs/` is part of the site if `nav` of mkdocs.yml has it or a page of the site links to it; so are pictures. A source
file, a notebook or a folder that is linked to becomes a page that shows it.
"""

import json
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify


ROOT = Path(__file__).resolve().parents[2]
# A fence, or the target of a link that is not to another site.
FENCE_OR_LINK = re.compile(r"^(`{3,}).*?^\1$|(?<=\]\()(?P<target>[^)#\s:]+)(?=#[^)]*\)|\))", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
NOTEBOOK = ".ipynb"
SHOWN = ".md"  # what the page of a source file has after the file's name
LISTING = "index.md"  # name of the page of a folder without a README.md


def on_config(config):
    """Headings have the anchors of GitHub."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files, config):
    """The pages of `nav`, and all that they and the pages in `docs/` lead to."""
    found = [file for file in files if not Path(file.abs_src_path).is_relative_to(config.docs_dir)]  # the theme's
    pages = [path.relative_to(ROOT).as_posix() for path in sorted(Path(config.docs_dir).glob("*.md"))]
    names, left = set(), [*_pages_of(config.nav), *pages]
    while left:
        name = left.pop()
        if name in names:
            continue
        names.add(name)
        if name.endswith(".md"):
            left += [_target(name, x["target"]) for x in FENCE_OR_LINK.finditer(_text(name)) if x["target"]]
    return Files([*found, *(_file(name, config) for name in sorted(names))])


def on_page_markdown(markdown, page, config, files):
    """Links lead to the pages that show folders and source files."""

    name = page.file.src_uri

    def mend(match):
        return "../" * name.count("/") + _target(name, match["target"]) if match["target"] else match[0]

    return FENCE_OR_LINK.sub(mend, markdown)


def _pages_of(nav):
    """Files that a `nav` names, at any depth."""
    entries = nav.values() if isinstance(nav, dict) else nav
    for entry in entries:
        yield from [entry] if isinstance(entry, str) else _pages_of(entry)


def _target(page, link):
    """Name in the site of what a link of a page leads to."""
    path = (ROOT / page).parent.joinpath(link).resolve()
    if not path.is_relative_to(ROOT) or not path.exists():
        raise PluginError(f"{page}: {link} leads to no file of the checkout")
    if path.is_dir():
        path /= "README.md" if (path / "README.md").exists() else LISTING
    name = path.relative_to(ROOT).as_posix()
    return name + SHOWN if path.suffix in (*LANGUAGES, NOTEBOOK) else name


def _text(name):
    """Markdown of a page: a file of the checkout, or what shows a source file or a folder."""
    path = ROOT / name
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = path.parent if path.name == LISTING else ROOT / name.removesuffix(SHOWN)
    title = source.relative_to(ROOT).as_posix()
    if source.is_dir():
        kinds = (".md", NOTEBOOK, *LANGUAGES)
        names = sorted(entry.name for entry in source.iterdir() if entry.suffix in kinds or entry.is_dir())
        return f"# {title}\n\n" + "".join(f"- [{x}]({x})\n" for x in names if not x.startswith(("_", ".")))
    text = source.read_text(encoding="utf-8")
    if source.suffix == NOTEBOOK:
        return "\n\n".join(map(_cell, json.loads(text)["cells"]))
    return f"# {title}\n\n{_fenced(text, LANGUAGES[source.suffix])}\n"


def _cell(cell):
    """Markdown of a cell of a notebook."""
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else _fenced(text, "python")


def _fenced(text, language):
    return f"````{language}\n{text}\n````"


def _file(name, config):
    if name.endswith(".md") and not (ROOT / name).is_file():
        return File.generated(config, name, content=_text(name))
    return File(name, str(ROOT), config.site_dir, config.use_directory_urls)
