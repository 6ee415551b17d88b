"""Builds the LitServe server and runs it: `python -m service.main`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import fastapi_offline
import litserve as ls
from fastapi import FastAPI, Header, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from backends.api_keys import ANYBODY, is_loopback
from backends.deployment import Deployment
from backends.jobs.idempotency import Answered
from backends.observability import logs, tracing
from backends.settings import Settings
from layerdrift import __version__
from layerdrift.contract.analysis import Analysis
from layerdrift.contract.errors import LayerdriftError, Problem
from layerdrift.contract.inspection import Inspection, InspectionRequest
from layerdrift.contract.request import AnalysisRequest
from service import events, inspect, judging, key_routes, planning, problems, routes, submit, uploads, web
from service.connections import MAX_CONNECTIONS, BoundedProtocol
from service.deadline import DeadlineMiddleware
from service.head import HeadMiddleware
from service.hot import HotMiddleware, HotReports
from service.keys import ensure_admin
from service.limits import BodyLimitMiddleware
from service.observed import ObservedMiddleware
from service.query import ONLY_KNOWN_PARAMETERS
from service.security import Backends, Reader, Submitter
from service.trusted_hosts import TrustedHostsMiddleware

SUBMIT_DEADLINE_SECONDS = 60.0
SUBMIT_WORKERS = 2
SWITCH_SECONDS = 0.001
"""So long a thread may hold the interpreter while the event loop waits: a fifth of Python's own."""

_LITSERVE_HEALTH = "/litserve/health"
_LITSERVE_INFO = "/litserve/info"

ROUTERS = (routes.router, events.router, planning.router, uploads.router, key_routes.router, web.router)

logger = logging.getLogger(__name__)


def build_server(settings: Settings) -> ls.LitServer:
    """The server, not running yet; connections are made by each of its processes for itself."""
    server = ls.LitServer(
        [submit.SubmitAPI(settings), inspect.InspectAPI(settings)],
        accelerator="cpu",
        devices=1,
        workers_per_device={submit.PATH: SUBMIT_WORKERS, inspect.PATH: 1},
        timeout=SUBMIT_DEADLINE_SECONDS,
        restart_workers=True,
        healthcheck_path=_LITSERVE_HEALTH,
        info_path=_LITSERVE_INFO,
    )
    app = server.app
    app.title, app.version = "layerdrift", __version__
    app.description = "Which layers of a fine-tuned transformer changed, how much, and whether it matters."
    _connect_in_lifespan(app, settings)
    _replace_routes(app)
    for router in ROUTERS:
        app.include_router(router, dependencies=ONLY_KNOWN_PARAMETERS)
    app.state.served = [*app.router.routes, *(route for router in ROUTERS for route in router.routes)]
    app.mount(routes.STATIC, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))
    app.mount(web.PREFIX, web.WebFiles(directory=web.FOLDER))
    problems.install(app)
    app.user_middleware.insert(0, Middleware(HotMiddleware, reports=HotReports()))
    app.user_middleware.insert(0, Middleware(TrustedHostsMiddleware, settings=settings))
    app.user_middleware.insert(0, Middleware(HeadMiddleware))
    app.user_middleware.insert(0, Middleware(ObservedMiddleware))
    app.user_middleware.append(Middleware(BodyLimitMiddleware))
    app.user_middleware.append(
        Middleware(DeadlineMiddleware, paths=(submit.PATH, inspect.PATH), seconds=SUBMIT_DEADLINE_SECONDS)
    )
    _describe(app)
    return server


def _connect_in_lifespan(app: FastAPI, settings: Settings) -> None:
    """Connects once for each process, then enters LitServe's own lifespan."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[Any]:
        tracing.configure("layerdrift-api")
        sys.setswitchinterval(SWITCH_SECONDS)
        running.state.deployment = Deployment.connect(settings)
        running.state.deployment.probe_store_in_background()
        async with inner(running) as state:
            starting = asyncio.create_task(judging.start())
            gc.freeze()  # what was imported is no garbage: looking through it takes a tenth of a second, each time
            yield state
            starting.cancel()

    app.router.lifespan_context = lifespan


def _replace_routes(app: FastAPI) -> None:
    """Takes out LitServe's pages that ours stand for, and gives its POST route the statuses it really answers."""
    ours = {"/", "/docs", "/redoc", "/docs/oauth2-redirect", _LITSERVE_HEALTH, _LITSERVE_INFO}
    posted, inspected = (
        next(route for route in app.routes if isinstance(route, APIRoute) and route.path == path)
        for path in (submit.PATH, inspect.PATH)
    )
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not (isinstance(route, Route | APIRoute) and (route.path in ours or route in (posted, inspected)))
    ]
    app.add_api_route(
        inspect.PATH,
        _inspecting(inspected.endpoint),
        methods=["POST"],
        dependencies=ONLY_KNOWN_PARAMETERS,
        response_model=None,
        tags=["analyses"],
        name="inspect_texts",
        summary="Inspect texts",
        description="Run texts through both models of a finished analysis. Returns drift, norms and the most active "
        "latents of both autoencoders for each token at each layer. The first request for a pair loads its models.",
        responses={
            200: {"model": Inspection, "description": "The inspected texts, in the order of the request"},
            **problems.documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 501, 503, 504),
        },
    )
    app.add_api_route(
        submit.PATH,
        _submitting(posted.endpoint),
        methods=["POST"],
        dependencies=ONLY_KNOWN_PARAMETERS,
        status_code=202,
        response_model=None,
        tags=["analyses"],
        name="submit_analysis",
        summary="Submit an analysis",
        description="Submit `base` and `tuned` to compare a pair, or `base` and `finetune` to fine-tune first. "
        "Repeating a request returns 200 with the existing analysis.",
        responses={
            202: {"model": Analysis, "description": "Accepted; poll `Location`"},
            200: {"model": Analysis, "description": "An identical request exists and has not failed"},
            **problems.documented(400, 401, 403, 409, 413, 415, 422, 429, 503, 504),
        },
    )


def _inspecting(asked: Callable[[inspect.Question], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """The route in front of LitServe's: who asks, of which analysis."""

    async def inspect_texts(body: InspectionRequest, key: Reader, backends: Backends) -> Response:
        analysis_id = await run_in_threadpool(backends.jobs.resolve, key.tenant, body.analysis_id)
        request = body.model_copy(update={"analysis_id": analysis_id})
        return await asked(inspect.Question(tenant=key.tenant, request=request))

    return inspect_texts


def _submitting(posted: Callable[[submit.Submission], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """The route in front of LitServe's: who asks, and whether they asked before."""

    async def submit_analysis(
        body: AnalysisRequest,
        key: Submitter,
        backends: Backends,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1, max_length=255, description="retries with the same key and body are processed only once"
            ),
        ] = None,
    ) -> Response:
        submission = submit.Submission(
            tenant=key.tenant,
            submitted_by="" if key.id == ANYBODY.id else key.name or key.id,
            open_jobs=key.open_jobs,
            priority=key.priority,
            trace=tracing.current(),
            request=body,
        )
        if idempotency_key is None:
            return await posted(submission)
        once = backends.idempotency
        whole = body.model_dump_json()
        before = await run_in_threadpool(once.begin, key.tenant, idempotency_key, whole)
        if before is not None:
            record = await run_in_threadpool(backends.jobs.get, before.analysis_id, key.tenant)
            return submit.accepted(record, before.status)
        try:
            answer = await posted(submission)
        except BaseException:
            await run_in_threadpool(once.forget, key.tenant, idempotency_key)
            raise
        if answer.status_code in (200, 202):
            made = Answered(answer.status_code, answer.headers["Location"].rpartition("/")[2])
            await run_in_threadpool(once.finish, key.tenant, idempotency_key, whole, made)
        else:
            await run_in_threadpool(once.forget, key.tenant, idempotency_key)
        return answer

    return submit_analysis


def _describe(app: FastAPI) -> None:
    """Adds the problem document to the OpenAPI schema, where answers refer to it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema["components"]["schemas"].setdefault(
            "Problem", Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        )
        definitions = schema["components"]["schemas"]["Problem"].pop("$defs", {})
        schema["components"]["schemas"].update(definitions)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _stop_on_sigterm() -> None:
    """SIGTERM reaches LitServe's main process alone, which stops its children on KeyboardInterrupt only."""
    main_process = os.getpid()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if os.getpid() == main_process:
            raise KeyboardInterrupt
        sys.exit(0)  # a forked API process, which has stopped already

    signal.signal(signal.SIGTERM, interrupt)


def _check_access(settings: Settings) -> None:
    """Makes the first key where the settings name one; without any, the API may only be reached from this machine.

    Raises:
        ValueError: there is no key, and the address to bind to can be reached from elsewhere.
    """
    store = Deployment.connect(settings).keys
    if settings.admin_key is not None:
        ensure_admin(store, settings.admin_key.get_secret_value())
    if store.needed():
        return
    if not is_loopback(settings.host):
        raise ValueError(
            f"LAYERDRIFT_HOST is {settings.host}, and there is no API key: anybody could use it. Set "
            "LAYERDRIFT_ADMIN_KEY, or make a key with python -m service.keys create"
        )
    logger.warning("there is no API key: everybody on this machine may use the API, and nobody else can reach it")


def main() -> None:
    """Runs the API until SIGTERM or Ctrl-C."""
    settings = Settings()
    logs.configure(settings.log_format)
    _stop_on_sigterm()
    try:
        _check_access(settings)
    except (LayerdriftError, ValueError) as error:
        sys.exit(f"the API does not start: {error}")
    server = build_server(settings)
    server.run(
        host=settings.host,
        port=settings.port,
        num_api_servers=1,
        generate_client_file=False,
        access_log=False,
        http=BoundedProtocol,
        limit_concurrency=MAX_CONNECTIONS,
    )


if __name__ == "__main__":
    main()
