# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 train`, and the run that it shares with `md4 finetune`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from dataclasses import replace
from pathlib import Path

from transformers import set_seed

from ..core.configuration_md4 import BACKBONES
from ..data.arguments import DataArguments, ImageDataArguments
from ..objective.figures import Figure, counted, figures_of
from ..objective.modality import modality_of, modality_of_metrics
from ..training.arguments import MD4TrainingArguments
from ..training.checkpoints import checkpoint_to_resume
from ..training.samples import SAMPLE_FILES
from ..training.trainer import MD4Trainer
from ..utils.files import check_can_be_written, move_files, whole_folder
from ..utils.hub_access import to_hub
from ..utils.processes import entered_by_first_process, on_first_process, print_on_first, warn_of_one_process
from ..utils.sharding import count_parameters
from .images import prepare_image_training, trains_images
from .material import Material
from .run_record import FILE_NAME as RECORD_NAME
from .run_record import RecordCallback, RunRecord
from .texts import prepare_text_training
from .train_options import BASELINE_NAMES, ModelArguments, RunArguments, StartArguments


STAGING_FOLDER = ".model-in-progress"


def train(
    start: StartArguments,
    run: RunArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    image_args: ImageDataArguments,
    args: MD4TrainingArguments,
    rest: argparse.Namespace,
):
    """Train on text or images, and leave a folder that `from_pretrained` and the other commands open."""
    prepare_run(run, args)
    choose_objective(start.objective, model_args)
    if model_args.is_causal and data_args.document_mask:
        raise ValueError("`document_mask` must be False for an autoregressive model, got True.")
    is_image = trains_images(start.model_name_or_path, model_args)
    prepare = prepare_image_training if is_image else prepare_text_training
    material = prepare(start, model_args, data_args, image_args, args)
    if not run.prepare_only:
        run_training(material, args, run, data_args, rest)


def choose_objective(objective: str, model_args: ModelArguments):
    """Set the fields of a new model that follow from the objective."""
    if objective == "ar":
        model_args.is_causal, model_args.learn_masking_schedule = True, False
        if BACKBONES[model_args.backbone or "transformer"].is_image:
            raise ValueError(f'`objective` must be "md4" or "genmd4" for images, got "{objective}".')
    if objective in BASELINE_NAMES:
        model_args.baseline, model_args.time_conditioning = objective, objective != "ardm"
        return
    if objective != "genmd4":
        return
    if model_args.masking_schedule not in (None, "linear", "poly"):
        raise ValueError(
            '`masking_schedule` must be left out, "poly" or "linear" (where it begins) with GenMD4, '
            f"got {model_args.masking_schedule!r}."
        )
    model_args.learn_masking_schedule, model_args.masking_schedule = True, "poly"


def prepare_run(run: RunArguments, args: MD4TrainingArguments):
    """Check the folder, set batch size and seed: before data and model."""
    check_output_dir(args)
    set_batch_size(run, args)
    set_seed(args.seed)


def run_training(
    material: Material,
    args: MD4TrainingArguments,
    run: RunArguments,
    data_args: DataArguments,
    rest: argparse.Namespace,
):
    """Train, or continue training, and leave the finished model; an interruption ends the process."""
    model = material.model
    baselines = material.measure_baselines() if args.should_save else {}
    trainer = MD4Trainer(
        model=model,
        args=args,
        train_dataset=material.train_examples,
        eval_dataset=material.heldout_examples,
        processing_class=material.processor,
    )
    trainer.card_facts = replace(trainer.card_facts, **material.facts, baselines=baselines)
    parameters, trained = count_parameters(model), count_parameters(model, trained_only=True)
    size = f"{parameters:,} parameters" if trained == parameters else f"{trained:,} of {parameters:,} parameters train"
    modality = modality_of(model.config)
    examples = modality.describe_examples(model.config, data_args.block_size)
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    where = f"{args.world_size} x {args.device.type}" if args.world_size > 1 else args.device
    print_on_first(args, f"{size} on {where}; {batch_size} {examples} a step")
    warn_of_one_process(args)
    if args.should_save:
        record = RunRecord.of_start(rest, data_args, material, batch_size)
        trainer.add_callback(RecordCallback(record, rest.defaults))
    for name, bits in baselines.items():
        print_on_first(args, f"held-out {modality.bits} of the {name} model: {Figure(name, bits):.3f}")
    with trainer.run_lock:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        if trainer.interrupted:
            step = trainer.state.global_step
            print_on_first(args, f"Stopped at step {step}. To resume, add: --resume_from_checkpoint latest")
            sys.exit(128 + signal.SIGINT)
        save_finished_model(trainer, run, data_args)


def check_output_dir(args: MD4TrainingArguments):
    """Refuse a folder that holds something else or cannot be written, and a resumption from nothing."""
    folder = Path(args.output_dir)
    check_can_be_written("output_dir", folder, is_folder=True)
    # Before hours of preparing data: what is there, and of the right size. The training reads the checksums too.
    found = on_first_process(args, lambda: checkpoint_to_resume(args.resume_from_checkpoint, folder, digests=False))
    record = folder / RECORD_NAME
    is_own = RunRecord.read(record) is not None  # of a run that was ended before its first checkpoint, or resumes
    if record.exists() and not is_own:
        raise ValueError(
            f"`output_dir` must have no {RECORD_NAME} of yours, which the run would replace, got {folder}."
        )
    own = {RECORD_NAME, *(SAMPLE_FILES if is_own else ())}
    if found is None and folder.is_dir() and any(path.name not in own for path in folder.glob("[!.]*")):
        raise ValueError(
            f"`output_dir` must be empty or absent, got {folder}, which holds other files. To resume the run in "
            "it, add `--resume_from_checkpoint latest`."
        )


def set_batch_size(run: RunArguments, args: MD4TrainingArguments):
    """Choose the accumulation steps that make the total batch on the processes at hand."""
    if run.total_batch_size is None:
        return
    devices = args.world_size * max(1, args.n_gpu)  # without a launcher, one process may drive several GPUs
    size = min(args.per_device_train_batch_size, max(1, run.total_batch_size // devices))
    args.per_device_train_batch_size = size
    args.gradient_accumulation_steps, rest = divmod(run.total_batch_size, devices * size)
    if rest:
        raise ValueError(
            f"`total_batch_size` must be a multiple of {devices} devices x `per_device_train_batch_size` {size}, "
            f"got {run.total_batch_size}."
        )


def save_finished_model(trainer: MD4Trainer, run: RunArguments, data_args: DataArguments):
    """Write the model, evaluate it with more draws, write what describes it, and share it if asked to."""
    folder, repository = Path(trainer.args.output_dir), trainer.repository
    location = {"location": trainer.hub_model_id or str(folder)}
    with staged_in(folder, trainer.args) as staging:
        repository.write_model(staging, averaged=True)
        repository.complete(staging, **location)
    print_on_first(trainer.args, f"The model is in {folder}; it is evaluated now")
    metrics = evaluate_finished_model(trainer, run)
    with staged_in(folder, trainer.args) as staging:
        repository.describe(staging, **location)
    if trainer.is_world_process_zero():
        trainer.save_metrics("eval", metrics, combined=False)
        print_metrics(metrics, data_args)
        print(f"Model, {modality_of(trainer.model.config).files}, loss.png and model card are in {folder}")
    if trainer.args.push_to_hub:
        share(trainer, folder)


def evaluate_finished_model(trainer: MD4Trainer, run: RunArguments) -> dict[str, float]:
    """Figures of the held-out data for the card; an interruption says where the model is."""
    trainer.args.eval_draws = run.final_eval_draws
    folder = trainer.args.output_dir
    try:
        metrics = trainer.evaluate()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the model is in {folder}; to evaluate it: md4 evaluate {folder}") from None
    trainer.card_facts.metrics = metrics
    return metrics


def staged_in(folder: Path, args: MD4TrainingArguments) -> contextlib.AbstractContextManager[Path]:
    """Folder to fill on all processes, whose files are moved into another at the end if all went well."""
    return entered_by_first_process(args, whole_folder(folder, folder / STAGING_FOLDER, move_files))


def share(trainer: MD4Trainer, folder: Path):
    """Upload the finished model; an error says where the model is."""
    excluded = f'"checkpoint-*/*" "abandoned-*/*" {RECORD_NAME}'
    with to_hub(trainer.hub_model_id, folder, f"hf upload {trainer.hub_model_id} {folder} . --exclude {excluded}"):
        trainer.push_to_hub()
    print_on_first(trainer.args, f"Uploaded to {trainer.hub_model_id}")


def name_of_validation_data(data_args: DataArguments) -> str:
    """Name of the data that an evaluation scores."""
    return data_args.validation_data or f"held-out part of {' and '.join(data_args.sources)}"


def print_metrics(metrics: dict[str, float], data_args: DataArguments):
    """The figures of an evaluation as a small table."""
    num_draws = metrics["eval_num_draws"]
    figures = figures_of(metrics, "eval_", is_bound=num_draws > 0)
    modality = modality_of_metrics(figures)
    tokens = f"{metrics['eval_num_tokens']:,} tokens {modality.tokens.format(length=data_args.block_size)}"
    draws = f", {counted(int(num_draws), 'draw')} per {modality.example}" if num_draws else ""
    rounds = f", {metrics['eval_num_rounds']} rounds" if metrics.get("eval_num_rounds", 1) > 1 else ""
    print(f"{name_of_validation_data(data_args)}: {tokens}{draws}{rounds}")
    for figure in figures.values():
        print(f"  {figure.name:<25} {figure}")
    if "eval_monte_carlo_stderr" in metrics:
        print(f"of the error of the NELBO {metrics['eval_monte_carlo_stderr']:.4f} are due to the draws")
