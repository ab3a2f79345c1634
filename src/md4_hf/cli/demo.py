# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 demo`: a web page on which a model is tried."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data.conversations import read_chat_template
from ..hub.loading import load_pipeline
from ..utils.errors import file_errors_as_value_errors
from .options import DemoArguments


def demo(options: DemoArguments, rest: argparse.Namespace):
    """Open the model and serve its page until the process is interrupted."""
    from ..page.blocks import make_page, serve  # first of all: says how to install what it needs

    examples = {} if options.examples is None else {"examples": read_examples(options.examples)}
    template = None if options.chat_template is None else read_chat_template(options.chat_template)
    names = {"base": options.base, "revision": options.revision}
    pipeline = load_pipeline(rest.model, **names, dtype=options.dtype, device=options.device)
    if template is not None:
        if pipeline.tokenizer is None:
            raise ValueError(f"`chat_template` needs a model with a tokenizer, got {rest.model} without.")
        pipeline.tokenizer.chat_template = template
    page = make_page(pipeline, options.title or name_of(rest.model), **examples)
    serve(page, server_name=options.host, server_port=options.port, share=options.share)


def read_examples(path: str) -> list[str]:
    """The lines of a file that are not blank; a ValueError for a file without any."""
    if not Path(path).is_file():
        raise ValueError(f"`examples` must be a file, got {path}, which is not there.")
    with file_errors_as_value_errors("examples", path):
        lines = [line for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"`examples` must have at least one text, got none in {path}.")
    return lines


def name_of(model: str) -> str:
    """Name of a model: its Hub id, or the last part of its folder's path."""
    return Path(model).resolve().name if Path(model).exists() else model
