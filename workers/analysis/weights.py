"""How far the weights of a block moved, and in how many directions: would a low-rank update have been enough?

Pure mathematics on pairs of tensors; which tensor belongs to attention or to the MLP is the caller's knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.analysis.moments import add_gram

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
        sums = _TensorSums.of(base.detach(), tuned.detach())
        difference_sq += sums.difference_sq
        base_sq += sums.base_sq
        if sums.gram is not None:
            noise = sums.rounding_sq / base.numel()
            matrix_sq += sums.difference_sq
            rounding += sums.rounding_sq
            edge = noise * (EDGE_MARGIN * sum(size**0.5 for size in base.shape)) ** 2
            spectrum = torch.linalg.eigvalsh(sums.gram, UPLO="U").clamp_min(0).flip(0).double()
            resolved = torch.finfo(sums.gram.dtype).eps * float(spectrum[0]) * len(spectrum) ** 0.5
            spectra.append(spectrum[spectrum > max(edge, resolved)])
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


EXACT_SIDE = 1024
"""Of wider matrices in half precision Gram matrices are summed in float32: what that blurs is below their rounding."""

PART_NUMBERS = 1 << 22
"""Numbers of a tensor that are in float64 at a time."""

DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
"""Binary digits of a weight, the implicit one counted."""


@dataclass(frozen=True)
class _TensorSums:
    """Of one tensor in both models. gram: the smaller Gram matrix of a matrix's difference, of which the part above
    the diagonal counts; None: it did not move.
    """

    difference_sq: float
    base_sq: float
    rounding_sq: float
    gram: Tensor | None

    @staticmethod
    def of(base: Tensor, tuned: Tensor) -> _TensorSums:
        """In parts, since a table of embeddings in float64 is larger than all that is in memory otherwise."""
        matrix = base.ndim == 2
        turned = matrix and base.shape[0] < base.shape[1]

        def parts(tensor: Tensor) -> tuple[Tensor, ...]:
            rows = (tensor.T if turned else tensor) if matrix else tensor.flatten()
            found: tuple[Tensor, ...] = rows.split(max(1, PART_NUMBERS // (rows.shape[1] if matrix else 1)))
            return found

        base_sq = sum(_square_sum(one) for one in parts(base))
        if torch.equal(base, tuned):
            return _TensorSums(0.0, base_sq, 0.0, None)
        digits, side = digits_of(tuned), min(base.shape) if matrix else 0
        coarse = digits <= DIGITS[torch.float16] and base.dtype != torch.float64
        kind = torch.float32 if coarse and side > EXACT_SIDE else torch.float64
        gram = torch.zeros(side, side, dtype=kind, device=base.device)
        difference_sq = 0.0
        for one, other in zip(parts(base), parts(tuned), strict=True):
            difference = other.to(kind) - one.to(kind)
            difference_sq += _square_sum(difference)
            if matrix:
                add_gram(gram, difference)
        rounding_sq = sum(rounding_square_sum(other, digits) for other in parts(tuned)) if matrix else 0.0
        return _TensorSums(difference_sq, base_sq, rounding_sq, gram if matrix else None)


def _square_sum(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64).square())


def digits_of(weights: Tensor) -> int:
    """Binary digits of the coarsest precision that holds these weights exactly; 53: none of the usual ones does.

    A checkpoint's own precision is not asked for: weights that were ever rounded to bfloat16 are known by their digits.
    """

    def holds(kind: torch.dtype) -> bool:
        return all(torch.equal(part.to(kind).to(part.dtype), part) for part in weights.flatten().split(PART_NUMBERS))

    return next((digits for kind, digits in DIGITS.items() if holds(kind)), 53)


def rounding_square_sum(weights: Tensor, digits: int) -> float:
    """The mean squared error of rounding to so many digits, spacing^2 / 12, summed over weights that float32 holds.

    It depends on a weight's exponent alone, so exponents are counted; weights below 1e-38 add nothing.
    """
    biased = (weights.to(torch.float32).view(torch.int32) >> 23) & 0xFF
    counts = torch.bincount(biased.flatten(), minlength=256)[1:].double()
    spacings = torch.ldexp(counts.new_ones(255), torch.arange(1, 256, device=counts.device) - 126 - digits)
    return float((counts * spacings.square()).sum()) / 12


def effective_rank(squared: Tensor) -> float:
    """exp of the Shannon entropy of the singular values, normalised to sum 1; from their squares."""
    values = squared.sqrt()
    shares = values / values.sum()
    kept = shares[shares > 0]
    return float(torch.exp(-(kept * kept.log()).sum()))
