"""Counts the time that this process works for a tenant."""

from __future__ import annotations

import time
from collections.abc import Callable

from backends.usage import Device, UsageStore


class Meter:
    """Runs from when it is made; every `tick` counts the time since the last one."""

    def __init__(
        self, usage: UsageStore, tenant: str, device: Device, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._usage, self._tenant, self._device, self._now = usage, tenant, device, now
        self._since = now()

    def tick(self) -> None:
        """What raises counts the time later: redis.RedisError, UnavailableError."""
        now = self._now()
        self._usage.add(self._tenant, self._device, now - self._since)
        self._since = now
