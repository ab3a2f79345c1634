# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Variance of estimates of one bound and of its gradient: MD4's expression against that of the jump process.

python benchmarks/gradient_variance.py runs/tiny --output benchmarks/results/gradient_variance.md

MD4's bound is a cross entropy at the masks of x_t, one pass of the network. As Campbell et al. (arXiv:2205.14987) write
the bound of a jump process, it asks for the reverse rate of every jump that x_t may take: a pass for each unmasked
token, or one pass at a jump drawn at random. All have one expectation, for any denoiser.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
import textwrap
from collections.abc import Callable

import torch
from measuring import machine, publish
from torch import Tensor
from tqdm import tqdm

import md4_hf


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="Folder of an MD4 model that does not see the time.")
    parser.add_argument("--data", default="pydoc")
    parser.add_argument("--batch", type=int, default=32, help="Sequences of an estimate.")
    parser.add_argument("--repeats", type=int, default=64, help="Estimates of each kind.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="Markdown file to write; printed if left out.")
    return parser.parse_args(argv)


class Estimators:
    """Estimates of the bound of a batch, in nats per token, reconstruction left out, each from one draw of x_t."""

    def __init__(self, model, ids: Tensor, generator: torch.Generator):
        self.model, self.ids, self.generator = model, ids, generator
        self.schedule, self.mask = model.masking_schedule, model.config.mask_token_id

    def times(self, is_stratified: bool) -> Tensor:
        """Times of the batch, independent or stratified over it."""
        size = len(self.ids)
        if is_stratified:
            return md4_hf.stratified_times(torch.rand((), generator=self.generator), torch.arange(size), size)
        return torch.rand(size, generator=self.generator)

    def noised(self, t: Tensor) -> Tensor:
        """x_t of the batch."""
        return md4_hf.corrupt(self.ids, self.schedule.alpha(t), self.mask, generator=self.generator)

    def md4(self, is_stratified: bool) -> Tensor:
        """Cross entropy at the masks: one pass."""
        t = self.times(is_stratified)
        xt = self.noised(t)
        logits = self.model(xt).logits
        weight = md4_hf.nelbo_weight(self.schedule, t)
        return md4_hf.token_nelbo(logits, self.ids, xt, weight, self.mask).sum() / self.ids.numel()

    def jump(self, is_stratified: bool) -> Tensor:
        """Jump process, with one jump of each sequence drawn at random: one pass."""
        t = self.times(is_stratified)
        xt = self.noised(t)
        is_kept = xt != self.mask
        num_kept = is_kept.sum(dim=1)
        choice = torch.multinomial(is_kept.float() + (num_kept == 0)[:, None], 1, generator=self.generator)
        logits = self.model(xt.scatter(1, choice, self.mask)).logits
        log_mu = logits.log_softmax(dim=-1).gather(-1, self.ids[..., None]).squeeze(-1).gather(1, choice).squeeze(1)
        return self._bound(t, num_kept, num_kept * log_mu)

    def all_jumps(self, is_stratified: bool) -> Tensor:
        """Jump process with all jumps of each sequence: a pass for each unmasked token."""
        t = self.times(is_stratified)
        xt = self.noised(t)
        is_kept = xt != self.mask
        row, column = is_kept.nonzero(as_tuple=True)
        jumped = xt[row].scatter(1, column[:, None], self.mask)
        position = torch.zeros_like(jumped, dtype=torch.bool).scatter(1, column[:, None], True)
        logits = self.model(jumped, position_mask=position).logits
        log_mu = logits.log_softmax(dim=-1).gather(-1, self.ids[row, column][:, None]).squeeze(-1)
        return self._bound(t, is_kept.sum(dim=1), torch.zeros(len(xt)).index_add(0, row, log_mu))

    def _bound(self, t: Tensor, num_kept: Tensor, log_mu: Tensor) -> Tensor:
        """Exit rate of the reverse process less the forward rates times the log of the reverse ones, with constants."""
        forward, reverse = md4_hf.forward_rate(self.schedule, t), md4_hf.reverse_rate(self.schedule, t)
        exits = reverse * (self.ids.shape[1] - num_kept)
        jumps = forward * (num_kept * (reverse.log() - forward.log() + 1.0) + log_mu)
        return (exits - jumps).sum() / self.ids.numel() + self._ends()

    def _ends(self) -> Tensor:
        """Nats per token that the rates integrate to beside the bound: entropies of a token's mask at the two ends.

        Rates without log μ give the integral of -log(α / (1 - α)) over α, from α_1 to α_0. Zero for α_0 = 1 - α_1.
        """
        alpha = self.schedule.alpha(torch.tensor([0.0, 1.0]))
        at_start, at_end = torch.special.entr(alpha) + torch.special.entr(1.0 - alpha)
        return at_end - at_start


def variances(model, estimate: Callable[[], Tensor], repeats: int, name: str) -> dict[str, float]:
    """Mean and variance of the estimates, and of their gradients the trace of the covariance over the squared mean."""
    values, total, squares = [], None, 0.0
    for _ in tqdm(range(repeats), desc=name):
        model.zero_grad()
        value = estimate()
        value.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        values.append(value.item())
        total = gradient if total is None else total + gradient
        squares += gradient.square().sum().item()
    mean = total / repeats
    covariance = (squares - repeats * mean.square().sum().item()) / (repeats - 1)
    # Of the squared norm of a mean of estimates, their noise adds its share.
    signal = mean.square().sum().item() - covariance / repeats
    return {
        "mean": statistics.mean(values),
        "error": statistics.stdev(values) / math.sqrt(repeats),
        "variance": statistics.variance(values),
        "gradient": covariance,
        "relative": covariance / signal if signal > 0 else math.nan,
    }


def report(args: argparse.Namespace, argv: list[str]) -> str:
    """Measure all estimators on one batch, and write them up."""
    model = md4_hf.load_model(args.model)
    if model.config.time_conditioning:
        raise SystemExit("gradient_variance: MODEL must not see the time, of which a jump has none of its own")
    tokenizer, length = md4_hf.load_tokenizer(args.model), model.config.max_position_embeddings
    documents = md4_hf.load_train_validation(md4_hf.DataArguments(data=args.data))[1]
    blocks = md4_hf.pack(documents, tokenizer, length)[0].with_format("numpy")["input_ids"][: args.batch]
    estimators = Estimators(model, torch.as_tensor(blocks).long(), torch.Generator().manual_seed(args.seed))
    kinds = {
        "MD4": (estimators.md4, "1"),
        "jump process, one jump": (estimators.jump, "1"),
        "jump process, all jumps": (estimators.all_jumps, f"about {length // 2}"),
    }
    words = (
        f"Estimates of one bound on {len(blocks)} held-out sequences of {length} tokens, with the model {args.model} "
        f"({sum(p.numel() for p in model.parameters()):,} parameters): {args.repeats} draws of each. Passes are those "
        "of the network for each sequence. The variance of the gradient is the trace of its covariance; in the last "
        "column over the squared norm of its mean."
    )
    lines = ["# Variance of the bound and of its gradient", "", machine(), "", *textwrap.wrap(words, 120), ""]
    lines.append("| estimator | times | passes | nats per token | variance | variance of the gradient | relative |")
    lines.append("| --- " * 7 + "|")
    for name, (estimate, passes) in kinds.items():
        for is_stratified in (False, True):
            times = "stratified" if is_stratified else "independent"
            found = variances(model, lambda e=estimate, s=is_stratified: e(s), args.repeats, f"{name}, {times}")
            shown = [f"{found[name]:.3g}" for name in ("variance", "gradient", "relative")]
            cells = [name, times, passes, f"{found['mean']:.3f} ± {found['error']:.3f}", *shown]
            lines.append(f"| {' | '.join(cells)} |")
    command = f"python benchmarks/gradient_variance.py {shlex.join(argv)}"
    return "\n".join([*lines, "", "```bash", command, "```", ""])


if __name__ == "__main__":
    arguments = parse_arguments(sys.argv[1:])
    publish(report(arguments, sys.argv[1:]), arguments.output)
