"""Warnings on the measures themselves: a few features that outweigh the rest, measures that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from layerdrift.contract.names import MeasureName, ViewName
from workers.results.measured import Measured
from workers.results.similarity import Similarity
from workers.results.warnings import ReportWarning

OUTLIER_GAP = 0.1
"""CKA with and without standardised features differ by so much only where few features outweigh the rest."""

MATERIAL_GAP = 0.05
"""Two layers count as ordered by a measure where it differs by more than this and the intervals do not overlap."""

COMPARED: dict[ViewName, tuple[MeasureName, ...]] = {
    "token": ("cka", "cosine_centred", "relative_l2", "procrustes"),
    "mean": ("cka", "rsa", "knn_jaccard"),
}
FALLS: tuple[MeasureName, ...] = ("cka", "cosine_centred", "rsa", "knn_jaccard")
"""Measures that fall as layers drift apart; the others rise."""


def similarity_warnings(layers: list[dict[ViewName, Similarity]]) -> list[ReportWarning]:
    """Of the whole pair, layers 0 to L."""
    return [*_outlier_features(layers), *_disagreements(layers)]


def _outlier_features(layers: list[dict[ViewName, Similarity]]) -> list[ReportWarning]:
    found = []
    for index, views in enumerate(layers):
        plain, standardised = views["token"].cka.value, views["token"].cka_standardized.value
        if plain is not None and standardised is not None and abs(plain - standardised) > OUTLIER_GAP:
            found.append(f"{index} ({plain:.2f} vs {standardised:.2f})")
    if not found:
        return []
    message = (
        f"at layer {', '.join(found)} CKA changes by more than {OUTLIER_GAP:g} when features are standardised: a few "
        "high-variance features dominate there. Read both numbers"
    )
    return [ReportWarning(code="outlier_features", message=message)]


class _Drift(NamedTuple):
    """A measure turned so that more is farther apart; the ends of its interval."""

    low: float
    high: float


def _drift(layer: dict[ViewName, Similarity], view: ViewName, measure: MeasureName) -> _Drift | None:
    number: Measured | None = getattr(layer[view], measure)
    if number is None or number.value is None or number.low is None or number.high is None:
        return None
    ends = (-number.high, -number.low) if measure in FALLS else (number.low, number.high)
    return _Drift(*ends)


def _disagreements(layers: list[dict[ViewName, Similarity]]) -> list[ReportWarning]:
    """Pairs of layers that two measures of a view order differently, beyond their intervals."""
    found = []
    for view, measures in COMPARED.items():
        for one, other in combinations(measures, 2):
            pairs = list(_contradictions(layers, view, one, other))
            if pairs:
                lower, upper = max(pairs, key=lambda pair: pair[1] - pair[0])
                more = f", and {len(pairs) - 1} more pairs of layers" if len(pairs) > 1 else ""
                found.append(f"{one} and {other} on layers {lower} and {upper} ({view} view){more}")
    if not found:
        return []
    message = (
        f"measures disagree on which layer drifted more, beyond their intervals: {'; '.join(found)}. They capture "
        "different kinds of change (docs/numbers.md); do not base a conclusion on only one of them"
    )
    return [ReportWarning(code="measures_disagree", message=message)]


def _contradictions(
    layers: list[dict[ViewName, Similarity]], view: ViewName, one: MeasureName, other: MeasureName
) -> Iterator[tuple[int, int]]:
    for lower, upper in combinations(range(len(layers)), 2):
        orders = {_order(layers, lower, upper, view, measure) for measure in (one, other)}
        if orders == {-1, 1}:
            yield lower, upper


def _order(
    layers: list[dict[ViewName, Similarity]], lower: int, upper: int, view: ViewName, measure: MeasureName
) -> int:
    """1 where the upper layer drifted more by this measure, -1 where less, 0 where it cannot tell."""
    below, above = _drift(layers[lower], view, measure), _drift(layers[upper], view, measure)
    if below is None or above is None:
        return 0
    if above.low - below.high > MATERIAL_GAP:
        return 1
    return -1 if below.low - above.high > MATERIAL_GAP else 0
