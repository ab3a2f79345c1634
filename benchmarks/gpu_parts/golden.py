# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Networks and losses that the official implementation recorded, as models with a batch for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from md4_hf import MD4ForMaskedDiffusion, config_from_official, convert_flax_params


FOLDER = Path(__file__).parents[2] / "tests" / "golden"
NAMES = [
    *("net_text_adaln_swiglu", "net_text_adalnzero_glu_outside", "net_text_class_glu"),
    *("net_text_class_notime_swiglu", "net_text_notime_geglu", "loss_md4_model", "loss_genmd4_model"),
    *("net_unet_class_t", "net_unet_uncond", "net_uvit_class_t_chmult12", "net_uvit_uncond"),
]


def golden_case(name: str) -> tuple[MD4ForMaskedDiffusion, dict[str, Any], Tensor | None]:
    """Model of a recorded case, a batch with labels, and the recorded logits of the data tokens if there are any.

    Clean ids are the recorded ones, or chosen where only noised ids were recorded.
    """
    record = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(FOLDER / f"{name}.safetensors")
    config = config_from_official(record["config"])
    model = MD4ForMaskedDiffusion(config)
    model.load_state_dict(convert_flax_params(tensors, config))
    if "zt_1" in tensors:
        xt = torch.stack([tensors["zt_1"], tensors["zt_2"]], dim=1).long()
    else:
        xt = tensors["zt"].long()
    logits = tensors.get("logits")
    if config.is_image:  # the official tensors have the channels last
        xt, logits = xt.permute(0, 3, 1, 2), logits.permute(0, 3, 1, 2, 4)
    labels = tensors["x"].long() if "x" in tensors else chosen_labels(xt, config.mask_token_id)
    times = tensors.get("t", tensors.get("t_used"))
    inputs = {"input_ids": xt, "labels": labels}
    inputs["timesteps"] = torch.linspace(0.2, 0.9, len(xt)) if times is None else times
    if "label" in tensors:
        inputs["class_labels"] = tensors["label"].long()
    return model, inputs, logits


def chosen_labels(xt: Tensor, mask_token_id: int) -> Tensor:
    """Clean ids of noised ones, with ids in turn under the masks."""
    chosen = torch.arange(xt.numel()).view(xt.shape) % mask_token_id
    return torch.where(xt == mask_token_id, chosen, xt)
