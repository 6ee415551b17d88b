"""What the tests of the published package share: the service in memory."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from layerdrift.sdk import aio, calls, client
from tests.builders.http_service import HttpService


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> HttpService:
    """A service that every client reaches, whatever its URL; nobody sleeps."""
    made = HttpService()
    connection = calls.connection

    def connected(url: str | None, api_key: str | None, timeout: float) -> dict[str, Any]:
        return connection(url, api_key, timeout) | {"transport": httpx.MockTransport(made)}

    async def async_sleep(seconds: float) -> None:
        made.pauses.append(seconds)

    monkeypatch.setattr(calls, "connection", connected)
    monkeypatch.setattr(client, "sleep", made.pauses.append)
    monkeypatch.setattr(aio, "async_sleep", async_sleep)
    monkeypatch.delenv(calls.URL_VARIABLE, raising=False)
    monkeypatch.delenv(calls.KEY_VARIABLE, raising=False)
    return made
