"""Time that a worker counts for a tenant."""

from __future__ import annotations

import pytest

from backends.usage import Device
from layerdrift.contract.errors import UnavailableError
from tests.builders.stores import MemoryUsage
from workers.meter import Meter


class Away(MemoryUsage):
    """Usage that cannot be counted the first time."""

    failures = 1

    def add(self, tenant: str, device: Device, seconds: float, now: float | None = None) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("S3 could not be reached")
        super().add(tenant, device, seconds)


def test_each_tick_counts_the_time_since_the_last_one() -> None:
    usage, times = MemoryUsage(), iter([10.0, 12.5, 12.5, 20.0])
    meter = Meter(usage, "search", "gpu", lambda: next(times))
    for _ in range(3):
        meter.tick()
    assert usage.counted == {("search", "gpu"): 10.0}


def test_what_could_not_be_counted_is_counted_later() -> None:
    usage, times = Away(), iter([0.0, 5.0, 8.0])
    meter = Meter(usage, "search", "cpu", lambda: next(times))
    with pytest.raises(UnavailableError):
        meter.tick()
    meter.tick()
    assert usage.counted == {("search", "cpu"): 8.0}
