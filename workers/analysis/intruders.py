"""Intruder dimensions (arXiv 2410.21228): strong directions of a tuned matrix that the base matrix does not have."""

from __future__ import annotations

import torch
from torch import Tensor

STRONGEST, LEAST_COSINE = 10, 0.5
"""Left singular vectors of the tuned matrix that are looked at; one is an intruder if no vector of the base matrix has
at least this cosine with it, as in the paper."""

WIDEST = 1_024
"""Smaller side of a matrix that is decomposed: a wider one takes longer than all else that is looked for."""


def is_decomposed(matrix: Tensor) -> bool:
    """Whether `intruders` takes a weight: a matrix that is not too wide."""
    return matrix.ndim == 2 and STRONGEST < min(matrix.shape) <= WIDEST


def intruders(base: Tensor, tuned: Tensor) -> int:
    """How many of the STRONGEST left singular vectors of `tuned` are none of `base`; 0 to STRONGEST.

    Args:
        base, tuned: [M, N] of one shape.
    """
    if torch.equal(base, tuned):
        return 0
    known, strong = _left(base), _left(tuned)[:, :STRONGEST]
    return int(((known.T @ strong).abs().max(0).values < LEAST_COSINE).sum())


def _left(matrix: Tensor) -> Tensor:
    """Left singular vectors, the strongest first, [M, min(M, N)]."""
    wide = matrix.detach().cpu().double()
    if wide.shape[0] <= wide.shape[1]:
        vectors: Tensor = torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)
        return vectors
    values, right = torch.linalg.eigh(wide.T @ wide)
    found: Tensor = wide @ right.flip(1) / values.flip(0).clamp_min(1e-30).sqrt()
    return found
