"""Looks at the open jobs: which are announced again."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.jobs.records import JobRecord, NewerRecordError
from layerdrift.contract.analysis import Status
from tests.builders.records import record
from tests.builders.stores import MemoryDeployment
from workers.reconciler import PATIENCE, Reconciler


@pytest.fixture
def made(tmp_path: Path) -> MemoryDeployment:
    return MemoryDeployment(tmp_path, record(analysis_id="an_1"), lease_seconds=60)


@pytest.fixture
def reconciler(made: MemoryDeployment) -> Reconciler:
    return Reconciler(made.given)


def look_often(reconciler: Reconciler, times: int = PATIENCE) -> list[list[str]]:
    return [reconciler.look() for _ in range(times)]


def test_a_job_that_nobody_holds_is_announced_once_after_some_looks(
    made: MemoryDeployment, reconciler: Reconciler
) -> None:
    assert look_often(reconciler, PATIENCE + 2) == [*[[]] * (PATIENCE - 1), ["an_1"], [], []]
    assert made.queue.announced == ["an_1"]


def test_a_job_that_is_deleted_meanwhile_keeps_no_other_waiting(
    made: MemoryDeployment, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made.jobs, "open_ids", lambda: ["an_0", "an_1"])
    look_often(reconciler)
    assert made.queue.announced == ["an_1"]


def test_a_job_that_was_held_in_between_has_its_looks_counted_anew(
    made: MemoryDeployment, reconciler: Reconciler
) -> None:
    look_often(reconciler, PATIENCE - 1)
    made.leases.holders["an_1"] = "somebody"
    assert reconciler.look() == []
    del made.leases.holders["an_1"]
    assert look_often(reconciler) == [*[[]] * (PATIENCE - 1), ["an_1"]]


def test_a_queued_job_behind_others_waits_but_a_running_one_that_nobody_holds_is_announced(
    made: MemoryDeployment, reconciler: Reconciler
) -> None:
    made.queue.ahead = 1
    assert look_often(reconciler, PATIENCE + 1) == [[]] * (PATIENCE + 1)
    made.jobs.update("an_1", lambda found: found.model_copy(update={"status": Status.RUNNING}))
    look_often(reconciler)
    assert made.queue.announced == ["an_1"]


def test_a_job_that_has_ended_is_not_announced(made: MemoryDeployment, reconciler: Reconciler) -> None:
    made.jobs.update("an_1", lambda found: found.ended(Status.FAILED))
    look_often(reconciler)
    assert made.queue.announced == []


def test_of_two_reconcilers_one_announces(made: MemoryDeployment, reconciler: Reconciler) -> None:
    look_often(reconciler)
    look_often(Reconciler(made.given))
    assert made.queue.announced == ["an_1"]


def test_a_job_of_a_later_version_is_left_to_its_workers_and_keeps_no_other_waiting(
    made: MemoryDeployment, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = record(analysis_id="an_0")
    made.jobs.records["an_0"] = newer
    find = made.jobs.find

    def refusing(id_: str, tenant: str | None = None) -> JobRecord | None:
        if id_ == "an_0":
            raise NewerRecordError("a later version wrote it")
        return find(id_, tenant)

    monkeypatch.setattr(made.jobs, "find", refusing)
    assert look_often(reconciler)[-1] == ["an_1"]
    assert made.jobs.records["an_0"] is newer
