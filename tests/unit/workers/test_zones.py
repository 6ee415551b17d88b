from __future__ import annotations

import pytest

from workers.analysis.zones import GENERAL_CEILING, fit_zones


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
