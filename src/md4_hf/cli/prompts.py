# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Prompts of `md4 sample`: from the command line, a file or the standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from ..utils.errors import file_errors_as_value_errors
from .options import PromptArguments
from .sample_files import read_rows


STANDARD_INPUT = "-"


def read_prompts(options: PromptArguments) -> list[str] | None:
    """All prompts, None if there are none; a ValueError for a file without prompts."""
    if options.prompt is not None and options.prompt_file is not None:
        raise ValueError(f"Only one of `prompt` and `prompt_file` may be given, got both: {options.prompt_file}.")
    if options.prompt_file is not None:
        return _prompts_of_file(Path(options.prompt_file))
    if options.prompt == STANDARD_INPUT:
        return _prompts_of_lines("prompt", "the standard input", _standard_input())
    return None if options.prompt is None else [options.prompt]


def _standard_input() -> str:
    """Text of the standard input, without a byte order mark."""
    try:
        return sys.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"`prompt` must be {sys.stdin.encoding} text in the standard input: {error}.") from error


def _prompts_of_file(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"`prompt_file` must be a file, got {path}, which is not there.")
    if path.suffix.lower() != ".jsonl":
        with file_errors_as_value_errors("prompt_file", path):
            return _prompts_of_lines("prompt_file", str(path), path.read_text(encoding="utf-8-sig"))
    rows = read_rows(path, "prompt_file")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("prompt"), str):
            raise ValueError(
                f"`prompt_file` must have a string under 'prompt' in each row, got none in row {number} of {path}."
            )
    return _not_empty("prompt_file", str(path), [row["prompt"] for row in rows])


def _prompts_of_lines(argument: str, source: str, text: str) -> list[str]:
    """The lines of a text, without those that are blank; only a line feed ends one, with or without a return."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return _not_empty(argument, source, [line for line in lines if line.strip()])


def _not_empty(argument: str, source: str, prompts: list[str]) -> list[str]:
    if not prompts:
        raise ValueError(f"`{argument}` must have at least one prompt, got none in {source}.")
    return prompts
