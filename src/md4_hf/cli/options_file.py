# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""YAML files of options: each value is read, and refused, as the words after its option on the command line are."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from ..utils.errors import did_you_mean


RECORD = "record"  # what a run notes in its file of options beside these
FLOAT_TAG, NULL_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:null"


class _Loader(yaml.SafeLoader):
    """Reads plain words as YAML 1.2 does: 1e-4 is a number, and no, on and 2026-01-01 are words."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping, in which no name stands twice: YAML would take the last value in silence."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name} stands twice in one mapping")
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def read_mapping(path: str | os.PathLike) -> tuple[dict[str, Any], dict[Any, yaml.Node]]:
    """Values of a YAML file by name, and their nodes; a ValueError if it is no mapping of names to values."""
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        options = None if node is None else loader.construct_document(node)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"`config` must be a YAML file, got {str(path)!r}: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict) or not isinstance(node, yaml.MappingNode):
        raise ValueError(f"`config` must be a mapping of names to values, got {type(options).__name__} in {path}.")
    return options, {key_node.value: value_node for key_node, value_node in node.value}


def read_options(path: str, actions: Mapping[str, argparse.Action], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Read options from a YAML file, a mapping of option names to values; unknown ones are left as they are.

    The record of a run in its `options.yaml` is no option, and left out.

    Args:
        path: The file.
        actions: Options of the command line by name.
        hints: Types of their fields by name. They tell where null, a list or a mapping may stand.

    Raises:
        ValueError: If the file is no such mapping, or a value is none that its option could have.
    """
    options, nodes = read_mapping(path)
    options.pop(RECORD, None)
    for name in [name for name in nodes if name in actions]:
        action, hint = actions[name], hints.get(name, str)
        try:
            options[name] = _value(options[name], nodes[name], action, hint)
        except (ValueError, argparse.ArgumentTypeError):
            rule, shown = _rule(action, hint), _shown(options[name])
            hint = did_you_mean(options[name], action.choices or ())
            raise ValueError(f"`{name}` must be {rule}, got {shown} in {path}.{hint}") from None
    return options


def _value(value: Any, node: yaml.Node, action: argparse.Action, hint: Any) -> Any:
    """Value of an option; a ValueError if it can have no such value."""
    allowed = {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
    if node.tag == NULL_TAG:
        if NoneType in allowed or action.default is None:
            return None
        raise ValueError
    takes_several = action.nargs in ("+", "*")
    if isinstance(node, yaml.ScalarNode):
        word = _word(value, node, action)
        return [word] if takes_several else word
    if takes_several and isinstance(node, yaml.SequenceNode):
        return [_word(entry, entry_node, action) for entry, entry_node in zip(value, node.value, strict=True)]
    if type(value) not in allowed:
        raise ValueError
    return value


def _word(value: Any, node: yaml.Node, action: argparse.Action) -> Any:
    """Value of a word of the file, as it would be on the command line."""
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError
    is_named_number = node.tag == FLOAT_TAG and not node.value[-1].isdigit()  # .inf
    kind: Any = action.type or str
    word = kind(str(value) if is_named_number else node.value)
    if action.choices is not None and word not in action.choices:
        raise ValueError
    return word


def _rule(action: argparse.Action, hint: Any) -> str:
    """Values that an option can have, in words."""
    if action.choices is not None:
        rule = f"one of {', '.join(map(str, action.choices))}"
    else:
        kind = getattr(action.type, "__name__", "str")
        rule = {"to_bool": "true or false", "str": "a string"}.get(kind, kind)
    rule += ", or a list of such" if action.nargs in ("+", "*") else ""
    return f"{rule}, or null" if NoneType in get_args(hint) else rule


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)
