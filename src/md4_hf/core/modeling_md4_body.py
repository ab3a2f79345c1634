# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Body of a model: its network between ids and head. One sibling for each kind; here, MD4's own transformer.

`MD4Config.backbone` names the kind. The modules of a body are attributes of the `MD4Model`, so that the names of their
parameters are those that files have; the body itself holds nothing, but says how they are made and run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask, packed_sequence_mask_function
from transformers.modeling_outputs import BaseModelOutput

from .configuration_md4 import MD4Config
from .input_checks import check_per_example, check_range, check_shape, check_tensor
from .modeling_md4_layers import (
    ACTIVATIONS,
    MD4Conditioning,
    MD4Head,
    MD4Layer,
    MD4Modulation,
    MD4RotaryEmbedding,
    make_norm,
    modulate,
    of_examples,
)


@dataclass
class BodyInputs:
    """Inputs of `MD4Model.forward`, which describes them; `tokens` are its `input_ids` or its `inputs_embeds`."""

    tokens: Tensor
    timesteps: Tensor | None = None
    class_labels: Tensor | None = None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    document_ids: Tensor | None = None
    past_key_values: Cache | None = None
    rows: Tensor | None = None

    @property
    def num_past(self) -> int:
        """Number of earlier tokens, whose keys and values are given."""
        return 0 if self.past_key_values is None else self.past_key_values.get_seq_length()


class MD4Body:
    """A kind of network between ids and head; each method is given the `MD4Model` whose modules it makes or runs."""

    selects_rows = True  # whether it gives the hidden states of `rows` only; if not, the head selects them
    records_states = False  # whether its outputs have hidden states and attentions; if not, the blocks' are recorded

    def build(self, model: PreTrainedModel, config: MD4Config):
        """Make the modules of the model."""
        raise NotImplementedError(f"{type(self).__name__} must define `build`.")

    def new_head(self, model: PreTrainedModel, config: MD4Config) -> nn.Module:
        """Make the head for the hidden states of the model."""
        raise NotImplementedError(f"{type(self).__name__} must define `new_head`.")

    def embedding_name(self, model: PreTrainedModel) -> str:
        """Name of the module of the model that embeds the ids."""
        return "embed_tokens"

    def check_inputs(self, model: PreTrainedModel, inputs: BodyInputs, options: dict):
        """Raise a ValueError for inputs that do not fit the model; `options` are the other arguments of the call."""
        raise NotImplementedError(f"{type(self).__name__} must define `check_inputs`.")

    def run(self, model: PreTrainedModel, inputs: BodyInputs, **options) -> BaseModelOutput:
        """Hidden states for the head, as `MD4Model.forward` returns them."""
        raise NotImplementedError(f"{type(self).__name__} must define `run`.")


class TextBody(MD4Body):
    """What bodies of text have in common: a linear head, and the checks of `(batch, length)` ids and their masks."""

    head_has_bias = False

    def new_head(self, model: PreTrainedModel, config: MD4Config) -> nn.Module:
        """Make a linear head that begins at zero: at uniform predictions."""
        head = MD4Head(config.hidden_size, config.vocab_size, bias=self.head_has_bias)
        head.init_scale = 0.0
        return head

    def check_inputs(self, model: PreTrainedModel, inputs: BodyInputs, options: dict):
        """Raise a ValueError for inputs that do not fit the model."""
        config, tokens = model.config, inputs.tokens
        if tokens.is_floating_point():
            check_shape("inputs_embeds", tokens, (None, None, model.get_input_embeddings().embedding_dim))
        elif tokens.dim() != 2:
            raise ValueError(f"`input_ids` must have shape (batch, length), got {tuple(tokens.shape)}.")
        check_ids_and_conditions(config, inputs)
        if inputs.past_key_values is not None:
            self.check_cache(model, inputs.document_ids)
        self.check_attention(config, inputs)

    def check_attention(self, config: MD4Config, inputs: BodyInputs):
        """Raise a ValueError for masks, positions or documents of another shape than the tokens'."""
        batch, length = inputs.tokens.shape[:2]
        mask, documents = inputs.attention_mask, inputs.document_ids
        # A mask of four axes goes to the attention backend unchecked.
        if mask is not None and len(getattr(mask, "shape", ())) != 4:
            check_shape("attention_mask", mask, (batch, inputs.num_past + length))
        if inputs.position_ids is not None:
            check_shape("position_ids", inputs.position_ids, (batch, length), (1, length))
            check_tensor("position_ids", inputs.position_ids, "integers")
        if documents is None:
            return
        check_shape("document_ids", documents, (batch, length))
        check_tensor("document_ids", documents, "integers")
        if mask is not None and mask.dim() != 2:
            shape = tuple(mask.shape)
            raise ValueError(f"`attention_mask` must be (batch, length) with `document_ids`, got {shape}.")
        backend = config._attn_implementation
        if backend not in ("eager", "sdpa", "flex_attention"):
            raise ValueError(
                f"`document_ids` need eager, SDPA or flex attention, got attn_implementation={backend!r}."
            )

    def check_cache(self, model: PreTrainedModel, document_ids: Tensor | None):
        """Raise a ValueError where keys and values of earlier tokens cannot be used."""
        config = model.config
        if config.time_conditioning and not config.is_causal:  # which is always given t = 0
            raise ValueError("`past_key_values` need a model without `time_conditioning`: keys change with the time.")
        if document_ids is not None:
            raise ValueError("Only one of `past_key_values` and `document_ids` may be given.")
        if model.training and model.is_gradient_checkpointing:
            raise ValueError("`past_key_values` must be None in training with gradient checkpointing.")


def check_ids_and_conditions(config: MD4Config, inputs: BodyInputs):
    """Raise a ValueError for ids out of range, and for missing or wrong times and classes of a conditional model."""
    tokens, class_labels = inputs.tokens, inputs.class_labels
    if not tokens.is_floating_point():
        check_range("input_ids", tokens, config.vocab_size - 1)
    if config.time_conditioning:
        check_per_example("timesteps", inputs.timesteps, tokens.shape[0], 1, "the model is time-conditioned")
    if config.num_classes is not None:
        last = config.null_class or config.num_classes - 1
        check_per_example("class_labels", class_labels, tokens.shape[0], last, "the model is class-conditional")
        check_tensor("class_labels", class_labels, "integers")


class TransformerBody(TextBody):
    """MD4's own transformer: `embed_tokens`, `conditioning`, `layers`, `norm`, `modulation` of the model."""

    layer_class: type[nn.Module] = MD4Layer
    conditioning_class: type[nn.Module] = MD4Conditioning
    make_norm: Callable[[MD4Config], nn.Module] = staticmethod(make_norm)

    def activate(self, conditioning: Tensor, config: MD4Config) -> Tensor:
        """Apply the activation between the conditioning and the modulation."""
        return ACTIVATIONS[config.mlp_type](conditioning)

    def build(self, model: PreTrainedModel, config: MD4Config):
        """Make embedding, conditioning and blocks."""
        model.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size or config.hidden_size)
        model.conditioning = self.conditioning_class(config) if config.is_conditional else None
        model.embed_proj = nn.Linear(config.embedding_size, config.hidden_size) if config.embedding_size else None
        model.embedding_dropout = nn.Dropout(0.0 if config.embedding_size else config.embedding_dropout)
        model.rotary_emb = MD4RotaryEmbedding(config)
        model.layers = nn.ModuleList([self.layer_class(config, index) for index in range(config.num_hidden_layers)])
        model.norm = self.make_norm(config)
        model.modulation = MD4Modulation(config) if config.is_conditional else None

    def run(self, model: PreTrainedModel, inputs: BodyInputs, **options) -> BaseModelOutput:
        """Hidden states `(batch, length, hidden)`, or of the rows alone, which the last feed-forward is run for."""
        config, rows, length = model.config, inputs.rows, inputs.tokens.shape[1]
        hidden_states = self._embed(model, inputs.tokens)
        attention = self._attention(model, inputs, hidden_states)
        modulations: tuple[Tensor | None, ...] = (None,) * (len(model.layers) + 1)
        if model.conditioning is not None:
            conditioning = model.conditioning(inputs.timesteps, inputs.class_labels, hidden_states.dtype)
            modulations = model.modulation(self.activate(conditioning, config))
        for layer, modulation in zip(model.layers, modulations, strict=False):
            last_rows = rows if layer is model.layers[-1] else None
            hidden_states = layer(hidden_states, modulation, rows=last_rows, **attention, **options)
        hidden_states = model.norm(hidden_states)
        if modulations[-1] is not None:
            modulation = of_examples(modulations[-1], length, rows).to(hidden_states.device)
            hidden_states = modulate(hidden_states, *modulation.chunk(2, dim=-1))
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        embedded = tokens if tokens.is_floating_point() else model.embed_tokens(tokens)
        if model.embed_proj is not None:
            embedded = model.embed_proj(embedded)
        return model.embedding_dropout(embedded)

    def _attention(self, model: PreTrainedModel, inputs: BodyInputs, hidden_states: Tensor) -> dict:
        """Arguments of the attention of every block: its mask, the rotation of its positions, and the cache."""
        config, position_ids, document_ids = model.config, inputs.position_ids, inputs.document_ids
        if position_ids is None:
            first, length = inputs.num_past, hidden_states.shape[1]
            position_ids = torch.arange(first, first + length, device=hidden_states.device)[None]
            if document_ids is not None:
                position_ids = positions_in_documents(document_ids)
        make_mask = create_causal_mask if config.is_causal else create_bidirectional_mask
        options = {"past_key_values": inputs.past_key_values}
        if document_ids is not None:
            options["and_mask_function"] = packed_sequence_mask_function(document_ids)
        return {
            "attention_mask": make_mask(config, hidden_states, inputs.attention_mask, **options),
            "rotation": model.rotary_emb(hidden_states, position_ids),
            "past_key_values": inputs.past_key_values,
        }


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Position of each token in its run of equal numbers, from 0: `(batch, length)` -> `(batch, length)`."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    starts = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values
