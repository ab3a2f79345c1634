# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`torch_compile` on a CPU: block by block, where the whole model as one graph is slower than none."""

from torch import nn

from ..utils.sharding import undivided_classes
from .arguments import MD4TrainingArguments


def compiles_blocks(args: MD4TrainingArguments) -> bool:
    """Whether the blocks are compiled in place of the model.

    In one graph, a CPU would run the head at a fixed number of rows, and the loss gains nothing from it.
    """
    return args.torch_compile and args.device.type == "cpu"


def compile_blocks(model: nn.Module, args: MD4TrainingArguments):
    """Compile each block of a network in place; names of modules and parameters stay as they are."""
    names = undivided_classes(model)
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
