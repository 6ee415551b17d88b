"""A small HTTP load: connections that are kept open, each with one request in flight; latencies of every answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass


@dataclass
class Load:
    """What a run of requests took: seconds of each, and of the whole."""

    latencies: list[float]
    seconds: float

    @property
    def per_second(self) -> float:
        """Answers in a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """Latency that this share of the answers stayed below, milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection(asyncio.Protocol):
    """Sends the same request again as soon as its answer is whole."""

    def __init__(self, request: bytes, latencies: list[float], until: float) -> None:
        self._request = request
        self._latencies = latencies
        self._until = until
        self._missing = -1
        self._head = b""
        self._started = 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        if time.perf_counter() >= self._until:
            self._transport.close()
            return
        self._missing, self._head = -1, b""
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._head += data
            head, separator, rest = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            status = head.split(b" ", 2)[1]
            if status != b"200":
                raise RuntimeError(f"answered {status.decode()}")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            self._missing = int(length.split(b":")[1]) - len(rest)
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self._latencies.append(time.perf_counter() - self._started)
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(error)


async def _run(host: str, port: int, request: bytes, connections: int, seconds: float) -> Load:
    latencies: list[float] = []
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: _Connection(request, latencies, started + seconds), host, port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(one.closed for one in made))
    return Load(latencies, time.perf_counter() - started)


def load(host: str, port: int, path: str, connections: int, seconds: float) -> Load:
    """GETs a path over so many connections for so long; RuntimeError where an answer is not 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: application/json\r\n\r\n".encode()
    return asyncio.run(_run(host, port, request, connections, seconds))
