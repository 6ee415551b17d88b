from __future__ import annotations

import random
import statistics
from itertools import combinations, pairwise

import numpy as np
import pytest

from workers.analysis.zones import GENERAL_CEILING, _step_fits, fit_zones, ramp_zones


def spans(drift: list[float]) -> list[tuple[str, int, int]]:
    return [(zone.name, zone.first, zone.last) for zone in fit_zones(drift)]


@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        ([0.0] * 7, [("general", 0, 6)]),
        ([0.001, 0.0, 0.002, 0.001], [("general", 0, 3)]),
        ([0.0, 0.0, 0.0, 0.0, 0.6, 0.6, 0.6], [("general", 0, 3), ("specialised", 4, 6)]),
        (
            [0.0001, 0.002, 0.01, 0.049, 0.257, 0.617, 0.885],
            [("general", 0, 3), ("transitional", 4, 4), ("specialised", 5, 6)],
        ),
        ([0.9, 0.9, 0.9], [("specialised", 0, 2)]),
        ([0.5], [("specialised", 0, 0)]),
        ([0.0] * 4 + [0.05, 0.45, 0.9], [("general", 0, 3), ("transitional", 4, 5), ("specialised", 6, 6)]),
        ([0.0, 0.5, 0.0, 0.0, 0.0], [("general", 0, 0), ("specialised", 1, 1), ("general", 2, 4)]),
    ],
)
def test_zones_are_where_the_levels_are(drift: list[float], expected: list[tuple[str, int, int]]) -> None:
    assert spans(drift) == expected


def test_layers_that_all_moved_are_never_called_general() -> None:
    drift = [0.3, 0.31, 0.6, 0.61, 0.9, 0.92]
    assert min(drift) > GENERAL_CEILING
    assert "general" not in {name for name, _, _ in spans(drift)}


def test_zones_cover_every_layer_once() -> None:
    drift = [0.1 * (index % 5) for index in range(25)]
    zones = fit_zones(drift)
    assert [zone.first for zone in zones[1:]] == [zone.last + 1 for zone in zones[:-1]]
    assert (zones[0].first, zones[-1].last) == (0, 24)


@pytest.mark.parametrize("drift", [[], [0.1, float("nan")]])
def test_drift_without_a_meaning_has_no_zones(drift: list[float]) -> None:
    with pytest.raises(ValueError, match="finite drift"):
        fit_zones(drift)


def test_a_zone_with_one_layer_that_moved_is_not_general() -> None:
    """Its mean was below the bound, and its largest drift 0.32."""
    drift = [0.02, 0.02, 0.02, 0.02, 0.02, 0.32, 0.02, 0.02]
    for zone in fit_zones(drift):
        assert zone.name != "general" or max(drift[zone.first : zone.last + 1]) <= GENERAL_CEILING


@pytest.mark.parametrize("layers", [7, 13, 33])
def test_a_ramp_is_called_one_and_steps_are_not(layers: int) -> None:
    ramp = [0.7 * layer / (layers - 1) for layer in range(layers)]
    (found,) = ramp_zones(ramp, ramp) or []
    assert (found.name, found.first, found.last) == ("ramp", 0, layers - 1)
    late = [0.0] * 4 + [0.2 * layer for layer in range(1, layers - 3)]
    assert [(zone.name, zone.first) for zone in ramp_zones(late, late) or []] == [("general", 0), ("ramp", 4)]
    steps = [0.0] * (layers // 2) + [0.6] * (layers - layers // 2)
    assert ramp_zones(steps, steps) is None
    flat = [0.01] * layers
    assert ramp_zones(flat, flat) is None


def test_the_fast_fit_of_steps_is_the_best_of_all() -> None:
    """Against every way to cut the curve, tried one by one."""
    generator = random.Random(0)
    for _ in range(20):
        drift = [generator.random() for _ in range(9)]
        for cuts, residual in _step_fits(np.asarray(drift)):
            every = [
                sum((value - statistics.mean(part)) ** 2 for part in parts for value in part)
                for edges in combinations(range(1, 9), len(cuts))
                for parts in [[drift[a:b] for a, b in pairwise([0, *edges, 9])]]
            ]
            assert residual == pytest.approx(min(every))
