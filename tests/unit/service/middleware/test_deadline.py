from __future__ import annotations

import asyncio
import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.middleware.deadline import DeadlineMiddleware
from tests.builders.asgi import Echo, answer, parts, receiving, scope

SECONDS = 0.02


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def half(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.Event().wait()


def test_what_is_not_answered_in_time_is_a_504_that_says_to_try_again() -> None:
    sent = answer(DeadlineMiddleware(silent, ("/slow",), SECONDS), scope("POST", "/slow"))
    assert (sent.status, sent.headers["content-type"]) == (504, "application/problem+json")
    problem = json.loads(sent.body)
    assert problem["type"] == "urn:layerdrift:deadline"
    assert problem["detail"] == "no answer within 0.02 s; the request may be sent again"


def test_an_answer_in_time_is_handed_on() -> None:
    sent = answer(DeadlineMiddleware(Echo(), ("/fast",), 60), scope("POST", "/fast"), parts(b"a", b"b"))
    assert (sent.status, sent.body) == (200, b"ab")


@pytest.mark.parametrize(("method", "path"), [("GET", "/slow"), ("POST", "/slow/more"), ("POST", "/other")])
def test_other_methods_and_paths_have_no_deadline(method: str, path: str) -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        await Echo()(scope, receive, send)

    assert answer(DeadlineMiddleware(late, ("/slow",), 0), scope(method, path)).status == 200


def test_an_answer_that_has_begun_is_broken_off_and_not_answered_twice() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        await DeadlineMiddleware(half, ("/slow",), SECONDS)(scope("POST", "/slow"), receiving([]), send)

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_a_time_out_of_the_service_itself_is_no_missed_deadline() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("reading a socket")

    with pytest.raises(TimeoutError, match="reading a socket"):
        answer(DeadlineMiddleware(broken, ("/slow",), 60), scope("POST", "/slow"))
