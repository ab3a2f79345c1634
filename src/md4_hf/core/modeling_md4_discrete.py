# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Discrete diffusion baselines: MD4's network with the noise and the bound of D3PM, multinomial diffusion, SEDD, ..."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_md4 import MD4Config
from .discrete_processes import PROCESSES, DiscreteProcess, TokenStates, discrete_process, noised_ids
from .generation_md4 import MD4Generation
from .input_checks import check_num_items, check_shape
from .masked_diffusion import IGNORE_INDEX, stratified_times
from .modeling_md4 import MaskedDiffusionOutput, MD4Model
from .modeling_md4_base import MD4PreTrainedModel
from .modeling_md4_layers import logits_of, number_of_items


class MD4ForDiscreteDiffusion(MD4Generation, MD4PreTrainedModel):
    """MD4's network with the process that `baseline` of the configuration names: a baseline to compare MD4 with.

    Its parameters are those of the masked diffusion model with the same configuration. `generate` and `make_pipeline`
    sample from it.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    accepts_loss_kwargs = True
    suppresses_unused_ids = True  # in its logits: samplers need not

    def __init__(self, config: MD4Config):
        if config.baseline not in PROCESSES:
            raise ValueError(f"`config` must have a `baseline` among {sorted(PROCESSES)}, got {config.baseline!r}.")
        super().__init__(config)
        self.loss_type = None
        self.model = MD4Model(config)
        self.lm_head = self.model.body.new_head(self.model, config)
        self.post_init()

    @property
    def process(self) -> DiscreteProcess:
        """Noise process with the terms of its bound."""
        return discrete_process(self.config)

    @functools.cached_property
    def states(self) -> TokenStates:
        """States that the process counts, and their ids."""
        return TokenStates(self.config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        timesteps: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        class_labels: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: torch.LongTensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedDiffusionOutput:
        r"""
        Logits of the process's prediction at each position and, with labels, the loss.

        Args:
            input_ids: `(batch, length)` ids of x_t; with `labels` and without `timesteps` clean ids, which are noised
                here, with times and noise from torch's global generator.
            timesteps: `(batch,)` times in [0, 1].
            labels: `(batch, length)` ids x_0 of the tokens that are scored, -100 elsewhere.
            output_logits: Whether to return logits; by default only without labels.
            class_labels, attention_mask, document_ids, num_items_in_batch, kwargs: See `MD4ForMaskedDiffusion.forward`.

        Returns:
            `MaskedDiffusionOutput`: `logits` `(batch, length, vocab)` are of the clean token, of SEDD of the score.
            `token_nelbo` is the bound's part that depends on time, in nats, of each scored token, noised or not, and
            `reconstruction_nelbo` the rest, in which no network takes part. `loss` is the bound, but in D3PM's training
            a weighted mean with the cross entropy.

        Raises:
            ValueError: As in `MD4Model.forward`, and for labels of another shape than the ids'.
        """
        check_num_items(num_items_in_batch)
        if labels is not None:
            check_shape("labels", labels, input_ids.shape)
            if timesteps is None:
                input_ids, timesteps = self._noised(input_ids, labels)
        outputs = self.model(
            input_ids=input_ids,
            timesteps=timesteps,
            class_labels=class_labels,
            attention_mask=attention_mask,
            document_ids=document_ids,
            return_dict=True,
            **kwargs,
        )
        logits = logits_of(self.lm_head, outputs.last_hidden_state.to(input_ids.device), self.config)
        losses = {}
        if labels is not None:
            losses = self._losses(logits, input_ids, labels, timesteps, num_items_in_batch)
        output_logits = labels is None if output_logits is None else output_logits
        return MaskedDiffusionOutput(
            logits=logits if output_logits else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **losses,
        )

    def sampling_loop(self) -> Any:
        """Class of the sampling loop, all tokens at every step."""
        from .discrete_decoding import DiscreteDecoding

        return DiscreteDecoding

    def _noised(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x_t of clean ids, and its times, stratified over the batch."""
        batch, device = len(labels), labels.device
        offset = torch.rand((), device=device)
        t = self.process.times(stratified_times(offset, torch.arange(batch, device=device), batch))
        noise = torch.rand((*labels.shape, 2), device=device)
        return noised_ids(self.process, self.states, input_ids, labels, t, noise), t

    def _losses(self, logits: Tensor, xt: Tensor, labels: Tensor, t: Tensor, num_items) -> dict[str, Tensor]:
        """Losses in nats; `loss` and `nelbo` are per scored token of this batch, or of the larger one it is part of."""
        process, is_scored = self.process, labels != IGNORE_INDEX
        x0, xt, logits = self.states.states(labels), self.states.states(xt), self.states.columns(logits)
        values = process.token_nelbo(logits, x0, xt, t)
        trained = process.token_loss(values, logits, x0) if self.training else values
        values, trained = (torch.where(is_scored, x, 0.0).float() for x in (values, trained))
        rest = process.prior_nats * is_scored.sum(dim=1).to(values.dtype)
        num_items = number_of_items(is_scored, num_items, values.device)
        nelbo = (values.sum() + rest.sum()) / num_items
        loss = (trained.sum() + rest.sum()) / num_items
        return {"loss": loss, "nelbo": nelbo.detach(), "token_nelbo": values, "reconstruction_nelbo": rest}
