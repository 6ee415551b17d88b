"""How far the weights of a block moved, and in how many directions: would a low-rank update have been enough?

Pure mathematics on pairs of tensors; which tensor belongs to attention or to the MLP is the caller's knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

LORA_RANKS = (8, 16)


@dataclass(frozen=True)
class WeightDifference:
    """Of a group of weight tensors; numbers that need a matrix that moved are None where there is none.

    relative_frobenius: norm(tuned - base)_F / norm(base)_F over all tensors of the group, >= 0; None where tensors
        moved that are all zero in the base.
    effective_rank: exp of the entropy of the singular values of the difference (Roy & Vetterli 2007), the mean over the
        group's matrices that moved; 1 to the smaller side of a matrix.
    top_share: by rank r, the largest share of the squared norm of the differences that a rank-r update of each matrix
        could have made, 0 to 1.
    """

    relative_frobenius: float | None
    effective_rank: float | None
    top_share: dict[int, float] | None


def weight_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> WeightDifference:
    """Compares the tensors of a group, (base, tuned) each; those with two dimensions count as matrices.

    Raises:
        ValueError: there are no tensors.
    """
    difference_sq = base_sq = 0.0
    spectra, tensors = [], 0
    for base, tuned in pairs:
        tensors += 1
        difference = tuned.detach().double() - base.detach().double()
        difference_sq += float(difference.square().sum())
        base_sq += float(base.detach().double().square().sum())
        if difference.ndim == 2 and bool(difference.any()):
            spectra.append(squared_singular_values(difference))
    if not tensors:
        raise ValueError("a relative norm needs tensors")
    relative = None if base_sq == 0 else (difference_sq / base_sq) ** 0.5
    if difference_sq == 0:
        relative = 0.0
    if not spectra:
        return WeightDifference(relative, None, None)
    total = sum(float(spectrum.sum()) for spectrum in spectra)
    shares = {rank: sum(float(spectrum[:rank].sum()) for spectrum in spectra) / total for rank in LORA_RANKS}
    ranks = [effective_rank(spectrum) for spectrum in spectra]
    return WeightDifference(relative, sum(ranks) / len(ranks), shares)


def squared_singular_values(matrix: Tensor) -> Tensor:
    """From the smaller Gram matrix in float64, which costs a fraction of a decomposition; falling, [min(m, n)]."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squared: Tensor = torch.linalg.eigvalsh(wide @ wide.T)
    return squared.clamp_min(0).flip(0)


def effective_rank(squared: Tensor) -> float:
    """exp of the Shannon entropy of the singular values, normalised to sum 1; from their squares."""
    values = squared.sqrt()
    shares = values / values.sum()
    kept = shares[shares > 0]
    return float(torch.exp(-(kept * kept.log()).sum()))
