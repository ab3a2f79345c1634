# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The parser of the command line: typed dataclasses, filled from a preset, then a YAML file, then the options given.

Neither torch nor transformers is imported before all options have been read, so that help appears at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..training.elbo_arguments import ElboArguments
from ..training.presets import PRESETS
from ..utils.errors import did_you_mean
from .help_texts import HelpFormatter, help_on_needed, help_text
from .option_values import to_bool
from .options_file import read_options
from .train_options import ShownTrainingArguments, StartArguments
from .wording import Parser, spellings


def preset_defaults(name: str, with_model: bool = True, data: Any = None) -> dict[str, Any]:
    """Options that a preset stands for; those of a new model, its length and its tokenizer, only `with_model`.

    `data` are those that take the place of the preset's, if any do.
    """
    if name not in [*PRESETS]:  # a list, since a YAML file may give what has no hash
        raise ValueError(f"`preset` must be one of {sorted(PRESETS)}, got {name!r}.{did_you_mean(name, PRESETS)}")
    preset = PRESETS[name]
    has_own_data = data in (None, preset.data["data"], [preset.data["data"]])
    tokenizer = None if has_own_data else preset.tokenizer_of_other_data
    new_model = {**preset.model, "tokenizer": tokenizer or preset.tokenizer} if with_model else {}
    of_data = {name: value for name, value in preset.data.items() if with_model or name != "block_size"}
    return {**new_model, **preset.training, **of_data, "total_batch_size": preset.batch_size}


def parse_arguments(
    dataclass_types: Sequence[type],
    argv: list[str],
    *,
    prog: str,
    description: str,
    positional: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    shown_defaults: Mapping[str, Any] | None = None,
    needed: Sequence[Sequence[str]] = (),
    common: Mapping[str, Sequence[str]] | None = None,
    examples: Sequence[str] = (),
) -> tuple:
    """Fill dataclasses from the command line.

    An option on the command line overrides the YAML file's (`--config`), and that overrides the preset's (`--preset`).

    Args:
        dataclass_types: Dataclasses in the order to return. `ShownTrainingArguments` stands for `MD4TrainingArguments`;
            `StartArguments` brings the option `--preset`.
        argv, prog, description: Arguments, name and purpose of the command.
        positional: Names and help of positional arguments; those in brackets may be left out.
        defaults: Defaults in place of the dataclasses' own.
        shown_defaults: Words that help shows in place of defaults which no preset or file gives.
        needed: Options that have to be given, each as the names of which one will do; a short help ends the process
            where they are not.
        common: Names of the options that `--help` shows, by group; `--help_all` shows all. If there are none, both do.
        examples: Command lines at the end of the help.

    Returns:
        The instances, then a namespace with the positional arguments if there are any, and the preset; its `given`
        holds the options that preset, file and command line give, by name, and its `defaults` the values of the others.
    """
    asks_for_all = "--help_all" in argv
    asks_for_help = asks_for_all or not {"-h", "--help"}.isdisjoint(argv)
    is_short = asks_for_help or (not argv and bool(needed))  # only help is printed: at once, without transformers
    filled = training_types(dataclass_types) if asks_for_all or not is_short else dataclass_types
    parser = make_parser(filled, prog, description, positional or {})
    parser.set_defaults(**(defaults or {}))
    own_defaults = {action.dest: action.default for action in parser._actions if action.option_strings}
    given = _set_defaults(parser, argv, filled, is_strict=not is_short) if filled else {}
    if is_short:
        parser.set_defaults(**{name: text for name, text in (shown_defaults or {}).items() if name not in given})
    if asks_for_help:
        print(help_text(parser, common or {}, examples, is_full=asks_for_all), end="")
        parser.exit()
    namespace, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.refuse_unknown(unknown)
    _check_positional(parser, namespace, [name for name in positional or {} if not name.startswith("[")])
    given |= {name: getattr(namespace, name) for name in _names_on_command_line(parser, argv)}
    if any(given.keys().isdisjoint(names) for names in needed):
        parser.exit(2, help_on_needed(parser, needed))
    instances = [_fill(cls, namespace) for cls in filled]
    namespace.given, namespace.defaults = given, own_defaults
    return (*instances, namespace)


def _names_on_command_line(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Names of the options on the command line."""
    absent = object()
    names = [action.dest for action in parser._actions if action.option_strings]
    found, _ = parser.parse_known_intermixed_args(argv, argparse.Namespace(**dict.fromkeys(names, absent)))
    return [name for name in dict.fromkeys(names) if getattr(found, name, absent) is not absent]


def training_types(dataclass_types: Sequence[type]) -> Sequence[type]:
    """These dataclasses, with `MD4TrainingArguments` in place of what stands for it; transformers is then imported."""
    if ShownTrainingArguments not in dataclass_types:
        return dataclass_types
    from ..training.arguments import MD4TrainingArguments

    return [MD4TrainingArguments if cls is ShownTrainingArguments else cls for cls in dataclass_types]


def make_parser(dataclass_types: Sequence[type], prog: str, description: str, positional: Mapping[str, str]) -> Parser:
    """A parser of positional arguments and of an option for each field."""
    parser = Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        add_help=False,
        usage=" ".join([prog, *map(str.upper, positional), *(["[OPTIONS]"] if dataclass_types else [])]),
        formatter_class=HelpFormatter,
    )
    first = parser.add_argument_group("configuration and folder")
    if StartArguments in dataclass_types:
        first.add_argument("--preset", help=f"Start from a known configuration: {', '.join(PRESETS)}.")
    for cls in dataclass_types:
        add_options(parser, cls, {"output_dir": first} if issubclass(cls, ElboArguments) else {})
    for name, text in positional.items():
        parser.add_argument(name.strip("[]"), help=text, nargs="?")  # missing ones: `_check_positional`
    general = parser.add_argument_group("general")
    if dataclass_types:
        general.add_argument("--config", help="YAML file of options; the command line overrides it.")
        general.add_argument("--help_all", action="store_true", help="Show all options, also those seldom needed.")
    general.add_argument("--help", "-h", action="store_true", help="Show this help.")
    return parser


def _check_positional(parser: argparse.ArgumentParser, namespace: argparse.Namespace, names: list[str]):
    """Refuse a command line that lacks a required argument; after `--data A B`, the last word is that argument."""
    several = [action.dest for action in parser._actions if action.nargs == "+"]
    for name in names:
        words = next((words for dest in several if len(words := getattr(namespace, dest) or ()) > 1), None)
        if getattr(namespace, name) is None and isinstance(words, list):
            setattr(namespace, name, str(words.pop()))
    missing = [name for name in names if getattr(namespace, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")


def _fill(cls: type, namespace: argparse.Namespace) -> Any:
    """An instance of a dataclass with its values, which are taken out of the namespace."""
    values = {field.name: getattr(namespace, field.name) for field in dataclasses.fields(cls) if field.init}
    for name in values:
        delattr(namespace, name)
    return cls(**values)


# Options of a dataclass -----------------------------------------------------------------------------------------------


def add_options(
    parser: argparse.ArgumentParser, cls: type, places: Mapping[str, argparse._ArgumentGroup] | None = None
):
    """Add an option for each field of a dataclass, as transformers' `HfArgumentParser` does.

    They are in a group of the dataclass, or in that of `places` by name.
    """
    group = parser.add_argument_group(getattr(cls, "_argument_group_name", None))
    hints = get_type_hints(cls)
    shown = dataclasses.fields(ShownTrainingArguments) if issubclass(cls, ElboArguments) else ()
    texts = {field.name: field.metadata["help"] for field in shown}  # in place of transformers' own
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        settings = {**field.metadata, **_settings(field, _type_of_value(hints[field.name]))}
        settings["help"] = texts.get(field.name, settings["help"])
        (places or {}).get(field.name, group).add_argument(*spellings(field.name), **settings)
        if field.default is True:
            text = f"Switches --{field.name} off."
            no = spellings(f"no_{field.name}")
            group.add_argument(*no, action="store_false", dest=field.name, default=False, help=text)


def _settings(field: dataclasses.Field, kind: Any) -> dict[str, Any]:
    """Arguments of `add_argument` that follow from the type and the default of a field."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"default": default, "choices": [member.value for member in kind]}
    if kind is bool:
        may_stand_alone = {} if default is None else {"nargs": "?", "const": True}
        return {"default": default, "type": to_bool, **may_stand_alone}
    if get_origin(kind) is list:
        default = None if default == "" else default  # which argparse would read as an element
        return {"default": default, "type": get_args(kind)[0], "nargs": "+"}
    return {"default": default, "type": kind}


def _type_of_value(hint: Any) -> Any:
    """Type that a word of the command line is read as: `X` of `X | None` and `X | str`, else a string."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not types.NoneType]
    if len(kinds) > 1 and types.NoneType not in get_args(hint):
        kinds.remove(str)
    return kinds[0] if len(kinds) == 1 else str


# Defaults -------------------------------------------------------------------------------------------------------------


def _set_defaults(parser: Parser, argv: list[str], dataclass_types: Sequence[type], is_strict: bool) -> dict[str, Any]:
    """Take defaults from the preset, this machine and the YAML file; refuse unknown names in the file if strict.

    Returns the options that preset and file give.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    trained = ("model_name_or_path", "backbone_name_or_path")
    for name in ("config", "preset", *trained):
        early.add_argument(*spellings(name))
    early.add_argument("--data", nargs="+")
    given, _ = early.parse_known_args(argv)
    known = {
        action.dest: action
        for action in parser._actions
        if action.option_strings and action.nargs != 0 and action.dest != "config"
    }
    hints = {name: hint for cls in dataclass_types for name, hint in get_type_hints(cls).items()}
    options = read_options(given.config, known, hints) if given.config else {}
    unknown = sorted(map(str, options.keys() - known))
    if is_strict and unknown:
        parser.refuse_unknown(unknown, f" in {given.config}")
    preset = given.preset or options.get("preset")
    of_preset = {}
    if StartArguments in dataclass_types and preset:
        has_model = any(getattr(given, name) or options.get(name) for name in trained)
        data = given.data or options.get("data")
        of_preset = preset_defaults(preset, with_model=not has_model, data=data)
    parser.set_defaults(**of_preset)
    if is_strict and "use_cpu" in known:
        parser.set_defaults(**_defaults_of_this_machine())
    parser.set_defaults(**options)
    return {**of_preset, **options}


def _defaults_of_this_machine() -> dict[str, bool]:
    """Options for a machine without an accelerator, where `TrainingArguments` refuses bf16 unless `use_cpu` is set."""
    import torch

    from ..utils.hardware import has_fast_bf16

    if torch.accelerator.is_available():
        return {}
    return {"use_cpu": True} if has_fast_bf16() else {"use_cpu": True, "bf16": False}
