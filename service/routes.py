"""The routes beside POST /v1/analyses: reading, cancelling, reports, health."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from layerdrift import __version__
from layerdrift.backends.cache import MEDIA_TYPES, ReportFormat
from layerdrift.backends.deployment import Deployment
from layerdrift.contract.analysis import Analysis, AnalysisPage, Status
from layerdrift.contract.errors import ConflictError, LayerdriftError
from layerdrift.contract.report import Report
from service.problems import documented

STATIC = "/static/docs"
POLL_SECONDS = 2

router = APIRouter()


def _deployment(request: Request) -> Deployment:
    deployment: Deployment = request.app.state.deployment
    return deployment


Backends = Annotated[Deployment, Depends(_deployment)]
AnalysisId = Annotated[str, Path(pattern=r"^an_[a-z2-7]{26}$", description="id of an analysis")]


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"
    version: str = __version__


class Readiness(BaseModel):
    """What the service needs, and whether it is there: `ok`, or what is wrong."""

    ready: bool
    redis: str
    s3: str
    workers: int


@router.get("/v1/analyses", tags=["analyses"], responses=documented(422, 503))
def list_analyses(
    backends: Backends,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200, description="next_cursor of the page before")] = None,
    status: Annotated[Status | None, Query(description="only analyses that stand so")] = None,
) -> AnalysisPage:
    """The analyses, newest first."""
    records, next_cursor = backends.jobs.page(limit, cursor, status)
    return AnalysisPage(items=[record.analysis() for record in records], next_cursor=next_cursor)


@router.get("/v1/analyses/{analysis_id}", tags=["analyses"], responses=documented(404, 422, 503))
def get_analysis(backends: Backends, analysis_id: AnalysisId, response: Response) -> Analysis:
    """One analysis, with the progress of each of its stages; `Retry-After` says when to look again."""
    record = backends.jobs.get(analysis_id)
    if not record.status.final:
        response.headers["Retry-After"] = str(POLL_SECONDS)
    return record.analysis()


@router.post(
    "/v1/analyses/{analysis_id}/cancel",
    tags=["analyses"],
    status_code=202,
    responses=documented(404, 409, 422, 503),
)
def cancel_analysis(backends: Backends, analysis_id: AnalysisId) -> Analysis:
    """Asks an analysis to stop: a queued one is over at once, a running one stops at its next batch."""
    return backends.jobs.cancel(analysis_id).analysis()


@router.get(
    "/v1/analyses/{analysis_id}/report",
    tags=["analyses"],
    response_class=Response,
    responses={
        200: {
            "description": "The report; `Cache-Status` says whether Redis had it",
            "model": Report,
            "content": {"text/html": {}, "text/markdown": {}},
        },
        **documented(404, 406, 409, 422, 503),
    },
)
def get_report(
    backends: Backends, analysis_id: AnalysisId, accept: Annotated[str, Header()] = "application/json"
) -> Response:
    """The report as JSON, HTML or Markdown, by the `Accept` header."""
    format = negotiated(accept)
    record = backends.jobs.get(analysis_id)
    if record.status is not Status.SUCCEEDED:
        raise ConflictError(f"there is no report: the analysis is {record.status}")
    report = backends.reports.get(analysis_id, format)
    cache_status = "layerdrift-redis; hit" if report.hit else "layerdrift-redis; fwd=uri-miss; stored"
    return Response(
        report.body,
        headers={"Content-Type": MEDIA_TYPES[format], "Cache-Status": cache_status, "Vary": "Accept"},
    )


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


@router.get("/health", tags=["service"])
def health() -> Health:
    """200 as long as the process answers."""
    return Health()


@router.get("/ready", tags=["service"], responses={503: {"model": Readiness}})
def ready(backends: Backends, response: Response) -> Readiness:
    """200 when Redis, S3 and at least one worker are there, else 503 that says which is not."""
    states = {}
    for name, check in (("redis", backends.jobs.check), ("s3", backends.blobs.check)):
        try:
            check()
            states[name] = "ok"
        except LayerdriftError as error:
            states[name] = error.detail
    workers = backends.jobs.workers() if states["redis"] == "ok" else 0
    all_there = states["redis"] == states["s3"] == "ok" and workers > 0
    if not all_there:
        response.status_code = 503
    return Readiness(ready=all_there, redis=states["redis"], s3=states["s3"], workers=workers)


@router.get("/docs", include_in_schema=False)
def docs() -> HTMLResponse:
    """The API page, without a line from the internet."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="layerdrift API",
        swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{STATIC}/favicon.png",
    )


@router.get("/", include_in_schema=False)
def index() -> RedirectResponse:
    """Until there is a web page, the API page."""
    return RedirectResponse("/docs")
