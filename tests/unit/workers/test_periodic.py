"""The thread behind what a worker does beside its jobs."""

from __future__ import annotations

import logging
from threading import Event
from typing import ClassVar

import pytest
import redis

from layerdrift.contract.errors import UnavailableError
from workers import periodic
from workers.periodic import Periodic


class Looks(Periodic):
    """Raises what it was given, then works."""

    name: ClassVar[str] = "looks"
    seconds: ClassVar[float] = 0.001

    def __init__(self, *failures: Exception) -> None:
        super().__init__()
        self.failures = list(failures)
        self.worked = Event()

    def look(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.worked.set()


def test_what_a_look_raises_is_logged_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    looks = Looks(redis.ConnectionError("no Redis"), UnavailableError("no S3"), OSError("no disk"))
    with caplog.at_level(logging.WARNING):
        looks.start()
        assert looks.worked.wait(10)
        looks.stop()
    assert [entry.getMessage() for entry in caplog.records] == [
        f"looks failed, and tries again: {what}" for what in ("no Redis", "no S3", "no disk")
    ]


def test_who_stops_it_does_not_wait_for_a_look_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "PATIENCE_SECONDS", 0.05)
    entered, over = Event(), Event()

    class Endless(Periodic):
        name: ClassVar[str] = "endless"
        seconds: ClassVar[float] = 3600.0

        def look(self) -> None:
            entered.set()
            over.wait(10)

    endless = Endless()
    endless.start()
    assert entered.wait(10)
    endless.stop()
    assert endless._thread.is_alive()
    over.set()


def test_it_can_be_stopped_and_does_not_look_again() -> None:
    looks = Looks()
    looks.start()
    assert looks.worked.wait(10)
    looks.stop()
    assert looks.stopping()
    looks._thread.join(timeout=10)
    looks.worked.clear()
    assert not looks.worked.wait(0.05)
