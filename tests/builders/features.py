"""Rows that are sparse sums of known directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(rows: int, seed: int, atoms: int = 32) -> tuple[Tensor, Tensor]:
    """Rows that are sums of three atoms of a fixed random dictionary, and the dictionary."""
    dictionary = nn.functional.normalize(torch.randn(atoms, WIDTH, generator=generator(99)), dim=1)
    chosen = torch.rand(rows, atoms, generator=generator(seed)).topk(3, dim=1).indices
    strengths = 0.5 + torch.rand(rows, 3, generator=generator(seed + 1))
    return torch.einsum("nk,nkd->nd", strengths, dictionary[chosen]), dictionary
