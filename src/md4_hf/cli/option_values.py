# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Values that an option of the command line can have."""

from __future__ import annotations

import argparse


TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def to_bool(value: str | bool) -> bool:
    """Read true and false, as YAML files and command lines spell them."""
    word = str(value).lower()
    if word not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"must be true or false, got {value!r}")
    return word in TRUE


def takes_value(action: argparse.Action) -> bool:
    """Whether an option is shown with a value: not a switch, nor one that may stand alone for true."""
    return action.nargs != 0 and action.const is not True


def known_values(action: argparse.Action) -> list[str]:
    """Values that an option can have, as they are typed; empty if there is no such list."""
    return ["true", "false"] if action.type is to_bool else [str(choice) for choice in action.choices or ()]
