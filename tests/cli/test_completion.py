# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Completion scripts, run by the shells that are installed."""

import shutil
import subprocess

import pytest
from commands import failure

from md4_hf import PRESETS
from md4_hf.cli import COMMANDS, main
from md4_hf.core.opening_orders import ORDERS, RANDOM


# Words of a command line, the last of which is completed, and all that may follow it (None: a file).
CASES = [
    (["md4", "tra"], ["train"]),
    (["md4", "train", "--pres"], ["--preset"]),
    (["md4", "train", "--preset", "ti"], ["tiny"]),
    (["md4", "train", "--torch_compile_b"], ["--torch_compile_backend"]),
    (["md4", "sample", "runs/x", "--order", ""], [RANDOM, *ORDERS]),
    (["md4", "sample", "runs/x", "--seed", "1", "--dtype", "bf"], ["bfloat16"]),
    (["md4", "suite", "runs/x", "zero"], ["zero-shot"]),
    (["md4", "completion", "fi"], ["fish"]),
]
MORE_CASES = [  # which fish has no way to say
    (["md4", "suite", "runs/x", "zero-shot", "--tasks", "lambada", "pt"], ["ptb"]),
    (["md4", "train", "--eval-strategy", "e"], ["epoch"]),
    (["md4", "train", "--learning-r"], ["--learning_rate"]),
    (["md4", "suite", "--bf16", "zero"], ["zero-shot"]),
    (["md4", "train", "--data", "my"], None),
]
# In place of what zsh has for completion: each prints, or keeps, what it is given.
ZSH = """
compdef() { :; }
_describe() { local names=${@[(r)options]:-commands} x; for x in ${(P)names}; do print -r -- ${x%%:*}; done }
_files() { print -- FILES; }
compadd() { print -rl -- ${(P)2}; }
compset() { PREFIX=${PREFIX#*=}; }
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Folder of the scripts, each named for its shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w", encoding="utf-8") as file:
            patch.setattr("sys.stdout", file)
            main(["completion", shell])
    return folder


def output(shell, *arguments):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    return subprocess.run(
        [shell, *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def in_bash(scripts, words):
    words = [part for word in words for part in word.replace("=", " = ").split(" ")]  # as bash splits them
    show = '[[ ${#COMPREPLY[@]} == 0 ]] || printf "%s\\n" "${COMPREPLY[@]}"'
    code = f'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _md4; {show}'
    return output("bash", "--norc", "-c", code, scripts / "bash", *words)


@pytest.mark.parametrize(("words", "expected"), [*CASES, *MORE_CASES, (["md4", "train", "--preset=ti"], ["tiny"])])
def test_bash_completes(scripts, words, expected):
    assert in_bash(scripts, words) == (expected or [])


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not command.passes_on])
def test_bash_offers_all_options_of_a_command(scripts, name):
    actions = COMMANDS[name].parser(name)._actions
    assert in_bash(scripts, ["md4", name, "-"]) == [x.option_strings[0] for x in actions if x.option_strings]


def test_bash_offers_all_commands_and_presets(scripts):
    assert in_bash(scripts, ["md4", ""]) == [*COMMANDS, "--help", "--version"]
    assert in_bash(scripts, ["md4", "train", "--preset", ""]) == [*PRESETS]


@pytest.mark.parametrize(("words", "expected"), [*CASES, *MORE_CASES, (["md4", "train", "--preset=ti"], ["tiny"])])
def test_zsh_completes(scripts, words, expected):
    code = f'{ZSH}\nsource "$0"; words=("$@"); CURRENT=$#; PREFIX=$words[-1]; _md4'
    offered = output("zsh", "-f", "-c", code, scripts / "zsh", *words)
    start = words[-1].rpartition("=")[2].replace("-", "_")
    matching = [word for word in offered if word != "FILES" and word.replace("-", "_").startswith(start)]
    assert matching == (expected or []) and ("FILES" in offered or expected is not None)


@pytest.mark.parametrize(("words", "expected"), [*CASES, (["md4", "train", "--preset=ti"], ["--preset=tiny"])])
def test_fish_completes(scripts, words, expected, tmp_path):
    code = f"source {scripts / 'fish'}; cd {tmp_path}; complete -C '{' '.join(words)}'"
    offered = [line.partition("\t")[0] for line in output("fish", "--no-config", "-c", code)]
    assert sorted(offered) == sorted(expected)


def test_another_shell_is_an_error(capsys):
    message = failure(capsys, ["completion", "bsh"])
    assert "SHELL must be one of bash, zsh, fish, got 'bsh'. Did you mean 'bash'?" in message
