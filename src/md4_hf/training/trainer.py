# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training on the MD4 ELBO with transformers' `Trainer`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub import HfApi
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, HubStrategy, has_length, rotate_checkpoints
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..core.image_processing_md4 import MD4ImageProcessor
from ..data.collators import PaddingCollator
from ..data.images import check_image_processor_matches
from ..data.tokenizers import check_tokenizer_matches
from ..hub.adapters import fingerprint, is_adapted, save_base_record, stored_names
from ..hub.loading import make_pipeline
from ..objective.estimators import check_estimator, example_nelbo, nelbo_metrics
from ..objective.example_order import NOISE_INDEX, OrderedExamples, can_be_ordered
from ..objective.noise import (
    training_class_noise,
    training_flip_noise,
    training_mask_noise,
    training_times,
)
from ..objective.objectives import Objective, scored_labels
from ..utils.image_grid import save_image_grid
from ..utils.plots import plot_losses
from ..utils.processes import RunLock, check_agreement, check_launch, on_first_process
from ..utils.sharding import keep_float32, parameter_names, whole_weights
from .arguments import SAME_ON_ALL_RANKS, MD4TrainingArguments, check_arguments
from .batches import as_tensors, flip_images, number_step_examples
from .callbacks import BitsProgressCallback, ImageSamplesCallback, InterruptCallback, serve_on
from .checkpoints import (
    FSDP_SHARDED,
    MANIFEST,
    OPTIMIZERS,
    check_training_state,
    checkpoint_to_resume,
    commit,
    stored_tensors,
)
from .ema import EmaCallback
from .model_card import CardFacts, make_model_card
from .muon import muon_with_adamw
from .step_sampler import StepSampler
from .streams import FILE_NAMES, EndlessStream, check_torch_stream


logger = logging.get_logger(__name__)

EMA_FOLDER = "ema"
MOST_MASKED_SHARE = 0.8  # of all tokens: a larger bound on the masked ones is not worth having
EXPONENTS = re.compile(r"\btoken_schedule\b.*\bfree_exponents$")
TRAINING_ARGS_NAME = "training_args.bin"
SAMPLES_NAME = "samples.png"
SAMPLES_WIDTH = 512  # pixels of the picture, at least about
STAGING_FOLDER = ".checkpoint-in-progress"
HUB_FOLDER = ".upload-in-progress"
# Files of a checkpoint that do not belong to the model, and the average, which is a model of its own.
NOT_SHARED = ("*.pt", "*.pth", "*.bin", "trainer_state.json", FILE_NAMES, MANIFEST, EMA_FOLDER)


class MD4Trainer(Trainer):
    """
    `Trainer` that computes the MD4 ELBO of an `MD4ForMaskedDiffusion`; any other model is left to `Trainer`.
    An `MD4ForCausalLM`, the autoregressive baseline, goes the same way: its ELBO is log p itself.

    Data sets (map-style or streaming) hold clean `input_ids`, `(length,)` or `(channels, height, width)` of images, and
    optionally `labels` (-100 where a token is not scored and never masked), `attention_mask`, `class_labels` and
    `num_characters` (for bits per character).

    - Times are stratified over all examples of an optimizer step, and all noise is a pure function of (seed, step,
      index of the example in the step): ranks, accumulation and resuming do not change it.
    - A stream of `datasets` is given whole to every process, and divided, repeated and resumed as `EndlessStream` does.
    - The weights' moving average is evaluated and saved; checkpoints hold the raw weights to resume from, and the
      average as a model of its own in `checkpoint-N/ema`.
    - An evaluation reports nats per token, perplexity and bits with a standard error, over `eval_draws` draws; of
      images, bits per dimension. During a training of images it also draws some, into `samples.png`.
    - Of a model with `class_dropout`, examples lose their class with that probability; `random_flip` mirrors images.
    - A checkpoint appears under its name only when it is complete; Ctrl-C ends training with one.
    - An adapter (`PeftModel`) trains in the same way, and is saved as one.
    - `save_repository` writes, and `push_to_hub` uploads, what belongs to the trained model as one flat folder:
      averaged weights, tokenizer or image processor, scheduler, loss plot and a model card, which `card_facts` adds to.

    Takes the arguments of `Trainer`, with `MD4TrainingArguments` as `args`, and as `processing_class` a tokenizer, or
    the `MD4ImageProcessor` of a model of images.

    Raises:
        ValueError: For an MD4 model with `compute_metrics` or `compute_loss_func` (the loss is the ELBO), or with a
            tokenizer of another size or mask id, or an image processor of other images.
    """

    def __init__(self, model=None, args: MD4TrainingArguments | None = None, data_collator=None, **kwargs):
        probe = kwargs["model_init"]() if model is None and kwargs.get("model_init") is not None else model
        self.is_md4 = getattr(getattr(probe, "config", None), "model_type", None) == "md4"
        if self.is_md4:
            if kwargs.get("model_init") is not None:
                raise ValueError("`model_init` must be None for an MD4 model: give the `model` itself.")
            check_arguments(args, kwargs)
            self._check_processing_class(kwargs.get("processing_class"), model.config)
            if args.random_flip and not model.config.is_image:
                raise ValueError("`random_flip` must be False for a model of text, got True.")
            if args.matmul_precision is not None:
                torch.set_float32_matmul_precision(args.matmul_precision)
            data_collator = data_collator or PaddingCollator()
        super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        if self.is_md4:
            check_launch(self, args.expected_processes)
            if self.is_fsdp_enabled:
                keep_float32(self.accelerator.state.fsdp_plugin, weights=self.model.config.learn_masking_schedule)
        self.card_facts = CardFacts(license=args.license) if self.is_md4 else None
        self.run_lock = RunLock(args)
        self._step_sampler: StepSampler | None = None
        self._order_generator: torch.Generator | None = None  # of another order than the step sampler's
        self._stream: EndlessStream | None = None
        self.interrupt = InterruptCallback()
        self.add_callback(self.interrupt)
        self.ema = EmaCallback(args.ema_decay) if self.is_md4 and args.ema_decay > 0.0 else None
        if self.ema is not None:
            self.add_callback(self.ema)
        if self.is_md4:
            unwrapped = self.accelerator.unwrap_model(model)
            self._base_fingerprint = fingerprint(unwrapped.get_base_model() if is_adapted(unwrapped) else unwrapped)
            self.objective = Objective.of_config(unwrapped.config)
            check_estimator(args.eval_estimator, self.objective)
            self.is_image = unwrapped.config.is_image
            if self.is_image:
                self.add_callback(ImageSamplesCallback(self._save_image_samples))
            if self.pop_callback(ProgressCallback) is not None:
                self.add_callback(BitsProgressCallback())

    @staticmethod
    def _check_processing_class(processor, config):
        if isinstance(processor, PreTrainedTokenizerBase):
            check_tokenizer_matches(processor, config.vocab_size, config.mask_token_id)
        if isinstance(processor, MD4ImageProcessor):
            check_image_processor_matches(processor, config)

    @property
    def interrupted(self) -> bool:
        """Whether the last training was ended by a signal."""
        return self.interrupt.interrupted

    # ------------------------------------------------------------------------------------------------------------------
    # Training
    # ------------------------------------------------------------------------------------------------------------------

    def train(self, *args, **kwargs):
        """As `Trainer.train`; the first Ctrl-C saves a checkpoint at the end of the step and returns.

        `resume_from_checkpoint=True` takes the newest checkpoint that is whole, and says which it passed over and why;
        `"auto"` does the same, and starts anew where there is none. A run at its last step stays as it is.

        Raises:
            ValueError: If the checkpoint that was asked for is not there, or is not whole; if the processes were
                started with different arguments; or if another run writes to `args.output_dir`.
        """
        self._uncounted_tokens: Tensor | int = 0
        self._nelbo, self._nelbo_logged_at = 0.0, None  # GenMD4's bound since the last log, and the step of that
        if not self.is_md4:
            with self.interrupt.watching():
                return super().train(*args, **kwargs)
        check_agreement(self.args, self._facts_to_agree_on())
        if self.args.world_size > 1:  # dropout is drawn from this generator: each rank needs its own
            torch.manual_seed(self.args.seed + self.args.process_index)
        with self.run_lock, self.interrupt.watching():
            args, kwargs = self._choose_checkpoint(*args, **kwargs)
            if self.args.should_save:
                shutil.rmtree(Path(self.args.output_dir) / STAGING_FOLDER, ignore_errors=True)
            output = super().train(*args, **kwargs)
        self._count_tokens()
        return output

    def _facts_to_agree_on(self) -> dict[str, Any]:
        facts = {name: getattr(self.args, name) for name in SAME_ON_ALL_RANKS}
        sizes = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        facts |= {f"len({name})": len(data) for name, data in sizes.items() if has_length(data)}
        facts["model.config"] = self.accelerator.unwrap_model(self.model).config.to_diff_dict()
        return {**facts, "fingerprint of the model": self._base_fingerprint}

    def _choose_checkpoint(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """The arguments of `Trainer.train`, with the folder of a whole checkpoint, or None, for the first of them."""

        def choose() -> str | None:
            checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
            if checkpoint is not None:
                check_training_state(checkpoint, self._kind_of_training, self.args.world_size)
            return checkpoint

        return (on_first_process(self.args, choose), *args), kwargs

    @property
    def _kind_of_training(self) -> str:
        """Which of the `OPTIMIZERS` a checkpoint has."""
        plain, whole, _, deepspeed = OPTIMIZERS
        if self.is_fsdp_enabled:
            return FSDP_SHARDED if "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type) else whole
        return deepspeed if self.is_deepspeed_enabled else plain

    def _run_epoch(self, *args, **kwargs):
        if self.is_md4 and self.state.global_step >= self.state.max_steps:  # resumed where nothing is left to do
            self.control.should_training_stop = True
            return
        if self._step_sampler is not None:  # accelerate does not reach it behind the batches that a resumption skips
            self._step_sampler.set_epoch(kwargs["epoch"])
        if self._order_generator is not None:  # a resumed epoch has the order of the unbroken one
            self._order_generator.manual_seed(self.args.data_seed + kwargs["epoch"])
        if self._stream is not None:  # begins at its own position: no batch is to be skipped
            begin = self.state.global_step / self.state.max_steps
            kwargs |= {"epoch": begin, "epochs_trained": begin, "steps_trained_in_current_epoch": 0}
        super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """As `Trainer.get_train_dataloader`; every process reads its own share of a stream, without end."""
        self._stream = None
        if self.is_md4:
            check_torch_stream(self.train_dataset, self.args)
        if not self.is_md4 or not isinstance(self.train_dataset, datasets.IterableDataset):
            return super().get_train_dataloader()
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        args = self.args
        self._stream = EndlessStream(
            self.train_dataset, args.process_index, args.world_size, self._train_batch_size, collate
        )
        return self._stream.loader(args)

    def _get_dataloader(
        self, dataset: Any, description: str, *args, is_training: bool = False, **kwargs
    ) -> torch.utils.data.DataLoader:
        if self.is_md4 and isinstance(self.data_collator, PaddingCollator):
            dataset = as_tensors(dataset)
        if self.is_md4 and not is_training and can_be_ordered(dataset):
            if isinstance(dataset, datasets.Dataset):
                dataset = self._remove_unused_columns(dataset, description=description)
            dataset = OrderedExamples(dataset)
        drop_last = self.args.dataloader_drop_last
        if self.is_md4 and not is_training:  # what an evaluation leaves out would be missing in its figures
            self.args.dataloader_drop_last = False
        try:
            loader = super()._get_dataloader(dataset, description, *args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last
        if self.is_md4:
            own = getattr(loader, "base_dataloader", loader)  # which accelerate has wrapped
            own.worker_init_fn = functools.partial(serve_on, own.worker_init_fn)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        """Epochs of whole optimizer steps, so that the number of ranks does not change the examples of any step."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        args = self.args
        if not self.is_md4 or not has_length(dataset) or strategy not in ("random", "sequential"):
            sampler = super()._get_train_sampler(train_dataset)
            if self.is_md4 and getattr(sampler, "generator", 0) is None:  # each rank has another global generator
                sampler.generator = self._order_generator = torch.Generator().manual_seed(args.data_seed)
            return sampler
        self._step_sampler = StepSampler(
            len(dataset),
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            seed=args.data_seed,
            shuffle=strategy == "random",
            drop_last=args.dataloader_drop_last,
        )
        return self._step_sampler

    def _count_tokens(self):
        """Add the scored tokens of the steps since the last time to the state; between, the sum stays on the device."""
        if self.args.include_num_input_tokens_seen == "no":
            self.state.num_input_tokens_seen += int(self._uncounted_tokens)
        self._uncounted_tokens = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`, or Muon and AdamW; GenMD4's exponents may have a rate of their own."""
        if self.optimizer is None and self.is_md4 and self.args.use_muon:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("`use_muon` must be False with FSDP and DeepSpeed: Muon needs whole matrices.")
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = muon_with_adamw(
                self.model if model is None else model, self.args.learning_rate, betas, self.args.weight_decay
            )
        optimizer = super().create_optimizer(model)
        if self.is_md4 and self.args.schedule_lr_multiplier != 1.0:
            self._give_schedule_its_rate(self.model if model is None else model)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in `Trainer`, without GenMD4's exponents: decay would pull them to ln 2."""
        return [name for name in super().get_decay_parameter_names(model) if not EXPONENTS.search(name)]

    def _give_schedule_its_rate(self, model: nn.Module):
        if self.args.use_muon:
            raise ValueError("`schedule_lr_multiplier` must be 1 with `use_muon`, which has one learning rate.")
        exponents = [parameter for name, parameter in model.named_parameters() if EXPONENTS.search(name)]
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if not any(p is exponent for exponent in exponents)]
        if exponents:
            rate = self.args.learning_rate * self.args.schedule_lr_multiplier
            self.optimizer.add_param_group({"params": exponents, "lr": rate, "weight_decay": 0.0})

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The batches of one optimizer step, each with the place of its examples in the whole step."""
        if not self.is_md4:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if self._stream is not None:
            self._stream.take_positions(batches)
        number_step_examples(batches, self.args.process_index, self.args.world_size)
        for batch in batches:
            batch["all_scored"] = batch.get("labels") is None and batch.get("attention_mask") is None
            batch["labels"] = scored_labels(batch)
        num_items = self._get_num_items_in_batch(batches, device)
        if num_items is not None:  # with DataParallel the number is repeated for each device
            self._uncounted_tokens = self._uncounted_tokens + num_items.flatten()[0]
            num_items = num_items.clamp(min=1)  # a step that scores nothing changes nothing
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The NELBO in nats per scored token of the whole optimizer step, on noise drawn for this step."""
        if self.is_md4:
            inputs = {**inputs}
            inputs.pop("num_characters", None)
            first, total = inputs.pop("first_step_example"), inputs.pop("num_step_examples")
            all_scored = inputs.pop("all_scored")
            ids, key = inputs["input_ids"], (self.args.seed, self.state.global_step)
            index = torch.arange(first, first + len(ids))  # on the CPU: the times are made there, without a wait
            timesteps = training_times(*key, index, total).to(ids.device, non_blocking=True)
            shape = self.objective.noise_shape(ids.shape, self.args.num_copies)
            index = index.to(ids.device, non_blocking=True)
            noise = training_mask_noise(*key, index, shape)
            inputs = self.objective.drop_classes(inputs, training_class_noise(*key, index))
            if self.args.random_flip:
                inputs = flip_images(inputs, training_flip_noise(*key, index) < 0.5)
            inputs = self.objective.noised(inputs, timesteps, noise)
            if not self.objective.is_autoregressive:
                inputs["max_masked"] = self._most_masked_tokens(ids, total, all_scored)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.is_md4 and not self.objective.loss_is_bound:
            if self._nelbo_logged_at is None:
                self._nelbo_logged_at = self.state.global_step  # where a resumed training begins
            self._nelbo = self._nelbo + outputs.nelbo.detach().sum()  # with DataParallel, over the devices
        return (loss, outputs) if return_outputs else loss

    def _most_masked_tokens(self, ids: Tensor, total: int, all_scored: bool) -> int | None:
        """A bound on the masked tokens of a micro-batch, where it saves more than it costs: see `most_masked_tokens`.

        A compiled model runs for so many tokens at every step. Another one on an accelerator need not wait to hear how
        many there are; but if the bound is far above their number, as where few tokens are scored, waiting is cheaper.
        """
        if ids.device.type == "cpu" and not self.args.torch_compile:
            return None
        examples = -(-len(ids) // max(1, self.args.n_gpu))  # of each device that DataParallel drives
        length = ids[0].numel()
        bound = self.objective.most_masked(examples, total, length)
        if bound is None:
            return None
        is_tight = all_scored and bound < MOST_MASKED_SHARE * examples * length
        return bound if self.args.torch_compile or is_tight else None

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Adds the training loss in bits per token; for GenMD4, whose loss is a surrogate, the bound and its bits."""
        if self.is_md4 and "loss" in logs:
            if not self.objective.loss_is_bound:
                steps = self.state.global_step - self._nelbo_logged_at
                total = self.accelerator.reduce(torch.as_tensor(self._nelbo, device=self.args.device), "sum")
                logs["nelbo"] = total.item() / max(steps, 1)
                self._nelbo, self._nelbo_logged_at = 0.0, self.state.global_step
            logs["bits_per_token"] = logs.get("nelbo", logs["loss"]) / math.log(2)
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.is_md4:
            others = {"num_characters", NOISE_INDEX}
            self._signature_columns += sorted(others.difference(self._signature_columns))

    # ------------------------------------------------------------------------------------------------------------------
    # Evaluation
    # ------------------------------------------------------------------------------------------------------------------

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """`Trainer`'s loop over per-example NELBOs, with the averaged weights and the random state left alone."""
        if not self.is_md4:
            return super().evaluation_loop(*args, **kwargs)
        self._num_evaluated = 0
        kwargs["prediction_loss_only"] = False
        self.compute_metrics = functools.partial(_metrics_of_examples, are_images=self.is_image)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        try:
            with self.ema_weights(), torch.random.fork_rng(devices):
                output = super().evaluation_loop(*args, **kwargs)
        finally:
            self.compute_metrics = None
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.pop(f"{prefix}_model_preparation_time", None)
        output.metrics[f"{prefix}_num_draws"] = 0 if self.objective.is_autoregressive else self.args.eval_draws
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], prediction_loss_only: bool, ignore_keys=None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """No loss, and one row (nelbo, tokens, characters) per example in the places of logits and labels."""
        if not self.is_md4:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        num_characters = inputs.pop("num_characters", None)  # DeepSpeed would round it to the precision of the weights
        index = inputs.pop(NOISE_INDEX, None)
        inputs = self._prepare_inputs(inputs)
        batch = inputs["input_ids"].shape[0]
        if index is None:  # of a stream, or a data collator that leaves it out: by its place
            first = self._num_evaluated + self.args.process_index * batch
            self._num_evaluated += self.args.world_size * batch
            index = torch.arange(first, first + batch)
        if num_characters is None:
            num_characters = torch.full((batch,), torch.nan)
        with torch.no_grad(), self.compute_loss_context_manager():
            nelbo, num_tokens = example_nelbo(
                model,
                self.objective,
                inputs,
                index,
                seed=self.args.eval_seed,
                num_draws=self.args.eval_draws,
                estimator=self.args.eval_estimator,
            )
        rows = torch.stack([nelbo, num_tokens, num_characters.to(nelbo)], dim=1)
        return None, rows, num_tokens[:, None]

    # ------------------------------------------------------------------------------------------------------------------
    # Weights and checkpoints
    # ------------------------------------------------------------------------------------------------------------------

    def ema_weights(self) -> contextlib.AbstractContextManager:
        """Within the context the model has its averaged weights (its own if there is no average yet)."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied_to(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As `Trainer.save_model`, also where the weights are in shards; a call by the user saves the averaged ones."""
        if not self.is_md4:
            super().save_model(output_dir, _internal_call)
        elif not _internal_call:
            self._write_model(output_dir or self.args.output_dir, averaged=True)
            if self.args.push_to_hub:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        elif self._keeps_shards:  # a checkpoint: the weights are in its shards
            self._write_configuration(output_dir)
        else:
            self._write_model(output_dir, averaged=False)

    def _write_model(self, folder: str | os.PathLike, averaged: bool):
        """Write the whole model or adapter, wherever its parts are. Call it on all processes."""
        values = self.ema.values if averaged and self.ema is not None else None
        keep, is_adapter = self.args.should_save, is_adapted(self.accelerator.unwrap_model(self.model))
        weights = whole_weights(self.model, values, keep=keep, trained_only=is_adapter)
        with without_progress_bars():
            self._save(str(folder), state_dict=weights)
        if keep:
            (Path(folder) / TRAINING_ARGS_NAME).unlink()  # a pickle, which may hold a token of the Hub

    def _write_configuration(self, folder: str | os.PathLike):
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).config.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    @property
    def _keeps_shards(self) -> bool:
        """Whether checkpoints leave the raw weights in shards; those of an adapter are small, and always whole too."""
        if is_adapted(self.accelerator.unwrap_model(self.model)):
            return False
        if self.is_fsdp_enabled:
            return self._kind_of_training == FSDP_SHARDED
        if not self.is_deepspeed_enabled or self.model_wrapped.zero_optimization_stage() < 3:
            return False
        return not self.model_wrapped.zero_gather_16bit_weights_on_model_save()

    def _save_checkpoint(self, model: nn.Module, trial):
        """Write the checkpoint aside and give it its name when it is complete."""
        if not self.is_md4:
            super()._save_checkpoint(model, trial)
            return
        self._count_tokens()
        run_dir = Path(self._get_output_dir(trial))
        staging, previous_best = run_dir / STAGING_FOLDER, self.state.best_model_checkpoint
        self._get_output_dir = lambda trial: str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            del self._get_output_dir
        name = f"checkpoint-{self.state.global_step}"
        if self.ema is not None:
            self._write_model(staging / name / self._ema_folder, averaged=True)
        if self._stream is not None:
            self._stream.save(staging / name)
        self._correct_best_checkpoint(run_dir, staging / name, previous_best)
        self.accelerator.wait_for_everyone()

        def give_name():
            shutil.rmtree(run_dir / name, ignore_errors=True)
            commit(staging / name, run_dir / name)
            staging.rmdir()

        on_first_process(self.args, give_name)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
            if self.args.push_to_hub:
                self._push_checkpoint(run_dir / name)
        self.accelerator.wait_for_everyone()

    def _correct_best_checkpoint(self, run_dir: Path, checkpoint: Path, previous_best: str | None):
        """`Trainer` looked for the best checkpoint where this one is staged: note where it will be, on every rank."""
        best = f"checkpoint-{self.state.best_global_step}"
        exists = best == checkpoint.name or (run_dir / best).is_dir()
        self.state.best_model_checkpoint = str(run_dir / best) if exists else previous_best
        if self.args.should_save:
            self.state.save_to_json(str(checkpoint / "trainer_state.json"))

    def _load_best_model(self):
        super()._load_best_model()
        if self.ema is not None:
            self.ema.set_average(self.model, self._averaged_parameters(self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.ema is not None and checkpoint is not None:
            self.ema.resume_from(self._averaged_parameters(checkpoint))
        if self._stream is not None and checkpoint is not None and not self.args.ignore_data_skip:
            self._stream.load(checkpoint)

    @property
    def _ema_folder(self) -> str:
        """Where a checkpoint holds its averaged weights; `Trainer` takes an adapter one level up for a second one."""
        return os.path.join(EMA_FOLDER, "adapter") if is_adapted(self.model) else EMA_FOLDER

    def _averaged_parameters(self, checkpoint: str) -> Iterator[Tensor]:
        """The averaged weights of a checkpoint, in the order of the trainable parameters of the model."""
        folder = Path(checkpoint) / self._ema_folder
        if not folder.is_dir():
            raise FileNotFoundError(
                f"`resume_from_checkpoint` must hold the averaged weights in {self._ema_folder!r} (or set "
                f"`ema_decay=0`), got {checkpoint}."
            )
        unwrapped = self.accelerator.unwrap_model(self.model)
        return stored_tensors(folder, (stored_names if is_adapted(unwrapped) else parameter_names)(unwrapped))

    # ------------------------------------------------------------------------------------------------------------------
    # Sharing
    # ------------------------------------------------------------------------------------------------------------------

    def save_repository(self, folder: str | os.PathLike, **facts: Any):
        """Write what belongs to the trained model as one flat folder, which every loader opens.

        That is the model (its averaged weights) or adapter, the tokenizer or image processor, the scheduler, the loss
        plot, samples of images and a model card. Call it on all processes.

        Args:
            folder: Where to; made if it is not there.
            facts: Fields of `CardFacts` that differ from `card_facts`.
        """
        self._write_model(folder, averaged=True)
        with self.ema_weights():
            samples = self._draw_card_samples()
        if self.is_image:
            self._save_image_samples(folder)
        if self.is_world_process_zero():
            self._complete_repository(Path(folder), samples=samples, **facts)
        self.accelerator.wait_for_everyone()

    def _complete_repository(self, folder: Path, **facts: Any):
        """Put all that is not weights or tokenizer into a folder with a saved model."""
        model = self.accelerator.unwrap_model(self.model)
        if is_adapted(model):
            save_base_record(self._base_fingerprint, folder)
        elif not self.objective.is_autoregressive:
            pipeline = self._make_pipeline(model)
            pipeline.scheduler.save_pretrained(folder)
            pipeline.save_config(folder)
        plot = None
        if any("loss" in entry or "eval_loss" in entry for entry in self.state.log_history):
            plot = "loss.png"
            baselines = facts.get("baselines", self.card_facts.baselines)
            plot_losses(self.state.log_history, folder / plot, baselines)
        facts.setdefault("location", self.hub_model_id or str(folder))
        if (folder / SAMPLES_NAME).exists():
            facts["sample_grid"] = SAMPLES_NAME
        self.create_model_card(output_dir=str(folder), plot=plot, **facts)

    def _make_pipeline(self, model: nn.Module):
        """A pipeline of the model and what reads and writes its data."""
        name = "image_processor" if self.is_image else "tokenizer"
        return make_pipeline(model, **{name: self.processing_class})

    @property
    def _can_sample(self) -> bool:
        """Whether this is the process that draws samples: the first, if it has the whole model and a processor."""
        whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.objective.is_autoregressive)
        return whole and self.is_world_process_zero() and self.processing_class is not None

    def _save_image_samples(self, folder: str | os.PathLike | None = None):
        """Draw images from the averaged weights, always from the same noise, into `samples.png`.

        The random state stays as it is. Classes of a class-conditional model take turns, a column each.
        """
        num_samples = self.args.image_samples
        if not (num_samples and self._can_sample):
            return
        model = self.accelerator.unwrap_model(self.model)
        num_classes = model.config.num_classes
        columns = math.ceil(math.sqrt(num_samples)) if num_classes is None else min(num_classes, num_samples)
        labels = None if num_classes is None else [i % columns for i in range(num_samples)]
        pipeline = self._make_pipeline(model)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(self.args.seed)
        with self.ema_weights(), torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            images = pipeline(
                num_samples=num_samples if labels is None else 1,
                class_labels=labels,
                num_inference_steps=self.args.image_sample_steps,
                generator=generator,
            ).images
        enlarge = max(1, SAMPLES_WIDTH // (columns * images[0].width))
        path = Path(folder or self.args.output_dir) / SAMPLES_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image_grid(images, path, columns=columns, enlarge=enlarge, gap=2)

    def _draw_card_samples(self) -> list[str]:
        """Samples of text of the trained model, where one process has all of it."""
        if not (self.args.card_samples and self._can_sample) or self.is_image:
            return []
        model = self.accelerator.unwrap_model(self.model)
        if model.config.num_classes is not None:
            return []
        pipeline = self._make_pipeline(model.get_base_model() if is_adapted(model) else model)
        generator = torch.Generator().manual_seed(self.args.seed)
        pipeline.set_progress_bar_config(desc="Sampling for the model card", leave=False)
        prompt = self.card_facts.sample_prompt
        return pipeline(prompt=prompt, num_samples=self.args.card_samples, generator=generator).texts

    def create_model_card(self, output_dir: str | None = None, **facts: Any):
        """Write `README.md` from what the run itself knows.

        Args:
            output_dir: Where to; the run's folder by default.
            facts: Fields of `CardFacts` that differ from `card_facts`; `Trainer`'s `model_name`, `finetuned_from` and
                `dataset` are known too.
        """
        if not self.is_md4:
            super().create_model_card(**facts)
            return
        if not self.is_world_process_zero():
            return
        for name, field_name in (("model_name", "title"), ("finetuned_from", "base_model"), ("dataset", "datasets")):
            if name in facts:
                facts[field_name] = facts.pop(name)
        model = self.accelerator.unwrap_model(self.model)
        if is_adapted(model):
            facts.setdefault("base_model", next(iter(model.peft_config.values())).base_model_name_or_path)
        folder = Path(output_dir or self.args.output_dir)
        if self.card_facts.title == CardFacts.title:
            facts.setdefault("title", Path(self.hub_model_id or Path(self.args.output_dir).resolve()).name)
        card = make_model_card(model, self.args, self.state, replace(self.card_facts, **facts))
        card.save(folder / "README.md")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ):
        """Upload what `save_repository` writes to `args.hub_model_id`, as one commit. Call it on all processes.

        Args:
            commit_message: Message of the commit.
            blocking: Whether to wait for the end of the upload.
            token: With permission to write; `args.hub_token`, or the saved login, by default.
            revision: Branch; `args.hub_revision` by default.
            private: Whether a new repository is private; `args.hub_private_repo` by default.
            facts: Fields of `CardFacts` that differ from `card_facts`.

        Returns:
            On the first process the `CommitInfo`, or its `Future` if not `blocking`.
        """
        if not self.is_md4:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **facts)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token or self.args.hub_token, private=private)
        self._finish_current_push()
        folder = Path(self.args.output_dir) / HUB_FOLDER
        if self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_repository(folder, **facts)
        if not self.is_world_process_zero():
            return None
        upload = self._upload(folder, commit_message, token, revision)
        return upload.result() if blocking else upload

    def _upload(self, folder: Path, message: str | None, token: str | None = None, revision: str | None = None):
        """Start to upload a folder, which is removed afterwards; a `Future`."""
        upload = HfApi().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=folder,
            commit_message=message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=True,
        )
        upload.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
        return upload

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Left to `_save_checkpoint`, which pushes a checkpoint when it is complete."""
        if not self.is_md4:
            super()._push_from_checkpoint(checkpoint_folder)

    def _push_checkpoint(self, checkpoint: Path):
        """Start to upload the model of a checkpoint, as `args.hub_strategy` asks; on the first process."""
        strategy, under_way = self.args.hub_strategy, self.push_in_progress
        if strategy == HubStrategy.END:
            return
        if under_way is not None and not under_way.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        averaged = checkpoint / self._ema_folder
        source = averaged if averaged.is_dir() else checkpoint
        folder = checkpoint.parent / HUB_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*NOT_SHARED))
        self._complete_repository(folder)
        message = f"Training in progress, step {self.state.global_step}"
        uploads = [self._upload(folder, message)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            uploads.append(
                HfApi().upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=checkpoint,
                    path_in_repo="last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name,
                    commit_message=f"{message}, checkpoint",
                    token=self.args.hub_token,
                    revision=self.args.hub_revision,
                    run_as_future=True,
                )
            )
        self.push_in_progress = PushInProgress(uploads)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """No bars of transformers within the context: a checkpoint's would tear the training's own apart."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _metrics_of_examples(prediction: EvalPrediction, are_images: bool) -> dict[str, float]:
    nelbo, num_tokens, num_characters = torch.as_tensor(prediction.predictions).unbind(dim=1)
    return nelbo_metrics(nelbo, num_tokens, None if num_characters.isnan().any() else num_characters, are_images)
