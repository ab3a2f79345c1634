# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 score`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..core.text_encoding import encode_texts
from ..data.arguments import ImageDataArguments
from ..data.documents import load_documents
from ..data.images import encode_images, load_image_table
from ..data.packing import pack
from ..data.tokenizers import load_tokenizer
from ..evaluation.images import image_sample_metrics, load_inception
from ..evaluation.provenance import versions
from ..evaluation.report import finite
from ..evaluation.sample_statistics import token_statistics
from ..evaluation.samples import check_same_tokens
from ..hub.loading import load_pipeline
from ..objective.figures import Figure
from ..utils.files import write_whole
from ..utils.hardware import choose_device
from ..utils.options import check_left_out
from .draw import Sampling, check_ranges
from .images import check_no_images
from .judge import Judge, commit, judge_recipe, load_judge, perplexity
from .kept_samples import drawn_rows
from .options import OF_THE_JUDGE, SCORED_SAMPLES, SCORED_SEED, JudgeArguments, SamplerArguments, ScoreArguments
from .sample_files import Row, printed
from .text_samples import TextSamples, is_samples_file, read_samples


Draw = Callable[[], list[Row]]

PROBE = "the quick brown fox jumps over the lazy dog"
OWN_TOKENS, JUDGE_TOKENS = "own tokens", "judge's tokens"
# Where a figure is in the measures of a set of samples, and what the table calls it.
ROWS = {
    ("judge", "perplexity"): "perplexity, over tokens",
    ("judge", "mean_perplexity"): "mean perplexity of a text",
    ("judge", "token_entropy"): f"token entropy, nats, {JUDGE_TOKENS}",
    ("tokens", "token_entropy"): "token entropy, nats",
    ("tokens", "distinct_1"): "distinct-1",
    ("tokens", "distinct_2"): "distinct-2",
    ("tokens", "distinct_3"): "distinct-3",
    ("tokens", "seq_rep_4"): "repeated 4-grams (seq-rep-4)",
    ("tokens", "repeated_tokens_4"): "tokens in repeated 4-grams",
    ("tokens", "num_duplicates"): "duplicates",
    ("images", "fid"): "FID",
    ("images", "inception_score"): "Inception score",
    ("images", "inception_score_std"): "  its deviation over parts",
}


def score(
    options: ScoreArguments, sampler: SamplerArguments, image_args: ImageDataArguments, rest: argparse.Namespace
):
    """Measure samples: their statistics, their perplexity under a causal model, or the FID of images."""
    score_source = score_file if is_samples_file(rest.model_or_file) else score_model
    scores, recipe, number = score_source(rest.model_or_file, options, sampler, image_args)
    if options.output_file is not None:
        recipe |= dataclasses.asdict(options) | {"versions": versions()}
        write_whole(Path(options.output_file), json.dumps(finite({**scores, "recipe": recipe}), indent=2) + "\n")
    print_scores(scores, f"{number} samples of {rest.model_or_file}", options)


def score_file(
    source: str, options: ScoreArguments, sampler: SamplerArguments, image_args: ImageDataArguments
) -> tuple[dict, dict, int]:
    """Scores, recipe and number of the samples of a file."""
    check_no_images(image_args)
    drawing = [f.name for f in dataclasses.fields(SamplerArguments) if f.name not in ("num_samples", "device")]
    seed = None if sampler.seed == SCORED_SEED else sampler.seed
    check_left_out(dataclasses.replace(sampler, seed=seed), drawing, "for a file of samples")
    check_left_out(options, ["samples_file"], "for a file of samples")
    device = choose_device(sampler.device)
    samples = read_samples(Path(source))
    samples.texts = samples.texts[: sampler.num_samples]
    samples.ids = None if samples.ids is None else samples.ids[: sampler.num_samples]
    judge = load_judge(options)
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer, argument="tokenizer")
    if samples.ids is None and tokenizer is not None:
        samples.ids = encode_texts(tokenizer, samples.texts)
    if samples.ids is None and judge is None:
        raise ValueError(f"`judge` or `tokenizer` must be given for the samples of {source}, which have no 'ids'.")
    scores = score_texts(samples, load_references(options), tokenizer, judge, options, device)
    return scores, {"samples": source, "samples_recipe": samples.recipe} | judge_recipe(judge), len(samples)


def score_model(
    source: str, options: ScoreArguments, sampler: SamplerArguments, image_args: ImageDataArguments
) -> tuple[dict, dict, int]:
    """Scores, recipe and number of samples that a model draws."""
    if sampler.seed is None:
        raise ValueError("`seed` must be an integer, got None: scores are to be repeatable.")
    check_ranges(sampler)
    sampler.num_samples = SCORED_SAMPLES if sampler.num_samples is None else sampler.num_samples
    check_left_out(options, ["tokenizer"], "for a model, which has its own")
    names = {"base": sampler.base, "revision": sampler.revision}
    pipeline = load_pipeline(source, **names, dtype=sampler.dtype, device=sampler.device)
    score_drawn = score_drawn_texts if pipeline.image_shape is None else score_drawn_images
    sampling = Sampling(pipeline, sampler)
    recipe = sampling.recipe()
    path = None if options.samples_file is None else Path(options.samples_file)
    draw_rows = functools.partial(drawn_rows, sampling, recipe, options.batch_size, path)
    scores, facts, number = score_drawn(source, pipeline, draw_rows, options, image_args)
    facts = {**facts, "model": source, **names, "commit": commit(pipeline.model)}
    return scores, {"num_samples": sampler.num_samples, **recipe, **facts}, number


def score_drawn_texts(
    source: str, pipeline, draw: Draw, options: ScoreArguments, image_args: ImageDataArguments
) -> tuple[dict, dict, int]:
    """Scores of texts that a model draws, and facts of their judge."""
    check_no_images(image_args)
    judge = load_judge(options)  # before samples are drawn for nothing
    documents = load_references(options)
    if pipeline.tokenizer is None:
        check_left_out(options, ["judge", "references"], "for a model without a tokenizer")
    if judge is not None and not options.retokenise:
        check_same_tokens(encode_texts(pipeline.tokenizer, [PROBE]), judge.tokenizer, pipeline.tokenizer)
    rows = draw()
    samples = TextSamples([printed(row) for row in rows], [row["ids"] for row in rows])
    scores = score_texts(samples, documents, pipeline.tokenizer, judge, options, pipeline.device)
    return scores, judge_recipe(judge), len(samples)


def score_texts(
    samples: TextSamples,
    documents: Dataset | None,
    tokenizer: PreTrainedTokenizerBase | None,
    judge: Judge | None,
    options: JudgeArguments,
    on: torch.device | str,
) -> dict[str, dict[str, Any]]:
    """Measures of samples, and of references if there are any."""
    if judge is not None:
        judge.model.to(on)
    scores = {"samples": measure_texts(samples, tokenizer, judge, options)}
    if documents is not None:
        cutter = tokenizer or (judge and judge.tokenizer)
        if cutter is None:
            raise ValueError("`references` need a `tokenizer` or a `judge` to be cut to the length of the samples.")
        lengths = list(map(len, samples.ids or encode_texts(cutter, samples.texts)))
        references = reference_texts(documents, cutter, round(sum(lengths) / len(lengths)), len(samples))
        if samples.ids is None:  # then neither are these of tokens of their own
            references.ids = None
        scores["references"] = measure_texts(references, tokenizer, judge, options)
    return scores


def measure_texts(
    samples: TextSamples, tokenizer: PreTrainedTokenizerBase | None, judge: Judge | None, options: JudgeArguments
) -> dict[str, Any]:
    """All measures of one set of texts; n-grams are of their own tokens, or of the judge's if those are not known."""
    measures = {} if judge is None else {"judge": perplexity(samples, tokenizer, judge, options)}
    kind, ids = OWN_TOKENS, samples.ids
    if ids is None:
        kind, ids = JUDGE_TOKENS, [row for row in encode_texts(judge.tokenizer, samples.texts) if row]
    return {**measures, "tokens": {"are": kind, **token_statistics(ids)}}


def load_references(options: JudgeArguments) -> Dataset | None:
    """The documents of real text, None if there are none to compare with."""
    if options.references is None:
        return None
    return load_documents(options.references, text_column=options.text_column, **options.reference_options())


def reference_texts(documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> TextSamples:
    """Blocks of `length` tokens, `count` or all there are, spread evenly over the documents."""
    blocks, _ = pack(documents, tokenizer, length)
    places = [place * len(blocks) // count for place in range(count)] if len(blocks) > count else range(len(blocks))
    ids = [list(row) for row in blocks.select(places)["input_ids"]]
    return TextSamples([tokenizer.decode(row, skip_special_tokens=True) for row in ids], ids)


def score_drawn_images(
    source: str, pipeline, draw: Draw, options: ScoreArguments, image_args: ImageDataArguments
) -> tuple[dict, dict, int]:
    """Scores of images that a model draws, and facts of the references."""
    check_left_out(options, ("judge", *OF_THE_JUDGE, "text_column"), "for a model of images")
    if options.references is None:
        check_left_out(image_args, [f.name for f in dataclasses.fields(image_args)], "without `references`")
    if pipeline.image_processor is None:
        raise ValueError(f"`model_or_file` must be a model of pictures, got images of shape {pipeline.image_shape}.")
    on = "cpu" if pipeline.device.type == "mps" else pipeline.device  # which has no float64
    features, class_logits = load_inception(on)  # before samples are drawn for nothing
    references = None
    if options.references is not None:
        images = load_image_table(options.references, **options.reference_options())
        examples = encode_images(images, pipeline.image_processor, image_args)
        ids = [example["input_ids"] for example in examples.__getitems__(list(range(len(examples))))]
        references = as_pictures(ids, pipeline)
    samples = as_pictures([row["ids"] for row in draw()], pipeline)
    inception = {"features": features, "class_logits": class_logits, "batch_size": options.batch_size, "device": on}
    scores = {"samples": {"images": image_sample_metrics(samples, references, progress=True, **inception)}}
    return scores, dataclasses.asdict(image_args), len(samples)


def as_pictures(ids: list, pipeline) -> torch.Tensor:
    """Ids of images as uint8 RGB, `(images, 3, height, width)`."""
    levels = torch.stack([torch.as_tensor(image) for image in ids])
    pixels = pipeline.image_processor.postprocess(levels, output_type="pt")
    return (pixels * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


def print_scores(scores: dict[str, dict[str, Any]], title: str, options: ScoreArguments):
    """A line for each figure, and a column for samples and references."""
    print(title if options.judge is None else f"{title}; the judge is {options.judge}")
    print(" " * 38 + "".join(f"{name:>14}" for name in scores))
    for (group, name), label in ROWS.items():
        values = [measures.get(group, {}).get(name) for measures in scores.values()]
        if any(value is not None for value in values):
            cells = ["" if value is None else str(Figure(label, value)) for value in values]
            print(f"  {label:<36}" + "".join(f"{cell:>14}" for cell in cells))
    for note in notes(scores):
        print(f"  {note}")


def notes(scores: dict[str, dict[str, Any]]) -> list[str]:
    """Notes below the table: tokens of the statistics, samples left out, unequal numbers."""
    found = []
    if (tokens := scores["samples"].get("tokens")) is not None:
        owner = "samples' " if tokens["are"] == OWN_TOKENS else ""
        found = [f"entropy, n-grams and duplicates are of the {owner}{tokens['are']}, where no others are named"]
    for column, measures in scores.items():
        judge = measures.get("judge", {})
        if judge.get("num_truncated"):
            found.append(f"{judge['num_truncated']} {column} are longer than the judge reads, and were cut off")
        if judge.get("num_too_short"):
            found.append(f"{judge['num_too_short']} {column} of less than two tokens have no perplexity")
    sizes = {column: measures.get("tokens", {}).get("num_sequences") for column, measures in scores.items()}
    if len(set(sizes.values())) > 1:
        found.append(f"there are {sizes['samples']} samples and {sizes['references']} references")
    return found
