# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 score`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.documents import load_documents
from ..data.images import ImageDataArguments, encode_images, load_image_table
from ..data.packing import pack
from ..data.tokenizers import load_tokenizer
from ..evaluation.images import image_sample_metrics, load_inception
from ..evaluation.provenance import versions
from ..evaluation.report import finite
from ..evaluation.sample_statistics import token_statistics
from ..evaluation.samples import check_same_tokens, generative_perplexity, generative_perplexity_of_ids
from ..hub.loading import load_pipeline
from ..objective.figures import Figure
from ..utils.errors import file_errors_as_value_errors
from ..utils.files import write_whole
from ..utils.hardware import choose_device
from ..utils.options import check_left_out, option
from .arguments import parse_arguments
from .draw import TextSamples, draw_samples, names_samples, read_samples, sampling_recipe
from .images import check_no_images
from .sample import SamplerArguments


NUM_SAMPLES, SEED = 64, 0
OF_THE_JUDGE = ("judge_revision", "retokenise", "add_bos", "max_length")
OF_REFERENCES = ("references_config", "references_split", "references_revision", "text_column")
PROBE = "the quick brown fox jumps over the lazy dog"
OWN_TOKENS, JUDGE_TOKENS = "own tokens", "judge's tokens"
# Where a figure is in the measures of a set of samples, and what the table calls it.
TEXT_ROWS = {
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
}
IMAGE_ROWS = {
    ("images", "fid"): "FID",
    ("images", "inception_score"): "Inception score",
    ("images", "inception_score_std"): "  its deviation over parts",
}


@dataclass
class ScoreArguments:
    """What is measured, and against what."""

    _argument_group_name = "scores"

    judge: str | None = option("Folder or Hub id of a causal language model, for the perplexity.")
    judge_revision: str | None = option("Branch, tag or commit of the judge.")
    retokenise: bool = option(
        "Give the judge the texts, in its own tokens; otherwise the samples' own tokens, which have to be "
        "the judge's too.",
        default=True,
    )
    add_bos: bool = option(
        "Put the judge's BOS token before each sample, and score the first token too.", default=False
    )
    max_length: int | None = option("Tokens of the judge that are scored; as many as it takes by default.")
    batch_size: int = option("Samples at a time.", default=16)
    tokenizer: str | None = option("Tokenizer of the samples of a file; of a model, its own.")
    references: str | None = option("Real text or images to measure beside the samples: a file, a folder, a Hub id.")
    references_config: str | None = option("Configuration of that data set.")
    references_split: str = option('Its split, or a slice, "train[:1%%]".', default="train")
    references_revision: str | None = option("Its branch, tag or commit on the Hub.")
    text_column: str = option("Its column that holds the text.", default="text")
    output_file: str | None = option("Also write scores and recipe to this JSON file.")
    samples_file: str | None = option("Keep the samples in this .jsonl file; the ones in it are not drawn again.")

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be >= 1, got {self.batch_size}.")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"`max_length` must be >= 2, got {self.max_length}.")
        for name in ("output_file", "samples_file"):
            value = getattr(self, name)
            if value is not None and (Path(value).is_dir() or not Path(value).absolute().parent.is_dir()):
                raise ValueError(f"`{name}` must be a file in a folder that exists, got {value}.")
        if self.samples_file is not None and Path(self.samples_file).suffix != ".jsonl":
            raise ValueError(f"`samples_file` must end in .jsonl, got {self.samples_file}.")

    def reference_options(self) -> dict[str, Any]:
        """Which part of the references' data set."""
        return {
            "config": self.references_config,
            "split": self.references_split,
            "revision": self.references_revision,
        }


@dataclass
class Judge:
    """A causal language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def score(argv: list[str] | None = None):
    """`md4 score`: statistics of samples, their perplexity under a causal model, or the FID of images."""
    options, sampler, image_args, rest = parse_arguments(
        (ScoreArguments, SamplerArguments, ImageDataArguments),
        argv,
        prog="md4 score",
        description="Measure samples, of a model or from a file: their perplexity under a causal language model, never "
        "without the entropy of their tokens, different and repeated n-grams, duplicates; of images, FID and Inception "
        "score. With --references the same figures of real data stand beside them. Measured are 64 samples of a model, "
        f"drawn with seed {SEED}, and all of a file, unless --num_samples and --seed say otherwise.",
        positional={"model_or_file": "Folder or Hub id of a model or adapter, or a .txt or .jsonl file of samples."},
        defaults={"num_samples": None, "seed": SEED},
    )
    source = rest.model_or_file
    check_used(options)
    if names_samples(source):
        check_no_images(image_args)
        scores, recipe = score_file(source, options, sampler)
    else:
        scores, recipe = score_model(source, options, sampler, image_args)
    if options.output_file is not None:
        recipe |= dataclasses.asdict(options) | {"versions": versions()}
        write_whole(Path(options.output_file), json.dumps(finite({**scores, "recipe": recipe}), indent=2) + "\n")


def score_file(source: str, options: ScoreArguments, sampler: SamplerArguments) -> tuple[dict, dict]:
    """Scores and recipe of the samples of a file."""
    check_not_drawn(options, sampler)
    device = choose_device(sampler.device)
    samples = read_samples(Path(source))
    samples.texts = samples.texts[: sampler.num_samples]
    samples.ids = None if samples.ids is None else samples.ids[: sampler.num_samples]
    judge = load_judge(options)
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer, argument="tokenizer")
    if samples.ids is None and tokenizer is not None:
        samples.ids = encode(tokenizer, samples.texts)
    if samples.ids is None and judge is None:
        raise ValueError(
            f"`judge` or `tokenizer` must be given for the samples of {source}, which have no `input_ids`."
        )
    scores = score_texts(samples, load_references(options), tokenizer, judge, options, device)
    print_scores(scores, TEXT_ROWS, f"{len(samples)} samples of {source}", options)
    return scores, {"samples": source, "samples_recipe": samples.recipe} | judge_recipe(judge)


def check_used(options: ScoreArguments):
    """Refuse what would be ignored: options of a judge or of references where there are none."""
    if options.judge is None:
        check_left_out(options, OF_THE_JUDGE, "without a `judge`")
    if options.references is None:
        check_left_out(options, OF_REFERENCES, "without `references`")


def check_not_drawn(options: ScoreArguments, sampler: SamplerArguments):
    """Refuse what would be ignored: the samples of a file are there already."""
    drawing = [f.name for f in dataclasses.fields(SamplerArguments) if f.name not in ("num_samples", "seed", "device")]
    check_left_out(sampler, drawing, "for a file of samples")
    if sampler.seed != SEED:
        raise ValueError(f"`seed` must be left out for a file of samples, got {sampler.seed}.")
    check_left_out(options, ["samples_file"], "for a file of samples")
    check_num_samples(sampler)


def check_num_samples(sampler: SamplerArguments):
    """None is allowed, and stands for all of a file."""
    if sampler.num_samples is not None and sampler.num_samples < 1:
        raise ValueError(f"`num_samples` must be >= 1, got {sampler.num_samples}.")


def score_model(
    source: str, options: ScoreArguments, sampler: SamplerArguments, image_args: ImageDataArguments
) -> tuple[dict, dict]:
    """Scores and recipe of samples that a model draws."""
    check_num_samples(sampler)
    if sampler.seed is None:
        raise ValueError("`seed` must be an integer, got None: scores are to be repeatable.")
    sampler.num_samples = NUM_SAMPLES if sampler.num_samples is None else sampler.num_samples
    if options.tokenizer is not None:
        raise ValueError(f"`tokenizer` must be left out for a model, which has its own, got {options.tokenizer}.")
    pipeline = load_pipeline(source, base=sampler.base, revision=sampler.revision, device=sampler.device)
    if pipeline.image_shape is None:
        check_no_images(image_args)
    else:
        check_left_out(options, ("judge", *OF_THE_JUDGE, "text_column"), "for a model of images")
        if options.references is None:
            check_left_out(image_args, [f.name for f in dataclasses.fields(image_args)], "without `references`")
    recipe = sampling_recipe(pipeline, sampler)
    names = {"model": source, "base": sampler.base, "revision": sampler.revision, "commit": commit(pipeline.model)}
    recipe_of_all = {**names, "num_samples": sampler.num_samples, **recipe}
    path = None if options.samples_file is None else Path(options.samples_file)

    def draw():
        return draw_samples(pipeline, sampler, recipe, options.batch_size, path)

    if pipeline.image_shape is not None:
        scores = score_images(source, pipeline, draw, options, image_args)
        return scores, recipe_of_all | dataclasses.asdict(image_args)
    judge = load_judge(options)  # before samples are drawn for nothing
    documents = load_references(options)
    if judge is not None and not options.retokenise:
        check_same_tokens(encode(pipeline.tokenizer, [PROBE]), judge.tokenizer, pipeline.tokenizer)
    rows = draw()
    samples = TextSamples([row["text"] for row in rows], [row["input_ids"] for row in rows])
    scores = score_texts(samples, documents, pipeline.tokenizer, judge, options, pipeline.device)
    print_scores(scores, TEXT_ROWS, f"{len(samples)} samples of {source}", options)
    return scores, recipe_of_all | judge_recipe(judge)


# Text -----------------------------------------------------------------------------------------------------------------


def score_texts(
    samples: TextSamples,
    documents: Dataset | None,
    tokenizer: PreTrainedTokenizerBase | None,
    judge: Judge | None,
    options: ScoreArguments,
    on: torch.device | str,
) -> dict[str, dict[str, Any]]:
    """The measures of samples, and of references if there are any."""
    scores = {"samples": measure_texts(samples, tokenizer, judge, options, on)}
    if documents is not None:
        cutter = tokenizer or (judge.tokenizer if judge is not None else None)
        if cutter is None:
            raise ValueError("`references` need a `tokenizer` or a `judge` to be cut to the length of the samples.")
        lengths = list(map(len, samples.ids or encode(cutter, samples.texts)))
        references = cut(documents, cutter, round(sum(lengths) / len(lengths)), len(samples))
        if samples.ids is None:  # then neither are these of tokens of their own
            references.ids = None
        scores["references"] = measure_texts(references, tokenizer, judge, options, on)
    return scores


def measure_texts(
    samples: TextSamples,
    tokenizer: PreTrainedTokenizerBase | None,
    judge: Judge | None,
    options: ScoreArguments,
    on: torch.device | str,
) -> dict[str, Any]:
    """All measures of one set of texts; n-grams are of their own tokens, or of the judge's if those are not known."""
    measures: dict[str, Any] = {}
    if judge is not None:
        judge.model.to(on)
        measures["judge"] = perplexity(samples, tokenizer, judge, options)
    if samples.ids is not None:
        measures["tokens"] = {"are": OWN_TOKENS, **token_statistics(samples.ids)}
    else:
        ids = [row for row in encode(judge.tokenizer, samples.texts) if row]
        measures["tokens"] = {"are": JUDGE_TOKENS, **token_statistics(ids)}
    return measures


def perplexity(
    samples: TextSamples, tokenizer: PreTrainedTokenizerBase | None, judge: Judge, options: ScoreArguments
) -> dict[str, Any]:
    """The figures of `generative_perplexity`; samples of less than two tokens have none, and are counted."""
    settings = {
        "batch_size": options.batch_size,
        "max_length": options.max_length,
        "add_bos": options.add_bos,
        "progress": True,
    }
    if options.retokenise:
        lengths = map(len, encode(judge.tokenizer, samples.texts))
        texts = [text for text, length in zip(samples.texts, lengths, strict=True) if length >= 2]
        check_any_left(texts)
        measures = generative_perplexity(texts, judge.model, judge.tokenizer, **settings)
        return {**measures, "num_too_short": len(samples) - len(texts)}
    if samples.ids is None or tokenizer is None:
        raise ValueError("`retokenise` must be true for samples without `input_ids` and a `tokenizer`, got false.")
    ids = [row for row in samples.ids if len(row) >= 2]
    check_any_left(ids)
    measures = generative_perplexity_of_ids(ids, judge.model, judge.tokenizer, tokenizer, **settings)
    return {**measures, "num_too_short": len(samples) - len(ids)}


def check_any_left(samples: list):
    """A clear error where there is nothing to score."""
    if not samples:
        raise ValueError("`model_or_file` must give samples of at least two tokens of the judge, got none.")


def load_judge(options: ScoreArguments) -> Judge | None:
    """The judge, None if there is none.

    Raises:
        OSError, ValueError: If it is no causal language model with a tokenizer.
    """
    if options.judge is None:
        return None
    hub = {"revision": options.judge_revision or "main"}
    try:
        with file_errors_as_value_errors("judge", options.judge):
            config = AutoConfig.from_pretrained(options.judge, **hub)
            is_causal = getattr(config, "is_causal", True)  # said of MD4's, which are causal or not by configuration
            if not (is_causal and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING):
                raise ValueError(f"there is no causal language model of type {config.model_type!r}.")
            tokenizer = AutoTokenizer.from_pretrained(options.judge, **hub)
            model = AutoModelForCausalLM.from_pretrained(options.judge, **hub).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`judge` must be a folder or Hub id of a causal language model, got {options.judge}."
        ) from error
    check_causal(model, options.judge)
    return Judge(model, tokenizer)


@torch.no_grad()
def check_causal(model: PreTrainedModel, name: str):
    """Refuse a model whose prediction for one token depends on those after it: BERT opens as a causal model too."""
    logits = model(input_ids=torch.tensor([[0, 0], [0, 1]]), use_cache=False).logits[:, 0].float()
    if (logits[0] - logits[1]).abs().max() > 1e-2 * logits.std():
        raise ValueError(f"`judge` must be a causal language model, got {name}, which sees the tokens to come.")


def load_references(options: ScoreArguments) -> Dataset | None:
    """The documents of real text, None if there are none to compare with."""
    if options.references is None:
        return None
    return load_documents(
        options.references, text_column=options.text_column, argument="references", **options.reference_options()
    )


def cut(documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> TextSamples:
    """Blocks of so many tokens, as many as asked for or as there are, spread evenly over the documents."""
    blocks, _ = pack(documents, tokenizer, length)
    places = [place * len(blocks) // count for place in range(count)] if len(blocks) > count else range(len(blocks))
    ids = [list(row) for row in blocks.select(places)["input_ids"]]
    return TextSamples([tokenizer.decode(row, skip_special_tokens=True) for row in ids], ids)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The ids of texts, without special tokens."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


# Images ---------------------------------------------------------------------------------------------------------------


def score_images(source: str, pipeline, draw, options: ScoreArguments, image_args: ImageDataArguments) -> dict:
    """The measures of images."""
    if pipeline.image_processor is None:
        raise ValueError(f"`model_or_file` must be a model of pictures, got images of shape {pipeline.image_shape}.")
    on = "cpu" if pipeline.device.type == "mps" else pipeline.device  # which has no float64
    features, class_logits = load_inception(on)  # before samples are drawn for nothing
    references = None
    if options.references is not None:
        images = load_image_table(options.references, argument="references", **options.reference_options())
        examples = encode_images(images, pipeline.image_processor, image_args)
        ids = [example["input_ids"] for example in examples.__getitems__(list(range(len(examples))))]
        references = as_pictures(ids, pipeline)
    samples = as_pictures([row["input_ids"] for row in draw()], pipeline)
    metrics = image_sample_metrics(
        samples,
        references,
        features=features,
        class_logits=class_logits,
        batch_size=options.batch_size,
        device=on,
        progress=True,
    )
    scores = {"samples": {"images": metrics}}
    print_scores(scores, IMAGE_ROWS, f"{len(samples)} samples of {source}", options)
    return scores


def as_pictures(ids: list, pipeline) -> torch.Tensor:
    """Ids of images as uint8 RGB, `(images, 3, height, width)`."""
    levels = torch.stack([torch.as_tensor(image) for image in ids])
    pixels = pipeline.image_processor.postprocess(levels, output_type="pt")
    return (pixels * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


# Output ---------------------------------------------------------------------------------------------------------------


def print_scores(scores: dict[str, dict[str, Any]], rows: dict, title: str, options: ScoreArguments):
    """A line for each figure, and a column for samples and references."""
    print(title if options.judge is None else f"{title}; the judge is {options.judge}")
    print(" " * 38 + "".join(f"{name:>14}" for name in scores))
    for (group, name), label in rows.items():
        values = [measures.get(group, {}).get(name) for measures in scores.values()]
        if any(value is not None for value in values):
            cells = ["" if value is None else str(Figure(label, value)) for value in values]
            print(f"  {label:<36}" + "".join(f"{cell:>14}" for cell in cells))
    for note in notes(scores):
        print(f"  {note}")


def notes(scores: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader of the table has to know besides."""
    found = []
    if (tokens := scores["samples"].get("tokens")) is not None:
        found = [f"entropy, n-grams and duplicates without a judge's name are of the {tokens['are']}"]
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


def judge_recipe(judge: Judge | None) -> dict[str, Any]:
    """What is known of the judge beyond its name."""
    if judge is None:
        return {}
    return {
        "judge_commit": commit(judge.model),
        "judge_dtype": str(judge.model.dtype).removeprefix("torch."),
        "judge_length": getattr(judge.model.config.get_text_config(), "max_position_embeddings", None),
        "judge_bos_token": judge.tokenizer.bos_token,
    }


def commit(model: PreTrainedModel) -> str | None:
    """The commit of a model of the Hub."""
    return getattr(model.config, "_commit_hash", None)
