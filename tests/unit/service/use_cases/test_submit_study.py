"""A study that is posted again: what runs again, and what it may cancel."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from backends.jobs.records import JobRecord, StudyRecord
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, RateError
from service.use_cases import submit_study as module
from service.use_cases.submit_study import StudySubmission, submit_study
from tests.builders.service import ServiceDeployment
from tests.builders.stores import MemoryStudies
from tests.builders.study_records import study_record

DONE, FAILED, RUNNING = Status.SUCCEEDED, Status.FAILED, Status.RUNNING


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Posts the study of some jobs, whose pins are known already."""

    def post(made: ServiceDeployment, study: StudyRecord, jobs: list[JobRecord], open_jobs: int = 100) -> Any:
        fresh = [job.model_copy(update={"status": Status.QUEUED, "finished_at": None}) for job in jobs]
        monkeypatch.setattr(module, "_prepared", lambda *_: fresh)
        submission = StudySubmission(
            tenant="default", submitted_by="", open_jobs=open_jobs, priority=5, trace=None, request=study.request
        )
        return submit_study(made.given, submission)

    return post


def standing(*jobs: JobRecord) -> ServiceDeployment:
    made = ServiceDeployment(*jobs)
    made.studies = MemoryStudies()
    return made


def test_a_new_study_makes_its_analyses_and_the_same_again_makes_none(posted: Any) -> None:
    study, jobs = study_record((RUNNING, RUNNING))
    made = standing()
    record, new = posted(made, study, jobs)
    assert (new, [member.made for member in record.members]) == (True, [True, True])
    again, new = posted(made, study, jobs)
    assert (again, new) == (record, False)
    assert made.queue.announced == [job.id for job in jobs]


def test_a_study_of_finished_analyses_can_be_finished_at_once(posted: Any) -> None:
    study, jobs = study_record((DONE, DONE))
    made = standing(*jobs)
    record, new = posted(made, study, jobs)
    assert (new, [member.made for member in record.members]) == (True, [False, False])
    assert made.queue.announced == [record.id]


def test_failed_members_run_again_and_the_report_is_withdrawn(posted: Any) -> None:
    study, jobs = study_record((DONE, FAILED))
    made = standing(*jobs)
    first, _ = posted(made, study, jobs)
    made.jobs.records[jobs[1].id] = jobs[1].ended(FAILED)
    made.studies.records[first.id] = first.ended(DONE)
    made.reports.finished[first.owned, "json"] = b"{}"
    again, new = posted(made, study, jobs)
    assert (again.id, again.status, new) == (first.id, Status.QUEUED, True)
    assert [member.made for member in again.members] == [False, True]
    assert made.reports.finished == {}


def test_a_member_that_was_mended_elsewhere_mends_the_study(posted: Any) -> None:
    study, jobs = study_record((DONE, DONE))
    made = standing(*jobs)
    first, _ = posted(made, study, jobs)
    ended = first.model_copy(update={"started_at": first.created_at}).ended(DONE)
    made.studies.records[first.id] = ended
    for job, seconds in zip(jobs, (-60, 60), strict=True):
        at = first.created_at + timedelta(seconds=seconds)
        made.jobs.records[job.id] = job.model_copy(update={"finished_at": at})
    again, new = posted(made, study, jobs)
    assert (again.status, new) == (Status.QUEUED, True)
    made.studies.records[first.id] = ended
    made.jobs.records[jobs[1].id] = jobs[1].model_copy(update={"finished_at": first.created_at})
    assert posted(made, study, jobs) == (ended, False)


def test_what_a_study_made_stays_its_own_when_it_is_posted_again(posted: Any) -> None:
    study, jobs = study_record((RUNNING, RUNNING))
    made = standing()
    posted(made, study, jobs)
    made.jobs.records[jobs[0].id] = jobs[0].ended(FAILED)
    again, _ = posted(made, study, jobs)
    assert [member.made for member in again.members] == [True, True]


def test_nothing_is_stored_while_a_member_is_being_cancelled_or_beyond_the_limit(posted: Any) -> None:
    study, jobs = study_record((FAILED, RUNNING))
    made = standing(jobs[0], jobs[1].model_copy(update={"cancel_requested": True}))
    with pytest.raises(ConflictError, match="is being cancelled"):
        posted(made, study, jobs)
    assert made.jobs.records[jobs[0].id].status is FAILED
    fresh = standing()
    with pytest.raises(RateError, match="the study makes 2 more; the limit of this key is 1"):
        posted(fresh, study, jobs, open_jobs=1)
    assert (fresh.jobs.records, made.studies.records, fresh.studies.records) == ({}, {}, {})
