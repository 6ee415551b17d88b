"""Whose turn it is: no tenant keeps the others waiting for all of its jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.jobs.records import JobRecord, NewerRecordError
from layerdrift.contract.analysis import Status
from tests.builders.records import record
from tests.builders.stores import MemoryDeployment
from workers.fair_share import in_turn


def job(id_: str, tenant: str, age: float, **changes: object) -> JobRecord:
    return record(age_seconds=age, analysis_id=id_).model_copy(update={"tenant": tenant, **changes})


def served(deployment: MemoryDeployment) -> list[str]:
    """The order in which one worker takes the jobs, each message naming the oldest that is left."""
    order: list[str] = []
    while waiting := [one for one in deployment.jobs.open_ids() if one not in order]:
        id_ = next(in_turn(deployment.given, waiting[0]))
        taken = deployment.jobs.update(id_, lambda found: found.ended(Status.SUCCEEDED))
        deployment.leases.turns[taken.tenant] = float(len(order) + 1)
        order.append(id_)
    return order


def test_tenants_take_turns_whoever_came_first_with_how_many(tmp_path: Path) -> None:
    many = [job(f"an_a{number}", "a", 100 - number) for number in range(4)]
    few = [job(f"an_b{number}", "b", 10 - number) for number in range(2)]
    made = MemoryDeployment(tmp_path, *many, *few)
    assert served(made) == ["an_a0", "an_b0", "an_a1", "an_b1", "an_a2", "an_a3"]


def test_several_workers_serve_the_tenant_with_the_fewest_running(tmp_path: Path) -> None:
    running = [job(f"an_r{number}", "a", 50, status=Status.RUNNING) for number in range(2)]
    made = MemoryDeployment(tmp_path, *running, job("an_a", "a", 40), job("an_b", "b", 1))
    made.leases.holders = {one.id: "somebody" for one in running}
    made.leases.turns = {"a": 1.0, "b": 2.0}
    assert list(in_turn(made.given, "an_a")) == ["an_b", "an_a"]


def test_priority_comes_before_turns_and_age_after_them(tmp_path: Path) -> None:
    made = MemoryDeployment(
        tmp_path,
        job("an_old", "a", 100),
        job("an_new", "a", 1),
        job("an_urgent", "a", 0, priority=9),
        job("an_other", "b", 50),
    )
    made.leases.turns = {"a": 5.0}
    assert list(in_turn(made.given, "an_old")) == ["an_urgent", "an_other", "an_old", "an_new"]


def test_a_job_that_lost_its_worker_goes_on_when_it_is_announced_and_not_before(tmp_path: Path) -> None:
    lost, waits = job("an_lost", "a", 1, status=Status.RUNNING), job("an_waits", "a", 50)
    made = MemoryDeployment(tmp_path, lost, waits)
    assert list(in_turn(made.given, "an_lost")) == ["an_lost", "an_waits"]
    assert list(in_turn(made.given, "an_waits")) == ["an_waits"]


def test_a_job_that_is_held_is_nobodys_turn(tmp_path: Path) -> None:
    made = MemoryDeployment(tmp_path, job("an_1", "a", 9), job("an_2", "a", 5))
    made.leases.holders = {"an_1": "somebody"}
    assert list(in_turn(made.given, "an_2")) == ["an_2"]
    assert list(in_turn(made.given, "an_1")) == ["an_1", "an_2"]  # what it is found to be is the lease's to say


def test_a_record_of_a_later_version_is_left_to_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MemoryDeployment(tmp_path, job("an_1", "a", 9), job("an_2", "a", 5))
    find = made.jobs.find

    def refusing(id_: str, tenant: str | None = None) -> JobRecord | None:
        if id_ == "an_1":
            raise NewerRecordError("a later version wrote it")
        return find(id_, tenant)

    monkeypatch.setattr(made.jobs, "find", refusing)
    assert list(in_turn(made.given, "an_2")) == ["an_2"]
