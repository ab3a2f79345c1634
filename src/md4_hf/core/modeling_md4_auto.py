# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Any language model of transformers as the network of an MD4 model: `backbone="auto"`.

The body is the model class of transformers, a masked or a causal one, without its last linear layer, which becomes the
head of the MD4 model; a transform before that layer, as BERT's, stays in the body. A causal model attends both ways
with `is_causal=False` in its configuration. The next-token alignment, and the attention that is opened little by
little, are those of DiffuLLaMA (Gong et al., arXiv:2410.17891) and Dream (Ye et al., arXiv:2508.15487).
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations import deepspeed as deepspeed_settings
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from .block_layout import BlockLayout, positions_in_documents
from .configuration_md4 import MD4Config
from .input_checks import unused_ranges
from .modeling_md4_base import has_tokenizer
from .modeling_md4_body import BodyInputs, TextBody, attention_mask_of
from .modeling_md4_layers import MD4Head, at_rows


PROBE_LENGTH = 4  # tokens of the passes that a new model is tried with
PROBE_TOLERANCE = 1e-3  # of its logits, relative to the largest, in whatever precision the weights have


def language_model_class(config) -> Any:
    """Auto class that makes the language model of a configuration: for masked models, or for causal ones.

    Raises:
        ValueError: If transformers has no language model of this type, or one that is no stack of attention layers.
    """
    kind = config.model_type
    names = {auto: mapping.get(kind) for auto, mapping in AUTO_CLASSES.items()}
    if config.is_encoder_decoder or not any(names.values()):
        raise ValueError(f"`backbone_config` must be of a masked or a causal language model, got {kind!r}.")
    layers = {layer for layer in layer_types(config) if not is_softmax_attention(layer)}
    if getattr(config, "num_attention_heads", None) is None or layers:
        found = f"{kind!r} with layers of {sorted(layers)}" if layers else repr(kind)
        raise ValueError(f"`backbone_config` must be of a model whose layers all attend to all tokens, got {found}.")
    named = [auto for auto, name in names.items() if name in (config.architectures or ())]
    decoders = [AutoModelForCausalLM] if getattr(config, "is_decoder", False) else []
    return next(auto for auto in (*named, *decoders, *names) if names[auto] is not None)


AUTO_CLASSES: dict[Any, Any] = {
    AutoModelForMaskedLM: MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


def layer_types(config) -> list[str]:
    """Kinds of a model's layers, where its configuration names them."""
    names = ("layer_types", "layers_block_type")
    return next((list(types) for name in names if (types := getattr(config, name, None))), [])


def is_softmax_attention(layer_type: str) -> bool:
    """Whether a name in `layer_types` is that of attention proper, and of no recurrence."""
    return layer_type.endswith("attention") and not layer_type.startswith("linear")


def cut_head(language_model: PreTrainedModel) -> nn.Linear:
    """Take the last linear layer out of a language model, whose logits are then the inputs of that layer.

    Raises:
        ValueError: If there is no such layer.
    """
    head = language_model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        kind = type(language_model).__name__
        raise ValueError(f"`name_or_path` must be of a model with a linear head, got {kind} with {head}.")
    path = next(name for name, module in language_model.named_modules() if module is head)
    language_model.set_submodule(path, nn.Identity())
    # The owner was initialised when it was made. transformers 5.9 would do it again, and ask for the head.
    language_model.get_submodule(path.rpartition(".")[0])._is_hf_initialized = True
    inside = f"{language_model.base_model_prefix}."
    for tied, source in dict(language_model._tied_weights_keys or {}).items():
        if tied.startswith(f"{path}.") and not source.startswith(inside):  # a second name of the bias
            owner, _, name = source.rpartition(".")
            language_model.get_submodule(owner).register_parameter(name, None)
    language_model._tied_weights_keys = None
    language_model.all_tied_weights_keys = {}
    return head


class AutoBody(TextBody):
    """A language model of transformers without its head: `backbone` of the model."""

    records_states = True

    def build(self, model: PreTrainedModel, config: MD4Config):
        """Make the language model of `backbone_config`, and note the shape of its head."""
        auto = language_model_class(config.backbone_config)
        language_model = auto.from_config(config.backbone_config, dtype=torch.get_default_dtype())
        self.take(model, language_model, cut_head(language_model))

    def take(self, model: PreTrainedModel, language_model: PreTrainedModel, head: nn.Linear):
        """Make this language model, whose head was cut, the network of the model."""
        model.config.backbone_config = language_model.config  # one object: attention is switched in both
        model.backbone = language_model
        model.head_shape = {
            "in_features": head.in_features,
            "out_features": head.out_features,
            "bias": head.bias is not None,
        }
        model.first_position, model.num_positions = learned_positions(language_model)
        if model.config.block_size is not None:
            check_sees_blocks(self, model)

    def new_head(self, model: PreTrainedModel, config: MD4Config) -> nn.Module:
        """Make a linear head of the shape of the language model's."""
        return MD4Head(**model.head_shape)

    def embedding_name(self, model: PreTrainedModel) -> str:
        """Name of the module that embeds the ids."""
        embeddings = model.backbone.get_input_embeddings()
        return next(name for name, module in model.named_modules() if module is embeddings)

    def check_inputs(self, model: PreTrainedModel, inputs: BodyInputs, options: dict):
        """Raise a ValueError for inputs that do not fit the model, and for more tokens than it has positions."""
        super().check_inputs(model, inputs, options)
        length = inputs.num_past + inputs.tokens.shape[1]
        if model.num_positions is not None and length > model.num_positions:
            raise ValueError(
                f"`input_ids` must have at most {model.num_positions} tokens, the backbone's positions, got {length}."
            )
        mask = inputs.attention_mask
        of_pairs = {
            "block_size": model.config.block_size is not None,
            "document_ids": inputs.document_ids is not None,
            "attention_mask": mask is not None and mask.dim() == 4,
        }
        name = next((name for name, is_given in of_pairs.items() if is_given), None)
        obstacle = None if name is None else obstacle_to_pair_masks(model.backbone, length)
        if obstacle is not None:
            raise ValueError(f"`{name}` must not hide tokens from some others of a row for a backbone {obstacle}.")

    def check_cache(self, model: PreTrainedModel, document_ids: Tensor | None):
        """Raise a ValueError where keys and values of earlier tokens cannot be used."""
        super().check_cache(model, document_ids)
        config = model.config
        loses_state = config.predicts_next and config.block_size is None  # of the token before the first one
        if loses_state or language_model_class(config.backbone_config) is not AutoModelForCausalLM:
            raise ValueError(
                "`past_key_values` must be None for a backbone that keeps none, or that predicts the next token without"
                " `block_size`: sample from it in blocks with `use_cache=False`."
            )

    def run(self, model: PreTrainedModel, inputs: BodyInputs, **options) -> BaseModelOutput:
        """Hidden states `(batch, length, width)` for the head, or those of the rows, from the language model."""
        config, past, tokens = model.config, inputs.past_key_values, inputs.tokens
        layout = None if config.block_size is None else self.layout(config, inputs, self.positions(inputs))
        name = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
        tokens = tokens if inputs.clean_ids is None else torch.cat([tokens, inputs.clean_ids], dim=1)
        arguments = {name: tokens, **self._attention(model, inputs, layout)}
        if past is not None:
            arguments |= {"past_key_values": past, "use_cache": True}
        elif language_model_class(config.backbone_config) is AutoModelForCausalLM:
            arguments["use_cache"] = False
        last_state = state_in_cache(past) if inputs.num_past and config.predicts_next else None
        recorded = ("output_hidden_states", "output_attentions")
        options = {name: getattr(config, name) for name in recorded} | options
        outputs = model.backbone(**arguments, **options, return_dict=True)
        states = outputs.logits  # of the identity in place of the head
        if config.predicts_next:
            if past is not None:
                keep_state(past, states)
            states = states_before(states, inputs, layout, last_state)
        elif inputs.clean_ids is not None:
            states = states[:, : inputs.tokens.shape[1]]
        return BaseModelOutput(
            last_hidden_state=at_rows(states, inputs.rows),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _attention(self, model: PreTrainedModel, inputs: BodyInputs, layout: BlockLayout | None) -> dict:
        """Mask and positions for the language model."""
        position_ids = inputs.position_ids
        if layout is not None:
            position_ids = layout.doubled(self.positions(inputs))
        elif position_ids is None and inputs.document_ids is not None:
            position_ids = positions_in_documents(inputs.document_ids)
        mask, backbone = inputs.attention_mask, model.backbone
        has_blocks = layout is not None and not inputs.num_past
        if has_blocks or inputs.document_ids is not None:
            batch, length = inputs.tokens.shape[:2]
            tokens = 2 * length if inputs.clean_ids is not None else length
            states = torch.empty(batch, tokens, 1, dtype=backbone.dtype, device=inputs.tokens.device)
            mask = attention_mask_of(backbone.config, keeps_causal(backbone.config), states, inputs, layout)
        elif mask is not None and mask.dim() == 4:  # eager attention adds it
            mask = additive(mask, backbone.dtype) if mask.dtype == torch.bool else mask.to(backbone.dtype)
        arguments = {"attention_mask": mask}
        if position_ids is not None:
            arguments["position_ids"] = position_ids + model.first_position
        return arguments


def additive(is_open: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where attention is open, finfo.min elsewhere."""
    return torch.zeros(is_open.shape, dtype=dtype, device=is_open.device).masked_fill(~is_open, torch.finfo(dtype).min)


def without_padding(is_open: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mask `(batch, 1, length, length)` of pairs `(batch, length, length)`, in which padding is seen by itself only."""
    if attention_mask is not None:
        itself = torch.eye(is_open.shape[-1], dtype=torch.bool, device=is_open.device)
        is_open = (is_open & (attention_mask[:, None, :] != 0)) | itself
    return is_open[:, None]


def states_before(
    states: Tensor, inputs: BodyInputs, layout: BlockLayout | None = None, last_state: Tensor | None = None
) -> Tensor:
    """Hidden states `(batch, length, width)`, moved to the next position, whose token they predict.

    The first token of a row and of a document, and one behind padding, have none before them and keep their own. The
    first of a block has that of the decided token before it.

    Args:
        states: `(batch, length, width)`, or `(batch, 2 length, width)` where those of x_0 follow.
        inputs: Inputs of the body.
        layout: Blocks of a block model.
        last_state: State `(batch, 1, width)` of the token before the first one, which is in the cache.
    """
    batch, length = inputs.tokens.shape[:2]
    own, mask = states[:, :length], inputs.attention_mask
    before = torch.cat([own[:, :1] if last_state is None else last_state, own[:, :-1]], dim=1)
    if layout is not None and layout.has_clean:
        of_clean = states[:, length:].roll(1, dims=1)
        before = torch.where(layout.begins()[..., None], of_clean, before)
    is_first = torch.zeros((batch, length), dtype=torch.bool, device=states.device)
    is_first[:, 0] = last_state is None
    if inputs.document_ids is not None:
        is_first[:, 1:] |= inputs.document_ids[:, 1:] != inputs.document_ids[:, :-1]
    if mask is not None and mask.dim() == 2:
        is_first |= F.pad(mask[:, :-1] == 0, (1, 0))[:, -length:]
    return torch.where(is_first[..., None], own, before)


def keep_state(past_key_values: Cache, states: Tensor):
    """Add the last hidden states `(batch, length, width)` to a cache, as keys without values of one more layer."""
    layers = past_key_values.layers
    if not has_states(past_key_values):
        layers.append(DynamicLayer())
    layers[-1].update(states[:, None], states[:, None, :, :0])


def has_states(past_key_values: Cache) -> bool:
    """Whether a cache has hidden states that `keep_state` added."""
    layers = past_key_values.layers
    return bool(layers) and layers[-1].is_initialized and layers[-1].values.shape[-1] == 0


def state_in_cache(past_key_values: Cache) -> Tensor:
    """Hidden state `(batch, 1, width)` of the last token in a cache."""
    if not has_states(past_key_values):
        raise ValueError("`past_key_values` must come from this model, which keeps its last states there too.")
    return past_key_values.layers[-1].keys[:, 0, -1:]


def learned_positions(language_model: PreTrainedModel) -> tuple[int, int | None]:
    """Number of the first position, and how many tokens there is room for: None without learned positions.

    The positions of RoBERTa begin behind the row of the padding.
    """
    tokens = language_model.get_input_embeddings()
    rows = getattr(language_model.config, "max_position_embeddings", None)
    tables = [m for m in language_model.modules() if isinstance(m, nn.Embedding) and m is not tokens]
    table = next((table for table in tables if table.num_embeddings == rows), None)
    if table is None:
        return 0, None
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return first, table.num_embeddings - first


def obstacle_to_pair_masks(backbone: PreTrainedModel, length: int) -> str | None:
    """Kind of backbone that a mask of pairs of tokens cannot be given to at this length; None where it can.

    Such a mask would take the place of that of a sliding window, and old models read masks of rows only.
    """
    if not backbone._supports_attention_backend:
        return "without transformers' attention interface"
    config = backbone.config
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    is_everywhere = {*layer_types(config)} <= {"full_attention"}
    if window is not None and length > window // 2 and not (layer_types(config) and is_everywhere):
        return f"with sliding windows of {window}"
    return None


def keeps_causal(config) -> bool:
    """Whether tokens of a backbone see only those before them."""
    return language_model_class(config) is AutoModelForCausalLM and getattr(config, "is_causal", None) is not False


def check_sees_blocks(body: AutoBody, model: PreTrainedModel):
    """Raise a ValueError for a backbone that is no causal model attending both ways, or that has attention of its own.

    A model with weights is tried: [x_t ; x_0] in one pass has to give the states of the blocks one by one, and so has a
    cache.
    """
    backbone, length = model.backbone, model.config.max_position_embeddings
    obstacle = obstacle_to_pair_masks(backbone, length)
    if language_model_class(backbone.config) is not AutoModelForCausalLM:
        obstacle = "that keeps no keys and values of decided blocks"
    elif keeps_causal(backbone.config):
        obstacle = "that stays causal (`is_causal=False` in its configuration opens it)"
    elif obstacle is None and can_be_tried(backbone) and not tells_blocks_apart(body, model):
        obstacle = "that does not follow the attention, positions or cache that it is given"
    if obstacle is not None:
        kind, size = backbone.config.model_type, model.config.block_size
        raise ValueError(f"`block_size` must be None for a backbone of type {kind!r} {obstacle}, got {size}.")


def can_be_tried(backbone: PreTrainedModel) -> bool:
    """Whether a model has weights at hand, and attention that needs no compiler."""
    has_weights = not is_deepspeed_zero3_enabled() and all(x.device.type != "meta" for x in backbone.parameters())
    return has_weights and backbone.config._attn_implementation in ("eager", "sdpa")


@torch.no_grad()
def tells_blocks_apart(body: AutoBody, model: PreTrainedModel) -> bool:
    """Whether two blocks of x_t, with x_0 behind them, have the states that they have one by one."""
    backbone, own_size, was_training = model.backbone, model.config.block_size, model.backbone.training
    ids = torch.arange(1, 2 * PROBE_LENGTH + 1, device=backbone.device)[None] % backbone.config.vocab_size
    x0, xt = ids.chunk(2, dim=1)
    half, cache = PROBE_LENGTH // 2, DynamicCache()

    def states(tokens: Tensor, **inputs: Any) -> Tensor:
        return body.run(model, BodyInputs(tokens, **inputs)).last_hidden_state

    try:
        backbone.eval()
        model.config.block_size = half
        first, second = xt.split(half, dim=1)
        at_once = states(xt, clean_ids=x0)
        alone = torch.cat([states(first), states(torch.cat([x0[:, :half], second], dim=1))[:, half:]], dim=1)
        states(x0[:, :half], past_key_values=cache)
        cached = states(second, past_key_values=cache)
    except (AttributeError, RuntimeError, TypeError):  # it takes no positions, or no mask of pairs
        return False
    finally:
        backbone.train(was_training)
        model.config.block_size = own_size
    tolerance = PROBE_TOLERANCE * alone.abs().max()
    found = torch.cat([at_once, cached], dim=1)
    return torch.allclose(found, torch.cat([alone, alone[:, half:]], dim=1), rtol=0, atol=tolerance)


# From a language model to an MD4 model --------------------------------------------------------------------------------


@contextlib.contextmanager
def undealt() -> Iterator[None]:
    """Make and open models whole on every rank within the context, also with DeepSpeed's ZeRO-3, which deals them out.

    A backbone is tried, and changed row by row, before a training begins and deals it out.
    """
    reference = deepspeed_settings._hf_deepspeed_config_weak_ref
    deepspeed_settings.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed_settings._hf_deepspeed_config_weak_ref = reference


@undealt()
@torch.no_grad()
def adopt_backbone(
    model_class: type,
    name_or_path: str,
    tokenizer: Any,
    is_causal: bool,
    options: dict[str, Any],
    fields: dict[str, Any],
) -> PreTrainedModel:
    """Make an MD4 model of a language model; arguments as in `MD4ForMaskedDiffusion.from_backbone`.

    `options` are those of transformers' `from_pretrained`, `fields` those of the `MD4Config`.
    """
    hub = {name: options[name] for name in ("revision", "token") if options.get(name) is not None}
    backbone_config = AutoConfig.from_pretrained(name_or_path, **hub)
    auto = language_model_class(backbone_config)
    if auto is AutoModelForMaskedLM and is_causal:
        raise ValueError(f"`is_causal` must be False for a masked language model, got True for {name_or_path}.")
    used_ids, mask_token_id, is_new = tokens_of(name_or_path, tokenizer, backbone_config.vocab_size, hub)
    language_model = auto.from_pretrained(name_or_path, **options).eval()
    if auto is AutoModelForCausalLM:
        language_model.config.is_causal = is_causal
    if "attn_implementation" in options:
        fields["attn_implementation"] = options["attn_implementation"]
    own = copy.deepcopy(language_model.config)  # a composite configuration resets the attention of its parts
    config = MD4Config(backbone="auto", backbone_config=own, **fields)
    model = model_around(model_class, language_model, config, name_or_path)
    if mask_token_id >= config.vocab_size:
        model.resize_token_embeddings(mask_token_id + 1, mean_resizing=False)
    model.config.mask_token_id = mask_token_id
    model.config.unused_token_ids = unused_ranges({*used_ids, mask_token_id}, model.config.vocab_size)
    if is_new:
        set_to_mean(model, mask_token_id, sorted({*used_ids} - {mask_token_id}))
    model.tie_weights()
    model.name_or_path = name_or_path
    return model.eval()


@torch.no_grad()
def model_around(
    model_class: type, language_model: PreTrainedModel, config: MD4Config, name_or_path: str
) -> PreTrainedModel:
    """MD4 model whose network is a language model, which is taken apart.

    Args:
        model_class: Class of the model.
        language_model: A masked or causal one, in evaluation mode, with the attention that its configuration says.
        config: Configuration with that of the language model in it; its length is cut to the model's positions.
        name_or_path: Name of the language model in errors.

    Raises:
        ValueError: If its head is not linear, or if it cannot attend to later tokens and is to.
    """
    expected = probe(language_model)
    head = cut_head(language_model)
    check_head(language_model, head, expected, name_or_path)
    is_causal_class = language_model_class(language_model.config) is AutoModelForCausalLM
    if is_causal_class and not keeps_causal(language_model.config):
        check_sees_later_tokens(language_model, name_or_path)
    with torch.device("meta"):
        model = model_class(config)
    model.model.body.take(model.model, language_model, head)
    model.lm_head = MD4Head.with_parameters_of(head)
    if config.learn_masking_schedule:
        model.token_schedule = type(model.token_schedule)(
            config.vocab_size, config.schedule_power, config.schedule_eps
        )
    most = model.model.num_positions or config.max_position_embeddings
    config.max_position_embeddings = min(config.max_position_embeddings, most)
    model.tie_weights()
    return model


def tokens_of(name_or_path: str, tokenizer: Any, rows: int, hub: dict) -> tuple[set[int], int, bool]:
    """Ids of a model's tokens, the id of the mask, and whether the mask is new to the model.

    Raises:
        ValueError: If the tokenizer has ids, other than a mask behind the last row, that the model has no row for.
    """
    own = AutoTokenizer.from_pretrained(name_or_path, **hub) if has_tokenizer(name_or_path, hub) else None
    tokenizer = own if tokenizer is None else tokenizer
    used = set(range(rows)) if tokenizer is None else {*tokenizer.get_vocab().values()}
    mask = None if tokenizer is None else tokenizer.mask_token_id
    mask = max(used) + 1 if mask is None else mask
    source = tokenizer if own is None else own
    is_new = source is None or source.mask_token_id != mask or mask >= rows
    found = max(used - {mask})
    if found >= rows or mask > rows:
        found = max(found, tokenizer.mask_token_id or 0)
        raise ValueError(f"`tokenizer` must have ids below the model's number of rows, {rows}, got up to {found}.")
    return used, mask, is_new


def set_to_mean(model: PreTrainedModel, row: int, others: list[int]):
    """Set a row of the embedding and of the head to the mean of others."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in (module.weight, getattr(module, "bias", None)):
            if parameter is not None:
                parameter[row] = parameter[others].float().mean(dim=0).to(parameter.dtype)


def probe(language_model: PreTrainedModel, last: int = PROBE_LENGTH) -> Tensor:
    """Logits `(1, length, vocab)` of a few tokens, the last of which is given."""
    ids = torch.tensor([[*range(1, PROBE_LENGTH), last]], device=language_model.device)
    return language_model(input_ids=ids % language_model.config.vocab_size, return_dict=True).logits


def check_head(language_model: PreTrainedModel, head: nn.Linear, expected: Tensor, name_or_path: str):
    """Raise a ValueError unless the head that was cut out of a model makes its logits of the probe from its states."""
    try:
        logits = head(probe(language_model))
    except (AttributeError, RuntimeError, TypeError):  # there are further modules behind its head
        logits = torch.zeros_like(expected)
    if not torch.allclose(logits, expected, rtol=0, atol=PROBE_TOLERANCE * expected.abs().max()):
        raise ValueError(
            f"`name_or_path` must be of a model whose logits are linear in its last states, got {name_or_path}."
        )


def check_sees_later_tokens(language_model: PreTrainedModel, name_or_path: str):
    """Raise a ValueError if the first state of a model does not depend on the last token."""
    first, second = (probe(language_model, last)[:, 0] for last in (PROBE_LENGTH, PROBE_LENGTH + 1))
    if torch.equal(first, second):
        kind = language_model.config.model_type
        raise ValueError(
            f"`is_causal` must be True for a backbone of type {kind!r}, whose tokens see only those before them, got "
            f"False for {name_or_path}."
        )
