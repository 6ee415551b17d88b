"""Topics: tokens that gain at the same positions, by non-negative matrix factorisation (Lee & Seung 1999).

Shapes: P positions, N tokens, K topics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOPICS, ROUNDS = 3, 200
"""At most so many, as diff mining (arXiv 2608.26462) has them, and rounds of updates."""

LEAST_SHARE = 0.05
"""Of the squared gains: a topic with less is not told."""

_TINY = 1e-12


@dataclass(frozen=True)
class Topic:
    """share: of the squared norm that is lost without it, 0 to 1. weights: of the tokens [N], their sum is 1."""

    share: float
    weights: Tensor


def topics(gains: Tensor) -> list[Topic]:
    """The topics of gains [P, N] >= 0, those with the largest share first; none of gains that are all 0.

    Each factor is updated in turn with the others as they are (HALS), from the singular vectors.
    """
    total = float(gains.square().sum())
    count = min(TOPICS, *gains.shape)
    if total == 0 or count == 0:
        return []
    exact = gains.double()
    left, right = _start(exact, count)
    for _ in range(ROUNDS):
        left = _updated(exact, left, right)
        right = _updated(exact.T, right.T, left.T).T
    found, with_all = [], float((exact - left @ right).square().sum())
    for number in range(count):
        others = [one for one in range(count) if one != number]
        without = float((exact - left[:, others] @ right[others]).square().sum())
        share = max(0.0, without - with_all) / total
        if share >= LEAST_SHARE:
            weights = right[number] / right[number].sum().clamp_min(_TINY)
            found.append(Topic(min(1.0, share), weights.to(gains)))
    return sorted(found, key=lambda topic: -topic.share)


def _start(gains: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """NNDSVD (Boutsidis & Gallopoulos 2008): of each pair of singular vectors the larger of its two signs."""
    squares, vectors = torch.linalg.eigh(gains.T @ gains)  # there are fewer tokens than positions
    values, v = squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1).T
    u = gains @ v.T / values.clamp_min(_TINY)
    left, right = gains.new_zeros(gains.shape[0], count), gains.new_zeros(count, gains.shape[1])
    for number in range(count):
        parts = [(sign * u[:, number]).clamp_min(0) for sign in (1, -1)], [
            (sign * v[number]).clamp_min(0) for sign in (1, -1)
        ]  # fmt: skip
        sizes = [float(one.norm() * other.norm()) for one, other in zip(*parts, strict=True)]
        best = max((0, 1), key=sizes.__getitem__)
        one, other = parts[0][best], parts[1][best]
        scale = (float(values[number]) * sizes[best]) ** 0.5
        left[:, number] = scale * one / one.norm().clamp_min(_TINY)
        right[number] = scale * other / other.norm().clamp_min(_TINY)
    return left, right


def _updated(gains: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The left factor [P, K] that fits better, column by column."""
    found = left.clone()
    products, gram = gains @ right.T, right @ right.T
    for number in range(found.shape[1]):
        moved = products[:, number] - found @ gram[:, number]
        found[:, number] = (found[:, number] + moved / gram[number, number].clamp_min(_TINY)).clamp_min(0)
    return found
