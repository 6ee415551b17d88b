"""Requests to an ASGI app as a server would hand them on, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def scope(method: str = "GET", path: str = "/", headers: Mapping[str, str] | None = None) -> Scope:
    """What a server says of a request; names of headers in lower case."""
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"type": "http", "method": method, "path": path, "headers": raw, "client": ("10.0.0.1", 50_000)}


def parts(*bodies: bytes) -> list[Message]:
    """A body that comes in parts."""
    last = len(bodies) - 1
    return [{"type": "http.request", "body": body, "more_body": at < last} for at, body in enumerate(bodies)]


DISCONNECT: Message = {"type": "http.disconnect"}


def receiving(messages: list[Message]) -> Receive:
    """Gives these messages in turn; after the last one nothing comes any more."""
    left: Iterator[Message] = iter(messages)

    async def receive() -> Message:
        for message in left:
            return message
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    return receive


class Sent:
    """What an app has answered."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages if message["type"] == "http.response.body")


def answer(app: ASGIApp, asked: Scope, messages: list[Message] | None = None) -> Sent:
    """Runs an app until it has answered one request; without messages the body is empty."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        await app(asked, receiving(parts(b"") if messages is None else messages), send)

    asyncio.run(run())
    return Sent(sent)


class Echo:
    """An app that answers what it is sent, and remembers how it was asked."""

    def __init__(self, route: Any = None) -> None:
        self.asked: list[Scope] = []
        self.received: list[Message] = []
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope)
        if scope["type"] != "http":
            return
        if self._route is not None:
            scope["route"] = self._route
        body = b""
        while True:
            message = await receive()
            self.received.append(message)
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
