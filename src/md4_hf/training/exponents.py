# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""GenMD4's exponents among the parameters of an optimizer."""

from __future__ import annotations

import re

from torch import nn
from torch.optim import Optimizer


EXPONENTS = re.compile(r"\btoken_schedule\b.*\bfree_exponents$")


def is_exponent(name: str) -> bool:
    """Whether a parameter's name is that of GenMD4's exponents, in whatever wrapper."""
    return EXPONENTS.search(name) is not None


def give_exponents_rate(optimizer: Optimizer, model: nn.Module, rate: float):
    """Move the exponents of a model, if it has any, into a group of their own without weight decay.

    Args:
        optimizer: Has the parameters in its groups.
        model: Names the parameters.
        rate: Learning rate of the exponents.
    """
    exponents = [parameter for name, parameter in model.named_parameters() if is_exponent(name)]
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if not any(p is exponent for exponent in exponents)]
    if exponents:
        optimizer.add_param_group({"params": exponents, "lr": rate, "weight_decay": 0.0})
