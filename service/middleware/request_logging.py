"""Every HTTP request has an id, a log line and its place in the metrics."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backends.observability.logs import bound
from backends.observability.metrics import REQUEST_SECONDS, REQUESTS
from service.http.audit import audit

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_UNLOGGED = ("/health", "/ready", "/metrics")

logger = logging.getLogger(__name__)


class RequestLoggingMiddleware:
    """The outermost layer: what it does not see was not answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        status, location, started = 500, None, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status, location
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                location = headers.get("location")
            await send(message)

        with bound(request_id=request_id):
            try:
                await self._app(scope, receive, watched)
            finally:
                seconds = time.perf_counter() - started
                route = _route(scope)
                REQUESTS.labels(scope["method"], route, str(status)).inc()
                REQUEST_SECONDS.labels(route).observe(seconds)
                if scope["path"] not in _UNLOGGED and not scope.get("from_cache"):
                    logger.info("%s %s -> %d in %.1f ms", scope["method"], scope["path"], status, 1000 * seconds)
                    audit(scope, route, status, location)


def _route(scope: Scope) -> str:
    """The route's template: paths themselves would make a series for every id."""
    route: BaseRoute | None = scope.get("route")
    return str(getattr(route, "path", "none"))
