# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Body of a model: its network between ids and head. One sibling for each kind; here, MD4's own transformer.

`MD4Config.backbone` names the kind. The modules of a body are attributes of the `MD4Model`, so that the names of their
parameters are those that files have; the body itself holds nothing, but says how they are made and run.
"""

from __future__ import annotations  # torch 2.9 does not compile an inner function with objects for annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import (
    and_masks,
    create_bidirectional_mask,
    create_causal_mask,
    packed_sequence_mask_function,
)
from transformers.modeling_outputs import BaseModelOutput

from .block_layout import BlockLayout, block_numbers, positions_in_documents
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
    clean_ids: Tensor | None = None

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
        if config.block_size is not None:
            self.check_blocks(config, inputs)
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
        check_backend(config, "`document_ids` need")

    def check_blocks(self, config: MD4Config, inputs: BodyInputs):
        """Raise a ValueError for inputs that a block model cannot see."""
        check_backend(config, "`block_size` needs")
        mask, first = inputs.attention_mask, inputs.num_past
        if mask is not None and mask.dim() != 2:
            raise ValueError(f"`attention_mask` must be (batch, length) for a block model, got {tuple(mask.shape)}.")
        if first and first % config.block_size + inputs.tokens.shape[1] > config.block_size:
            raise ValueError(
                f"`input_ids` must lie in one block of {config.block_size} tokens with `past_key_values` of {first} "
                f"tokens, got {inputs.tokens.shape[1]} tokens."
            )
        if inputs.clean_ids is not None:
            check_shape("clean_ids", inputs.clean_ids, inputs.tokens.shape)

    def check_cache(self, model: PreTrainedModel, document_ids: Tensor | None):
        """Raise a ValueError where keys and values of earlier tokens cannot be used."""
        config = model.config
        # A causal model is always given t = 0, as are the decided blocks of a block model.
        if config.time_conditioning and not config.is_causal and config.block_size is None:
            raise ValueError("`past_key_values` need a model without `time_conditioning`: keys change with the time.")
        if document_ids is not None:
            raise ValueError("Only one of `past_key_values` and `document_ids` may be given.")
        if model.training and model.is_gradient_checkpointing:
            raise ValueError("`past_key_values` must be None in training with gradient checkpointing.")

    def positions(self, inputs: BodyInputs) -> Tensor:
        """Positions of the tokens, `(batch or 1, length)`."""
        if inputs.position_ids is not None:
            return inputs.position_ids
        if inputs.document_ids is not None:
            return positions_in_documents(inputs.document_ids)
        first, length = inputs.num_past, inputs.tokens.shape[1]
        return torch.arange(first, first + length, device=inputs.tokens.device)[None]

    def layout(self, config: MD4Config, inputs: BodyInputs, position_ids: Tensor) -> BlockLayout | None:
        """Blocks of the tokens, None for a model without blocks."""
        if config.block_size is None:
            return None
        blocks = block_numbers(position_ids, config.block_size, inputs.document_ids)
        length = inputs.tokens.shape[1]
        most = -(-length // config.block_size) + 1  # one more where the first is not whole
        return BlockLayout(blocks, inputs.clean_ids is not None, most if inputs.document_ids is None else length)


def attention_mask_of(
    config, is_causal: bool, states: Tensor, inputs: BodyInputs, layout: BlockLayout | None
) -> Tensor | None:
    """Mask of padding, documents and blocks, in the form that the attention of a configuration takes.

    Args:
        config: Configuration of a network of transformers.
        is_causal: Whether tokens see only those before them.
        states: Tensor `(batch, tokens, ...)` of the network's precision; with x_0 behind x_t there are `2 length`.
        inputs, layout: Inputs of the body, and their blocks.
    """
    make_mask = create_causal_mask if is_causal else create_bidirectional_mask
    mask, document_ids, functions = inputs.attention_mask, inputs.document_ids, []
    if layout is not None:
        mask, document_ids = layout.doubled_or_none(mask), layout.doubled_or_none(document_ids)
        if not inputs.num_past:  # a single block sees all of itself, and what the cache holds
            functions.append(layout.mask_function(len(states)))
    if document_ids is not None:
        functions.append(packed_sequence_mask_function(document_ids))
    options = {"past_key_values": inputs.past_key_values}
    if functions:
        options["and_mask_function"] = and_masks(*functions)
    return make_mask(config, states, mask, **options)


def check_backend(config: MD4Config, needs: str):
    """Raise a ValueError for a kind of attention that ignores the masks of documents and blocks."""
    backend = config._attn_implementation
    if backend not in ("eager", "sdpa", "flex_attention"):
        raise ValueError(f"{needs} eager, SDPA or flex attention, got attn_implementation={backend!r}.")


def check_ids_and_conditions(config: MD4Config, inputs: BodyInputs):
    """Raise a ValueError for ids out of range, and for missing or wrong times and classes of a conditional model."""
    tokens, class_labels = inputs.tokens, inputs.class_labels
    if not tokens.is_floating_point():
        check_range("input_ids", tokens, config.vocab_size - 1)
    if config.time_conditioning:
        check_times(inputs.timesteps, tokens, config, "the model is time-conditioned")
    if config.num_classes is not None:
        last = config.null_class or config.num_classes - 1
        check_per_example("class_labels", class_labels, tokens.shape[0], last, "the model is class-conditional")
        check_tensor("class_labels", class_labels, "integers")


def check_times(timesteps: Tensor | None, tokens: Tensor, config: MD4Config, reason: str):
    """Raise a ValueError unless there is a time in [0, 1] for each example, or for each token of a block model."""
    if config.block_size is not None and isinstance(timesteps, Tensor) and timesteps.dim() == 2:
        check_shape("timesteps", timesteps, tokens.shape[:2])
        check_range("timesteps", timesteps, 1)
    else:
        check_per_example("timesteps", timesteps, tokens.shape[0], 1, reason)


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
        position_ids = self.positions(inputs)
        layout = self.layout(model.config, inputs, position_ids)
        tokens, rows, length = inputs.tokens, inputs.rows, inputs.tokens.shape[1]
        if inputs.clean_ids is not None:  # behind x_t; of its hidden states the last feed-forward is spared
            rows = torch.arange(tokens.numel(), device=tokens.device) if rows is None else rows
            rows = rows + rows // length * length
            tokens, length = torch.cat([tokens, inputs.clean_ids], dim=1), 2 * length
        hidden_states = self._embed(model, tokens)
        attention = self._attention(model, inputs, hidden_states, position_ids, layout)
        modulations = self._modulations(model, inputs, layout, hidden_states.dtype)
        for layer, modulation in zip(model.layers, modulations[:-1], strict=True):
            last_rows = rows if layer is model.layers[-1] else None
            hidden_states = layer(hidden_states, modulation, rows=last_rows, **attention, **options)
        hidden_states = model.norm(hidden_states)
        if modulations[-1] is not None:
            modulation = of_examples(modulations[-1], length, rows).to(hidden_states.device)
            hidden_states = modulate(hidden_states, *modulation.chunk(2, dim=-1))
        if inputs.clean_ids is not None and inputs.rows is None:
            hidden_states = hidden_states.unflatten(0, inputs.tokens.shape[:2])
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _modulations(
        self, model: PreTrainedModel, inputs: BodyInputs, layout: BlockLayout | None, dtype: torch.dtype
    ) -> tuple[Tensor | None, ...]:
        """Modulation of each block of the network and of the output; of examples, `(batch, 1, ...)`, or of tokens."""
        if model.conditioning is None:
            return (None,) * (len(model.layers) + 1)

        def of_times(timesteps: Tensor | None, class_labels: Tensor | None) -> tuple[Tensor, ...]:
            conditioning = model.conditioning(timesteps, class_labels, dtype)
            return model.modulation(self.activate(conditioning, model.config))

        if layout is None or inputs.timesteps is None or not model.config.time_conditioning:
            return of_times(inputs.timesteps, inputs.class_labels)
        times = layout.block_times(inputs.timesteps, inputs.tokens, model.config)
        batch, num_blocks = times.shape
        labels = None if inputs.class_labels is None else inputs.class_labels.repeat_interleave(num_blocks)
        of_blocks = of_times(times.flatten(), labels)
        of_tokens = [layout.at_tokens(x.view(batch, num_blocks, -1)) for x in of_blocks]
        if layout.has_clean:
            of_clean = of_times(times.new_zeros(batch), inputs.class_labels)
            shape = (-1, inputs.tokens.shape[1], -1)
            of_tokens = [torch.cat([x, y.expand(shape)], dim=1) for x, y in zip(of_tokens, of_clean, strict=True)]
        return tuple(of_tokens)

    def _embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        embedded = tokens if tokens.is_floating_point() else model.embed_tokens(tokens)
        if model.embed_proj is not None:
            embedded = model.embed_proj(embedded)
        return model.embedding_dropout(embedded)

    def _attention(
        self,
        model: PreTrainedModel,
        inputs: BodyInputs,
        hidden_states: Tensor,
        position_ids: Tensor,
        layout: BlockLayout | None,
    ) -> dict:
        """Arguments of the attention of every block: its mask, the rotation of its positions, and the cache."""
        config = model.config
        position_ids = position_ids if layout is None else layout.doubled(position_ids)
        return {
            "attention_mask": attention_mask_of(config, config.is_causal, hidden_states, inputs, layout),
            "rotation": model.rotary_emb(hidden_states, position_ids),
            "past_key_values": inputs.past_key_values,
        }
