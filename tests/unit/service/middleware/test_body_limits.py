from __future__ import annotations

import asyncio
import json

import pytest
from starlette.types import Message

from service.http.concurrency import ConcurrencyLimit
from service.middleware import body_limits
from service.middleware.body_limits import MAX_BYTES, BodyLimitMiddleware
from tests.builders.asgi import DISCONNECT, Echo, Sent, answer, parts, scope

LIMITS = [
    ("/v1/keys", MAX_BYTES),
    ("/v1/analyses", 8 << 20),
    ("/v1/estimates", 8 << 20),
    ("/v1/datasets/preview", 8 << 20),
    ("/v1/inspect", 2 << 20),
    ("/v1/analyses/latest/gate", 512 << 10),
    ("/v1/analyses/latest/gate/more", MAX_BYTES),
    ("/v1/analyses/latest/cancel", MAX_BYTES),
]


def sent(path: str, *bodies: bytes, **headers: str) -> tuple[Sent, Echo]:
    app = Echo()
    asked = scope("POST", path, {name.replace("_", "-"): value for name, value in headers.items()})
    return answer(BodyLimitMiddleware(app), asked, parts(*bodies)), app


def text(size: int) -> bytes:
    """A JSON text of so many bytes, nearly all between quotes."""
    return b'"' + b"x" * (size - 2) + b'"'


@pytest.mark.parametrize(("path", "limit"), LIMITS)
def test_each_path_takes_as_many_bytes_as_it_needs(path: str, limit: int) -> None:
    whole, app = sent(path, text(limit))
    assert (whole.status, len(whole.body)) == (200, limit)
    beyond, app = sent(path, text(limit), b" ")
    assert (beyond.status, app.asked) == (413, [])
    assert f"larger than {limit} bytes" in json.loads(beyond.body)["detail"]
    assert beyond.headers["connection"] == "close"


@pytest.mark.parametrize("declared", [str(MAX_BYTES + 1), "9" * 5_000])
def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(declared: str) -> None:
    app = Echo()
    said = answer(BodyLimitMiddleware(app), scope("POST", "/v1/keys", {"content-length": declared}), [])
    assert (said.status, app.asked) == (413, [])


@pytest.mark.parametrize("declared", ["", "-1", "banana", "1e9", "\xb2"])
def test_a_length_that_is_none_is_left_to_the_bytes_that_come(declared: str) -> None:
    whole, _ = sent("/v1/keys", b"{}", content_length=declared)
    assert (whole.status, whole.body) == (200, b"{}")


def test_a_body_in_parts_is_handed_on_whole_and_once() -> None:
    whole, app = sent("/v1/keys", b'{"a', b"", b'": 1}')
    assert whole.body == b'{"a": 1}'
    assert app.received == [{"type": "http.request", "body": b'{"a": 1}', "more_body": False}]


@pytest.mark.parametrize("rest", [b"", b"]" * 33])
def test_a_body_of_too_many_levels_is_refused_and_read_to_its_end(rest: bytes) -> None:
    refused, app = sent("/v1/keys", b"[" * 33, rest)
    assert (refused.status, app.asked) == (422, [])
    assert "nested more than 32 levels" in json.loads(refused.body)["detail"]


def test_a_refused_body_still_has_a_size() -> None:
    refused, _ = sent("/v1/keys", b"[" * 33, b" " * MAX_BYTES)
    assert refused.status == 413


def test_levels_are_counted_over_all_pieces_of_a_long_body() -> None:
    deep = b"[" * 20 + text(3 * body_limits.PIECE_BYTES) + b"," + b"[" * 13
    refused, _ = sent("/v1/inspect", deep)
    assert refused.status == 422


def test_a_client_that_hangs_up_is_not_answered() -> None:
    app = Echo()
    first = {"type": "http.request", "body": b"{", "more_body": True}
    assert answer(BodyLimitMiddleware(app), scope("POST", "/v1/keys"), [first, DISCONNECT]).messages == []
    assert app.asked == []


def test_a_body_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "BODY_SECONDS", 0.01)
    first: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]
    late = answer(BodyLimitMiddleware(Echo()), scope("POST", "/v1/keys"), first)
    assert (late.status, late.headers["connection"]) == (408, "close")


def test_large_bodies_of_one_client_are_bounded_and_small_ones_are_not() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_limits, "LARGE_BODIES", ConcurrencyLimit("large bodies", of_client=0, in_all=9))
        large, app = sent("/v1/inspect", text(body_limits.LARGE_BYTES + 1))
        small, _ = sent("/v1/inspect", text(body_limits.LARGE_BYTES))
    assert (large.status, large.headers["retry-after"], app.asked) == (429, "5", [])
    assert small.status == 200
    again, _ = sent("/v1/inspect", text(body_limits.LARGE_BYTES + 1))
    assert again.status == 200


def test_bytes_of_an_upload_are_streamed_without_a_limit() -> None:
    app = Echo()
    pieces = [b"[" * MAX_BYTES] * 3
    answer(BodyLimitMiddleware(app), scope("PUT", "/v1/uploads/up_x", {"content-length": "9" * 20}), parts(*pieces))
    assert [len(message["body"]) for message in app.received] == [MAX_BYTES] * 3


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/uploads/up_x"), ("PUT", "/v1/uploads")])
def test_only_a_put_of_an_upload_is_without_a_limit(method: str, path: str) -> None:
    app = Echo()
    refused = answer(BodyLimitMiddleware(app), scope(method, path), parts(text(MAX_BYTES + 1)))
    assert (refused.status, app.asked) == (413, [])


def test_an_upload_whose_bytes_stop_coming_counts_as_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "UPLOAD_IDLE_SECONDS", 0.01)
    app = Echo()
    first = {"type": "http.request", "body": b"x", "more_body": True}
    answer(BodyLimitMiddleware(app), scope("PUT", "/v1/uploads/up_x"), [first])
    assert app.received == [first, DISCONNECT]


def test_bodies_that_are_not_short_are_handed_on_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    slept = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await slept(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    sent("/v1/inspect", text(body_limits.SHORT_BYTES))
    assert waits == []
    sent("/v1/inspect", text(body_limits.SHORT_BYTES + 1))
    assert body_limits.TURN_SECONDS in waits


def test_what_is_no_request_goes_through() -> None:
    app = Echo()
    answer(BodyLimitMiddleware(app), {"type": "lifespan"})
    assert app.asked == [{"type": "lifespan"}]
