# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""An enumerable world: a distribution over short sequences, its exact denoiser, and its exact reverse chain."""

import itertools

import torch
from scipy import stats
from torch import Tensor

from md4_hf import genmd4_reverse_probabilities, reverse_probabilities


# A comparison of samples with probabilities is one chi-square test with fixed seed; it fails if p < 1e-3.
DRAWS, LEAST_P = 20_000, 1e-3


class ToyWorld:
    """A random distribution over `length` tokens of a `vocab`; the mask id is `vocab`."""

    def __init__(self, vocab: int = 3, length: int = 3, seed: int = 0):
        self.vocab, self.length, self.mask = vocab, length, vocab
        self.sequences = torch.tensor(list(itertools.product(range(vocab), repeat=length)))
        generator = torch.Generator().manual_seed(seed)
        self.probability = torch.rand(len(self.sequences), generator=generator, dtype=torch.float64).square()
        self.probability /= self.probability.sum()

    def exact_logits_at(self, xt: Tensor, t: float, exponents: Tensor) -> Tensor:
        """Log of GenMD4's exact denoiser p(x_n | x_t, t): what is still masked tells of the tokens under the masks."""
        masked = xt[:, None] == self.mask
        agrees = (masked | (xt[:, None] == self.sequences)).all(-1)
        survival = t ** exponents[self.sequences]  # probability of being masked, of each token of each sequence
        weights = agrees * self.probability * torch.where(masked, survival, 1.0 - survival).prod(-1)
        return self._logits_of_mixture(weights)

    def exact_logits(self, xt: Tensor) -> Tensor:
        """Log of p(x_n | the unmasked tokens), `(batch, length, vocab + 1)`; the mask's column is finfo.min."""
        agrees = ((xt[:, None] == self.sequences) | (xt[:, None] == self.mask)).all(-1)
        return self._logits_of_mixture(agrees * self.probability)

    def _logits_of_mixture(self, weights: Tensor) -> Tensor:
        """Log of the mean token at each position, over the sequences with these weights."""
        onehot = torch.nn.functional.one_hot(self.sequences, self.vocab).double()
        mean = torch.einsum("bs,snv->bnv", weights, onehot) / weights.sum(-1)[:, None, None].clamp(min=1e-300)
        return torch.nn.functional.pad(mean.clamp(min=1e-300).log(), (0, 1), value=torch.finfo(torch.float64).min)

    def all_maskings(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """All `2^length` maskings of one sequence, and how many tokens each masks."""
        patterns = torch.tensor(list(itertools.product([False, True], repeat=self.length)))
        return torch.where(patterns, self.mask, x0), patterns.sum(-1)

    def states(self) -> Tensor:
        """All states of the reverse chain, masks included."""
        return torch.tensor(list(itertools.product(range(self.vocab + 1), repeat=self.length)))

    def exact_chain(
        self,
        logits_of,
        unmask_probabilities: Tensor,
        takes_step: bool = False,
        start: Tensor | None = None,
        remasks: Tensor | None = None,
    ) -> Tensor:
        """Distribution over `sequences` at the end of the reverse chain, by enumeration.

        `unmask_probabilities` holds one probability per step, or in GenMD4 one per step and token; so does `remasks`,
        with the probabilities that a decided token is masked again (none by default). `start` is the distribution over
        `states` at the beginning, all masked by default.
        """
        states = self.states()
        distribution = (states == self.mask).all(-1).double() if start is None else start
        remasks = torch.zeros_like(unmask_probabilities) if remasks is None else remasks
        for step, (opens, sigma) in enumerate(zip(unmask_probabilities, remasks, strict=True)):
            logits = logits_of(states) if not takes_step else logits_of(states, step)
            distribution = distribution @ self._kernel(states, logits, opens, sigma)
        done = (states != self.mask).all(-1)
        assert distribution[~done].sum() < 1e-12
        return distribution[done]

    def _kernel(self, states: Tensor, logits: Tensor, probability: Tensor, sigma: Tensor) -> Tensor:
        """P(next state | state): each masked position moves by its table, each decided one is masked or stays."""
        table_of = reverse_probabilities if probability.dim() == 0 else genmd4_reverse_probabilities
        table = table_of(logits, probability, self.mask)
        stay = torch.nn.functional.one_hot(states, self.vocab + 1).double()
        sigma = sigma.expand(self.vocab + 1)[states][..., None]
        masked_again = torch.nn.functional.one_hot(torch.tensor(self.mask), self.vocab + 1)
        table = torch.where((states == self.mask)[..., None], table, (1.0 - sigma) * stay + sigma * masked_again)
        return self._product(table)

    def _product(self, table: Tensor) -> Tensor:
        """P(next state | row of the table), from probabilities `(rows, length, vocab + 1)` of each position."""
        states, kernel = self.states(), torch.ones(len(table), 1, dtype=torch.float64)
        for position in range(self.length):
            kernel = kernel * table[:, position][:, states[:, position]]
        return kernel

    # With all tokens under the masks drawn together, x0 ~ p(x0 | x_t), as no denoiser does ---------------------------

    def noised(self, alpha: Tensor) -> Tensor:
        """q(x_t | x_0) `(sequences, states)`; `alpha` is one number, or one for each token and the mask."""
        alpha = alpha.expand(self.vocab + 1)[self.sequences][..., None]
        kept = torch.nn.functional.one_hot(self.sequences, self.vocab + 1).double()
        masked = torch.nn.functional.one_hot(torch.tensor(self.mask), self.vocab + 1)
        return self._product(alpha * kept + (1.0 - alpha) * masked)

    def marginal(self, alpha: Tensor) -> Tensor:
        """q(x_t) over `states`."""
        return self.probability @ self.noised(alpha)

    def joint_step(self, alpha: Tensor, opens: Tensor, sigma: Tensor) -> Tensor:
        """Distribution over `states` after a step from q(x_t) that draws x0 ~ p(x0 | x_t) and moves each position.

        A masked position becomes that of x0 with its probability `opens`, a decided one the mask with `sigma`.
        """
        states, noised = self.states(), self.probability[:, None] * self.noised(alpha)
        opens, sigma = (x.expand(self.vocab + 1)[self.sequences][..., None] for x in (opens, sigma))
        token = torch.nn.functional.one_hot(self.sequences, self.vocab + 1).double()
        mask = torch.nn.functional.one_hot(torch.tensor(self.mask), self.vocab + 1)
        result = torch.zeros(len(states), dtype=torch.float64)
        for state, weights in zip(states, noised.T, strict=True):
            opened = opens * token + (1.0 - opens) * mask
            kept = (1.0 - sigma) * torch.nn.functional.one_hot(state, self.vocab + 1) + sigma * mask
            result += weights @ self._product(torch.where((state == self.mask)[:, None], opened, kept))
        return result

    def index(self, states: Tensor) -> Tensor:
        """Place of each state in `states`."""
        return (states * (self.vocab + 1) ** torch.arange(self.length - 1, -1, -1)).sum(-1)


def p_value(world, sample, expected):
    """Chi-square of the sampled sequences against probabilities over `world.sequences`; rare cells are pooled."""
    index = (sample * world.vocab ** torch.arange(world.length - 1, -1, -1)).sum(-1)
    counts = index.bincount(minlength=len(world.sequences)).double()
    expected = expected / expected.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0, "an impossible sequence was drawn"
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    possible = expected > 0
    return stats.chisquare(counts[possible].numpy(), expected[possible].numpy()).pvalue
