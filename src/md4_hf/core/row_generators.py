# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Generators of the rows of a batch: each row has its own, so that its draws do not depend on the others."""

from __future__ import annotations

import torch


def row_generators(generator: torch.Generator | list[torch.Generator] | None, num_rows: int) -> list[torch.Generator]:
    """Create one generator per row, seeded by the row's own of a list, or in turn by a single one (or torch's)."""
    given = generator if isinstance(generator, list) else [generator]
    if not all(x is None or isinstance(x, torch.Generator) for x in given):
        raise ValueError(f"`generator` must be a torch.Generator, a list of them or None, got {generator!r}.")
    if not isinstance(generator, list):
        given = [generator] * num_rows
    elif len(generator) != num_rows:
        raise ValueError(f"`generator` must hold one generator per row, {num_rows}, got {len(generator)}.")
    # A list is seeded from too, so that a list of one generator gives the same draws as that generator alone.
    return reseed_all(given)


def reseed_all(generators: list) -> list[torch.Generator]:
    """Seed a fresh generator from each: a row uses only its first numbers, so that padding shifts no later draws."""
    return [reseed(generator) for generator in generators]


def reseed(generator: torch.Generator | None) -> torch.Generator:
    """Create a generator seeded by one draw from the given one (or from torch's own)."""
    device = generator.device if generator is not None else "cpu"
    return torch.Generator("cpu").manual_seed(torch.randint(2**62, (), generator=generator, device=device).item())
