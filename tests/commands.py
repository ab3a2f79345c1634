# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Commands run as a user runs them, and the messages of failures."""

import contextlib
import io

import pytest

from md4_hf.cli import main


def failure(capsys, argv):
    """Run a command that must fail; its message."""
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code not in (0, None)
    return capsys.readouterr().err


def outcome(argv, function=main):
    """Exit status of a command, 0 if it works, and all that it prints."""
    with contextlib.redirect_stderr(io.StringIO()) as output, contextlib.redirect_stdout(output):
        try:
            function(argv)
        except SystemExit as stop:
            return stop.code, output.getvalue()
    return 0, output.getvalue()


def error_of(function, *args, **kwargs):
    """Messages of an error and its causes; None without an error."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        messages = []
        while error is not None:
            messages.append(f"{type(error).__name__}: {error}")
            error = error.__cause__
        return "\n".join(messages)
    return None
