"""Two reports: nothing is subtracted that is not one quantity."""

from __future__ import annotations

from typing import Any

import pytest

from layerdrift.contract.comparison import compare
from layerdrift.contract.policy import Policy
from layerdrift.contract.report import Report
from layerdrift.gate import evaluate_policy
from tests.builders.reports import report

GRAFT = {"measure": "accuracy", "ungrafted": 0.8, "examples": 50}


def with_graft(value: float, **causal: Any) -> Report:
    made = report(causal={"graft": GRAFT | causal}).model_dump(mode="json")
    for layer in made["layers"]:
        layer["graft"] = {name: {"value": value} for name in ("prefix", "block", "prefix_cost")}
    return Report.model_validate(made)


def test_grafts_of_one_measure_are_subtracted() -> None:
    found = compare(with_graft(0.7), with_graft(0.5))
    assert found.layers[0].graft.difference == pytest.approx(-0.2)
    assert found.layers[0].graft.incomparable is None
    assert found.same_settings


def test_grafts_of_two_measures_are_not() -> None:
    found = compare(with_graft(0.7), with_graft(0.0, measure="state_change"))
    graft = found.layers[0].graft
    assert (graft.one, graft.other, graft.difference) == (0.7, 0.0, None)
    assert graft.incomparable == "measured as accuracy and as state_change"


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("dataset", {"max_examples": 100}, "dataset.max_examples"),
        ("dataset", {"text_column": "body"}, "dataset.text_column"),
        ("analysis", {"max_tokens": 500}, "analysis.max_tokens"),
    ],
)
def test_settings_that_only_look_equal_are_named(part: str, change: dict[str, Any], named: str) -> None:
    one = report()
    body = one.model_dump(mode="json")
    body["request"][part] |= change
    found = compare(one, Report.model_validate(body))
    assert (found.same_settings, found.unlike_settings) == (False, [named])


def test_another_length_that_followed_from_the_data_is_another_setting() -> None:
    one = report()
    other = one.model_copy(update={"dataset": one.dataset.model_copy(update={"max_length": 77})})
    assert compare(one, other).unlike_settings == ["analysis.max_length"]


def test_a_gate_does_not_judge_a_difference_of_unlike_quantities() -> None:
    rule = {
        "id": "grafts",
        "severity": "fail",
        "path": "layers[*].graft.prefix.value",
        "of_baseline": "difference",
        "min": -1,
        "if_undefined": "fail",
        "message": "grafts",
    }
    policy = Policy.model_validate({"baseline": "an_" + "a" * 26, "rules": [rule]})
    alike = evaluate_policy(policy, with_graft(0.7), with_graft(0.6))
    unlike = evaluate_policy(policy, with_graft(0.7), with_graft(0.0, measure="kl"))
    assert (alike.checks[-1].decision, unlike.checks[-1].decision) == ("pass", "fail")
