"""A member's own report, as the study shows it."""

from __future__ import annotations

from typing import Any

import pytest

from layerdrift.contract.policy import Policy
from layerdrift.contract.report import Report
from tests.builders.reports import report, sound_language
from tests.builders.studies import member_report, outcomes, study_request
from workers.studies.outcomes import metric, shown

LENIENT = Policy.model_validate({"rules": [{"id": "a", "path": "layers[0].drift", "max": 1, "message": "m"}]})


def test_the_numbers_are_those_of_the_members_own_report() -> None:
    own = member_report([0.0, 0.2, 0.4])
    found = shown(outcomes(study_request(), {"spam-0": own})[2], "group", LENIENT)
    assert [layer.drift.value for layer in found.measured] == [0.0, 0.2, 0.4]
    assert (found.measured[2].drift.low, found.measured[2].drift.high) == pytest.approx((0.39, 0.41))
    assert found.mean_drift == pytest.approx(0.3)
    assert (found.decision, found.repeat_of, found.method, found.seed) == ("pass", "group", "full", 0)


def test_a_member_without_a_report_has_no_numbers_and_says_why() -> None:
    found = shown(outcomes(study_request(), {})[0], None, None)
    assert (found.layers, found.mean_drift, found.metric, found.decision) == (None, None, None, None)
    assert found.error == "the disk was full"


def test_a_policy_that_cannot_be_judged_decides_nothing() -> None:
    rule = {"id": "a", "path": "reference.texts", "min": 1, "message": "m"}
    policy = Policy.model_validate({"rules": [rule]})
    assert shown(outcomes(study_request(), {"spam-0": report()})[2], None, policy).decision is None


def test_without_advice_there_is_no_depth() -> None:
    nothing = {"freeze_first": 0, "basis": "none", "evidence": "no grafts"}
    own = member_report([0.0, 0.2], recommendation=nothing)
    assert shown(outcomes(study_request(), {"spam-0": own})[2], None, LENIENT).freeze_first is None


def language(**without: Any) -> Report:
    body = sound_language().model_dump()
    body["outputs"] |= without
    return Report.model_validate(body)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (member_report([0, 1], accuracy=0.8), ("accuracy", 0.8)),
        (language(), ("choices_accuracy", 0.52)),
        (language(choices=None), ("preferences_accuracy", 0.8)),
        (language(choices=None, preferences=None), ("answers_perplexity", 3.0)),
        (language(choices=None, preferences=None, answers=None), ("perplexity", 5.0)),
    ],
)
def test_the_metric_is_what_the_data_ask_of_the_model(given: Report, expected: tuple[str, float]) -> None:
    found = metric(given)
    assert found is not None
    assert (found.name, found.value.value) == expected


def test_without_a_head_there_is_no_metric() -> None:
    assert metric(member_report([0, 1], outputs=None)) is None
