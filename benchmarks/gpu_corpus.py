# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Prepare a corpus of English for `gpu.py`: a dictionary, the Bible and documentation, in the 27 characters of text8.

python benchmarks/gpu_corpus.py --output runs/gpu_corpus.txt.xz

The dictionary (`dict-gcide`) and the Bible (`bible-kjv`, `bible-kjv-text`) come as packages of Debian, which are
unpacked in a temporary folder and not installed; documentation is that of the Python libraries at hand. What cannot be
had is named and left out. Nothing of it is part of this package: each source has a licence of its own.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import itertools
import lzma
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from md4_hf import build_text8_tokenizer
from md4_hf.data.python_texts import pydoc_documents
from md4_hf.utils.files import whole_file


WANTED_CHARACTERS = 20_000_000
MIN_DOCSTRING = 200  # characters: shorter ones are hardly prose
SECONDS_FOR_DOCSTRINGS = 90.0


class MissingSourceError(Exception):
    """A source that cannot be had here."""


def unpacked(packages: list[str], folder: Path) -> Path:
    """Download packages of Debian and unpack them into a folder; none is installed."""
    commands = [["apt-get", "download", *packages]]
    try:
        for command in commands:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise MissingSourceError(reason.decode(errors="replace") if isinstance(reason, bytes) else reason) from error
    return folder


def dictionary(folder: Path) -> str:
    """The Collaborative International Dictionary of English."""
    found = sorted(unpacked(["dict-gcide"], folder).rglob("gcide.dict.dz"))
    if not found:
        raise MissingSourceError("dict-gcide holds no gcide.dict.dz")
    return gzip.decompress(found[0].read_bytes()).decode("utf-8", errors="replace")


def bible(folder: Path) -> str:
    """The King James Bible, as the package's own reader prints it."""
    unpacked(["bible-kjv-text", "bible-kjv"], folder)
    reader, data = folder / "usr/bin/bible", folder / "usr/lib"
    try:
        command = [str(reader), "-p", str(data), "-f", "Gen1:1-Rev22:21"]
        return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingSourceError(str(error)) from error


def manual(folder: Path) -> str:
    """The reference manual of Python."""
    return "\n".join(pydoc_documents())


def docstrings(folder: Path) -> str:
    """Docstrings of the standard library and of the libraries at hand, for a limited time."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    paths = sorted({path for root in roots for path in Path(root).rglob("*.py") if "test" not in path.as_posix()})
    end, found = time.monotonic() + SECONDS_FOR_DOCSTRINGS, dict[str, None]()
    for path in itertools.takewhile(lambda _: time.monotonic() < end, paths):
        found |= dict.fromkeys(docstrings_of(path))
    return "\n".join(found)


def docstrings_of(path: Path) -> Iterator[str]:
    """Long docstrings of a file."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None and len(text) >= MIN_DOCSTRING:
                yield text


SOURCES: dict[str, Callable[[Path], str]] = {
    "dictionary": dictionary,
    "bible": bible,
    "manual": manual,
    "docstrings": docstrings,
}


def corpus(names: list[str]) -> tuple[str, dict[str, int | str]]:
    """Text of the sources in the characters of text8, and its length for each, or why there is none."""
    normalizer, texts, found = build_text8_tokenizer().backend_tokenizer.normalizer, [], dict[str, int | str]()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                text = SOURCES[name](Path(folder))
            except MissingSourceError as error:
                found[name] = f"left out: {str(error).strip().splitlines()[-1]}"
                continue
        texts.append(normalizer.normalize_str(text))
        found[name] = len(texts[-1])
    return " ".join(texts), found


def main():
    """Write the corpus, compressed if its name ends in .xz, and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_corpus.txt.xz"))
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    args = parser.parse_args()
    text, found = corpus(args.sources)
    for name, size in found.items():
        print(f"{name}: {size if isinstance(size, str) else f'{size:,} characters'}")
    if not text:
        sys.exit("error: no source can be had here.")
    data = text.encode("ascii")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.output) as staging:
        staging.write_bytes(lzma.compress(data, preset=6) if args.output.suffix == ".xz" else data)
    enough = "" if len(text) >= WANTED_CHARACTERS else f", fewer than the {WANTED_CHARACTERS:,} wanted"
    print(f"{args.output}: {len(text):,} characters{enough}, {args.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
