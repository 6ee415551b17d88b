"""How far the weights of a block moved, and in how many directions: would a low-rank update have been enough?

Pure mathematics on pairs of tensors; which tensor belongs to attention or to the MLP is the caller's knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

LORA_RANKS = (8, 16)

EDGE_MARGIN = 1.1
"""The largest singular value of noise lies at its limit only on average: it is exceeded by a few percent in matrices
of a few hundred rows."""


@dataclass(frozen=True)
class WeightDifference:
    """Of a group of weight tensors; numbers that need a matrix that moved are None where there is none.

    relative_frobenius: norm(tuned - base)_F / norm(base)_F over all tensors of the group, >= 0; None where tensors
        moved that are all zero in the base.
    effective_rank: exp of the entropy of the singular values of the difference (Roy & Vetterli 2007), the mean over the
        group's matrices that moved; 1 to the smaller side of a matrix. Of a matrix only what is above its rounding
        counts: singular values beyond the largest that rounding alone gives (Marchenko & Pastur 1967).
    top_share: by rank r, the largest share of the squared norm of what is above the rounding that a rank-r update of
        each matrix could have made, 0 to 1.
    rounding_share: share of the squared norm of the matrices' differences that rounding to the precision of the tuned
        weights makes, on average, 0 to 1.
    """

    relative_frobenius: float | None
    effective_rank: float | None
    top_share: dict[int, float] | None
    rounding_share: float | None


def weight_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> WeightDifference:
    """Compares the tensors of a group, (base, tuned) each; those with two dimensions count as matrices.

    Raises:
        ValueError: there are no tensors.
    """
    difference_sq = base_sq = matrix_sq = rounding = 0.0
    spectra, tensors = [], 0
    for base, tuned in pairs:
        tensors += 1
        difference = tuned.detach().double() - base.detach().double()
        difference_sq += float(difference.square().sum())
        base_sq += float(base.detach().double().square().sum())
        if difference.ndim == 2 and bool(difference.any()):
            noise = float(rounding_variance(tuned.detach()).mean())
            matrix_sq += float(difference.square().sum())
            rounding += noise * difference.numel()
            edge = noise * (EDGE_MARGIN * sum(size**0.5 for size in difference.shape)) ** 2
            spectrum = squared_singular_values(difference)
            spectra.append(spectrum[spectrum > edge])
    if not tensors:
        raise ValueError("a relative norm needs tensors")
    relative = None if base_sq == 0 else (difference_sq / base_sq) ** 0.5
    if difference_sq == 0:
        relative = 0.0
    share = min(1.0, rounding / matrix_sq) if spectra else None
    above = [spectrum for spectrum in spectra if len(spectrum)]
    if not above:
        return WeightDifference(relative, None, None, share)
    total = sum(float(spectrum.sum()) for spectrum in above)
    shares = {rank: sum(float(spectrum[:rank].sum()) for spectrum in above) / total for rank in LORA_RANKS}
    ranks = [effective_rank(spectrum) for spectrum in above]
    return WeightDifference(relative, sum(ranks) / len(ranks), shares, share)


DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
"""Binary digits of a weight, the implicit one counted."""


def rounding_variance(weights: Tensor) -> Tensor:
    """The mean squared error of rounding to the coarsest precision that holds these weights exactly, entry by entry.

    A checkpoint's own precision is not asked for: weights that were ever rounded to bfloat16 are known by their digits.
    """
    digits = next(
        (digits for kind, digits in DIGITS.items() if torch.equal(weights.to(kind).to(weights.dtype), weights)), 53
    )
    spacing = torch.ldexp(
        torch.ones_like(weights, dtype=torch.float64), torch.frexp(weights.double()).exponent - digits
    )
    return torch.where(weights == 0, 0.0, spacing.square() / 12)


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
