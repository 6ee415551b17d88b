"""What the API shows of a study, and what its cancelling ends."""

from __future__ import annotations

import pytest

from backends.jobs.records import JobRecord, TrialRecord
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError
from service.use_cases.studies import cancel_study, shown
from tests.builders.service import ServiceDeployment
from tests.builders.stores import MemoryStudies
from tests.builders.studies import STUDY_ID, study_request
from tests.builders.study_records import study_record

QUEUED, RUNNING, DONE, FAILED = Status.QUEUED, Status.RUNNING, Status.SUCCEEDED, Status.FAILED


def standing(*statuses: Status, **changes: object) -> ServiceDeployment:
    study, jobs = study_record(statuses, **changes)
    made = ServiceDeployment(*jobs)
    made.studies = MemoryStudies(study)
    return made


@pytest.mark.parametrize(
    ("statuses", "stored", "expected"),
    [
        ((QUEUED, QUEUED), QUEUED, QUEUED),
        ((QUEUED, RUNNING), QUEUED, RUNNING),
        ((DONE, FAILED), QUEUED, RUNNING),
        ((DONE, DONE), DONE, DONE),
        ((QUEUED, QUEUED), Status.CANCELLED, Status.CANCELLED),
    ],
)
def test_a_study_runs_from_its_first_member_on(statuses: tuple[Status, ...], stored: Status, expected: Status) -> None:
    made = standing(*statuses, status=stored)
    assert shown(made.given, made.studies.get(STUDY_ID)).status is expected


def test_what_has_ended_is_done_whatever_its_progress_says() -> None:
    made = standing(DONE, FAILED, QUEUED, QUEUED)
    found = shown(made.given, made.studies.get(STUDY_ID))
    assert [member.fraction for member in found.members] == [1.0, 1.0, 0.0, 0.0]
    assert found.fraction == 0.5


def test_a_member_that_was_deleted_is_shown_as_failed() -> None:
    made = standing(DONE, DONE)
    del made.jobs.records["an_" + "b" * 26]
    member = shown(made.given, made.studies.get(STUDY_ID)).members[1]
    assert member.status is FAILED
    assert member.error is not None
    assert "was deleted" in member.error.detail


def test_cancelling_ends_what_the_study_made_and_nothing_that_has_ended() -> None:
    made = standing(DONE, RUNNING, QUEUED)
    assert cancel_study(made.given, STUDY_ID, "default").status is Status.CANCELLED
    found = [made.jobs.records[f"an_{letter * 26}"] for letter in "abc"]
    assert [one.status for one in found] == [DONE, RUNNING, Status.CANCELLED]
    assert found[1].cancel_requested
    with pytest.raises(ConflictError):
        cancel_study(made.given, STUDY_ID, "default")


def test_cancelling_leaves_analyses_of_others_and_of_other_studies() -> None:
    study, jobs = study_record((QUEUED, QUEUED, QUEUED))
    posted_alone = study.members[0].model_copy(update={"made": False})
    study = study.model_copy(update={"members": [posted_alone, *study.members[1:]]})
    other = study.model_copy(update={"id": "st_" + "b" * 26, "members": [study.members[1]]})
    made = ServiceDeployment(*jobs)
    made.studies = MemoryStudies(study, other)
    cancel_study(made.given, STUDY_ID, "default")
    assert [made.jobs.records[job.id].status for job in jobs] == [QUEUED, QUEUED, Status.CANCELLED]


def trial(job: JobRecord, made: bool = True) -> TrialRecord:
    return TrialRecord(name=job.id, task="a", kind="all", layers=[1], rank=8, analysis_id=job.id, made=made)


def test_cancelling_leaves_trials_that_others_asked_for_or_wait_for() -> None:
    study, jobs = study_record((DONE, DONE, QUEUED, QUEUED, QUEUED))
    own, shared, found = jobs[2:]
    trials = [trial(own), trial(shared), trial(found, made=False)]
    study = study.model_copy(update={"members": study.members[:2], "trials": trials})
    other = study.model_copy(update={"id": "st_" + "b" * 26, "trials": [trial(shared)]})
    made = ServiceDeployment(*jobs)
    made.studies = MemoryStudies(study, other)
    cancel_study(made.given, STUDY_ID, "default")
    assert [made.jobs.records[job.id].status for job in (own, shared, found)] == [Status.CANCELLED, QUEUED, QUEUED]


def test_trials_to_come_count_so_that_the_fraction_never_falls() -> None:
    study, jobs = study_record((DONE, DONE, DONE, DONE, QUEUED))
    members = [one.model_copy(update={"task": one.name[-1]}) for one in study.members[:4]]
    asked = study_request(lora_trial={})  # four full fine-tunes
    study = study.model_copy(update={"request": asked, "members": members})
    made = ServiceDeployment(*jobs)
    made.studies = MemoryStudies(study)
    tasks = len({one.task for one in members})
    assert shown(made.given, study).fraction == 4 / (4 + 3 * tasks)
    begun = study.model_copy(update={"trials": [trial(jobs[4])] * 3 * tasks})
    assert shown(made.given, begun).fraction == 4 / (4 + 3 * tasks)
    adapters = study.model_copy(update={"request": study_request(lora_trial={}, finetune={"method": "lora"})})
    assert shown(made.given, adapters).fraction == 1.0
