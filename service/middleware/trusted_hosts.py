"""By which names the service may be called, and from which pages: what a browser sends for a page elsewhere is refused.

A page at a name that leads to this machine (DNS rebinding) has that name in Host; a form or script of another page
has that page in Origin. Neither needs a key to reach a service on loopback.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from backends.api_keys import is_loopback
from backends.settings import Settings
from layerdrift.contract.errors import Problem
from service.http.problems import ProblemResponse

_ONCE = (b"host", b"origin", b"authorization", b"cookie")
"""Headers that decide who asks: two of one kind could be read as either."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
_SAFE = ("GET", "HEAD", "OPTIONS")
_PROBES = ("/health", "/ready")
"""What an orchestrator asks by the address of a machine."""


class TrustedHostsMiddleware:
    """Answers 400, 403 or 421 to what a browser was made to send."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._named = frozenset(settings.allowed_hosts)
        self._hosts = _hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await ProblemResponse(problem)(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        given: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in _ONCE:
                if name in given:
                    return _said(400, "Bad Request", f"the request has two {name.decode().title()} headers")
                given[name] = value.decode("latin-1")
        host = given.get(b"host", "")
        if self._hosts is not None and _name(host) not in self._hosts and scope["path"] not in _PROBES:
            return _said(
                421,
                "Misdirected Request",
                f"this service is not called {host!r}; names that it is to answer to stand in LAYERDRIFT_ALLOWED_HOSTS",
            )
        origin = given.get(b"origin")
        if origin is None or scope["method"] in _SAFE or self._ours(origin, host):
            return None
        return _said(
            403,
            "Forbidden",
            f"a page at {origin!r} may change nothing here; if that is this service's own address, name its host in "
            "LAYERDRIFT_ALLOWED_HOSTS",
        )

    def _ours(self, origin: str, host: str) -> bool:
        """Whether an Origin is where this request went, or has a name that the settings give the service."""
        scheme, separator, there = origin.lower().partition("://")
        usual = {"http": ":80", "https": ":443"}.get(scheme)
        if not separator or usual is None or not _HOST.fullmatch(there):
            return False
        return there.removesuffix(usual) == host.lower().removesuffix(usual) or _name(there) in self._named


def _hosts(settings: Settings) -> frozenset[str] | None:
    """Names without ports; None: any, since keys are asked for."""
    if settings.allowed_hosts:
        return frozenset(settings.allowed_hosts)
    if is_loopback(settings.host):
        return frozenset({"localhost", "127.0.0.1", "::1", settings.host})
    return None


def _name(host: str) -> str:
    """The name or address in a Host header; empty where it is none."""
    found = _HOST.fullmatch(host.lower())
    return found["name"].strip("[]") if found else ""


def _said(status: int, title: str, detail: str) -> Problem:
    return Problem(type="about:blank", title=title, status=status, detail=detail)
