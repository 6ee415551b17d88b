"""What becomes of a job's record, whatever its stages do. The stages themselves are replaced by a function."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import torch

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.storage import key_names
from layerdrift.contract.analysis import StageName, Status
from layerdrift.contract.errors import InputError, UnavailableError
from layerdrift.contract.report import Report
from tests.builders.records import record
from tests.builders.reports import report
from tests.builders.stores import MemoryDeployment
from workers import faults
from workers import job as module
from workers.job import run_job
from workers.progress_writer import ProgressWriter

ID = "an_1"
Stages = Callable[[MemoryDeployment, ProgressWriter, Path], Report]


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test process is no worker: its threads and its garbage stay as they are."""
    monkeypatch.setattr(module, "start_threads", lambda: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)


@pytest.fixture
def made(tmp_path: Path) -> MemoryDeployment:
    return MemoryDeployment(tmp_path, record(analysis_id=ID), max_attempts=3)


@pytest.fixture
def run(made: MemoryDeployment, monkeypatch: pytest.MonkeyPatch) -> Callable[[Stages], JobRecord]:
    """Runs the job with such stages; its record afterwards."""

    def run_with(stages: Stages) -> JobRecord:
        def run_stages(_: Deployment, __: JobRecord, folder: Path, writer: ProgressWriter) -> Report:
            folder.mkdir(parents=True)
            return stages(made, writer, folder)

        monkeypatch.setattr(module, "run_stages", run_stages)
        run_job(made.given, ID)
        return made.jobs.get(ID)

    return run_with


def sound(_: MemoryDeployment, writer: ProgressWriter, __: Path) -> Report:
    with writer.stage(StageName.RESOLVE):
        return report()


def failing(error: BaseException) -> Stages:
    def stages(_: MemoryDeployment, writer: ProgressWriter, __: Path) -> Report:
        with writer.stage(StageName.RESOLVE):
            raise error

    return stages


def never(*_: object) -> Report:
    raise AssertionError("the stages of this job must not run")


def test_a_job_that_runs_through_succeeds_with_its_drift_and_a_verdict(
    made: MemoryDeployment, run: Callable[[Stages], JobRecord]
) -> None:
    found = run(sound)
    assert (found.status, found.attempts, found.error) == (Status.SUCCEEDED, 1, None)
    assert found.drift == [layer.drift for layer in report().layers]
    assert found.verdict is not None
    assert found.started_at is not None
    assert found.finished_at is not None
    assert found.progress.stages[0].status == "succeeded"
    assert made.leases.holders == {}
    assert list(made.settings.scratch.iterdir()) == []


def test_the_scratch_of_a_job_that_failed_is_removed_too(
    made: MemoryDeployment, run: Callable[[Stages], JobRecord]
) -> None:
    run(failing(OSError("disk full")))
    assert list(made.settings.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind", "status", "detail"),
    [
        (InputError.at("/base/uri", "no such model"), "input", 422, "no such model"),
        (ZeroDivisionError("by zero"), "stage", 500, "resolve failed with ZeroDivisionError: by zero"),
    ],
)
def test_an_error_in_a_stage_becomes_the_problem_of_the_record(
    run: Callable[[Stages], JobRecord], error: Exception, kind: str, status: int, detail: str
) -> None:
    found = run(failing(error))
    assert (found.status, found.drift, found.verdict) == (Status.FAILED, None, None)
    assert found.error is not None
    assert found.error.type == f"urn:layerdrift:{kind}"
    assert (found.error.status, found.error.stage, found.error.detail) == (status, "resolve", detail)


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), UnavailableError("gone")])
def test_a_server_that_is_away_hands_the_job_back_with_what_it_has_kept(
    made: MemoryDeployment, run: Callable[[Stages], JobRecord], error: Exception
) -> None:
    kept = key_names.unfinished_prefix(made.jobs.get(ID).owned) + "run/latest.json"
    made.blobs.objects[kept] = b"{}"
    found = run(failing(error))
    assert (found.status, found.error, found.attempts) == (Status.RUNNING, None, 1)
    assert made.leases.holders == {}
    assert kept in made.blobs.objects


def test_what_unfinished_trainings_and_the_preliminary_report_kept_is_gone_after_the_end(
    made: MemoryDeployment, run: Callable[[Stages], JobRecord]
) -> None:
    owned = made.jobs.get(ID).owned
    others = key_names.unfinished_prefix(key_names.Owned(owned.tenant, "an_2")) + "run/latest.json"
    made.blobs.objects |= {key_names.unfinished_prefix(owned) + "run/latest.json": b"{}", others: b"{}"}
    made.reports.put_preliminary(owned, "json", b"{}")
    run(failing(ZeroDivisionError()))
    assert list(made.blobs.objects) == [others]
    assert made.reports.early == {}


def test_an_outage_of_the_store_at_the_very_end_does_not_undo_the_end(
    made: MemoryDeployment, run: Callable[[Stages], JobRecord]
) -> None:
    def stages(deployment: MemoryDeployment, writer: ProgressWriter, folder: Path) -> Report:
        deployment.blobs.away = True
        return sound(deployment, writer, folder)

    assert run(stages).status is Status.SUCCEEDED
    assert made.leases.holders == {}


def test_a_job_that_is_cancelled_while_it_runs_ends_cancelled_without_an_error(
    run: Callable[[Stages], JobRecord],
) -> None:
    def stages(deployment: MemoryDeployment, writer: ProgressWriter, folder: Path) -> Report:
        deployment.jobs.cancel(ID)
        return sound(deployment, writer, folder)

    found = run(stages)
    assert (found.status, found.error, found.drift) == (Status.CANCELLED, None, None)


def test_a_worker_that_lost_the_job_leaves_its_end_to_another(run: Callable[[Stages], JobRecord]) -> None:
    """Another worker has taken the job, as a next attempt, while this one still came to its report."""

    def stages(deployment: MemoryDeployment, writer: ProgressWriter, folder: Path) -> Report:
        found = sound(deployment, writer, folder)
        deployment.jobs.update(ID, lambda record: record.model_copy(update={"attempts": record.attempts + 1}))
        return found

    found = run(stages)
    assert (found.status, found.attempts, found.drift) == (Status.RUNNING, 2, None)


def test_a_stage_that_fails_after_the_lease_was_lost_is_no_failure_of_the_job(
    run: Callable[[Stages], JobRecord],
) -> None:
    def stages(_: MemoryDeployment, writer: ProgressWriter, __: Path) -> Report:
        with writer.stage(StageName.RESOLVE):
            writer._lease.lost.set()
            raise FileNotFoundError("rows of the scratch")

    found = run(stages)
    assert (found.status, found.error) == (Status.RUNNING, None)


def test_an_end_that_came_from_elsewhere_is_not_overwritten(run: Callable[[Stages], JobRecord]) -> None:
    def stages(deployment: MemoryDeployment, writer: ProgressWriter, folder: Path) -> Report:
        found = sound(deployment, writer, folder)
        deployment.jobs.update(ID, lambda record: record.ended(Status.CANCELLED))
        return found

    found = run(stages)
    assert (found.status, found.drift) == (Status.CANCELLED, None)


def test_a_job_that_another_worker_holds_is_not_touched(
    made: MemoryDeployment, run: Callable[[Stages], JobRecord]
) -> None:
    made.leases.holders[ID] = "another"
    before = made.jobs.get(ID)
    assert run(never) == before
    assert made.jobs.updates == 0


@pytest.mark.parametrize(
    ("changes", "status", "problem"),
    [
        ({"status": Status.SUCCEEDED}, Status.SUCCEEDED, None),
        ({"status": Status.RUNNING, "cancel_requested": True, "attempts": 3}, Status.CANCELLED, None),
        ({"status": Status.RUNNING, "attempts": 3}, Status.FAILED, "urn:layerdrift:worker-lost"),
    ],
)
def test_a_job_that_is_at_its_end_already_does_not_run(
    made: MemoryDeployment,
    run: Callable[[Stages], JobRecord],
    changes: dict[str, object],
    status: Status,
    problem: str | None,
) -> None:
    made.jobs.update(ID, lambda found: found.model_copy(update=changes))
    found = run(never)
    assert (found.status, found.error and found.error.type) == (status, problem)
    assert found.attempts == changes.get("attempts", 0)


def test_the_last_attempt_is_made_and_keeps_when_the_first_one_began(
    made: MemoryDeployment, run: Callable[[Stages], JobRecord]
) -> None:
    began = made.jobs.get(ID).created_at
    changes = {"status": Status.RUNNING, "attempts": 2, "started_at": began}
    made.jobs.update(ID, lambda found: found.model_copy(update=changes))
    found = run(sound)
    assert (found.status, found.attempts, found.started_at) == (Status.SUCCEEDED, 3, began)


def test_the_pace_of_the_stages_is_recorded_but_not_where_earlier_work_was_taken_over(
    made: MemoryDeployment, run: Callable[[Stages], JobRecord]
) -> None:
    operations = {StageName.RESOLVE: 5.0, StageName.FINETUNE: 7.0, StageName.SAE: 9.0}
    made.jobs.update(ID, lambda found: found.model_copy(update={"operations": operations}))

    def reusing(*reused: StageName) -> Stages:
        def stages(deployment: MemoryDeployment, writer: ProgressWriter, folder: Path) -> Report:
            found = sound(deployment, writer, folder)
            writer.seconds |= {"resolve": 0.5, "finetune": 3.0, "sae": 4.0}
            writer.reused += reused
            return found

        return stages

    run(reusing(StageName.FINETUNE, StageName.SAE))
    assert made.rates.recorded == {StageName.RESOLVE: 0.5}
    made.jobs.update(ID, lambda found: found.model_copy(update={"status": Status.QUEUED}))
    run(reusing())
    assert made.rates.recorded == {StageName.RESOLVE: 0.5, StageName.FINETUNE: 3.0, StageName.SAE: 4.0}


def test_a_job_runs_without_an_estimate(made: MemoryDeployment, run: Callable[[Stages], JobRecord]) -> None:
    made.rates.away = True
    found = run(sound)
    assert (found.status, found.progress.seconds_left) == (Status.SUCCEEDED, None)


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("an illegal memory access was encountered"), RuntimeError("CUDA error: device lost")],
    ids=["as torch calls it", "as a library does"],
)
def test_a_broken_device_ends_the_process_and_leaves_the_job_to_another(
    error: RuntimeError, made: MemoryDeployment, run: Callable[[Stages], JobRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    monkeypatch.setattr(faults, "end_process", lambda: ended.append(dict(made.leases.holders)))

    def stages(_: MemoryDeployment, writer: ProgressWriter, __: Path) -> Report:
        with writer.stage(StageName.EXTRACT):
            raise error

    found = run(stages)
    assert (found.status, found.attempts, found.error) == (Status.RUNNING, 1, None)
    assert ended == [{}]  # the lease was given back before


def test_too_little_memory_of_the_device_fails_the_job(
    run: Callable[[Stages], JobRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "end_process", lambda: pytest.fail("the process goes on"))

    def stages(_: MemoryDeployment, writer: ProgressWriter, __: Path) -> Report:
        with writer.stage(StageName.EXTRACT):
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert run(stages).status is Status.FAILED
