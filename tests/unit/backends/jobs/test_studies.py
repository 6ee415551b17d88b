"""Studies and the jobs of their members."""

from __future__ import annotations

import pytest

from backends.jobs.studies import members_of, ready
from layerdrift.contract.analysis import Status
from tests.builders.stores import MemoryJobs
from tests.builders.study_records import study_record

DONE, FAILED, RUNNING = Status.SUCCEEDED, Status.FAILED, Status.RUNNING


@pytest.mark.parametrize(
    ("statuses", "expected"), [((DONE, DONE), True), ((DONE, FAILED), True), ((DONE, RUNNING), False)]
)
def test_a_study_can_be_finished_once_all_members_have_ended(statuses: tuple[Status, ...], expected: bool) -> None:
    study, jobs = study_record(statuses)
    assert ready(MemoryJobs(*jobs), study) is expected


def test_a_member_that_was_deleted_keeps_nobody_waiting() -> None:
    study, jobs = study_record((DONE, RUNNING))
    assert members_of(MemoryJobs(jobs[0]), study) == [jobs[0], None]
    assert ready(MemoryJobs(jobs[0]), study)


def test_another_tenants_job_is_no_member() -> None:
    study, jobs = study_record((DONE, DONE))
    foreign = jobs[1].model_copy(update={"tenant": "other"})
    assert members_of(MemoryJobs(jobs[0], foreign), study) == [jobs[0], None]
