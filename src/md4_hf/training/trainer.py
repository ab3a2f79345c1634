# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training on the MD4 ELBO with transformers' `Trainer`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DynamoBackend, send_to_device
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, has_length
from transformers.utils import logging

from ..core.image_processing_md4 import MD4ImageProcessor
from ..core.input_checks import match_tokenizer
from ..data.collators import PaddingCollator
from ..data.images import check_image_processor_matches
from ..data.mixture import MixedStream
from ..hub.adapters import is_adapted, untie_adapted_weights
from ..objective.clipping import clipped_rates
from ..objective.estimators import NelboEstimate, nelbo_metrics
from ..objective.example_order import NOISE_INDEX, OrderedExamples, can_be_ordered
from ..objective.figures import SIZE_COLUMNS
from ..objective.objectives import Objective, scored_labels
from ..utils.files import remove_any
from ..utils.libraries import is_instance
from ..utils.options import changed
from ..utils.processes import RunLock, check_agreement, check_launch, on_first_process
from ..utils.sharding import keep_float32, shard_blocks
from .arguments import SAME_ON_ALL_RANKS, MD4TrainingArguments, check_annealing, check_arguments
from .batches import CheckedCollator, as_tensors, input_names, noised_batch, number_step_examples
from .callbacks import InterruptCallback, serve_on
from .checkpoint_writer import CheckpointWriter, keeps_shards, kind_of_training
from .checkpoints import STAGING_FOLDER, check_training_state, checkpoint_to_resume, set_aside
from .compilation import compile_blocks
from .ema import EmaCallback, stored_average
from .finite_steps import FiniteSteps
from .model_card import CardFacts
from .optimizers import (
    exponents_of,
    give_rate,
    is_exponent,
    layers_of_backbone,
    muon_with_adamw,
    options_outlast_loading,
    shorter_warmup,
)
from .progress_table import BitsProgressCallback
from .repository import Repository
from .running_sums import RunningSums
from .samples import Samples, SamplesCallback
from .step_sampler import SeededOrder, StepSampler
from .streams import EndlessMixture, EndlessStream, check_torch_stream
from .training_state import check_weights_fit, state_errors, step_reached, weight_errors


if TYPE_CHECKING:  # its scheduler imports diffusers, which takes seconds
    from ..objective.order_likelihood import OrderLikelihood

logger = logging.get_logger(__name__)


class MD4Trainer(Trainer):
    """
    `Trainer` that maximises the MD4 ELBO of an `MD4ForMaskedDiffusion`, or the likelihood, which is its own ELBO, of
    an `MD4ForCausalLM`, the autoregressive baseline.

    Data sets (map-style or streaming) hold clean `input_ids`, `(length,)` or `(channels, height, width)` of images, and
    optionally `labels` (-100 where a token is not scored and never masked), `attention_mask`, `class_labels` and
    `num_characters` and `num_bytes` (for bits per character and per byte).

    - Times are stratified over all examples of an optimizer step, and all noise is a pure function of (seed, step,
      index of the example in the step): ranks, accumulation and resuming do not change it.
    - A stream of `datasets` is given whole to every process, and divided, repeated and resumed as `EndlessStream` does.
    - The weights' moving average is evaluated and saved; checkpoints hold the raw weights to resume from, and the
      average as a model of its own in `checkpoint-N/ema`.
    - An evaluation reports nats per token, perplexity and bits with a standard error, over `eval_draws` draws; for
      images, bits per dimension. During a training it also draws samples, into `samples.md` and, of images,
      `samples.png`, and sends them to the services of `report_to`.
    - With `class_dropout` in the model, examples lose their class with that probability; `random_flip` mirrors images.
    - A checkpoint appears under its name only when it is complete; Ctrl-C ends training with one.
    - An adapter (`PeftModel`) trains in this way too, and is saved as one.
    - `save_repository` writes, and `push_to_hub` uploads, what belongs to the trained model as one flat folder:
      averaged weights, tokenizer or image processor, scheduler, loss plot and a model card, which `card_facts` adds to.

    - A model that was compiled before trains, is saved and resumes as any other.
    - Batches of every data collator are checked: it must not mask itself, nor bring columns that the model does not
      take, with `remove_unused_columns=False` either. Both are a ValueError.

    Takes the arguments of `Trainer`, with `MD4TrainingArguments` as `args`, and as `processing_class` a tokenizer, or
    the `MD4ImageProcessor` of a model of images. Another model than MD4's, a `processing_class` for other data, and
    `compute_metrics` or `compute_loss_func` (the loss is the ELBO) are a ValueError.
    """

    def __init__(self, model=None, args: MD4TrainingArguments | None = None, data_collator=None, **kwargs):
        check_model(model, kwargs.get("model_init"))
        if is_adapted(model):
            untie_adapted_weights(model)
        check_arguments(args, model.config, kwargs)
        check_annealing(args.attention_annealing_steps, model.get_base_model() if is_adapted(model) else model)
        check_processing_class(kwargs.get("processing_class"), model.config)
        objective = Objective.of_config(model.config)
        self.objective = objective.clipped(clipped_rates(args.schedule_clip))
        if args.matmul_precision is not None:
            torch.set_float32_matmul_precision(args.matmul_precision)
        self.is_image = model.config.is_image
        kwargs["compute_metrics"] = functools.partial(metrics_of_examples, are_images=self.is_image)
        super().__init__(model=model, args=args, data_collator=data_collator or PaddingCollator(), **kwargs)
        if args.torch_compile:
            compile_blocks(self.model, args)
        check_launch(self, args.expected_processes)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            keep_float32(plugin, weights=self.model.config.learn_masking_schedule)
            shard_blocks(plugin, self.model)
        num_timesteps = model.config.num_train_timesteps
        self.estimate: NelboEstimate | OrderLikelihood = NelboEstimate(objective, args.eval_estimator, num_timesteps)
        self.card_facts = CardFacts(license=args.license)
        self.repository, self.samples = Repository(self), Samples(self)
        self.run_lock = RunLock(args)
        self.interrupt = InterruptCallback()
        self.ema = EmaCallback(args.ema_decay) if args.ema_decay > 0.0 else None
        self.sums, self.finite_steps = RunningSums(self), FiniteSteps(self)
        self._order: StepSampler | SeededOrder | None = None
        self.stream: EndlessStream | None = None
        self.checkpoint_writer = CheckpointWriter(self)
        self._add_callbacks()

    def create_accelerator_and_postprocess(self):
        """As `Trainer`'s, but the model is not compiled as one graph (see `compile_blocks`)."""
        super().create_accelerator_and_postprocess()
        if self.args.torch_compile:
            self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO

    def _add_callbacks(self):
        self.add_callback(self.interrupt)
        self.add_callback(self.sums)
        if self.ema is not None:
            self.add_callback(self.ema)
        self.add_callback(SamplesCallback(self))
        has_bar = self.pop_callback(ProgressCallback) is not None
        if has_bar or self.pop_callback(PrinterCallback) is not None:
            self.add_callback(BitsProgressCallback(has_bar=has_bar))

    @property
    def interrupted(self) -> bool:
        """Whether the last training was ended by a signal."""
        return self.interrupt.interrupted

    # Training ---------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As `Trainer.train`; the first Ctrl-C saves a checkpoint at the end of the step and returns.

        `resume_from_checkpoint=True` takes the newest checkpoint that is whole, and names those it passes over, with
        the reason; `"auto"` does so too, and starts anew where there is none. A run at its last step stays as it is.
        A ValueError is raised if the checkpoint asked for is not whole, if the processes were started with different
        arguments, or if another run writes to `args.output_dir`. Learning rate, weight decay and betas are those of
        `args`, also where the checkpoint was written with others.
        """
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                "`model` must have parameters that train, got none: open an adapter with `load_model(..., "
                "merge_adapter=False, is_trainable=True)`."
            )
        self._uncounted_tokens: Tensor | int = 0
        self._is_scoring_known = False  # whether there are tokens to learn from
        check_attention_can_train(self.repository.model.config, self.args.device)
        self.sums.begin()
        self.finite_steps.begin()
        check_agreement(self.args, facts_to_agree_on(self))
        if self.args.world_size > 1:  # dropout is drawn from this generator: each rank needs its own
            torch.manual_seed(self.args.seed + self.args.process_index)
        with self.run_lock, self.interrupt.watching():
            checkpoint = on_first_process(self.args, lambda: self._checkpoint_to_resume(resume_from_checkpoint))
            if self.args.should_save:  # left by a run that was killed
                remove_any(Path(self.args.output_dir) / STAGING_FOLDER)
            output = super().train(checkpoint, *args, **kwargs)
        self._count_tokens()
        if self.sums.num_left_out:
            logger.warning(f"{self.sums.num_left_out} of the steps were left out, as their gradients are not finite.")
        return output

    def _checkpoint_to_resume(self, asked: str | bool | None) -> str | None:
        checkpoint = checkpoint_to_resume(asked, self.args.output_dir)
        if checkpoint is not None:
            check_training_state(checkpoint, kind_of_training(self), self.args.world_size)
            if not self.is_deepspeed_enabled:  # whose weights may be elsewhere
                check_weights_fit(Path(checkpoint), self.repository.model)
        set_aside(self.args.output_dir, 0 if checkpoint is None else step_reached(checkpoint))
        return checkpoint

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed where nothing is left to do
            self.control.should_training_stop = True
            return
        if self._order is not None:  # accelerate does not reach it behind the batches that a resumption skips
            self._order.set_epoch(kwargs["epoch"])
        if self.stream is not None:  # begins at its own position: no batch is to be skipped
            begin = self.state.global_step / self.state.max_steps
            kwargs |= {"epoch": begin, "epochs_trained": begin, "steps_trained_in_current_epoch": 0}
        super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """As `Trainer.get_train_dataloader`; every process reads its own share of a stream, without end."""
        self.stream, args = None, self.args
        check_torch_stream(self.train_dataset, args)
        if not is_instance(self.train_dataset, "datasets.IterableDataset"):
            return super().get_train_dataloader()
        collate = self._get_collator_with_removed_columns(self._checked_collator(), description="training")
        kind = EndlessMixture if isinstance(self.train_dataset, MixedStream) else EndlessStream
        self.stream = kind(self.train_dataset, args.process_index, args.world_size, self._train_batch_size, collate)
        return self.stream.loader(args)

    def _get_dataloader(
        self, dataset: Any, description: str, *args, is_training: bool = False, **kwargs
    ) -> torch.utils.data.DataLoader:
        if isinstance(self.data_collator, PaddingCollator):
            dataset = as_tensors(dataset)
        if not is_training and can_be_ordered(dataset):
            if is_instance(dataset, "datasets.Dataset"):
                dataset = self._remove_unused_columns(dataset, description=description)
            dataset = OrderedExamples(dataset)
        # An example that an evaluation left out would be missing in its figures.
        drop_last = self.args.dataloader_drop_last and is_training
        with changed(self.args, dataloader_drop_last=drop_last), changed(self, data_collator=self._checked_collator()):
            loader = super()._get_dataloader(dataset, description, *args, is_training=is_training, **kwargs)
        own = getattr(loader, "base_dataloader", loader)  # accelerate may have wrapped it
        own.worker_init_fn = functools.partial(serve_on, own.worker_init_fn)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        """Epochs of whole optimizer steps, so that the number of ranks does not change the examples of any step."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args, strategy = self.args, self.args.train_sampling_strategy
        if has_length(dataset) and strategy in ("random", "sequential"):
            step_examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self._order = StepSampler(
                len(dataset), step_examples, args.data_seed, strategy == "random", args.dataloader_drop_last
            )
            return self._order
        sampler = super()._get_train_sampler(train_dataset)
        if hasattr(sampler, "generator") and sampler.generator is None:  # each rank has another global generator
            self._order = SeededOrder(sampler, args.data_seed)
        return sampler

    def _warn_if_unscored(self):
        """Warn if no token has been scored up to the first log, save or evaluation: nothing is learned."""
        if self._is_scoring_known or not isinstance(self._uncounted_tokens, Tensor):
            return
        self._is_scoring_known = True
        if not self._uncounted_tokens and self.args.should_log:
            logger.warning(
                f"No token was scored up to step {self.state.global_step}, and nothing is learned: all `labels` are "
                "-100. Prompts may fill whole rows, or a collator may hide what is to be learned."
            )

    def _count_tokens(self):
        """Add the tokens scored since the last call to the state; between calls their sum stays on the device."""
        if self.args.include_num_input_tokens_seen == "no":
            self.state.num_input_tokens_seen += int(self._uncounted_tokens)
        self._uncounted_tokens = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`, or Muon and AdamW; exponents and backbone may have rates of their own."""
        args, trained = self.args, self.model if model is None else model
        if self.optimizer is None and args.use_muon:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "`use_muon` must be False with FSDP and DeepSpeed, got True: it needs whole matrices."
                )
            betas = (args.adam_beta1, args.adam_beta2)
            self.optimizer = muon_with_adamw(trained, args.learning_rate, betas, args.weight_decay)
        optimizer = super().create_optimizer(model)
        if args.schedule_lr_multiplier != 1.0:
            give_rate(self.optimizer, exponents_of(trained), args.learning_rate * args.schedule_lr_multiplier)
        if args.backbone_lr_multiplier != 1.0:
            give_rate(self.optimizer, layers_of_backbone(trained), args.learning_rate * args.backbone_lr_multiplier)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """As `Trainer.create_scheduler`; a warm-up that would take all steps is cut to a tenth, with a warning."""
        args = self.args
        asked = args.get_warmup_steps(num_training_steps)
        warmup_steps = shorter_warmup(asked, num_training_steps)
        if warmup_steps != asked and args.should_log:
            logger.warning(
                f"`warmup_steps` is {asked} of {num_training_steps} steps in all, and cut to {warmup_steps}: no step "
                "would be left at the full learning rate. (A value below 1 is a share of the steps.)"
            )
        with changed(args, warmup_steps=warmup_steps):
            return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in `Trainer`, without GenMD4's exponents: decay would pull them to ln 2."""
        return [name for name in super().get_decay_parameter_names(model) if not is_exponent(name)]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Batches of one optimizer step, each with the place of its examples among those of all ranks."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if self.stream is not None:
            self.stream.take_positions(batches)
            # accelerate moves those of other loaders; a copy that blocks would wait for all the work of the step before
            batches = send_to_device(batches, device, non_blocking=self.args.dataloader_pin_memory)
        number_step_examples(batches, self.args.process_index, self.args.world_size)
        for batch in batches:
            batch["all_scored"] = batch.get("labels") is None and batch.get("attention_mask") is None
            batch["labels"] = scored_labels(batch)
        num_items = self._get_num_items_in_batch(batches, device)
        if num_items is not None:  # with DataParallel the number is repeated for each device
            self._uncounted_tokens = self._uncounted_tokens + num_items.flatten()[0]
            num_items = num_items.clamp(min=1)  # a step that scores nothing changes nothing
        if batches:
            self.sums.begin_step()
        return batches, num_items

    def training_step(self, *args, **kwargs) -> Tensor:
        """As `Trainer.training_step`; a loss that is not finite ends the training, or the step is left out."""
        loss = super().training_step(*args, **kwargs)
        self.finite_steps.add_loss(loss)
        return loss

    def _get_grad_norm(self, *args, **kwargs) -> Tensor | float | None:
        norm = super()._get_grad_norm(*args, **kwargs)
        if isinstance(norm, DTensor):  # torch 2.9 has not summed it up, and the log would show one process's part
            norm = norm.full_tensor()
        self.finite_steps.judge(norm)
        return norm

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        control = self.control
        is_kept = control.should_evaluate or control.should_save or control.should_training_stop
        if is_kept:
            self.finite_steps.check()
        if is_kept or control.should_log:
            self._warn_if_unscored()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """NELBO in nats per scored token of the whole optimizer step, on noise drawn for this step."""
        inputs = noised_batch(inputs, self.objective, self.args, self.state.global_step)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.objective.training_bound == "nelbo":
            self.sums.add_nelbo(outputs.nelbo)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Log the bound in bits per token too; for GenMD4, whose loss is a surrogate, the bound itself as well.

        At clipped mask rates (`schedule_clip`) no bound is known.
        """
        if "loss" in logs:
            nelbo, steps = self.sums.take()
            bound = self.objective.training_bound
            if bound == "nelbo":
                total = self.accelerator.reduce(torch.as_tensor(nelbo, device=self.args.device), "sum")
                logs["nelbo"] = total.item() / max(steps, 1)
            if self.sums.num_left_out:
                logs["num_left_out"] = self.sums.num_left_out
            if bound is not None:
                logs["bits_per_token"] = logs[bound] / math.log(2)
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = [*input_names(self.repository.base_model), *SIZE_COLUMNS, NOISE_INDEX]

    def _checked_collator(self) -> CheckedCollator:
        self._set_signature_columns_if_needed()
        return CheckedCollator(self.data_collator, self._signature_columns, self.model.config.mask_token_id)

    # Evaluation -------------------------------------------------------------------------------------------------------

    def evaluate_by(self, estimate: OrderLikelihood):
        """Evaluate by the likelihood under a sampler, in place of the bound.

        A ValueError is raised with FSDP and DeepSpeed: their processes must call the network equally often.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            name = estimate.facts["estimator"]
            raise ValueError(f"`estimator` must be that of the NELBO with FSDP and DeepSpeed, got {name!r}: use DDP.")
        self.estimate = estimate

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`, over the NELBO of each example, with the averaged weights.

        The random state stays as it is.
        """
        self._num_evaluated = 0
        kwargs["prediction_loss_only"] = False
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with self.ema_weights(), torch.random.fork_rng(devices):
            output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.pop(f"{prefix}_model_preparation_time", None)
        output.metrics[f"{prefix}_num_draws"] = 0 if self.estimate.is_exact else self.args.eval_draws
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], prediction_loss_only: bool, ignore_keys=None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Rows (nelbo, tokens, characters, bytes), one per example, as logits; no loss, and the tokens as labels."""
        sizes = [inputs.pop(name, None) for name in SIZE_COLUMNS]  # DeepSpeed would round them as it does the weights
        index = inputs.pop(NOISE_INDEX, None)
        inputs = self._prepare_inputs(inputs)
        batch = inputs["input_ids"].shape[0]
        if index is None:  # of a stream, or a data collator that leaves it out: by its place
            first = self._num_evaluated + self.args.process_index * batch
            self._num_evaluated += self.args.world_size * batch
            index = torch.arange(first, first + batch)
        sizes = [torch.full((batch,), torch.nan) if size is None else size for size in sizes]
        with torch.no_grad(), self.compute_loss_context_manager():
            options = {"seed": self.args.eval_seed, "num_draws": self.args.eval_draws}
            nelbo, num_tokens = self.estimate(model, inputs, index, **options)
        rows = torch.stack([nelbo, num_tokens, *(size.to(nelbo) for size in sizes)], dim=1)
        return None, rows, num_tokens[:, None]

    # Weights and checkpoints ------------------------------------------------------------------------------------------

    def ema_weights(self) -> contextlib.AbstractContextManager:
        """Give the model its averaged weights within the context (its own if there is no average yet)."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied_to(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As `Trainer.save_model`, also where the weights are in shards; a call by the user saves the averaged ones."""
        if not _internal_call:
            self.repository.write_model(output_dir or self.args.output_dir, averaged=True)
            if self.args.push_to_hub:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        elif keeps_shards(self):  # a checkpoint: the weights are in its shards
            self.repository.write_configuration(output_dir)
        else:
            self.repository.write_model(output_dir, averaged=False)

    def _get_output_dir(self, trial) -> str:
        """As `Trainer._get_output_dir`; while a checkpoint is written, the folder in which it is staged."""
        staging = self.checkpoint_writer.staging
        return super()._get_output_dir(trial) if staging is None else str(staging)

    def _save_checkpoint(self, model: nn.Module, trial):
        """Write the checkpoint aside and give it its name when it is complete."""
        self._count_tokens()
        save = functools.partial(super()._save_checkpoint, model, trial)
        self.checkpoint_writer.write(Path(self._get_output_dir(trial)), save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None):
        # A compiled model has other names.
        with changed(self, model=self.repository.model), weight_errors(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        with changed(self, model=self.repository.model):
            super()._load_best_model()
        if self.ema is not None:
            average = stored_average(self.state.best_model_checkpoint, self.repository.model)
            self.ema.set_average(self.model, average)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        if checkpoint is None:
            return
        kept = (
            contextlib.nullcontext()
            if self.is_deepspeed_enabled
            else options_outlast_loading(self.optimizer, self.lr_scheduler)
        )
        # Without an index: transformers 5.17 has several processes read to "cpu:0", which torch does not restore to.
        is_indexed = self.args.device.type == "cpu" and self.args.device.index is not None
        device = torch.device("cpu") if is_indexed else self.args.device
        with (
            state_errors(Path(checkpoint, "optimizer.pt or scheduler.pt")),
            kept,
            changed(self.args, _setup_devices=device),
        ):
            super()._load_optimizer_and_scheduler(checkpoint)
        self.sums.load(checkpoint)
        if self.ema is not None:
            self.ema.initial = stored_average(checkpoint, self.repository.model)
        if self.stream is not None and not self.args.ignore_data_skip:
            self.stream.load(checkpoint)

    # Sharing ----------------------------------------------------------------------------------------------------------

    def save_repository(self, folder: str | os.PathLike, **facts: Any):
        """Write what belongs to the trained model as one flat folder, which every loader opens.

        That is the model (its averaged weights) or adapter, the tokenizer or image processor, the scheduler, the loss
        plot, samples of images and a model card; `facts` are fields of `CardFacts` that differ from `card_facts`. Call
        it on all processes.
        """
        self.repository.save(folder, **facts)

    def create_model_card(self, output_dir: str | None = None, **facts: Any):
        """Write `README.md` from what the run itself knows, by default into its folder.

        Fields of `CardFacts` may differ from `card_facts`; `Trainer`'s `model_name`, `finetuned_from` and `dataset` are
        known too.
        """
        self.repository.write_card(output_dir, **facts)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
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
        upload = self.repository.push(commit_message, token, revision, private, **facts)
        return upload.result() if blocking and upload is not None else upload

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Do nothing: `_save_checkpoint` pushes a checkpoint when it is complete."""


def check_model(model: Any, model_init: Any = None):
    """Raise a ValueError for a model that is not MD4's; a `PeftModel` or compiled model of one is."""
    if model_init is not None:
        raise ValueError("`model_init` must be None for an MD4 model: give the `model` itself.")
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type != "md4" or not hasattr(model, "get_input_embeddings"):  # which a module with our config has not
        raise ValueError(
            "`model` must be an MD4 model, such as `MD4ForMaskedDiffusion`, or an adapter on one, got "
            f"{type(model).__name__}."
        )
    if not model.config.return_dict:
        raise ValueError("`model.config.return_dict` must be True, as outputs are read by name, got False.")


def check_attention_can_train(config: Any, device: torch.device):
    """Raise a ValueError for flex attention on a processor, which has no backward pass there."""
    if device.type == "cpu" and config._attn_implementation == "flex_attention":
        raise ValueError('`attn_implementation` must be "sdpa" or "eager" in training on a CPU, got "flex_attention".')


def facts_to_agree_on(trainer: MD4Trainer) -> dict[str, Any]:
    """Values by name that must be the same on all processes of a training."""
    facts = {name: getattr(trainer.args, name) for name in SAME_ON_ALL_RANKS}
    datasets_by_name = {"train_dataset": trainer.train_dataset, "eval_dataset": trainer.eval_dataset}
    facts |= {f"len({name})": len(data) for name, data in datasets_by_name.items() if has_length(data)}
    facts["model.config"] = trainer.repository.model.config.to_diff_dict()
    return {**facts, "fingerprint of the model": trainer.repository.base_fingerprint}


def check_processing_class(processor: Any, config: Any):
    """Raise a ValueError for a tokenizer or image processor of other data than the model's."""
    if isinstance(processor, PreTrainedTokenizerBase):
        match_tokenizer(processor, config)
    if isinstance(processor, MD4ImageProcessor):
        check_image_processor_matches(processor, config)


def metrics_of_examples(prediction: EvalPrediction, are_images: bool) -> dict[str, float]:
    """Figures from the rows that `MD4Trainer.prediction_step` gives in the place of logits."""
    nelbo, num_tokens, *sizes = torch.as_tensor(prediction.predictions).unbind(dim=1)
    known = {name: None if size.isnan().any() else size for name, size in zip(SIZE_COLUMNS, sizes, strict=True)}
    return nelbo_metrics(nelbo, num_tokens, are_dimensions=are_images, **known)
