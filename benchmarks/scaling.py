# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The arithmetic of `scripts/scaling.py` against what a model saves and what two processes hold and send.

python benchmarks/scaling.py --output benchmarks/results/scaling.md

DeepSpeed's strategies are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from measuring import machine, publish
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import TrainerCallback

from md4_hf import MD4Config, MD4ForMaskedDiffusion


def load_arithmetic() -> ModuleType:
    """`scripts/scaling.py`, which has the name of this file."""
    path = Path(__file__).parents[1] / "scripts" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling_arithmetic", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


arithmetic = load_arithmetic()
PROCESSES, SEQUENCES, ACCUMULATION, STEPS = 2, 4, 2, 3
BUCKET = 200_000  # elements of DeepSpeed's buckets, which are not counted
MANY = 1000  # elements: what is smaller is not counted as a gradient
ELEMENT_BYTES = {"float": 4, "c10::BFloat16": 2, "double": 8, "unsigned char": 1, "long int": 8}


def make_config() -> MD4Config:
    """A small model with the parts of the large ones."""
    return MD4Config(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        mlp_type="glu",
        conditioning_size=64,
    )


# What a model saves ---------------------------------------------------------------------------------------------------


def saved_in_forward(config: MD4Config, sequences: int, low: int, checkpointing: bool) -> tuple[int, float]:
    """Bytes of the tensors that a forward saves, other than weights, as counted and by the arithmetic.

    Args:
        config: Of the model.
        sequences: In the batch.
        low: 2 for autocast in bf16, 4 for float32.
        checkpointing: Of the layers.
    """
    torch.manual_seed(0)
    model = MD4ForMaskedDiffusion(config).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    weights, saved = {storage_of(parameter)[0] for parameter in model.parameters()}, {}

    def note(tensor: Tensor) -> Tensor:
        if storage_of(tensor)[0] not in weights:
            saved[storage_of(tensor)[0]] = tensor  # kept, so that its place is not taken by another
        return tensor

    length, mask = config.max_position_embeddings, config.mask_token_id
    x0 = torch.randint(mask, (sequences, length))
    t = (torch.arange(sequences) + 0.5) / sequences
    xt = torch.where(torch.rand(x0.shape) < 1 - t[:, None], x0, mask)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=low == 2):
        loss = model(xt, timesteps=t, labels=x0).loss
    assert loss.requires_grad
    counted = sum(storage_of(tensor)[1] for tensor in saved.values())
    masked = int((xt == mask).sum())
    expected = arithmetic.saved_bytes(config, x0.numel(), masked, 4, low, checkpointing)
    if low == 2:
        expected += arithmetic.autocast_copies(arithmetic.count_weights(config), config, low, checkpointing)
    return counted, expected


def storage_of(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of what lies behind a tensor, of a sharded one this process's part."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    storage = local.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


# What a process holds and sends ---------------------------------------------------------------------------------------


def strategy_options(strategy: str) -> dict[str, Any]:
    """Arguments of the `Trainer` for a strategy on processors."""
    if strategy == arithmetic.DDP:
        return {}
    if strategy == arithmetic.FSDP2:
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        # On the CPU, accelerate takes FSDP for granted only where it believes in several GPUs.
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        config = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
        config |= {"transformer_layer_cls_to_wrap": ["MD4Layer"], "state_dict_type": "FULL_STATE_DICT"}
        return {"fsdp": True, "fsdp_config": config, "accelerator_config": {"use_configured_state": True}}
    zero = {"stage": int(strategy[-1]), "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    config = {"zero_optimization": zero, "bf16": {"enabled": "auto"}, "zero_allow_untested_optimizer": True}
    return {"deepspeed": config | dict.fromkeys(names, "auto")}


class Watch(TrainerCallback):
    """Counts what a process holds between the second step's micro-batches, and records what the last step sends."""

    def __init__(self, folder: Path):
        self.trace = folder / f"trace-{os.environ['RANK']}.json"
        self.trainer: Any = None
        self.held: dict[str, int] = {}

    def on_step_begin(self, args, state, control, **kwargs):
        """Watch the last step."""
        if state.global_step == STEPS - 1:
            activities = [torch.profiler.ProfilerActivity.CPU]
            self.profile = torch.profiler.profile(activities=activities, record_shapes=True)
            self.profile.start()

    def on_step_end(self, args, state, control, **kwargs):
        """Write down what was sent."""
        if state.global_step == STEPS:
            self.profile.stop()
            self.profile.export_chrome_trace(str(self.trace))

    def on_substep_end(self, args, state, control, **kwargs):
        """Between the micro-batches of a step."""
        if state.global_step == 1:
            self.held = held_bytes(self.trainer)


def held_bytes(trainer: Any) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer and average in this process: of each storage once, in this order."""
    wrapped, optimizer = trainer.optimizer, trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        wrapped, optimizer = optimizer, optimizer.optimizer
    kinds: dict[str, list[Tensor]] = {"weights": [], "optimizer": [], "average": trainer.ema.average.shadow_params}
    for parameter in trainer.model.parameters():
        kinds["weights"] += [parameter.data, *([parameter.ds_tensor.data] if hasattr(parameter, "ds_tensor") else [])]
    for state in optimizer.state.values():
        kinds["optimizer"] += [value for value in state.values() if isinstance(value, Tensor)]
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):  # of DeepSpeed
        kinds["optimizer"] += getattr(wrapped, name, [])
    seen: dict[int, int] = {}
    held = {kind: count_new(tensors, seen) for kind, tensors in kinds.items()}
    # Gradients have many places, DeepSpeed's most of all: they are what else there is.
    gc.collect()
    others = [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]
    others += [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    held["gradients"] = count_new((tensor for tensor in others if is_gradient(tensor)), seen)
    return held


def count_new(tensors: Iterable[Tensor], seen: dict[int, int]) -> int:
    """Bytes of the storages that were not seen before."""
    new = {address: size for address, size in map(storage_of, tensors) if address not in seen}
    seen |= new
    return sum(new.values())


def is_gradient(tensor: Tensor) -> bool:
    """Whether a tensor that is nothing else may hold gradients: it is large, of numbers, and no bucket."""
    if isinstance(tensor, DTensor):
        return True
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.is_floating_point() and elements >= MANY and elements != BUCKET


def sent_by(trace: Path, processes: int) -> float:
    """Bytes that a process would send by rings in the collectives of a profile."""
    gathered = scattered = reduced = 0
    for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]:
        name, arguments = event.get("name"), event.get("args", {})
        if name == "c10d::_allgather_base_":
            gathered += tensor_bytes(arguments, 0)
        elif name == "c10d::_reduce_scatter_base_":
            scattered += tensor_bytes(arguments, 1)
        elif name == "gloo:all_reduce":  # gloo makes a reduce-scatter of it, too
            reduced += tensor_bytes(arguments, 0)
    return (2 * (reduced - scattered) + gathered + scattered) * (processes - 1) / processes


def tensor_bytes(arguments: dict[str, Any], index: int) -> int:
    """Size of an argument of a profiled call."""
    return math.prod(arguments["Input Dims"][index]) * ELEMENT_BYTES[arguments["Input type"][index]]


def train(strategy: str, folder: Path):
    """Train a little as one of several processes, and leave what was counted; the first process does."""
    from datasets import Dataset

    from md4_hf import MD4Trainer, MD4TrainingArguments

    options = strategy_options(strategy)
    torch.manual_seed(0)
    config, watch = make_config(), Watch(folder)
    examples = PROCESSES * SEQUENCES * ACCUMULATION * STEPS
    ids = torch.randint(config.mask_token_id, (examples, config.max_position_embeddings))
    arguments = MD4TrainingArguments(
        str(folder / "run"),
        max_steps=STEPS,
        per_device_train_batch_size=SEQUENCES,
        gradient_accumulation_steps=ACCUMULATION,
        use_cpu=True,
        bf16=True,
        report_to=[],
        save_strategy="no",
        max_grad_norm=0.0,
        **options,
    )
    data = Dataset.from_dict({"input_ids": ids.tolist()})
    model = MD4ForMaskedDiffusion(config)
    watch.trainer = MD4Trainer(model=model, args=arguments, train_dataset=data, callbacks=[watch])
    watch.trainer.train()
    if watch.trainer.is_world_process_zero():
        counted = watch.held | {"sent": sent_by(watch.trace, PROCESSES)}
        (folder / "counted.json").write_text(json.dumps(counted), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def counted_and_expected(strategy: str) -> dict[str, tuple[float, float]]:
    """Bytes by kind, as counted in two processes and by the arithmetic."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
        command = [sys.executable, "-m", *launcher, __file__, "--worker", strategy, folder]
        environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **os.environ}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(run.stderr)
        counted = json.loads(Path(folder, "counted.json").read_text(encoding="utf-8"))
    weights = arithmetic.count_weights(make_config())
    expected = arithmetic.state_bytes(weights, strategy, PROCESSES, ACCUMULATION)
    expected["sent"] = arithmetic.sent_bytes(weights, strategy, PROCESSES, ACCUMULATION)
    return {kind: (counted[kind], expected[kind]) for kind in expected}


# The report -----------------------------------------------------------------------------------------------------------


def available_strategies() -> list[str]:
    """Those whose libraries are here."""
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    return [arithmetic.DDP, arithmetic.FSDP2, *(arithmetic.STRATEGIES[3:] if has_deepspeed else [])]


def cell(counted: float, expected: float) -> str:
    """What was counted, in MB, and its ratio to the arithmetic."""
    return f"{counted / 1e6:.2f} ({counted / expected:.2f})"


def report() -> str:
    """Measure, and write it up."""
    config = make_config()
    rows = []
    for low, name in ((4, "float32"), (2, "bf16 autocast")):
        for sequences in (SEQUENCES, 4 * SEQUENCES):
            cells = [cell(*saved_in_forward(config, sequences, low, is_on)) for is_on in (False, True)]
            rows.append([name, str(sequences), *cells])
    saved = arithmetic.table(["precision", "sequences", "saved", "saved with checkpointing"], rows)
    strategies = available_strategies()
    counts = {strategy: counted_and_expected(strategy) for strategy in tqdm(strategies, desc="strategies")}
    header = ["strategy", "weights", "gradients", "optimizer", "average", "sent in a step"]
    table = arithmetic.table(header, [[s, *(cell(*pair) for pair in kinds.values())] for s, kinds in counts.items()])
    left_out = "" if len(strategies) == 5 else "DeepSpeed is not installed: its strategies are left out.\n\n"
    return (
        f"# The arithmetic of scaling against what is held and sent\n\n{machine()}\n\n"
        f"```bash\npython benchmarks/scaling.py {shlex.join(sys.argv[1:])}\n```\n\n"
        "MB as counted, and in parentheses their ratio to `scripts/scaling.py`. The model has "
        f"{config.num_hidden_layers} × {config.hidden_size}, {config.vocab_size} tokens and the length "
        f"{config.max_position_embeddings}.\n\n"
        f"Tensors that a forward saves for the backward, weights left out:\n\n{saved}\n"
        f"Per process, of {PROCESSES}, between the {ACCUMULATION} micro-batches of a step, in bf16 on processors:\n\n"
        f"{table}\n{left_out}"
        "DDP's buckets, DeepSpeed's buckets and gathered weights are not counted. Sent is what the collectives of a "
        "profiled step send by rings.\n"
    )


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    parser.add_argument("--worker", nargs=2, metavar=("STRATEGY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        train(args.worker[0], Path(args.worker[1]))
        return
    publish(report(), args.output)


if __name__ == "__main__":
    main()
