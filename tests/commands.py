# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Commands run as a user runs them, and the messages of failures."""

import pytest

from md4_hf.cli import main


def failure(capsys, argv):
    """Run a command that must fail; its message."""
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code not in (0, None)
    return capsys.readouterr().err
