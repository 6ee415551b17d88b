"""What one request may take: how many bytes, how many values and levels of JSON, how long its bytes may be on the way.

All of it is looked at as it comes, before anything is parsed. Uploads are streamed and have a limit of their own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from layerdrift.contract.errors import InputError, LateError, LayerdriftError, TooLargeError
from service.http.concurrency import ConcurrencyLimit
from service.http.paths import UPLOADS
from service.http.problems import problem_response
from service.middleware.json_structure import JsonStructure

MAX_BYTES = 64 << 10
"""Of the body of a request, but for these."""

MAX_BYTES_OF: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"/v1/(analyses|studies|estimates|datasets/preview)"), 8 << 20),  # texts may stand in it
    (re.compile(r"/v1/inspect"), 2 << 20),
    (re.compile(r"/v1/(analyses|studies)/[^/]+/gate"), 512 << 10),
)
BODY_SECONDS = 30.0
"""Until a body has come."""

UPLOAD_IDLE_SECONDS = 60.0
"""Until the next bytes of an upload come."""

SHORT_BYTES = 4 << 10
TURN_SECONDS = 0.005
"""Between two bodies that are not short: parsing one takes the event loop some milliseconds. Others have turns."""

PIECE_BYTES = 16 << 10
"""Looked at in one turn of the event loop: half a millisecond at most."""

LARGE_BYTES = 64 << 10
LARGE_BODIES = ConcurrencyLimit("bodies larger than 64 KiB", of_client=16, in_all=64)
"""By address of the client: each is held in memory until it has come."""


class BodyLimitMiddleware:
    """Answers 408, 413 or 422 to bodies beyond the limits; others are handed on whole."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "PUT" and scope["path"].startswith(UPLOADS):
            await self._app(scope, _not_idle(receive), send)
        else:
            await self._limited(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _Body(scope, self._turn).received(receive)
            if len(body) > SHORT_BYTES:
                async with self._turn:
                    await asyncio.sleep(TURN_SECONDS)
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


class _Body:
    """One body that is on its way."""

    def __init__(self, scope: Scope, turn: asyncio.Lock) -> None:
        self._scope = scope
        self._turn = turn
        self._limit = next((size for path, size in MAX_BYTES_OF if path.fullmatch(scope["path"])), MAX_BYTES)
        self._structure = JsonStructure()
        self._refused: InputError | None = None
        self._parts: list[bytes] = []
        self._size = 0

    async def received(self, receive: Receive) -> bytes:
        """All bytes.

        Raises:
            InputError: JsonStructure refuses them; what follows is read, so that the client hears of it, but not kept.
            LateError: they do not come.
            RateError: too many large bodies are on their way.
            TooLargeError: there are too many bytes, as soon as that is known.
        """
        declared = dict(self._scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit():
            self._check_size(int(declared[:20]))
        with ExitStack() as held:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    async for part in _parts(receive):
                        if self._size <= LARGE_BYTES < self._size + len(part):
                            held.enter_context(LARGE_BODIES.held(_address(self._scope)))
                        await self._take(part)
            except TimeoutError as late:
                raise LateError(f"the body did not arrive within {BODY_SECONDS:g} s; send it again") from late
            if self._refused is not None:
                raise self._refused
            return b"".join(self._parts)

    async def _take(self, part: bytes) -> None:
        self._size += len(part)
        self._check_size(self._size)
        if self._refused is not None:
            return
        try:
            await self._look_at(part)
            self._parts.append(part)
        except InputError as error:
            self._refused = error
            self._parts.clear()

    async def _look_at(self, part: bytes) -> None:
        if len(part) <= SHORT_BYTES:
            self._structure.feed(part)
            return
        for start in range(0, len(part), PIECE_BYTES):
            async with self._turn:
                self._structure.feed(part[start : start + PIECE_BYTES])
                await asyncio.sleep(0)

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise TooLargeError(f"the body is larger than {self._limit} bytes; send the texts as an upload")


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _not_idle(receive: Receive) -> Receive:
    """The bytes of an upload; one whose bytes stop coming counts as hung up."""

    async def waited() -> Message:
        try:
            return await asyncio.wait_for(receive(), UPLOAD_IDLE_SECONDS)
        except TimeoutError:
            return {"type": "http.disconnect"}

    return waited
