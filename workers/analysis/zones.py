"""Runs of layers whose drift is on one level: a least-squares piecewise-constant fit, its number of levels by BIC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal

ZoneName = Literal["general", "transitional", "specialised"]

MAX_LEVELS = 3
RESOLUTION = 0.01
"""Drifts nearer than this are not told apart; it also keeps a perfect fit from having infinite likelihood."""

GENERAL_CEILING = 0.1
"""A zone whose mean drift (1 - CKA) is above this did not keep its representations, however low its rank."""


@dataclass(frozen=True)
class Zone:
    """Layers `first` to `last` (both within), and the mean `level` of the excess drift of them."""

    name: ZoneName
    first: int
    last: int
    level: float


def fit_zones(excess: Sequence[float], drift: Sequence[float] | None = None) -> list[Zone]:
    """Splits layers into at most three zones.

    Args:
        excess: drift beyond chance, one value for each layer, 0 to about 1; at least one, all finite. The levels are
            fitted to it.
        drift: the drift itself, which tells whether a zone kept its representations; by default the same.

    Returns:
        Zones that cover all layers in order. Neighbours have different names, but for layers at the bottom that did
        not move at all: these are a zone of their own, whatever lies above them.
    """
    if not excess or not all(map(math.isfinite, excess)):
        raise ValueError("zones need a finite drift for every layer")
    drift = excess if drift is None else drift
    unmoved = next((layer for layer, value in enumerate(drift) if value != 0), len(drift))
    if unmoved in (0, len(drift)):
        return _fitted(excess, drift, MAX_LEVELS)
    above = _fitted(excess[unmoved:], drift[unmoved:], MAX_LEVELS - 1)
    return [
        Zone("general", 0, unmoved - 1, 0.0),
        *(replace(zone, first=zone.first + unmoved, last=zone.last + unmoved) for zone in above),
    ]


def _fitted(excess: Sequence[float], drift: Sequence[float], max_levels: int) -> list[Zone]:
    fits = [_best_segments(excess, levels) for levels in range(1, min(max_levels, len(excess)) + 1)]
    chosen = min(fits, key=lambda segments: _bic(excess, segments))
    return _merged(excess, _named(excess, drift, chosen))


Segment = tuple[int, int]


def _best_segments(drift: Sequence[float], levels: int) -> list[Segment]:
    candidates = []
    for cuts in combinations(range(1, len(drift)), levels - 1):
        edges = [0, *cuts, len(drift)]
        candidates.append([(a, b - 1) for a, b in pairwise(edges)])
    return min(candidates, key=lambda segments: _residual(drift, segments))


def _level(drift: Sequence[float], segment: Segment) -> float:
    inside = drift[segment[0] : segment[1] + 1]
    return sum(inside) / len(inside)


def _residual(drift: Sequence[float], segments: list[Segment]) -> float:
    return sum(
        (value - _level(drift, segment)) ** 2 for segment in segments for value in drift[segment[0] : segment[1] + 1]
    )


def _bic(drift: Sequence[float], segments: list[Segment]) -> float:
    n = len(drift)
    parameters = 2 * len(segments) - 1
    return n * math.log(_residual(drift, segments) / n + RESOLUTION**2) + parameters * math.log(n)


def _named(excess: Sequence[float], drift: Sequence[float], segments: list[Segment]) -> list[Zone]:
    """Names by absolute drift first (only a low one is general), then by rank: the highest is specialised."""
    levels = [_level(excess, segment) for segment in segments]
    highest = max(levels)
    zones = []
    for (first, last), level in zip(segments, levels, strict=True):
        name: ZoneName = "transitional"
        if _level(drift, (first, last)) <= GENERAL_CEILING:
            name = "general"
        elif level == highest:
            name = "specialised"
        zones.append(Zone(name, first, last, level))
    return zones


def _merged(drift: Sequence[float], zones: list[Zone]) -> list[Zone]:
    merged = [zones[0]]
    for zone in zones[1:]:
        before = merged[-1]
        if zone.name == before.name:
            segment = (before.first, zone.last)
            merged[-1] = Zone(zone.name, *segment, _level(drift, segment))
        else:
            merged.append(zone)
    return merged
