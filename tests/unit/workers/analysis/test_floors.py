"""The floor of scores of models that learned nothing."""

from __future__ import annotations

import statistics

import pytest

from workers.analysis.floors import floor_of, floor_of_largest


def test_the_floor_is_two_deviations_above_the_largest() -> None:
    scores = [0.2, -0.1, 0.4]
    assert floor_of(scores) == pytest.approx(0.4 + 2 * statistics.pstdev(scores))


@pytest.mark.parametrize("scores", [[], [0.0, 0.0]])
def test_without_any_score_there_is_no_floor(scores: list[float]) -> None:
    assert floor_of(scores) == 0.0


def test_what_a_model_does_not_have_widens_no_floor() -> None:
    assert floor_of([4.4, 4.6, 0.0, 0.0, 0.0]) == floor_of([4.4, 4.6])


def test_models_made_alike_tell_how_much_the_largest_score_varies() -> None:
    """A rounded copy, whose score is far smaller, does not."""
    assert floor_of_largest([4.0, 5.0, 0.01], 2) == 5.0 + 2 * 0.5
    assert floor_of_largest([4.0, 5.0, 9.0], 2) == 9.0 + 2 * 0.5
    assert floor_of_largest([0.0, 0.0, 0.0], 2) == floor_of_largest([], 2) == 0.0
