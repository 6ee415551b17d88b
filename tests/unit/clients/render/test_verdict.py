"""The verdict as JUnit XML and as Markdown."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest
from junitparser import JUnitXml
from markdown_it import MarkdownIt

from layerdrift.contract.policy import Check, Decision
from layerdrift.render import verdict as drawn
from tests.builders.policies import check, mixed, verdict

AT = datetime(2026, 1, 2, tzinfo=UTC)
UNKNOWN = check("fail", evaluated=False, matched=0, observed=None)
SKIPPED = check("pass", id="headless", skipped=True, matched=0, detail="skipped: applies only without outputs.kind")


def test_the_verdict_is_junit_that_a_parser_reads(tmp_path: Path) -> None:
    found = mixed()
    path = tmp_path / "out.xml"
    path.write_text(drawn.junit(found, "reviews <v7> \x00", AT, 12.5))
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


@pytest.mark.parametrize(
    ("decision", "checks", "sentence"),
    [
        ("pass", [check()], "Policy passed."),
        ("warn", [check("warn", severity="warn")], "Policy passed with warnings."),
        ("fail", [check("fail")], "Policy failed."),
        ("fail", [UNKNOWN], "The policy could not be evaluated: the report lacks numbers that it asks for."),
        ("fail", [UNKNOWN, check("fail")], "Policy failed."),
    ],
)
def test_the_decision_is_a_sentence_that_blames_the_model_only_for_numbers(
    decision: Decision, checks: list[Check], sentence: str
) -> None:
    assert drawn.said(verdict(decision, *checks)) == sentence


def test_checks_are_counted_by_what_became_of_them_and_kinds_without_any_are_left_out() -> None:
    assert drawn.tallied(verdict("fail", check(), SKIPPED, check("fail"), check())) == "1 failed, 2 passed, 1 skipped"
    assert drawn.tallied(verdict("pass", check())) == "1 passed"


def test_a_check_that_was_skipped_is_skipped_in_junit_too() -> None:
    root = ET.fromstring(drawn.junit(verdict("pass", check(), SKIPPED), "x", AT))
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "1")
    skipped = suite.find("testcase[@name='headless']/skipped")
    assert skipped is not None
    assert skipped.get("message") == "skipped: applies only without outputs.kind"


def test_a_number_that_is_not_there_fails_in_junit_as_not_evaluated() -> None:
    failure = ET.fromstring(drawn.junit(verdict("fail", UNKNOWN), "x", AT)).find(".//failure")
    assert failure is not None
    assert failure.get("type") == "not-evaluated"
    assert failure.get("message") == "no number to evaluate, which counts as fail"


def test_a_number_that_is_not_there_is_told_apart_in_markdown() -> None:
    written = drawn.markdown(verdict("fail", UNKNOWN))
    assert written.startswith("## ❌ The policy could not be evaluated")
    assert "no number to evaluate\\, which counts as fail" in written


def test_junit_says_which_analysis_was_decided_on_and_when() -> None:
    root = ET.fromstring(drawn.junit(verdict("pass", check(), analysis_id="an_7"), "x", AT))
    suite = root.find("testsuite")
    assert suite is not None
    assert suite.get("timestamp") == "2026-01-02T00:00:00+00:00"
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert properties == {"analysis_id": "an_7", "decision": "pass"}


def test_the_baseline_is_named_below_the_table_where_there_was_one() -> None:
    assert drawn.markdown(verdict("pass", check(), baseline="an_b")).endswith("\n\nBaseline: `an_b`.\n")
    assert "Baseline" not in drawn.markdown(verdict("pass", check()))
