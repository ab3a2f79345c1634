# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 schedules`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.arguments import DataArguments
from ..data.documents import load_train_validation
from ..data.packing import pack
from ..data.tokenizers import load_tokenizer
from ..evaluation import schedule_plots as plots
from ..hub.loading import load_model
from .options import ScheduleArguments
from .run_record import data_of_run


def schedules(options: ScheduleArguments, data_args: DataArguments, rest: argparse.Namespace):
    """Show the exponents of a GenMD4 model as a table and as pictures."""
    model = load_model(rest.model, revision=options.revision)
    tokenizer = load_tokenizer(rest.model, revision=options.revision)
    if not model.config.learn_masking_schedule:
        raise ValueError(f"`model` must be a GenMD4 model, got {rest.model}, whose schedule is not learned.")
    record, (data_args,) = data_of_run(rest.model, rest, data_args)
    exponents = model.token_schedule.exponents.detach()
    counts = count_tokens(data_args, tokenizer, model.config.vocab_size)
    counts[model.config.mask_token_id] = -1  # no token of the data
    frequent = np.flatnonzero(counts >= options.min_count)
    if not len(frequent):
        raise ValueError(f"`min_count` must leave some tokens of `data`, got {options.min_count}, which leaves none.")
    order = frequent[exponents[frequent].argsort(stable=True)]
    if options.output_dir is not None:
        draw(Path(options.output_dir), options.format, order, exponents, tokenizer)
    of_run = "" if record is None else f", as in {record.path}"
    print(f"counts of the training part of {' and '.join(data_args.sources)}{of_run}")
    print_table(order, exponents, counts, tokenizer, options.rows)
    if options.output_dir is not None:
        print(f"Pictures are in {options.output_dir}")


def count_tokens(data_args: DataArguments, tokenizer, vocab_size: int) -> np.ndarray:
    """Number of occurrences of each token in the training part of the data, `(vocab,)`."""
    blocks, _ = pack(load_train_validation(data_args)[0], tokenizer, data_args.block_size, num_proc=data_args.num_proc)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for batch in blocks.with_format("numpy").iter(1000):
        counts += np.bincount(np.asarray(batch["input_ids"]).ravel(), minlength=vocab_size)
    return counts


def print_table(order: np.ndarray, exponents: Tensor, counts: np.ndarray, tokenizer, rows: int):
    """The tokens with the smallest and the largest exponents."""
    print(f"{len(order):,} tokens, exponents from {exponents[order].min():.3f} to {exponents[order].max():.3f}")
    total = counts[order].sum()
    for title, chosen in (("smallest", order[:rows]), ("largest", order[::-1][:rows])):
        print(f"\n{title + ' exponents':<20} {'w':>7} {'frequency':>10}")
        for token in chosen:
            print(f"  {name_of(token, tokenizer):<18} {exponents[token]:7.3f} {counts[token] / total:10.4%}")


def name_of(token: int, tokenizer) -> str:
    """A token as it can be read in a table; part of a character, which decodes to none, as the vocabulary has it."""
    text = tokenizer.decode([int(token)])
    return repr(tokenizer.convert_ids_to_tokens(int(token)) if "\ufffd" in text else text)


def draw(folder: Path, suffix: str, order: np.ndarray, exponents: Tensor, tokenizer):
    """Write the pictures: exponents, some tokens' schedules, and the known schedules for comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(order)
    shown = sorted({0, 1, count // 3, 2 * count // 3, count - 2, count - 1} & {*range(count)})
    named = {name_of(order[index], tokenizer): exponents[order[index]].item() for index in shown}
    plots.plot_exponents(exponents[order], folder / f"exponents.{suffix}")
    plots.plot_token_schedules(named, folder / f"token_schedules.{suffix}")
    plots.plot_masking_schedules(folder / f"masking_schedules.{suffix}")
    plots.plot_unmasked_per_step(folder / f"unmasked_per_step.{suffix}")
