"""Turns of tenants on a real Redis: as many messages as jobs, several workers, and every job is run once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest

from backends.deployment import Deployment
from layerdrift.contract.analysis import Status
from tests.builders.records import record
from workers import job as job_module
from workers import tasks
from workers.lease_keeper import leased


class Runs:
    """Stands for the run of a job: leased as a real one, and ended at once."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._lock = Lock()
        self.order: list[str] = []

    def __call__(self, deployment: Deployment, id_: str) -> bool:
        with leased(self._deployment, self._deployment.jobs, id_) as lease:
            if lease is None or self._deployment.jobs.get(id_).status.final:
                return False
            job = self._deployment.jobs.update(id_, lambda found: found.model_copy(update={"status": Status.RUNNING}))
            self._deployment.leases.note_turn(job.tenant)
            with self._lock:
                self.order.append(job.id)
            time.sleep(0.01)
            self._deployment.jobs.update(id_, lambda found: found.ended(Status.SUCCEEDED))
        return True


@pytest.fixture
def runs(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs(deployment)
    monkeypatch.setattr(job_module, "run_job", made)
    monkeypatch.setattr(tasks, "deployment", lambda: deployment)
    return made


def submitted(deployment: Deployment, tenant: str, count: int, age: float) -> list[str]:
    made = [record(age_seconds=age - number).model_copy(update={"tenant": tenant}) for number in range(count)]
    for one in made:
        deployment.jobs.submit(one)
    return [one.id for one in made]


def test_one_worker_serves_two_tenants_in_turn(deployment: Deployment, runs: Runs) -> None:
    many, few = submitted(deployment, "many", 4, 1000), submitted(deployment, "few", 2, 100)
    for id_ in (*many, *few):  # the messages, in the order in which they came
        tasks.analyse(id_)
    assert runs.order == [many[0], few[0], many[1], few[1], many[2], many[3]]
    assert deployment.jobs.open_ids() == []


def test_several_workers_run_every_job_once(deployment: Deployment, runs: Runs) -> None:
    ids = [id_ for number in range(3) for id_ in submitted(deployment, f"tenant-{number}", 8, 1000 * number)]
    with ThreadPoolExecutor(4) as workers:
        list(workers.map(tasks.analyse, ids))
    assert sorted(runs.order) == sorted(ids)
    assert deployment.jobs.open_ids() == []


def test_a_message_of_a_job_that_was_deleted_still_brings_another(deployment: Deployment, runs: Runs) -> None:
    (id_,) = submitted(deployment, "few", 1, 10)
    tasks.analyse("an_" + "z" * 26)
    assert runs.order == [id_]
