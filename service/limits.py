"""What one request may take: how many bytes, how many values and levels of JSON, how long its bytes may be on the way.

All of it is looked at before anything is parsed. Uploads are streamed and have a limit of their own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

from anyio import CapacityLimiter, to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from layerdrift.contract.errors import InputError, LateError, LayerdriftError, TooLargeError
from service.problems import problem_response
from service.uploads import PREFIX

MAX_BYTES = 64 << 10
"""Of the body of a request, but for these."""

MAX_BYTES_OF: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"/v1/analyses"), 8 << 20),  # texts may stand in it
    (re.compile(r"/v1/inspect"), 2 << 20),
    (re.compile(r"/v1/analyses/[^/]+/gate"), 512 << 10),
)
MAX_STRUCTURE_BYTES = 64 << 10
"""Of a body without what stands between its quotes: brackets, commas, numbers."""

MAX_DEPTH = 32
BODY_SECONDS = 30.0
"""Until a body has come."""

UPLOAD_IDLE_SECONDS = 60.0
"""Until the next bytes of an upload come."""

_BESIDE_LOOP_BYTES = 64 << 10
_NOT_UTF8 = (b"\xff\xfe", b"\xfe\xff")
_BRACKET = re.compile(rb"[][{}]")


def check_structure(body: bytes) -> None:
    """InputError where a body has too many values or levels to be read; in time that is linear in its length."""
    if body.startswith(_NOT_UTF8) or b"\0" in body[:4]:  # UTF-16 and UTF-32, which json would read
        raise InputError("the body is not JSON in UTF-8")
    size = depth = end = 0
    for start, after in _strings(body):
        size += start - end + 2
        depth = _depth(body, end, start, depth)
        end = after
        if size > MAX_STRUCTURE_BYTES:
            break
    else:
        size += len(body) - end
    if size > MAX_STRUCTURE_BYTES:
        raise InputError(
            f"the body has more than {MAX_STRUCTURE_BYTES} characters of JSON beside its texts; put data into an upload"
        )
    _depth(body, end, len(body), depth)


def _strings(body: bytes) -> Iterator[tuple[int, int]]:
    """Where the strings of a JSON text begin and end, quotes included; one that is not closed ends with the text."""
    start = body.find(b'"')
    while start >= 0:
        place = start + 1
        while (quote := body.find(b'"', place)) >= 0:
            before = body[place:quote]
            if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
                break
            place = quote + 1
        end = quote + 1 if quote >= 0 else len(body)
        yield start, end
        start = body.find(b'"', end)


def _depth(body: bytes, start: int, end: int, depth: int) -> int:
    """The level at `end`, from that at `start`; InputError where it is too deep in between."""
    if end - start > MAX_STRUCTURE_BYTES:
        return depth  # refused for that
    for found in _BRACKET.finditer(body, start, end):
        depth += 1 if found[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise InputError(f"the body has more than {MAX_DEPTH} levels, one inside another; no request needs them")
    return depth


class BodyLimitMiddleware:
    """Answers 408, 413 or 422 to bodies beyond the limits; others are handed on whole."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._one_at_a_time = CapacityLimiter(1)  # each holds the interpreter while it looks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "PUT" and scope["path"].startswith(PREFIX):
            await self._app(scope, _not_idle(receive), send)
        else:
            await self._limited(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _body(scope, receive)
            if len(body) > _BESIDE_LOOP_BYTES:
                await to_thread.run_sync(check_structure, body, limiter=self._one_at_a_time)
            else:
                check_structure(body)
        except _Gone:
            return
        except LayerdriftError as error:
            await problem_response(error, {"Connection": "close"})(scope, receive, send)
            return
        handed_on = False

        async def whole() -> Message:
            nonlocal handed_on
            if handed_on:
                return await receive()  # that the client has gone
            handed_on = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)


class _Gone(Exception):
    """The client has hung up."""


async def _body(scope: Scope, receive: Receive) -> bytes:
    """All bytes of a body; TooLargeError as soon as there are too many, LateError where they do not come."""
    path = scope["path"]
    limit = next((size for pattern, size in MAX_BYTES_OF if pattern.fullmatch(path)), MAX_BYTES)
    error = TooLargeError(f"the body is larger than {limit} bytes; put texts into an upload")
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise error
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise _Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise error
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError as late:
        raise LateError(f"the body did not come within {BODY_SECONDS:g} s; send it again") from late


def _not_idle(receive: Receive) -> Receive:
    """The bytes of an upload; one whose bytes stop coming counts as hung up."""

    async def waited() -> Message:
        try:
            return await asyncio.wait_for(receive(), UPLOAD_IDLE_SECONDS)
        except TimeoutError:
            return {"type": "http.disconnect"}

    return waited
