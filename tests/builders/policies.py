"""Policies, and verdicts as the gate leaves them."""

from __future__ import annotations

from typing import Any

from layerdrift.contract.policy import Check, Decision, Policy, Verdict
from layerdrift.gate import evaluate_policy
from tests.builders.reports import report


def policy(*rules: dict[str, Any], **fields: Any) -> Policy:
    """A policy of these rules, each with an id and a message unless it has its own."""
    named = [{"id": f"rule-{number}", "message": "it moved"} | rule for number, rule in enumerate(rules)]
    return Policy.model_validate({"rules": named, **fields})


def check(decision: Decision = "pass", **changes: Any) -> Check:
    """One check of a verdict."""
    body = {
        "id": "kept",
        "decision": decision,
        "severity": "fail",
        "path": "layers[0].drift",
        "matched": 1,
        "observed": 0.0,
        "limit": "<= 1",
        "message": "it moved",
        "detail": "layers[0].drift is 0",
    }
    return Check.model_validate(body | changes)


def verdict(decision: Decision, *checks: Check, **changes: Any) -> Verdict:
    """A verdict on an analysis."""
    return Verdict.model_validate({"analysis_id": "an_x", "decision": decision, "checks": checks, **changes})


def mixed() -> Verdict:
    """A rule that holds, one that fails and one that warns, on the report of `builders.reports`."""
    return evaluate_policy(
        policy(
            {"path": "layers[0].drift", "max": 0.5},
            {"path": "layers[3].drift", "max": 0.5},
            {"path": "layers[3].drift", "max": 0.5, "severity": "warn", "message": "it <moved> | and\n[more](x)"},
        ),
        report(),
    )
