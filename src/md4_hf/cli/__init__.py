# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `md4`. Torch and transformers are imported when a command runs, not for its help."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from typing import TextIO

from huggingface_hub.errors import HTTPError, StrictDataclassError

from .. import __version__
from ..utils.errors import did_you_mean
from .commands import COMMANDS
from .wording import let_first_process_speak


DOCUMENTED_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, HTTPError, StrictDataclassError)
CLOSED_PIPE = 128 + 13  # exit status of a program that the signal of a closed pipe ends


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

    What the console's encoding cannot show is replaced. Ctrl-C is one line and exit status 130; a reader that closes
    the pipe of the output (`md4 ... | head -1`) ends the process without a word.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as with `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            run(argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        print(f"md4 {argv[0]}: interrupted" + (f"; {interruption}" if str(interruption) else ""), file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and close_broken_pipes():
            sys.exit(CLOSED_PIPE)
        if os.environ.get("MD4_TRACEBACK"):
            raise
        let_first_process_speak()
        message = COMMANDS[argv[0]].as_typed(describe(error), argv[1:])
        print(f"md4 {argv[0]}: {message}", file=sys.stderr)
        if not isinstance(error, DOCUMENTED_ERRORS):
            print(f"({type(error).__name__}; MD4_TRACEBACK=1 shows where it was raised.)", file=sys.stderr)
        sys.exit(1)


def run(argv: list[str]):
    """Run the command that the first argument names."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
    elif argv[0] == "--version":
        print(f"md4_hf {__version__}")
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]].run(argv[0], argv[1:])
    else:
        hint = did_you_mean(argv[0], COMMANDS)
        print(f"md4: unknown command {argv[0]!r}.{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)


def close_broken_pipes() -> bool:
    """Let the standard streams whose reader has gone lead nowhere; whether there are any."""
    broken = [stream for stream in (sys.stdout, sys.stderr) if has_lost_reader(stream)]
    for stream in broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(broken)


def has_lost_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (AttributeError, OSError):  # no such call on Windows, or no file behind the stream
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def describe(error: BaseException) -> str:
    """Message of an error and its causes: transformers says "no file" where the cause is a lost connection."""
    messages = [str(error) or type(error).__name__]
    while (error := error.__cause__) is not None:
        message = str(error) or type(error).__name__
        if not any(message in shown for shown in messages):
            messages.append(message)
    return "\n  caused by: ".join(messages)
