# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Detokenizers: rules that turn the word-tokenised text of old benchmarks back into text.

The rules are those that SEDD (arXiv:2310.16834), MDLM (arXiv:2406.07524) and RADD (arXiv:2406.03736) share, in their
order, so that perplexities compare; those of WikiText are Megatron-LM's. Each is applied to a row before it is
tokenised.
"""

from __future__ import annotations

import re


# Literal replacements are pairs of strings, the others begin with a compiled pattern.
Rule = tuple["str | re.Pattern[str]", str]

WIKITEXT: tuple[Rule, ...] = (
    ("s '", "s'"),
    # Megatron-LM has "/' [0-9]/" here, which is JavaScript's way to write a pattern and matches nothing.
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
PTB: tuple[Rule, ...] = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    *((" N ", " 1 "),) * 10,  # numbers side by side share a space, and a replacement takes every other one
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)
LM1B: tuple[Rule, ...] = (
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "),
    (re.compile(r" \?$"), "?"),
    (" ! ", "! "),
    (re.compile(r" \!$"), "!"),
    (" , ", ", "),
    (" : ", ": "),
    (" ; ", "; "),
    (" / ", "/"),
    (re.compile(r"\" ([^\"]+) \""), r'"\1"'),
    (re.compile(r"' ([^']+) '"), r"'\1'"),
    (re.compile(r"\( ([^\(\)]+) \)"), r"(\1)"),
    (re.compile(r"\[ ([^\[\]]+) \]"), r"[\1]"),
    ("$ ", "$"),
    ("£ ", "£"),
)
LAMBADA: tuple[Rule, ...] = (
    ("\u201c", '"'),
    ("\u201d", '"'),
    (re.compile(r"\A\s*"), "\n"),  # a passage begins with a line break
    (re.compile(r"(?<=\S)\s+\Z"), ""),
)
RULES: dict[str, tuple[Rule, ...]] = {"none": (), "wikitext": WIKITEXT, "ptb": PTB, "lm1b": LM1B, "lambada": LAMBADA}


def detokenize(text: str, name: str) -> str:
    """Apply the rules of the detokenizer of this name, a key of `RULES`, to a row, one after the other."""
    if name not in RULES:
        raise ValueError(f"`detokenizer` must be one of {sorted(RULES)}, got {name!r}.")
    for pattern, replacement in RULES[name]:
        if isinstance(pattern, str):
            text = text.replace(pattern, replacement)
        else:
            text = pattern.sub(replacement, text)
    return text
