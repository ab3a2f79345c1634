# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`torch_compile` block by block: the whole model as one graph is slower than none, on a CPU and on a GPU."""

from torch import nn

from ..utils.sharding import undivided_classes
from .arguments import MD4TrainingArguments


def compile_blocks(model: nn.Module, args: MD4TrainingArguments):
    """Compile each block of a network in place; names of modules and parameters stay as they are."""
    names = undivided_classes(model)
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
