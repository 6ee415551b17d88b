"""Records of studies and of their members' jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from backends.jobs.records import JobRecord, MemberRecord, StudyRecord
from layerdrift.contract.analysis import Status
from tests.builders.records import record
from tests.builders.studies import STUDY_ID, study_request


def study_record(statuses: Sequence[Status], **changes: Any) -> tuple[StudyRecord, list[JobRecord]]:
    """A study whose members' jobs have these statuses, and the jobs."""
    asked = study_request(
        similarity=False,
        members=[
            {"name": f"m{number}", "tuned": {"uri": f"s3://models/{number}"}, "dataset": {"uri": "s3://data/a.csv"}}
            for number in range(len(statuses))
        ],
    )
    jobs = [
        record(analysis_id=f"an_{letter * 26}").model_copy(update={"status": status, "request": one.request})
        for letter, status, one in zip("abcdefgh", statuses, asked.analyses(), strict=False)
    ]
    members = [
        MemberRecord(name=one.name, task="a.csv", analysis_id=job.id, made=True)
        for one, job in zip(asked.members, jobs, strict=True)
    ]
    made = StudyRecord(id=STUDY_ID, created_at=datetime.now(UTC), request=asked, members=members)
    return made.model_copy(update=changes), jobs
