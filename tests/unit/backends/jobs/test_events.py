"""Which events a change of a record stands for. That readers get them in order, from a stream in Redis: test_api."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from backends.jobs.events import append_entries, entries_of
from backends.jobs.records import JobRecord
from layerdrift.contract.analysis import Progress, Stage, StageName, Status
from layerdrift.contract.errors import Problem
from tests.builders.records import record

NEW = record()
RUNNING = NEW.model_copy(update={"status": Status.RUNNING, "attempts": 1})


def at(before: JobRecord, *stages: Stage, **fields: Any) -> JobRecord:
    """A record whose stages have come so far."""
    progress = before.progress.model_copy(update={"stages": list(stages)} | fields)
    return before.model_copy(update={"progress": progress})


def named(before: JobRecord | None, after: JobRecord, name: str) -> list[dict[str, Any]]:
    """The data of the events of one name."""
    return [data for event, data in entries_of(before, after) if event == name]


def commands(before: JobRecord | None, after: JobRecord) -> list[str]:
    """What a change sends to Redis, which is never asked."""
    pipe = redis.Redis().pipeline()
    append_entries(pipe, before, after)
    return [arguments[0] for arguments, _ in pipe.command_stack]


def test_a_record_that_does_not_change_has_no_events() -> None:
    assert entries_of(RUNNING, RUNNING) == []
    assert commands(RUNNING, RUNNING) == []


def test_a_new_record_has_no_events() -> None:
    pending = at(NEW, Stage(name=StageName.RESOLVE), Stage(name=StageName.EXTRACT))
    assert entries_of(None, pending) == []


def test_a_stage_is_told_when_its_status_changes_and_not_when_it_goes_on() -> None:
    begun = Stage(name=StageName.EXTRACT, status="running")
    further = begun.model_copy(update={"fraction": 0.5})
    done = begun.model_copy(update={"status": "succeeded", "fraction": 1.0})
    pending = Stage(name=StageName.COMPARE)
    assert [data["status"] for data in named(RUNNING, at(RUNNING, begun, pending), "stage")] == ["running"]
    assert named(at(RUNNING, begun, pending), at(RUNNING, further, pending), "stage") == []
    both = named(
        at(RUNNING, further, pending), at(RUNNING, done, pending.model_copy(update={"status": "running"})), "stage"
    )
    assert [(data["name"], data["status"]) for data in both] == [("extract", "succeeded"), ("compare", "running")]


def test_progress_tells_of_the_stage_that_runs() -> None:
    training = Stage(name=StageName.SAE, status="running", fraction=0.25, detail="step 5", numbers={"step": 5.0})
    after = at(RUNNING, Stage(name=StageName.EXTRACT), training, stage=StageName.SAE, fraction=0.6, seconds_left=12.0)
    assert named(RUNNING, after, "progress") == [
        {
            "fraction": 0.6,
            "stage": StageName.SAE,
            "seconds_left": 12.0,
            "stage_fraction": 0.25,
            "detail": "step 5",
            "numbers": {"step": 5.0},
        }
    ]


def test_progress_before_the_first_stage_tells_of_no_stage() -> None:
    (told,) = named(RUNNING, at(RUNNING, seconds_left=40.0), "progress")
    assert told == {"fraction": 0.0, "stage": None, "seconds_left": 40.0}


@pytest.mark.parametrize(
    ("changes", "event", "data"),
    [
        ({"attempts": 2}, "log", {"message": "a worker picked up the job (attempt 2)"}),
        ({"cancel_requested": True}, "log", {"message": "cancellation was requested"}),
        ({"preliminary": True}, "report", {"status": "preliminary"}),
        ({"status": Status.CANCELLED}, "done", {"status": Status.CANCELLED, "error": None}),
    ],
)
def test_what_happens_to_a_job_is_told_once(changes: dict[str, Any], event: str, data: dict[str, Any]) -> None:
    after = RUNNING.model_copy(update=changes)
    assert entries_of(RUNNING, after) == [(event, data)]
    assert entries_of(after, after.model_copy(update={"priority": 9})) == []


def test_a_failure_is_told_with_its_reason() -> None:
    problem = Problem(type="urn:layerdrift:input", title="Invalid input", status=422, detail="too few texts")
    ((_, data),) = entries_of(RUNNING, RUNNING.ended(Status.FAILED, problem))
    assert data["status"] == "failed"
    assert data["error"] | {"errors": []} == problem.model_dump(exclude_none=True)


def test_a_report_that_is_finished_is_not_told_as_a_preliminary_one() -> None:
    after = RUNNING.ended(Status.SUCCEEDED).model_copy(update={"preliminary": True})
    assert [event for event, _ in entries_of(RUNNING, after)] == ["done"]


def test_a_job_that_is_made_again_begins_a_new_stream() -> None:
    failed = RUNNING.ended(Status.FAILED)
    assert commands(failed, NEW)[0] == "DEL"
    assert "DEL" not in commands(RUNNING, failed)


def test_events_expire_after_the_last_of_them() -> None:
    assert commands(RUNNING, RUNNING.model_copy(update={"cancel_requested": True})) == ["XADD", "EXPIRE"]


def test_a_record_without_progress_of_its_own_may_follow_one_that_had_it() -> None:
    before = at(RUNNING, Stage(name=StageName.EXTRACT, status="running"), stage=StageName.EXTRACT)
    again = before.model_copy(update={"progress": Progress()})
    assert named(before, again, "stage") == []
    assert named(before, again, "progress")[0]["stage"] is None
