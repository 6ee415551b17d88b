"""An analysis that is asked again of another version of the engine."""

from __future__ import annotations

from typing import Any

import pytest

from backends.jobs import identity
from backends.jobs.records import JobRecord
from layerdrift import __version__
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, RateError
from service.use_cases import submit as module
from service.use_cases.submit import Submission, Submitted, rerun
from tests.builders.records import record
from tests.builders.service import ServiceDeployment


def made_by(engine: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> JobRecord:
    """A record that this version of the engine made."""
    found = record()
    with monkeypatch.context() as then:
        then.setattr(identity, "__version__", engine)
        own = identity.analysis_id(found.tenant, found.request, found.pins)
    return found.model_copy(update={"id": own, "engine": engine, "status": Status.SUCCEEDED} | changes)


def asked(deployment: ServiceDeployment, before: JobRecord, open_jobs: int = 100) -> Submitted:
    submission = Submission(
        tenant=before.tenant, submitted_by="me", open_jobs=open_jobs, priority=7, trace=None, request=before.request
    )
    return rerun(deployment.given, submission, before)


def test_a_report_of_an_older_engine_is_made_again_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__version__", "9.0")
    monkeypatch.setattr(identity, "__version__", "9.0")
    old = made_by("0.1.0", monkeypatch)
    deployment = ServiceDeployment(old)
    made, new = asked(deployment, old)
    assert new
    assert made.id != old.id
    assert (made.request, made.pins, made.engine) == (old.request, old.pins, "9.0")
    assert (made.submitted_by, made.priority, made.status) == ("me", 7, Status.QUEUED)
    assert deployment.jobs.get(old.id) == old
    assert deployment.queue.announced == [made.id]
    assert asked(deployment, old) == Submitted(made, False)


def test_a_report_of_this_engine_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    own = made_by(__version__, monkeypatch)
    deployment = ServiceDeployment(own)
    assert asked(deployment, own) == Submitted(own, False)
    assert deployment.queue.announced == []


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_what_has_no_report_runs_again_under_its_own_id(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    own = made_by(__version__, monkeypatch, status=status)
    deployment = ServiceDeployment(own)
    made, new = asked(deployment, own)
    assert (made.id, made.status, new) == (own.id, Status.QUEUED, True)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
def test_what_has_not_ended_is_left_alone(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    own = made_by("0.1.0", monkeypatch, status=status)
    with pytest.raises(ConflictError, match=f"the analysis is {status}"):
        asked(ServiceDeployment(own), own)


def test_the_limit_of_open_jobs_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "__version__", "9.0")
    old = made_by("0.1.0", monkeypatch)
    with pytest.raises(RateError, match="the limit of this key"):
        asked(ServiceDeployment(old), old, open_jobs=0)


@pytest.mark.parametrize(
    ("status", "engine", "older"),
    [
        (Status.SUCCEEDED, "0.0.9", True),
        (Status.SUCCEEDED, __version__, False),
        (Status.FAILED, "0.0.9", False),
    ],
)
def test_a_report_of_another_engine_is_marked(status: Status, engine: str, older: bool) -> None:
    found = record().model_copy(update={"status": status, "engine": engine}).analysis()
    assert (found.engine, found.older_engine) == (engine, older)


def test_a_record_from_before_versions_were_written_down_is_of_the_first_one() -> None:
    body = record().model_dump(mode="json", exclude={"engine"})
    assert JobRecord.model_validate(body).engine == "0.1.0"
