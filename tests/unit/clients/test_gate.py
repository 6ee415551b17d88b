"""Policies: paths into a report, rules, files with mistakes, verdicts and what is drawn from them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path as Files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import JUnitXml
from markdown_it import MarkdownIt

from layerdrift import gate, policies
from layerdrift.contract.comparison import compare
from layerdrift.contract.errors import InputError
from layerdrift.contract.names import MUCH_MOVED
from layerdrift.contract.paths import Path, PathError
from layerdrift.contract.policy import Check, Policy, Verdict
from layerdrift.contract.report import WARNING_CODES, PendingStage, Report
from layerdrift.gate import BASELINE_CHECK, evaluate_policy
from layerdrift.render import verdict as drawn
from tests.builders.reports import changed, report, sound


def policy(*rules: dict[str, Any], **fields: Any) -> Policy:
    named = [{"id": f"rule-{number}", "message": "it moved"} | rule for number, rule in enumerate(rules)]
    return Policy.model_validate({"rules": named, **fields})


def judged(given: Report, baseline: Report | None = None, **rule: Any) -> Check:
    return evaluate_policy(policy(rule), given, baseline).checks[-1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers[0:2].drift", {"layers[0].drift": 0.0, "layers[1].drift": pytest.approx(1 / 3)}),
        ("layers[-1].drift", {"layers[3].drift": 1.0}),
        ("layers[*].index", {f"layers[{index}].index": index for index in range(4)}),
        ("layers[::2].index", {"layers[0].index": 0, "layers[2].index": 2}),
        ("layers[zone=general].drifted", {"layers[0].drifted": False, "layers[1].drifted": True}),
        ("layers[drifted=true].length", {"layers[drifted=true].length": 3}),
        ("layers.length", {"layers.length": 4}),
        ("layers[1].similarity.token.cka.low", {"layers[1].similarity.token.cka.low": pytest.approx(2 / 3 - 0.01)}),
        ("layers[0].similarity.cls.cka.value", {"layers[0].similarity.cls.cka.value": None}),
        ("layers[0].weights.attention.relative_frobenius", {"layers[0].weights.attention.relative_frobenius": None}),
        ("warnings[code=no_intervals].length", {"warnings[code=no_intervals].length": 0}),
        ("models.base.blocks", {"models.base.blocks": 3}),
        ("outputs.tuned.accuracy.value", {"outputs.tuned.accuracy.value": None}),
        ("layers[9].drift", {}),
    ],
)
def test_a_path_leads_to_every_number_that_it_names(path: str, expected: dict[str, Any]) -> None:
    given = report(outputs=None)
    Path.parse(path).check(Report)
    assert {match.path: match.value for match in Path.parse(path).matches(given)} == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("layers[0].drfit", "did you mean drift?"),
        ("layers[0].similarity.tokens.cka.value", "did you mean token?"),
        ("layer[0].drift", "did you mean layers?"),
        ("layers[0].similarity.token.cka", "continue with one of high, low, noise_floor, undefined, value"),
        ("layers.drift", "layers is a list; select entries with brackets: layers[*].drift"),
        ("layers", "layers is a list; select entries with brackets, or count them with .length"),
        ("layers[zon=general].drift", "does not exist"),
        ("layers[zone=specialized].length", "did you mean specialised?"),
        ("warnings[code=identical_model].length", "did you mean identical_models?"),
        ("layers[drifted=yes].length", "possible: false, true"),
        ("layers[0].length", "does not exist"),
        ("outputs.length", "does not exist"),
        ("name.length", "does not exist"),
        ("layers[*].drift.length", "does not exist"),
        ("layers[a].drift", "[a] is not a number, a slice, * or name=value"),
        ("layers[0]drift", "is not a valid path: 'drift' at column 10"),
        ("layers[0:3:0].drift", "step of a slice cannot be 0"),
        ("[0].drift", "starts with brackets"),
        ("layers..drift", "is not a valid path"),
        ("", "the path is empty"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_could_stand_there(path: str, message: str) -> None:
    with pytest.raises(PathError) as raised:
        Path.parse(path).check(Report)
    assert message in str(raised.value)


@given(st.text(max_size=40))
def test_no_text_is_more_than_an_error(text: str) -> None:
    try:
        Path.parse(text).check(Report)
    except PathError:
        return
    Path.parse(text).matches(report())


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


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "give min, max or equals"),
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
    ],
)
def test_a_rule_that_cannot_be_judged_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy({"path": "layers[0].drift"} | rule)


def test_the_starter_policy_is_one_and_judges_a_sound_and_a_wrecked_model() -> None:
    starter = policies.load(policies.starter())
    assert evaluate_policy(starter, sound()).decision == "pass"
    wrecked = sound()
    for layer in wrecked.layers[:3]:
        layer.similarity["token"].cka.low = 0.4
    found = evaluate_policy(starter, wrecked)
    assert found.decision == "fail"
    assert [check.id for check in found.checks if check.decision == "fail"] == ["early-layers-kept"]


WARNING = {"code": "", "message": "m"}
HEADLESS = ("outputs", None)
LANGUAGE = {"kind": "causal_lm", "examples": 900}


def ends(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("rule", "path", "broken", "held"),
    [
        ("something-was-tuned", "warnings", [WARNING | {"code": "identical_models"}], []),
        ("bodies-differ", "warnings", [WARNING | {"code": "identical_bodies"}], []),
        ("early-layers-kept", "layers.1.similarity.token.cka", ends(0.85, 0.99), ends(0.91, 0.99)),
        ("early-features-kept", "layers.1.similarity.token.cka_standardized", ends(0.7, 0.9), ends(0.85, 0.9)),
        ("early-layers-not-scaled", "layers.1.similarity.token.relative_l2_centred", ends(0.5, 0.7), ends(0.2, 0.7)),
        ("early-features-still-fit", "layers.1.sae.transfer_excess", 0.2, 0.1),
        (
            "better-than-majority-class",
            "outputs.tuned.mcc",
            {"value": 0.0, "noise_floor": 0.28},
            {"value": 0.3, "noise_floor": 0.28},
        ),
        ("not-worse-than-majority-class", "outputs.majority_change", ends(-0.1, -0.01), ends(-0.1, 0.01)),
        ("answers-evaluated", "warnings", [WARNING | {"code": "answers_not_evaluated"}], []),
        (
            "perplexity-kept",
            "outputs",
            LANGUAGE | {"perplexity_ratio": ends(1.3, 1.5)},
            LANGUAGE | {"perplexity_ratio": ends(1.1, 1.5)},
        ),
        ("answers-explained-by-drift", "warnings", [WARNING | {"code": "answers_not_explained"}], []),
        ("accuracy-kept", "outputs.accuracy_change", ends(-0.09, -0.03), ends(-0.09, 0.0)),
        ("accuracy-shown-kept", "outputs.accuracy_change", ends(-0.09, 0.0), ends(-0.04, 0.0)),
        ("measures-agree", "warnings", [WARNING | {"code": "measures_disagree"}], []),
        (
            "answers-kept-without-labels",
            "outputs",
            {"kind": "classifier", "examples": 90, "disagreement": ends(0.4, 0.6)},
            {"kind": "classifier", "examples": 90, "disagreement": ends(0.2, 0.6), "accuracy_change": None},
        ),
        ("reference-perplexity-kept", "reference", {"outputs": LANGUAGE | {"perplexity_ratio": ends(1.3, 2)}}, None),
        (
            "reference-accuracy-kept",
            "reference",
            {"outputs": {"kind": "classifier", "examples": 9, "accuracy_change": ends(-0.3, -0.1)}},
            None,
        ),
    ],
)
def test_every_rule_of_the_starter_policy_fails_where_it_must_and_nowhere_else(
    rule: str, path: str, broken: Any, held: Any
) -> None:
    if path == "reference" and broken is not None:
        broken = {"source": "s", "sha256": "f" * 64, "texts": 90, "tokens": 900, "drift": [], **broken}
    starter = policies.load(policies.starter())
    severity = next(one.severity for one in starter.rules if one.id == rule)
    found = {check.id: check for check in evaluate_policy(starter, changed(path, broken)).checks}
    assert found[rule].decision == severity
    assert found[rule].evaluated
    found = {check.id: check for check in evaluate_policy(starter, changed(path, held)).checks}
    assert found[rule].decision == "pass"


@pytest.mark.parametrize(
    ("rule", "path", "broken", "held"),
    [
        ("embeddings-keep-something", "layers.-1.similarity.mean.cka", ends(0.0, 0.15), ends(0.1, 0.3)),
        ("last-layer-keeps-something", "layers.-1.relative_drift", ends(0.9, 1.0), ends(0.7, 1.0)),
    ],
)
def test_models_without_a_head_are_judged_by_their_last_layer_and_others_are_not(
    rule: str, path: str, broken: Any, held: Any
) -> None:
    starter = policies.load(policies.starter())
    for value, decision in ((broken, "fail"), (held, "pass")):
        given = changed(path, value)
        headless = given.model_copy(update={"outputs": None})
        found = {check.id: check for check in evaluate_policy(starter, headless).checks}
        assert found[rule].decision == decision
        asked = {check.id: check for check in evaluate_policy(starter, given).checks}
        assert (asked[rule].decision, asked[rule].matched) == ("pass", 0)
        assert "skipped: applies only without outputs.kind" in asked[rule].detail


def test_every_rule_of_the_starter_policy_is_tried_above() -> None:
    tried = {
        parameters[0]
        for test in (
            test_every_rule_of_the_starter_policy_fails_where_it_must_and_nowhere_else,
            test_models_without_a_head_are_judged_by_their_last_layer_and_others_are_not,
        )
        for parameters in test.pytestmark[0].args[1]
    }
    assert tried == {rule.id for rule in policies.load(policies.starter()).rules}


def test_what_was_not_evaluated_is_told_apart_from_what_failed() -> None:
    starter = policies.load(policies.starter())
    few = sound()
    for layer in few.layers:
        layer.similarity["token"].cka.low = layer.similarity["token"].cka.high = None
    found = evaluate_policy(starter, few)
    assert (found.decision, found.evaluated) == ("fail", False)
    assert [check.id for check in found.checks if not check.evaluated] == ["early-layers-kept"]
    assert "no number to evaluate\\, which counts as fail" in drawn.markdown(found)
    assert "The policy could not be evaluated" in drawn.markdown(found)
    assert 'type="not-evaluated"' in drawn.junit(found, "x", datetime(2026, 1, 1, tzinfo=UTC))
    few.layers[1].similarity["token"].cka.low = 0.2
    found = evaluate_policy(starter, few)
    assert (found.decision, found.evaluated) == ("fail", True)


@pytest.mark.parametrize(
    ("change", "failed", "warned"),
    [
        ((0.0, -0.04, 0.04), [], []),
        ((-0.04, -0.1, 0.02), [], ["accuracy-shown-kept"]),
        ((-0.08, -0.12, -0.04), ["accuracy-kept"], ["accuracy-shown-kept"]),
    ],
    ids=["equal", "not known", "worse"],
)
def test_the_starter_policy_judges_the_paired_change_of_accuracy_by_its_interval(
    change: tuple[float, float, float], failed: list[str], warned: list[str]
) -> None:
    body = sound().model_dump()
    body["outputs"]["accuracy_change"] = dict(zip(("value", "low", "high"), change, strict=True))
    found = evaluate_policy(policies.load(policies.starter()), Report.model_validate(body))
    assert [check.id for check in found.checks if check.decision == "fail"] == failed
    assert [check.id for check in found.checks if check.decision == "warn"] == warned


YAML = """\
rules:
  - id: kept
    path: layers[0].drift
    max: 0.1
    message: it moved
  - id: wrong
    severity: fatal
    path: layers[0].drfit
    mox: 1
    message: it moved
"""


def test_a_mistake_in_a_file_is_named_with_its_line() -> None:
    with pytest.raises(policies.PolicyError) as raised:
        policies.load(YAML, "policy.yaml")
    lines = [error.detail for error in raised.value.errors]
    assert any(line.startswith("policy.yaml:7:5: severity: ") for line in lines)
    assert any(line.startswith("policy.yaml:8:5: path: ") and "did you mean drift?" in line for line in lines)
    assert "policy.yaml:9:5: mox: there is no field 'mox'; did you mean max?" in lines
    for text, message in {
        "": "p:1:1: the file is empty",
        "rules: [": "p:1:9: not valid YAML",
        "rules: []\nrules: []": "p:2:1: not valid YAML: duplicate key rules",
        "- 1": "p:1:1: must be an object; it is [1]",
        "rules:\n  - id: a\n    path: layers[0].drift\n    max: 1": "p:2:5: message: this field is required",
    }.items():
        with pytest.raises(policies.PolicyError) as raised:
            policies.load(text, "p")
        assert message in raised.value.errors[0].detail


def test_what_the_gate_cannot_judge_is_named_with_its_line_too() -> None:
    text = json.dumps({"rules": [{"id": "a", "message": "m", "path": "layers[9].drift", "max": 1}]}, indent=1)
    asked = policies.load(text, "p.json")
    with pytest.raises(InputError) as raised:
        evaluate_policy(asked, report())
    found = policies.located(text, "p.json", raised.value)
    assert found.errors[0].detail == "p.json:6:4: rule a: layers[9].drift matches nothing in this report"


def test_the_verdict_is_junit_that_a_parser_reads(tmp_path: Any) -> None:
    found = mixed()
    path = tmp_path / "out.xml"
    path.write_text(drawn.junit(found, "reviews <v7> \x00", datetime(2026, 1, 2, tzinfo=UTC), 12.5))
    (suite,) = JUnitXml.fromfile(str(path))
    assert (suite.name, suite.tests, suite.failures, suite.time) == ("reviews <v7> ", 3, 1, 12.5)
    cases = {case.name: case for case in suite}
    assert cases["rule-0"].is_passed
    assert cases["rule-2"].is_passed  # a warning
    assert "warn: it <moved>" in cases["rule-2"].system_out
    assert cases["rule-1"].result[0].message == "it moved"
    assert "layers[3].drift is 1" in cases["rule-1"].result[0].text


def test_the_verdict_is_markdown_of_githubs_dialect_whatever_a_message_holds() -> None:
    page = MarkdownIt("gfm-like", {"linkify": False}).render(drawn.markdown(mixed()))
    assert page.count("<tr>") == 4
    assert "it &lt;moved&gt;" in page
    assert page.index("rule-1") < page.index("rule-2") < page.index("rule-0")


def mixed() -> Verdict:
    return evaluate_policy(
        policy(
            {"path": "layers[0].drift", "max": 0.5},
            {"path": "layers[3].drift", "max": 0.5},
            {"path": "layers[3].drift", "max": 0.5, "severity": "warn", "message": "it <moved> | and\n[more](x)"},
        ),
        report(),
    )


def test_every_warning_of_the_workers_can_be_asked_for() -> None:
    sources = "".join(path.read_text() for path in (Files(__file__).parents[3] / "workers").rglob("*.py"))
    written = set(re.findall(r'ReportWarning\(\s*code="([a-z_]+)"', sources))
    assert len(written) > 10
    assert written <= set(WARNING_CODES)
    assert all(f'"{code}"' in sources for code in WARNING_CODES)


def test_a_preliminary_report_is_never_judged() -> None:
    early = report().model_copy(update={"status": "preliminary", "pending": [PendingStage(stage="sae", fields=[])]})
    with pytest.raises(InputError, match=r"is preliminary \(sae still to come\)"):
        evaluate_policy(policies.load(policies.starter()), early)
    with pytest.raises(InputError, match="preliminary"):
        compare(report(), early)


def test_text_and_advice_call_a_layer_moved_where_the_starter_policy_fails() -> None:
    (rule,) = (one for one in policies.load(policies.starter()).rules if one.id == "early-layers-not-scaled")
    assert rule.max == MUCH_MOVED


def test_scripts_that_were_written_for_the_old_name_still_work() -> None:
    assert gate.judge is gate.evaluate_policy
