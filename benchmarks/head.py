# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The loss of masked positions from their hidden states, forward and backward: our operator, torch's, and plain logits.

python benchmarks/head.py --output benchmarks/results/head.md
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys

import torch
import torch.nn.functional as F
from measuring import DEVICE, interleaved, machine, paired_ratio, publish
from torch.nn.functional import linear_cross_entropy

from md4_hf.core.linear_nelbo import linear_nelbo


def variants(rows: int, hidden: int, vocab: int):
    """Closures that compute the weighted loss and its gradients, on the same numbers."""
    torch.manual_seed(0)
    states = torch.randn(rows, hidden, device=DEVICE, requires_grad=True)
    head = (torch.randn(vocab, hidden, device=DEVICE) / hidden**0.5).requires_grad_()
    target = torch.randint(vocab - 1, (rows,), device=DEVICE)
    weight = torch.rand(rows, device=DEVICE)
    is_mask = torch.arange(vocab, device=DEVICE) == vocab - 1

    def plain():
        logits = F.linear(states, head).masked_fill(is_mask, torch.finfo(states.dtype).min)
        return (weight * F.cross_entropy(logits, target, reduction="none")).sum()

    def torchs():  # the mask's column stays in: there is no way to leave it out
        return (weight * linear_cross_entropy(states, head, target, reduction="none")).sum()

    def ours():
        return linear_nelbo(states, head, None, target, weight, vocab - 1)[0]

    return {
        name: lambda loss=loss: torch.autograd.grad(loss(), (states, head))
        for name, loss in (("plain logits", plain), ("torch's linear_cross_entropy", torchs), ("linear_nelbo", ours))
    }


def report(args: argparse.Namespace) -> str:
    """Measure, and write it up."""
    times = interleaved(variants(args.rows, args.hidden, args.vocab), args.repeats)
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
        "| variant | seconds | times faster than plain logits |",
        "| --- | --- | --- |",
    ]
    for name, elapsed in times.items():
        ratio = paired_ratio(times, "plain logits", name)
        lines.append(f"| {name} | {statistics.median(elapsed):.3f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=50258)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    args = parser.parse_args()
    publish(report(args), args.output)


if __name__ == "__main__":
    main()
