# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""An enumerable world for the processes of the baselines: a distribution, its exact predictions, bounds and chains."""

import itertools
from types import SimpleNamespace

import torch

from md4_hf.core.discrete_processes import discrete_process


class World:
    """A distribution over sequences of data tokens 0 ... V-1, and what is exact in it for a process."""

    def __init__(self, vocab, length, seed=0):
        self.vocab, self.length = vocab, length
        self.sequences = torch.tensor(list(itertools.product(range(vocab), repeat=length)))
        generator = torch.Generator().manual_seed(seed)
        self.probability = torch.rand(len(self.sequences), generator=generator, dtype=torch.float64).square() + 0.01
        self.probability /= self.probability.sum()

    def states(self, process):
        """All sequences of states."""
        return torch.tensor(list(itertools.product(range(process.kernel.num_states), repeat=self.length)))

    def noised(self, process, alpha):
        """q(x_t | x_0) of each position, `(sequences, states, length)`."""
        x0 = process.kernel.one_hot(self.sequences, torch.zeros((), dtype=torch.float64))
        marginal = process.kernel.marginal(x0, alpha.expand(len(x0)))
        return torch.stack([marginal[:, n][:, self.states(process)[:, n]] for n in range(self.length)], dim=-1)

    def exact_logits(self, process, t, sees_itself=False):
        """Log of p(x_0^n | x_t of the remaining positions) in each state, or of all: `(states, length, S)`."""
        noised = self.noised(process, process.alpha(t))
        logits = torch.full((noised.shape[1], self.length, process.kernel.num_states), -1e4, dtype=torch.float64)
        for n in range(self.length):
            seen = noised if sees_itself else noised[..., [m for m in range(self.length) if m != n]]
            weights = self.probability[:, None] * seen.prod(dim=-1)
            for token in range(self.vocab):
                own = weights[self.sequences[:, n] == token].sum(dim=0) / weights.sum(dim=0).clamp(min=1e-300)
                logits[:, n, token] = own.clamp(min=1e-300).log()
        return logits

    def bound_at(self, process, t, logits):
        """Expectation over x_t of the bound's estimate, of each sequence."""
        states, weight = self.states(process), self.noised(process, process.alpha(t)).prod(dim=-1)
        nelbo = torch.zeros(len(self.sequences), dtype=torch.float64)
        for index, x0 in enumerate(self.sequences):
            x0 = x0.expand_as(states)
            values = process.token_nelbo(logits, x0, states, t.expand(len(states))).sum(dim=1)
            nelbo[index] = (weight[index] * values.where(weight[index] > 0, 0.0)).sum()
        return nelbo

    def chain_bound(self, process, logits_of):
        """Bound of each sequence in a chain, whose steps are enumerated."""
        steps = process.num_timesteps
        times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        total = sum(self.bound_at(process, t, logits_of(t)) for t in times) / steps
        return total + process.prior_nats * self.length

    def chain_probability(self, process, logits_of, steps):
        """Probability of each sequence at the end of the reverse chain."""
        states = self.states(process)
        like = torch.zeros((), dtype=torch.float64)
        distribution = process.kernel.noise(like)[states].prod(dim=-1)
        for k in range(steps, 0, -1):
            t = torch.full((len(states),), k / steps, dtype=torch.float64)
            table = process.reverse(logits_of(t[0]), states, t, (t - 1.0 / steps).clamp(min=0.0))
            kernel = torch.ones(len(states), len(states), dtype=torch.float64)
            for n in range(self.length):
                kernel = kernel * table[:, n][:, states[:, n]]
            distribution = distribution @ kernel
        return distribution[(states < self.vocab).all(dim=-1)]


def chain(name, vocab, steps):
    settings = SimpleNamespace(baseline=name, num_data_tokens=vocab, num_train_timesteps=steps)
    settings.hybrid_weight, settings.schedule_eps = 0.0, 1e-3
    return discrete_process(settings)
