"""Finished reports answered from this process's memory: a report does not change, so it is not asked for each time.

What is in memory counts for HOT_SECONDS, in which a deletion or a revoked key may not be seen yet; then it is asked for
again. Only GETs of a report that this process has just answered by the usual way are answered here.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.conditional import matches

CACHE_SECONDS = 2.0
MAX_BYTES = 128 << 20

_REPORT = re.compile(r"/v1/(?:analyses/an|studies/st)_[a-z2-7]{26}/report")
_ASKED = (b"authorization", b"cookie", b"accept")


@dataclass(frozen=True)
class CachedAnswer:
    """A whole answer, and until when it counts (monotonic seconds)."""

    until: float
    headers: list[tuple[bytes, bytes]]
    etag: str
    body: bytes


class CachedResponses:
    """Answers by what was asked: path, key, cookie and Accept header; the least recently used are forgotten first."""

    def __init__(self, max_bytes: int = MAX_BYTES, seconds: float = CACHE_SECONDS) -> None:
        self._answers: OrderedDict[tuple[bytes | str, ...], CachedAnswer] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._seconds = seconds

    def get(self, asked: tuple[bytes | str, ...]) -> CachedAnswer | None:
        """The answer, where there is one that still counts."""
        found = self._answers.get(asked)
        if found is None:
            return None
        if found.until < time.monotonic():
            self._forget(asked)
            return None
        self._answers.move_to_end(asked)
        return found

    def put(self, asked: tuple[bytes | str, ...], headers: list[tuple[bytes, bytes]], etag: str, body: bytes) -> None:
        """Keeps an answer that has just been given."""
        self._forget(asked)
        if len(body) > self._max_bytes:
            return
        self._answers[asked] = CachedAnswer(time.monotonic() + self._seconds, headers, etag, body)
        self._bytes += len(body)
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._answers)))

    def _forget(self, asked: tuple[bytes | str, ...]) -> None:
        found = self._answers.pop(asked, None)
        if found is not None:
            self._bytes -= len(found.body)


class ResponseCacheMiddleware:
    """Answers what `reports` has, and learns from what the app answers; counts against no rate limit while it does."""

    def __init__(self, app: ASGIApp, reports: CachedResponses) -> None:
        self._app = app
        self._reports = reports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or not _REPORT.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        asked = (scope["path"], *(headers.get(name, b"") for name in _ASKED))
        found = self._reports.get(asked)
        if found is None:
            await self._learn(asked, scope, receive, send)
            return
        scope["route"], scope["from_cache"] = _CACHED_ROUTE, True
        if matches(headers.get(b"if-none-match", b"").decode("latin-1") or None, found.etag):
            kept = [pair for pair in found.headers if pair[0] not in (b"content-length", b"content-type")]
            await send({"type": "http.response.start", "status": 304, "headers": kept})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": 200, "headers": list(found.headers)})
        await send({"type": "http.response.body", "body": found.body})

    async def _learn(self, asked: tuple[bytes | str, ...], scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {}
        parts: list[bytes] = []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body" and start.get("status") == 200:
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    self._keep(asked, list(start["headers"]), b"".join(parts))
            await send(message)

        await self._app(scope, receive, watched)

    def _keep(self, asked: tuple[bytes | str, ...], headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        etag = next((value.decode("latin-1") for name, value in headers if name == b"etag"), None)
        if etag is not None:
            told = [pair for pair in headers if pair[0] not in (b"x-request-id", b"cache-status")]
            self._reports.put(asked, [*told, (b"cache-status", b"layerdrift-process; hit")], etag, body)


class _CachedRoute:
    """What metrics call these answers."""

    path = "/v1/analyses/{analysis_id}/report"


_CACHED_ROUTE = _CachedRoute()
