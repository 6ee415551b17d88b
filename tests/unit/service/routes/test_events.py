"""What is told before a stream begins and where it ends; streams out of Redis: tests/e2e/test_api.py."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from fastapi.testclient import TestClient

from backends.jobs.records import JobRecord
from backends.jobs.store import JobStore
from layerdrift.contract.analysis import Status
from layerdrift.contract.key import Scope
from service.http.concurrency import ConcurrencyLimit
from service.routes import events
from tests.builders.records import record
from tests.builders.service import ServiceDeployment, api
from tests.builders.stores import MemoryJobs

ID = "an_" + "a" * 26


class Streams:
    """Stands for what Redis holds: remembers where each stream was to begin."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []

    async def events(self, url: str, jobs: JobStore, found: JobRecord, position: str) -> AsyncIterator[str]:
        self.begun.append((found.id, position))
        yield "event: done\ndata: {}\n\n"


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()
    monkeypatch.setattr(events, "_events", made.events)
    return made


@pytest.fixture
def deployment() -> ServiceDeployment:
    return ServiceDeployment(record(analysis_id=ID))


@pytest.fixture
def http(deployment: ServiceDeployment) -> TestClient:
    return api(deployment, events.router)


def test_a_stream_is_handed_on_at_once_by_proxies_and_kept_by_none(streams: Streams, http: TestClient) -> None:
    answer = http.get(f"/v1/analyses/{ID}/events")
    assert answer.text == "event: done\ndata: {}\n\n"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")


@pytest.mark.parametrize(
    ("given", "position"),
    [
        (None, "0"),
        ("1700000000000-0", "1700000000000-0"),
        ("9" * 18 + "-" + "9" * 18, "9" * 18 + "-" + "9" * 18),
        ("", "0"),
        ("0", "0"),
        ("$", "0"),
        ("banana", "0"),
        ("-1-0", "0"),
        ("1-0-0", "0"),
        ("9" * 19 + "-0", "0"),
    ],
)
def test_a_stream_resumes_after_an_event_and_begins_anew_after_an_id_that_is_none(
    streams: Streams, http: TestClient, given: str | None, position: str
) -> None:
    headers = {} if given is None else {"Last-Event-ID": given}
    assert http.get("/v1/analyses/latest/events", headers=headers).status_code == 200
    assert streams.begun == [(ID, position)]


def test_an_analysis_that_is_not_there_is_a_problem_and_no_stream(
    streams: Streams, deployment: ServiceDeployment, http: TestClient
) -> None:
    deployment.sign_in(http, Scope.READ, tenant="other")
    answer = http.get(f"/v1/analyses/{ID}/events")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert streams.begun == []


def test_streams_count_for_as_long_as_they_are_open(
    streams: Streams, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = ConcurrencyLimit("streams of events", of_client=1, in_all=9)
    monkeypatch.setattr(events, "STREAMS", limit)
    with limit.held("default"):
        refused = http.get(f"/v1/analyses/{ID}/events")
        assert (refused.status_code, refused.json()["title"]) == (429, "Too many requests")
    assert [http.get(f"/v1/analyses/{ID}/events").status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("status", list(Status))
def test_of_a_job_whose_events_are_gone_its_end_alone_is_told(status: Status) -> None:
    jobs = MemoryJobs(record(analysis_id=ID).model_copy(update={"status": status}))
    told = events._end(jobs, ID)
    assert (None if told is None else json.loads(told)) == (
        {"status": status.value, "error": None} if status.final else None
    )


def test_of_a_job_that_was_deleted_meanwhile_that_is_told() -> None:
    assert json.loads(events._end(MemoryJobs(), ID) or "") == {"status": "deleted", "error": None}
