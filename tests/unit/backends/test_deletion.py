from __future__ import annotations

import pytest

from backends.deletion import delete, delete_study
from backends.jobs.records import JobRecord
from backends.storage import key_names
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, NotFoundError, UnavailableError
from tests.builders.records import record
from tests.builders.service import ServiceDeployment
from tests.builders.stores import MemoryStudies
from tests.builders.study_records import study_record

PREFIXES = (key_names.artifact_prefix, key_names.checkpoint_prefix, key_names.unfinished_prefix)


def stored(*records: JobRecord) -> ServiceDeployment:
    """A deployment in which each analysis has left a report and a file of every kind."""
    deployment = ServiceDeployment(*records)
    for one in records:
        deployment.reports.finished[one.owned, "json"] = b"{}"
        deployment.blobs.objects |= {prefix(one.owned) + "file": b"x" for prefix in PREFIXES}
    return deployment


def ended(status: Status = Status.SUCCEEDED) -> JobRecord:
    return record().model_copy(update={"status": status})


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
def test_all_that_an_analysis_left_goes_and_all_of_others_stays(status: Status) -> None:
    gone, kept = ended(status), ended()
    deployment = stored(gone, kept)
    delete(deployment.given, gone.tenant, gone.id)
    expected = stored(kept)
    assert deployment.blobs.objects == expected.blobs.objects
    assert deployment.reports.finished == expected.reports.finished
    assert list(deployment.jobs.records) == [kept.id]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
def test_an_open_analysis_is_not_deleted(status: Status) -> None:
    running = ended(status)
    deployment = stored(running)
    with pytest.raises(ConflictError, match=f"the analysis is {status}; cancel it first"):
        delete(deployment.given, running.tenant, running.id)
    assert deployment.blobs.objects == stored(running).blobs.objects
    assert running.id in deployment.jobs.records


def test_an_analysis_of_another_tenant_is_not_deleted() -> None:
    theirs = ended()
    deployment = stored(theirs)
    with pytest.raises(NotFoundError, match=f"there is no analysis {theirs.id}"):
        delete(deployment.given, "other", theirs.id)
    assert deployment.blobs.objects == stored(theirs).blobs.objects


def test_a_deletion_that_fails_halfway_can_be_done_again() -> None:
    gone = ended()
    deployment = stored(gone)
    deployment.blobs.away = True
    with pytest.raises(UnavailableError):
        delete(deployment.given, gone.tenant, gone.id)
    assert gone.id in deployment.jobs.records
    deployment.blobs.away = False
    delete(deployment.given, gone.tenant, gone.id)
    assert (deployment.jobs.records, deployment.blobs.objects) == ({}, {})


def test_a_study_is_deleted_once_it_has_ended_and_its_analyses_stay() -> None:
    study, jobs = study_record((Status.SUCCEEDED, Status.SUCCEEDED))
    made = ServiceDeployment(*jobs)
    made.studies = MemoryStudies(study)
    with pytest.raises(ConflictError, match="the study is queued; cancel it first"):
        delete_study(made.given, "default", study.id)
    made.studies.records[study.id] = study.ended(Status.SUCCEEDED)
    with pytest.raises(NotFoundError):
        delete_study(made.given, "other", study.id)
    delete_study(made.given, "default", study.id)
    assert made.studies.records == {}
    assert len(made.jobs.records) == 2
