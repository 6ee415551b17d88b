"""How things stand, as a scrape shows it. Counts of several processes together: tests/e2e/test_observability."""

from __future__ import annotations

from typing import cast

import pytest
import redis
from prometheus_client import REGISTRY

from backends.jobs.listing import JobListing
from backends.jobs.workers import WorkerRegistry
from backends.observability.metrics import FOLDER_VARIABLE, counted, standing
from layerdrift.contract.analysis import Status
from tests.builders.stores import MemoryJobs, MemoryQueue, MemoryUsage


class Counts(JobListing):
    """So many jobs of each status; of those that are not named, none."""

    def __init__(self, **by_status: int) -> None:
        super().__init__(cast(redis.Redis, None), MemoryJobs())
        self._by_status = by_status

    def count(self, status: Status) -> int:
        return self._by_status.get(status, 0)


class Listening(WorkerRegistry):
    """So many workers on each queue."""

    def __init__(self, **by_queue: int) -> None:
        self._by_queue = by_queue

    def listening(self, queue: str) -> int:
        return self._by_queue.get(queue, 0)


def test_jobs_are_shown_by_status_and_none_is_shown_as_zero() -> None:
    found = standing(Counts(queued=4, running=1), Listening(), MemoryQueue(), MemoryUsage())
    shown = {status.value: found.get_sample_value("layerdrift_jobs", {"status": status}) for status in Status}
    assert shown == {"queued": 4.0, "running": 1.0, "succeeded": 0.0, "failed": 0.0, "cancelled": 0.0}


def test_workers_are_shown_by_queue_and_announcements_in_all() -> None:
    queue = MemoryQueue()
    queue.ahead = 7
    found = standing(Counts(), Listening(cpu=3), queue, MemoryUsage())
    assert found.get_sample_value("layerdrift_queue_waiting") == 7.0
    shown = {name: found.get_sample_value("layerdrift_workers", {"queue": name}) for name in ("gpu", "cpu")}
    assert shown == {"gpu": 0.0, "cpu": 3.0}


def test_what_tenants_use_is_shown_of_those_that_are_known() -> None:
    usage = MemoryUsage()
    usage.add("search", "gpu", 90.0)
    usage.stored["search"] = 4096
    found = standing(Counts(), Listening(), MemoryQueue(), usage)
    shown = [
        found.get_sample_value("layerdrift_tenant_seconds", {"tenant": "search", "device": device})
        for device in ("gpu", "cpu")
    ]
    assert shown == [90.0, 0.0]
    assert found.get_sample_value("layerdrift_tenant_stored_bytes", {"tenant": "search"}) == 4096.0


def test_each_scrape_shows_how_things_stand_then() -> None:
    before, after = (standing(Counts(queued=count), Listening(), MemoryQueue(), MemoryUsage()) for count in (4, 0))
    shown = [found.get_sample_value("layerdrift_jobs", {"status": "queued"}) for found in (before, after)]
    assert shown == [4.0, 0.0]


def test_without_a_folder_a_process_reports_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert counted() is REGISTRY
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    assert counted() is REGISTRY
