"""How alike the texts' neighbourhoods are in two models: from the distances between a few hundred texts.

Pure mathematics on a sample that is held in memory; N texts need two N x N matrices for each model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 10


@dataclass(frozen=True)
class Geometry:
    """Of one site; None where the texts are too few, or all in one place.

    rsa: Spearman correlation of the two models' distances between all pairs of texts, [-1, 1] (Merchant et al. 2020).
    knn_jaccard: mean over texts of the Jaccard index of the two models' sets of 10 nearest texts, [0, 1].
    """

    rsa: float | None
    knn_jaccard: float | None


class PairDistances:
    """Euclidean distances between the same N texts in both models, at one site.

    Sorted once; leaving texts out then costs no sorting. Neighbourhoods are found once too: a text that is left out
    leaves the sets that it was in, and no other moves up. So a jackknife is of a smooth function of the sample; with
    sets filled up again its variance would be far too large, since who comes next changes by leaps.

    Args:
        base, tuned: [N, D].
    """

    def __init__(self, base: Tensor, tuned: Tensor) -> None:
        distances = [_distances(rows) for rows in (base, tuned)]
        self._pairs = torch.triu_indices(len(base), len(base), offset=1)
        self._rankings = [_Ranking(matrix[self._pairs[0], self._pairs[1]]) for matrix in distances]
        one, other = (_neighbours(matrix) for matrix in distances)
        self._shared, self._together = (one & other).double(), (one | other).double()

    def geometry(self, kept: Tensor | None = None) -> Geometry:
        """Of all texts, or of those that `kept`, [N] bool, tells."""
        if kept is None:
            kept = torch.ones(len(self._shared), dtype=torch.bool)
        if int(kept.sum()) < NEIGHBOURS + 2:
            return Geometry(None, None)
        inside = kept[self._pairs[0]] & kept[self._pairs[1]]
        rsa = _correlation(*(ranking.ranks(inside) for ranking in self._rankings))
        return Geometry(rsa, None if rsa is None else self._knn_jaccard(kept))

    def _knn_jaccard(self, kept: Tensor) -> float:
        shared, together = ((sets @ kept.double())[kept] for sets in (self._shared, self._together))
        some = together > 0
        return float((shared[some] / together[some]).mean())


def _distances(rows: Tensor) -> Tensor:
    """[N, D] -> [N, N] float64; by differences, since a Gram matrix would blur the smallest ones."""
    exact = rows.double()
    return torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")


def _neighbours(distances: Tensor) -> Tensor:
    """Whether a text is among the nearest of another, the first of equally near ones; [N, N] bool."""
    nearest = distances.clone().fill_diagonal_(torch.inf).argsort(dim=1, stable=True)[:, :NEIGHBOURS]
    return torch.zeros_like(distances, dtype=torch.bool).scatter_(1, nearest, True)


class _Ranking:
    """Values sorted once, so that the ranks of any part of them are quickly told; equal ones share their mean rank."""

    def __init__(self, values: Tensor) -> None:
        self._order = values.argsort(stable=True)
        ordered = values[self._order]
        self._level = torch.cat([torch.zeros(1, dtype=torch.int64), (ordered[1:] != ordered[:-1]).cumsum(0)])

    def ranks(self, kept: Tensor) -> Tensor:
        """The ranks of the kept values among themselves, in the values' own order; [sum kept] float64."""
        inside = kept[self._order]
        levels = self._level[inside]
        counts = torch.bincount(levels)
        mean_rank = counts.cumsum(0) - (counts - 1) / 2
        ranks = torch.zeros(len(kept), dtype=torch.float64)
        ranks[self._order[inside]] = mean_rank[levels].double()
        return ranks[kept]


def _correlation(one: Tensor, other: Tensor) -> float | None:
    one, other = one - one.mean(), other - other.mean()
    norms = float(one.square().sum() * other.square().sum()) ** 0.5
    return min(1.0, max(-1.0, float(one @ other) / norms)) if norms else None
