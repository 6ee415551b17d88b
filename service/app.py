"""Wires the application: LitServe's server with the routes and the middleware of this package."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi_offline
import litserve as ls
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from backends.deployment import Deployment
from backends.observability import tracing
from backends.settings import Settings
from layerdrift import __version__
from layerdrift.contract.errors import Problem
from service.http import problems
from service.http.query_parameters import ONLY_KNOWN_PARAMETERS
from service.middleware.body_limits import BodyLimitMiddleware
from service.middleware.deadline import DeadlineMiddleware
from service.middleware.head import HeadMiddleware
from service.middleware.request_logging import RequestLoggingMiddleware
from service.middleware.response_cache import CachedResponses, ResponseCacheMiddleware
from service.middleware.trusted_hosts import TrustedHostsMiddleware
from service.routes import (
    analyses,
    api_keys,
    events,
    health,
    inspection,
    planning,
    sign_in,
    studies,
    submission,
    uploads,
    usage,
    web,
)
from service.use_cases import evaluate

SUBMIT_DEADLINE_SECONDS = 60.0
SUBMIT_WORKERS = 2
SWITCH_SECONDS = 0.001
"""So long a thread may hold the interpreter while the event loop waits: a fifth of Python's own."""

_LITSERVE_HEALTH = "/litserve/health"
_LITSERVE_INFO = "/litserve/info"

_MODULES = (analyses, events, studies, planning, uploads, api_keys, usage, health, web)
ROUTERS = tuple(module.router for module in _MODULES)


def build_server(settings: Settings) -> ls.LitServer:
    """The server, not running yet; connections are made by each of its processes for itself."""
    server = ls.LitServer(
        [submission.SubmitAPI(settings), inspection.InspectAPI(settings)],
        accelerator="cpu",
        devices=1,
        workers_per_device={submission.PATH: SUBMIT_WORKERS, inspection.PATH: 1},
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
    app.include_router(sign_in.router)  # a provider adds parameters of its own
    app.state.served = [
        *app.router.routes,
        *(route for router in (*ROUTERS, sign_in.router) for route in router.routes),
    ]
    app.mount(health.DOCS_FILES, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))
    app.mount(web.PREFIX, web.WebFiles(directory=web.FOLDER))
    problems.install(app)
    app.user_middleware.insert(0, Middleware(ResponseCacheMiddleware, reports=CachedResponses()))
    app.user_middleware.insert(0, Middleware(TrustedHostsMiddleware, settings=settings))
    app.user_middleware.insert(0, Middleware(HeadMiddleware))
    app.user_middleware.insert(0, Middleware(RequestLoggingMiddleware))
    app.user_middleware.append(Middleware(BodyLimitMiddleware))
    app.user_middleware.append(
        Middleware(DeadlineMiddleware, paths=(submission.PATH, inspection.PATH), seconds=SUBMIT_DEADLINE_SECONDS)
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
            starting = asyncio.create_task(evaluate.start())
            gc.freeze()  # what was imported is no garbage: looking through it takes a tenth of a second, each time
            yield state
            starting.cancel()

    app.router.lifespan_context = lifespan


def _replace_routes(app: FastAPI) -> None:
    """Takes out LitServe's pages that ours stand for, and puts our POST routes in front of its own."""
    ours = {"/", "/docs", "/redoc", "/docs/oauth2-redirect", _LITSERVE_HEALTH, _LITSERVE_INFO}
    posted, inspected = (
        next(route for route in app.routes if isinstance(route, APIRoute) and route.path == path)
        for path in (submission.PATH, inspection.PATH)
    )
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not (isinstance(route, Route | APIRoute) and (route.path in ours or route in (posted, inspected)))
    ]
    inspection.add_route(app, inspected.endpoint)
    submission.add_route(app, posted.endpoint)


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
