"""Builds the LitServe server and runs it: `python -m service.main`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import fastapi_offline
import litserve as ls
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from layerdrift import __version__
from layerdrift.backends.deployment import Deployment
from layerdrift.backends.settings import Settings
from layerdrift.contract.analysis import Analysis
from layerdrift.contract.errors import Problem
from service import problems, routes, submit
from service.deadline import DeadlineMiddleware

MAX_BODY_BYTES = 8 << 20
SUBMIT_DEADLINE_SECONDS = 60.0
SUBMIT_WORKERS = 2
_LITSERVE_HEALTH = "/litserve/health"
_LITSERVE_INFO = "/litserve/info"


def build_server(settings: Settings) -> ls.LitServer:
    """The server, not running yet; connections are made by each of its processes for itself."""
    server = ls.LitServer(
        submit.SubmitAPI(settings),
        accelerator="cpu",
        devices=1,
        workers_per_device=SUBMIT_WORKERS,
        timeout=SUBMIT_DEADLINE_SECONDS,
        restart_workers=True,
        max_payload_size=MAX_BODY_BYTES,
        healthcheck_path=_LITSERVE_HEALTH,
        info_path=_LITSERVE_INFO,
    )
    app = server.app
    app.title, app.version = "layerdrift", __version__
    app.description = "Which layers of a fine-tuned transformer changed, how much, and whether it matters."
    _connect_in_lifespan(app, settings)
    _replace_routes(app)
    app.include_router(routes.router)
    app.mount(routes.STATIC, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))
    problems.install(app)
    app.user_middleware.append(Middleware(DeadlineMiddleware, paths=(submit.PATH,), seconds=SUBMIT_DEADLINE_SECONDS))
    _describe(app)
    return server


def _connect_in_lifespan(app: FastAPI, settings: Settings) -> None:
    """Connects once for each process, then enters LitServe's own lifespan."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[Any]:
        running.state.deployment = Deployment.connect(settings)
        async with inner(running) as state:
            yield state

    app.router.lifespan_context = lifespan


def _replace_routes(app: FastAPI) -> None:
    """Takes out LitServe's pages that ours stand for, and gives its POST route the statuses it really answers."""
    ours = {"/", "/docs", "/redoc", "/docs/oauth2-redirect", _LITSERVE_HEALTH, _LITSERVE_INFO}
    posted = next(route for route in app.routes if isinstance(route, APIRoute) and route.path == submit.PATH)
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not (isinstance(route, Route | APIRoute) and (route.path in ours or route is posted))
    ]
    app.add_api_route(
        submit.PATH,
        posted.endpoint,
        methods=["POST"],
        status_code=202,
        response_model=None,
        tags=["analyses"],
        name="submit_analysis",
        summary="Submit an analysis",
        description="A pair (`base`, `tuned`), or `base` and `finetune`. The same request again answers 200 with the "
        "analysis it made before.",
        responses={
            202: {"model": Analysis, "description": "Accepted; `Location` is where to poll"},
            200: {"model": Analysis, "description": "The same request was made before and has not failed"},
            **problems.documented(409, 413, 422, 503, 504),
        },
    )


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


def main() -> None:
    """Runs the API until SIGTERM or Ctrl-C."""
    settings = Settings()
    _stop_on_sigterm()
    server = build_server(settings)
    server.run(
        host=settings.host,
        port=settings.port,
        num_api_servers=1,
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
