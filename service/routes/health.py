"""Liveness, readiness, metrics, and the page of the API's documentation."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from prometheus_client import generate_latest
from pydantic import BaseModel, Field

from backends.deployment import Deployment
from backends.observability import metrics
from backends.queue import QUEUES, QueueName
from layerdrift import __version__
from layerdrift.contract.errors import LayerdriftError
from service.http.access import CurrentDeployment

DOCS_FILES = "/static/docs"

router = APIRouter()


class Health(BaseModel):
    """Liveness of the process."""

    status: str = "ok"
    version: str = __version__
    instance: str = Field(default="", description="name of this server, from LAYERDRIFT_INSTANCE; empty if not set")


class Readiness(BaseModel):
    """State of each dependency of the service: `ok`, or what is wrong."""

    ready: bool
    redis: str
    s3: str
    s3_conditional_writes: bool | None = Field(
        description="whether S3 supports conditional writes (no overwriting on request); null while S3 is unavailable"
    )
    workers: int


@router.get("/health", summary="Check health", tags=["service"])
async def health(request: Request) -> Health:
    """Check that the process is alive. Never waits for a worker thread."""
    deployment: Deployment = request.app.state.deployment
    return Health(instance=deployment.settings.instance)


@router.get("/ready", summary="Check readiness", tags=["service"], responses={503: {"model": Readiness}})
def ready(deployment: CurrentDeployment, response: Response) -> Readiness:
    """Check that Redis, S3 and at least one worker are available. Otherwise returns 503 with the state of each.

    A worker is not asked for where `LAYERDRIFT_SCALED_QUEUES` says that jobs start one.
    """
    states = {}
    for name, check in (("redis", deployment.jobs.check), ("s3", deployment.blobs.check)):
        try:
            check()
            states[name] = "ok"
        except LayerdriftError as error:
            states[name] = error.detail
    if states["s3"] == "ok" and deployment.blobs.conditional_writes is None:
        deployment.probe_store()
    workers = deployment.workers.listening("cpu") if states["redis"] == "ok" else 0  # those with a GPU listen there too
    served = workers > 0 or bool(deployment.settings.scaled_queues)
    all_there = states["redis"] == states["s3"] == "ok" and served
    if not all_there:
        response.status_code = 503
    return Readiness(
        ready=all_there,
        redis=states["redis"],
        s3=states["s3"],
        s3_conditional_writes=deployment.blobs.conditional_writes,
        workers=workers,
    )


class QueueState(BaseModel):
    """A queue, as an autoscaler asks for it."""

    waiting: int = Field(description="announced jobs that no worker has picked up")
    workers: int = Field(description="workers that listen")


@router.get("/metrics/queues", include_in_schema=False)
def queues(deployment: CurrentDeployment) -> dict[QueueName, QueueState]:
    """What waits in each queue, as JSON: KEDA starts workers by it. Without a key, as `GET /metrics`."""
    return {
        name: QueueState(waiting=deployment.queue.waiting_in(name), workers=deployment.workers.listening(name))
        for name in QUEUES
    }


@router.get("/metrics", include_in_schema=False)
def metrics_page(deployment: CurrentDeployment) -> Response:
    """Prometheus metrics: counters of the API processes and the state of the whole deployment."""
    standing = metrics.standing(deployment.listing, deployment.workers, deployment.queue, deployment.usage)
    return Response(
        generate_latest(metrics.counted()) + generate_latest(standing), media_type="text/plain; version=0.0.4"
    )


@router.get("/docs", include_in_schema=False)
def docs() -> HTMLResponse:
    """The API documentation page. Loads nothing from the internet."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="layerdrift API",
        swagger_js_url=f"{DOCS_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{DOCS_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{DOCS_FILES}/favicon.png",
    )
