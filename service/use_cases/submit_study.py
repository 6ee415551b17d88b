"""Submitting a study: an analysis for each member, all of them checked before the first is stored. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from pydantic import BaseModel

from backends.deployment import Deployment
from backends.jobs.identity import study_id
from backends.jobs.records import JobRecord, MemberRecord, StudyRecord
from backends.sources.pinning import Sources
from layerdrift.contract.errors import FieldProblem, InputError, RateError
from layerdrift.contract.study import MemberAnalysis, StudyRequest
from service.use_cases.submit import RETRY_SECONDS, Submission, enqueue, prepare, upload_names, without_inline


class StudySubmission(BaseModel):
    """A study and who makes it."""

    tenant: str
    submitted_by: str
    open_jobs: int
    priority: int
    trace: str | None
    request: StudyRequest


def submit_study(deployment: Deployment, submission: StudySubmission) -> tuple[StudyRecord, bool]:
    """Makes the analyses of a study and its record, unless they are there already.

    Returns:
        The record, and whether this submission made it or made some of its analyses again.

    Raises:
        InputError: a member is unusable, the same as another, or no worker can hold it; `errors` names all of them.
        RateError: the tenant would have too many open jobs.
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
    members = [
        MemberRecord(
            name=one.member.name,
            task=one.member.task
            or record.request.data_name(upload_names(deployment.uploads, record.tenant, record.request)),
            analysis_id=record.id,
            made=enqueue(deployment, record, submission.open_jobs).new,
        )
        for one, record in zip(analyses, prepared, strict=True)
    ]
    return _stored(deployment, submission, request, members)


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
    record, to_run = deployment.studies.submit(fresh)
    again = any(member.made for member in members)
    if again and not to_run:  # analyses that had failed run again, and so does what follows from them
        record = deployment.studies.update(record.id, lambda _: fresh)
    if again:
        deployment.reports.forget(record.owned)
    return record, to_run or again
