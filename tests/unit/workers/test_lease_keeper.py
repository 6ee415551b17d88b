"""Leases of jobs: who holds them, when they are lost, and what becomes of a cancelled job that is stuck."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from layerdrift.contract.analysis import Status
from tests.builders.records import record
from tests.builders.stores import MemoryDeployment
from workers import lease_keeper
from workers.lease import Lease
from workers.lease_keeper import leased

PATIENCE = 10.0
"""Seconds that a test waits for a thread before it fails."""


@pytest.fixture
def made(tmp_path: Path) -> MemoryDeployment:
    running = record(analysis_id="an_1").model_copy(update={"status": Status.RUNNING})
    return MemoryDeployment(tmp_path, running, lease_seconds=0.03, cancel_seconds=60)


@pytest.fixture
def process_ended(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Set where the process would have ended."""
    ended = Event()
    monkeypatch.setattr(lease_keeper, "end_process", ended.set)
    return ended


def test_a_job_that_somebody_else_holds_is_not_leased_and_stays_theirs(made: MemoryDeployment) -> None:
    made.leases.holders["an_1"] = "another"
    with leased(made.given, made.given.jobs, "an_1") as lease:
        assert lease is None
    assert made.leases.holders == {"an_1": "another"}


def test_a_lease_is_given_back_whatever_happens_inside(made: MemoryDeployment) -> None:
    def look_and_fail(lease: Lease | None) -> None:
        assert lease is not None
        assert made.leases.holders == {"an_1": lease.owner}
        assert not lease.lost.is_set()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), leased(made.given, made.given.jobs, "an_1") as lease:
        look_and_fail(lease)
    assert made.leases.holders == {}


def test_two_holders_have_different_names(made: MemoryDeployment) -> None:
    owners = []
    for _ in range(2):
        with leased(made.given, made.given.jobs, "an_1") as lease:
            assert lease is not None
            owners.append(lease.owner)
    assert owners[0] != owners[1]


def test_a_lease_that_went_to_another_is_lost_and_is_not_taken_from_them(made: MemoryDeployment) -> None:
    with leased(made.given, made.given.jobs, "an_1") as lease:
        assert lease is not None
        made.leases.holders["an_1"] = "another"
        assert lease.lost.wait(PATIENCE)
    assert made.leases.holders == {"an_1": "another"}


def test_an_outage_of_redis_is_no_lost_lease_and_no_error_at_the_end(made: MemoryDeployment) -> None:
    asked = Event()

    def renew(analysis_id: str, owner: str, seconds: float) -> bool:
        if made.leases.away:
            asked.set()
        return type(made.leases).renew(made.leases, analysis_id, owner, seconds)

    made.leases.renew = renew  # type: ignore[method-assign]
    with leased(made.given, made.given.jobs, "an_1") as lease:
        assert lease is not None
        made.leases.away = True
        assert asked.wait(PATIENCE)
        asked.clear()
        assert asked.wait(PATIENCE)  # it goes on asking
        assert not lease.lost.is_set()


def test_a_cancelled_job_that_is_stuck_is_ended_with_its_process(tmp_path: Path, process_ended: Event) -> None:
    running = record(analysis_id="an_1").model_copy(update={"status": Status.RUNNING, "cancel_requested": True})
    made = MemoryDeployment(tmp_path, running, lease_seconds=60, cancel_seconds=0.03)
    with leased(made.given, made.given.jobs, "an_1"):
        assert process_ended.wait(PATIENCE)
        assert made.jobs.get("an_1").status is Status.CANCELLED
        assert made.leases.holders == {}


def test_a_cancelled_job_that_has_just_ended_keeps_its_end_and_its_process(
    tmp_path: Path, process_ended: Event
) -> None:
    done = record(analysis_id="an_1").model_copy(update={"status": Status.SUCCEEDED, "cancel_requested": True})
    made = MemoryDeployment(tmp_path, done, lease_seconds=60, cancel_seconds=0.03)
    given_up = Event()

    def update(*arguments: object) -> object:
        given_up.set()
        return type(made.jobs).update(made.jobs, *arguments)  # type: ignore[arg-type]

    made.jobs.update = update  # type: ignore[method-assign, assignment]
    with leased(made.given, made.given.jobs, "an_1"):
        assert given_up.wait(PATIENCE)
    assert made.jobs.get("an_1").status is Status.SUCCEEDED
    assert not process_ended.is_set()


def test_a_job_that_nobody_cancelled_is_left_to_run(made: MemoryDeployment, process_ended: Event) -> None:
    quick = MemoryDeployment(made.settings.home, made.jobs.get("an_1"), lease_seconds=60, cancel_seconds=0.01)
    looks = []
    looked = Event()

    def find(analysis_id: str, tenant: str | None = None) -> object:
        looks.append(analysis_id)
        if len(looks) > 8:
            looked.set()
        return quick.jobs.records[analysis_id]

    quick.jobs.find = find  # type: ignore[method-assign, assignment]
    with leased(quick.given, quick.given.jobs, "an_1"):
        assert looked.wait(PATIENCE)
    assert not process_ended.is_set()
    assert quick.jobs.records["an_1"].status is Status.RUNNING


def test_a_job_that_hangs_is_handed_on_and_its_process_ends(tmp_path: Path, process_ended: Event) -> None:
    running = record(analysis_id="an_1").model_copy(update={"status": Status.RUNNING})
    made = MemoryDeployment(tmp_path, running, lease_seconds=0.03, cancel_seconds=60, stall_seconds=0.05)
    with leased(made.given, made.given.jobs, "an_1") as lease:
        assert lease is not None
        assert process_ended.wait(PATIENCE)
        assert lease.lost.is_set()
        assert made.leases.holders == {}
    assert made.jobs.get("an_1").status is Status.RUNNING  # for the next worker


def test_a_job_that_hangs_is_ended_also_while_redis_is_away(tmp_path: Path, process_ended: Event) -> None:
    made = MemoryDeployment(
        tmp_path, record(analysis_id="an_1"), lease_seconds=0.03, cancel_seconds=60, stall_seconds=0.05
    )
    with leased(made.given, made.given.jobs, "an_1"):
        made.leases.away = True
        assert process_ended.wait(PATIENCE)


def test_a_job_that_tells_its_progress_is_left_to_run(tmp_path: Path, process_ended: Event) -> None:
    made = MemoryDeployment(
        tmp_path, record(analysis_id="an_1"), lease_seconds=0.03, cancel_seconds=60, stall_seconds=0.5
    )
    with leased(made.given, made.given.jobs, "an_1") as lease:
        assert lease is not None
        for _ in range(20):
            lease.pulse.beat()
            assert not process_ended.wait(0.05)
