"""What one connection may take before it has asked for anything: uvicorn waits for a request's head for ever.

A connection whose head does not come is closed. Its bytes are counted, and connections by client and in all.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from collections import Counter
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 15.0
"""Until the head of a request has come, from its first byte on, or from the connection's beginning."""

MAX_HEAD_BYTES = 64 << 10
MAX_CONNECTIONS = 1_000
"""Beyond them uvicorn answers 503."""

MAX_CONNECTIONS_OF_CLIENT = 400
"""By address, so that one client leaves others their share. A proxy in front counts as one client."""

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TOO_MANY = b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a deadline and a size for the head of every request.

    The same size is that of anything else beside a body: trailers, and extensions of chunks. A body that goes on after
    its answer has a deadline too.
    """

    _open: ClassVar[Counter[str]] = Counter()
    _address: str | None = None
    _timer: TimerHandle | None = None
    _in_head = False
    _beside_body = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_timer()
        self._address = self.client[0] if self.client else ""
        self._open[self._address] += 1
        if self._open[self._address] > MAX_CONNECTIONS_OF_CLIENT:
            self._refuse(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        if self._address is not None:
            self._open[self._address] -= 1
            if not self._open[self._address]:
                del self._open[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._beside_body += len(data)  # until the parser says that they are a body
        super().data_received(data)
        if self._beside_body > MAX_HEAD_BYTES:
            self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._begin_timer()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer is no header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._beside_body = 0
        self._end_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._beside_body = 0
        self._end_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        unread = self.cycle is not None and self.cycle.more_body
        super().on_response_complete()
        if unread and not self.transport.is_closing():
            self._begin_timer()

    def _begin_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._refuse, _TOO_LATE)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, answer: bytes) -> None:
        self._end_timer()
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(answer)
            self.transport.close()
