# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`generate` of the models: ids in, ids out, by the sampler of the pipeline and without diffusers."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file

from .input_checks import check_at_least_one, check_shape


SCHEDULER_FILE = "scheduler_config.json"


class MD4Generation:
    """Adds `generate` to a model of text. The samplers are imported with the first call."""

    config: Any
    device: Any
    _scheduler_entries: dict[str, Any] | None = None  # of the scheduler saved with the model, once it is asked for

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | Sequence[Sequence[int]] | None = None,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        num_return_sequences: int = 1,
        num_inference_steps: int | None = None,
        block_length: int | None = None,
        use_cache: bool = True,
        order: str | None = None,
        order_temperature: float | None = None,
        quota: str | None = None,
        threshold: float | None = None,
        factor: float | None = None,
        entropy_bound: float | None = None,
        kl_bound: float | None = None,
        remasking: str | None = None,
        eta: float | None = None,
        corrector: str | None = None,
        corrector_steps: int | None = None,
        corrector_eta: float | None = None,
        corrector_size: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        suppress_tokens: list[int] | None = None,
        logits_processor: Any = None,
        class_labels: int | list[int] | torch.LongTensor | None = None,
        guidance_scale: float = 1.0,
        eos_early_stop: bool | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        stop_strings: str | list[str] | None = None,
        tokenizer: Any = None,
        streamer: Any = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | None = None,
        scheduler: Any = None,
    ) -> torch.LongTensor:
        r"""
        Continue prompts, and fill the masks in them, as `MaskedDiffusionPipeline` does: with the draws of its rows.

        This is no `generate` of transformers' `GenerationMixin`, but its results are laid out in the same way: new
        tokens begin behind the longest prompt, in the column `input_ids.shape[1]`, in every row. Padding may stand on
        either side of a prompt, is not seen, and is returned as it is.

        Args:
            input_ids: Prompts `(batch, length)`, or lists of ids, which may differ in length: they are padded on the
                left. Without prompts a text is unconditional. Mask tokens are filled in.
            attention_mask: `(batch, length)`, 1 for tokens and 0 for padding, at the beginning or end of a row.
            max_new_tokens: New tokens of each row, >= 1. By default a prompt that holds masks gets none, and any
                other is continued to the model's `max_position_embeddings`.
            num_return_sequences: Rows drawn for each prompt, one after the other, >= 1.
            num_inference_steps: Steps (of each block).
            block_length, use_cache, class_labels, guidance_scale, suppress_tokens, logits_processor: As in
                `MaskedDiffusionPipeline.__call__`.
            order, order_temperature, quota, threshold, factor, entropy_bound, kl_bound: Which masked positions are
                unmasked first, and how many at a time.
            remasking, eta, corrector, corrector_steps, corrector_eta, corrector_size: How decided tokens change.
            temperature, top_p, top_k: How tokens are drawn; with temperature 0 the most probable one is taken.
            eos_early_stop: Whether a row ends with its first EOS token among the new ones. By default, if there is an
                EOS token; the rest of the row is then padding.
            eos_token_id: Id or ids that end a text, the configuration's by default.
            pad_token_id: Id of the padding behind the end of a text, the configuration's, or else the EOS token's.
            stop_strings: Strings that end a row where its new text has one, the token that completes it included; with
                `tokenizer`.
            tokenizer: Tokenizer for `stop_strings`, whose EOS token ends texts too.
            streamer: `TextStreamer` of transformers or another object with its `put(ids)` and `end()`, for one row: the
                prompt, then each block when it is finished, without blocks the rest as a whole. A `put_draft(ids)`, as
                `TextDiffusionStreamer` has it, gets the block that is being written after each step, with its masks.
            generator: One generator that seeds one for each row, or a list of one per row.
            seed: Seed of a generator, in its place.
            scheduler: A `MaskedDiffusionScheduler`, or another one that the pipeline takes. By default the one saved
                with the model, or else one with the model's masking schedule and 256 steps.

        Returns:
            Ids `(batch * num_return_sequences, length + new)`, on the device of `input_ids`. Columns that only hold
            padding are left out at the end.

        Raises:
            ValueError: For arguments out of range or that contradict each other, before any computation.
        """
        given = locals()
        from .denoiser_inputs import block_length_of
        from .pipeline_inputs import Request, TextInputs, padding_id
        from .sampling_call import SamplingCall, SamplingOptions

        config = self.config
        if getattr(config, "is_image", False):
            raise ValueError("`generate` must be called on a model of text: `MaskedDiffusionPipeline` draws images.")
        check_at_least_one("num_return_sequences", num_return_sequences)
        prompts = Prompts.of(input_ids, attention_mask)
        inputs = TextInputs(config, tokenizer, eos_token_id)
        request = Request(
            input_ids=prompts.rows,
            max_new_tokens=max_new_tokens,
            length_name="max_new_tokens",
            block_length=block_length_of(config, block_length),
            use_cache=use_cache,
            eos_early_stop=bool(inputs.eos_token_ids) if eos_early_stop is None else eos_early_stop,
            stop_strings=stop_strings,
            streamer=streamer,
        )
        own = {"num_samples": num_return_sequences, "generator": _generator(generator, seed)}
        options = SamplingOptions.of({**given, **own})
        if pad_token_id is not None and not (isinstance(pad_token_id, int) and 0 <= pad_token_id < config.vocab_size):
            raise ValueError(f"`pad_token_id` must be in [0, {config.vocab_size}), got {pad_token_id!r}.")
        padding = padding_id(config, pad_token_id, config.pad_token_id, *inputs.eos_token_ids)
        scheduler = self._own_scheduler() if scheduler is None else scheduler
        call = SamplingCall(self, scheduler, inputs, request, options, self.device)
        sample = call.run()
        return prompts.joined(call.shown(sample), num_return_sequences, padding).to(prompts.device or self.device)

    def sampling_loop(self) -> Any:
        """Class of the sampling loop of this kind of model."""
        from .denoising import Denoising

        return Denoising

    def _own_scheduler(self) -> Any:
        """Scheduler that is saved with the model, or else the default one for it."""
        from .scheduling_masked_diffusion import MaskedDiffusionScheduler

        if self._scheduler_entries is None:
            self._scheduler_entries = _saved_entries(self.config)
        entries, kind = self._scheduler_entries, MaskedDiffusionScheduler
        name = entries.get("_class_name", kind.__name__)
        if name != kind.__name__:
            rule = "be given where another kind is saved with the model"
            raise ValueError(f"`scheduler` must {rule}, got None for {name}.")
        known = {entry: entries[entry] for entry in inspect.signature(kind.__init__).parameters if entry in entries}
        return kind.for_model(self.config, **{**known, "mask_token_id": self.config.mask_token_id})


@dataclass
class Prompts:
    """Prompts of a batch, with their padding.

    Args:
        rows: Ids of each prompt without its padding, `(length,)`; None without prompts.
        is_given: `(batch, length)` booleans of the tokens that are no padding; None without prompts, and for prompts
            given as lists, which are padded on the left.
        padded: `(batch, length)` ids with their padding, as they were given.
        device: Device of the ids, if they were given as a tensor.
    """

    rows: list[Tensor] | None = None
    is_given: Tensor | None = None
    padded: Tensor | None = None
    device: torch.device | None = None

    @classmethod
    def of(cls, input_ids: Any, attention_mask: Tensor | None) -> Prompts:
        """Take prompts apart; a ValueError for ids of another shape, and for padding within a prompt."""
        from .pipeline_inputs import id_rows

        if input_ids is None:
            if attention_mask is not None:
                raise ValueError("`attention_mask` must be None without `input_ids`.")
            return cls()
        rows = id_rows(input_ids)
        if not isinstance(input_ids, Tensor):
            if attention_mask is not None:
                raise ValueError("`attention_mask` must be None with lists of ids, which are padded here.")
            return cls(rows)
        ids = input_ids.cpu().reshape(len(rows), input_ids.shape[-1])
        if attention_mask is None:
            return cls(rows, torch.ones_like(ids, dtype=torch.bool), ids, input_ids.device)
        check_shape("attention_mask", attention_mask, ids.shape)
        is_given = attention_mask.cpu() != 0
        begins = is_given & ~torch.nn.functional.pad(is_given, (1, 0))[:, :-1]
        if (begins.sum(dim=1) > 1).any():
            row = int((begins.sum(dim=1) > 1).nonzero()[0])
            raise ValueError(
                f"`attention_mask` must be 0 at the ends of a row only, got {is_given[row].int().tolist()}."
            )
        return cls([ids[row][is_given[row]] for row in range(len(ids))], is_given, ids, input_ids.device)

    def joined(self, sequences: list[Tensor], num_samples: int, padding: int) -> Tensor:
        """Ids `(rows, length + new)`: prompts as they were given but for their masks, and new tokens behind them."""
        rows = [torch.empty(0, dtype=torch.long)] * len(sequences) if self.rows is None else self.rows
        rows = [row for row in rows for _ in range(num_samples)][: len(sequences)]
        new = [ids[len(row) :] for ids, row in zip(sequences, rows, strict=True)]
        parts = zip(sequences, rows, range(len(rows)), strict=True)
        prompts = [self._prompt(ids[: len(row)], number // num_samples, padding) for ids, row, number in parts]
        return torch.cat([_padded(prompts, padding, "left"), _padded(new, padding, "right")], dim=1)

    def _prompt(self, ids: Tensor, number: int, padding: int) -> Tensor:
        """A prompt, whose masks are filled, with its padding."""
        if self.is_given is None or self.padded is None:
            return ids
        return self.padded[number].masked_scatter(self.is_given[number], ids)


def _padded(rows: list[Tensor], padding: int, side: str) -> Tensor:
    """Rows padded to the longest, `(rows, length)`."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding, padding_side=side)


def _generator(generator: Any, seed: int | None) -> Any:
    """Generator of a call: the one given, or a new one with this seed."""
    if seed is None:
        return generator
    if generator is not None:
        raise ValueError(f"Only one of `generator` and `seed` may be given, got {generator!r} and {seed!r}.")
    if isinstance(seed, bool) or not (isinstance(seed, int) and 0 <= seed < 2**64):
        raise ValueError(f"`seed` must be an integer in [0, 2**64), got {seed!r}.")
    return torch.Generator().manual_seed(seed)


def _saved_entries(config: Any) -> dict[str, Any]:
    """Entries of the scheduler's file beside the model of a configuration; none where there is no such file."""
    folder, commit = getattr(config, "name_or_path", ""), getattr(config, "_commit_hash", None)
    if not folder or (commit is None and not os.path.isdir(folder)):  # a model that was made here
        return {}
    hub = {f"_raise_exceptions_for_{case}": False for case in ("gated_repo", "missing_entries", "connection_errors")}
    file = cached_file(folder, SCHEDULER_FILE, revision=commit, **hub)
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
