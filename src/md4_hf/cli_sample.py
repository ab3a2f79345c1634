# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 sample` and `md4 infill`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

from md4_hf import load_pipeline, parse_arguments


GAP = re.compile(r"<mask:(\d+)>")
MAX_GAP_DIGITS = 6  # more tokens than any model has, and still a text that fits into memory


@dataclass
class SampleArguments:
    """How to sample."""

    _argument_group_name = "sampling"

    num_samples: int = field(default=1, metadata={"help": "Samples (of each text)."})
    num_inference_steps: int | None = field(default=None, metadata={"help": "Steps; the scheduler's own by default."})
    length: int | None = field(default=None, metadata={"help": "Tokens; the model's length by default."})
    block_length: int | None = field(
        default=None, metadata={"help": "Generate block by block, of so many tokens, to any --length."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits; 0 takes the most probable token."})
    top_p: float | None = field(default=None, metadata={"help": "Nucleus in (0, 1]."})
    top_k: int | None = field(default=None, metadata={"help": "Keep the k most probable tokens."})
    seed: int | None = field(default=None, metadata={"help": "Seed; another sample every time without one."})
    device: str | None = field(default=None, metadata={"help": "Device; an accelerator if there is one."})
    base: str | None = field(default=None, metadata={"help": "Base model of an adapter, if not the one it names."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})

    def pipeline_arguments(self) -> dict:
        """Keyword arguments for the pipeline's call."""
        names = ("num_samples", "num_inference_steps", "length", "block_length", "temperature", "top_p", "top_k")
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        return {**{name: getattr(self, name) for name in names}, "generator": generator}


@dataclass
class PromptArguments:
    """What to start from."""

    _argument_group_name = "prompt"

    prompt: str | None = field(default=None, metadata={"help": "Text that every sample begins with."})


def sample(argv: list[str] | None = None):
    """`md4 sample`: text from nothing, or the continuation of a prompt."""
    options, prompt, rest = parse_arguments(
        (SampleArguments, PromptArguments),
        argv,
        prog="md4 sample",
        description="Sample text, from nothing or from a prompt.",
        positional={"model": "Folder or Hub id of a model or adapter."},
    )
    pipeline = load_pipeline(rest.model, base=options.base, revision=options.revision, device=options.device)
    output = pipeline(prompt=prompt.prompt, **options.pipeline_arguments())
    print_texts(output.texts)


def infill(argv: list[str] | None = None):
    """`md4 infill`: fill the gaps of a text, and keep the rest to the letter."""
    options, rest = parse_arguments(
        (SampleArguments,),
        argv,
        prog="md4 infill",
        description="Fill the gaps of a text and keep the rest of it. A gap of n tokens is written <mask:n>.",
        positional={
            "model": "Folder or Hub id of a model or adapter.",
            "text": 'Text with gaps, e.g. "the <mask:12> statement".',
        },
    )
    gaps = GAP.findall(rest.text)
    if not gaps:
        raise ValueError(f'`text` must have a gap such as <mask:12>, got "{rest.text}".')
    if max(map(len, gaps)) > MAX_GAP_DIGITS:
        raise ValueError(f'`text` must have gaps of less than a million tokens, got "{rest.text}".')
    pipeline = load_pipeline(rest.model, base=options.base, revision=options.revision, device=options.device)
    prompt = expand_gaps(rest.text, pipeline.tokenizer.mask_token)
    print_texts(pipeline(prompt=prompt, **options.pipeline_arguments()).texts)


def expand_gaps(text: str, mask_token: str) -> str:
    """ "<mask:3>" -> three mask tokens."""
    return GAP.sub(lambda gap: mask_token * int(gap.group(1)), text)


def print_texts(texts: list[str]):
    """Each text between rules."""
    for number, text in enumerate(texts, start=1):
        print(f"--- {number} " + "-" * 60)
        print(text)
