"""Rules that can be judged, and what a verdict tells of itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from layerdrift.contract.policy import Check, Decision, Policy, rule_error
from tests.builders.policies import check, policy, verdict

RULE = {"id": "a", "path": "layers[0].drift", "max": 1, "message": "m"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "give min, max, equals, without_words or only_words"),
        ({"min": 2, "max": 1}, "min 2 is above max 1"),
        ({"equals": True, "min": 1}, "equals goes without"),
        ({"max": 1, "floor": 0.1}, "floor is for of_baseline: ratio"),
        ({"path": "layers[0].zone", "max": 1}, "is no number: ask for it with equals"),
        ({"max": float("nan")}, "finite number"),
        ({"equals": 1}, "valid"),
        ({"max": 1, "minus": "models.base.uri"}, "is no number to take off"),
        ({"max": True}, "valid number"),
        ({"max": 1, "skip_if_present": ["layers[*].drift"]}, "may lead to several values"),
        ({"max": 1, "skip_if_present": ["outputs.kindd"]}, "did you mean kind"),
        ({"without_words": ["a"]}, "is a number: ask for it with min and max"),
        ({"path": "layers[*].zone", "only_words": ["a"], "equals": "b"}, "go without equals"),
        ({"path": "layers[*].zone", "without_words": []}, "at least 1 item"),
        ({"path": "layers[*].zone", "without_words": ["!"]}, "contains no letter or digit"),
    ],
)
def test_a_rule_that_cannot_be_judged_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy({"path": "layers[0].drift"} | rule)


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        ({"max": 0.5}, "<= 0.5"),
        ({"min": -1}, ">= -1"),
        ({"min": 0, "max": 1e-6}, "0 to 1e-06"),
        ({"path": "layers[0].drifted", "equals": False}, "= false"),
        ({"path": "recommendation.basis", "equals": "validated"}, "= validated"),
        ({"path": "layers[*].zone", "without_words": list("abcdefg")}, "none of a, b, c, d, e and 2 more"),
        ({"path": "layers[*].zone", "without_words": ["a"], "only_words": ["b"]}, "none of a, only b"),
    ],
)
def test_what_a_rule_asks_is_told_in_symbols(rule: dict[str, Any], limit: str) -> None:
    assert policy({"path": "layers[0].drift"} | rule).rules[0].limit == limit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": []}, "at least 1 item"),
        ({"rules": [RULE] * 2}, "two rules are called 'a'"),
        ({"rules": [RULE | {"id": f"a{number}"} for number in range(201)]}, "at most 200 items"),
        ({"rules": [RULE | {"id": "no spaces"}]}, "should match pattern"),
        ({"rules": [RULE | {"message": ""}]}, "at least 1 character"),
        ({"rules": [RULE], "baseline": ""}, "at least 1 character"),
        ({"rules": [RULE], "threshold": 1}, "Extra inputs are not permitted"),
        ({"rules": [RULE | {"floor": 0, "of_baseline": "ratio"}]}, "greater than 0"),
    ],
)
def test_what_is_no_policy_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Policy.model_validate(changes)


def test_a_policy_needs_a_baseline_as_soon_as_one_rule_compares() -> None:
    plain, compared = {"path": "layers[0].drift", "max": 1}, {"of_baseline": "difference"}
    assert not policy(plain, baseline="an_b").needs_baseline
    assert policy(plain, plain | compared).needs_baseline


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"decision": "pass"}, "pass"),
        ({"decision": "pass", "skipped": True}, "skip"),
        ({"decision": "warn", "skipped": True}, "warn"),
        ({"decision": "fail", "skipped": True, "evaluated": False}, "fail"),
    ],
)
def test_a_check_is_shown_as_skipped_only_where_that_passes(changes: dict[str, Any], shown: str) -> None:
    assert check(**changes).shown == shown


def test_a_rule_says_its_message_only_where_a_number_made_it() -> None:
    assert check("fail").said == "it moved"
    assert check("warn", evaluated=False).said == "no number to evaluate, which counts as warn"


@pytest.mark.parametrize(
    ("decision", "checks", "evaluated"),
    [
        ("pass", [check(evaluated=False)], True),
        ("warn", [check("warn", evaluated=False)], True),
        ("fail", [check(), check("fail", evaluated=False)], False),
        ("fail", [check("fail", evaluated=False), check("fail")], True),
        ("fail", [check("warn"), check("fail", evaluated=False)], False),
    ],
)
def test_a_verdict_was_evaluated_unless_only_missing_numbers_made_it_fail(
    decision: Decision, checks: list[Check], evaluated: bool
) -> None:
    assert verdict(decision, *checks).evaluated is evaluated


def test_checks_are_counted_by_their_decision_and_skipped_ones_once_more() -> None:
    found = verdict("fail", check(), check(skipped=True), check("warn", skipped=True), check("fail"))
    assert (found.counts, found.skipped) == ({"pass": 2, "warn": 1, "fail": 1}, 1)


def test_a_rule_that_no_report_can_answer_is_named_with_its_place_in_the_policy() -> None:
    asked = policy({"path": "layers[0].drift", "max": 1}, {"path": "layers[1].drift", "max": 1, "id": "late"})
    error = rule_error(asked.rules, asked.rules[1], "matches nothing")
    assert error.errors[0].pointer == "/rules/1/path"
    assert error.detail == "rule late: matches nothing"
