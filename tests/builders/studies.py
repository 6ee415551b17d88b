"""Studies of made-up numbers: requests, members and whole reports."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from layerdrift.contract.analysis import Status
from layerdrift.contract.report import Report
from layerdrift.contract.study import StudyRequest
from layerdrift.contract.study_report import Matrix, SimilarityLayer, StudyReport, StudySimilarity, TreeJoin
from tests.builders.reports import report
from workers.studies.outcomes import Outcome
from workers.studies.report import study_report

STUDY_ID = "st_" + "a" * 26


def study_request(**changes: Any) -> StudyRequest:
    """Two tasks, two seeds each."""
    body: dict[str, Any] = {
        "name": "candidates",
        "base": {"uri": "file:///base"},
        "finetune": {},
        "members": [
            {"name": f"{task}-{seed}", "task": task, "seed": seed, "dataset": {"uri": f"s3://data/{task}.csv"}}
            for task in ("reviews", "spam")
            for seed in (0, 1)
        ],
    }
    return StudyRequest.model_validate(body | changes)


def member_report(drifts: Sequence[float], general: int = 2, accuracy: float = 0.9, **changes: Any) -> Report:
    """A report whose layers drifted so much, the first ones in the zone `general`."""
    made = report(layers=len(drifts))
    body = made.model_dump()
    for layer, drift in zip(body["layers"], drifts, strict=True):
        layer["drift"] = drift
        layer["zone"] = "general" if layer["index"] < general else "specialised"
        layer["similarity"]["token"]["cka"] = {"value": 1 - drift, "low": 1 - drift - 0.01, "high": 1 - drift + 0.01}
    body["outputs"]["tuned"]["accuracy"] = {"value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02}
    return Report.model_validate(body | {"trajectory": None} | changes)


def outcomes(request: StudyRequest, reports: dict[str, Report]) -> list[Outcome]:
    """What became of the members; those without a report failed."""
    return [
        Outcome(
            member=one.member,
            task=one.member.task or "data",
            analysis_id="an_" + format(number, "d").replace("0", "a").replace("1", "b") * 26,
            request=one.request,
            status=Status.SUCCEEDED if one.member.name in reports else Status.FAILED,
            error=None if one.member.name in reports else "the disk was full",
            report=reports.get(one.member.name),
        )
        for number, one in enumerate(request.analyses())
    ]


def similarity(members: Sequence[str], layers: int = 4) -> StudySimilarity:
    """Members whose changes have a cosine of 0.8 within a task and of 0.1 across tasks; layer 0 did not change."""

    def matrix(layer: int, within: float, across: float) -> Matrix:
        return [
            [
                None if layer == 0 else 1.0 if one == other else within if one[:-1] == other[:-1] else across
                for other in members
            ]
            for one in members
        ]

    return StudySimilarity(
        members=list(members),
        texts=40,
        tokens=1_000,
        rank=8,
        chance_overlap=0.1,
        layers=[
            SimilarityLayer(
                index=layer,
                cka=matrix(1, 0.9, 0.7),
                cka_low=matrix(1, 0.85, 0.6),
                cka_high=matrix(1, 0.95, 0.8),
                change_cosine=matrix(layer, 0.8, 0.1),
                change_cosine_low=matrix(layer, 0.7, 0.0),
                change_cosine_high=matrix(layer, 0.9, 0.2),
                overlap=matrix(layer, 0.6, 0.2),
                angle=matrix(layer, 5.0, 40.0),
            )
            for layer in range(layers)
        ],
        tree=[
            TreeJoin(left=0, right=1, distance=0.2),
            TreeJoin(left=2, right=3, distance=0.2),
            TreeJoin(left=4, right=5, distance=0.9),
        ],
    )


def made_study(request: StudyRequest | None = None, reports: dict[str, Report] | None = None) -> StudyReport:
    """The report of a study: by default two tasks that differ more than their seeds do."""
    asked = request or study_request()
    found = reports or {
        "reviews-0": member_report([0.0, 0.01, 0.1, 0.3], accuracy=0.90),
        "reviews-1": member_report([0.0, 0.02, 0.12, 0.34], accuracy=0.92),
        "spam-0": member_report([0.0, 0.1, 0.4, 0.7], general=1, accuracy=0.97),
        "spam-1": member_report([0.0, 0.12, 0.41, 0.72], general=1, accuracy=0.96),
    }
    title = asked.name or "study"
    alike = similarity(list(found)) if reports is None else None
    return study_report(STUDY_ID, title, asked, outcomes(asked, found), datetime(2026, 1, 2, tzinfo=UTC), alike)
