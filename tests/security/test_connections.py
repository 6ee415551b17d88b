"""No connection stops the service: heads, bodies and uploads come in time, or are not waited for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from deploy.embedded.ports import LOOPBACK, choose
from deploy.embedded.stack import Stack
from layerdrift.contract.errors import LateError
from service.http.concurrency import ConcurrencyLimit
from service.middleware import body_limits, connections
from service.middleware.connections import BoundedProtocol


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server with the product's protocol and body limits, which waits a second; its port."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(body_limits, "BODY_SECONDS", 1.0)

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    port = choose({"x": 0})["x"]
    app = body_limits.BodyLimitMiddleware(answered)
    config = uvicorn.Config(app, port=port, http=connections.BoundedProtocol, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b"408"),
        (b"GET / HT", b"408"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"408"),
        (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 70_000, b"431"),
        (b"GET /" + b"a" * 70_000, b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", b"408"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT", b"200"),
    ],
    ids=[
        "nothing",
        "line",
        "headers",
        "long header",
        "long path",
        "body",
        "second",
    ],
)
def test_a_request_that_does_not_come_is_not_waited_for(impatient: int, sent: bytes, status: bytes) -> None:
    with socket.create_connection((LOOPBACK, impatient), timeout=10) as there:
        there.sendall(sent)
        said = answer_of(there)
    assert said.split(b" ")[1] == status
    if sent.count(b"HTTP/1.1") == 1 and sent.endswith(b"GET / HT"):
        assert b" 408 " in said


HALF = b"POST /v1/analyses HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b'"' + b"a" * 70_000


def answer_of(there: socket.socket) -> bytes:
    said = b""
    while chunk := there.recv(65_536):  # until the server hangs up
        said += chunk
    return said


def test_half_sent_bodies_are_bounded_for_each_client(impatient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "LARGE_BODIES", ConcurrencyLimit("bodies", of_client=3, in_all=9))
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_connection((LOOPBACK, impatient), timeout=10)) for _ in range(4)]
        for one in sockets:
            one.sendall(HALF)
        said = [answer_of(one) for one in sockets]
    assert sorted(one.split(b" ")[1] for one in said) == [b"408"] * 3 + [b"429"]
    (refused,) = (one for one in said if b" 429 " in one)
    assert b"retry-after: 5" in refused.lower()
    assert b"this client already has 3 bodies open" in refused


def test_connections_are_bounded_for_each_client(impatient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS_OF_CLIENT", 3)
    with ExitStack() as opened:
        for _ in range(3):
            opened.enter_context(socket.create_connection((LOOPBACK, impatient), timeout=10))
        more = opened.enter_context(socket.create_connection((LOOPBACK, impatient), timeout=10))
        said = answer_of(more)
        assert said.startswith(b"HTTP/1.1 429")
        assert b"Retry-After: 5" in said
    deadline = time.monotonic() + 10
    while httpx.get(f"http://{LOOPBACK}:{impatient}/").status_code == 429:  # those that hung up are forgotten
        assert time.monotonic() < deadline
    assert not BoundedProtocol._open[LOOPBACK] > 1


def test_an_upload_whose_bytes_stop_coming_is_let_go(impatient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "UPLOAD_IDLE_SECONDS", 0.5)
    with socket.create_connection((LOOPBACK, impatient), timeout=10) as there:
        there.sendall(b"PUT /v1/uploads/up_x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        started = time.monotonic()
        assert b" 200 " in there.recv(65_536)  # the app was told that the client has gone
        assert 0.4 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    "beside", [b"0\r\n" + b"a: b\r\n" * 80_000, b"0\r\nx: " + b"a" * 400_000, b"1;" + b"a" * 400_000]
)
def test_what_stands_beside_a_body_has_a_size(impatient: int, monkeypatch: pytest.MonkeyPatch, beside: bytes) -> None:
    monkeypatch.setattr(body_limits, "BODY_SECONDS", 60.0)
    with socket.create_connection((LOOPBACK, impatient), timeout=10) as there:
        there.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            there.sendall(beside)
            assert there.recv(100) == b""  # hung up, long before the deadline of the body
        except ConnectionError:
            return


def test_requests_that_come_are_answered_one_after_another(impatient: int) -> None:
    with httpx.Client(base_url=f"http://{LOOPBACK}:{impatient}") as http:
        assert [http.get("/").status_code for _ in range(5)] == [200] * 5
        time.sleep(1.5)
        assert http.post("/", content=b"x" * 60_000).status_code == 200


def test_an_answer_before_the_body_has_come_does_not_keep_the_connection(stack: Stack, impatient: int) -> None:
    with socket.create_connection((LOOPBACK, impatient), timeout=10) as there:
        there.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
        said = b""
        while chunk := there.recv(65_536):  # until the server hangs up
            said += chunk
    assert said.startswith(b"HTTP/1.1 413")


def test_a_late_body_is_a_problem() -> None:
    assert LateError("x").problem().status == 408
