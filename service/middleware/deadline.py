"""A deadline on what LitServe's inference workers answer: a dead worker would leave its request hanging for good."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from layerdrift.contract.errors import DeadlineError
from service.http.problems import ProblemResponse


class DeadlineMiddleware:
    """Answers 504 where one of `paths` has not begun to answer a POST after `seconds`."""

    def __init__(self, app: ASGIApp, paths: tuple[str, ...], seconds: float) -> None:
        self._app = app
        self._paths = paths
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._paths
        if not guarded:
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self._app(scope, receive, watched_send)
        except TimeoutError:
            if begun or not limit.expired():
                raise
            error = DeadlineError(f"no answer within {self._seconds:g} s; the request may be sent again")
            await ProblemResponse(error.problem())(scope, receive, send)
