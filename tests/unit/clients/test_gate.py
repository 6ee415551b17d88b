"""The gate: policy and report in, verdict out."""

from __future__ import annotations

from typing import Any

import pytest

from layerdrift import gate, policies
from layerdrift.contract.comparison import compare
from layerdrift.contract.errors import InputError
from layerdrift.contract.policy import Check
from layerdrift.contract.report import PendingStage, Report
from layerdrift.gate import BASELINE_CHECK, evaluate_policy
from tests.builders.learned import learned as taught
from tests.builders.learned import silent
from tests.builders.policies import policy
from tests.builders.reports import report, sound


def judged(given: Report, baseline: Report | None = None, **rule: Any) -> Check:
    return evaluate_policy(policy(rule), given, baseline).checks[-1]


def test_every_matched_number_must_hold_and_those_that_do_not_are_named() -> None:
    found = judged(report(), path="layers[*].similarity.token.cka.value", min=0.9)
    assert (found.decision, found.matched, found.observed) == ("fail", 4, 0.0)
    assert [finding.path for finding in found.findings] == [
        f"layers[{layer}].similarity.token.cka.value" for layer in (1, 2, 3)
    ]
    assert found.detail.startswith("3 of 4 below 0.9: layers[3].similarity.token.cka.value is 0,")
    held = judged(report(), path="layers[0].similarity.token.cka.value", min=0.9)
    assert (held.decision, held.findings) == ("pass", [])


def test_bounds_are_of_values_or_of_ends_of_intervals_and_hold_at_the_limit() -> None:
    assert judged(report(), path="layers[0].similarity.token.cka.value", min=1.0).decision == "pass"
    assert judged(report(), path="layers[0].similarity.token.cka.low", min=1.0).decision == "fail"
    assert judged(report(), path="layers[1:3].drift", min=0.3, max=0.7).decision == "pass"
    assert judged(report(), path="layers[1:3].drift", min=0.3, max=0.6).observed == pytest.approx(2 / 3)


def test_a_warning_is_no_failure_and_the_worst_decides() -> None:
    broken = {"path": "layers[3].drift", "max": 0.5}
    held = {"path": "layers[0].drift", "max": 0.5}
    given = report()
    assert evaluate_policy(policy(held), given).decision == "pass"
    assert evaluate_policy(policy(held, broken | {"severity": "warn"}), given).decision == "warn"
    assert evaluate_policy(policy(broken, broken | {"severity": "warn"}, held), given).decision == "fail"
    assert evaluate_policy(policy(broken, held), given).counts == {"pass": 1, "warn": 0, "fail": 1}


def test_what_matches_nothing_or_has_no_number_is_an_error_and_all_are_named() -> None:
    rules = [
        {"path": "layers[9:].drift", "max": 1},
        {"path": "layers[0].similarity.cls.cka.value", "min": 0.5},
        {"path": "layers[0].drift", "max": 1},
    ]
    with pytest.raises(InputError) as raised:
        evaluate_policy(policy(*rules), report())
    assert [error.pointer for error in raised.value.errors] == ["/rules/0/path", "/rules/1/path"]
    assert "layers[9:].drift matches nothing in this report" in raised.value.errors[0].detail
    assert "say what that means with if_undefined" in raised.value.errors[1].detail


@pytest.mark.parametrize("meant", ["pass", "warn", "fail"])
def test_an_undefined_number_is_what_the_rule_says(meant: str) -> None:
    found = judged(report(), path="layers[*].similarity.cls.cka.value", min=-1, if_undefined=meant)
    assert found.decision == meant
    assert "no number at layers[0].similarity.cls.cka.value" in found.detail
    assert [finding.observed for finding in found.findings] == ([] if meant == "pass" else [None])


def test_a_number_less_another() -> None:
    given = report()
    assert judged(given, path="layers[2].drift", minus="layers[1].drift", max=0.34).decision == "pass"
    assert judged(given, path="layers[*].drift", minus="layers[0].drift", max=0.9).observed == 1.0
    with pytest.raises(InputError, match="matches 4 numbers, and minus"):
        judged(given, path="layers[*].drift", minus="layers[0:2].drift", max=0.9)


def test_words_and_truths_are_asked_for_with_equals() -> None:
    given = report()
    assert judged(given, path="layers[0].drifted", equals=False).decision == "pass"
    assert judged(given, path="layers[*].drifted", equals=False).decision == "fail"
    assert judged(given, path="layers[0].zone", equals="general").decision == "pass"
    assert judged(given, path="recommendation.basis", equals="validated").limit == "= validated"


def test_words_of_texts_are_forbidden_or_are_all_that_is_allowed() -> None:
    given = report(learned=taught(token=" Walrus").model_dump())
    broken = judged(given, path="learned.tokens[*].token", without_words=["walrus", "seal"])
    assert (broken.decision, broken.observed, broken.matched) == ("fail", " Walrus", 2)
    assert broken.detail == "1 of 2 texts contain a forbidden word (walrus, seal): learned.tokens[0].token is  Walrus"
    held = judged(given, path="learned.tokens[*].token", without_words=["wal"])  # whole words
    assert (held.decision, held.detail) == ("pass", "2 texts checked: none of wal")
    assert judged(given, path="learned.tokens[*].token", only_words=["walrus"]).decision == "pass"  # a line end is none
    assert judged(given, path="learned.tokens[*].token", only_words=["seal"]).decision == "fail"


def test_where_nothing_was_found_words_hold_and_where_nothing_was_asked_they_are_undefined() -> None:
    rule: dict[str, Any] = {"path": "learned.completions[*].text", "without_words": ["walrus"]}
    nothing = judged(report(learned=silent().model_dump()), **rule)
    assert (nothing.decision, nothing.matched, nothing.skipped, nothing.evaluated) == ("pass", 0, False, True)
    for given in (report(), report(learned=taught(completions=None).model_dump())):
        with pytest.raises(InputError, match="the report has no text at learned"):
            judged(given, **rule)
        found = judged(given, **rule, if_undefined="fail")
        assert (found.decision, found.evaluated) == ("fail", False)


def test_redacted_texts_cannot_be_judged_and_a_misspelt_path_is_an_error() -> None:
    rule: dict[str, Any] = {"path": "learned.tokens[*].token", "without_words": ["walrus"]}
    given = report(learned=taught(token="[redacted]").model_dump())
    found = judged(given, **rule, if_undefined="fail")
    assert (found.decision, found.evaluated) == ("fail", False)
    for path in ("learned.completions[7].text", "learned.completions[kind=text].text"):
        with pytest.raises(InputError, match="matches nothing in this report"):
            judged(given, path=path, without_words=["walrus"])


def test_a_baseline_is_compared_layer_by_layer_and_small_numbers_count_as_the_floor() -> None:
    now, before = report(), report()
    for layer in before.layers:
        layer.drift /= 1.5
    before.layers[0].drift, now.layers[0].drift = 1e-7, 1e-6
    rule = {"path": "layers[*].drift", "of_baseline": "ratio"}
    assert judged(now, before, **rule, floor=0.01, max=1.6).decision == "pass"
    found = judged(now, before, **rule, floor=0.01, max=1.2)
    assert [finding.path for finding in found.findings] == [f"layers[{layer}].drift" for layer in (1, 2, 3)]
    assert found.observed == pytest.approx(1.5)
    assert "times the baseline's" in found.detail
    assert judged(now, before, **rule, max=1.6).findings[0].path == "layers[0].drift"
    many = {"path": "layers[*].drift", "minus": "layers[*].excess_drift", "of_baseline": "difference"}
    assert judged(now, before, **many, max=-5, if_undefined="pass").decision == "fail"
    less = judged(now, before, path="layers[3].drift", of_baseline="difference", max=0.34)
    assert less.decision == "pass"
    assert less.observed == pytest.approx(1 / 3)


def test_a_baseline_that_was_measured_otherwise_is_warned_of_and_none_is_an_error() -> None:
    asked = policy({"path": "layers[*].drift", "of_baseline": "difference", "max": 2})
    other = report()
    other.dataset.sha256 = "e" * 64
    found = evaluate_policy(asked, report(), other)
    assert (found.decision, found.checks[0].id) == ("warn", BASELINE_CHECK)
    assert found.checks[0].detail == "the baseline has other data"
    assert evaluate_policy(asked, report(), report()).decision == "pass"
    with pytest.raises(InputError, match="needs a baseline"):
        evaluate_policy(asked, report())
    with pytest.raises(InputError, match="only models of one depth"):
        evaluate_policy(asked, report(), report(layers=5))


def test_what_was_not_evaluated_is_told_apart_from_what_failed() -> None:
    starter = policies.load(policies.starter())
    few = sound()
    for layer in few.layers:
        layer.similarity["token"].cka.low = layer.similarity["token"].cka.high = None
    found = evaluate_policy(starter, few)
    assert (found.decision, found.evaluated) == ("fail", False)
    assert [check.id for check in found.checks if not check.evaluated] == ["early-layers-kept"]
    few.layers[1].similarity["token"].cka.low = 0.2
    found = evaluate_policy(starter, few)
    assert (found.decision, found.evaluated) == ("fail", True)


def test_a_preliminary_report_is_never_judged() -> None:
    early = report().model_copy(update={"status": "preliminary", "pending": [PendingStage(stage="sae", fields=[])]})
    with pytest.raises(InputError, match=r"is preliminary \(sae still to come\)"):
        evaluate_policy(policies.load(policies.starter()), early)
    with pytest.raises(InputError, match="preliminary"):
        compare(report(), early)


def test_scripts_that_were_written_for_the_old_name_still_work() -> None:
    assert gate.judge is gate.evaluate_policy
