"""Requests to a hub or a tracking server, answered by httpx's own transport for tests; real servers: test_hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from backends.sources.remote import Bearer, Remote
from layerdrift.contract.errors import DeniedError, LayerdriftError, NotFoundError, UnavailableError

Answer = Callable[[httpx.Request], httpx.Response]
Serve = Callable[[Answer], list[httpx.Request]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Has all requests answered by a function; the requests that came."""
    clients: list[httpx.Client] = []

    def answered_by(answer: Answer) -> list[httpx.Request]:
        came: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            came.append(request)
            return answer(request)

        clients.append(httpx.Client(transport=httpx.MockTransport(handle)))
        monkeypatch.setattr(httpx, "stream", clients[-1].stream)
        return came

    yield answered_by
    for client in clients:
        client.close()


def remote(auth: httpx.Auth | None = None) -> Remote:
    return Remote("hub", "https://hub.test/", "hf://org/model", auth, "LAYERDRIFT_HF_TOKEN")


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, NotFoundError, r"hf://org/model does not exist on https://hub\.test$"),
        (401, DeniedError, "is private or gated; set LAYERDRIFT_HF_TOKEN"),
        (403, DeniedError, "is private or gated"),
        (400, UnavailableError, "the hub returned 400 for hf://org/model"),
        (429, UnavailableError, "the hub returned 429"),
        (500, UnavailableError, "the hub returned 500"),
    ],
)
def test_what_a_server_refuses_becomes_an_error_with_the_uri_and_the_setting(
    serve: Serve, status: int, error: type[LayerdriftError], message: str
) -> None:
    serve(lambda _: httpx.Response(status, json={"error": "hidden"}))
    for ask in (lambda: remote().json("/x"), lambda: remote().head("/x", 5), lambda: list(remote().chunks("/x"))):
        with pytest.raises(error, match=message):
            ask()


@pytest.mark.parametrize("reason", [httpx.ConnectError("refused"), httpx.ReadTimeout("too slow")])
def test_a_server_that_does_not_answer_is_said_to_be_away(serve: Serve, reason: Exception) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise reason

    serve(fail)
    with pytest.raises(UnavailableError, match=f"the hub could not be reached for hf://org/model: {reason}"):
        remote().json("/x")


def test_a_server_that_breaks_off_a_file_is_said_to_be_away(serve: Serve) -> None:
    def broken_off() -> Iterator[bytes]:
        yield b"first"
        raise httpx.RemoteProtocolError("peer closed connection")

    serve(lambda _: httpx.Response(200, content=broken_off()))
    with pytest.raises(UnavailableError, match="peer closed connection"):
        list(remote().chunks("/x"))


def test_parameters_of_a_call_are_quoted(serve: Serve) -> None:
    came = serve(lambda _: httpx.Response(200, json={"a": 1}))
    assert remote().json("/api/get", name="a&b=c", path="ä/b") == {"a": 1}
    assert came[0].url.path == "/api/get"
    assert dict(came[0].url.params) == {"name": "a&b=c", "path": "ä/b"}


@pytest.mark.parametrize("content", [b"<html>login</html>", b"", b"[]", b"\xff", b'"text"'])
def test_an_answer_that_is_no_json_object_is_an_error_of_the_server(serve: Serve, content: bytes) -> None:
    serve(lambda _: httpx.Response(200, content=content))
    with pytest.raises(UnavailableError, match="is its URL right"):
        remote().json("/api/get")


@pytest.mark.parametrize("content", [b"abcdef", b"abc", b"ab", b""])
def test_no_more_than_the_head_of_a_file_is_given_though_a_server_ignores_the_range(
    serve: Serve, content: bytes
) -> None:
    came = serve(lambda _: httpx.Response(200, content=content))
    assert remote().head("/x", 3) == content[:3]
    assert came[0].headers["Range"] == "bytes=0-2"


def test_a_token_goes_to_the_server_and_to_no_host_that_it_redirects_to(serve: Serve) -> None:
    def redirect(request: httpx.Request) -> httpx.Response:
        if request.url.host == "hub.test":
            return httpx.Response(302, headers={"Location": "https://cdn.test/file"})
        return httpx.Response(200, content=b"weights")

    came = serve(redirect)
    assert b"".join(remote(Bearer("secret")).chunks("/x")) == b"weights"
    assert [(one.url.host, one.headers.get("Authorization")) for one in came] == [
        ("hub.test", "Bearer secret"),
        ("cdn.test", None),
    ]


def test_a_server_that_redirects_without_end_is_said_to_be_away(serve: Serve) -> None:
    serve(lambda request: httpx.Response(302, headers={"Location": str(request.url)}))
    with pytest.raises(UnavailableError, match="redirects"):
        remote().json("/x")
