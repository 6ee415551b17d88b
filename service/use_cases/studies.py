"""What the API shows of a study, and how one is cancelled and deleted. Knows no HTTP."""

from __future__ import annotations

from typing import get_args

from backends.deployment import Deployment
from backends.jobs.records import JobRecord, MemberRecord, StudyRecord, TrialRecord
from backends.jobs.studies import cancel_made, members_of, trials_of
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import NotFoundError
from layerdrift.contract.study import Study, StudyLinks, StudyMemberState, TrialKind


def shown(deployment: Deployment, record: StudyRecord) -> Study:
    """A study and how far its members have come."""
    jobs = members_of(deployment.jobs, record)
    members = [_state(member, job) for member, job in zip(record.members, jobs, strict=True)]
    trials = [_state(trial, job) for trial, job in zip(record.trials, trials_of(deployment.jobs, record), strict=True)]
    every = [*members, *trials]
    path = f"/v1/studies/{record.id}"
    return Study(
        id=record.id,
        name=record.title,
        tags=dict(record.tags),
        status=_status(record, members),
        created_at=record.created_at,
        finished_at=record.finished_at,
        request=record.request,
        members=members,
        trials=trials,
        fraction=1.0 if record.status.final else sum(one.fraction for one in every) / (len(every) + _to_come(record)),
        error=record.error,
        submitted_by=record.submitted_by,
        links=StudyLinks(self=path, events=f"{path}/events", report=f"{path}/report", cancel=f"{path}/cancel"),
    )


def _to_come(record: StudyRecord) -> int:
    """How many trials of adapters there will be: of each kind one for every task that has a full fine-tune."""
    if record.request.lora_trial is None or record.trials:
        return 0
    full = zip(record.members, record.request.full_finetunes, strict=True)
    return len(get_args(TrialKind)) * len({member.task for member, is_full in full if is_full})


def _state(member: MemberRecord | TrialRecord, job: JobRecord | None) -> StudyMemberState:
    common = {"name": member.name, "task": member.task, "analysis_id": member.analysis_id}
    if job is None:
        gone = NotFoundError(f"analysis {member.analysis_id} was deleted; submit the study again").problem()
        return StudyMemberState(**common, status=Status.FAILED, fraction=1.0, error=gone)
    return StudyMemberState(
        **common,
        status=job.status,
        fraction=1.0 if job.status.final else job.progress.fraction,
        error=job.error,
        report=job.report,
        verdict=job.verdict,
    )


def _status(record: StudyRecord, members: list[StudyMemberState]) -> Status:
    """The study runs from when its first member does."""
    begun = any(member.status is not Status.QUEUED for member in members)
    return Status.RUNNING if record.status is Status.QUEUED and begun else record.status


def cancel_study(deployment: Deployment, study_id: str, tenant: str) -> StudyRecord:
    """Ends a study, and the analyses that it made and no other open study waits for.

    Raises:
        NotFoundError: the tenant has no such study.
        ConflictError: it has ended.
    """
    record = deployment.studies.cancel(study_id, tenant)
    others = _awaited_by_others(deployment, record)
    cancel_made(deployment.jobs, [one for one in record.awaited if one.analysis_id not in others], tenant)
    return record


def _awaited_by_others(deployment: Deployment, record: StudyRecord) -> set[str]:
    """The analyses that other open studies of the tenant wait for."""
    others = deployment.studies.find_all(deployment.studies.open_ids(), record.tenant)
    return {one.analysis_id for other in others if other is not None and other.id != record.id for one in other.awaited}
