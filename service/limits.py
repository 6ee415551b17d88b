"""How large a request may be: uploads are streamed and have a limit of their own, all others are read into memory."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from layerdrift.contract.errors import TooLargeError
from service.problems import problem_response
from service.uploads import PREFIX


class BodyLimitMiddleware:
    """Answers 413 to a body of more than `max_bytes`, but for the bytes of uploads."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "PUT" and scope["path"].startswith(PREFIX)):
            await self._app(scope, receive, send)
            return
        error = TooLargeError(f"the body is larger than {self._max_bytes} bytes; put texts into an upload")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await problem_response(error)(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise HTTPException(413, error.detail)  # FastAPI would call any other error a body it cannot parse
            return message

        await self._app(scope, limited, send)
