"""The paper's claims, judged on curves whose answer is known."""

from __future__ import annotations

import math

import pytest

from deploy.paper.claims import Judged, Mean, judged, thirds
from layerdrift.contract.report import Measured
from tests.builders.studies import made_study, member_report, study_request

RAMP = [0.0, 0.01, 0.02, 0.2, 0.35, 0.5, 0.65]


def of_reviews(*curves: list[float]) -> Judged:
    members = [
        {"name": str(seed), "task": "reviews", "seed": seed, "dataset": {"uri": "s3://d/a.csv"}}
        for seed in range(len(curves))
    ]
    reports = {str(seed): member_report(curve) for seed, curve in enumerate(curves)}
    (found,) = judged(made_study(study_request(members=members), reports))
    return found


def shifted(by: float) -> list[float]:
    return [value + by * index / 6 for index, value in enumerate(RAMP)]


def test_a_ramp_after_general_layers_holds_all_claims() -> None:
    found = of_reviews(shifted(0.0), shifted(0.01), shifted(-0.01))
    assert (found.early_general, found.gradual, found.late_most) == (True, True, True)
    assert (found.task, found.method, found.seeds) == ("reviews", "full", 3)
    assert found.early.value == pytest.approx(0.015)
    assert found.late.value == pytest.approx(0.575)


def test_one_early_layer_that_changed_in_one_seed_is_enough_against_it() -> None:
    changed = [0.0, 0.01, 0.11, 0.2, 0.35, 0.5, 0.65]
    assert not of_reviews(shifted(0.0), changed).early_general


def test_an_early_layer_whose_interval_goes_beyond_the_ceiling_is_not_said_to_be_general() -> None:
    unclear = [0.0, 0.01, 0.095, 0.2, 0.35, 0.5, 0.65]
    assert not of_reviews(shifted(0.0), unclear).early_general


def test_a_jump_is_not_gradual() -> None:
    jump = [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5]
    found = of_reviews(jump, [value * 1.01 for value in jump])
    assert not found.gradual
    assert found.largest_step.value == pytest.approx(1.0)


def test_a_fall_in_the_middle_is_not_gradual() -> None:
    assert not of_reviews(*[[0.0, 0.1, 0.3, 0.5, 0.2, 0.4, 0.6 + seed / 1e4] for seed in range(3)]).gradual


def test_flat_curves_do_not_rise_beyond_their_seeds() -> None:
    flat = [[0.0] + [0.1 + noise] * 6 for noise in (0.0, 0.05, -0.05)]
    assert not of_reviews(*flat).late_most


@pytest.mark.parametrize(
    ("last", "expected"), [(6, ([1, 2], [3, 4], [5, 6])), (12, ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]))]
)
def test_thirds_are_of_the_blocks(last: int, expected: tuple[list[int], ...]) -> None:
    assert tuple(list(part) for part in thirds(last)) == expected


def test_a_layer_without_drift_is_refused() -> None:
    report = made_study()
    layers = report.members[0].measured
    layers[1] = layers[1].model_copy(update={"drift": Measured(value=None)})
    with pytest.raises(ValueError, match="reviews-0 has layers without drift"):
        judged(report)


def test_one_seed_has_no_interval() -> None:
    found = Mean.of([0.5])
    assert found.value == 0.5
    assert math.isnan(found.low)


def test_a_seed_that_failed_leaves_the_others() -> None:
    members = [
        {"name": str(seed), "task": "reviews", "seed": seed, "dataset": {"uri": "s3://d/a.csv"}} for seed in range(2)
    ]
    (found,) = judged(made_study(study_request(members=members), {"0": member_report(RAMP)}))
    assert (found.seeds, found.late_most) == (1, False)
