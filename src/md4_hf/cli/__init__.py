# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `md4`. Torch and transformers are imported when a command runs, not for its help."""

from __future__ import annotations

import io
import os
import sys

from huggingface_hub.errors import HTTPError, StrictDataclassError

from .. import __version__
from ..utils.errors import did_you_mean
from .commands import COMMANDS


DOCUMENTED_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, HTTPError, StrictDataclassError)


def usage() -> str:
    """Text of `md4 --help`."""
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return (
        "usage: md4 COMMAND [OPTIONS]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\nmd4 COMMAND --help lists a command's options, md4 --version the version."
    )


def main(argv: list[str] | None = None):
    """Entry point of `md4`: an error is one line, or a traceback if the variable MD4_TRACEBACK is set.

    What the console's encoding cannot show is replaced.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(f"md4_hf {__version__}")
        return
    if argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS)
        print(f"md4: unknown command {argv[0]!r}.{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    try:
        COMMANDS[argv[0]].run(argv[0], argv[1:])
    except Exception as error:
        if os.environ.get("MD4_TRACEBACK"):
            raise
        message = COMMANDS[argv[0]].as_typed(describe(error), argv[1:])
        print(f"md4 {argv[0]}: {message}", file=sys.stderr)
        if not isinstance(error, DOCUMENTED_ERRORS):
            print(f"({type(error).__name__}; MD4_TRACEBACK=1 shows where it was raised.)", file=sys.stderr)
        sys.exit(1)


def describe(error: BaseException) -> str:
    """Message of an error and its causes: transformers says "no file" where the cause is a lost connection."""
    messages = [str(error) or type(error).__name__]
    while (error := error.__cause__) is not None:
        message = str(error) or type(error).__name__
        if not any(message in shown for shown in messages):
            messages.append(message)
    return "\n  caused by: ".join(messages)
