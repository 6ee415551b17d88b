"""Which studies can be finished now."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.jobs.records import TrialRecord
from backends.jobs.studies import members_of, ready
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from tests.builders.stores import MemoryDeployment, MemoryStudies
from tests.builders.study_records import study_record
from workers.studies.waiting import announce_waiting

DONE, FAILED, RUNNING = Status.SUCCEEDED, Status.FAILED, Status.RUNNING


@pytest.mark.parametrize(
    ("statuses", "expected"), [((DONE, DONE), True), ((DONE, FAILED), True), ((DONE, RUNNING), False)]
)
def test_a_study_can_be_finished_once_all_members_have_ended(
    tmp_path: Path, statuses: tuple[Status, ...], expected: bool
) -> None:
    study, jobs = study_record(statuses)
    made = MemoryDeployment(tmp_path, *jobs)
    made.studies = MemoryStudies(study)
    assert ready(made.jobs, study) is expected
    announce_waiting(made.given, jobs[0])
    assert made.queue.announced == ([study.id] if expected else [])


def test_a_member_that_was_deleted_keeps_nobody_waiting(tmp_path: Path) -> None:
    study, jobs = study_record((DONE, DONE))
    made = MemoryDeployment(tmp_path, jobs[0])
    assert members_of(made.jobs, study) == [jobs[0], None]
    assert ready(made.jobs, study)


def test_a_trial_of_adapters_is_waited_for_too(tmp_path: Path) -> None:
    study, jobs = study_record((DONE, DONE))
    trial = TrialRecord(name="x", task="a", kind="all", layers=[1], rank=8, analysis_id="an_" + "t" * 26, made=True)
    study = study.model_copy(update={"trials": [trial]})
    running = jobs[0].model_copy(update={"id": trial.analysis_id, "status": RUNNING})
    made = MemoryDeployment(tmp_path, *jobs, running)
    made.studies = MemoryStudies(study)
    announce_waiting(made.given, jobs[0])
    assert made.queue.announced == []
    made.jobs.records[running.id] = running.model_copy(update={"status": FAILED})
    announce_waiting(made.given, running)
    assert made.queue.announced == [study.id]


def test_a_job_announces_its_own_studies_alone(tmp_path: Path) -> None:
    study, jobs = study_record((DONE, DONE))
    made = MemoryDeployment(tmp_path, *jobs)
    made.studies = MemoryStudies(study)
    announce_waiting(made.given, jobs[0].model_copy(update={"id": "an_" + "z" * 26}))
    announce_waiting(made.given, jobs[0].model_copy(update={"tenant": "other"}))
    assert made.queue.announced == []


def test_an_outage_leaves_it_to_the_reconciler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, jobs = study_record((DONE, DONE))
    made = MemoryDeployment(tmp_path, *jobs)
    made.studies = MemoryStudies(study)

    def away() -> list[str]:
        raise UnavailableError("Redis could not be reached")

    monkeypatch.setattr(made.studies, "open_ids", away)
    announce_waiting(made.given, jobs[0])
    assert made.queue.announced == []
