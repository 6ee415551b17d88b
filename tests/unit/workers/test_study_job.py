"""A study once its members have ended: its report, its end, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.storage.key_names import Owned
from backends.storage.report_cache import CachedReport, ReportFormat
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.study_report import StudyReport
from tests.builders.stores import MemoryDeployment, MemoryReports, MemoryStudies
from tests.builders.studies import STUDY_ID, member_report
from tests.builders.study_records import study_record
from workers import faults, study_job
from workers.studies.report import study_report
from workers.study_job import run_study

DONE, FAILED, RUNNING = Status.SUCCEEDED, Status.FAILED, Status.RUNNING


class ReadableReports(MemoryReports):
    """Reports that lie in the bucket, as the real ones do."""

    def get(self, owned: Owned, format: ReportFormat) -> CachedReport:
        return CachedReport(self._blobs.get(f"reports/{owned.id}/{format}"), hit=False)


def standing(home: Path, *statuses: Status, **changes: object) -> MemoryDeployment:
    """A study whose members that succeeded have reports."""
    study, jobs = study_record(statuses, **changes)
    made = MemoryDeployment(home, *jobs)
    made.studies = MemoryStudies(study)
    made.reports = ReadableReports(made.blobs)
    for job in jobs:
        if job.status is DONE:
            made.reports.put(job.owned, "json", member_report([0, 0.1, 0.2]).model_dump_json().encode())
    return made


def test_the_report_is_of_the_members_that_have_one(tmp_path: Path) -> None:
    made = standing(tmp_path, DONE, FAILED, DONE)
    run_study(made.given, STUDY_ID)
    assert made.studies.get(STUDY_ID).status is Status.SUCCEEDED
    report = StudyReport.model_validate_json(made.blobs.get(f"reports/{STUDY_ID}/json"))
    assert [bool(member.layers) for member in report.members] == [True, False, True]
    assert made.blobs.get(f"reports/{STUDY_ID}/html").startswith(b"<!doctype html>")
    assert made.leases.holders == {}


def test_a_study_that_waits_is_left_alone(tmp_path: Path) -> None:
    made = standing(tmp_path, DONE, RUNNING)
    run_study(made.given, STUDY_ID)
    found = made.studies.get(STUDY_ID)
    assert (found.status, found.attempts) == (Status.QUEUED, 0)


def test_a_study_of_failures_fails_and_says_so(tmp_path: Path) -> None:
    made = standing(tmp_path, FAILED, FAILED)
    run_study(made.given, STUDY_ID)
    found = made.studies.get(STUDY_ID)
    assert found.status is Status.FAILED
    assert found.error is not None
    assert found.error.detail == "no member of the study has a report"


def test_another_workers_study_is_not_touched(tmp_path: Path) -> None:
    made = standing(tmp_path, DONE, DONE)
    made.leases.holders[STUDY_ID] = "another"
    run_study(made.given, STUDY_ID)
    assert made.studies.get(STUDY_ID).status is Status.QUEUED
    assert made.leases.holders == {STUDY_ID: "another"}


def test_a_study_that_killed_its_workers_ends(tmp_path: Path) -> None:
    made = standing(tmp_path, DONE, DONE, attempts=3)
    run_study(made.given, STUDY_ID)
    found = made.studies.get(STUDY_ID)
    assert (found.status, found.error and found.error.title) == (Status.FAILED, "Worker lost")


def test_a_cancelled_study_ends_without_a_report(tmp_path: Path) -> None:
    made = standing(tmp_path, DONE, DONE, cancel_requested=True)
    run_study(made.given, STUDY_ID)
    assert made.studies.get(STUDY_ID).status is Status.CANCELLED
    assert not made.blobs.list(f"reports/{STUDY_ID}")


def test_an_outage_leaves_the_study_open(tmp_path: Path) -> None:
    made = standing(tmp_path, DONE, DONE)
    made.blobs.away = True
    with pytest.raises(UnavailableError):
        run_study(made.given, STUDY_ID)
    assert not made.studies.get(STUDY_ID).status.final
    made.blobs.away = False
    run_study(made.given, STUDY_ID)
    assert made.studies.get(STUDY_ID).status is Status.SUCCEEDED


def test_a_fault_of_ours_ends_one_study_and_not_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = standing(tmp_path, DONE, DONE)
    monkeypatch.setattr(study_job, "study_report", lambda *_: 1 / 0)
    run_study(made.given, STUDY_ID)
    found = made.studies.get(STUDY_ID)
    assert found.status is Status.FAILED
    assert found.error is not None
    assert "ZeroDivisionError" in found.error.detail


def test_a_study_that_was_opened_again_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = standing(tmp_path, DONE, DONE)
    whole = study_report

    def slow(*given: Any) -> StudyReport:
        made.studies.update(STUDY_ID, lambda found: found.model_copy(update={"attempts": 0, "status": Status.QUEUED}))
        return whole(*given)

    monkeypatch.setattr(study_job, "study_report", slow)
    run_study(made.given, STUDY_ID)
    assert made.studies.get(STUDY_ID).status is Status.QUEUED
    assert not made.blobs.list(f"reports/{STUDY_ID}")


def test_a_broken_device_ends_the_process_and_leaves_the_study_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = standing(tmp_path, DONE, DONE)
    study = made.studies.get(STUDY_ID)
    asked = study.request.model_copy(update={"similarity": True})
    made.studies.records[STUDY_ID] = study.model_copy(update={"request": asked})
    ended: list[bool] = []
    monkeypatch.setattr(faults, "end_process", lambda: ended.append(True))

    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr(study_job, "shared_rows", broken)
    run_study(made.given, STUDY_ID)
    assert ended == [True]
    assert made.studies.get(STUDY_ID).status is RUNNING
    assert not made.blobs.list(f"reports/{STUDY_ID}")


def test_a_comparison_of_members_that_breaks_leaves_the_rest_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = standing(tmp_path, DONE, DONE)
    study = made.studies.get(STUDY_ID)
    asked = study.request.model_copy(update={"similarity": True})
    made.studies.records[STUDY_ID] = study.model_copy(update={"request": asked})
    monkeypatch.setattr(study_job, "shared_rows", lambda *_: 1 / 0)
    run_study(made.given, STUDY_ID)
    report = StudyReport.model_validate_json(made.blobs.get(f"reports/{STUDY_ID}/json"))
    assert [warning.code for warning in report.warnings] == ["similarity_not_computed"]
    assert "ZeroDivisionError" in report.warnings[0].message
