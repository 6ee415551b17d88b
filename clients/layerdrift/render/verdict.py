"""Verdict -> JUnit for CI systems, and Markdown for pull requests. Needs nothing beyond the contract."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import datetime

from layerdrift.contract.policy import Check, Decision, Verdict
from layerdrift.render import escaping

SIGN: dict[Decision, str] = {"pass": "✅", "warn": "⚠️", "fail": "❌"}
SAID: dict[Decision, str] = {
    "pass": "Policy passed.",
    "warn": "Policy passed with warnings.",
    "fail": "Policy failed.",
}
NOT_EVALUATED = "The policy could not be evaluated: the report lacks numbers that it asks for."


def said(verdict: Verdict) -> str:
    """The decision in a sentence."""
    return SAID[verdict.decision] if verdict.evaluated else NOT_EVALUATED


def tallied(verdict: Verdict) -> str:
    """How many checks did what: `1 failed, 8 passed, 9 skipped`."""
    words = {"fail": "failed", "warn": "warned", "pass": "passed", "skip": "skipped"}
    counts = {shown: sum(check.shown == shown for check in verdict.checks) for shown in words}
    return ", ".join(f"{counts[shown]} {word}" for shown, word in words.items() if counts[shown])


def junit(verdict: Verdict, name: str, at: datetime, seconds: float = 0.0) -> str:
    """The verdict as JUnit XML: a test case for each check; warnings pass, with what they say on their output.

    Args:
        name: of the suite, such as that of the analysis.
        at: when the report was made. seconds: what making it took.
    """
    counts = verdict.counts
    totals = {
        "tests": str(len(verdict.checks)),
        "failures": str(counts["fail"]),
        "errors": "0",
        "skipped": str(verdict.skipped),
    }
    totals["time"] = f"{seconds:.3f}"
    root = ET.Element("testsuites", {"name": "layerdrift", **totals})
    suite = ET.SubElement(root, "testsuite", {"name": escaping.xml(name), "timestamp": at.isoformat(), **totals})
    properties = ET.SubElement(suite, "properties")
    for key, value in (("analysis_id", verdict.analysis_id), ("decision", verdict.decision)):
        ET.SubElement(properties, "property", {"name": key, "value": value})
    for check in verdict.checks:
        case = ET.SubElement(
            suite, "testcase", {"classname": "layerdrift.policy", "name": escaping.xml(check.id), "time": "0"}
        )
        if check.decision == "fail":
            failure = ET.SubElement(
                case,
                "failure",
                {"type": "policy" if check.evaluated else "not-evaluated", "message": escaping.xml(check.said)},
            )
            failure.text = escaping.xml(_explained(check))
        elif check.shown == "skip":
            ET.SubElement(case, "skipped", {"message": escaping.xml(check.detail)})
        else:
            out = ET.SubElement(case, "system-out")
            out.text = escaping.xml(f"{check.decision}: {_explained(check)}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def markdown(verdict: Verdict) -> str:
    """The verdict in GitHub's dialect: the decision, then a row for each check, failed ones first."""
    tally = tallied(verdict)
    lines = [f"## {SIGN[verdict.decision]} {said(verdict)}", "", f"{len(verdict.checks)} checks: {tally}.", ""]
    lines += ["| | check | result | limit |", "|---|---|---|---|"]
    order: dict[Decision, int] = {"fail": 0, "warn": 1, "pass": 2}
    for check in sorted(verdict.checks, key=lambda one: order[one.decision]):
        name, message, found, limit = (
            escaping.markdown(text) for text in (check.id, check.said, check.detail, check.limit)
        )
        what = f"**{name}**" if check.decision == "pass" else f"**{name}**<br>{message}"
        sign = "⏭️" if check.shown == "skip" else SIGN[check.decision]
        lines.append(f"| {sign} | {what} | {found} | {limit} |")
    if verdict.baseline:
        lines += ["", f"Baseline: `{verdict.baseline}`."]
    return "\n".join(lines) + "\n"


def _explained(check: Check) -> str:
    where = f"\n{check.path} {check.limit}" if check.path else ""
    return f"{check.said}\n{check.detail}{where}" if check.decision != "pass" else f"{check.detail}{where}"
