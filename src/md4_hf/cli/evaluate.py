# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 evaluate`, the opening of models that it shares with `md4 suite`, and `md4 harness`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.arguments import DataArguments, ImageDataArguments, PairArguments
from ..evaluation.provenance import environment, known_tokens, weights_sha256
from ..evaluation.report import finite
from ..evaluation.rounds import Stopping, evaluate_in_rounds
from ..hub.loading import default_scheduler, load_model, load_scheduler
from ..objective.example_order import data_sha256
from ..training.arguments import MD4TrainingArguments
from ..training.trainer import MD4Trainer
from ..utils.files import check_can_be_written, write_whole
from ..utils.options import check_left_out
from .images import ImageEvaluation
from .options import EstimateArguments, EvaluateArguments, PolicyArguments
from .run_record import RunRecord, data_of_run
from .texts import TextEvaluation
from .train import print_metrics


if TYPE_CHECKING:
    from ..objective.order_likelihood import OrderLikelihood


def evaluate(
    options: EvaluateArguments,
    policy_args: PolicyArguments,
    pair_args: PairArguments,
    data_args: DataArguments,
    image_args: ImageDataArguments,
    rest: argparse.Namespace,
):
    """Estimate the likelihood of held-out text or images, or a bound, with its standard error."""
    stopping = Stopping(options.rounds, options.target_stderr, options.max_rounds)
    model, heldout = open_model(rest.model, options)
    policy = open_policy(rest.model, model.config, options, policy_args)
    record, (pair_args, data_args, image_args) = data_of_run(rest.model, rest, pair_args, data_args, image_args)
    heldout.check(data_args, pair_args, image_args)
    model_facts: dict[str, Any] = {}
    if options.output_file is not None:
        check_can_be_written("output_file", options.output_file)
        model_facts = describe_model(rest.model, model, heldout.tokenizer, options)
    with tempfile.TemporaryDirectory() as folder:
        args = evaluation_arguments(options, folder)
        with args.main_process_first(desc="preparing the data"):
            examples = heldout.examples(data_args, pair_args, image_args)
        trainer = MD4Trainer(model=model, args=args, eval_dataset=examples, processing_class=heldout.processor)
        if policy is not None:
            trainer.evaluate_by(policy)
        rounds = evaluate_in_rounds(trainer, examples, stopping)
        metrics = {f"eval_{name}": value for name, value in rounds.metrics(model.config.is_image).items()}
        metrics["eval_num_draws"] = 0 if trainer.estimate.is_exact else options.draws
    if not trainer.is_world_process_zero():
        return
    if options.output_file is not None:
        all_options = (options, policy_args, pair_args, data_args, image_args)
        report = finite(
            {
                "metrics": metrics,
                "model": model_facts,
                "estimate": describe_estimate(options, trainer.estimate),
                "environment": environment(args.device, args.world_size),
                "data_sha256": data_sha256(examples) if hasattr(examples, "__len__") else None,
                "recipe": {name: value for given in all_options for name, value in asdict(given).items()},
                "command": rest.command_line,
            }
        )
        write_whole(Path(options.output_file), json.dumps(report, indent=2) + "\n")
    if record is not None:
        report_data_of_run(record, data_args, examples)
    print_metrics(metrics, data_args)
    if policy is not None:
        print("sampler: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in policy.settings.items()))


def report_data_of_run(record: RunRecord, data_args: DataArguments, examples: Any):
    """Say that the data are those of the run, or that they are no longer."""
    print(f"data as in {record.path}")
    if data_args.block_size == record.options.get("block_size") and record.has_other_data("held_out_data", examples):
        print("Their contents are not those that the run had held out: the files have changed.")


def open_model(name: str, options: EstimateArguments) -> tuple[Any, TextEvaluation | ImageEvaluation]:
    """A model to evaluate, and the held-out data of its kind."""
    model = load_model(name, base=options.base, revision=options.revision)
    if model.config.is_causal:
        check_left_out(options, ["draws", "estimator", "rounds", "target_stderr", "seed"], "for a causal model")
    if options.num_timesteps is not None:
        is_other = model.config.is_causal or model.config.baseline is not None
        if is_other or (model.config.learn_masking_schedule and options.num_timesteps):
            raise ValueError(
                f"`num_timesteps` must be left out for GenMD4 and baselines, got {options.num_timesteps}."
            )
        model.config.num_train_timesteps = options.num_timesteps or None
        model.config.check()
    kind = ImageEvaluation if model.config.is_image else TextEvaluation
    return model, kind(name, model.config, options.revision)


def evaluation_arguments(options: EstimateArguments, folder: str) -> MD4TrainingArguments:
    """Arguments of a trainer that only evaluates."""
    return MD4TrainingArguments(
        output_dir=folder,
        per_device_eval_batch_size=options.batch_size,
        eval_draws=options.draws,
        eval_seed=options.seed,
        eval_estimator="time" if options.estimator == "policy" else options.estimator,
        bf16=options.bf16,
        use_cpu=options.use_cpu,
        ema_decay=0.0,
        report_to="none",
    )


def open_policy(name: str, config, options: EstimateArguments, policy_args: PolicyArguments) -> OrderLikelihood | None:
    """The likelihood that `--estimator policy` asks for, of the model's sampler with these changes; else None."""
    given = asdict(policy_args)
    if options.estimator != "policy":
        check_left_out(policy_args, given, "without --estimator policy")
        return None
    from ..objective.order_likelihood import OrderLikelihood  # diffusers takes seconds to import

    check_left_out(options, ["num_timesteps"], "with --estimator policy: the sampler has steps of its own")
    scheduler = load_scheduler(name, revision=options.revision) or default_scheduler(config)
    likelihood = OrderLikelihood(scheduler, config, **given)
    if likelihood.is_exact:
        names = ["draws", "rounds", "target_stderr", "seed"]
        check_left_out(options, names, "for an order without noise, whose likelihood is exact")
    return likelihood


def describe_estimate(options: EstimateArguments, estimate) -> dict[str, Any]:
    """Facts of a result about the estimate."""
    draws = {} if estimate.is_exact else {"draws": options.draws, "seed": options.seed}
    return {**estimate.facts, **draws, "bf16": options.bf16}


def describe_model(name: str, model, tokenizer, options: EstimateArguments) -> dict[str, Any]:
    """Facts of a result about the model, whose weights are all read."""
    config = model.config
    schedule = ("masking_schedule", "schedule_power", "schedule_eps")
    return {
        "name": name,
        "revision": getattr(config, "_commit_hash", None) or options.revision,
        "base": options.base,
        "weights": weights_sha256(model),
        "tokenizer": getattr(tokenizer, "name_or_path", None),
        "tokens": None if tokenizer is None else known_tokens(tokenizer),
        "vocab_size": config.vocab_size,
        "objective": _objective(config),
        **{field: None if config.is_causal else getattr(config, field) for field in schedule},
        "time_conditioning": config.time_conditioning,
        "dtype": str(next(model.parameters()).dtype),
    }


def _objective(config) -> str:
    if config.is_causal:
        return "autoregressive"
    return config.baseline or ("genmd4" if config.learn_masking_schedule else "md4")


def harness(rest: argparse.Namespace):
    """Run the command of the lm-evaluation-harness, which reads `sys.argv`."""
    from lm_eval.__main__ import cli_evaluate

    from ..evaluation import harness as _registered  # noqa: F401  (its import adds the model type "md4_hf")

    sys.argv[1:] = rest.arguments
    cli_evaluate()
