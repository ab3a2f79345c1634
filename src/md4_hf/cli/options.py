# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Options of the commands that use a trained model: evaluate, suite, sample, infill, score, frontier,
schedules and export; and of convert."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.recipes import PREPARATIONS
from ..utils.options import check_at_least, check_left_out, option


SCORED_SAMPLES, SCORED_SEED = 64, 0  # of a model, unless others are asked for
COMPARED_SAMPLERS, COMPARED_STEPS = ("random", "confidence", "entropy_bound", "remasking=cap"), (16, 64, 256)
OF_THE_JUDGE = ("judge_revision", "retokenise", "add_bos", "max_length")
OF_REFERENCES = ("references_config", "references_split", "references_revision", "text_column")
PRECISIONS = ("float32", "bfloat16", "float16")
RECORDED_TEXTS, RECORDED_IMAGES = 16, 64  # samples whose unmasking is shown in a file, at most
SMALL_IMAGE = 64  # pixels of the side of an image that is enlarged to be looked at
# Those of `core.opening_orders` and `core.remasking`, which import torch.
ORDER_NAMES = (
    *("random", "confidence", "candidate", "margin", "entropy", "sequential"),
    *("threshold", "factor", "entropy_bound", "klass"),
)
QUOTA_NAMES = ("ceil", "floor", "binomial")
REMASKING_NAMES = ("cap", "rescale", "confidence", "loop", "flow")
CORRECTOR_NAMES = ("forward_backward", "gibbs", "informed")
# Those of `hub.convert`.
FAMILY_NAMES = ("auto", "mdlm", "sedd", "radd", "bd3lm", "duo", "llada", "dream", "sdar", "official", "transformers")
# Those of `core.opening_orders` that do not depend on the tokens drawn.
POLICY_ORDERS = (
    *("random", "confidence", "margin", "entropy", "sequential"),
    *("threshold", "factor", "entropy_bound", "klass"),
)
PREPARATION = "sedd"  # the paper's, as far as it says


# Evaluation -----------------------------------------------------------------------------------------------------------


@dataclass
class EstimateArguments:
    """Estimate of the likelihood: draws, rounds, precision."""

    _argument_group_name = "evaluation"

    draws: int = option("Stratified draws of time and masks per sequence and round.", default=8)
    estimator: str = option(
        'Bound by draws of a "time", or, for models that do not see it, of a number of masked tokens, "any_order"; or '
        'the likelihood under the sampler that unmasks in some --order, "policy".',
        default="time",
        choices=["time", "any_order", "policy"],
    )
    num_timesteps: int | None = option(
        "Steps of discrete time, 0 for continuous time; as the model was trained if left out."
    )
    rounds: int = option("Independent evaluations; two or more give the error of the draws.", default=1)
    target_stderr: float | None = option("Add rounds until the error of the draws, in nats per token, is no larger.")
    max_rounds: int = option("Rounds at most, with --target_stderr.", default=1000)
    batch_size: int = option("Sequences per forward pass.", default=32)
    seed: int = option("Seed of the evaluation noise.", default=0)
    bf16: bool = option("Evaluate under bf16 autocast.", default=False)
    use_cpu: bool = option("Use the CPU even if there is an accelerator.", default=False)
    base: str | None = option("Base model of an adapter, if not the one it names.")
    revision: str | None = option("Branch, tag or commit of a model on the Hub.")

    def __post_init__(self):
        check_at_least(self, 1, "draws", "batch_size")
        check_at_least(self, 0, "num_timesteps")
        if self.target_stderr is None:
            check_left_out(self, ["max_rounds"], "without --target_stderr")


@dataclass
class PolicyArguments:
    """Sampler whose likelihood is measured with --estimator policy; left out, as the model's scheduler has it."""

    _argument_group_name = "order of unmasking, with --estimator policy (by default that of the model's scheduler)"

    order: str | None = option("Which masked tokens are decided first.", choices=[*POLICY_ORDERS])
    num_inference_steps: int | None = option("Steps: forward passes per sequence, at most one per token.")
    order_temperature: float | None = option("Temperature of the ranking; above 0 it is drawn.")
    quota: str | None = option("How the number of tokens of a step is rounded, or drawn.", choices=[*QUOTA_NAMES])
    threshold: float | None = option("Confidence of the orders threshold and klass, in (0, 1].")
    factor: float | None = option("Factor of the order factor, > 0.")
    entropy_bound: float | None = option("Bound of the order entropy_bound in nats, >= 0.")
    kl_bound: float | None = option("Bound of the order klass in nats, > 0.")


@dataclass
class EvaluateArguments(EstimateArguments):
    """Estimate of the likelihood of a data set, and the file of its figures."""

    output_file: str | None = option("Also write the figures to this JSON file.")


@dataclass
class SuiteArguments:
    """Choice of published data sets, and their preparation."""

    _argument_group_name = "suite"

    tasks: list[str] | None = option("Some tasks of the suite; all if left out.")
    preparation: str = option(
        f"How text is prepared: {', '.join(PREPARATIONS)} (docs/evaluate.md).",
        default=PREPARATION,
        choices=[*PREPARATIONS],
    )
    stride: int | None = option("Tokens between the starts of two blocks; if left out, those of the preparation.")
    wrap: bool | None = option("Join rows and cut them into blocks; if left out, as the preparation does.")
    detokenizer: str | None = option('Detokenizer, if not the task\'s own; "none" for none.')
    replace: list[str] | None = option(
        "Local files in place of data sets, as TASK=FILE: each line of a text file is a row."
    )
    block_size: int | None = option("Tokens of a block of text; the model's length if left out.")
    output_dir: str | None = option(
        "Folder for the results; if left out, `evaluation` in a local model's folder, else runs/evaluation/NAME."
    )

    @property
    def settings(self) -> list[str]:
        """Settings that differ from the default, in words for the name of a file."""
        words = {"preparation": self.preparation, "stride": f"stride-{self.stride}"}
        words |= {"wrap": "wrapped" if self.wrap else "rows-alone", "detokenizer": f"detokenizer-{self.detokenizer}"}
        return [word for name, word in words.items() if getattr(self, name) != getattr(SuiteArguments, name)]


# Samples --------------------------------------------------------------------------------------------------------------


@dataclass
class SamplerArguments:
    """Drawing of samples, and the model that draws them."""

    _argument_group_name = "sampling"

    num_samples: int = option("Samples (per text, image or class).", default=1)
    num_inference_steps: int | None = option("Steps; the scheduler's own by default.")
    length: int | None = option("Tokens; the model's length by default.")
    gen_length: int | None = option("New tokens after each prompt, in place of --length.")
    block_length: int | None = option(
        "Tokens of a block, to generate block by block: to any --length, or as LLaDA does without --use_cache."
    )
    use_cache: bool = option(
        "Whether a block sees keys and values of the text before it, or else the whole row with its masks.",
        default=True,
    )
    eos_early_stop: bool = option(
        "End a text at its first EOS token once everything before it is decided.", default=False
    )
    stop_strings: list[str] | None = option("Strings that end a text; the string is kept.")
    order: str | None = option(
        "Which positions are unmasked first (docs/samplers.md). This and the following options are the scheduler's own "
        "by default.",
        choices=[*ORDER_NAMES],
    )
    order_temperature: float | None = option("Temperature of the ranking, >= 0.")
    quota: str | None = option("How many an order unmasks in a step.", choices=[*QUOTA_NAMES])
    threshold: float | None = option("Confidence in (0, 1], of the orders threshold and klass.")
    factor: float | None = option("Factor > 0 of the order factor; larger ones unmask more in a step.")
    entropy_bound: float | None = option("Bound in nats, >= 0, of the order entropy_bound.")
    kl_bound: float | None = option("Bound in nats, > 0, of the order klass.")
    remasking: str | None = option(
        "How decided tokens are masked again, with the order random.", choices=[*REMASKING_NAMES]
    )
    eta: float | None = option("Strength of the remasking, in [0, 1].")
    corrector: str | None = option("Kind of the corrector steps.", choices=[*CORRECTOR_NAMES])
    corrector_steps: int | None = option("Corrector steps after each step, >= 0, a network call each.")
    corrector_eta: float | None = option("Share in [0, 1] of the tokens that forward_backward masks.")
    corrector_size: int | None = option("Tokens >= 1 of a row that gibbs and informed draw anew.")
    temperature: float | None = option("Divides the logits; 0 takes the most probable token.")
    top_p: float | None = option("Nucleus in (0, 1].")
    top_k: int | None = option("Keep the k most probable tokens.")
    suppress_tokens: list[str] | None = option(
        "Tokens that are never drawn: ids, or texts that are one token each (digits are an id)."
    )
    class_labels: list[int] | None = option("Classes to sample, of a class-conditional model.")
    guidance_scale: float = option(
        "Classifier-free guidance: 1 is the class's own distribution, more is sharper.", default=1.0
    )
    seed: int | None = option("Seed; without one, samples differ every time.")
    device: str | None = option("Device; an accelerator if there is one.")
    dtype: str | None = option("Precision of the weights; that of the files by default.", choices=[*PRECISIONS])
    base: str | None = option("Base model of an adapter, if not the one it names.")
    revision: str | None = option("Branch, tag or commit of a model on the Hub.")

    def __post_init__(self):
        check_at_least(self, 1, "num_samples")
        if self.length is not None and self.gen_length is not None:
            raise ValueError(
                f"Only one of `length` and `gen_length` may be given, got {self.length} and {self.gen_length}."
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"`seed` must be in [-2^63, 2^64), got {self.seed}.")


@dataclass
class SampleArguments(SamplerArguments):
    """Drawing of samples, and the file to write."""

    batch_size: int = option("Samples per batch in each process; they do not depend on it.", default=32)
    output: str | None = option(
        "File to write when all samples are drawn: .jsonl (text, ids, seed, settings), .txt, or a picture of images. "
        "Until then they are in a hidden file beside it, from which the same command resumes after an interruption."
    )
    enlarge: int | None = option(
        "Width and height in the picture of one pixel of an image; by default images smaller than "
        f"{SMALL_IMAGE} pixels are enlarged to that."
    )
    quiet: bool = option("Print the samples only: no progress bar and no notes.", default=False)

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "batch_size", "enlarge")


@dataclass
class WatchArguments:
    """The unmasking of samples, to be looked at."""

    _argument_group_name = "unmasking"

    watch: bool = option(
        "Show texts on the terminal while they are unmasked, in colours; nothing of it elsewhere.", default=False
    )
    html: str | None = option(
        "Page to write that plays the unmasking, without network access: step, token and probability of each place, of "
        f"the first {RECORDED_TEXTS} texts or {RECORDED_IMAGES} images."
    )
    gif: str | None = option("Animation of the unmasking to write, of the first 3 texts or 64 images.")
    color_by: str = option(
        "Colour of a token: the step at which it was decided, or its probability.",
        default="step",
        choices=["step", "confidence"],
    )
    seconds: float | None = option(
        "Time of the unmasking: in the animation, whose end stays longer (6 if left out), and on the terminal at least "
        "(none if left out)."
    )

    def __post_init__(self):
        if not (self.watch or self.writes_files):
            check_left_out(self, ["color_by"], "without --watch, --html or --gif")
        if not (self.watch or self.gif):
            check_left_out(self, ["seconds"], "without --watch or --gif")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"`seconds` must be > 0, got {self.seconds}.")

    @property
    def writes_files(self) -> bool:
        """Whether a page or an animation is asked for."""
        return self.html is not None or self.gif is not None


@dataclass
class ChatArguments(SamplerArguments):
    """Drawing of answers, one at a time, which end with the end that the chat template or EOS gives them."""

    num_samples: int = field(default=1, init=False)
    length: int | None = field(default=None, init=False)
    gen_length: int | None = field(default=None, init=False)
    eos_early_stop: bool = field(default=True, init=False)
    class_labels: list[int] | None = field(default=None, init=False)
    max_new_tokens: int | None = option(
        "Maximum tokens of an answer; by default as many as the model's length has room for."
    )
    system: str | None = option("System message at the beginning of each conversation.")
    chat_template: str | None = option('Chat template in place of the tokenizer\'s: a Jinja file, or "chatml".')

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "max_new_tokens")


@dataclass
class PromptArguments:
    """Text to start from."""

    _argument_group_name = "prompt"

    prompt: str | None = option(
        "Text that every sample begins with, or text with gaps, <mask:12>; - reads prompts from standard input, one "
        "per line."
    )
    prompt_file: str | None = option(
        "File of prompts: JSON lines with `prompt` if it ends in .jsonl, else one per line; --num_samples of each."
    )


@dataclass
class ImageArguments:
    """Image, and the part of it to fill."""

    _argument_group_name = "image"

    image: str | None = option("Picture, of the model's size, in place of the text.")
    mask: str | None = option("Picture of the same size, white where it is to be filled.")


@dataclass
class JudgeArguments:
    """Measures of samples under a causal language model, and real data to compare them with."""

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
    references: str | None = option("Real text or images to measure beside the samples: a file, a folder, a Hub id.")
    references_config: str | None = option("Configuration of the references' data set.")
    references_split: str = option('Split of the references, or a slice, "train[:1%%]".', default="train")
    references_revision: str | None = option("Branch, tag or commit of the references on the Hub.")
    text_column: str = option("Column of the references that holds the text.", default="text")

    def __post_init__(self):
        check_at_least(self, 1, "batch_size")
        check_at_least(self, 2, "max_length")
        if self.judge is None:
            check_left_out(self, OF_THE_JUDGE, "without a `judge`")
        if self.references is None:
            check_left_out(self, OF_REFERENCES, "without `references`")

    def reference_options(self) -> dict[str, Any]:
        """Part of the references' data set, and the name of its option, as arguments of its loader."""
        names = ("config", "split", "revision")
        return {"argument": "references", **{name: getattr(self, f"references_{name}") for name in names}}


@dataclass
class ScoreArguments(JudgeArguments):
    """Measures of samples, and the files of samples and scores."""

    tokenizer: str | None = option("Tokenizer of the samples of a file; of a model, its own.")
    output_file: str | None = option("Also write scores and recipe to this JSON file.")
    samples_file: str | None = option("Keep the samples in this .jsonl file; the ones in it are not drawn again.")

    def __post_init__(self):
        super().__post_init__()
        for name in ("output_file", "samples_file"):
            value = getattr(self, name)
            if value is not None and (Path(value).is_dir() or not Path(value).absolute().parent.is_dir()):
                raise ValueError(f"`{name}` must be a file in a folder that exists, got {value}.")
        if self.samples_file is not None and Path(self.samples_file).suffix != ".jsonl":
            raise ValueError(f"`samples_file` must end in .jsonl, got {self.samples_file}.")


@dataclass
class FrontierArguments:
    """Samplers to compare, and the folder of their samples and figures."""

    _argument_group_name = "frontier"

    samplers: list[str] | None = option(
        "Samplers, each an order or an entry of the scheduler's configuration, with more entries after a colon, as in "
        "confidence, entropy_bound:entropy_bound=0.5, remasking=cap:eta=0.02 or "
        "corrector=informed:corrector_steps=1,corrector_size=8; one with temperature=... has no others. The first is "
        f"compared with at equal entropy. (default: {' '.join(COMPARED_SAMPLERS)})"
    )
    steps: list[int] | None = option(
        "Network calls of a sample at most: the steps of the time grid or, with n corrector steps after each, an "
        f"(n+1)-th of that. (default: {' '.join(map(str, COMPARED_STEPS))})"
    )
    temperatures: list[float] | None = option("Temperatures of each sampler. (default: 1)")
    num_samples: int = option("Samples of each setting.", default=64)
    length: int | None = option("Tokens; the model's length by default.")
    seed: int = option("Seed of the samples.", default=SCORED_SEED)
    device: str | None = option("Device; an accelerator if there is one.")
    dtype: str | None = option("Precision of the weights; that of the files by default.", choices=[*PRECISIONS])
    base: str | None = option("Base model of an adapter, if not the one it names.")
    revision: str | None = option("Branch, tag or commit of a model on the Hub.")
    output_dir: str | None = option(
        "Folder for frontier.json, .md and .png, and for the samples and figures of each setting, from which the same "
        "command resumes; if left out, `frontier` in a local model's folder, else runs/frontier/NAME."
    )

    def __post_init__(self):
        check_at_least(self, 1, "num_samples")
        defaults = {"samplers": [*COMPARED_SAMPLERS], "steps": [*COMPARED_STEPS], "temperatures": [1.0]}
        for name, values in defaults.items():
            setattr(self, name, getattr(self, name) or values)
        if min(self.steps) < 1:
            raise ValueError(f"`steps` must be >= 1, got {min(self.steps)}.")


# Other commands -------------------------------------------------------------------------------------------------------


@dataclass
class DemoArguments:
    """The page, where it is served, and the model on it."""

    _argument_group_name = "page"

    host: str = option("Address to listen on; 0.0.0.0 for all of this machine's.", default="127.0.0.1")
    port: int | None = option("Port; the first one from 7860 on that is free by default.")
    share: bool = option("Also give the page a public address for a week, through a server of Gradio.", default=False)
    title: str | None = option("Heading; the name of the model by default.")
    examples: str | None = option("File of texts with gaps to offer as examples, one a line.")
    chat_template: str | None = option('Chat template in place of the tokenizer\'s: a Jinja file, or "chatml".')
    device: str | None = option("Device; an accelerator if there is one.")
    dtype: str | None = option("Precision of the weights; that of the files by default.", choices=[*PRECISIONS])
    base: str | None = option("Base model of an adapter, if not the one it names.")
    revision: str | None = option("Branch, tag or commit of a model on the Hub.")

    def __post_init__(self):
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"`port` must be in [1, 65535], got {self.port}.")


@dataclass
class ScheduleArguments:
    """Table and pictures of schedules."""

    _argument_group_name = "schedules"

    rows: int = option("Tokens in each half of the table: smallest and largest exponents.", default=10)
    min_count: int = option("Leave out tokens that are rarer in --data.", default=1)
    output_dir: str | None = option("Write the pictures to this folder.")
    format: str = option("Kind of picture.", default="png", choices=["png", "svg"])
    revision: str | None = option("Branch, tag or commit of a model on the Hub.")

    def __post_init__(self):
        check_at_least(self, 0, "min_count")
        check_at_least(self, 1, "rows")


@dataclass
class ConvertArguments:
    """The checkpoint and the folder to write."""

    _argument_group_name = "conversion"

    output_dir: str | None = option("Folder to write; empty or absent.")
    family: str = option("Kind of the checkpoint; auto recognises it.", default="auto", choices=[*FAMILY_NAMES])
    tokenizer: str | None = option("Tokenizer, if not the checkpoint's own: folder or Hub id.")
    mask_token: str | None = option("Mask token or its id, where neither configuration nor tokenizer names it.")
    predicts_next: bool | None = option(
        "Whether the state of the token before predicts a token; for the family transformers."
    )
    allow_pickle: bool = option("Open pickled weights too, for tensors alone.", default=False)
    revision: str | None = option("Branch, tag or commit of a checkpoint on the Hub.")


@dataclass
class ExportArguments:
    """Contents of the folder, and its upload."""

    _argument_group_name = "export"

    remote_code: bool = option("Add the code, so that the folder opens where md4_hf is not installed.", default=True)
    dtype: str | None = option("Precision of the weights.", choices=[*PRECISIONS])
    base: str | None = option("Base model of an adapter, if not the one it names.")
    revision: str | None = option("Branch, tag or commit of a model on the Hub.")
    overwrite: bool = option("Replace an earlier export in the folder; other files in it stay.", default=False)
    push_to_hub: str | None = option("Also upload the folder to this repository.")
    private: bool = option("Make a new repository private.", default=False)
    space: bool = option(
        "Write a Gradio Space instead, with the page of `md4 demo`: it holds a model of a folder, and names one of the "
        "Hub.",
        default=False,
    )
    package: str | None = option(
        'Requirement that installs md4_hf in the Space, "md4_hf @ git+https://..."; its source is in the folder by '
        "default."
    )
