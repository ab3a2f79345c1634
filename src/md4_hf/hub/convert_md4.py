# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Converter of checkpoints of the official JAX implementation of MD4.

    md4 convert CHECKPOINT CONFIG.json FOLDER

`CHECKPOINT` is an Orbax checkpoint folder (needs `orbax-checkpoint`) or a safetensors file of flat parameters whose
names are slash-joined Flax paths. `CONFIG.json` holds the fields of the official configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.configuration_md4 import MD4Config
from ..core.modeling_md4 import MD4ForMaskedDiffusion
from ..core.modeling_md4_unet import MD4ResnetBlock, MD4UNet
from ..utils.errors import check_types, file_errors_as_value_errors
from .families import Family


if TYPE_CHECKING:
    from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler


# Types of the official fields that are read here.
TYPES = {
    **dict.fromkeys(("vocab_size", "feature_dim", "num_heads", "n_layers", "n_dit_layers", "timesteps"), int),
    **dict.fromkeys(("dit_hidden_size", "dit_num_heads"), int),
    **dict.fromkeys(("noise_schedule_type", "sampler", "sampling_grid"), str),
    **dict.fromkeys(("dropout_rate", "power_init", "topp", "t1"), float),
    **dict.fromkeys(("data_shape", "ch_mult"), list | tuple),
    "classes": int | None,
}


def config_from_official(official: Mapping[str, Any]) -> MD4Config:
    """Translate the fields of an official model's configuration; a ValueError for a missing or unknown value.

    Args:
        official: Names and values as in the official configuration (`vocab_size`, `feature_dim`, `num_heads`, ...);
            `vocab_size` counts data tokens only. A `data_shape` of (height, width, channels) makes a model of images.
    """
    check_types(official, TYPES)
    data_shape = official.get("data_shape", (1024,))
    if len(data_shape) not in (1, 3):
        raise ValueError(f"`data_shape` must be (length,) or (height, width, channels), got {data_shape}.")
    network = _image_network(official) if len(data_shape) == 3 else _text_network(official)
    schedule, power = _parse_schedule(official.get("noise_schedule_type", "linear"))
    classes = official.get("classes")
    return MD4Config(
        **network,
        vocab_size=_required(official, "vocab_size") + 1,
        num_hidden_layers=_required(official, "n_layers"),
        time_conditioning=official.get("time_features", "t") != "none",
        conditioning_size=_required(official, "feature_dim"),
        num_classes=classes if (classes or 0) > 0 else None,
        residual_dropout=float(official.get("dropout_rate", 0.0)),
        masking_schedule=schedule,
        schedule_power=official.get("power_init", 1.0) if _is_genmd4(official) else power,
        learn_masking_schedule=_is_genmd4(official),
        schedule_first_time=official.get("t1", 1e-3),
        num_train_timesteps=None if official.get("cont_time", True) else official.get("timesteps", 1000),
    )


def _text_network(official: Mapping[str, Any]) -> dict[str, Any]:
    feature_dim, num_heads = _required(official, "feature_dim"), _required(official, "num_heads")
    dropout = float(official.get("dropout_rate", 0.0))
    if official.get("n_dit_layers", 0) > 0:
        raise ValueError(f"`n_dit_layers` must be 0 for text, got {official['n_dit_layers']}.")
    return {
        "hidden_size": feature_dim * num_heads,
        "num_attention_heads": num_heads,
        "embedding_size": feature_dim if official.get("outside_embed", False) else None,
        "mlp_type": official.get("mlp_type", "swiglu"),
        "modulation": official.get("cond_type", "adaln"),
        "depth_scaled_init": official.get("depth_scaled_init", False),
        "embedding_dropout": dropout,
        "attention_dropout": dropout,
        "max_position_embeddings": official["data_shape"][0] if "data_shape" in official else 1024,
    }


def _image_network(official: Mapping[str, Any]) -> dict[str, Any]:
    height, width, channels = official["data_shape"]
    size = height if height == width else [height, width]
    network = {"hidden_size": _required(official, "feature_dim"), "image_size": size, "num_channels": channels}
    if official.get("n_dit_layers", 0) <= 0:  # the official U-Net has one resolution, whatever `ch_mult` says
        return {**network, "backbone": "unet"}
    return {
        **network,
        "backbone": "uvit",
        "channel_multipliers": _required(official, "ch_mult"),
        "dit_hidden_size": _required(official, "dit_hidden_size"),
        "dit_num_hidden_layers": official["n_dit_layers"],
        "dit_num_attention_heads": _required(official, "dit_num_heads"),
    }


def _is_genmd4(official: Mapping[str, Any]) -> bool:
    return str(official.get("model_type", official.get("model", ""))).lower() == "genmd4"


def scheduler_from_official(official: Mapping[str, Any]) -> MaskedDiffusionScheduler:
    """The official sampler's settings: masking schedule, time grid, sampler and number of steps."""
    from ..core.scheduling_masked_diffusion import MaskedDiffusionScheduler

    check_types(official, TYPES)
    schedule, power = _parse_schedule(official.get("noise_schedule_type", "linear"))
    sampler = official.get("sampler", "ancestral")
    return MaskedDiffusionScheduler(
        mask_token_id=_required(official, "vocab_size"),
        masking_schedule=schedule,
        schedule_power=power,
        timestep_grid=official.get("sampling_grid", "cosine"),
        sampler="mean" if sampler == "mean" else "ancestral",
        top_p=official.get("topp", 0.98) if sampler == "topp" else None,
        num_inference_steps=official.get("timesteps", 1000),
    )


def _required(official: Mapping[str, Any], name: str) -> Any:
    if name not in official:
        raise ValueError(f"`{name}` must be in the official configuration, got only {sorted(official)}.")
    return official[name]


def _parse_schedule(name: str) -> tuple[str, float]:
    """ "poly2" -> ("poly", 2.0); other names carry no power."""
    match = re.fullmatch(r"poly([0-9]+(?:[.][0-9]+)?)", name)
    return ("poly", float(match.group(1))) if match else (name, 1.0)


class FlaxParams:
    """Flat Flax parameters that remember which ones were taken, so that none is lost unnoticed."""

    def __init__(self, params: Mapping[str, Any]):
        prefixed = {name.removeprefix("params/"): x for name, x in params.items() if name.startswith("params/")}
        self._arrays = prefixed or dict(params)

    def take(self, name: str) -> Tensor:
        """Remove a parameter and return it unchanged; a ValueError if it is missing."""
        if name not in self._arrays:
            raise ValueError(f"`params` must hold {name!r}; not among {sorted(self._arrays)}.")
        array = self._arrays.pop(name)
        return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))

    def kernel(self, layer: str) -> Tensor:
        """A Dense kernel [in, out] as a Linear weight [out, in]."""
        kernel = self.take(f"{layer}/kernel")
        if kernel.dim() != 2:
            raise ValueError(f"`{layer}/kernel` must have two axes, got shape {tuple(kernel.shape)}.")
        return kernel.transpose(0, 1).contiguous()

    def conv(self, layer: str, name: str) -> dict[str, Tensor]:
        """A convolution's kernel [kh, kw, in, out], or a pixel's Dense one [in, out], as weight [out, in, kh, kw]."""
        kernel = self.take(f"{layer}/kernel")
        if kernel.dim() == 2:
            kernel = kernel[None, None]
        if kernel.dim() != 4:
            raise ValueError(f"`{layer}/kernel` must have two or four axes, got shape {tuple(kernel.shape)}.")
        return {f"{name}.weight": kernel.permute(3, 2, 0, 1).contiguous(), f"{name}.bias": self.take(f"{layer}/bias")}

    def group_norm(self, layer: str, name: str) -> dict[str, Tensor]:
        """Scale and bias `(channels,)` of a group norm as weight and bias."""
        return {f"{name}.weight": self.take(f"{layer}/scale"), f"{name}.bias": self.take(f"{layer}/bias")}

    def merge_heads(self, attention: str, width: int):
        """Give the layers of an attention of one head the shapes of Dense layers, without the axis of the heads."""
        for layer in ("query", "key", "value", "out"):
            kernel, bias = self.take(f"{attention}/{layer}/kernel"), self.take(f"{attention}/{layer}/bias")
            heads_axis = 0 if layer == "out" else 1
            shapes: Any = ((1, width, width), (width,)) if layer == "out" else ((width, 1, width), (1, width))
            if (kernel.shape, bias.shape) != shapes:
                found = (tuple(kernel.shape), tuple(bias.shape))
                raise ValueError(f"`{attention}/{layer}` must have kernel and bias of shapes {shapes}, got {found}.")
            self._arrays[f"{attention}/{layer}/kernel"] = kernel.squeeze(heads_axis)
            self._arrays[f"{attention}/{layer}/bias"] = bias.flatten()

    def dense(self, layer: str, name: str, has_bias: bool = True) -> dict[str, Tensor]:
        """A Dense layer as the Linear `name`."""
        bias = {f"{name}.bias": self.take(f"{layer}/bias")} if has_bias else {}
        return {f"{name}.weight": self.kernel(layer), **bias}

    def stacked_dense(self, widths: dict[str, int], in_features: int, name: str, has_bias: bool = True):
        """Dense layers, by name with their number of outputs, as one layer: their outputs one after the other."""
        parts = [self.dense(layer, name, has_bias) for layer in widths]
        for (layer, width), part in zip(widths.items(), parts, strict=True):
            for key, x in part.items():
                expected = (width, in_features)[: x.dim()]
                if x.shape != expected:
                    got = tuple(x.shape)
                    raise ValueError(f"`params` must have {key} of shape {expected} in `{layer}`, got {got}.")
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def check_empty(self):
        """Raise a ValueError if a parameter was not taken."""
        if self._arrays:
            raise ValueError(f"`params` must fit the configuration, got surplus parameters {sorted(self._arrays)}.")


def convert_flax_params(params: Mapping[str, Any], config: MD4Config) -> dict[str, Tensor]:
    """State dict of `MD4ForMaskedDiffusion` from the official model's parameters.

    Args:
        params: Slash-joined Flax paths to arrays or tensors. If some start with "params/", only those count.
        config: The configuration that belongs to them, see `config_from_official`.

    Raises:
        ValueError: If a parameter is missing, is left over or has another shape than the configuration says.
    """
    flax = FlaxParams(params)
    state: dict[str, Tensor] = {}
    if config.num_classes is not None:
        state["model.conditioning.class_embedding.weight"] = flax.take("cond_embeddings/embedding")
    if config.time_conditioning:
        state |= flax.dense("classifier/CondEmbedding_0/dense0", "model.conditioning.dense_in")
        state |= flax.dense("classifier/CondEmbedding_0/Dense_0", "model.conditioning.dense_out")
    with torch.device("meta"):
        model = MD4ForMaskedDiffusion(config)
    if config.is_image:
        state |= _convert_image_network(flax, config, model.model.unet)
    else:
        state |= _convert_text_network(flax, config)
    if config.learn_masking_schedule:
        # The official schedule has no exponent for the mask, whose own is not used here.
        state["token_schedule.free_exponents"] = F.pad(flax.take("noise_schedule/w"), (0, 1))
    flax.check_empty()
    for name, tensor in model.state_dict().items():
        if state[name].shape != tensor.shape:
            raise ValueError(f"`{name}` must have shape {tuple(tensor.shape)}, got {tuple(state[name].shape)}.")
    return state


def _convert_text_network(flax: FlaxParams, config: MD4Config) -> dict[str, Tensor]:
    transformer, hidden = "classifier/Transformer_0", config.hidden_size
    blocks = [f"{transformer}/TransformerBlock_{i}" for i in range(config.num_hidden_layers)]
    # Flax numbers the Dense layers in the order of their creation: input projection, output modulation, head.
    dense_index = 0
    if config.embedding_size is None:
        state = {"model.embed_tokens.weight": flax.take(f"{transformer}/Embed_0/embedding")}
    else:
        state = {"model.embed_tokens.weight": flax.take("classifier/Embed_0/embedding")}
        state |= flax.dense(f"{transformer}/Dense_0", "model.embed_proj")
        dense_index += 1
    for index, block in enumerate(blocks):
        state |= _convert_layer(flax, config, block, f"model.layers.{index}")
    if config.is_conditional:
        widths = {f"{block}/Dense_0": 6 * hidden for block in blocks}
        widths[f"{transformer}/Dense_{dense_index}"] = 2 * hidden
        state |= flax.stacked_dense(widths, config.conditioning_size, "model.modulation.dense")
        dense_index += 1
    else:
        state["model.norm.weight"] = flax.take(f"{transformer}/RMSNorm_0/scale")
    # The official head has no row for the mask (its last id), which is never predicted.
    state["lm_head.weight"] = F.pad(flax.kernel(f"{transformer}/Dense_{dense_index}"), (0, 0, 0, 1))
    return state


def _convert_layer(flax: FlaxParams, config: MD4Config, block: str, layer: str) -> dict[str, Tensor]:
    hidden, mlp = config.hidden_size, f"{block}/feed_forward"
    qkv = {f"{block}/attention/w{x}": hidden for x in "qkv"}
    gate_up = {f"{mlp}/w{x}": config.intermediate_size for x in "13"}
    state = flax.stacked_dense(qkv, hidden, f"{layer}.attention.qkv_proj", has_bias=False)
    state |= flax.dense(f"{block}/attention/wo", f"{layer}.attention.o_proj", has_bias=False)
    state |= flax.stacked_dense(gate_up, hidden, f"{layer}.mlp.gate_up_proj", has_bias=False)
    state |= flax.dense(f"{mlp}/w2", f"{layer}.mlp.down_proj", has_bias=False)
    # A conditional network's modulation is taken with those of all blocks.
    return state if config.is_conditional else state | _convert_norms(flax, block, layer)


def _convert_norms(flax: FlaxParams, block: str, layer: str) -> dict[str, Tensor]:
    norms = ("attention_norm", "mlp_norm")
    return {f"{layer}.{name}.weight": flax.take(f"{block}/RMSNorm_{i}/scale") for i, name in enumerate(norms)}


def _convert_image_network(flax: FlaxParams, config: MD4Config, network: MD4UNet) -> dict[str, Tensor]:
    """State of the entire network; flax numbers its residual blocks in the order in which they run."""
    unet = "classifier/UNet5DWrapper_0/UNet_0"
    down = [f"down_blocks.{i}" for i in range(len(network.down_blocks))]
    middle = [] if config.backbone == "uvit" else ["mid_block.resnet1", "mid_block.resnet2"]
    up = [f"up_blocks.{i}" for i in range(len(network.up_blocks))]
    state = flax.conv(f"{unet}/Conv_0", "conv_in")
    for index, name in enumerate(down + middle + up):
        state |= _convert_resnet_block(flax, config, f"{unet}/ResBlock_{index}", name, network.get_submodule(name))
    if config.backbone == "uvit":
        state |= convert_dit(flax, config, f"{unet}/DiT_0", "mid_block")
    else:
        state |= _convert_attention_block(flax, config, f"{unet}/SelfAttention_0", "mid_block.attention")
    state |= _convert_group_norm(flax, config, unet, 0, "norm_out")
    state = {f"model.unet.{name}": x for name, x in state.items()}
    state["model.embed_tokens.weight"] = flax.take("classifier/Embed_0/embedding")
    return state | _convert_image_head(flax, config, f"{unet}/Conv_1")


def _convert_resnet_block(
    flax: FlaxParams, config: MD4Config, block: str, name: str, module: MD4ResnetBlock
) -> dict[str, Tensor]:
    state = _convert_group_norm(flax, config, block, 0, f"{name}.norm1")
    state |= _convert_group_norm(flax, config, block, 1, f"{name}.norm2")
    state |= flax.conv(f"{block}/Conv_0", f"{name}.conv1") | flax.conv(f"{block}/Conv_1", f"{name}.conv2")
    has_projection = module.conditioning_proj is not None
    if has_projection:
        state |= flax.dense(f"{block}/Dense_0", f"{name}.conditioning_proj", has_bias=False)
    if module.conv_shortcut is not None:
        state |= flax.conv(f"{block}/Dense_{int(has_projection)}", f"{name}.conv_shortcut")
    return state


def _convert_group_norm(flax: FlaxParams, config: MD4Config, parent: str, index: int, name: str) -> dict[str, Tensor]:
    is_unet, norm = config.backbone == "unet", f"{parent}/CondGroupNorm_{index}"
    if config.is_conditional and not is_unet:
        return flax.dense(f"{norm}/Dense_0", f"{name}.modulation")
    return flax.group_norm(f"{parent}/GroupNorm_{index}" if is_unet else f"{norm}/GroupNorm_0", f"{name}.norm")


def _convert_attention_block(flax: FlaxParams, config: MD4Config, block: str, name: str) -> dict[str, Tensor]:
    heads, width = f"{block}/MultiHeadDotProductAttention_0", config.hidden_size
    flax.merge_heads(heads, width)
    state = flax.group_norm(f"{block}/GroupNorm_0", f"{name}.norm.norm")
    qkv = {f"{heads}/{x}": width for x in ("query", "key", "value")}
    state |= flax.stacked_dense(qkv, width, f"{name}.attention.qkv_proj")
    return state | flax.dense(f"{heads}/out", f"{name}.attention.o_proj")


def convert_dit(flax: FlaxParams, config: MD4Config, dit: str, name: str) -> dict[str, Tensor]:
    """The DiT `dit` of the official U-ViT as the module `name`."""
    state = flax.conv(f"{dit}/x_embedder/proj", f"{name}.patch_embedding")
    state[f"{name}.position_embedding"] = flax.take(f"{dit}/pos_embed")
    for index in range(config.dit_num_hidden_layers):
        state |= convert_dit_layer(flax, config, f"{dit}/blocks_{index}", f"{name}.layers.{index}")
    if config.is_conditional:
        state |= flax.dense(f"{dit}/final_layer/Dense_0", f"{name}.modulation")
    else:
        state[f"{name}.norm.weight"] = flax.take(f"{dit}/final_layer/RMSNorm_0/scale")
    return state | flax.dense(f"{dit}/final_layer/linear", f"{name}.proj_out")


def convert_dit_layer(flax: FlaxParams, config: MD4Config, block: str, layer: str) -> dict[str, Tensor]:
    """One block of the official DiT as the module `layer`."""
    width = config.dit_hidden_size
    qkv = {f"{block}/attn/w{x}": width for x in "qkv"}
    state = flax.stacked_dense(qkv, width, f"{layer}.attention.qkv_proj")
    state[f"{layer}.attention.o_proj.weight"] = flax.kernel(f"{block}/attn/wo")
    state |= flax.dense(f"{block}/mlp/fc1", f"{layer}.mlp.0") | flax.dense(f"{block}/mlp/fc2", f"{layer}.mlp.2")
    if config.is_conditional:
        return state | flax.dense(f"{block}/Dense_0", f"{layer}.modulation")
    return state | _convert_norms(flax, block, layer)


def _convert_image_head(flax: FlaxParams, config: MD4Config, conv: str) -> dict[str, Tensor]:
    """The last convolution, with a logit of the mask (its last id) for each channel, which the official one lacks."""
    state = {}
    outputs = config.num_channels * (config.vocab_size - 1)
    for name, x in flax.conv(conv, "lm_head").items():
        if len(x) != outputs:
            raise ValueError(f"`{conv}` must have {outputs} outputs, got {len(x)}.")
        rows = x.unflatten(0, (config.num_channels, -1))
        state[name] = torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1).flatten(0, 1)
    return state


def load_official_params(checkpoint: Path) -> dict[str, Any]:
    """Flat parameters of an Orbax checkpoint folder or of a safetensors file."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"`checkpoint` must exist, got {checkpoint}.")
    if checkpoint.is_file():
        from safetensors.torch import load_file

        with file_errors_as_value_errors("checkpoint", checkpoint):
            return load_file(checkpoint)
    try:
        from orbax.checkpoint import PyTreeCheckpointer
    except ImportError as error:
        raise ImportError("Reading an Orbax folder needs `pip install orbax-checkpoint`.") from error
    tree = PyTreeCheckpointer().restore(checkpoint.resolve())
    # The network's parameters inside a training state: EMA weights where there are any, as the paper evaluates.
    while params := tree.get("ema_params") or tree.get("params"):
        tree = params
    return _flatten(tree)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat.update(_flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


class Official(Family):
    """The official implementation of MD4, in JAX."""

    name = "official"
    title = "MD4 (official implementation)"

    def recognises_config(self, source: Mapping[str, Any]) -> bool:
        """Whether the fields are official ones."""
        return {"feature_dim", "n_layers"} <= source.keys()

    def configuration(self, source: Mapping[str, Any]) -> MD4Config:
        """See `config_from_official`."""
        return config_from_official(source)

    def scheduler(self, source: Mapping[str, Any], config: MD4Config) -> MaskedDiffusionScheduler:
        """See `scheduler_from_official`."""
        return scheduler_from_official(source)

    def load(self, path: Path, config: MD4Config, allow_pickle: bool) -> MD4ForMaskedDiffusion:
        """Model with the parameters of an Orbax folder, or of a safetensors file."""
        model = MD4ForMaskedDiffusion(config)
        model.load_state_dict(convert_flax_params(load_official_params(path), config))
        return model.eval()
