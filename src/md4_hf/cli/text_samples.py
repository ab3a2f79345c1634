# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples that `md4 score` reads from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .sample_files import read_printed_texts, read_rows


@dataclass
class TextSamples:
    """Texts, the ids that they were decoded from where these are known, and how they were drawn."""

    texts: list[str]
    ids: list[list[int]] | None = None
    recipe: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def is_samples_file(name: str) -> bool:
    """Whether a name means a file of samples, not a model."""
    return Path(name).suffix in (".txt", ".jsonl") and not Path(name).is_dir()


def read_samples(path: Path) -> TextSamples:
    """The samples of a file: JSON lines with `text`, and `ids` if known, or the output of `md4 sample`."""
    if not path.is_file():
        raise ValueError(f"`model_or_file` must be a model or a file of samples, got {path}, which is not there.")
    if path.suffix == ".jsonl":
        rows = read_rows(path)
    else:
        try:
            rows = [{"text": text} for text in read_printed_texts(path.read_text(encoding="utf-8"))]
        except UnicodeDecodeError as error:
            raise ValueError(f"`model_or_file` must be UTF-8 text, got {path}: {error}.") from error
    texts = [row.get("text") for row in rows]
    ids = [row.get("ids", row.get("input_ids")) for row in rows]  # of version 0.1.0
    if not rows or not all(isinstance(text, str) for text in texts) or not any(texts):
        raise ValueError(f"`model_or_file` must hold a text for each sample (of JSON lines, `text`), got {path}.")
    return TextSamples(texts, ids if all(map(is_ids, ids)) else None, rows[0].get("recipe", rows[0].get("settings")))


def is_ids(value: Any) -> bool:
    """Whether a value is the ids of a text."""
    return isinstance(value, list) and bool(value) and all(type(x) is int and x >= 0 for x in value)
