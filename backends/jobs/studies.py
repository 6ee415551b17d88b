"""Studies and the jobs of their members."""

from __future__ import annotations

from backends.jobs.records import JobRecord, StudyRecord
from backends.jobs.store import JobStore


def members_of(jobs: JobStore, study: StudyRecord) -> list[JobRecord | None]:
    """The members' jobs, in their order; None for one that somebody deleted."""
    return jobs.find_all([member.analysis_id for member in study.members], study.tenant)


def trials_of(jobs: JobStore, study: StudyRecord) -> list[JobRecord | None]:
    """The jobs of its trials of adapters, likewise."""
    return jobs.find_all([trial.analysis_id for trial in study.trials], study.tenant)


def ready(jobs: JobStore, study: StudyRecord) -> bool:
    """Whether all members and trials have ended, so that the study can go on."""
    return all(job is None or job.status.final for job in (*members_of(jobs, study), *trials_of(jobs, study)))
