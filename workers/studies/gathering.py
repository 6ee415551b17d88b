"""What became of the jobs of a study, read from records, reports and artifacts."""

from __future__ import annotations

from collections.abc import Sequence

from backends.deployment import Deployment
from backends.jobs.records import JobRecord, StudyRecord, TrialRecord
from backends.jobs.studies import trials_of
from backends.storage import key_names
from backends.storage.artifact_names import SCORES
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import NotFoundError
from layerdrift.contract.plain import STORED
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import StudyMember
from workers.results.text_scores import TextScores
from workers.studies.outcomes import DELETED, Outcome


def outcomes_of(deployment: Deployment, study: StudyRecord, jobs: Sequence[JobRecord | None]) -> list[Outcome]:
    """What became of each member."""
    return [
        _outcome(deployment, asked.member, member.task, asked.request, job, member.analysis_id)
        for asked, member, job in zip(study.request.analyses(), study.members, jobs, strict=True)
    ]


def trial_outcomes(deployment: Deployment, study: StudyRecord) -> list[tuple[TrialRecord, Outcome | None]]:
    """What became of each trial of adapters; None for one that somebody deleted."""
    return [
        (
            trial,
            None
            if job is None
            else _outcome(deployment, StudyMember(name=trial.name), trial.task, job.request, job, job.id),
        )
        for trial, job in zip(study.trials, trials_of(deployment.jobs, study), strict=True)
    ]


def _outcome(
    deployment: Deployment,
    member: StudyMember,
    task: str,
    request: AnalysisRequest,
    job: JobRecord | None,
    analysis_id: str,
) -> Outcome:
    return Outcome(
        member=member,
        task=task,
        analysis_id=analysis_id,
        request=request if job is None else job.request,
        status=Status.FAILED if job is None else job.status,
        error=_why(job),
        report=_report(deployment, job),
        scores=_scores(deployment, job),
        adapter=job is not None and job.pins.tuned is not None and job.pins.tuned.adapter,
    )


def _why(job: JobRecord | None) -> str | None:
    """Why there is no report."""
    if job is None:
        return DELETED
    if job.status is Status.SUCCEEDED:
        return None
    return job.error.detail if job.error is not None else f"its analysis was {job.status}"


def _report(deployment: Deployment, job: JobRecord | None) -> Report | None:
    if job is None or job.status is not Status.SUCCEEDED:
        return None
    return Report.model_validate_json(deployment.reports.get(job.owned, "json").body, context=STORED)


def _scores(deployment: Deployment, job: JobRecord | None) -> TextScores | None:
    """The metric text by text; None where there is none, or an older version made the report."""
    if job is None or job.status is not Status.SUCCEEDED:
        return None
    try:
        return TextScores.read(deployment.blobs.get(key_names.artifact_object(job.owned, SCORES)))
    except NotFoundError:
        return None
