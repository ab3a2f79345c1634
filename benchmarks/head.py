# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Loss of masked positions from their hidden states, forward and backward: torch's operator and ours.

python benchmarks/head.py --output benchmarks/results/head.md

torch's `linear_cross_entropy` leaves the mask's column out with a bias of -inf there. Without `options` it makes all
logits at once; with them, a few rows at a time. A weight per row asks for its `reduction="none"`, which keeps no
gradients: the backward makes all logits once more. `linear_nelbo` has the weights inside its sum and makes them once.
It also has GenMD4's term, and its products are in the precision of autocast, which torch ignores in pieces.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import DEVICE, interleaved, machine, paired_ratio, publish
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

from md4_hf.core.linear_nelbo import linear_nelbo


CLOCK = time.perf_counter if DEVICE.type == "cuda" else time.process_time  # which other work does not disturb
ALL_LOGITS = "linear_cross_entropy, all logits"
TOLERANCE = 1e-5  # of the norm of losses and gradients, which differ by the rounding of float32 sums


def variants(rows: int, hidden: int, vocab: int, chunk: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Closures that compute the weighted loss and its gradients, on the same numbers."""
    torch.manual_seed(0)
    states = torch.randn(rows, hidden, device=DEVICE, requires_grad=True)
    head = (torch.randn(vocab, hidden, device=DEVICE) / hidden**0.5).requires_grad_()
    target = torch.randint(vocab - 1, (rows,), device=DEVICE)
    weight = torch.rand(rows, device=DEVICE)
    bias = torch.zeros(vocab, device=DEVICE)
    bias[-1] = -torch.inf  # the mask's column

    def torchs(options: LinearCrossEntropyOptions | None):
        nats = F.linear_cross_entropy(states, head, target, linear_bias=bias, reduction="none", options=options)
        return (weight * nats).sum()

    def ours():
        return linear_nelbo(states, head, None, target, weight, vocab - 1)[0]

    def with_gradients(loss: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        def step():
            value = loss()
            return value.detach(), *torch.autograd.grad(value, (states, head))

        return step

    return {
        ALL_LOGITS: with_gradients(lambda: torchs(None)),
        f"linear_cross_entropy, {chunk} rows at a time": with_gradients(
            lambda: torchs(LinearCrossEntropyOptions(batch_chunk_size=chunk))
        ),
        "linear_nelbo": with_gradients(ours),
    }


def largest_difference(functions: dict[str, Callable[[], tuple[Tensor, ...]]]) -> float:
    """Largest relative difference of a loss or gradient from that with all logits, by norms."""
    reference = functions[ALL_LOGITS]()
    return max(
        float((value - expected).norm() / expected.norm())
        for function in functions.values()
        for value, expected in zip(function(), reference, strict=True)
    )


def report(args: argparse.Namespace) -> str:
    """Measure, and write it up."""
    functions = variants(args.rows, args.hidden, args.vocab, args.chunk)
    difference = largest_difference(functions)
    if difference > TOLERANCE:
        raise ValueError(f"losses and gradients must agree to {TOLERANCE:g} of their norm, got {difference:.1e}.")
    times = interleaved(functions, args.repeats, CLOCK)
    lines = [
        "# The loss of masked positions",
        "",
        machine(),
        "",
        "```bash",
        "python benchmarks/head.py " + shlex.join(sys.argv[1:]),
        "```",
        "",
        f"{args.rows} rows, {args.hidden} wide, {args.vocab} tokens, float32, forward and backward.",
        "",
        f"Seconds of {'wall' if DEVICE.type == 'cuda' else 'processor'} time, medians of {args.repeats} turns; ratios "
        f"are medians of those within a turn. Losses and gradients agree to {difference:.1e} of their norm.",
        "",
        "| variant | seconds | times faster than with all logits | times slower than linear_nelbo |",
        "| --- | --- | --- | --- |",
    ]
    for name, elapsed in times.items():
        faster, slower = paired_ratio(times, ALL_LOGITS, name), paired_ratio(times, name, "linear_nelbo")
        lines.append(f"| {name} | {statistics.median(elapsed):.3f} | {faster:.2f} | {slower:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=50258)
    parser.add_argument("--chunk", type=int, default=256, help="Rows at a time of torch's operator.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of the processor.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    publish(report(args), args.output)


if __name__ == "__main__":
    main()
