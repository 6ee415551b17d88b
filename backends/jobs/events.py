"""Events of a running job, as a Redis stream that a reader can resume. Losing it loses no job."""

from __future__ import annotations

import json
from typing import Any

from redis.client import Pipeline

from backends.jobs.records import JobRecord
from backends.storage import key_names

KEPT_EVENTS = 2000
KEPT_SECONDS = 7 * 24 * 3600


def entries_of(before: JobRecord | None, record: JobRecord) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of the events that a change of a record stands for."""
    found: list[tuple[str, dict[str, Any]]] = []
    stages = {stage.name: stage for stage in before.progress.stages} if before else {}
    for stage in record.progress.stages:
        old = stages.get(stage.name)
        if stage.status != (old.status if old else "pending"):
            found.append(("stage", stage.model_dump(mode="json")))
    if before is not None and record.progress != before.progress:
        current = next((stage for stage in record.progress.stages if stage.name == record.progress.stage), None)
        progress = record.progress
        data: dict[str, Any] = {
            "fraction": progress.fraction,
            "stage": progress.stage,
            "seconds_left": progress.seconds_left,
        }
        if current is not None:
            data |= {"stage_fraction": current.fraction, "detail": current.detail, "numbers": current.numbers}
        found.append(("progress", data))
    if before is not None and record.attempts > before.attempts:
        found.append(("log", {"message": f"a worker picked up the job (attempt {record.attempts})"}))
    if record.cancel_requested and not (before and before.cancel_requested):
        found.append(("log", {"message": "cancellation was requested"}))
    if record.report == "preliminary" and not (before and before.report == "preliminary"):
        found.append(("report", {"status": "preliminary"}))
    if record.status.final and not (before and before.status.final):
        error = record.error.model_dump(mode="json", exclude_none=True) if record.error else None
        found.append(("done", {"status": record.status, "error": error}))
    return found


def append_entries(pipe: Pipeline, before: JobRecord | None, record: JobRecord) -> None:
    """Adds the events of a change to the transaction that writes it."""
    stream = key_names.events(record.id)
    if before is not None and before.status.final and not record.status.final:
        pipe.delete(stream)  # it was opened again
    events = entries_of(before, record)
    for name, data in events:
        pipe.xadd(stream, {"event": name, "data": json.dumps(data)}, maxlen=KEPT_EVENTS, approximate=True)
    if events:
        pipe.expire(stream, KEPT_SECONDS)
