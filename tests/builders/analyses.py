"""An analysis as the service tells of it, made of the published contract alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from layerdrift.contract.analysis import Analysis

ANALYSIS_ID = "an_" + "a" * 26


def analysis(status: str = "succeeded", **changes: Any) -> Analysis:
    """An analysis with this status; its progress is that of one that has just begun."""
    place = f"/v1/analyses/{ANALYSIS_ID}"
    body = {
        "id": ANALYSIS_ID,
        "name": "demo",
        "tags": {},
        "status": status,
        "created_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "request": {
            "base": {"uri": "file:///a"},
            "tuned": {"uri": "file:///b"},
            "dataset": {"uri": "s3://d/x.csv"},
        },
        "progress": {"stages": [{"name": "resolve", "status": "running", "fraction": 0.5}]},
        "links": {
            "self": place,
            "events": f"{place}/events",
            "report": f"{place}/report",
            "artifacts": f"{place}/artifacts",
            "cancel": f"{place}/cancel",
        },
    }
    return Analysis.model_validate(body | changes)
