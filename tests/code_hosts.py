"""GitHub's and GitLab's calls that comments need, in memory on loopback, as their documentation describes them."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "token-of-the-run"


@dataclass
class CodeHost:
    """What was left at it: comments by number, files by path, branches, uploads."""

    url: str = ""
    comments: dict[int, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    branches: set[str] = field(default_factory=set)
    uploads: list[bytes] = field(default_factory=list)
    contents_allowed: bool = True
    authors: dict[int, str] = field(default_factory=dict)

    def github(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if path == "/user":  # a run's own token may not ask who it is
            return 403, {"message": "Resource not accessible by integration"}
        if found := re.fullmatch(r"/repos/o/r/issues/7/comments", path):
            if method == "POST":
                return 201, self._commented(max(self.comments, default=0) + 1, body["body"])
            page, size = int(query["page"][0]), int(query["per_page"][0])
            every = [self._comment(number) for number in sorted(self.comments)]
            return 200, every[(page - 1) * size : page * size]
        if found := re.fullmatch(r"/repos/o/r/issues/comments/(\d+)", path):
            return 200, self._commented(int(found[1]), body["body"])
        if not self.contents_allowed:
            return 403, {"message": "Resource not accessible by integration"}
        if found := re.fullmatch(r"/repos/o/r/git/ref/heads/(.+)", path):
            return (200, {}) if found[1] in self.branches else (404, {"message": "Not Found"})
        if path in ("/repos/o/r/git/trees", "/repos/o/r/git/commits"):
            return 201, {"sha": "a" * 40}
        if path == "/repos/o/r/git/refs":
            self.branches.add(body["ref"].removeprefix("refs/heads/"))
            return 201, {}
        if found := re.fullmatch(r"/repos/o/r/contents/(.+)", path):
            return self._contents(method, found[1], body)
        return 404, {"message": "Not Found"}

    def _contents(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        there = path in self.files
        if method == "GET":
            return (200, {"sha": "b" * 40}) if there else (404, {"message": "Not Found"})
        if body["branch"] not in self.branches or (there and body.get("sha") != "b" * 40):
            return 409, {"message": "conflict"}
        self.files[path] = base64.b64decode(body["content"])
        return 201, {}

    def gitlab(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        notes = "/projects/5/merge_requests/7/notes"
        if path == "/user":
            return 200, {"id": 1}
        if path == "/projects/5/uploads":
            self.uploads.append(body)
            return 201, {"markdown": "![drift](/uploads/1/drift.png)"}
        if path == notes and method == "GET":
            return 200, [self._comment(number) for number in sorted(self.comments)]
        if path == notes:
            return 201, self._commented(max(self.comments, default=0) + 1, body["body"])
        if found := re.fullmatch(notes + r"/(\d+)", path):
            return 200, self._commented(int(found[1]), body["body"])
        return 404, {"message": "Not Found"}

    def _commented(self, number: int, body: str) -> dict[str, Any]:
        self.comments[number] = body
        return self._comment(number)

    def _comment(self, number: int) -> dict[str, Any]:
        login = self.authors.get(number, "github-actions[bot]")
        return {
            "id": number,
            "body": self.comments[number],
            "html_url": f"{self.url}/o/r/pull/7#c{number}",
            "user": {"login": login},
            "author": {"id": 1 if number not in self.authors else 2},
        }


@contextmanager
def code_host(kind: str) -> Iterator[CodeHost]:
    """A `github` or a `gitlab`."""
    host = CodeHost()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            given = self.headers.get("Authorization") or self.headers.get("PRIVATE-TOKEN")
            is_json = "json" in (self.headers.get("Content-Type") or "")
            body = json.loads(raw) if is_json else raw
            if given not in (f"Bearer {TOKEN}", TOKEN):
                status, said = 401, {"message": "Bad credentials"}
            else:
                status, said = getattr(host, kind)(self.command, parts.path, parse_qs(parts.query), body)
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815 - names that the base class looks for

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    host.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield host
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
