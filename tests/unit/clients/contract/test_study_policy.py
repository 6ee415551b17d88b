"""Rules over the report of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError
from layerdrift.contract.study_policy import StudyPolicy
from layerdrift.gate import evaluate_study_policy
from tests.builders.studies import made_study, member_report, study_request


def policy(**rule: Any) -> StudyPolicy:
    return StudyPolicy.model_validate({"rules": [{"id": "r", "message": "m", **rule}]})


def test_a_rule_judges_the_layers_of_every_member() -> None:
    rule = policy(path="members[*].layers[0:2].drift.value", max=0.11)
    verdict = evaluate_study_policy(rule, made_study())
    (check,) = verdict.checks
    assert (verdict.decision, check.matched) == ("fail", 8)
    assert [finding.path for finding in check.findings] == ["members[3].layers[1].drift.value"]


def test_a_rule_judges_the_best_member() -> None:
    asked = study_request(members=[one.model_dump() for one in study_request().members[:2]])
    reports = {"reviews-0": member_report([0, 0.1], accuracy=0.8), "reviews-1": member_report([0, 0.1], accuracy=0.9)}
    passing = {"rules": [{"id": "a", "path": "layers[0].drift", "max": 1, "message": "m"}]}
    report = made_study(study_request(members=asked.model_dump()["members"], policy=passing), reports)
    assert evaluate_study_policy(policy(path="best.metric.value.value", min=0.85), report).decision == "pass"
    assert evaluate_study_policy(policy(path="best.metric.value.value", min=0.95), report).decision == "fail"


def test_without_a_best_member_a_rule_about_it_is_no_pass() -> None:
    with pytest.raises(InputError, match="has no number at best"):
        evaluate_study_policy(policy(path="best.metric.value.value", min=0.1), made_study())


def test_a_member_without_a_report_is_no_pass() -> None:
    report = made_study(reports={"spam-0": member_report([0, 0.05])})
    drift = {"path": "members[*].layers[0:2].drift.value", "max": 1}
    with pytest.raises(InputError, match=r"has no number at members\[0\]\.layers"):
        evaluate_study_policy(policy(**drift), report)
    assert evaluate_study_policy(policy(**drift, if_undefined="warn"), report).decision == "warn"
    assert evaluate_study_policy(policy(path="members[status=failed].length", max=0), report).decision == "fail"
    assert evaluate_study_policy(policy(path="warnings[code=members_missing].length", max=0), report).decision == "fail"


def test_the_rules_of_the_docs_fail_a_study_with_a_cancelled_member() -> None:
    page = (Path(__file__).parents[4] / "docs" / "studies.md").read_text()
    block = page.split("```yaml\nrules:\n")[1].split("```")[0]
    found = StudyPolicy.model_validate(yaml.safe_load(f"rules:\n{block}"))
    report = made_study(reports={"spam-0": member_report([0, 0.05, 0.1])})
    members = [
        one.model_copy(update={"status": Status.CANCELLED}) if one.layers is None else one for one in report.members
    ]
    rules = [rule for rule in found.rules if rule.id == "every-member-has-a-report"]
    cancelled = report.model_copy(update={"members": members})
    assert evaluate_study_policy(StudyPolicy(rules=rules), cancelled).decision == "fail"
    assert evaluate_study_policy(found, made_study()).checks


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"path": "layers[0].drift", "max": 1}, "does not exist"),
        ({"path": "layers[0].seed_sd.value", "max": 1, "of_baseline": "ratio"}, "studies have no baseline"),
        ({"path": "members[*].layers", "max": 1}, "is a list"),
    ],
)
def test_a_rule_that_no_study_can_meet_is_refused(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        policy(**rule)


def test_two_rules_of_one_name_are_refused() -> None:
    rule = {"id": "r", "message": "m", "path": "members.length", "min": 1}
    with pytest.raises(ValidationError, match="two rules are called 'r'"):
        StudyPolicy.model_validate({"rules": [rule, rule]})
