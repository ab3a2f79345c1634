# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""MD4 denoiser: a bidirectional transformer over partly masked text, or a U-Net over images, and its loss.

Source: Shi et al., arXiv:2406.04329, and the official implementation's network, which checkpoints convert to exactly.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_md4 import MD4Config
from .generation_md4 import MD4Generation
from .input_checks import (
    can_check_values,
    check_loss_weights,
    check_num_items,
    check_options,
    check_range,
    check_shape,
    check_tensor,
    given_tokens,
)
from .masked_diffusion import (
    IGNORE_INDEX,
    GenMD4Process,
    MD4Process,
    is_unused,
    md4_process,
    stratified_times,
    token_nelbo,
)
from .modeling_md4_auto import AutoBody, adopt_backbone
from .modeling_md4_base import MD4PreTrainedModel
from .modeling_md4_body import BodyInputs, MD4Body, TransformerBody, check_times
from .modeling_md4_ddit import DDiTBody
from .modeling_md4_layers import MD4Head, at_rows, indices_of, logits_of, nelbo_of_rows, number_of_items
from .modeling_md4_unet import ImageBody
from .schedules import MaskingSchedule, TokenPolynomialSchedule, left_broadcast


# The body of each `backbone` of a configuration.
BODIES: dict[str, type[MD4Body]] = {
    "transformer": TransformerBody,
    "ddit": DDiTBody,
    "unet": ImageBody,
    "uvit": ImageBody,
    "auto": AutoBody,
}


@dataclass
class MaskedDiffusionOutput(ModelOutput):
    """
    Output of a masked diffusion model. For images, `length` stands for `channels, height, width`.

    Args:
        loss (`torch.FloatTensor` of shape `()`): NELBO in nats per scored token, reconstruction term included.
        logits (`torch.FloatTensor` of shape `(batch, length, vocab)`, or `(selected, vocab)` with `position_mask`):
            Logits of the clean tokens; the mask token's is finfo.min.
        token_nelbo (`torch.FloatTensor` of shape `(batch, length)`, with copies `(batch, copies, length)`):
            Diffusion part of the NELBO in nats, zero at unmasked positions.
        hidden_states (`tuple(torch.FloatTensor)`):
            Those of the input and of each layer, `(batch, length, hidden_size)`; for images, of each residual block.
            The last are the input of the head. Copies are rows: `(batch * copies, ...)`.
        attentions (`tuple(torch.FloatTensor)`):
            Probabilities of each layer, `(batch, heads, length, length)`; text only, with eager attention.
        nelbo (`torch.FloatTensor` of shape `()`):
            The bound. `loss` equals it, except in GenMD4's training, where it is a surrogate with the right gradient.
        reconstruction_nelbo (`torch.FloatTensor` of shape `(batch,)`): Reconstruction part in nats.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    token_nelbo: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    nelbo: torch.FloatTensor | None = None
    reconstruction_nelbo: torch.FloatTensor | None = None


class MD4Model(MD4PreTrainedModel):
    """MD4 network of the kind that `backbone` names, without its head: ids to hidden states."""

    _auto_map = {"AutoConfig": "configuration_md4.MD4Config", "AutoModel": "modeling_md4.MD4Model"}
    num_positions: int | None = None  # of a network whose positions are learned

    def __init__(self, config: MD4Config):
        super().__init__(config)
        self.body = BODIES[config.backbone]()
        self.gradient_checkpointing = False
        self.body.build(self, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the ids."""
        return self.get_submodule(self.body.embedding_name(self))

    def set_input_embeddings(self, value: nn.Module):
        """Replace the embedding of the ids."""
        self.set_submodule(self.body.embedding_name(self), value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        timesteps: torch.FloatTensor | None = None,
        class_labels: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        document_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        rows: torch.LongTensor | None = None,
        clean_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        r"""
        Hidden states of a batch of noised ids.

        Args:
            input_ids: `(batch, length)` ids of x_t, in [0, vocab_size); for images `(batch, channels, height, width)`,
                whose only other inputs are `timesteps` and `class_labels`.
            timesteps: `(batch,)` times in [0, 1]; required when the model is time-conditioned. For a block model also
                `(batch, length)`, alike within a block; of one time for a row, blocks without a mask are told 0.
            class_labels: `(batch,)` labels in [0, num_classes); required when the model is class-conditional. With
                `class_dropout` in the configuration, `num_classes` is the null class, and is the default.
            attention_mask: `(batch, length)`, 1 for tokens and 0 for padding; `past_key_values` count in `length`.
            position_ids: `(batch, length)` positions; 0 .. length-1 by default.
            inputs_embeds: `(batch, length, embedding_size)`, in place of `input_ids`.
            document_ids: `(batch, length)` number of the document that each token of a packed row belongs to, in runs
                of equal numbers: tokens attend within their document only, and positions start at 0 in each document.
                Not with flash attention.
            past_key_values: Keys and values of earlier tokens, which are attended to but not computed again; those of
                the given tokens are added. Positions continue after them. Only without time conditioning.
            rows: Flat indices `(rows,)` into (batch, length) of the only positions whose hidden states are needed: the
                feed-forward of the last layer runs only there. Not with `output_hidden_states`.
            clean_ids: `(batch, length)` ids x_0 of a block model (`block_size`): each block of x_t then sees itself and
                the earlier blocks of x_0. Without them a block sees itself and the earlier blocks of `input_ids`.
            kwargs: `output_hidden_states` (true, or the numbers of some layers), `output_attentions` (eager attention;
                not for images), `return_dict` and arguments of the attention backend.

        Returns:
            `last_hidden_state` `(batch, length, hidden_size)`, with `rows` `(rows, hidden_size)`, normalised and
            modulated, ready for the head; for images `(batch, channels of the last block, height, width)`.

        Raises:
            ValueError: For missing inputs, wrong shapes, and ids, times or labels out of range. Values are checked on
                the CPU only: on an accelerator, each check would wait for the device.
        """
        tokens = given_tokens(input_ids, inputs_embeds)
        if class_labels is None and self.config.null_class is not None:
            class_labels = torch.full(tokens.shape[:1], self.config.null_class, device=tokens.device)
        inputs = BodyInputs(
            tokens,
            timesteps,
            class_labels,
            attention_mask,
            position_ids,
            document_ids,
            past_key_values,
            rows,
            clean_ids,
        )
        self.body.check_inputs(self, inputs, kwargs)
        if self.body.records_states:
            return self.body.run(self, inputs, **kwargs)
        return self._run_recorded(inputs, return_dict=True, **kwargs)

    @merge_with_config_defaults
    @capture_outputs
    def _run_recorded(self, inputs: BodyInputs, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Run the body, and add the outputs of its blocks that are asked for."""
        return self.body.run(self, inputs, **kwargs)


class MD4ForMaskedDiffusion(MD4Generation, MD4PreTrainedModel):
    """MD4 network with its head; the loss is the negative evidence lower bound (NELBO) of masked diffusion."""

    _auto_map = {
        "AutoConfig": "configuration_md4.MD4Config",
        "AutoModel": "modeling_md4.MD4ForMaskedDiffusion",
        "AutoModelForMaskedLM": "modeling_md4.MD4ForMaskedDiffusion",
    }
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # The loss honours `num_items_in_batch`: `Trainer` must not divide it again by the accumulation steps.
    accepts_loss_kwargs = True
    suppresses_unused_ids = True  # in its logits: samplers need not

    def __init__(self, config: MD4Config):
        if config.is_causal:
            raise ValueError("`config` must have `is_causal=False` for MD4ForMaskedDiffusion, got True.")
        super().__init__(config)
        self.model = MD4Model(config)
        self.lm_head = self.model.body.new_head(self.model, config)
        self._tied_weights_keys = {"lm_head.weight": f"model.{self.model.body.embedding_name(self.model)}.weight"}
        if config.learn_masking_schedule:
            self.token_schedule = TokenPolynomialSchedule(
                config.vocab_size, config.schedule_power, config.schedule_eps
            )
            # Learned exponents stay in float32, whatever the precision of the weights.
            self._keep_in_fp32_modules_strict = ["token_schedule"]
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        tokenizer: Any = None,
        *,
        masking_schedule: str = "linear",
        is_causal: bool = False,
        predicts_next: bool = False,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        **fields: Any,
    ) -> "MD4ForMaskedDiffusion":
        """
        Make a masked diffusion model of a masked or a causal language model of transformers, with its weights.

        Args:
            name_or_path: Folder or Hub id of the language model, in safetensors format.
            tokenizer: Its tokenizer, opened from the same place by default. If it has no mask token, the mask's id is
                the one behind its last, which `ensure_mask_token` gives it. The row of a new mask token is the mean of
                the others. Ids of the model without a token are never drawn.
            masking_schedule: As in `MD4Config`.
            is_causal: Whether a causal model continues to see only earlier tokens; False opens its attention.
            predicts_next: Whether the hidden state of the token before predicts a token, as in a causal language model.
            dtype: Precision of the weights; that of the files by default.
            attn_implementation, revision, token: As in `from_pretrained`.
            fields: Further fields of `MD4Config`.

        Returns:
            The model, in evaluation mode, with `backbone="auto"`.

        Raises:
            OSError: If there is no such model, or none in safetensors format.
            ValueError: If it is no language model of attention layers with a linear head, cannot attend both ways, or
                has fewer rows than the tokenizer has ids.
        """
        options = {"attn_implementation": attn_implementation, "revision": revision, "token": token, "dtype": dtype}
        options = {"use_safetensors": True} | {name: x for name, x in options.items() if x is not None}
        fields |= {"masking_schedule": masking_schedule, "predicts_next": predicts_next}
        return adopt_backbone(cls, name_or_path, tokenizer, is_causal, options, fields)

    def get_output_embeddings(self) -> nn.Module:
        """The head: a linear layer of `vocab_size` rows; for images, a convolution of `vocab_size` rows per channel."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        """Replace the head."""
        is_plain = type(new_embeddings) is nn.Linear  # as transformers makes it
        self.lm_head = MD4Head.with_parameters_of(new_embeddings) if is_plain else new_embeddings

    @property
    def num_positions(self) -> int | None:
        """Number of tokens that the network has positions for; None where they have no end."""
        return self.model.num_positions

    @property
    def masking_process(self) -> MD4Process | GenMD4Process:
        """Forward process and terms of the bound, with the schedule of the configuration or the learned schedules."""
        if self.config.learn_masking_schedule:
            config = self.config
            tokens = {"mask_token_id": config.mask_token_id, "unused_token_ids": config.unused_token_ids}
            return GenMD4Process(self.token_schedule, first_time=config.schedule_first_time, **tokens)
        return md4_process(self.config)

    @property
    def masking_schedule(self) -> MaskingSchedule | TokenPolynomialSchedule:
        """Masking schedule that the configuration names, or the learned schedules of GenMD4."""
        return self.masking_process.schedule

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        timesteps: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        class_labels: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        position_mask: torch.BoolTensor | None = None,
        mask_noise: torch.FloatTensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_logits: bool | None = None,
        document_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        max_masked: int | None = None,
        loss_weights: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedDiffusionOutput:
        r"""
        Logits of the clean tokens of a batch of noised ids and, with labels, the loss.

        Args:
            input_ids: `(batch, length)` ids of x_t, or `(batch, copies, length)`: several x_t of each example, at one
                time. With `labels` and without `timesteps`, `(batch, length)` clean ids: times (stratified over the
                batch), masks and, in training, the classes to drop are then drawn here, from torch's global generator.
                For images, `length` stands for `channels, height, width` here and below.
            timesteps: `(batch,)` times in [0, 1], of a block model also `(batch, length)`, alike within a block;
                required by time-conditioned models. With them, no noise is drawn.
            labels: `(batch, length)` clean ids x_0 of all tokens that are scored, -100 elsewhere. Tokens that are not
                scored must not be masked.
            class_labels: `(batch,)` labels of a class-conditional model, see `MD4Model.forward`. Because of their name,
                the `Trainer` of transformers mistakes them for targets: to evaluate with it and without
                `DataCollatorForMaskedDiffusion`, set `label_names=["labels"]` in its arguments.
            attention_mask, position_ids, document_ids, past_key_values, kwargs: See `MD4Model.forward`.
            inputs_embeds: `(batch, length, embedding_size)`, in place of `input_ids` when there are no labels.
            position_mask: Booleans of the shape of `input_ids`: the head runs only where they are true.
            mask_noise: Uniform numbers in [0, 1) of shape `(batch, length)` or `(batch, copies, length)`: `input_ids`
                are then clean ids `(batch, length)`, which are masked here where the number is at least alpha_t. This
                is how learned schedules, which may be sharded over devices, are applied.
            num_items_in_batch: Number of scored tokens to divide the loss by, when the batch is a part of a larger one.
            output_logits: Whether to return logits. True by default, but not in training with labels: there the last
                feed-forward and the head run on masked positions only, whose logits never exist all at once. Then
                `loss` has no second derivative, and `token_nelbo` of a compiled model has no gradient.
            max_masked: Upper bound on the number of masked tokens of the batch; more are an error. With it, a step on
                an accelerator does not wait for their number, and a compiled step is of this size.
            loss_weights: Weights of the cross entropies of masked tokens, of the shape of `timesteps`, in place of the
                NELBO's: `loss` is then no bound, and there is no other output but it and the logits. Not for GenMD4.

        Raises:
            ValueError: As in `MD4Model.forward`, and for labels that hold the mask id or do not fit the input's shape.
        """
        tokens = given_tokens(input_ids, inputs_embeds)
        check_options(tokens, inputs_embeds, labels, position_mask, mask_noise, max_masked)
        check_num_items(num_items_in_batch)
        check_loss_weights(loss_weights, labels, timesteps, self.config)
        if labels is not None:
            self._check_labels(input_ids, labels, position_mask)
            input_ids, timesteps, class_labels = self._noised(input_ids, labels, timesteps, class_labels, mask_noise)
        has_copies = input_ids is not None and input_ids.dim() == 2 + len(self.config.sample_shape)
        copies = input_ids.shape[1] if has_copies else None
        inputs = {"timesteps": timesteps, "class_labels": class_labels, "attention_mask": attention_mask}
        inputs |= {"position_ids": position_ids, "document_ids": document_ids, "labels": labels}
        inputs |= {"input_ids": input_ids, "position_mask": position_mask, "loss_weights": loss_weights}
        if copies is not None:
            inputs = rows_of_copies(copies, inputs)
        row_labels, row_mask, row_weights = (inputs.pop(k) for k in ("labels", "position_mask", "loss_weights"))
        if output_logits is None:
            output_logits = labels is None or not self.training
        is_masked = None if output_logits else self._scored_masks(inputs["input_ids"], row_labels)
        rows = needed_rows(row_mask, is_masked, max_masked)
        inputs |= {"inputs_embeds": inputs_embeds, "past_key_values": past_key_values}
        if labels is not None and self.config.block_size is not None:
            inputs["clean_ids"] = torch.where(row_labels == IGNORE_INDEX, inputs["input_ids"], row_labels)
        outputs = self._run_network(rows, tokens.device, **inputs, **kwargs)
        hidden_states, logits, losses = outputs.last_hidden_state, None, {}
        if output_logits:
            logits = logits_of(self.lm_head, hidden_states, self.config, self._rows_for_head(rows))
        if labels is not None:
            x0, xt, t = row_labels, inputs["input_ids"], inputs["timesteps"].float()
            if logits is None:
                total, values = self._masked_nelbo(hidden_states, rows, is_masked, x0, t, row_weights)
            elif row_weights is None:
                values = self.masking_process.token_nelbo(logits, x0, xt, t)
                total = values.sum()
            else:
                total = token_nelbo(logits, x0, xt, row_weights, self.config.mask_token_id).sum()
            if row_weights is None:
                losses = self._losses(total, values, xt, labels, timesteps.float(), copies, num_items_in_batch)
            else:
                num_items = number_of_items(labels != IGNORE_INDEX, num_items_in_batch, total.device)
                losses = {"loss": total / (copies or 1) / num_items}
        if position_mask is None:
            logits = fold_copies(logits, copies)
        return MaskedDiffusionOutput(
            logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions, **losses
        )

    def _draw_noise(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the times of a clean batch, and the uniform numbers that mask it: two copies in GenMD4's training."""
        batch, *shape = labels.shape
        offset = torch.rand((), device=labels.device)
        process, block_size = self.masking_process, self.config.block_size
        num_times = batch if block_size is None else batch * -(-shape[0] // block_size)
        uniform = stratified_times(offset, torch.arange(num_times, device=labels.device), num_times)
        if block_size is not None:
            uniform = uniform.view(batch, -1).repeat_interleave(block_size, dim=1)[:, : shape[0]]
        copies = (process.training_copies,) if process.training_copies is not None and self.training else ()
        return process.times(uniform), torch.rand((batch, *copies, *shape), device=labels.device)

    def _drop_classes(self, class_labels: Tensor | None) -> Tensor | None:
        """Replace random class labels by the null class when a model that has one is trained."""
        if not (self.training and self.config.null_class is not None and isinstance(class_labels, Tensor)):
            return class_labels
        is_dropped = torch.rand(class_labels.shape, device=class_labels.device) < self.config.class_dropout
        return class_labels.masked_fill(is_dropped, self.config.null_class)

    def _scored_masks(self, xt: Tensor | None, labels: Tensor | None) -> Tensor | None:
        """Flat booleans of the masked tokens that are scored, None without labels."""
        return None if labels is None else ((xt == self.config.mask_token_id) & (labels != IGNORE_INDEX)).flatten()

    def _noised(
        self,
        input_ids: Tensor,
        labels: Tensor,
        timesteps: Tensor | None,
        class_labels: Tensor | None,
        mask_noise: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x_t, of the shape of the noise, with its times and classes; they are drawn here where no times are given.

        With times and without noise, `input_ids` already are x_t.
        """
        if timesteps is None:
            timesteps, mask_noise = self._draw_noise(labels)
            class_labels = self._drop_classes(class_labels)
        check_times(timesteps, labels, self.config, "`labels` are given")
        if mask_noise is not None:
            input_ids = self._mask(input_ids, labels, timesteps, mask_noise)
        return input_ids, timesteps, class_labels

    def _mask(self, input_ids: Tensor, labels: Tensor, timesteps: Tensor, mask_noise: Tensor) -> Tensor:
        """Mask clean ids by the noise, whose shape x_t has."""
        check_shape("input_ids", input_ids, labels.shape)
        if can_check_values(input_ids) and ((input_ids == self.config.mask_token_id) & (labels != IGNORE_INDEX)).any():
            raise ValueError(
                "`input_ids` must be clean where `labels` are scored when the forward masks them (without `timesteps`, "
                f"or with `mask_noise`), got the mask id {self.config.mask_token_id}."
            )
        check_shape("mask_noise", mask_noise, labels.shape, (labels.shape[0], None, *labels.shape[1:]))
        if mask_noise.dim() > labels.dim():  # copies
            input_ids, labels = (x[:, None].expand(mask_noise.shape) for x in (input_ids, labels))
        return self.masking_process.draw_xt(input_ids, labels, timesteps, mask_noise)

    def _run_network(self, rows: Tensor | None, device: torch.device, **inputs) -> BaseModelOutput:
        """Run the network, for these rows only where it can, and move its hidden states to the inputs' device."""
        selects_rows, keeps_states = self.model.body.selects_rows, self.is_asked_for("output_hidden_states", inputs)
        outputs = self.model(rows=rows if selects_rows and not keeps_states else None, return_dict=True, **inputs)
        # A device map may have put the last layer elsewhere.
        outputs.last_hidden_state = outputs.last_hidden_state.to(device)
        if selects_rows and keeps_states:
            outputs.last_hidden_state = at_rows(outputs.last_hidden_state, rows)
        return outputs

    def _rows_for_head(self, rows: Tensor | None) -> Tensor | None:
        """Rows for the head to select, where it needs the hidden states of all positions; else it is given its own."""
        return None if self.model.body.selects_rows else rows

    def _masked_nelbo(
        self,
        hidden_states: Tensor,
        rows: Tensor | None,
        is_masked: Tensor,
        x0: Tensor,
        t: Tensor,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Diffusion part of the NELBO from the hidden states of masked tokens: its sum, and its value for each token.

        `rows` are the flat indices of the hidden states: all masked tokens, and possibly padding after them. Without
        rows, and where the body does not select them, the hidden states are those of all tokens. `weights` take the
        place of those at the times `t`, whose shape they have.
        """
        process = self.masking_process
        weights = process.weight(t) if weights is None else weights
        target, weight = x0.flatten(), left_broadcast(weights, x0.dim()).expand(x0.shape).flatten()
        if rows is None:
            weight = torch.where(is_masked, weight, 0.0)
            hidden_states = hidden_states.flatten(0, 1) if self.model.body.selects_rows else hidden_states
        else:
            is_masked_row = torch.arange(len(rows), device=rows.device) < is_masked.sum()
            target, weight = target[rows], torch.where(is_masked_row, weight[rows], 0.0)
        total, values = nelbo_of_rows(
            self.lm_head,
            hidden_states,
            torch.where(target < 0, self.config.first_data_token, target),  # of the label -100, the weight is 0
            weight,
            self.config,
            process.exponents(hidden_states.device),
            self._rows_for_head(rows),
        )
        if torch.compiler.is_compiling():
            values = values.detach()  # an output of the graph would be given a gradient of zeros, at a price
        if rows is not None:
            values = values.new_zeros(is_masked.shape).index_add(0, rows, values)
        return total, values.view(x0.shape)

    def _losses(
        self, total: Tensor, values: Tensor, xt: Tensor, labels: Tensor, t: Tensor, copies: int | None, num_items
    ) -> dict[str, Tensor]:
        """Losses in nats; `loss` and `nelbo` are per scored token of this batch, or of the larger one it is part of.

        The gradient of the diffusion part flows through `total`, its sum over all tokens and copies, not through
        `values`.
        """
        process, num_copies = self.masking_process, copies or 1
        num_items = number_of_items(labels != IGNORE_INDEX, num_items, values.device)
        reconstruction = process.reconstruction(labels)
        nelbo = loss = (total / num_copies + reconstruction.sum()) / num_items
        surrogate = None
        if self.training:
            surrogate = process.surrogate(fold_copies(values, num_copies), labels, fold_copies(xt, num_copies), t)
        if surrogate is not None:
            # `total` adds its gradient but not its value, at a fraction of the price of a gradient through `values`.
            loss = (surrogate + (total - total.detach()) / num_copies + reconstruction.sum()) / num_items
            nelbo = nelbo.detach()
        values = fold_copies(values, copies).clone()  # not a view: FSDP2 hooks the outputs, and warns about views
        return {"loss": loss, "nelbo": nelbo, "token_nelbo": values, "reconstruction_nelbo": reconstruction}

    def _check_labels(self, input_ids: Tensor | None, labels: Tensor, position_mask: Tensor | None):
        check_tensor("labels", labels, "integers")
        if input_ids is None:
            raise ValueError("`labels` need `input_ids`: the ids say which positions are masked.")
        if position_mask is not None:
            raise ValueError("`position_mask` cannot be used with `labels`: the loss scores every masked position.")
        axes = len(self.config.sample_shape)
        if input_ids.dim() not in (1 + axes, 2 + axes):
            raise ValueError(
                f"`input_ids` must have {1 + axes} axes, or {2 + axes} with copies, got shape {tuple(input_ids.shape)}."
            )
        if labels.shape != input_ids.shape[:1] + input_ids.shape[-axes:]:  # without copies
            expected, found = tuple(input_ids.shape), tuple(labels.shape)
            raise ValueError(f"`labels` must have the batch and length of `input_ids` {expected}, got {found}.")
        if can_check_values(labels):
            if (labels == self.config.mask_token_id).any():
                raise ValueError(f"`labels` must be clean ids, got the mask id {self.config.mask_token_id}.")
            scored = labels[labels != IGNORE_INDEX]
            check_range("labels", scored, self.config.vocab_size - 1)
            unused = self.config.unused_token_ids
            if unused and is_unused(self.config.vocab_size, unused, labels.device)[scored].any():
                raise ValueError(f"`labels` must be ids of tokens, got ids in the ranges {unused} without a token.")


def fold_copies(x: Tensor | None, copies: int | None) -> Tensor | None:
    """Reshape `(batch * copies, ...)` to `(batch, copies, ...)`; nothing changes without copies."""
    return x if x is None or copies is None else x.unflatten(0, (-1, copies))


def rows_of_copies(copies: int, inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Make the copies rows of a larger batch: of ids and position mask each has its own, all else they share."""
    batch, _, length = inputs["input_ids"].shape[:3]
    if inputs["position_ids"] is not None:
        check_shape("position_ids", inputs["position_ids"], (1, length), (batch, length))
        inputs["position_ids"] = inputs["position_ids"].expand(batch, -1)
    of_copies = {name: inputs.pop(name) for name in ("input_ids", "position_mask")}
    is_shared = {name: isinstance(x, Tensor) and x.dim() > 0 for name, x in inputs.items()}
    rows = {name: x.repeat_interleave(copies, dim=0) if is_shared[name] else x for name, x in inputs.items()}
    return rows | {name: None if x is None else x.flatten(0, 1) for name, x in of_copies.items()}


def needed_rows(position_mask: Tensor | None, is_masked: Tensor | None, max_masked: int | None) -> Tensor | None:
    """Flat indices of the positions where the head is needed, None for all of them."""
    if position_mask is not None:
        return position_mask.flatten().nonzero().squeeze(1)
    return None if is_masked is None else indices_of(is_masked, max_masked)
