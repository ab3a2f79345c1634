# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 evaluate`."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.image_processing_md4 import MD4ImageProcessor
from ..data.documents import DataArguments, load_table, load_validation
from ..data.images import ImageDataArguments
from ..data.pairs import PairArguments, encode_pairs, load_pairs
from ..data.tokenizers import check_tokenizer_matches, load_tokenizer
from ..evaluation.provenance import environment
from ..evaluation.report import finite
from ..evaluation.rounds import Stopping, evaluate_in_rounds
from ..hub.loading import load_model
from ..objective.estimators import ANY_ORDER, TIME
from ..objective.example_order import data_sha256
from ..objective.modality import modality_of
from ..training.arguments import MD4TrainingArguments
from ..training.trainer import MD4Trainer
from ..utils.files import check_can_be_written, write_whole
from ..utils.options import check_left_out, option
from .arguments import parse_arguments
from .images import check_no_images, check_no_text, evaluation_images
from .suite import SuiteArguments, SuiteRun, describe_model, evaluate_suite, recipes_of, results_folder
from .train import check_block_size, check_no_document_mask, pack_as_asked, print_metrics


@dataclass
class EvaluateArguments:
    """How to evaluate."""

    _argument_group_name = "evaluation"

    draws: int = option("Stratified draws of time and masks per sequence and round.", default=8)
    estimator: str = option(
        'What a draw is: a "time", or for models that do not see it a number of masked tokens "any_order".',
        default=TIME,
        choices=[TIME, ANY_ORDER],
    )
    num_timesteps: int | None = option(
        "Steps of discrete time, 0 for continuous time; as the model was trained if left out."
    )
    rounds: int = option("Independent evaluations; of two the error of the draws is told.", default=1)
    target_stderr: float | None = option(
        "Go on, round by round, until the error of the draws is so small, in nats per token."
    )
    max_rounds: int = option("Rounds at most, with --target_stderr.", default=Stopping.max_rounds)
    batch_size: int = option("Sequences per forward pass.", default=32)
    seed: int = option("Seed of the evaluation noise.", default=0)
    bf16: bool = option("Evaluate under bf16 autocast.", default=False)
    use_cpu: bool = option("Use the CPU even if there is an accelerator.", default=False)
    base: str | None = option("Base model of an adapter, if not the one it names.")
    revision: str | None = option("Branch, tag or commit of a model on the Hub.")
    output_file: str | None = option("Also write the figures to this JSON file.")

    def __post_init__(self):
        for name in ("draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}.")
        if self.num_timesteps is not None and self.num_timesteps < 0:
            raise ValueError(f"`num_timesteps` must be >= 0, got {self.num_timesteps}.")
        if self.target_stderr is None:
            check_left_out(self, ["max_rounds"], "without --target_stderr")
        self.when_to_stop()  # checks its numbers

    def when_to_stop(self) -> Stopping:
        """When the rounds end."""
        return Stopping(self.rounds, self.target_stderr, self.max_rounds)


def evaluate(argv: list[str] | None = None):
    """`md4 evaluate`: the NELBO of held-out text or images, with its standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options, suite, pair_args, data_args, image_args, rest = parse_arguments(
        (EvaluateArguments, SuiteArguments, PairArguments, DataArguments, ImageDataArguments),
        argv,
        prog="md4 evaluate",
        description="Bound the likelihood of text: nats per token, perplexity, bits per character, each with its "
        "error; or that of images, in bits per dimension. With --validation_data that is scored, else the held-out "
        "part of --data. Blocks of text are as long as the model's length unless --block_size is given. With --suite "
        "the data sets of published tables are scored, prepared as those were.",
        positional={"model": "Folder or Hub id of a model or adapter."},
        defaults={"block_size": None},
    )
    if suite.suite is None:
        suite.check_without_suite()
    else:
        check_suite_alone(options, data_args, pair_args)
    hub = {"revision": options.revision}
    model = load_model(rest.model, base=options.base, **hub)
    config = model.config
    if config.is_causal:
        check_left_out(options, ["draws", "estimator", "rounds", "target_stderr", "seed"], "for a causal model")
    set_timesteps(config, options.num_timesteps)
    if config.is_image:
        check_no_text(data_args)
        check_left_out(pair_args, [field.name for field in dataclasses.fields(pair_args)], "for a model of images")
        processor = MD4ImageProcessor.for_config(config)
    else:
        processor = load_tokenizer(rest.model, **hub)
        check_tokenizer_matches(processor, config.vocab_size, config.mask_token_id)
        check_no_images(image_args)
        data_args.block_size = data_args.block_size or config.max_position_embeddings
        check_block_size(data_args.block_size, config)
    recipes = {} if suite.suite is None else recipes_of(suite, data_args.block_size, modality_of(config))
    folder_of_results = results_folder(suite.output_dir, rest.model)
    if suite.suite is not None:
        check_can_be_written("output_dir", folder_of_results, is_folder=True)
    elif options.output_file is not None:
        check_can_be_written("output_file", options.output_file)
    is_recorded = suite.suite is not None or options.output_file is not None
    tokenizer = None if config.is_image else processor
    facts = (rest.model, model, tokenizer, options.revision, options.base)
    model_facts = describe_model(*facts) if is_recorded else {}  # which reads all weights
    with tempfile.TemporaryDirectory() as folder:
        args = MD4TrainingArguments(
            output_dir=folder,
            per_device_eval_batch_size=options.batch_size,
            eval_draws=options.draws,
            eval_seed=options.seed,
            eval_estimator=options.estimator,
            bf16=options.bf16,
            use_cpu=options.use_cpu,
            ema_decay=0.0,
            report_to="none",
        )
        if suite.suite is not None:
            trainer = MD4Trainer(model=model, args=args, processing_class=processor)
            run = SuiteRun(
                stem="-".join([suite.suite, *suite.settings, *settings_of(options)]),
                trainer=trainer,
                stopping=options.when_to_stop(),
                folder=folder_of_results,
                model_facts=model_facts,
                estimate_facts=describe_estimate(options, config),
                command=shlex.join(["md4", "evaluate", *argv]),
            )
            evaluate_suite(run, suite, recipes, image_args)
            return
        with args.main_process_first(desc="preparing the data"):
            if config.is_image:
                examples = evaluation_images(data_args, image_args, config)
            else:
                examples = evaluation_examples(data_args, pair_args, processor)
        trainer = MD4Trainer(model=model, args=args, eval_dataset=examples, processing_class=processor)
        rounds = evaluate_in_rounds(trainer, examples, options.when_to_stop())
        metrics = {f"eval_{name}": value for name, value in rounds.metrics(config.is_image).items()}
        metrics["eval_num_draws"] = 0 if trainer.objective.is_autoregressive else options.draws
    if trainer.is_world_process_zero():
        print_metrics(metrics, data_args)
        if options.output_file is not None:
            recipe = {}
            for arguments in (options, pair_args, data_args, image_args):
                recipe |= dataclasses.asdict(arguments)
            report = finite(
                {
                    "metrics": metrics,
                    "model": model_facts,
                    "estimate": describe_estimate(options, config),
                    "environment": environment(args.device, args.world_size),
                    "data_sha256": data_sha256(examples) if hasattr(examples, "__len__") else None,
                    "recipe": recipe,
                    "command": shlex.join(["md4", "evaluate", *argv]),
                }
            )
            write_whole(Path(options.output_file), json.dumps(report, indent=2) + "\n")


def check_suite_alone(options: EvaluateArguments, data_args: DataArguments, pair_args: PairArguments):
    """Refuse options of other data beside a suite, and the file of figures in place of its folder."""
    if options.output_file is not None:
        raise ValueError(
            "`output_file` must be left out with --suite, which writes its results to --output_dir, "
            f"got {options.output_file!r}."
        )
    others = dataclasses.replace(data_args, block_size=None)
    if pair_args.given or others != DataArguments(block_size=None):
        raise ValueError("The options of --data and of pairs must be left out with --suite: it names its data itself.")


def settings_of(options: EvaluateArguments) -> list[str]:
    """How it is estimated, in words for the name of a file: what is not as usual."""
    defaults = EvaluateArguments()
    names = [name for name in ("draws", "seed") if getattr(options, name) != getattr(defaults, name)]
    words = [f"{name}-{getattr(options, name)}" for name in names]
    words += [options.estimator] if options.estimator != defaults.estimator else []
    words += [f"timesteps-{options.num_timesteps}"] if options.num_timesteps is not None else []
    return words + (["bf16"] if options.bf16 else [])


def set_timesteps(config, num_timesteps: int | None):
    """Evaluate in discrete time, or with 0 in continuous time."""
    if num_timesteps is None:
        return
    if config.is_causal or (config.learn_masking_schedule and num_timesteps):
        raise ValueError(f"`num_timesteps` must be left out for GenMD4 and causal models, got {num_timesteps}.")
    config.num_train_timesteps = num_timesteps or None


def describe_estimate(options: EvaluateArguments, config) -> dict[str, Any]:
    """What a result says of how it was estimated."""
    if config.is_causal:
        return {"estimator": "exact", "bf16": options.bf16}
    return {
        "estimator": options.estimator,
        "draws": options.draws,
        "seed": options.seed,
        "timesteps": config.num_train_timesteps or "continuous",
        "bf16": options.bf16,
    }


def evaluation_examples(data_args: DataArguments, pair_args: PairArguments, tokenizer):
    """The data named for validation, or the held-out part of the data, as pairs or as blocks of text."""
    if pair_args.given:
        check_no_document_mask(data_args)
        pairs = load_validation(data_args, load_pairs, load_table)
        return encode_pairs(pairs, tokenizer, data_args.block_size, pair_args, data_args.num_proc)[0]
    return pack_as_asked(load_validation(data_args), tokenizer, data_args)[0]
