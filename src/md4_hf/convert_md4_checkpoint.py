# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Convert checkpoints of the official JAX implementation of MD4 to `save_pretrained` folders.

    python -m md4_hf.convert_md4_checkpoint --checkpoint CHECKPOINT --config CONFIG.json --output_dir FOLDER

`CHECKPOINT` is an Orbax checkpoint folder (needs `orbax-checkpoint`) or a safetensors file of flat parameters whose
names are slash-joined Flax paths. `CONFIG.json` holds the fields of the official configuration.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_md4 import MD4Config
from .errors import check_types, reading
from .modeling_md4 import MD4ForMaskedDiffusion
from .scheduling_masked_diffusion import MaskedDiffusionScheduler


# Types of the official fields that are read here.
TYPES = {
    **dict.fromkeys(("vocab_size", "feature_dim", "num_heads", "n_layers", "n_dit_layers", "timesteps"), int),
    **dict.fromkeys(("noise_schedule_type", "sampler", "sampling_grid"), str),
    **dict.fromkeys(("dropout_rate", "power_init", "topp", "t1"), float),
    "classes": int | None,
    "data_shape": list | tuple,
}


def config_from_official(official: Mapping[str, Any]) -> MD4Config:
    """Translate the fields of an official text model's configuration.

    Args:
        official: Names and values as in the official configuration (`vocab_size`, `feature_dim`, `num_heads`, ...);
            `vocab_size` counts data tokens only.

    Raises:
        ValueError: For a missing or unknown value, and for image models.
    """
    check_types(official, TYPES)
    if len(official.get("data_shape", (1,))) != 1 or official.get("n_dit_layers", 0) > 0:
        raise ValueError(f"`data_shape` must be that of a text model, (length,), got {official.get('data_shape')}.")
    schedule, power = _parse_schedule(official.get("noise_schedule_type", "linear"))
    feature_dim, num_heads = _required(official, "feature_dim"), _required(official, "num_heads")
    dropout = float(official.get("dropout_rate", 0.0))
    classes = official.get("classes", -1)
    return MD4Config(
        vocab_size=_required(official, "vocab_size") + 1,
        hidden_size=feature_dim * num_heads,
        num_hidden_layers=_required(official, "n_layers"),
        num_attention_heads=num_heads,
        embedding_size=feature_dim if official.get("outside_embed", False) else None,
        mlp_type=official.get("mlp_type", "swiglu"),
        time_conditioning=official.get("time_features", "t") != "none",
        conditioning_size=feature_dim,
        modulation=official.get("cond_type", "adaln"),
        num_classes=classes if classes is not None and classes > 0 else None,
        depth_scaled_init=official.get("depth_scaled_init", False),
        embedding_dropout=dropout,
        attention_dropout=dropout,
        residual_dropout=dropout,
        max_position_embeddings=official["data_shape"][0] if "data_shape" in official else 1024,
        masking_schedule=schedule,
        schedule_power=official.get("power_init", 1.0) if _is_genmd4(official) else power,
        learn_masking_schedule=_is_genmd4(official),
        schedule_first_time=official.get("t1", 1e-3),
        num_train_timesteps=None if official.get("cont_time", True) else official.get("timesteps", 1000),
    )


def _is_genmd4(official: Mapping[str, Any]) -> bool:
    return str(official.get("model_type", official.get("model", ""))).lower() == "genmd4"


def scheduler_from_official(official: Mapping[str, Any]) -> MaskedDiffusionScheduler:
    """The official sampler's settings: masking schedule, time grid, sampler and number of steps."""
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


# ----------------------------------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------------------------------


class _FlaxParams:
    """Flat Flax parameters that remembers which ones were taken, so that none is lost unseen."""

    def __init__(self, params: Mapping[str, Any]):
        prefixed = {name.removeprefix("params/"): x for name, x in params.items() if name.startswith("params/")}
        self._arrays = prefixed or dict(params)

    def take(self, name: str) -> Tensor:
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

    def stacked_kernels(self, layers: list[str]) -> Tensor:
        """Dense kernels of one shape as one Linear weight: their outputs one after the other."""
        kernels = [self.kernel(layer) for layer in layers]
        if len({kernel.shape for kernel in kernels}) > 1:
            shapes = {
                f"{layer}/kernel": tuple(kernel.shape[::-1]) for layer, kernel in zip(layers, kernels, strict=True)
            }
            raise ValueError(f"Kernels that become one weight must have one shape, got {shapes}.")
        return torch.cat(kernels)

    def dense(self, layer: str, name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": self.kernel(layer), f"{name}.bias": self.take(f"{layer}/bias")}

    def stacked_dense(self, widths: Mapping[str, int], in_features: int, name: str) -> dict[str, Tensor]:
        """Dense layers with so many outputs each as one: their outputs one after the other."""
        parts = [self.dense(layer, name) for layer in widths]
        for (layer, width), part in zip(widths.items(), parts, strict=True):
            for key, x in part.items():
                expected = (width, in_features)[: x.dim()]
                if x.shape != expected:
                    raise ValueError(f"`{layer}` must have {key} of shape {expected}, got {tuple(x.shape)}.")
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def check_empty(self):
        if self._arrays:
            raise ValueError(f"`params` must fit the configuration, got surplus parameters {sorted(self._arrays)}.")


def convert_flax_params(params: Mapping[str, Any], config: MD4Config) -> dict[str, Tensor]:
    """State dict of `MD4ForMaskedDiffusion` from the official text model's parameters.

    Args:
        params: Slash-joined Flax paths to arrays or tensors. If some start with "params/", only those count.
        config: The configuration that belongs to them, see `config_from_official`.

    Raises:
        ValueError: If a parameter is missing, is left over or has another shape than the configuration says.
    """
    flax = _FlaxParams(params)
    state: dict[str, Tensor] = {}
    state.update(_convert_conditioning(flax, config))
    state.update(_convert_embedding(flax, config))
    for index in range(config.num_hidden_layers):
        state.update(_convert_layer(flax, config, index))
    state.update(_convert_output(flax, config))
    if config.learn_masking_schedule:
        # The official schedule has no exponent for the mask, whose own is not used here.
        state["token_schedule.free_exponents"] = F.pad(flax.take("noise_schedule/w"), (0, 1))
    flax.check_empty()
    _check_shapes(state, config)
    return state


def _convert_conditioning(flax: _FlaxParams, config: MD4Config) -> dict[str, Tensor]:
    state = {}
    if config.num_classes is not None:
        state["model.conditioning.class_embedding.weight"] = flax.take("cond_embeddings/embedding")
    if config.time_conditioning:
        state |= flax.dense("classifier/CondEmbedding_0/dense0", "model.conditioning.dense_in")
        state |= flax.dense("classifier/CondEmbedding_0/Dense_0", "model.conditioning.dense_out")
    return state


def _convert_embedding(flax: _FlaxParams, config: MD4Config) -> dict[str, Tensor]:
    if config.embedding_size is None:
        return {"model.embed_tokens.weight": flax.take("classifier/Transformer_0/Embed_0/embedding")}
    embedding = {"model.embed_tokens.weight": flax.take("classifier/Embed_0/embedding")}
    return embedding | flax.dense("classifier/Transformer_0/Dense_0", "model.embed_proj")


def _convert_layer(flax: _FlaxParams, config: MD4Config, index: int) -> dict[str, Tensor]:
    block, layer = f"classifier/Transformer_0/TransformerBlock_{index}", f"model.layers.{index}"
    state = {
        f"{layer}.attention.qkv_proj.weight": flax.stacked_kernels([f"{block}/attention/w{x}" for x in "qkv"]),
        f"{layer}.attention.o_proj.weight": flax.kernel(f"{block}/attention/wo"),
        f"{layer}.mlp.gate_up_proj.weight": flax.stacked_kernels([f"{block}/feed_forward/w{x}" for x in "13"]),
        f"{layer}.mlp.down_proj.weight": flax.kernel(f"{block}/feed_forward/w2"),
    }
    if config.is_conditional:  # the modulation is taken with those of all blocks
        return state
    state[f"{layer}.attention_norm.weight"] = flax.take(f"{block}/RMSNorm_0/scale")
    state[f"{layer}.mlp_norm.weight"] = flax.take(f"{block}/RMSNorm_1/scale")
    return state


def _convert_output(flax: _FlaxParams, config: MD4Config) -> dict[str, Tensor]:
    state = {}
    # Flax numbers the Dense layers in the order of their creation: input projection, output modulation, head.
    dense_index = 0 if config.embedding_size is None else 1
    if config.is_conditional:
        transformer, hidden = "classifier/Transformer_0", config.hidden_size
        widths = {f"{transformer}/TransformerBlock_{i}/Dense_0": 6 * hidden for i in range(config.num_hidden_layers)}
        widths[f"{transformer}/Dense_{dense_index}"] = 2 * hidden
        state |= flax.stacked_dense(widths, config.conditioning_size, "model.modulation.dense")
        dense_index += 1
    else:
        state["model.norm.weight"] = flax.take("classifier/Transformer_0/RMSNorm_0/scale")
    head = flax.kernel(f"classifier/Transformer_0/Dense_{dense_index}")
    # The official head has no row for the mask (its last id), which is never predicted.
    state["lm_head.weight"] = torch.cat([head, head.new_zeros(1, head.shape[1])])
    return state


def _check_shapes(state: Mapping[str, Tensor], config: MD4Config):
    with torch.device("meta"):
        expected = MD4ForMaskedDiffusion(config).state_dict()
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise ValueError(f"`{name}` must have shape {tuple(tensor.shape)}, got {tuple(state[name].shape)}.")


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------


def load_official_params(checkpoint: Path) -> dict[str, Any]:
    """Flat parameters of an Orbax checkpoint folder or of a safetensors file."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"`checkpoint` must exist, got {checkpoint}.")
    if checkpoint.is_file():
        from safetensors.torch import load_file

        with reading("checkpoint", checkpoint):
            return load_file(checkpoint)
    try:
        from orbax.checkpoint import PyTreeCheckpointer
    except ImportError as error:
        raise ImportError("Reading an Orbax folder needs `pip install orbax-checkpoint`.") from error
    tree = PyTreeCheckpointer().restore(checkpoint.resolve())
    return _flatten(_find_params(tree))


def _find_params(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network's parameters inside a training state: EMA weights where there are any, as the paper evaluates."""
    for key in ("ema_params", "params"):
        if tree.get(key):
            return _find_params(tree[key])
    return tree


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat.update(_flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def convert_checkpoint(checkpoint: Path, config_file: Path, output_dir: Path):
    """Write the converted model and its scheduler to `output_dir`, which must be empty or absent."""
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"`output_dir` must be empty, got {output_dir}.")
    with reading("config", config_file):
        official = json.loads(config_file.read_text(encoding="utf-8"))
        official = official.get("config", official)
    config = config_from_official(official)
    params = load_official_params(checkpoint)
    model = MD4ForMaskedDiffusion(config)
    model.load_state_dict(convert_flax_params(params, config))
    model.save_pretrained(output_dir)
    scheduler_from_official(official).save_pretrained(output_dir)


def main(argv: list[str] | None = None):
    """Entry point of the command described at the top of this file."""
    parser = argparse.ArgumentParser(description="Convert an official MD4 checkpoint to a save_pretrained folder.")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="Orbax folder, or safetensors of flat parameters."
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="JSON file with the official configuration's fields."
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder to write; empty or absent.")
    args = parser.parse_args(argv)
    convert_checkpoint(args.checkpoint, args.config, args.output_dir)
    print(f"Wrote {args.output_dir}")


if __name__ == "__main__":
    main()
