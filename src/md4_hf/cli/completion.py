# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Completion scripts for shells, written from the parsers of the commands: Tab starts no Python and needs no library.

In all shells, the word after `md4` is a command; a word that begins with a dash is an option of it; the word after an
option is one of its values, where they are known, or a file; any other word is an argument, or a file.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..evaluation.recipes import SUITES, TASKS
from ..training.presets import PRESETS
from ..utils.errors import did_you_mean
from .commands import COMMANDS, SHELLS, Command
from .option_values import known_values, takes_value


# Values of options and arguments that the parser takes as any string, by name.
VALUES = {"preset": [*PRESETS], "name": [*SUITES], "tasks": [*TASKS], "shell": [*SHELLS]}
LONGEST_SUMMARY = 90  # characters


@dataclass(frozen=True)
class Option:
    """An option of a command: its name with dashes, summary, known values, and how many it takes."""

    name: str
    summary: str
    values: list[str]
    takes_value: bool
    takes_several: bool


@dataclass(frozen=True)
class Completed:
    """A command with its options, and the known values of its other arguments."""

    name: str
    summary: str
    options: list[Option]
    arguments: list[str]


def completion(rest: argparse.Namespace):
    """Print the script for a shell."""
    scripts: dict[str, Callable[[list[Completed]], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if rest.shell not in scripts:
        hint = did_you_mean(rest.shell, scripts)
        raise ValueError(f"`shell` must be one of {', '.join(scripts)}, got {rest.shell!r}.{hint}")
    print("\n".join(scripts[rest.shell]([_completed(name, command) for name, command in COMMANDS.items()])))


def _completed(name: str, command: Command) -> Completed:
    parser = command.parser(name)
    expand = parser._get_formatter()._expand_help
    options = [_option(action, expand(action)) for action in parser._actions if action.option_strings]
    arguments = [value for argument in command.positional for value in VALUES.get(argument.strip("[]"), ())]
    return Completed(name, command.summary, options, arguments)


def _option(action: argparse.Action, help_text: str) -> Option:
    values = (known_values(action) or VALUES.get(action.dest, [])) if takes_value(action) else []
    summary, takes_several = _first_sentence(help_text), action.nargs in ("+", "*")
    return Option(action.option_strings[0], summary, values, takes_value(action), takes_several)


def _first_sentence(text: str) -> str:
    """First sentence of a help text, cut between words where it is long."""
    sentence = re.split(r"(?<=[a-z)\"'])[.;] ", " ".join(text.split()), maxsplit=1)[0].rstrip(".")
    if len(sentence) <= LONGEST_SUMMARY:
        return sentence
    return sentence[:LONGEST_SUMMARY].rpartition(" ")[0] + " ..."


# bash -----------------------------------------------------------------------------------------------------------------

_BASH_START = """# Completion of md4 for bash, written by `md4 completion bash`.
_md4() {
    local cur="${COMP_WORDS[COMP_CWORD]}" i=$((COMP_CWORD - 1)) options="" several="" switches="" arguments=""
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "COMMANDS --help --version" -- "$cur"))
        return
    fi
    case "${COMP_WORDS[1]}" in"""
_BASH_MIDDLE = """    esac
    # bash reads --option=value as three words.
    [[ $cur == "=" ]] && cur=""
    [[ ${COMP_WORDS[i]} == "=" ]] && ((i--))
    # The option of this word is the word before it, or the last option if that takes several values.
    local option="${COMP_WORDS[i]//-/_}" last=$i
    while ((last > 1)) && [[ ${COMP_WORDS[last]} != --* ]]; do ((last--)); done
    local latest="${COMP_WORDS[last]//-/_}"
    [[ " $several " == *" ${latest/#__/--} "* ]] && option="$latest"
    option="${option/#__/--}"
    if [[ $cur == "-" ]]; then
        COMPREPLY=($options)
        return
    elif [[ $cur == --* ]]; then
        local typed="${cur//-/_}"
        COMPREPLY=($(compgen -W "$options" -- "${typed/#__/--}"))
        return
    fi
    local values="$arguments"
    [[ $option == --* && " $switches " != *" $option "* ]] && values=""
    case "${COMP_WORDS[1]} $option" in"""
_BASH_END = """    esac
    COMPREPLY=($(compgen -W "$values" -- "$cur"))
}
complete -o bashdefault -o default -F _md4 md4"""


def _bash(commands: list[Completed]) -> Iterator[str]:
    yield _BASH_START.replace("COMMANDS", " ".join(command.name for command in commands))
    for command in commands:
        lists = {"options": [option.name for option in command.options], **_lists(command)}
        yield f"        {command.name})"
        yield from (f'            {name}="{" ".join(words)}"' for name, words in lists.items() if words)
        yield "            ;;"
    yield _BASH_MIDDLE
    yield from (f'        "{name}") values="{" ".join(values)}" ;;' for name, values in _values(commands))
    yield _BASH_END


def _lists(command: Completed) -> dict[str, list[str]]:
    """Words that the scripts of bash and zsh decide by."""
    return {
        "switches": [option.name for option in command.options if not option.takes_value],
        "several": [option.name for option in command.options if option.takes_several],
        "arguments": command.arguments,
    }


def _values(commands: list[Completed]) -> Iterator[tuple[str, list[str]]]:
    """Each command and option whose values are known, and these."""
    for command in commands:
        yield from ((f"{command.name} {option.name}", option.values) for option in command.options if option.values)


# zsh ------------------------------------------------------------------------------------------------------------------

_ZSH_START = """#compdef md4
# Completion of md4 for zsh, written by `md4 completion zsh`.
_md4() {
    local -a commands options arguments several switches values
    commands=("""
_ZSH_COMMANDS = """    )
    if (( CURRENT == 2 )); then
        _describe 'command' commands
        return
    fi
    case $words[2] in"""
_ZSH_MIDDLE = """    esac
    # The option of this word is the word before it, or the last option if that takes several values.
    local option=$words[CURRENT-1] last=$(( CURRENT - 1 ))
    while (( last > 2 )) && [[ $words[last] != --* ]]; do (( last-- )); done
    (( ${several[(Ie)--${${words[last]#--}//-/_}]} )) && option=$words[last]
    if [[ $PREFIX == --*=* ]]; then
        option=${PREFIX%%=*}
        compset -P '*='
    elif [[ $PREFIX == -* ]]; then
        _describe -o 'option' options -M 'm:-=_'
        return
    fi
    [[ $option == --* ]] && option=--${${option#--}//-/_}
    case "$words[2] $option" in"""
_ZSH_END = """    esac
    if (( $#values )); then
        compadd -a values
        return
    fi
    if [[ $option != --* ]] || (( ${switches[(Ie)$option]} )); then
        (( $#arguments )) && compadd -a arguments
    fi
    _files
}
if [[ $funcstack[1] == _md4 ]]; then _md4 "$@"; else compdef _md4 md4; fi"""


def _zsh(commands: list[Completed]) -> Iterator[str]:
    yield _ZSH_START
    yield from (f"        {_described(command.name, command.summary)}" for command in commands)
    yield _ZSH_COMMANDS
    for command in commands:
        yield f"        {command.name})"
        yield "            options=("
        yield from (f"                {_described(option.name, option.summary)}" for option in command.options)
        yield "            )"
        yield from (f"            {name}=({' '.join(words)})" for name, words in _lists(command).items() if words)
        yield "            ;;"
    yield _ZSH_MIDDLE
    yield from (f'        "{name}") values=({" ".join(values)}) ;;' for name, values in _values(commands))
    yield _ZSH_END


def _described(name: str, summary: str) -> str:
    """An entry of zsh's `_describe`."""
    return shlex.quote(f"{name}:{summary}")


# fish -----------------------------------------------------------------------------------------------------------------


_FISH_START = """# Completion of md4 for fish, written by `md4 completion fish`.
function __md4_needs_command
    test (count (commandline -opc)) -eq 1
end
function __md4_runs
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test $words[2] = $argv[1]
end"""


def _fish(commands: list[Completed]) -> Iterator[str]:
    yield _FISH_START
    for command in commands:
        yield f"complete -c md4 -n __md4_needs_command -f -a {command.name} -d {_in_fish(command.summary)}"
    for command in commands:
        start = f"complete -c md4 -n '__md4_runs {command.name}'"
        if command.arguments:
            yield f"{start} -a '{' '.join(command.arguments)}'"
        for option in command.options:
            kind = f" -x -a '{' '.join(option.values)}'" if option.values else " -r"
            described = f"{start} -l {option.name.removeprefix('--')} -d {_in_fish(option.summary)}"
            yield described + (kind if option.takes_value else "")


def _in_fish(text: str) -> str:
    """A word of fish, where only the backslash and the quote are special within quotes."""
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{quoted}'"
