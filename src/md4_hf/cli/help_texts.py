# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Help of a command: the options that most people need, or all, each with its values and default; and examples."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from .option_values import known_values, takes_value


WIDTH = 100  # columns


class HelpFormatter(argparse.HelpFormatter):
    """Lists options with one name, their values, and their default if there is one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return action.dest
        if not takes_value(action):
            return action.option_strings[0]
        choices = known_values(action)
        values = "{" + ",".join(choices) + "}" if 0 < len(choices) < 7 else "VALUE"
        return f"{action.option_strings[0]} {values}{' ...' if action.nargs in ('+', '*') else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        absent = action.default is None or action.default is False or action.default in ("", argparse.SUPPRESS)
        shown = not absent and "%(default)" not in (action.help or "")
        return f"{action.help} (default: %(default)s)" if shown and action.option_strings else action.help


def help_text(
    parser: argparse.ArgumentParser,
    common: Mapping[str, Sequence[str]],
    examples: Sequence[str],
    is_full: bool = False,
) -> str:
    """Help of a command with its examples.

    Args:
        parser: Parser with all options.
        common: Names of the options to show, by the title of their group, in order; if there are none, all are shown.
        examples: Command lines.
        is_full: Whether all options are shown in any case.
    """
    text = parser.format_help() if is_full or not common else _of_common_options(parser, common)
    return text + "".join(["\nexamples:\n", *(f"  {example}\n" for example in examples)] if examples else [])


def _of_common_options(parser: argparse.ArgumentParser, common: Mapping[str, Sequence[str]]) -> str:
    actions = {action.dest: action for action in reversed(parser._actions)}  # the option, not the one that negates it
    titles = {**common, "general": ("config", "help_all", "help")}
    groups = {title: [actions[name] for name in names] for title, names in titles.items()}
    positional = {"positional arguments": [action for action in parser._actions if not action.option_strings]}
    formatter = parser._get_formatter()
    formatter.add_usage(parser.usage, [], [])
    formatter.add_text(parser.description)
    for title, members in {**positional, **groups}.items():
        formatter.start_section(title)
        formatter.add_arguments(members)
        formatter.end_section()
    return formatter.format_help()


def help_on_needed(parser: argparse.ArgumentParser, needed: Sequence[Sequence[str]]) -> str:
    """Usage, and the options that are needed: of each tuple of names, one."""
    actions = {action.dest: action for action in parser._actions}
    formatter = parser._get_formatter()
    formatter.add_usage(parser.usage, [], [])
    formatter.add_arguments([actions[name] for names in needed for name in names])
    alternatives = [[f"--{name}" for name in names] for names in needed]
    rules = [" or ".join(filter(None, [", ".join(names[:-1]), names[-1]])) for names in alternatives]
    rule = f"{parser.prog} needs {', and '.join(rules)}; {parser.prog} --help lists the options."
    return f"{formatter.format_help()}\n{rule}\n"
