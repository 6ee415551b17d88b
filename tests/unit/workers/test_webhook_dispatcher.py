"""The thread that sends webhooks: it goes on after errors, and it can be stopped."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from layerdrift.contract.errors import UnavailableError
from workers import webhook_dispatcher
from workers.webhook_dispatcher import WebhookDispatcher

PATIENCE = 10.0
"""Seconds that a test waits for the thread before it fails."""


class Sender:
    """Fails twice, then works."""

    def __init__(self, *_: Any) -> None:
        self.failures: list[Exception] = [redis.ConnectionError("gone"), UnavailableError("gone")]
        self.worked, self.stopped_meanwhile = Event(), Event()
        self.until_stopped = False

    def send_due(self, stopped: Callable[[], bool]) -> int:
        if self.failures:
            raise self.failures.pop(0)
        self.worked.set()
        while self.until_stopped and not stopped():
            pass
        if stopped():
            self.stopped_meanwhile.set()
        return 0


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Sender:
    made = Sender()
    monkeypatch.setattr(webhook_dispatcher, "WebhookSender", lambda *_: made)
    monkeypatch.setattr(WebhookDispatcher, "seconds", 0.001)
    return made


@pytest.fixture
def dispatcher(sender: Sender) -> WebhookDispatcher:
    return WebhookDispatcher(cast(Any, SimpleNamespace(jobs=None, webhook_queue=None, webhooks=None)))


def test_servers_that_are_away_do_not_end_the_thread(sender: Sender, dispatcher: WebhookDispatcher) -> None:
    dispatcher.start()
    assert sender.worked.wait(PATIENCE)
    assert sender.failures == []
    dispatcher.stop()


def test_sending_hears_that_it_is_to_stop(
    sender: Sender, dispatcher: WebhookDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.until_stopped = True
    dispatcher.start()
    assert sender.worked.wait(PATIENCE)
    monkeypatch.setattr(WebhookDispatcher, "seconds", PATIENCE)
    dispatcher.stop()
    assert sender.stopped_meanwhile.is_set()
    assert not dispatcher._thread.is_alive()
