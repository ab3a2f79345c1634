# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The `md4` command. What a subcommand needs is imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys

from huggingface_hub.errors import HTTPError, StrictDataclassError

from .. import __version__


# Subcommand -> the module and function that do it, and what it does.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "train": ("train", "train", "train a masked diffusion model on text or images"),
    "finetune": ("train", "finetune", "fine-tune a model on text or on prompts and responses, with LoRA"),
    "evaluate": ("evaluate", "evaluate", "bound the likelihood of held-out text or images"),
    "sample": ("sample", "sample", "sample text or images, from nothing, from a prompt or of a class"),
    "score": ("score", "score", "measure samples: perplexity under a causal model, entropy, repetition, FID"),
    "infill": ("sample", "infill", "fill the gaps of a text or an image and keep the rest of it"),
    "schedules": ("schedules", "schedules", "show the masking schedules that a GenMD4 model has learned"),
    "export": ("export", "export", "write a model or a merged adapter as one folder for every loader, or push it"),
}


def usage() -> str:
    """What `md4 --help` prints."""
    lines = [f"  {name:<10} {text}" for name, (_, _, text) in COMMANDS.items()]
    return (
        "usage: md4 COMMAND [OPTIONS]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\nmd4 COMMAND --help tells a command's options, md4 --version the version."
    )


def main(argv: list[str] | None = None):
    """Entry point of `md4`: errors of input are one line; with the variable MD4_TRACEBACK set, a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(f"md4_hf {__version__}")
        return
    if argv[0] not in COMMANDS:
        print(f"md4: unknown command {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    module, function, _ = COMMANDS[argv[0]]
    try:
        getattr(importlib.import_module(f".{module}", __name__), function)(argv[1:])
    except (ValueError, OSError, ImportError, HTTPError, StrictDataclassError) as error:
        if os.environ.get("MD4_TRACEBACK"):
            raise
        print(f"md4 {argv[0]}: {describe(error)}", file=sys.stderr)
        sys.exit(1)


def describe(error: BaseException) -> str:
    """An error and what caused it: transformers says "no file" where the cause is a lost connection."""
    messages = [str(error) or type(error).__name__]
    while (error := error.__cause__) is not None:
        message = str(error) or type(error).__name__
        if not any(message in shown for shown in messages):
            messages.append(message)
    return "\n  caused by: ".join(messages)
