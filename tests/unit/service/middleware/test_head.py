from __future__ import annotations

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.middleware.head import HeadMiddleware
from tests.builders.asgi import Echo, answer, parts, scope


def test_head_has_the_headers_of_get_and_no_body() -> None:
    app = Echo()
    sent = answer(HeadMiddleware(app), scope("HEAD", "/things"), parts(b"hello"))
    assert (sent.status, sent.headers["content-length"], sent.body) == (200, "5", b"")
    assert app.asked[0]["method"] == "GET"


def test_a_body_in_many_parts_is_kept_back_whole() -> None:
    async def streamed(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"one")(scope, receive, send)
        await send({"type": "http.response.body", "body": b"two", "more_body": False})

    sent = answer(HeadMiddleware(streamed), scope("HEAD"))
    assert sent.body == b""
    assert sent.messages[-1]["more_body"] is False


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/things"), ("POST", "/things"), ("HEAD", "/v1/analyses/latest/events")],
)
def test_other_requests_and_streams_of_events_go_through_as_they_are(method: str, path: str) -> None:
    app = Echo()
    sent = answer(HeadMiddleware(app), scope(method, path), parts(b"hello"))
    assert (app.asked[0]["method"], sent.body) == (method, b"hello")


def test_what_is_no_request_goes_through() -> None:
    app = Echo()
    answer(HeadMiddleware(app), {"type": "lifespan"})
    assert app.asked == [{"type": "lifespan"}]
