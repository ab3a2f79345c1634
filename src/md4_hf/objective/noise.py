# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Random numbers that are a pure function of what they are for.

Training noise is keyed by (seed, optimizer step, index of the example in that step), evaluation noise by (seed,
example, draw). So a run gives the same noise on 1 x 8, 2 x 4 or 8 x 1 (ranks x micro-batches), after a resume, and on
every device; and no generator state has to be saved.

The numbers come from a counter-based generator: the key is hashed with the finaliser of SplitMix64 (Steele, Lea,
Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014), chained over the parts of the key.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..core.masked_diffusion import discretize_times, stratified_times
from ..core.schedules import MaskingSchedule


# One number per use, so that the same (seed, step, example) gives unrelated numbers for unrelated things.
TRAIN_TIME, TRAIN_MASK, EVAL_TIME, EVAL_MASK, TRAIN_FLIP, TRAIN_CLASS, SAMPLE_SEED, TRAIN_ATTENTION = range(8)
EVAL_ORDER = 8

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_GOLDEN_RATIO_CONJUGATE = 0.6180339887498949


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the signed number that torch's int64 holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) shift of an int64 tensor."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def keyed_uniform(*key: int | Tensor, device: torch.device | str | None = None, dtype=torch.float32) -> Tensor:
    """Uniform numbers in [0, 1), one per element of the broadcast key, the same on every device.

    Args:
        key: Integers or int64 tensors that broadcast together.
        device: Where to compute; tensors in the key must be there.
        dtype: float32 (24 random bits) or float64 (53).
    """
    if dtype not in (torch.float32, torch.float64):  # in 16 bits, numbers are rounded to 1
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}.")
    state = torch.zeros((), dtype=torch.int64, device=device)
    for part in key:
        state = _mix((state ^ (_signed(part) if isinstance(part, int) else part)) + _signed(_GOLDEN_GAMMA))
    bits = 24 if dtype == torch.float32 else 53
    return _shift_right(_mix(state), 64 - bits).to(dtype) * 2.0**-bits


def training_times(seed: int, step: int, index: Tensor, total: int, per_example: int = 1) -> Tensor:
    """Stratified times of one optimizer step, `(n,)` float32 in [0, 1), or `(n, per_example)` for several of each.

    Any run of examples, such as a micro-batch, gets times from all over [0, 1): each has about as many masked tokens to
    work on, and no process waits for another that has more.

    Args:
        seed, step: Seed of the run and number of the optimizer step.
        index: `(n,)` indices in [0, total) of the examples at hand, counted over all ranks and micro-batches.
        total: Number of examples of the whole optimizer step.
        per_example: Number of times of each example, such as one for each of its blocks.
    """
    if per_example > 1:
        return training_times(seed, step, _parts(index, per_example), total * per_example).view(-1, per_example)
    offset = keyed_uniform(seed, TRAIN_TIME, step, dtype=torch.float64)
    stratum = index.cpu() * _stride(total) % total
    return stratified_times(offset, stratum, total).float().clamp(max=1.0 - 2.0**-24).to(index.device)


@functools.cache
def _stride(total: int) -> int:
    """A step through `total` strata that meets each once (it has no common factor), near the golden section of them."""
    wanted = total * _GOLDEN_RATIO_CONJUGATE
    below = math.floor(wanted)
    rings = ((below - distance, below + 1 + distance) for distance in range(total))  # ever farther from it
    found = ([k for k in ring if 1 <= k <= total and math.gcd(k, total) == 1] for ring in rings)
    return min(next(filter(None, found)), key=lambda k: abs(k - wanted))


@functools.lru_cache(maxsize=64)
def most_masked_tokens(
    schedule: MaskingSchedule, num_timesteps: int | None, num_examples: int, total: int, length: int
) -> int:
    """Upper bound on the number of masked tokens of a micro-batch, at any step of a training.

    It is known beforehand, so that nothing has to wait for the count, because the times are stratified: the largest
    expectation over all times that `training_times` can give, and eight standard deviations (probability 1e-15).

    Args:
        schedule: The masking schedule.
        num_timesteps: T of discrete time, None for continuous time.
        num_examples, total: Examples of the micro-batch, and of the whole optimizer step.
        length: Tokens of an example.
    """
    end = torch.arange(1, total + 1).double() / total  # a time lies below the end of its stratum
    if num_timesteps is not None:
        end = discretize_times(end, num_timesteps).clamp(max=1.0)
    masked = torch.fft.rfft(1.0 - schedule.alpha(end))
    taken = torch.bincount(torch.arange(num_examples) * _stride(total) % total, minlength=total).double()
    # Where the strata begin is drawn anew at each step: the sums for all beginnings are a circular correlation.
    sums = torch.fft.irfft(masked * torch.fft.rfft(taken).conj(), n=total)
    expected = length * sums.max().item()
    deviation = math.sqrt(length * num_examples) / 2.0
    return min(math.ceil(expected + 8.0 * deviation), num_examples * length)


def training_mask_noise(seed: int, step: int, index: Tensor, shape: torch.Size) -> Tensor:
    """Uniform numbers of `shape` `(n, ...)` that decide which tokens are masked; arguments as in `training_times`."""
    return _mask_noise((seed, TRAIN_MASK, step), index, shape)


def training_example_noise(seed: int, step: int, index: Tensor, use: int) -> Tensor:
    """Uniform numbers `(n,)` for a use: `TRAIN_FLIP`, images to mirror, or `TRAIN_CLASS`, classes to leave out."""
    return keyed_uniform(seed, use, step, index, device=index.device)


def annealed_attention(seed: int, step: int, num_steps: int, length: int, device: torch.device) -> Tensor:
    """Pairs of tokens of which the first attends to the second at a step of annealing, `(length, length)` booleans.

    Earlier tokens are always seen, each later one with the probability step / num_steps (DiffuLLaMA, Gong et al.,
    arXiv:2410.17891). All examples of a step share the pairs.
    """
    position = torch.arange(length, device=device)
    noise = keyed_uniform(seed, TRAIN_ATTENTION, step, position[:, None], position, device=device)
    return (noise < step / num_steps) | (position <= position[:, None])


def evaluation_times(seed: int, index: Tensor, draw: int, num_draws: int, per_example: int = 1) -> Tensor:
    """Times of draw `draw` of `num_draws` for the examples `index`, `(n,)` float32 in [0, 1), or `(n, per_example)`.

    The draws of one example are stratified: u_i / K, (u_i + 1) / K, (u_i + 2) / K, ... The u_i form the golden-ratio
    sequence, which fills [0, 1) evenly over any run of examples and does not depend on how many there are: so do the
    times of examples within each stratum, whatever K is. Examples take the strata in turn, so that a draw has times
    from all of them.
    """
    if per_example > 1:
        return evaluation_times(seed, _parts(index, per_example), draw, num_draws).view(-1, per_example)
    offset = keyed_uniform(seed, EVAL_TIME, dtype=torch.float64)
    index = index.cpu()
    stratum = (draw + index * _stride(num_draws)) % num_draws
    t = ((offset + index.double() * _GOLDEN_RATIO_CONJUGATE) % 1.0 + stratum) / num_draws
    return t.float().clamp(max=1.0 - 2.0**-24).to(index.device)


def _parts(index: Tensor, per_example: int) -> Tensor:
    """Numbers of all parts of examples, `(n * per_example,)`, from the numbers `(n,)` of the examples."""
    return (index[:, None] * per_example + torch.arange(per_example, device=index.device)).flatten()


def evaluation_mask_noise(seed: int, index: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """Uniform numbers of `shape` `(n, ...)` that decide which tokens are masked in draw `draw`."""
    return _mask_noise((seed, EVAL_MASK, draw), index, shape)


def evaluation_order_seeds(seed: int, index: Tensor, draw: int) -> list[int]:
    """Seeds in [0, 2^53) of the orders of draw `draw` for the examples `index` `(n,)`."""
    return (keyed_uniform(seed, EVAL_ORDER, draw, index.cpu(), dtype=torch.float64) * 2**53).long().tolist()


def sample_seed(seed: int, index: int) -> int:
    """Seed of sample `index` of a run: the run's own for the first one, so that a sample can be drawn again alone.

    The others are in [0, 2^53), where every program that reads JSON keeps them exactly.
    """
    return int(keyed_uniform(seed, SAMPLE_SEED, index, dtype=torch.float64) * 2**53) if index else seed


def _mask_noise(key: tuple[int, ...], index: Tensor, shape: torch.Size) -> Tensor:
    position = torch.arange(shape[1:].numel(), device=index.device)
    return keyed_uniform(*key, index[:, None], position, device=index.device).view(shape)
