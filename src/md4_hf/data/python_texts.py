# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts that an installation of Python carries: its reference manual, and the English prose of its docstrings.

Source files are parsed and never imported. In the prose no paragraph is a copy of an earlier one, or nearly so: what is
held out at the end was not seen before.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from .arguments import DOCSTRINGS, PYDOC
from .loading_errors import cache_errors
from .progress import without_bars


# Libraries whose docstrings are read where they are installed, with their licences, all of which permit it.
LIBRARIES = {
    "accelerate": "Apache-2.0",
    "datasets": "Apache-2.0",
    "huggingface_hub": "Apache-2.0",
    "matplotlib": "PSF-2.0",
    "networkx": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "pandas": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
}
# Folders of tests and of other installations; and torch's compilers, which take a third of the time for little prose.
SKIPPED_FOLDERS = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "_inductor", "_dynamo"}
MAX_PROCESSES = 8
MIN_CHARACTERS = 60  # of a paragraph
MIN_WORDS = 0.9  # share of the parts between spaces that are words of a sentence
WORD = re.compile(r"""["'(]*[A-Za-z][a-z]*(?:['-][A-Za-z]?[a-z]+)*["')]*[.,;:!?]?["')]*|\d{1,4}[.,;)]?""")
MARKUP = re.compile(r"``?|\*\*?")
RUN, MAX_KNOWN = 5, 0.25  # words of a run, and share of a new paragraph's runs that may have been read before
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def pydoc_documents() -> list[str]:
    """Python's language reference in English, sorted by topic (79 topics in Python 3.11).

    It comes with every Python (the text behind `help("for")`), and differs a little between versions.
    """
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def docstring_documents() -> list[str]:
    """Prose of the language reference, the standard library and `LIBRARIES`, a paragraph a line (4 MB).

    A document is a source file or a topic, and their order is that of hashes of their names. What is read from source
    files is kept in the cache of `datasets` for these versions of Python and of the libraries.
    """
    return list(_docstring_documents())


@functools.cache
def _docstring_documents() -> tuple[str, ...]:
    sources = [(f"pydoc/{number}", tuple(paragraphs_of(text))) for number, text in enumerate(pydoc_documents())]
    sources += [(row["name"], tuple(row["paragraphs"])) for row in _paragraphs_of_files()]
    sources.sort(key=lambda source: hashlib.sha256(source[0].encode()).digest())
    return tuple(without_copies(paragraphs for _, paragraphs in sources))


@cache_errors()
def _paragraphs_of_files() -> Dataset:
    """Name and paragraphs of each source file, from the cache of `datasets` where they are in it."""
    files = source_files()
    with without_bars():
        return Dataset.from_generator(
            _read_files,
            gen_kwargs={"files": files, "versions": _versions()},
            num_proc=min(os.cpu_count() or 1, MAX_PROCESSES, len(files)) or None,
        )


def _read_files(files: list[tuple[str, str]], versions: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for name, path in files:
        yield {"name": name, "paragraphs": [*prose_of_file(Path(path))]}


def _versions() -> tuple[str, ...]:
    libraries = (name for name in LIBRARIES if importlib.util.find_spec(name) is not None)
    return (platform.python_version(), *(f"{name} {importlib.metadata.version(name)}" for name in libraries))


def source_files() -> list[tuple[str, str]]:
    """Name and path of each source file of the standard library and of the libraries at hand, sorted by name."""
    folders = {"python": sysconfig.get_path("stdlib")}
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        if spec is not None and spec.submodule_search_locations:
            folders[library] = spec.submodule_search_locations[0]
    return sorted(itertools.chain.from_iterable(map(files_of, folders, map(Path, folders.values()))))


def files_of(library: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Name and path of each source file of a library, but for tests."""
    for path in folder.rglob("*.py"):
        place = path.relative_to(folder)
        if not SKIPPED_FOLDERS & {*place.parts}:
            yield f"{library}/{place.as_posix()}", str(path)


def prose_of_file(path: Path) -> Iterator[str]:
    """Paragraphs of prose in the docstrings of a source file; none of a file that cannot be read or parsed."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for docstring in docstrings_of(tree):
        yield from paragraphs_of(docstring)


def docstrings_of(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module and of all that is defined in it, in the order of the source."""
    if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node, clean=False)):
        yield inspect.cleandoc(docstring)
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.stmt):
            yield from docstrings_of(child)


def paragraphs_of(text: str) -> Iterator[str]:
    """Paragraphs of prose in a text, each as one line without markup: runs of lines that are indented alike.

    Code, lists of arguments, tables, headings and fragments are no prose.
    """
    for block in re.split(r"\n\s*\n", text):
        for _, lines in itertools.groupby(block.splitlines(), key=lambda line: len(line) - len(line.lstrip())):
            paragraph = MARKUP.sub("", " ".join(" ".join(lines).split()))
            if is_prose(paragraph):
                yield paragraph


def is_prose(paragraph: str) -> bool:
    """Whether a line is English of at least one sentence, nearly all of it words."""
    if len(paragraph) < MIN_CHARACTERS or not paragraph[0].isupper() or paragraph[-1] not in ".!?":
        return False
    parts = paragraph.split(" ")
    return paragraph.isascii() and sum(map(bool, map(WORD.fullmatch, parts))) >= MIN_WORDS * len(parts)


def without_copies(documents: Iterable[Iterable[str]]) -> Iterator[str]:
    """Documents of the paragraphs that are new: at most a quarter of their runs of five words were in earlier ones.

    A paragraph is a line of its document; documents without any are left out.
    """
    known: set[int] = set()
    for paragraphs in documents:
        kept = []
        for paragraph in paragraphs:
            words = re.findall(r"[a-z]+", paragraph.lower())
            runs = {hash(tuple(words[start : start + RUN])) for start in range(max(1, len(words) - RUN + 1))}
            if len(runs & known) <= MAX_KNOWN * len(runs):
                kept.append(paragraph)
                known |= runs
        if kept:
            yield "\n".join(kept)


CORPORA: dict[str, Callable[[], list[str]]] = {PYDOC: pydoc_documents, DOCSTRINGS: docstring_documents}
