"""Runs of layers whose drift is on one level: a least-squares piecewise-constant fit, its number of levels by BIC.

And curves that rise steadily, of which steps would be an invention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ZoneName = Literal["general", "transitional", "specialised", "ramp"]

MAX_LEVELS = 3
RESOLUTION = 0.01
"""Drifts nearer than this are not told apart; it also keeps a perfect fit from having infinite likelihood."""

GENERAL_CEILING = 0.1
"""A zone with a layer whose drift (1 - CKA) is above this changed, however low its rank."""

RAMP_LAYERS = 3
"""Fewer layers than this do not tell a ramp from steps."""


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
        drift: the drift itself, whose largest value tells whether a zone is general; by default the same.

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


def ramp_zones(excess: Sequence[float], drift: Sequence[float]) -> list[Zone] | None:
    """A level bottom, which may be empty, and a straight ramp of three layers or more above it.

    None where steps describe the curve better (by BIC), or where it stays below GENERAL_CEILING. Arguments as in
    `fit_zones`.
    """
    curve = np.asarray(excess)
    layers = len(curve)
    if layers < RAMP_LAYERS or max(drift) <= GENERAL_CEILING:
        return None
    knots = np.arange(layers - RAMP_LAYERS + 1)
    rises = np.maximum(0, np.arange(layers) - knots[:, None]).astype(float)
    centred, offsets = curve - curve.mean(), rises - rises.mean(1, keepdims=True)
    slopes = offsets @ centred / (offsets**2).sum(1)
    residuals = ((centred - slopes[:, None] * offsets) ** 2).sum(1)
    scores = [_bic(layers, residual, 3 if knot else 2) for knot, residual in enumerate(residuals.tolist())]
    steps = min(_bic(layers, residual, 2 * len(cuts) + 1) for cuts, residual in _step_fits(curve))
    best = int(np.argmin(scores))
    if scores[best] >= steps or slopes[best] <= 0:
        return None
    start = best + 1 if best else 0  # the knot itself is on the level
    ramp = Zone("ramp", start, layers - 1, _level(excess, (start, layers - 1)))
    if not start:
        return [ramp]
    name: ZoneName = "general" if max(drift[:start]) <= GENERAL_CEILING else "transitional"
    return [Zone(name, 0, start - 1, _level(excess, (0, start - 1))), ramp]


def _fitted(excess: Sequence[float], drift: Sequence[float], max_levels: int) -> list[Zone]:
    curve = np.asarray(excess)
    fits = [fit for fit in _step_fits(curve) if len(fit[0]) < max_levels]
    cuts, _ = min(fits, key=lambda fit: _bic(len(curve), fit[1], 2 * len(fit[0]) + 1))
    edges = [0, *cuts, len(curve)]
    return _merged(excess, _named(excess, drift, [(a, b - 1) for a, b in pairwise(edges)]))


Segment = tuple[int, int]


def _step_fits(curve: NDArray[np.float64]) -> list[tuple[tuple[int, ...], float]]:
    """The best places to cut a curve into one level, two, and three, each with the squares that are left."""
    layers = len(curve)
    sums = np.concatenate([[0.0], np.cumsum(curve)])
    squares = np.concatenate([[0.0], np.cumsum(curve**2)])

    def residual(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (
            squares[ends] - squares[starts] - (sums[ends] - sums[starts]) ** 2 / (ends - starts)
        )
        return np.maximum(found, 0.0)

    first, last = np.array([0]), np.array([layers])
    fits: list[tuple[tuple[int, ...], float]] = [((), float(residual(first, last)[0]))]
    if layers >= 2:
        cuts = np.arange(1, layers)
        left = residual(first, cuts) + residual(cuts, last)
        fits.append(((int(cuts[left.argmin()]),), float(left.min())))
    if layers >= MAX_LEVELS:
        low, high = np.triu_indices(layers - 1, 1)
        low, high = low + 1, high + 1
        left = residual(first, low) + residual(low, high) + residual(high, last)
        best = int(left.argmin())
        fits.append(((int(low[best]), int(high[best])), float(left[best])))
    return fits


def _level(drift: Sequence[float], segment: Segment) -> float:
    inside = drift[segment[0] : segment[1] + 1]
    return sum(inside) / len(inside)


def _bic(layers: int, residual: float, parameters: int) -> float:
    return layers * math.log(residual / layers + RESOLUTION**2) + parameters * math.log(layers)


def _named(excess: Sequence[float], drift: Sequence[float], segments: list[Segment]) -> list[Zone]:
    """Names by absolute drift first (only a low one is general), then by rank: the highest is specialised."""
    levels = [_level(excess, segment) for segment in segments]
    highest = max(levels)
    zones = []
    for (first, last), level in zip(segments, levels, strict=True):
        name: ZoneName = "transitional"
        if max(drift[first : last + 1]) <= GENERAL_CEILING:
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
