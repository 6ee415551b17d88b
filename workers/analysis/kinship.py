"""How alike many models are that were tuned from one base: their states, their changes, and where these lie.

Pure mathematics on rows of the same tokens, at one layer. M models, N rows, width D; models a and b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.analysis.jackknife import jackknife_interval
from workers.analysis.similarity import MIN_ROWS

RANK = 8
"""Directions of a change that its subspace has."""

MIN_GROUPS = 5

SMALLEST = 1e-10
"""Share of the largest squared singular value below which a direction is rounding."""


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """A number of every two models with its interval, [M, M] each; NaN: it has none."""

    value: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, kw_only=True)
class Kinship:
    """At one layer.

    cka: debiased linear CKA of the tuned models' rows, at most 1.
    change_cosine: <C_a, C_b> / (|C_a| |C_b|) of the changes C = tuned - base with their means taken off, -1 to 1.
    overlap: |V_a^T V_b|_F^2 / r of the r strongest directions of the changes, 0 to 1; unrelated ones have r / D.
        On the diagonal the same between two halves of the texts.
    angle: smallest principal angle of these subspaces, degrees.
    rank: r.
    """

    cka: Pairwise
    change_cosine: Pairwise
    overlap: Tensor
    angle: Tensor
    rank: int


def kinship(base: Tensor, tuned: Tensor, groups: Tensor, on_step: Callable[[], None] = lambda: None) -> Kinship:
    """Of M models' rows.

    Args:
        base: [N, D], tuned: [M, N, D], the same tokens. groups: [N], of texts that are left out together.
        on_step: is called for every model.

    Raises:
        ValueError: there are too few rows.
    """
    if len(base) < MIN_ROWS:
        raise ValueError(f"{len(base)} rows are too few; at least {MIN_ROWS} are needed")
    changes = tuned.double() - base.double()
    changes = changes - changes.mean(1, keepdim=True)
    kernels = _kernels(tuned)
    kept = [groups != group for group in groups.unique().tolist()]
    overlap, angle, rank = _subspaces(changes, groups, on_step)
    return Kinship(
        cka=_with_intervals(_cka(kernels), [_cka(kernels[:, one][:, :, one]) for one in kept]),
        change_cosine=_with_intervals(_cosines(changes), [_cosines(changes[:, one]) for one in kept]),
        overlap=overlap,
        angle=angle,
        rank=rank,
    )


def _kernels(rows: Tensor) -> Tensor:
    """Inner products of centred rows without each row's own, [M, N, N]."""
    centred = rows.double() - rows.double().mean(1, keepdim=True)
    kernels = centred @ centred.transpose(1, 2)
    kernels.diagonal(dim1=1, dim2=2).zero_()
    return kernels


def _cka(kernels: Tensor) -> Tensor:
    """Debiased CKA of every two (HSIC1 of Song et al. 2012); NaN where a model's rows do not vary."""
    n = kernels.shape[1]
    flat, rows = kernels.flatten(1), kernels.sum(2)
    totals = rows.sum(1)
    products = flat @ flat.T
    hsic = products + torch.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T
    own = hsic.diagonal().clamp(min=0).sqrt()
    return torch.where(own > 0, hsic / torch.outer(own, own), torch.nan)


def _cosines(changes: Tensor) -> Tensor:
    """NaN where a model did not change."""
    flat = changes.flatten(1)
    products = flat @ flat.T
    own = products.diagonal().sqrt()
    return torch.where(torch.outer(own, own) > 0, products / torch.outer(own, own), torch.nan)


def _with_intervals(value: Tensor, left_out: Sequence[Tensor]) -> Pairwise:
    """Jackknife intervals over groups of texts; none where there are few groups, or a number is undefined."""
    low, high = torch.full_like(value, torch.nan), torch.full_like(value, torch.nan)
    if len(left_out) >= MIN_GROUPS:
        others = torch.stack(list(left_out))
        for one in range(len(value)):
            for other in range(one):
                some = others[:, one, other].tolist()
                if torch.isfinite(value[one, other]) and torch.isfinite(others[:, one, other]).all():
                    ends = jackknife_interval(float(value[one, other]), some)
                    low[one, other] = low[other, one] = max(-1.0, ends[0])
                    high[one, other] = high[other, one] = min(1.0, ends[1])
    return Pairwise(value=value, low=low, high=high)


def _subspaces(changes: Tensor, groups: Tensor, on_step: Callable[[], None]) -> tuple[Tensor, Tensor, int]:
    """Overlaps and smallest angles of the strongest directions; NaN where a model did not change."""
    models, rows, width = changes.shape
    rank = min(RANK, width, rows // 4)
    half = groups % 2 == 0
    bases: list[Tensor | None] = []
    for one in changes:
        bases.append(_directions(one, rank))
        on_step()
    overlap, angle = torch.full((2, models, models), torch.nan, dtype=torch.float64)
    for row in range(models):
        parts = [_directions(changes[row, side], rank) for side in (half, ~half)]
        on_step()
        for column in range(row + 1):
            pair = (parts[0], parts[1]) if row == column else (bases[row], bases[column])
            if pair[0] is None or pair[1] is None:
                continue
            cosines = torch.linalg.svdvals(pair[0].T @ pair[1]).clamp(max=1.0)
            overlap[row, column] = overlap[column, row] = cosines.square().sum() / rank
            angle[row, column] = angle[column, row] = torch.rad2deg(torch.arccos(cosines[0]))
    return overlap, angle, rank


def _directions(changes: Tensor, rank: int) -> Tensor | None:
    """The strongest right singular vectors, [D, r]; None where there are fewer that anything lies in."""
    if len(changes) < rank:
        return None
    centred = changes - changes.mean(0)
    few = len(centred) < centred.shape[1]
    values, vectors = torch.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    strongest, squares = vectors[:, -rank:].flip(1), values[-rank:].flip(0)
    if not float(squares[-1]) > SMALLEST * float(squares[0]) > 0:
        return None
    directions: Tensor = centred.T @ strongest / squares.sqrt() if few else strongest
    return directions
