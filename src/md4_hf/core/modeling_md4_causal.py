# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Autoregressive baseline: MD4's network, where each token sees only those before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_md4 import MD4Config
from .generation_md4 import MD4Generation
from .input_checks import check_num_items, check_shape
from .masked_diffusion import IGNORE_INDEX
from .modeling_md4 import MaskedDiffusionOutput, MD4Model
from .modeling_md4_base import MD4PreTrainedModel
from .modeling_md4_layers import logits_of, nelbo_of_rows, number_of_items


class MD4ForCausalLM(MD4Generation, MD4PreTrainedModel):
    """MD4's network with causal attention and the loss -log p: the baseline to compare masked diffusion with.

    Its parameters are those of the masked diffusion model with the same configuration except `is_causal`. The mask
    token is put before the first token, so that every token is predicted, including the first. A time-conditioned
    network is always given t = 0. `generate` and `make_pipeline` sample from it.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    accepts_loss_kwargs = True
    suppresses_unused_ids = True  # in its logits: samplers need not

    def __init__(self, config: MD4Config):
        if not config.is_causal:
            raise ValueError("`config` must have `is_causal=True` for MD4ForCausalLM, got False.")
        super().__init__(config)
        self.loss_type = None  # `Trainer` would leave out the first token with the loss that the class name suggests
        self.model = MD4Model(config)
        self.lm_head = self.model.body.new_head(self.model, config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        labels: torch.LongTensor | None = None,
        class_labels: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_mask: torch.BoolTensor | None = None,
        document_ids: torch.LongTensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedDiffusionOutput:
        r"""
        Logits of the next token at each position and, with labels, the loss.

        Args:
            input_ids: `(batch, length)` ids.
            labels: `(batch, length)` ids, unshifted, of the tokens that are scored, -100 elsewhere.
            attention_mask: `(batch, length)`, 1 for tokens and 0 for padding, which must follow the tokens.
            position_mask: `(batch, length)` booleans, not with labels: return the logits that predict the tokens where
                it is true, the first token included. The last token is then not read.
            document_ids: Must be None: documents of a packed row are not kept apart.
            output_logits: Whether to return logits; by default only without labels.
            class_labels, num_items_in_batch, kwargs: As in `MD4ForMaskedDiffusion.forward`.

        Returns:
            `MaskedDiffusionOutput`: `logits` `(batch, length, vocab)` predict the successor of each token, as in every
            causal model of transformers; with `position_mask` they are `(selected, vocab)`. `token_nelbo` is -log p of
            each scored token in nats, and `reconstruction_nelbo` is 0. `hidden_states` and `attentions` are those of
            the given tokens: the share of attention that the mask token before the first takes is left out.

        Raises:
            ValueError: As in `MD4Model.forward`, for `document_ids`, and for `position_mask` with labels.
        """
        if document_ids is not None:
            raise ValueError("`document_ids` must be None for a causal model, got a tensor.")
        check_num_items(num_items_in_batch)
        if labels is not None:
            check_shape("labels", labels, input_ids.shape)
        if position_mask is not None:
            check_shape("position_mask", position_mask, input_ids.shape)
            if labels is not None:
                raise ValueError("`position_mask` cannot be used with `labels`: the loss scores every label.")
        output_logits = labels is None if output_logits is None else output_logits
        # The last token is read only to predict its successor, or for its own states.
        asked = [self.is_asked_for(name, kwargs) for name in ("output_hidden_states", "output_attentions")]
        leaves_last = not any(asked) and (not output_logits or position_mask is not None)
        length = input_ids.shape[1] - int(leaves_last)  # torch 2.9 exports no difference of a length and a boolean
        outputs = self.model(
            input_ids=_prepend(self.config.mask_token_id, input_ids[:, :length]),
            timesteps=self._timesteps(input_ids),
            class_labels=class_labels,
            attention_mask=None if attention_mask is None else _prepend(1, attention_mask[:, :length]),
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        losses = {} if labels is None else self._losses(hidden_states, labels, num_items_in_batch)
        logits = None
        if output_logits:
            # The states before a token, those of the mask token before the first, predict it.
            before = hidden_states[:, : input_ids.shape[1]]
            predicting = hidden_states[:, 1:] if position_mask is None else before[position_mask]
            logits = logits_of(self.lm_head, predicting, self.config)
        tokens = slice(1, None)
        return MaskedDiffusionOutput(
            logits=logits,
            hidden_states=_at(outputs.hidden_states, (slice(None), tokens)),
            attentions=_at(outputs.attentions, (..., tokens, tokens)),
            **losses,
        )

    @torch.no_grad()
    def next_logits(
        self, input_ids: torch.LongTensor, past_key_values: Cache, class_labels: torch.LongTensor | None = None
    ) -> Tensor:
        """Logits `(batch, vocab)` of the tokens that follow, after `(batch, new)` more ids than the cache has seen.

        The first call begins the rows, whose ids may be none yet; the cache then holds one position more than the ids.
        """
        if past_key_values.get_seq_length() == 0:
            input_ids = _prepend(self.config.mask_token_id, input_ids)
        hidden_states = self.model(
            input_ids=input_ids,
            timesteps=self._timesteps(input_ids),
            class_labels=class_labels,
            past_key_values=past_key_values,
            return_dict=True,
        ).last_hidden_state
        return logits_of(self.lm_head, hidden_states[:, -1], self.config)

    def sampling_loop(self) -> Any:
        """Class of the sampling loop, token by token."""
        from .causal_decoding import CausalDecoding

        return CausalDecoding

    def _timesteps(self, input_ids: Tensor) -> Tensor | None:
        return torch.zeros(input_ids.shape[0], device=input_ids.device) if self.config.time_conditioning else None

    def _losses(self, hidden_states: Tensor, labels: Tensor, num_items: Tensor | int | None) -> dict[str, Tensor]:
        scored = labels != IGNORE_INDEX
        rows = hidden_states[:, : labels.shape[1]][scored]
        target = labels[scored]
        weight = torch.ones_like(rows[:, 0], dtype=torch.float32)
        total, values = nelbo_of_rows(self.lm_head, rows, target, weight, self.config)
        loss = total / number_of_items(scored, num_items, total.device)
        nelbo = torch.zeros(labels.shape, dtype=values.dtype, device=values.device).masked_scatter(scored, values)
        reconstruction = nelbo.new_zeros(len(labels))
        return {"loss": loss, "nelbo": loss, "token_nelbo": nelbo, "reconstruction_nelbo": reconstruction}


def _at(layers: tuple[Tensor | None, ...] | None, place: tuple) -> tuple[Tensor | None, ...] | None:
    """Select the same place of the states of each layer that has any."""
    return layers and tuple(None if x is None else x[place] for x in layers)


def _prepend(first: int, x: Tensor) -> Tensor:
    """Put a number before each row: `(batch, length)` -> `(batch, 1 + length)`."""
    return torch.cat([x.new_full((x.shape[0], 1), first), x], dim=1)
