"""Tables of studies on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from layerdrift.cli import study_tables, tables
from layerdrift.contract.analysis import Status
from layerdrift.contract.study import Study, StudyLinks, StudyMemberState
from tests.builders.studies import STUDY_ID, made_study, member_report, study_request


def study(*statuses: Status) -> Study:
    members = [
        StudyMemberState(name=f"m{place}", task="t", analysis_id="an_x", status=status, fraction=0.5)
        for place, status in enumerate(statuses)
    ]
    return Study(
        id=STUDY_ID,
        name="[red]candidates",
        tags={},
        status=Status.RUNNING,
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        request=study_request(),
        members=members,
        fraction=0.5,
        links=StudyLinks(self="/", events="/e", report="/r", cancel="/c"),
    )


def test_members_are_counted_by_how_they_stand() -> None:
    assert study_tables.standing(study(Status.QUEUED, Status.RUNNING, Status.QUEUED)) == "2 queued, 1 running"


def test_trials_stand_beside_the_members(capsys: pytest.CaptureFixture[str]) -> None:
    found = study(Status.SUCCEEDED)
    trial = found.members[0].model_copy(update={"name": "m0: LoRA on all layers", "status": Status.RUNNING})
    found = found.model_copy(update={"trials": [trial]})
    assert study_tables.standing(found) == "1 succeeded, 1 running"
    tables.say(study_tables.states(found))
    assert "LoRA on all layers" in capsys.readouterr().out


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    tables.say(study_tables.studies([study(Status.QUEUED)]), study_tables.states(study(Status.FAILED)))
    said = capsys.readouterr().out
    assert "[red]candidates" in said
    assert "m0" in said


def test_without_studies_it_says_how_to_run_one() -> None:
    assert "layerdrift study run" in str(study_tables.studies([]))


def test_the_report_shows_members_and_layers(capsys: pytest.CaptureFixture[str]) -> None:
    tables.say(*study_tables.report(made_study()))
    said = capsys.readouterr().out
    assert "reviews-1" in said
    assert "3 block 3" in said


def test_the_drift_of_a_task_is_the_mean_of_its_members(capsys: pytest.CaptureFixture[str]) -> None:
    reports = {"spam-0": member_report([0, 0.2]), "spam-1": member_report([0, 0.4])}
    tables.say(*study_tables.report(made_study(reports=reports)))
    said = capsys.readouterr().out
    assert "0.3000" in said
    assert "no report: the disk was full" in said
