"""A page in the operator's browser reaches nothing: by no foreign name, and from no foreign page."""

from __future__ import annotations

import socket

import httpx
import pytest

from backends.settings import Settings
from deploy.embedded.stack import Stack
from service.middleware.trusted_hosts import TrustedHostsMiddleware
from tests.builders.operator import ADMIN

BODY = {"filename": "a.csv"}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "[::2]",
        "",
        "a b",
        "evil@127.0.0.1",
        "127.0.0.1/evil",
        "127.0.0.1?evil",
        "localhost:80:90",
    ],
)
def test_a_foreign_name_that_leads_here_is_not_answered(stack: Stack, host: str) -> None:
    for method, path in (("GET", "/v1/analyses"), ("GET", "/"), ("POST", "/v1/uploads"), ("GET", "/openapi.json")):
        said = httpx.request(method, stack.url + path, headers={"Host": host}, json=BODY if method == "POST" else None)
        assert said.status_code == 421, (path, said.text)
        assert said.headers["content-type"] == "application/problem+json"
        assert "LAYERDRIFT_ALLOWED_HOSTS" in said.json()["detail"]


@pytest.mark.parametrize("keys", [False, True])
def test_a_foreign_page_changes_nothing_with_and_without_keys(stack: Stack, keyed: Stack, keys: bool) -> None:
    url = keyed.url if keys else stack.url
    signed = {"Authorization": f"Bearer {ADMIN}"} if keys else {}
    port = url.rpartition(":")[2]
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{int(port) + 1}", "http://localhost", "nonsense"):
        for method, path in (("POST", "/v1/uploads"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/key_00000000")):
            said = httpx.request(method, url + path, headers=signed | {"Origin": origin}, json=BODY)
            assert said.status_code == 403, (origin, path, said.text)
        plain = {"Content-Type": "text/plain", "Origin": origin}
        assert httpx.post(f"{url}/v1/analyses", headers=signed | plain, content=b"{}").status_code == 403
    for own in (url, url.upper().replace("HTTP", "http"), url.replace("127.0.0.1", "localhost")):
        host = own.partition("//")[2]
        said = httpx.post(f"{url}/v1/uploads", headers=signed | {"Origin": own, "Host": host}, json=BODY)
        assert said.status_code == 201, (own, said.text)


@pytest.mark.parametrize("name", ["Host", "Authorization", "Origin", "Cookie"])
def test_one_identity_decides_where_two_are_given(keyed: Stack, name: str) -> None:
    """Also where a cache has the answer for one of them."""
    right = {"Host": keyed.url.partition("//")[2], "Authorization": f"Bearer {ADMIN}", "Origin": keyed.url}
    right["Cookie"] = "layerdrift_session=none"

    def status(path: str, pairs: list[tuple[str, str]]) -> int:
        head = "".join(f"{name}: {value}\r\n" for name, value in pairs)
        with socket.create_connection(("127.0.0.1", keyed.settings.port), timeout=10) as there:
            there.sendall(f"GET {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
            return int(there.recv(1000).split(b" ")[1])

    assert status("/v1/analyses", list(right.items())) == 200
    for path in ("/v1/analyses", f"/v1/analyses/an_{'a' * 26}/report"):
        for second in (right[name], "other"):
            assert status(path, [*right.items(), (name, second)]) == 400
            assert status(path, [(name, second), *right.items()]) == 400


def test_a_request_without_host_is_not_answered(stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", stack.settings.port), timeout=10) as there:
        there.sendall(b"GET /v1/analyses HTTP/1.0\r\n\r\n")
        assert b" 421 " in there.recv(1000).partition(b"\r\n")[0]


def test_the_settings_name_what_the_service_is_called() -> None:
    async def app(*_: object) -> None:
        """Is not asked."""

    def asked(called: str, **settings: object) -> bool:
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": [(b"host", called.encode())]}
        return TrustedHostsMiddleware(app, Settings.model_validate(settings))._problem(scope) is None

    assert asked("drift.example", host="0.0.0.0")  # keys are asked for there
    assert asked("drift.example:443", allowed_hosts="drift.example,other")
    assert not asked("127.0.0.1", allowed_hosts="drift.example")
    assert not asked("drift.example", host="127.0.0.1")
    assert asked("[::1]:8000", host="::1")
    for wrong in ("https://drift.example", "drift.example:8000"):
        with pytest.raises(ValueError, match="not a host name"):
            Settings.model_validate({"allowed_hosts": wrong})
