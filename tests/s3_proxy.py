"""A store of another maker: a proxy in front of the real SeaweedFS that lacks what some S3 stores lack.

It always refuses boto3's checksum headers. Signatures hold, because `Host` is passed on as it came.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

from backends.settings import Settings
from backends.storage.blobs import BlobStore
from deploy.embedded.ports import LOOPBACK

Conditional = Literal["honoured", "ignored", "501", "400"]
_NOT_FORWARDED = ("connection", "expect", "transfer-encoding", "content-length")


@dataclass
class OtherStore:
    """Where it is, how it takes `If-None-Match`, and what it has refused."""

    settings: Settings
    conditional: Conditional
    url: str = ""
    refused: list[str] = field(default_factory=list)
    behind: BlobStore = field(init=False)

    def __post_init__(self) -> None:
        self.behind = BlobStore.connect(self.settings)

    def refusal(self, headers: dict[str, str]) -> int | None:
        """The status of a refusal; None where a request may pass."""
        checksums = [name for name in headers if name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum"))]
        if headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            checksums.append("x-amz-content-sha256")
        if checksums:
            self.refused += checksums
            return 501
        if "if-none-match" in headers and self.conditional in ("400", "501"):
            return int(self.conditional)
        return None


class _Handler(BaseHTTPRequestHandler):
    store: OtherStore
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length") or 0))
        status = self.store.refusal(headers)
        if status is not None:
            self.close_connection = True
            code = "NotImplemented" if status == 501 else "InvalidArgument"
            self.send(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
        elif "if-none-match" in headers and self.store.conditional == "ignored":
            # written anew: the header is part of the signature, and cannot be left out
            bucket, _, key = unquote(self.path).lstrip("/").partition("/")
            self.store.behind.of_bucket(bucket).put(key, body, headers.get("content-type", "text/plain"))
            self.send(200, {"ETag": '"x"'}, b"")
        else:
            self.forward(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - names that the base class looks for

    def forward(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(urlsplit(str(self.store.settings.s3_endpoint)).netloc, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _NOT_FORWARDED:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        found = connection.getresponse()
        content = found.read()
        kept = {name: value for name, value in found.getheaders() if name.lower() not in _NOT_FORWARDED}
        length = found.getheader("Content-Length") if self.command == "HEAD" else None
        self.send(found.status, kept, content, length)
        connection.close()

    def send(self, status: int, headers: dict[str, str], content: bytes, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def other_store(settings: Settings, conditional: Conditional) -> Iterator[OtherStore]:
    """A proxy in front of the store of these settings."""
    store = OtherStore(settings, conditional)
    httpd = ThreadingHTTPServer((LOOPBACK, 0), type("Handler", (_Handler,), {"store": store}))
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    store.url = f"http://{LOOPBACK}:{httpd.server_port}"
    try:
        yield store
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
