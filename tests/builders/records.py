"""Job records."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

from backends.jobs.records import JobRecord
from backends.sources.pinning import PinnedDataset, PinnedModel, Pins
from layerdrift.contract.request import AnalysisRequest


def record(age_seconds: float = 0, analysis_id: str | None = None) -> JobRecord:
    request = AnalysisRequest.model_validate(
        {"base": {"uri": "file:///a"}, "tuned": {"uri": "file:///b"}, "dataset": {"uri": "s3://d/x.csv"}}
    )
    model = PinnedModel(uri="file:///a", files=[])
    return JobRecord(
        id=analysis_id or f"an_{uuid.uuid4().hex[:26]}",
        created_at=datetime.now(UTC) - timedelta(seconds=age_seconds),
        request=request,
        pins=Pins(base=model, tuned=model, dataset=PinnedDataset(source="s3://d/x.csv")),
    )
