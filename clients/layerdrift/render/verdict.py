"""Verdict -> JUnit for CI systems, and Markdown for pull requests. Needs nothing beyond the contract."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import datetime

from layerdrift.contract.policy import Check, Decision, Verdict
from layerdrift.render import escaping

SIGN: dict[Decision, str] = {"pass": "✅", "warn": "⚠️", "fail": "❌"}
SAID: dict[Decision, str] = {
    "pass": "The policy holds.",
    "warn": "The policy holds, with warnings.",
    "fail": "The policy does not hold.",
}
NOT_JUDGED = "The policy could not be judged: numbers that it asks for are not in the report."


def said(verdict: Verdict) -> str:
    """The decision in a sentence."""
    return SAID[verdict.decision] if verdict.judged else NOT_JUDGED


def junit(verdict: Verdict, name: str, at: datetime, seconds: float = 0.0) -> str:
    """The verdict as JUnit XML: a test case for each check; warnings pass, with what they say on their output.

    Args:
        name: of the suite, such as that of the analysis.
        at: when the report was made. seconds: what making it took.
    """
    counts = verdict.counts
    totals = {"tests": str(len(verdict.checks)), "failures": str(counts["fail"]), "errors": "0", "skipped": "0"}
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
                {"type": "policy" if check.judged else "not-judged", "message": escaping.xml(check.said)},
            )
            failure.text = escaping.xml(_explained(check))
        else:
            out = ET.SubElement(case, "system-out")
            out.text = escaping.xml(f"{check.decision}: {_explained(check)}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def markdown(verdict: Verdict) -> str:
    """The verdict in GitHub's dialect: the decision, then a row for each check, those that do not hold first."""
    counts = verdict.counts
    tally = ", ".join(f"{counts[one]} {one}" for one in ("fail", "warn", "pass") if counts[one])
    lines = [f"## {SIGN[verdict.decision]} {said(verdict)}", "", f"{len(verdict.checks)} checks: {tally}.", ""]
    lines += ["| | check | found | asked |", "|---|---|---|---|"]
    order: dict[Decision, int] = {"fail": 0, "warn": 1, "pass": 2}
    for check in sorted(verdict.checks, key=lambda one: order[one.decision]):
        name, message, found, limit = (
            escaping.markdown(text) for text in (check.id, check.said, check.detail, check.limit)
        )
        what = f"**{name}**" if check.decision == "pass" else f"**{name}**<br>{message}"
        lines.append(f"| {SIGN[check.decision]} | {what} | {found} | {limit} |")
    if verdict.baseline:
        lines += ["", f"Baseline: `{verdict.baseline}`."]
    return "\n".join(lines) + "\n"


def _explained(check: Check) -> str:
    where = f"\n{check.path} {check.limit}" if check.path else ""
    return f"{check.said}\n{check.detail}{where}" if check.decision != "pass" else f"{check.detail}{where}"
