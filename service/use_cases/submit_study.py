"""Submitting a study: an analysis for each member, all of them checked before the first is stored. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from backends.deployment import Deployment
from backends.jobs.identity import study_id
from backends.jobs.records import JobRecord, MemberRecord, StudyRecord
from backends.jobs.studies import members_of, ready
from backends.sources.pinning import Sources
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, FieldProblem, InputError, RateError
from layerdrift.contract.study import MemberAnalysis, StudyRequest
from service.use_cases.quotas import require_job_quota
from service.use_cases.submit import (
    RETRY_SECONDS,
    Requester,
    Submission,
    enqueue,
    prepare,
    upload_names,
    without_inline,
)


class StudySubmission(Requester):
    """A study and who makes it."""

    request: StudyRequest


def submit_study(deployment: Deployment, submission: StudySubmission) -> tuple[StudyRecord, bool]:
    """Makes the analyses of a study and its record, unless they are there already.

    Returns:
        The record, and whether this submission made it, or made or found some of its analyses again.

    Raises:
        InputError: a member is unusable, the same as another, or no worker can hold it; `errors` names all of them.
        RateError: the tenant would have too many open jobs, or a quota is used up.
        ConflictError: an analysis of it is being cancelled.
        UnavailableError: S3 is unavailable.
    """
    request = _without_inline(deployment, submission)
    analyses = request.analyses()
    prepared = _prepared(deployment, submission, request, analyses)
    fresh = [record for record in prepared if not _going(deployment, record)]
    opened = deployment.listing.open_count(submission.tenant)
    if fresh and opened + len(fresh) > submission.open_jobs:
        detail = f"{opened} jobs are queued or running and the study makes {len(fresh)} more; the limit of this key is "
        raise RateError(f"{detail}{submission.open_jobs}", RETRY_SECONDS)
    if fresh:
        require_job_quota(deployment, submission.tenant, len(fresh))
    _require_none_stopping(deployment, prepared)
    tasks = _tasks(deployment, analyses, prepared)
    members = [
        MemberRecord(name=one.member.name, task=task, analysis_id=record.id, made=False)
        for one, record, task in zip(analyses, prepared, tasks, strict=True)
    ]
    study, new = _stored(deployment, submission, request, members)
    made = {record.id for record in prepared if enqueue(deployment, record, submission.open_jobs).new}
    again = not new and (bool(made) or (study.status.final and _has_changed(deployment, study)))
    study = deployment.studies.update(study.id, lambda found: _with_made(found, made, again))
    if again:
        deployment.reports.forget(study.owned)
    if ready(deployment.jobs, study) and not study.status.final:
        deployment.queue.announce(study)
    return study, new or bool(made) or again


def _require_none_stopping(deployment: Deployment, records: list[JobRecord]) -> None:
    """ConflictError, before any is stored, where somebody has asked an analysis to stop that still runs."""
    for found in deployment.jobs.find_all([record.id for record in records], records[0].tenant):
        if found is not None and found.cancel_requested and not found.status.final:
            raise ConflictError(f"{found.id} is being cancelled; post the study again once it has ended")


def _has_changed(deployment: Deployment, study: StudyRecord) -> bool:
    """Whether a member runs, or has ended since the study's report was begun."""
    jobs = members_of(deployment.jobs, study)
    begun = study.started_at or study.created_at
    return any(job is not None and (job.finished_at is None or job.finished_at > begun) for job in jobs)


def _with_made(study: StudyRecord, made: set[str], again: bool) -> StudyRecord:
    """The record with the analyses that it made, now or before; to be finished anew where these run again."""
    members = [
        member.model_copy(update={"made": member.made or member.analysis_id in made}) for member in study.members
    ]
    changes: dict[str, object] = {"members": members}
    if again:
        reset = {
            "status": Status.QUEUED,
            "attempts": 0,
            "trials": [],
            "error": None,
            "started_at": None,
            "finished_at": None,
        }
        changes |= {**reset, "cancel_requested": False}
    return study.model_copy(update=changes)


def _tasks(deployment: Deployment, analyses: list[MemberAnalysis], records: list[JobRecord]) -> list[str]:
    """What each member is for: what it says, or the name of its data set; its URI where others have the same name."""
    names = [
        record.request.data_name(upload_names(deployment.uploads, record.tenant, record.request)) for record in records
    ]
    uris = [record.request.dataset.uri or name for record, name in zip(records, names, strict=True)]
    sharing = {name: {uri for uri, other in zip(uris, names, strict=True) if other == name} for name in names}
    default = [name if len(sharing[name]) == 1 else uri for name, uri in zip(names, uris, strict=True)]
    return [one.member.task or name for one, name in zip(analyses, default, strict=True)]


def _without_inline(deployment: Deployment, submission: StudySubmission) -> StudyRequest:
    """The request with texts that came inline as uploads: records are read often."""
    request, tenant, uploads = submission.request, submission.tenant, deployment.uploads
    members = [
        member
        if member.dataset is None
        else member.model_copy(update={"dataset": without_inline(uploads, tenant, member.dataset)})
        for member in request.members
    ]
    shared = None if request.dataset is None else without_inline(uploads, tenant, request.dataset)
    return request.model_copy(update={"dataset": shared, "members": members})


def _prepared(
    deployment: Deployment, submission: StudySubmission, request: StudyRequest, analyses: list[MemberAnalysis]
) -> list[JobRecord]:
    """The analyses' records; InputError where one is unusable, with the places in the study."""
    problems: list[FieldProblem] = []
    records: list[JobRecord] = []
    for number, one in enumerate(analyses):
        alone = Submission(**submission.model_dump(exclude={"request"}), request=one.request)
        try:
            records.append(prepare(deployment, alone))
        except InputError as error:
            problems += list(_placed(request, number, error))
    if not problems:
        problems = list(_of_other_architectures(deployment.sources.of(submission.tenant), records))
    if problems:
        distinct = list({(problem.pointer, problem.detail): problem for problem in problems}.values())
        raise InputError("; ".join(problem.detail for problem in distinct), distinct)
    return records


def _placed(request: StudyRequest, number: int, error: InputError) -> Iterator[FieldProblem]:
    """What is wrong with a member, at its place in the study."""
    for problem in error.errors or [FieldProblem(pointer="", detail=error.detail)]:
        pointer = request.pointer(number, problem.pointer)
        of_member = pointer.startswith("/members/")
        detail = f"member {request.members[number].name!r}: {problem.detail}" if of_member else problem.detail
        yield FieldProblem(pointer=pointer, detail=detail)


def _of_other_architectures(sources: Sources, records: list[JobRecord]) -> Iterator[FieldProblem]:
    base = sources.model_type(records[0].pins.base, "/base/uri")
    for number, record in enumerate(records):
        if record.pins.tuned is None:
            continue
        pointer = f"/members/{number}/tuned/uri"
        found = sources.model_type(record.pins.tuned, pointer)
        if found is not None and found != base:
            detail = f"member {record.request.name!r} is a {found}, the base a {base}: it cannot be tuned from it"
            yield FieldProblem(pointer=pointer, detail=detail)


def _going(deployment: Deployment, record: JobRecord) -> bool:
    """Whether there is such an analysis, which need not run again."""
    found = deployment.jobs.find(record.id, record.tenant)
    return found is not None and (not found.status.final or found.report == "complete")


def _stored(
    deployment: Deployment, submission: StudySubmission, request: StudyRequest, members: list[MemberRecord]
) -> tuple[StudyRecord, bool]:
    fresh = StudyRecord(
        id=study_id(submission.tenant, request, [member.analysis_id for member in members]),
        tenant=submission.tenant,
        submitted_by=submission.submitted_by,
        priority=submission.priority,
        created_at=datetime.now(UTC),
        request=request,
        members=members,
    )
    return deployment.studies.submit(fresh)
