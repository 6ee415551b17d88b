"""The tuned models of a study beside one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from layerdrift.contract.study_report import Matrix, SimilarityLayer, StudySimilarity, TreeJoin
from workers.analysis.kinship import Kinship, kinship
from workers.studies.shared_rows import SharedRows


def similarity_of(
    members: Sequence[str], rows: SharedRows, on_step: Callable[[], None] = lambda: None
) -> StudySimilarity:
    """At every layer.

    Args:
        members: names of the rows' models, in their order. on_step: is called now and then.
    """
    found: list[Kinship] = []
    width = 1
    for layer in range(rows.layers):
        base, tuned = rows.at(layer)
        width = base.shape[1]
        found.append(kinship(base, tuned, rows.groups, on_step))
    rank = found[0].rank
    return StudySimilarity(
        members=list(members),
        texts=rows.texts,
        tokens=len(rows.kept),
        rank=rank,
        chance_overlap=rank / width,
        layers=[_layer(index, one) for index, one in enumerate(found)],
        tree=tree_of([one.change_cosine.value for one in found[1:]]),
    )


def _layer(index: int, found: Kinship) -> SimilarityLayer:
    cka, cosine = found.cka, found.change_cosine
    return SimilarityLayer(
        index=index,
        cka=_matrix(cka.value),
        cka_low=_matrix(cka.low),
        cka_high=_matrix(cka.high),
        change_cosine=_matrix(cosine.value),
        change_cosine_low=_matrix(cosine.low),
        change_cosine_high=_matrix(cosine.high),
        overlap=_matrix(found.overlap),
        angle=_matrix(found.angle),
    )


def _matrix(values: Tensor) -> Matrix:
    return [[round(value, 6) if math.isfinite(value) else None for value in row] for row in values.tolist()]


def tree_of(cosines: Sequence[Tensor]) -> list[TreeJoin]:
    """Members joined by average linkage of 1 - cosine, mean over the layers that both changed; empty where two changed
    none in common.

    Args:
        cosines: of the changes of every two members, by layer, [M, M] each.
    """
    stacked = np.array([one.numpy() for one in cosines])
    known = np.isfinite(stacked)
    if not known.any(0).all():
        return []
    mean = np.nansum(stacked, axis=0) / known.sum(0)
    distances = np.clip(1 - (mean + mean.T) / 2, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    joins = linkage(squareform(distances, checks=False), method="average")
    return [TreeJoin(left=int(left), right=int(right), distance=float(distance)) for left, right, distance, _ in joins]
