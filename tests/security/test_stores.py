"""The embedded stores answer nobody without a password, signature or certificate; their files are their owner's."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from deploy.embedded.credentials import Credentials
from deploy.embedded.stack import Stack

WRITES = (
    ("POST", "/keys/"),
    ("POST", "/buckets/layerdrift/keys/"),
    ("PUT", "/buckets/layerdrift/keys/x.json"),
    ("PUT", "/layerdrift/keys/x.json"),
    ("PUT", "/3,01637037d6"),
    ("POST", "/submit"),
    ("DELETE", "/buckets/layerdrift"),
    ("POST", "/dir/assign"),
    ("POST", "/vol/grow?count=1"),
    ("POST", "/admin/assign_volume?volume=99"),
)
READS = (
    "/buckets/",
    "/buckets/layerdrift/",
    "/layerdrift/",
    "/1,01637037d6",
    "/dir/assign",
    "/dir/lookup?volumeId=1",
    "/metrics",
    "/debug/pprof/",
)


def listening(stack: Stack) -> dict[int, str]:
    """Ports of this machine that programs of a stack listen on, but for the API's, by the program's name."""
    found = {}
    for name, pid in stack.pids().items():
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            for one in process.net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN:
                    assert one.laddr.ip in ("127.0.0.1", "::1"), (name, one.laddr)
                    found[one.laddr.port] = name
    found.pop(stack.settings.port, None)
    return found


def answer(port: int, sent: bytes) -> bytes:
    """The first bytes that a port says to some bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as there:
        there.sendall(sent)
        try:
            return there.recv(4096)
        except (TimeoutError, ConnectionResetError):
            return b""


def lets_in_over_tls(port: int) -> bool:
    """Whether a port speaks TLS and takes a client without a certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain) as secure:
            secure.settimeout(5)
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            return bool(secure.recv(64))
    except (OSError, ssl.SSLError):
        return False


def test_every_port_of_the_stores_refuses_whoever_shows_nothing(stack: Stack) -> None:
    ports = listening(stack)
    assert {"valkey", "seaweedfs"} <= set(ports.values())
    for port, name in ports.items():
        for command in (b"PING\r\n", b"HSET ld:keys x y\r\n", b"CONFIG GET requirepass\r\n"):
            said = answer(port, command)
            assert said.startswith(b"-NOAUTH") if name == "valkey" else b"PONG" not in said, (name, port, said)
        assert not lets_in_over_tls(port), (name, port)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as http:
            for method, path in (*WRITES, *(("GET", path) for path in READS)):
                try:
                    status = http.request(method, path, data={"file": "x"} if method != "GET" else None).status_code
                except httpx.TransportError:
                    continue
                assert status >= 400, (name, port, method, path, status)


def test_who_has_the_password_is_let_in_and_who_has_not_is_not(stack: Stack) -> None:
    url = stack.settings.redis_url
    assert redis.Redis.from_url(url).ping()
    port = int(url.rpartition(":")[2].partition("/")[0])
    for wrong in (None, "", "wrong"):
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(port=port, password=wrong).ping()


def test_nobody_else_can_read_the_home_or_see_a_password(stack: Stack) -> None:
    home = stack.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for name in ("s3-key.json", "server-secrets.json", "valkey/valkey.conf", "tls/server-key.pem"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name
    secrets = Credentials.of_home(home)
    hidden = [secrets.secret_key, secrets.redis_password, *(v for k, v in secrets.seaweedfs.items() if "JWT" in k)]
    told = [" ".join(psutil.Process(pid).cmdline()) for pid in stack.pids().values()]
    assert not [secret for secret in hidden for line in told if secret in line]


def test_credentials_are_made_once_and_an_older_home_is_closed(tmp_path: Path) -> None:
    (tmp_path / "s3-key.json").write_text('{"access_key": "old", "secret_key": "older"}')
    first = Credentials.of_home(tmp_path)
    assert (first.access_key, first.secret_key) == ("old", "older")
    assert Credentials.of_home(tmp_path) == first
    assert all(Path(first.seaweedfs[f"WEED_GRPC_{part}_KEY"]).exists() for part in ("MASTER", "FILER", "CLIENT"))
    other = tmp_path / "other"
    other.mkdir()
    assert Credentials.of_home(other).redis_password != first.redis_password
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in other.rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_another_api_on_the_port_is_not_taken_for_ones_own(stack: Stack) -> None:
    assert stack._api_answers()
    other = Stack({"LAYERDRIFT_HOME": str(stack.home / "other")})
    other.url = stack.url
    assert not other._api_answers()
