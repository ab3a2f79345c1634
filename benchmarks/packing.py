# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Packing of text into blocks: `pack` beside the tokenizer and `group_texts`, as in run_mlm.py of transformers.

python benchmarks/packing.py --output benchmarks/results/packing.md

A line is a document, and the tokenizer a byte-level BPE trained on the text. All use one thread, and nothing is in a
cache. `group_texts` is measured with the attention and special tokens masks that run_mlm.py keeps, and with
ids alone; it counts no characters and bytes, does not separate documents, and drops the end of each batch. The
tokenizer alone, asked for ids in the quickest way, is the least there could be.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import interleaved, machine, paired_ratio, publish


os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from md4_hf import pack
from md4_hf.data.python_texts import pydoc_documents
from md4_hf.data.tokenizers import train_bpe_tokenizer


PACK, ALONE = "md4_hf's `pack`", "the tokenizer alone"
GROUPED, IDS_ALONE = "`map` and `group_texts`", "`map` and `group_texts`, ids alone"


def read_lines(names: list[str], num_characters: float) -> list[str]:
    """Lines of files, by default of the built-in corpus, again and again, until they have so many characters."""
    texts = [Path(name).read_text(encoding="utf-8") for name in names] or pydoc_documents()
    lines = [line for text in texts for line in text.splitlines()]
    copies = max(round(num_characters / sum(map(len, lines))), 1)
    return lines * copies


def variants(
    lines: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int
) -> dict[str, Callable[[], int | None]]:
    """Closures that make blocks of the lines, each time anew; they give the number of tokens."""
    Dataset.from_dict({"text": lines}).save_to_disk(datasets.config.HF_DATASETS_CACHE / "lines")
    documents = Dataset.load_from_disk(datasets.config.HF_DATASETS_CACHE / "lines")
    calls = itertools.count()

    def new_documents() -> Dataset:
        """The documents under a name that is not in the cache of `datasets`."""
        return Dataset(documents.data, fingerprint=f"call-{next(calls)}")

    def ours() -> int:
        return pack(new_documents(), tokenizer, block_size)[1].num_tokens

    def group_texts(examples: dict[str, list]) -> dict[str, list]:
        joined = {name: list(itertools.chain(*rows)) for name, rows in examples.items()}
        end = len(joined["input_ids"]) // block_size * block_size
        return {name: [x[i : i + block_size] for i in range(0, end, block_size)] for name, x in joined.items()}

    def grouped(columns: tuple[str, ...] | None) -> int:
        def tokenize(examples: dict[str, list]) -> dict[str, list]:
            encoded = tokenizer(examples["text"], return_special_tokens_mask=columns is None)
            return {name: encoded[name] for name in columns or encoded}

        ids = new_documents().map(tokenize, batched=True, remove_columns=["text"])
        return len(ids.map(group_texts, batched=True)) * block_size

    def alone() -> int:
        backend, num_tokens = tokenizer.backend_tokenizer, 0
        for start in range(0, len(lines), 1000):
            encoded = backend.encode_batch_fast(lines[start : start + 1000], add_special_tokens=False)
            num_tokens += sum(len(encoding.ids) for encoding in encoded)
        return num_tokens

    return {
        PACK: ours,
        GROUPED: lambda: grouped(None),
        IDS_ALONE: lambda: grouped(("input_ids",)),
        ALONE: alone,
    }


def report(args: argparse.Namespace) -> str:
    """Measure, and write it up."""
    lines = read_lines(args.text, args.characters)
    tokenizer = train_bpe_tokenizer(dict.fromkeys(lines), args.vocab)
    functions = variants(lines, tokenizer, args.block_size)
    num_tokens = functions[ALONE]()
    times = interleaved(functions, args.repeats, time.process_time)
    text = [
        "# Packing",
        "",
        machine(),
        "",
        "```bash",
        "python benchmarks/packing.py " + shlex.join(sys.argv[1:]),
        "```",
        "",
        f"{len(lines):,} lines of {sum(map(len, lines)) / 1e6:.1f}M characters, {num_tokens / 1e6:.2f}M tokens of a "
        f"BPE of {args.vocab:,}, blocks of {args.block_size}.",
        "",
        f"Processor time, medians of {args.repeats} turns; ratios are medians of those within a turn. `pack` counts "
        "characters and bytes as well.",
        "",
        "| | million tokens per CPU-second | `pack` is so many times as fast |",
        "| --- | --- | --- |",
    ]
    for name, elapsed in times.items():
        speed = num_tokens / statistics.median(elapsed) / 1e6
        text.append(f"| {name} | {speed:.3f} | {paired_ratio(times, name, PACK):.2f} |")
    return "\n".join(text) + "\n"


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="*", default=[], help="Files of text; the built-in corpus if left out.")
    parser.add_argument("--characters", type=float, default=20e6, help="Characters to pack, about.")
    parser.add_argument("--vocab", type=int, default=16384, help="Tokens of the BPE.")
    parser.add_argument("--block_size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        publish(report(args), args.output)


if __name__ == "__main__":
    main()
