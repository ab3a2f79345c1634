# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Draw how each kernel noises a text over time, for docs/baselines.md.

python scripts/draw_kernels.py docs/images/kernels.png
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable

import matplotlib
import torch
from torch import Tensor

from md4_hf import TokenPolynomialSchedule, corrupt, make_schedule
from md4_hf.core.discrete_kernels import Kernel
from md4_hf.core.schedules import left_broadcast
from md4_hf.utils.files import whole_file


TEXT = "how a text is noised, word by word"
ALPHABET = "abcdefghijklmnopqrstuvwxyz ,"
MASK, NUM_TIMES = len(ALPHABET), 9
RARE = "bdhnwxy"  # letters that the third picture keeps for longer
KEPT, MASKED, CHANGED = "#1f4e9c", "#c9ccd1", "#c0392b"


def linear(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mask, with the linear schedule."""
    return corrupt(x0, make_schedule("linear").alpha(t), MASK, noise=noise[..., 0])


def cosine(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mask, with the cosine schedule."""
    return corrupt(x0, make_schedule("cosine").alpha(t), MASK, noise=noise[..., 0])


def of_tokens(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mask, with a schedule for each token."""
    schedule = TokenPolynomialSchedule(len(ALPHABET) + 1, 1.0, 1e-4)
    exponents = torch.tensor([4.0 if letter in RARE else 0.5 for letter in (*ALPHABET, "")])
    schedule.free_exponents.data = torch.log(torch.expm1(exponents))
    return corrupt(x0, schedule.alpha_of(t, x0).detach(), MASK, noise=noise[..., 0])


def uniform(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Any token, with the linear schedule."""
    kept = noise[..., 0] < left_broadcast(make_schedule("linear").alpha(t), x0.dim())
    return torch.where(kept, x0, Kernel(len(ALPHABET)).draw_noise(noise[..., 1]))


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mask, linear: MD4, SEDD, D3PM, ARDM": linear,
    "mask, cosine: MD4": cosine,
    "mask, a schedule for each token: GenMD4": of_tokens,
    "any token: D3PM, multinomial, UDLM": uniform,
}


def draw(path: str | os.PathLike):
    """Write the picture: a panel for each kernel, with the text at times from 0, above, to 1."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ids = torch.tensor([[ALPHABET.index(letter) for letter in TEXT]]).expand(NUM_TIMES, -1)
    t = torch.linspace(0.0, 1.0, NUM_TIMES)
    noise = torch.rand((1, len(TEXT), 2), generator=torch.Generator().manual_seed(1)).expand(NUM_TIMES, -1, -1)
    figure, axes = plt.subplots(math.ceil(len(KERNELS) / 2), 2, figsize=(11.0, 5.2), layout="constrained")
    for axis, (title, kernel) in zip(axes.flat, KERNELS.items(), strict=True):
        xt = kernel(ids, t, noise)
        for row, (time, states) in enumerate(zip(t.tolist(), xt.tolist(), strict=True)):
            axis.text(-1.5, row, f"t = {time:.2f}", ha="right", va="center", fontsize=8, color="grey")
            for column, (state, clean) in enumerate(zip(states, ids[0].tolist(), strict=True)):
                letter, colour = "■" if state == MASK else ALPHABET[state], KEPT
                if state != clean:
                    colour = MASKED if state == MASK else CHANGED
                axis.text(column, row, letter, ha="center", va="center", family="monospace", color=colour, fontsize=10)
        axis.set(xlim=(-6.5, len(TEXT)), ylim=(NUM_TIMES - 0.5, -0.5))
        axis.set_title(title, fontsize=10, loc="left")
        axis.axis("off")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="PNG file to write.")
    draw(parser.parse_args().output)
