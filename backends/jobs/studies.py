"""Studies and the jobs of their members."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from backends.jobs.records import JobRecord, MemberRecord, StudyRecord, TrialRecord
from backends.jobs.store import JobStore
from layerdrift.contract.errors import ConflictError, NotFoundError


def members_of(jobs: JobStore, study: StudyRecord) -> list[JobRecord | None]:
    """The members' jobs, in their order; None for one that somebody deleted."""
    return jobs.find_all([member.analysis_id for member in study.members], study.tenant)


def trials_of(jobs: JobStore, study: StudyRecord) -> list[JobRecord | None]:
    """The jobs of its trials of adapters, likewise."""
    return jobs.find_all([trial.analysis_id for trial in study.trials], study.tenant)


def ready(jobs: JobStore, study: StudyRecord) -> bool:
    """Whether all members and trials have ended, so that the study can go on."""
    found = jobs.find_all([one.analysis_id for one in study.awaited], study.tenant)
    return all(job is None or job.status.final for job in found)


def cancel_made(jobs: JobStore, awaited: Iterable[MemberRecord | TrialRecord], tenant: str) -> None:
    """Ends the analyses that a study made; those that have ended, or that somebody deleted, are left."""
    for one in awaited:
        if one.made:
            with suppress(ConflictError, NotFoundError):
                jobs.cancel(one.analysis_id, tenant)
