"""The clients against a server that answers what a test says: retries, broken streams, what is sent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from layerdrift.contract.errors import LayerdriftError, RateError, TransportError, UnavailableError
from layerdrift.contract.key import KeyRequest
from layerdrift.contract.policy import Policy
from layerdrift.sdk import AsyncClient, Client, Event, Retries

FAST = Retries(tries=3, first=0.001, longest=0.002)
ID = "an_" + "a" * 26
POLICY = Policy.model_validate({"rules": [{"id": "a", "path": "layers[0].drift", "max": 1, "message": "m"}]})
VERDICT = {"analysis_id": ID, "decision": "pass", "checks": []}
AWAY: tuple[int, dict[str, str], Any] = (
    503,
    {},
    {"type": "urn:x", "title": "t", "status": 503, "detail": "Redis is unavailable"},
)


@dataclass
class Server:
    """Answers of a script, one after another; the last one again and again. None: the connection is closed."""

    script: list[tuple[int, dict[str, str], Any] | None] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            made.seen.append((self.command, self.path, dict(self.headers), body))
            said = made.script.pop(0) if len(made.script) > 1 else made.script[0]
            if said is None:
                self.close_connection = True
                return
            status, headers, content = said
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw) + int(headers.get("X-Missing", "0"))))
            self.end_headers()
            self.wfile.write(raw)
            self.close_connection = "X-Missing" in headers

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - names that the base class looks for

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{httpd.server_port}"
    yield made
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_service_that_is_away_for_a_moment_is_asked_again(server: Server) -> None:
    server.script = [AWAY, None, (429, {"Retry-After": "0"}, AWAY[2]), (200, {}, VERDICT)]
    with Client(server.url, retries=FAST) as client:
        assert client.gate(ID, POLICY).decision == "pass"
    assert len(server.seen) == 4
    assert json.loads(server.seen[-1][3])["rules"][0]["path"] == "layers[0].drift"


def test_in_the_end_the_error_is_raised(server: Server) -> None:
    server.script = [AWAY]
    with Client(server.url, retries=FAST) as client:
        with pytest.raises(UnavailableError, match="Redis is unavailable"):
            client.get(ID)
        assert len(server.seen) == 4
        server.script = [(429, {"Retry-After": "7"}, AWAY[2])]
        with pytest.raises(RateError) as raised, Client(server.url, retries=Retries(tries=0)) as impatient:
            impatient.get(ID)
        assert raised.value.retry_after == 7
        server.script = [None]
        with pytest.raises(TransportError, match="could not be reached"):
            client.get(ID)


def test_what_may_have_been_done_is_not_done_twice(server: Server) -> None:
    with Client(server.url, retries=FAST) as client:
        for call in (lambda: client.cancel(ID), lambda: client.create_key(KeyRequest()), lambda: client.delete(ID)):
            for answer, error in ((None, TransportError), (AWAY, UnavailableError)):
                server.script = [answer]
                server.seen.clear()
                with pytest.raises(error):
                    call()
                assert len(server.seen) == 1


def test_an_answer_that_is_not_the_services_is_an_error_of_its_own(server: Server) -> None:
    server.script = [(200, {"Content-Type": "text/html"}, b"<html>a proxy</html>")]
    with Client(server.url, retries=FAST) as client, pytest.raises(LayerdriftError, match="layerdrift does not"):
        client.get(ID)


def test_a_stream_that_only_shows_signs_of_life_ends_with_the_time_that_was_given(server: Server) -> None:
    server.script = [(200, STREAM, b"retry: 2000\n\n: still there\n\n")]
    with Client(server.url, retries=FAST) as client, pytest.raises(TimeoutError, match=r"timed out after 0\.2 s"):
        list(client.events(ID, timeout=0.2))


def sse(*events: tuple[str, str, Any]) -> bytes:
    return "".join(f"id: {id_}\nevent: {name}\ndata: {json.dumps(data)}\n\n" for id_, name, data in events).encode()


STREAM = {"Content-Type": "text/event-stream"}


def test_a_stream_that_breaks_off_is_taken_up_after_the_last_event(server: Server) -> None:
    first = sse(("1-0", "stage", {"name": "resolve"}), ("2-0", "progress", {"fraction": 0.5}))
    broken = (200, {**STREAM, "X-Missing": "100"}, first)
    rest = (200, STREAM, sse(("3-0", "done", {"status": "succeeded"})))
    server.script = [broken, AWAY, rest]
    with Client(server.url) as client:
        heard = list(client.events(ID))
    expected = [
        Event("1-0", "stage", {"name": "resolve"}),
        Event("2-0", "progress", {"fraction": 0.5}),
        Event("3-0", "done", {"status": "succeeded"}),
    ]
    assert heard == expected
    assert [headers.get("Last-Event-ID") for _, _, headers, _ in server.seen] == [None, "2-0", "2-0"]

    async def again() -> list[Event]:
        async with AsyncClient(server.url) as client:
            return [event async for event in client.events(ID)]

    server.script = [broken, AWAY, rest]
    assert asyncio.run(again()) == expected


def test_an_upload_is_sent_again_whole_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_bytes(os.urandom(3 << 20))
    waiting = {
        "id": "up_x",
        "uri": "upload://up_x",
        "filename": "texts.csv",
        "status": "waiting",
        "created_at": "2026-01-01T00:00:00Z",
    }
    done = waiting | {"status": "complete"}
    script: list[Any] = [(201, {}, waiting), AWAY, (200, {}, done)]
    server.script = list(script)
    heard: list[tuple[int, int]] = []
    with Client(server.url, retries=FAST) as client:
        assert client.upload(path, lambda *so_far: heard.append(so_far)).status == "complete"
    assert [(method, len(body)) for method, _, _, body in server.seen[1:]] == [("PUT", 3 << 20)] * 2
    assert heard[-1] == (3 << 20, 3 << 20)

    async def again() -> str:
        async with AsyncClient(server.url, retries=FAST) as client:
            return (await client.upload(path)).status

    server.script = list(script)
    assert asyncio.run(again()) == "complete"
    server.seen.clear()
    server.script = [(201, {}, done)]
    with Client(server.url) as client:
        client.upload(path)
    assert [method for method, *_ in server.seen] == ["POST"]


def test_the_key_and_the_url_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = [(200, {}, {"items": [], "next_cursor": None})]
    monkeypatch.setenv("LAYERDRIFT_URL", server.url)
    monkeypatch.setenv("LAYERDRIFT_API_KEY", "ld_secret")
    with Client() as client:
        assert client.list(tag="team:search").items == []
    _, path, headers, _ = server.seen[0]
    assert path == "/v1/analyses?limit=20&tag=team%3Asearch"
    assert headers["Authorization"] == "Bearer ld_secret"


def test_the_package_needs_neither_torch_nor_redis() -> None:
    names = ["torch", "redis", "boto3", "celery", "altair", "vl_convert", "transformers", "yaml.missing"]
    code = (
        "import sys\n"
        "import layerdrift.sdk, layerdrift.cli.main, layerdrift.gate, layerdrift.render.verdict\n"
        f"print(sorted(set({names!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
