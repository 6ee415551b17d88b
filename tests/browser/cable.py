"""A cable between the browser and the service that a test can pull out and put in again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from deploy.embedded.ports import LOOPBACK


class Cable:
    """Copies bytes both ways; while it is out, connections are broken off and new ones closed at once."""

    def __init__(self, url: str) -> None:
        self._target = (LOOPBACK, urlsplit(url).port or 80)
        self._listening = socket.create_server((LOOPBACK, 0))
        self._open: set[socket.socket] = set()
        self._out = threading.Event()
        self.url = f"http://{LOOPBACK}:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def pull(self) -> None:
        """Out."""
        self._out.set()
        for one in list(self._open):
            _end(one)

    def put_in(self) -> None:
        """In."""
        self._out.clear()

    def close(self) -> None:
        """Ends everything."""
        self.pull()
        _end(self._listening)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            if self._out.is_set():
                _end(near)
                continue
            far = socket.create_connection(self._target)
            self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
        for one in (source, target):
            _end(one)
            self._open.discard(one)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def cable(url: str) -> Iterator[Cable]:
    """A cable to a service, in."""
    made = Cable(url)
    try:
        yield made
    finally:
        made.close()
