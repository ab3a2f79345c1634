# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Error messages in the words of the command line: names of options as they were typed, and the nearest known word."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ..utils.errors import did_you_mean


PATIENCE = 10.0  # seconds
HUB_TOKEN = re.compile(r"hf_\w+")  # the value of a misspelled option may be one
QUOTED_NAME = re.compile(r"`(\w+)`")


def let_first_process_speak():
    """Wait before an error is shown, where a launcher has started this process beside the first of the machine.

    Most errors are the same in all: the first process shows its own and ends, whereupon the launcher ends the others.
    One that is still there afterwards has an error that the first process has not, and shows it.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(PATIENCE)


def spellings(name: str) -> list[str]:
    """Forms in which an option may be typed."""
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def as_typed(message: str, options: Mapping[str, str], positional: Iterable[str], argv: Sequence[str]) -> str:
    """An error message that names options of the command line in place of arguments of Python.

    Args:
        message: A message in which arguments are quoted, as in "`block_size` must be >= 1".
        options: Names of options, by the argument of Python; those that were typed count in any case.
        positional: Names of the positional arguments, maybe in brackets, which the help writes in capitals.
        argv: The words of the command line.
    """
    typed = {word.partition("=")[0] for word in argv if word.startswith("--")}
    typed_names = [word.removeprefix("--").replace("-", "_") for word in typed]
    known = {name: name for name in ("config", "preset", *typed_names)} | dict(options)
    in_capitals = {name.strip("[]"): name.strip("[]").upper() for name in positional}

    def spell(match: re.Match) -> str:
        name = known.get(match[1], match[1])
        if name in in_capitals:
            return in_capitals[name]
        forms = spellings(name)
        return next((form for form in forms if form in typed), forms[0]) if match[1] in known else match[0]

    return QUOTED_NAME.sub(spell, message)


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the option or value that is nearest to a misspelt one."""

    def error(self, message: str) -> NoReturn:
        """As `ArgumentParser.error`, once for all processes of a launcher."""
        let_first_process_speak()
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any):
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            hint = did_you_mean(value, action.choices)
            raise argparse.ArgumentError(action, f"must be one of {choices}, got {value!r}.{hint}")

    def refuse_unknown(self, words: Sequence[str], where: str = "") -> NoReturn:
        """End the process with an error for words of the command line, or of a file, that are no options."""
        known = [action.dest if where else spelling for action in self._actions for spelling in action.option_strings]
        names = [word.partition("=")[0] for word in words if where or word.startswith("-")]
        hints = "".join(dict.fromkeys(did_you_mean(name, known) for name in names))
        shown = HUB_TOKEN.sub("hf_***", " ".join(words))
        self.error(f"unknown options{where}: {shown}{'.' if hints else ''}{hints}")
