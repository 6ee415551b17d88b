"""Analyses that were submitted: list, status, report, artifacts, policy, comparison, cancel, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from backends.deletion import delete
from backends.deployment import Deployment
from backends.jobs.records import JobRecord, Wanted
from backends.storage.report_cache import MEDIA_TYPES, CachedReport, ReportFormat
from layerdrift.contract.analysis import Analysis, AnalysisPage, Status
from layerdrift.contract.artifact import ArtifactList
from layerdrift.contract.comparison import Comparison
from layerdrift.contract.errors import ConflictError
from layerdrift.contract.key import ApiKey
from layerdrift.contract.policy import Policy, Verdict
from layerdrift.contract.report import Report
from service.http.access import Admin, AnalysisId, CurrentDeployment, OtherAnalysisId, Reader, Submitter
from service.http.conditional import conditional
from service.http.problems import documented
from service.routes.submitting import accepted, submission_of
from service.routes.web import REPORT
from service.use_cases import evaluate
from service.use_cases.submit import rerun

POLL_SECONDS = 2

router = APIRouter()


IfNoneMatch = Annotated[str | None, Header(description="ETag of an earlier response")]
Tag = Annotated[
    str | None,
    Query(pattern=r"^[^:]{1,100}:.{0,200}$", description="filter by tag, as key:value"),
]


@router.get("/v1/analyses", summary="List analyses", tags=["analyses"], responses=documented(401, 403, 422, 429, 503))
def list_analyses(
    deployment: CurrentDeployment,
    key: Reader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the previous page")] = None,
    status: Annotated[Status | None, Query(description="filter by status")] = None,
    name: Annotated[str | None, Query(max_length=200, description="filter by name: case-insensitive substring")] = None,
    tag: Tag = None,
) -> AnalysisPage:
    """List analyses, newest first. A filtered page may be short: continue while `next_cursor` is set."""
    label, _, value = (tag or "").partition(":")
    wanted = Wanted(status=status, name=name, tag=(label, value) if tag else None)
    records, next_cursor = deployment.listing.page(key.tenant, limit, cursor, wanted)
    return AnalysisPage(items=[record.analysis() for record in records], next_cursor=next_cursor)


@router.get(
    "/v1/analyses/{analysis_id}",
    summary="Get an analysis",
    tags=["analyses"],
    response_model=Analysis,
    responses={304: {"description": "Not modified"}, **documented(401, 403, 404, 422, 429, 503)},
)
def get_analysis(
    deployment: CurrentDeployment, key: Reader, analysis_id: AnalysisId, if_none_match: IfNoneMatch = None
) -> Response:
    """Get an analysis with the progress of its stages. `Retry-After`: seconds to wait before the next poll."""
    record = deployment.jobs.get(analysis_id, key.tenant)
    headers = {} if record.status.final else {"Retry-After": str(POLL_SECONDS)}
    found = record.analysis()
    if record.status is Status.QUEUED:
        found = found.model_copy(update={"queued_before": deployment.listing.queued_before(record)})
    return conditional(found.model_dump_json().encode(), "application/json", if_none_match, headers)


@router.delete(
    "/v1/analyses/{analysis_id}",
    summary="Delete an analysis",
    tags=["analyses"],
    status_code=204,
    responses=documented(401, 403, 404, 409, 422, 429, 503),
)
def delete_analysis(deployment: CurrentDeployment, key: Admin, analysis_id: AnalysisId) -> None:
    """Delete an analysis with its report, artifacts and checkpoint. Returns 409 while it is queued or running."""
    delete(deployment, key.tenant, analysis_id)


@router.post(
    "/v1/analyses/{analysis_id}/cancel",
    summary="Cancel an analysis",
    tags=["analyses"],
    status_code=202,
    responses=documented(401, 403, 404, 409, 422, 429, 503),
)
def cancel_analysis(deployment: CurrentDeployment, key: Submitter, analysis_id: AnalysisId) -> Analysis:
    """Cancel an analysis. A queued one ends immediately; a running one stops at its next batch."""
    return deployment.jobs.cancel(analysis_id, key.tenant).analysis()


@router.post(
    "/v1/analyses/{analysis_id}/rerun",
    summary="Run an analysis again",
    tags=["analyses"],
    status_code=202,
    response_model=Analysis,
    responses={
        200: {"model": Analysis, "description": "This version of the engine has made it"},
        **documented(401, 403, 404, 409, 422, 429, 503),
    },
)
def rerun_analysis(deployment: CurrentDeployment, key: Submitter, analysis_id: AnalysisId) -> Response:
    """Ask this version of the engine what an analysis asked an earlier one, of the same files (`older_engine`).

    The answer is a new analysis; the earlier one and its report stay. A failed or cancelled analysis of this version
    runs again under its own id. Returns 409 while it is queued or running.
    """
    before = deployment.jobs.get(analysis_id, key.tenant)
    submitted = rerun(deployment, submission_of(before.request, key), before)
    return accepted(submitted.record, 202 if submitted.new else 200)


@router.get(
    "/v1/analyses/{analysis_id}/report",
    summary="Get the report",
    tags=["analyses"],
    response_class=Response,
    responses={
        200: {
            "description": "The report; `Cache-Status` shows whether it was cached in Redis",
            "model": Report,
            "content": {"text/html": {}, "text/markdown": {}},
        },
        304: {"description": "Not modified"},
        **documented(401, 403, 404, 406, 409, 422, 429, 503),
    },
)
def get_report(
    deployment: CurrentDeployment,
    key: Reader,
    analysis_id: AnalysisId,
    accept: Annotated[str, Header()] = "application/json",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Get the report as JSON, HTML or Markdown, depending on the `Accept` header.

    While the analysis is running, returns the preliminary report, available after the `compare` stage. It has
    `status: preliminary` and the header `Layerdrift-Report: preliminary`, and is never cached. Returns 409 before that.
    """
    format = negotiated(accept)
    record = deployment.jobs.get(analysis_id, key.tenant)
    if record.report == "preliminary" and (found := deployment.reports.preliminary(record.owned, format)) is not None:
        return Response(found, headers=_PRELIMINARY | _format_headers(format))
    _require_success(record)
    report = deployment.reports.get(record.owned, format)
    return report_response(report, format, if_none_match)


@router.get(
    "/v1/analyses/{analysis_id}/artifacts",
    summary="List artifacts",
    tags=["analyses"],
    responses=documented(401, 403, 404, 409, 422, 429, 503),
)
def list_artifacts(deployment: CurrentDeployment, key: Reader, analysis_id: AnalysisId) -> ArtifactList:
    """List the files of a finished analysis, each with a temporary link that works without an API key."""
    record = _succeeded(deployment, key, analysis_id)
    return ArtifactList(items=deployment.artifacts.listed(record.owned, deployment.settings.link_seconds))


@router.post(
    "/v1/analyses/{analysis_id}/gate",
    summary="Evaluate a policy",
    tags=["analyses"],
    response_model=Verdict,
    responses=documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
)
async def gate_analysis(
    deployment: CurrentDeployment, key: Reader, analysis_id: AnalysisId, policy: Policy
) -> Response:
    """Evaluate a policy against the report. Returns 422 if a rule cannot be evaluated; that is not a pass."""
    report = await run_in_threadpool(_report, deployment, key, analysis_id)
    baseline = None
    if policy.baseline is not None:
        earlier = await run_in_threadpool(deployment.listing.resolve, key.tenant, policy.baseline)
        baseline = await run_in_threadpool(_report, deployment, key, earlier)
    return Response(await evaluate.verdict(policy, report, baseline), media_type="application/json")


@router.get(
    "/v1/analyses/{analysis_id}/compare/{other_id}",
    summary="Compare two reports",
    tags=["analyses"],
    response_model=Comparison,
    responses=documented(401, 403, 404, 409, 422, 429, 503),
)
async def compare_analyses(
    deployment: CurrentDeployment,
    key: Reader,
    analysis_id: AnalysisId,
    other_id: OtherAnalysisId,
) -> Response:
    """Compare two reports layer by layer: `other_id` minus `analysis_id`."""
    one, other = [await run_in_threadpool(_report, deployment, key, id_) for id_ in (analysis_id, other_id)]
    return Response(await evaluate.comparison(one, other), media_type="application/json")


def report_response(report: CachedReport, format: ReportFormat, if_none_match: str | None) -> Response:
    """A finished report, or that the client has it already."""
    cache_status = "layerdrift-redis; hit" if report.hit else "layerdrift-redis; fwd=uri-miss; stored"
    headers = {"Cache-Status": cache_status, "Cache-Control": "private, no-cache"} | _format_headers(format)
    return conditional(report.body, MEDIA_TYPES[format], if_none_match, headers)


_PRELIMINARY = {"Layerdrift-Report": "preliminary", "Cache-Control": "no-store"}


def _format_headers(format: ReportFormat) -> dict[str, str]:
    headers = {
        "Content-Type": MEDIA_TYPES[format],
        "Vary": "Accept, Authorization",
        "X-Content-Type-Options": "nosniff",
    }
    return headers | ({"Content-Security-Policy": REPORT} if format == "html" else {})


def _report(deployment: Deployment, key: ApiKey, analysis_id: str) -> bytes:
    return deployment.reports.get(_succeeded(deployment, key, analysis_id).owned, "json").body


def _succeeded(deployment: Deployment, key: ApiKey, analysis_id: str) -> JobRecord:
    record = deployment.jobs.get(analysis_id, key.tenant)
    _require_success(record)
    return record


def _require_success(record: JobRecord) -> None:
    if record.status is not Status.SUCCEEDED:
        only = ", and its report is preliminary" if record.report == "preliminary" else ": it has no report"
        raise ConflictError(f"the analysis is {record.status}{only}")


def negotiated(accept: str) -> ReportFormat:
    """The format that an Accept header prefers; 406 where it admits none. JSON wins ties."""
    offers: dict[str, ReportFormat] = {"application/json": "json", "text/html": "html", "text/markdown": "md"}
    best: tuple[float, ReportFormat] | None = None
    for media_type, format in offers.items():
        quality = _quality(accept, media_type)
        if quality > 0 and (best is None or quality > best[0]):
            best = (quality, format)
    if best is None:
        raise HTTPException(406, f"the report comes as {', '.join(offers)}; Accept admits none of them")
    return best[1]


def _quality(accept: str, media_type: str) -> float:
    """The weight that an Accept header gives a media type, by its most specific range."""
    family = media_type.partition("/")[0] + "/*"
    found: dict[str, float] = {}
    for part in (accept.strip() or "*/*").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((item[2:] for item in parameters if item.startswith("q=")), "1")
        try:
            found[name] = float(weight)
        except ValueError:
            found[name] = 0.0
    return next((found[name] for name in (media_type, family, "*/*") if name in found), 0.0)
