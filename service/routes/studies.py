"""Studies: many fine-tunes of one base. Submit, list, status, events, report, policy, cancel, delete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import redis
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from backends import deletion
from backends.deployment import Deployment
from backends.jobs.idempotency import Answered
from backends.jobs.records import StudyRecord, Wanted
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, NotFoundError, UnavailableError
from layerdrift.contract.key import ApiKey
from layerdrift.contract.study import Study, StudyPage, StudyRequest
from layerdrift.contract.study_policy import StudyPolicy, StudyVerdict
from layerdrift.contract.study_report import StudyReport
from service.http.access import Admin, CurrentDeployment, Reader, StudyId, Submitter
from service.http.conditional import conditional
from service.http.problems import documented
from service.routes.analyses import POLL_SECONDS, IfNoneMatch, Tag, negotiated, report_response
from service.routes.events import KEEP_ALIVE_SECONDS, CountedStream
from service.routes.submitting import requester_of
from service.use_cases import evaluate, studies
from service.use_cases.submit_study import StudySubmission, submit_study

LOOK_SECONDS = 1.0
"""Between two looks at the members of a study that somebody follows."""

router = APIRouter(tags=["studies"])


@router.post(
    "/v1/studies",
    summary="Submit a study",
    status_code=202,
    response_model=Study,
    responses={
        200: {"model": Study, "description": "An identical study exists, and none of its analyses has to run again"},
        **documented(400, 401, 403, 409, 413, 415, 422, 429, 503),
    },
)
def submit(
    deployment: CurrentDeployment,
    key: Submitter,
    body: StudyRequest,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="retries with the same key and body are processed only once"),
    ] = None,
) -> Response:
    """Submit a base model and up to 50 fine-tunes of it. Each becomes an analysis; the study's report follows when
    all of them have ended. Repeating a request returns the existing study, 200; analyses that failed run again, 202,
    and the report is withdrawn until the new one is ready."""
    submission = StudySubmission(**dict(requester_of(key)), request=body)
    if idempotency_key is None:
        record, new = submit_study(deployment, submission)
        return _accepted(deployment, record, 202 if new else 200)
    return _once(deployment, submission, idempotency_key)


def _once(deployment: Deployment, submission: StudySubmission, idempotency_key: str) -> Response:
    """The answer to the first request with this Idempotency-Key, now or again."""
    keys, tenant, whole = deployment.idempotency, submission.tenant, submission.request.model_dump_json()
    before = keys.begin(tenant, idempotency_key, whole)
    if before is not None:
        return _accepted(deployment, deployment.studies.get(before.id, tenant), before.status)
    try:
        record, new = submit_study(deployment, submission)
    except BaseException:
        keys.forget(tenant, idempotency_key)
        raise
    status = 202 if new else 200
    keys.finish(tenant, idempotency_key, whole, Answered(status, record.id))
    return _accepted(deployment, record, status)


def _accepted(deployment: Deployment, record: StudyRecord, status: int) -> Response:
    study = studies.shown(deployment, record)
    return JSONResponse(study.model_dump(mode="json"), status_code=status, headers={"Location": study.links.self})


@router.get("/v1/studies", summary="List studies", responses=documented(401, 403, 422, 429, 503))
def list_studies(
    deployment: CurrentDeployment,
    key: Reader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the previous page")] = None,
    name: Annotated[str | None, Query(max_length=200, description="filter by name: case-insensitive substring")] = None,
    tag: Tag = None,
) -> StudyPage:
    """List studies, newest first. A filtered page may be short: continue while `next_cursor` is set."""
    label, _, value = (tag or "").partition(":")
    wanted = Wanted(name=name, tag=(label, value) if tag else None)
    records, next_cursor = deployment.study_listing.page(key.tenant, limit, cursor, wanted)
    return StudyPage(items=[studies.shown(deployment, record) for record in records], next_cursor=next_cursor)


@router.get(
    "/v1/studies/{study_id}",
    summary="Get a study",
    response_model=Study,
    responses={304: {"description": "Not modified"}, **documented(401, 403, 404, 422, 429, 503)},
)
def get_study(
    deployment: CurrentDeployment, key: Reader, study_id: StudyId, if_none_match: IfNoneMatch = None
) -> Response:
    """Get a study with the progress of its members. `Retry-After`: seconds to wait before the next poll."""
    record = deployment.studies.get(study_id, key.tenant)
    headers = {} if record.status.final else {"Retry-After": str(POLL_SECONDS)}
    body = studies.shown(deployment, record).model_dump_json().encode()
    return conditional(body, "application/json", if_none_match, headers)


@router.get(
    "/v1/studies/{study_id}/events",
    summary="Follow a study",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "`study` events, the study without its request, whenever "
            "something changed; then `done` with its status",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **documented(401, 403, 404, 422, 429, 503),
    },
)
async def follow_study(deployment: CurrentDeployment, key: Reader, study_id: StudyId) -> StreamingResponse:
    """Follow a study as server-sent events until it ends."""
    await run_in_threadpool(deployment.studies.get, study_id, key.tenant)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return CountedStream(_events(deployment, key, study_id), key.tenant, headers)


async def _events(deployment: Deployment, key: ApiKey, study_id: str) -> AsyncIterator[str]:
    """The study whenever it has changed, until it has ended or is gone. Outages are waited out."""
    yield "retry: 2000\n\n"
    last, silent = "", 0.0
    while True:
        try:
            record = await run_in_threadpool(deployment.studies.get, study_id, key.tenant)
            shown = await run_in_threadpool(studies.shown, deployment, record)
            told = shown.model_dump_json(exclude={"request"})
        except NotFoundError:
            yield 'event: done\ndata: {"status": "deleted"}\n\n'
            return
        except (redis.RedisError, UnavailableError):
            told = last
            yield ": Redis or S3 is unavailable\n\n"
        else:
            if told != last:
                yield f"event: study\ndata: {told}\n\n"
            if record.status.final:
                yield f'event: done\ndata: {{"status": "{record.status}"}}\n\n'
                return
        silent = 0.0 if told != last else silent + LOOK_SECONDS
        last = told
        if silent >= KEEP_ALIVE_SECONDS:
            silent = 0.0
            yield ": still there\n\n"
        await asyncio.sleep(LOOK_SECONDS)


@router.post(
    "/v1/studies/{study_id}/cancel",
    summary="Cancel a study",
    status_code=202,
    responses=documented(401, 403, 404, 409, 422, 429, 503),
)
def cancel_study(deployment: CurrentDeployment, key: Submitter, study_id: StudyId) -> Study:
    """Cancel a study, and the analyses that it created and no other open study needs."""
    return studies.shown(deployment, studies.cancel_study(deployment, study_id, key.tenant))


@router.delete(
    "/v1/studies/{study_id}",
    summary="Delete a study",
    status_code=204,
    responses=documented(401, 403, 404, 409, 422, 429, 503),
)
def delete_study(deployment: CurrentDeployment, key: Admin, study_id: StudyId) -> None:
    """Delete a study and its report. The analyses of its members stay. Returns 409 while it is queued or running."""
    deletion.delete_study(deployment, key.tenant, study_id)


@router.get(
    "/v1/studies/{study_id}/report",
    summary="Get the report of a study",
    response_class=Response,
    responses={
        200: {
            "description": "The report",
            "model": StudyReport,
            "content": {"text/html": {}, "text/markdown": {}},
        },
        304: {"description": "Not modified"},
        **documented(401, 403, 404, 406, 409, 422, 429, 503),
    },
)
def get_report(
    deployment: CurrentDeployment,
    key: Reader,
    study_id: StudyId,
    accept: Annotated[str, Header()] = "application/json",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Get the report as JSON, HTML or Markdown, depending on the `Accept` header. Returns 409 before the end."""
    format = negotiated(accept)
    record = _succeeded(deployment, key, study_id)
    return report_response(deployment.reports.get(record.owned, format), format, if_none_match)


@router.post(
    "/v1/studies/{study_id}/gate",
    summary="Evaluate a policy on a study",
    response_model=StudyVerdict,
    responses=documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
)
async def gate_study(deployment: CurrentDeployment, key: Reader, study_id: StudyId, policy: StudyPolicy) -> Response:
    """Evaluate a policy against the report of a study. Returns 422 if a rule cannot be evaluated: not a pass."""
    record = await run_in_threadpool(_succeeded, deployment, key, study_id)
    report = await run_in_threadpool(deployment.reports.get, record.owned, "json")
    return Response(await evaluate.study_verdict(policy, report.body), media_type="application/json")


def _succeeded(deployment: Deployment, key: ApiKey, study_id: str) -> StudyRecord:
    record = deployment.studies.get(study_id, key.tenant)
    if record.status is not Status.SUCCEEDED:
        raise ConflictError(f"the study is {record.status}: it has no report")
    return record
