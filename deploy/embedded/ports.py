"""Free ports on loopback."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could bind the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(preferred: dict[str, int]) -> dict[str, int]:
    """The preferred ports where they are free, others where they are not; all different."""
    chosen: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        for name, port in preferred.items():
            sock = socket.socket()
            held.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((LOOPBACK, 0 if port in chosen.values() else port))
            except OSError:
                sock.bind((LOOPBACK, 0))
            chosen[name] = sock.getsockname()[1]
    finally:
        for sock in held:
            sock.close()
    return chosen
