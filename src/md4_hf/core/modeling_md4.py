# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The MD4 denoiser: a bidirectional transformer over partly masked text, or a U-Net over images, and its loss.

Source: Shi et al., arXiv:2406.04329, and the official implementation's network, which checkpoints convert to exactly.
"""

import json
import math
import os
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    packed_sequence_mask_function,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    ModelOutput,
    TransformersKwargs,
    cached_file,
    can_return_tuple,
    logging,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.hub import resolve_revision
from transformers.utils.output_capturing import capture_outputs

from .configuration_md4 import MD4Config
from .input_checks import (
    can_check_values,
    check_image,
    check_left_out,
    check_num_items,
    check_per_example,
    check_range,
    check_shape,
    check_tensor,
    check_tokens,
)
from .masked_diffusion import (
    IGNORE_INDEX,
    corrupt,
    cross_entropy_nats,
    discretize_times,
    genmd4_cross_entropy_nats,
    genmd4_reconstruction_nelbo,
    genmd4_token_nelbo,
    log_forward_probability,
    nelbo_weight,
    reconstruction_nelbo,
    rescale_times,
    rloo_surrogate,
    stratified_times,
    token_nelbo,
)
from .modeling_md4_layers import (
    ACTIVATIONS,
    MD4Attention,
    MD4Conditioning,
    MD4Head,
    MD4Layer,
    MD4Modulation,
    MD4RotaryEmbedding,
    at_rows,
    make_norm,
    modulate,
    of_examples,
)
from .modeling_md4_unet import MD4DiT, MD4ImageHead, MD4ResnetBlock, MD4UNet, position_table
from .remote_code import copy_code
from .schedules import MaskingSchedule, TokenPolynomialSchedule, inverse_softplus, make_schedule


logger = logging.get_logger(__name__)

# Standard deviation of a standard normal cut at +-2: what a truncated normal has to be divided by (as in JAX).
TRUNCATED_NORMAL_STD = 0.87962566103423978
GENMD4_COPIES = 2  # noised copies of an example that a training step of GenMD4 draws by itself

# Arguments of the forward that images do not have.
TEXT_ARGUMENTS = ("attention_mask", "position_ids", "inputs_embeds", "document_ids", "past_key_values")
HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags")


@dataclass
class MaskedDiffusionOutput(ModelOutput):
    """
    Output of a masked diffusion model. What is `length` for text is `channels, height, width` for images.

    Args:
        loss (`torch.FloatTensor` of shape `()`): NELBO in nats per scored token, reconstruction term included.
        logits (`torch.FloatTensor` of shape `(batch, length, vocab)`, or `(selected, vocab)` with `position_mask`):
            Logits of the clean tokens; the mask token's is finfo.min.
        token_nelbo (`torch.FloatTensor` of shape `(batch, length)`, with copies `(batch, copies, length)`):
            Diffusion part of the NELBO in nats, zero at unmasked positions.
        hidden_states (`tuple(torch.FloatTensor)`):
            Of shape `(batch, length, hidden_size)`, input and layers; for images input and residual blocks, each of
            shape `(batch, its channels, its height, its width)`.
        attentions (`tuple(torch.FloatTensor)`):
            Of shape `(batch, heads, length, length)`, one per layer; text only.
        nelbo (`torch.FloatTensor` of shape `()`):
            The bound; `loss` is the same, but in GenMD4's training a surrogate that has the right gradient.
        reconstruction_nelbo (`torch.FloatTensor` of shape `(batch,)`): Reconstruction part in nats.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    token_nelbo: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    nelbo: torch.FloatTensor | None = None
    reconstruction_nelbo: torch.FloatTensor | None = None


# ----------------------------------------------------------------------------------------------------------------------
# The models
# ----------------------------------------------------------------------------------------------------------------------


class MD4PreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving of MD4 models."""

    config_class = MD4Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Modules that combine the outputs of their parts: a device map has to put each on one device.
    _no_split_modules = ["MD4Layer", "MD4Conditioning", "MD4ResnetBlock", "MD4AttentionBlock", "MD4DiTLayer", "MD4DiT"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": [MD4Layer, MD4ResnetBlock], "attentions": MD4Attention}
    # What opens a saved folder: the name of the class, by Auto class. Literal, as FSDP2 renames the classes it wraps.
    _auto_map: dict[str, str] = {}

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, push_to_hub: bool = False, **kwargs
    ):
        """As in transformers, with the code beside the weights, so that the Auto classes open the folder anywhere.

        Where this package is not installed, they ask for `trust_remote_code=True`.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs} if push_to_hub else {}
        repo_id = hub.pop("repo_id", Path(save_directory).name)
        self.config.auto_map = dict(self._auto_map)
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        if not self.should_save_on_this_rank(is_main_process):
            return
        # An adapter has neither configuration nor code; a causal model opens with this package alone.
        if self._auto_map and Path(save_directory, CONFIG_NAME).is_file():
            copy_code(__file__, save_directory)
        if push_to_hub:
            self.push_to_hub(repo_id, **hub)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        use_safetensors: bool | None = None,
        **kwargs,
    ):
        """As in transformers, but pickled weights are opened only on request: with `use_safetensors=False`.

        Raises:
            OSError: If there are no weights in safetensors format.
            ValueError: If an index of several files names one that is not beside it.
        """
        if use_safetensors is False:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, use_safetensors=False, **kwargs)
        # A commit in place of "main": for that, transformers would ask a server to convert weights that are pickled.
        hub = {name: kwargs[name] for name in ("revision", "token", "local_files_only", "cache_dir") if name in kwargs}
        revision = resolve_revision(pretrained_model_name_or_path, **hub)
        if revision is not None:
            kwargs["revision"] = hub["revision"] = getattr(revision, "resolved", revision)
        if pretrained_model_name_or_path is not None:
            subfolder, variant = kwargs.get("subfolder", ""), kwargs.get("variant")
            check_shards(str(pretrained_model_name_or_path), variant, subfolder=subfolder, **hub)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, use_safetensors=True, **kwargs)
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise OSError(
                f"{error} Weights are opened in safetensors format; pickled ones, which can run any code, only with "
                "`use_safetensors=False`."
            ) from error

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The official initialisation: truncated normal of variance init_scale / fan_in, normal embeddings."""
        super()._init_weights(module)
        if isinstance(module, TokenPolynomialSchedule):
            init.constant_(module.free_exponents, inverse_softplus(self.config.schedule_power))
        elif isinstance(module, MD4DiT):
            init.copy_(module.position_embedding, position_table(module.grid, self.config.dit_hidden_size))
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            scale, fan_in = getattr(module, "init_scale", 1.0), module.weight[0].numel()
            if scale == 0.0:
                init.zeros_(module.weight)
            else:
                std = math.sqrt(scale / fan_in) / TRUNCATED_NORMAL_STD
                init.trunc_normal_(module.weight, mean=0.0, std=std, a=-2.0 * std, b=2.0 * std)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=module.embedding_dim**-0.5)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any layer is checkpointed; peft asks for it by this name, at which transformers' own warns."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As in transformers. If the mask's row is cut off, the last row left becomes the mask's (with a warning).

        No row changes its values, as in every other model: the new mask has the embedding of the token it replaces.

        Raises:
            ValueError: For a model of images, whose head has a place for every level.
        """
        if self.config.is_image:
            raise ValueError(f"`new_num_tokens` must be left out for a model of images, got {new_num_tokens}.")
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.learn_masking_schedule and hasattr(self, "token_schedule"):
            self.token_schedule.resize(self.config.vocab_size, self.config.schedule_power)
        cut_off, last = self.config.mask_token_id, self.config.vocab_size - 1
        if cut_off > last:
            self.config.mask_token_id = last
            logger.warning(
                f"The vocabulary of {last + 1} tokens has no row for the mask token {cut_off}: the mask token is now "
                f"{last}, with the embedding of the token that was there. Train the model before you sample from it."
            )
        return embeddings


def check_shards(name_or_path: str, variant: str | None, **hub):
    """Raise a ValueError if the index of weights in several files is damaged, or leads out of its folder."""
    name = f"model.safetensors.index.{variant}.json" if variant else SAFE_WEIGHTS_INDEX_NAME
    index_file = cached_file(
        name_or_path,
        name,
        **hub,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index_file is None:
        return
    index = json.loads(Path(index_file).read_text(encoding="utf-8"))
    files = index.get("weight_map") if isinstance(index, dict) and isinstance(index.get("metadata"), dict) else None
    if not isinstance(files, dict) or not all(isinstance(x, str) and Path(x).name == x for x in files.values()):
        raise ValueError(f"`weight_map` in {name} must name files beside it, got {files} in {name_or_path}.")


class MD4Model(MD4PreTrainedModel):
    """The MD4 network that `backbone` names, without its head: ids to hidden states."""

    _auto_map = {"AutoConfig": "configuration_md4.MD4Config", "AutoModel": "modeling_md4.MD4Model"}

    def __init__(self, config: MD4Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size or config.hidden_size)
        self.conditioning = MD4Conditioning(config) if config.is_conditional else None
        self.gradient_checkpointing = False
        if config.is_image:
            self.unet = MD4UNet(config)
        else:
            self._make_transformer(config)
        self.post_init()

    def _make_transformer(self, config: MD4Config):
        self.embed_proj = nn.Linear(config.embedding_size, config.hidden_size) if config.embedding_size else None
        self.embedding_dropout = nn.Dropout(0.0 if config.embedding_size else config.embedding_dropout)
        self.rotary_emb = MD4RotaryEmbedding(config)
        self.layers = nn.ModuleList([MD4Layer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = make_norm(config)
        self.modulation = MD4Modulation(config) if config.is_conditional else None

    @merge_with_config_defaults
    @capture_outputs
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        r"""
        Args:
            input_ids: `(batch, length)` ids of x_t, in [0, vocab_size); of images `(batch, channels, height, width)`,
                for which there are `timesteps` and `class_labels` alone beside.
            timesteps: `(batch,)` times in [0, 1]; required when the model is time-conditioned.
            class_labels: `(batch,)` labels in [0, num_classes); required when the model is class-conditional. With
                `class_dropout` in the configuration `num_classes` is the null class, and None stands for it.
            attention_mask: `(batch, length)`, 1 for tokens and 0 for padding; with `past_key_values` of those too.
            position_ids: `(batch, length)` positions; 0 .. length-1 by default.
            inputs_embeds: `(batch, length, embedding_size)`, in place of `input_ids`.
            document_ids: `(batch, length)`, which document of a packed row a token belongs to, as runs of equal
                numbers: tokens attend within their document only, where positions start at 0. Not with flash attention.
            past_key_values: Keys and values of earlier tokens, which are attended to and stay as they were; those of
                the tokens given are added. Positions go on after them. Only without time conditioning.
            rows: Flat indices `(rows,)` into (batch, length) of the only positions whose hidden states are needed: the
                last layer's feed-forward runs for them alone. Not with `output_hidden_states`.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict` and arguments of the attention backend.

        Returns:
            `last_hidden_state` `(batch, length, hidden_size)`, with `rows` `(rows, hidden_size)`, normalised and
            modulated, ready for the head; of images `(batch, channels of the last block, height, width)`.

        Raises:
            ValueError: For missing inputs, wrong shapes, and ids, times or labels out of range. Values are checked on
                the CPU only: on an accelerator the check would wait for the device at every call.
        """
        check_tokens(input_ids, inputs_embeds)
        tokens = inputs_embeds if input_ids is None else input_ids
        shape = tokens.shape
        if class_labels is None and self.config.null_class is not None:
            class_labels = torch.full(shape[:1], self.config.null_class, device=tokens.device)
        self._check_inputs(input_ids, inputs_embeds, timesteps, class_labels, shape)
        if self.config.is_image:
            given = (attention_mask, position_ids, inputs_embeds, document_ids, past_key_values)
            check_left_out(TEXT_ARGUMENTS, given)
            return self._denoise_image(input_ids, timesteps, class_labels)
        self._check_cache(past_key_values, document_ids)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._check_attention(shape, past, attention_mask, position_ids, document_ids)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        hidden_states = inputs_embeds if self.embed_proj is None else self.embed_proj(inputs_embeds)
        hidden_states = self.embedding_dropout(hidden_states)
        if position_ids is None:
            position_ids = torch.arange(past, past + hidden_states.shape[1], device=hidden_states.device)[None]
            if document_ids is not None:
                position_ids = positions_in_documents(document_ids)
        make_mask = create_causal_mask if self.config.is_causal else create_bidirectional_mask
        attention_mask = make_mask(
            self.config,
            hidden_states,
            attention_mask,
            past_key_values=past_key_values,
            and_mask_function=None if document_ids is None else packed_sequence_mask_function(document_ids),
        )
        rotation = self.rotary_emb(hidden_states, position_ids)
        modulations: tuple[Tensor | None, ...] = (None,) * (len(self.layers) + 1)
        if self.conditioning is not None:
            conditioning = self.conditioning(timesteps, class_labels, hidden_states.dtype)
            modulations = self.modulation(ACTIVATIONS[self.config.mlp_type](conditioning))
        for layer, modulation in zip(self.layers, modulations, strict=False):
            whole, is_last = hidden_states, layer is self.layers[-1]
            hidden_states = layer(
                whole,
                modulation,
                attention_mask=attention_mask,
                rotation=rotation,
                rows=rows if is_last else None,
                past_key_values=past_key_values,
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        if modulations[-1] is not None:
            modulation = of_examples(modulations[-1], whole, rows).to(hidden_states.device)
            hidden_states = modulate(hidden_states, *modulation.chunk(2, dim=-1))
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _denoise_image(
        self, input_ids: Tensor, timesteps: Tensor | None, class_labels: Tensor | None
    ) -> BaseModelOutput:
        # A pixel's features are the embeddings of its channels one after the other, and lie side by side in memory.
        pixels = self.embed_tokens(input_ids.permute(0, 2, 3, 1)).flatten(3).permute(0, 3, 1, 2)
        conditioning = None
        if self.conditioning is not None:
            conditioning = self.conditioning(timesteps, class_labels, pixels.dtype)
        return BaseModelOutput(last_hidden_state=self.unet(pixels, conditioning))

    def _check_inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        timesteps: Tensor | None,
        class_labels: Tensor | None,
        shape: torch.Size,
    ):
        if self.config.is_image and input_ids is not None:
            check_image(input_ids, self.config)
        elif inputs_embeds is not None:
            width = self.config.embedding_size or self.config.hidden_size
            check_shape("inputs_embeds", inputs_embeds, (None, None, width))
        elif input_ids.dim() != 2:
            raise ValueError(f"`input_ids` must have shape (batch, length), got {tuple(input_ids.shape)}.")
        if input_ids is not None:
            check_range("input_ids", input_ids, self.config.vocab_size - 1)
        if self.config.time_conditioning:
            check_per_example("timesteps", timesteps, shape[0], "the model is time-conditioned")
            check_range("timesteps", timesteps, 1)
        if self.config.num_classes is not None:
            check_per_example("class_labels", class_labels, shape[0], "the model is class-conditional")
            check_tensor("class_labels", class_labels, "integers")
            check_range("class_labels", class_labels, self.config.null_class or self.config.num_classes - 1)

    def _check_attention(
        self,
        shape: torch.Size,
        past: int,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        document_ids: Tensor | None,
    ):
        batch, length = shape[:2]
        # One of four dimensions is left to the attention's backend.
        if attention_mask is not None and len(getattr(attention_mask, "shape", ())) != 4:
            check_shape("attention_mask", attention_mask, (batch, past + length))
        if position_ids is not None:
            check_shape("position_ids", position_ids, (batch, length), (1, length))
            check_tensor("position_ids", position_ids, "integers")
        if document_ids is None:
            return
        check_shape("document_ids", document_ids, (batch, length))
        check_tensor("document_ids", document_ids, "integers")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                f"`attention_mask` must be (batch, length) with `document_ids`, got {tuple(attention_mask.shape)}."
            )
        if self.config._attn_implementation not in ("eager", "sdpa", "flex_attention"):
            raise ValueError(
                "`document_ids` need eager, SDPA or flex attention, got attn_implementation="
                f"{self.config._attn_implementation!r}."
            )

    def _check_cache(self, past_key_values: Cache | None, document_ids: Tensor | None):
        if past_key_values is None:
            return
        if self.config.time_conditioning:
            raise ValueError("`past_key_values` need a model without `time_conditioning`: keys change with the time.")
        if document_ids is not None:
            raise ValueError("Only one of `past_key_values` and `document_ids` may be given.")
        if self.training and self.is_gradient_checkpointing:
            raise ValueError("`past_key_values` must be None in training with gradient checkpointing.")


class MD4ForMaskedDiffusion(MD4PreTrainedModel):
    """The MD4 network with its head, and the negative evidence lower bound of masked diffusion as its loss."""

    _auto_map = {
        "AutoConfig": "configuration_md4.MD4Config",
        "AutoModel": "modeling_md4.MD4ForMaskedDiffusion",
        "AutoModelForMaskedLM": "modeling_md4.MD4ForMaskedDiffusion",
    }
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # Learned exponents are in float32 whatever the precision of the weights.
    _keep_in_fp32_modules_strict = ["token_schedule"]
    # The loss honours `num_items_in_batch`: `Trainer` must not divide it again by the accumulation steps.
    accepts_loss_kwargs = True

    def __init__(self, config: MD4Config):
        if config.is_causal:
            raise ValueError("`config` must have `is_causal=False` for MD4ForMaskedDiffusion, got True.")
        super().__init__(config)
        self.model = MD4Model(config)
        if config.is_image:
            self.lm_head = MD4ImageHead(self.model.unet.out_channels, config.num_channels, config.vocab_size)
        else:
            self.lm_head = MD4Head(config.hidden_size, config.vocab_size, bias=False)
            self.lm_head.init_scale = 0.0
        if config.learn_masking_schedule:
            self.token_schedule = TokenPolynomialSchedule(
                config.vocab_size, power=config.schedule_power, eps=config.schedule_eps
            )
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head: a linear layer of `vocab_size` rows, for images a convolution of so many for each channel."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        """Replace the head."""
        if type(new_embeddings) is nn.Linear:  # as transformers makes them
            new_embeddings.__class__ = MD4Head
        self.lm_head = new_embeddings

    @property
    def masking_schedule(self) -> MaskingSchedule | TokenPolynomialSchedule:
        """The masking schedule that the configuration names, or the learned ones of GenMD4."""
        config = self.config
        if config.learn_masking_schedule:
            return self.token_schedule
        return make_schedule(config.masking_schedule, power=config.schedule_power, eps=config.schedule_eps)

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedDiffusionOutput:
        r"""
        Args:
            input_ids: `(batch, length)` ids of x_t, or `(batch, copies, length)`: several x_t of each example, at the
                same time. With `labels` and without `timesteps`, `(batch, length)` clean ids: the times and masks (and
                in training which labels are dropped) are then drawn here, stratified over the batch, from torch's
                global generator. For images, `length` is `channels, height, width` here and below.
            timesteps: `(batch,)` times in [0, 1]; required by time-conditioned models. With them, no noise is drawn.
            labels: `(batch, length)` clean ids x_0 of all tokens that are scored, -100 elsewhere. Tokens that are not
                scored must not be masked.
            class_labels: `(batch,)` labels of a class-conditional model, see `MD4Model.forward`. transformers' own
                `Trainer` takes them for targets by their name: to evaluate with it, set `label_names=["labels"]` in its
                arguments.
            attention_mask: `(batch, length)`, 1 for tokens and 0 for padding.
            position_ids: `(batch, length)` positions; 0 .. length-1 by default.
            inputs_embeds: `(batch, length, embedding_size)`, in place of `input_ids` when there are no labels.
            position_mask: Of the shape of `input_ids`: evaluate the head only where it is true.
            mask_noise: Uniform numbers in [0, 1) of shape `(batch, length)` or `(batch, copies, length)`: `input_ids`
                are then clean, `(batch, length)`, and masked here where alpha_t is not larger. Learned schedules,
                which may be sharded over devices, are applied in this way.
            num_items_in_batch: Number of scored tokens to divide the loss by, when the batch is a part of a larger one.
            output_logits: Whether to return logits; by default they are, but not in training with labels, where the
                last feed-forward and the head run on masked positions only, and no logits of all of them ever exist.
                Compiled, `token_nelbo` then has no gradient, and `loss` never has a second derivative.
            document_ids: `(batch, length)`, which document of a packed row a token belongs to: see `MD4Model.forward`.
            past_key_values: Keys and values of earlier tokens: see `MD4Model.forward`.
            max_masked: No more masked tokens than this are in the batch (it is an error if there are). With it, a step
                on an accelerator does not wait to hear how many there are, and a compiled one runs for so many.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict` and arguments of the attention backend.

        Returns:
            `MaskedDiffusionOutput`.

        Raises:
            ValueError: As `MD4Model.forward`, and for labels of another shape than the input or that hold the mask id.
        """
        check_tokens(input_ids, inputs_embeds)
        if labels is not None:
            self._check_labels(input_ids, labels, position_mask)
            if timesteps is None:
                timesteps, mask_noise = self._draw_noise(labels)
                class_labels = self._drop_labels(class_labels)
            check_per_example("timesteps", timesteps, labels.shape[0], "`labels` are given")
            check_range("timesteps", timesteps, 1)
            if mask_noise is not None:
                self._check_clean(input_ids, labels)
                check_shape("mask_noise", mask_noise, labels.shape, (labels.shape[0], None, *labels.shape[1:]))
                input_ids = self._mask(input_ids, labels, timesteps, mask_noise)
        elif mask_noise is not None:
            raise ValueError("`mask_noise` needs `labels`: it is for the loss.")
        if position_mask is not None:
            check_shape(
                "position_mask", position_mask, inputs_embeds.shape[:2] if input_ids is None else input_ids.shape
            )
        if max_masked is not None and not (isinstance(max_masked, Integral) and max_masked >= 0):
            raise ValueError(f"`max_masked` must be an integer >= 0, got {max_masked!r}.")
        check_num_items(num_items_in_batch)
        copies = None if input_ids is None or input_ids.dim() != self._copies_dim else input_ids.shape[1]
        if copies is not None:
            # Copies are rows of a larger batch.
            if position_ids is not None:
                check_shape("position_ids", position_ids, *((n, input_ids.shape[2]) for n in (1, input_ids.shape[0])))
                position_ids = position_ids.expand(input_ids.shape[0], -1)
            shared = (timesteps, labels, class_labels, attention_mask, position_ids, document_ids)
            row_timesteps, row_labels, class_labels, attention_mask, position_ids, document_ids = (
                x.repeat_interleave(copies, dim=0) if isinstance(x, Tensor) and x.dim() else x for x in shared
            )
            input_ids, position_mask = (x if x is None else x.flatten(0, 1) for x in (input_ids, position_mask))
        else:
            row_timesteps, row_labels = timesteps, labels
        if output_logits is None:
            output_logits = labels is None or not self.training
        rows, is_masked = None, None
        if position_mask is not None:
            rows = position_mask.flatten().nonzero().squeeze(1)
        elif labels is not None and not output_logits:
            is_masked = ((input_ids == self.config.mask_token_id) & (row_labels != IGNORE_INDEX)).flatten()
            rows = indices_of(is_masked, max_masked)
        keeps_all = self._keeps_all(kwargs.get("output_hidden_states"))
        outputs = self.model(
            input_ids=input_ids,
            timesteps=row_timesteps,
            class_labels=class_labels,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            document_ids=document_ids,
            past_key_values=past_key_values,
            rows=None if keeps_all else rows,
            return_dict=True,
            **kwargs,
        )
        # Back to the inputs and labels, if a device map has put the last layer (or the head, below) elsewhere.
        hidden_states = outputs.last_hidden_state.to((inputs_embeds if input_ids is None else input_ids).device)
        if keeps_all and not self.config.is_image:
            hidden_states = at_rows(hidden_states, rows)
        logits = self._logits(hidden_states, rows) if output_logits else None
        losses: dict[str, Tensor] = {}
        if labels is not None:
            if logits is None:
                total, nelbo_per_token = self._masked_nelbo(hidden_states, rows, is_masked, row_labels, row_timesteps)
            else:
                nelbo_per_token = self._token_nelbo(logits, input_ids, row_labels, row_timesteps)
                total = nelbo_per_token.sum()
            losses = self._losses(
                total, nelbo_per_token, input_ids, labels, timesteps, copies or 1, num_items_in_batch
            )
            # No view: FSDP2 hooks the outputs, and warns of views.
            losses["token_nelbo"] = fold_copies(nelbo_per_token, copies).clone()
        if logits is not None and position_mask is None:
            logits = fold_copies(logits, copies)
        return MaskedDiffusionOutput(
            logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions, **losses
        )

    @property
    def _copies_dim(self) -> int:
        """Number of axes of ids with copies: batch and copies before those of an example."""
        return 2 + len(self.config.sample_shape)

    def _keeps_all(self, output_hidden_states: bool | None) -> bool:
        """Whether the network gives hidden states of all positions, and not of the needed rows alone."""
        asked = output_hidden_states or getattr(self.config, "output_hidden_states", False)
        return self.config.is_image or asked

    def _logits(self, hidden_states: Tensor, rows: Tensor | None) -> Tensor:
        """Logits that never predict the mask."""
        return logits_of(self.lm_head, hidden_states, self.config.mask_token_id, self._for_the_head(rows))

    def _for_the_head(self, rows: Tensor | None) -> Tensor | None:
        """The rows that the head picks itself: that of images sees a pixel's neighbours; of text it is given those."""
        return rows if self.config.is_image else None

    def _draw_noise(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Times for a clean batch, and the uniform numbers that mask it: two copies in GenMD4's training."""
        batch, *shape = labels.shape
        offset = torch.rand((), device=labels.device)
        timesteps = stratified_times(offset, torch.arange(batch, device=labels.device), batch)
        config = self.config
        if config.num_train_timesteps is not None:
            timesteps = discretize_times(timesteps, config.num_train_timesteps)
        if config.learn_masking_schedule:
            timesteps = rescale_times(timesteps, config.schedule_first_time)
        copies = (GENMD4_COPIES,) if config.learn_masking_schedule and self.training else ()
        return timesteps, torch.rand((batch, *copies, *shape), device=labels.device)

    def _drop_labels(self, class_labels: Tensor | None) -> Tensor | None:
        """Labels of which some are replaced by the null class, in the training of a model that has one."""
        if not (self.training and self.config.null_class is not None and isinstance(class_labels, Tensor)):
            return class_labels
        is_dropped = torch.rand(class_labels.shape, device=class_labels.device) < self.config.class_dropout
        return class_labels.masked_fill(is_dropped, self.config.null_class)

    def _mask(self, x0: Tensor, labels: Tensor, timesteps: Tensor, mask_noise: Tensor) -> Tensor:
        """x_t for a clean batch, of the shape of the noise; tokens that are not scored stay."""
        if mask_noise.dim() == self._copies_dim:
            x0, labels = (x[:, None].expand(mask_noise.shape) for x in (x0, labels))
        if self.config.learn_masking_schedule:
            alpha_t = self.token_schedule.alpha_of(timesteps.float(), x0).detach()
        else:
            alpha_t = self.masking_schedule.alpha(timesteps)
        xt = corrupt(x0, alpha_t, self.config.mask_token_id, noise=mask_noise)
        return torch.where(labels != IGNORE_INDEX, xt, x0)

    def _exponents(self, device: torch.device) -> Tensor | None:
        """GenMD4's learned exponents, `(vocab,)`."""
        return self.token_schedule.exponents.to(device) if self.config.learn_masking_schedule else None

    def _weight(self, t: Tensor) -> Tensor:
        """What a masked token's term is multiplied by at its example's time, `(rows,)` float32."""
        if self.config.learn_masking_schedule:
            return 1.0 / t
        return nelbo_weight(self.masking_schedule, t, self.config.num_train_timesteps)

    def _token_nelbo(self, logits: Tensor, xt: Tensor, x0: Tensor, timesteps: Tensor) -> Tensor:
        """Diffusion part of the NELBO of each token, of the shape of the ids, from all logits."""
        mask_token_id, t, exponents = self.config.mask_token_id, timesteps.float(), self._exponents(logits.device)
        if exponents is not None:
            return genmd4_token_nelbo(logits, x0, xt, exponents, t, mask_token_id)
        return token_nelbo(logits, x0, xt, self._weight(t), mask_token_id)

    def _masked_nelbo(
        self, hidden_states: Tensor, rows: Tensor | None, is_masked: Tensor, x0: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same from the hidden states of the masked tokens alone; and the sum, for its cheaper gradient.

        `rows` are flat indices of the `hidden_states`, of all masked tokens and perhaps, to fill up, of others; without
        them the hidden states are those of all tokens. Those of images are always whole.
        """
        target, weight = x0.flatten(), self._weight(timesteps.float()).repeat_interleave(x0[0].numel())
        if rows is None:
            weight = torch.where(is_masked, weight, 0.0)
            hidden_states = hidden_states if self.config.is_image else hidden_states.flatten(0, 1)
        else:
            is_wanted = torch.arange(len(rows), device=rows.device) < is_masked.sum()
            target, weight = target[rows], torch.where(is_wanted, weight[rows], 0.0)
        any_token = int(self.config.mask_token_id == 0)  # in the place of labels of -100, whose weight is 0
        target = torch.where(target < 0, any_token, target)
        picked = self._for_the_head(rows)
        total, values = nelbo_of_rows(
            self.lm_head,
            hidden_states,
            target,
            weight,
            self.config.mask_token_id,
            self._exponents(hidden_states.device),
            picked,
        )
        if torch.compiler.is_compiling():
            values = values.detach()  # as an output of the graph it would be given a gradient, of zeros, at a price
        if rows is not None:
            values = values.new_zeros(is_masked.shape).index_add(0, rows, values)
        return total, values.view(x0.shape)

    def _losses(
        self,
        total: Tensor,
        nelbo_per_token: Tensor,
        xt: Tensor,
        labels: Tensor,
        timesteps: Tensor,
        copies: int,
        num_items_in_batch: Tensor | int | None,
    ) -> dict[str, Tensor]:
        """`loss` and `nelbo` in nats over the scored tokens (those here, or of the whole batch this is a part of).

        The gradient of the diffusion part goes through its `total` over all tokens and copies.
        """
        scored = labels != IGNORE_INDEX
        num_items = number_of_items(scored, num_items_in_batch, nelbo_per_token.device)
        reconstruction = self._reconstruction(labels, scored)
        nelbo = loss = (total / copies + reconstruction.sum()) / num_items
        if self.config.learn_masking_schedule and self.training:
            t, x0 = (x.repeat_interleave(copies, dim=0) for x in (timesteps.float(), labels))
            log_q = log_forward_probability(self.token_schedule, t, x0, xt, self.config.mask_token_id)
            log_q = log_q.flatten(1).sum(dim=1)
            diffusion = fold_copies(nelbo_per_token.detach().flatten(1).sum(dim=1), copies)  # (batch, copies)
            surrogate = rloo_surrogate(diffusion, fold_copies(log_q, copies)).sum()
            # The same number as with the gradient of each value, at a fraction of its price.
            loss = (surrogate + (total - total.detach()) / copies + reconstruction.sum()) / num_items
            nelbo = nelbo.detach()
        return {"loss": loss, "nelbo": nelbo, "reconstruction_nelbo": reconstruction}

    def _reconstruction(self, labels: Tensor, scored: Tensor) -> Tensor:
        """Reconstruction part of the NELBO of each example, `(batch,)` nats."""
        if not self.config.learn_masking_schedule:
            num_scored = scored.flatten(1).sum(dim=1)
            return reconstruction_nelbo(self.masking_schedule, num_scored, self.config.vocab_size - 1)
        first_time, mask_token_id = self.config.schedule_first_time, self.config.mask_token_id
        nelbo = genmd4_reconstruction_nelbo(labels, self.token_schedule, first_time, mask_token_id)
        return nelbo.flatten(1).sum(dim=1)

    def _check_clean(self, input_ids: Tensor, labels: Tensor):
        if input_ids.shape != labels.shape:
            raise ValueError(
                f"`input_ids` must be clean and have the shape {tuple(labels.shape)} of `labels` here, got "
                f"{tuple(input_ids.shape)}."
            )
        if can_check_values(input_ids) and ((input_ids == self.config.mask_token_id) & (labels != IGNORE_INDEX)).any():
            raise ValueError(
                "`input_ids` must be clean where `labels` are scored if no `timesteps` (or `mask_noise`) are given, "
                f"and the forward masks them, got the mask id {self.config.mask_token_id}."
            )

    def _check_labels(self, input_ids: Tensor | None, labels: Tensor, position_mask: Tensor | None):
        check_tensor("labels", labels, "integers")
        if input_ids is None:
            raise ValueError("`labels` need `input_ids`: which positions are masked is read from the ids.")
        if position_mask is not None:
            raise ValueError("`position_mask` cannot be used with `labels`: the loss scores every masked position.")
        axes = len(self.config.sample_shape)
        if input_ids.dim() not in (1 + axes, 2 + axes):
            raise ValueError(
                f"`input_ids` must have {1 + axes} axes, or {2 + axes} with copies, got shape {tuple(input_ids.shape)}."
            )
        if labels.shape != input_ids.shape[:1] + input_ids.shape[-axes:]:  # without copies
            raise ValueError(
                f"`labels` must have the batch and length of `input_ids` {tuple(input_ids.shape)}, got "
                f"{tuple(labels.shape)}."
            )
        if can_check_values(labels):
            if (labels == self.config.mask_token_id).any():
                raise ValueError(f"`labels` must be clean ids, got the mask id {self.config.mask_token_id}.")
            scored = labels[labels != IGNORE_INDEX]
            check_range("labels", scored, self.config.vocab_size - 1)


# ----------------------------------------------------------------------------------------------------------------------
# Logits and losses of rows, copies, packed documents, and checks of the inputs
# ----------------------------------------------------------------------------------------------------------------------


def nelbo_of_rows(
    head: nn.Module,
    hidden_states: Tensor,
    target: Tensor,
    weight: Tensor,
    mask_token_id: int,
    exponents: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum `()` and values `(rows,)` of weighted tokens in nats, from their hidden states; where it is chosen how.

    Of images the logits are made: they are no wider than what the blocks keep for their gradients. So are those of a
    head that an adapter or a quantiser has put in place of ours.

    Args:
        head: The head.
        hidden_states: `(rows, hidden)`; of images whole, `(batch, channels, height, width)`.
        target: `(rows,)` clean ids.
        weight: `(rows,)` weights.
        mask_token_id: The mask id.
        exponents: `(vocab,)` w of GenMD4.
        rows: Flat indices of the tokens, for a head of images; None for all of them.
    """
    if isinstance(head, MD4Head):
        total, values = head(hidden_states, target, weight, mask_token_id, exponents)
        return total.to(hidden_states.device), values.to(hidden_states.device)
    logits = logits_of(head, hidden_states, mask_token_id, rows).flatten(0, -2)
    if exponents is not None:
        values = weight * genmd4_cross_entropy_nats(logits, target, exponents)
    else:
        values = weight * cross_entropy_nats(logits, target)
    return values.sum(), values


def logits_of(head: nn.Module, hidden_states: Tensor, mask_token_id: int, rows: Tensor | None = None) -> Tensor:
    """Logits `(..., vocab)` on the device of the hidden states; with `rows`, a head of images picks these."""
    logits = head(hidden_states) if rows is None else head(hidden_states, rows)
    return suppress_mask(logits.to(hidden_states.device), mask_token_id)


def number_of_items(scored: Tensor, num_items: Tensor | int | None, device: torch.device) -> Tensor | int:
    """What a loss is divided by: the number given, on this device, or else that of the scored tokens, at least 1."""
    num_items = scored.sum().clamp(min=1) if num_items is None else num_items
    return num_items.to(device) if isinstance(num_items, Tensor) else num_items


def suppress_mask(logits: Tensor, mask_token_id: int) -> Tensor:
    """Logits `(..., vocab)` with the mask's at finfo.min: no model predicts the mask. This is the one place."""
    is_mask = torch.arange(logits.shape[-1], device=logits.device) == mask_token_id
    return logits.masked_fill(is_mask, torch.finfo(logits.dtype).min)


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """`(batch, length)` runs of equal numbers -> the place of each token in its run, from 0."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    starts = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def indices_of(is_chosen: Tensor, at_most: int | None) -> Tensor | None:
    """Indices of the true elements of `(n,)`, filled up with zeros where their number is not known; None for all.

    On the CPU it is. On an accelerator it takes a wait, unless a bound is given. A compiled graph has one size, that of
    the bound or all.
    """
    if not torch.compiler.is_compiling() and (at_most is None or is_chosen.device.type == "cpu"):
        indices = is_chosen.nonzero().squeeze(1)
        if at_most is not None and len(indices) > at_most:
            raise ValueError(f"`max_masked` must be at least the {len(indices)} masked tokens, got {at_most}.")
        return indices
    if at_most is None or at_most >= len(is_chosen):
        return None
    torch._assert_async(
        is_chosen.sum() <= at_most, "`max_masked` must not be smaller than the number of masked tokens"
    )
    return torch.nonzero_static(is_chosen, size=at_most, fill_value=0).squeeze(1)


def fold_copies(x: Tensor, copies: int | None) -> Tensor:
    """`(batch * copies, ...)` -> `(batch, copies, ...)`; as it is without copies."""
    return x if copies is None else x.unflatten(0, (-1, copies))
