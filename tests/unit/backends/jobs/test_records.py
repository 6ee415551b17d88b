from __future__ import annotations

import json
from typing import Any

import pytest

from backends.jobs.records import EVERY, RECORD_SCHEMA, Delivery, JobRecord, NewerRecordError, Wanted
from layerdrift.contract.analysis import ReportState, StageName, Status
from layerdrift.contract.errors import Problem
from layerdrift.contract.request import Webhook
from tests.builders.records import record


def changed(**fields: Any) -> JobRecord:
    return record().model_copy(update=fields)


def named(name: str, **tags: str) -> JobRecord:
    made = record()
    return made.model_copy(update={"request": made.request.model_copy(update={"name": name, "tags": tags})})


@pytest.mark.parametrize(
    ("name", "compared", "title"),
    [
        ("my run", "a → b on x", "my run"),
        ("", "a → b on x", "a → b on x"),
        ("", "", "a → b on x.csv"),  # a record of an earlier version, which kept no short form
    ],
)
def test_a_record_goes_by_its_name_or_else_by_what_it_compares(name: str, compared: str, title: str) -> None:
    made = named(name).model_copy(update={"compared": compared})
    assert made.title == made.analysis().name == title


@pytest.mark.parametrize(
    ("status", "preliminary", "report"),
    [
        (Status.QUEUED, False, "none"),
        (Status.RUNNING, False, "none"),
        (Status.RUNNING, True, "preliminary"),
        (Status.QUEUED, True, "preliminary"),  # its worker was lost after `compare`
        (Status.SUCCEEDED, True, "complete"),
        (Status.FAILED, True, "none"),
        (Status.CANCELLED, True, "none"),
    ],
)
def test_a_preliminary_report_is_there_until_the_job_ends(
    status: Status, preliminary: bool, report: ReportState
) -> None:
    made = changed(status=status, preliminary=preliminary)
    assert made.report == made.analysis().report == report


def test_ending_a_record_leaves_what_was_asked_and_when_it_began() -> None:
    problem = Problem(type="urn:layerdrift:stage", title="t", status=500, detail="it broke")
    before = record(age_seconds=60)
    after = before.ended(Status.FAILED, problem)
    assert after.finished_at is not None
    assert after.finished_at > before.created_at
    assert (after.status, after.error) == (Status.FAILED, problem)
    assert after.model_copy(update={"status": before.status, "error": None, "finished_at": None}) == before


@pytest.mark.parametrize(
    ("fields", "waiting"),
    [({}, True), ({"tries": 3, "error": "503"}, True), ({"told_at": "2026-01-01T00:00:00Z"}, False)],
)
def test_a_webhook_waits_until_it_was_told(fields: dict[str, Any], waiting: bool) -> None:
    webhook = Webhook(url="https://example.org/", secret_ref="ci")
    delivery = Delivery.model_validate({"webhook": webhook} | fields)
    assert delivery.waiting is waiting
    assert not delivery.model_copy(update={"given_up": True}).waiting


def test_a_record_is_read_as_it_was_written() -> None:
    made = changed(status=Status.RUNNING, attempts=2, tenant="team", operations={StageName.EXTRACT: 1e12})
    assert JobRecord.stored(made.model_dump_json().encode()) == made


def test_a_record_of_an_earlier_version_is_read_though_requests_like_it_are_refused_now() -> None:
    body = json.loads(named("x").model_dump_json())
    body["request"]["name"] = "two\nlines"
    assert JobRecord.stored(json.dumps(body).encode()).title == "two\nlines"
    with pytest.raises(ValueError, match="control characters"):
        JobRecord.model_validate(body)


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (EVERY, True),
        (Wanted(status=Status.QUEUED), True),
        (Wanted(status=Status.RUNNING), False),
        (Wanted(name="STRASSE"), True),
        (Wanted(name="straße 2"), False),
        (Wanted(title="Grüne Straße"), True),
        (Wanted(title="Grüne"), False),
        (Wanted(title="grüne straße"), False),
        (Wanted(tag=("team", "nlp")), True),
        (Wanted(tag=("team", "")), False),
        (Wanted(tag=("nlp", "team")), False),
        (Wanted(status=Status.QUEUED, name="grün", tag=("team", "vision")), False),
    ],
)
def test_a_list_shows_what_fits_in_every_way_that_is_asked_for(wanted: Wanted, admitted: bool) -> None:
    assert wanted.admits(named("Grüne Straße", team="nlp")) is admitted


def test_an_empty_tag_is_not_the_same_as_none() -> None:
    assert Wanted(tag=("team", "")).admits(named("x", team=""))
    assert not Wanted(tag=("team", "")).admits(named("x"))


def test_a_record_of_a_later_schema_is_refused_even_where_it_can_be_read() -> None:
    body = record().model_dump(mode="json")
    assert JobRecord.stored(json.dumps(body).encode()).schema_version == RECORD_SCHEMA
    with pytest.raises(NewerRecordError, match=rf"schema {RECORD_SCHEMA + 1}.* knows up to {RECORD_SCHEMA}.* upgrade"):
        JobRecord.stored(json.dumps(body | {"schema_version": RECORD_SCHEMA + 1}).encode())
    with pytest.raises(NewerRecordError):
        JobRecord.stored(json.dumps({"schema_version": RECORD_SCHEMA + 1, "id": {"of": "another shape"}}).encode())


def test_a_record_from_before_schemas_were_numbered_is_of_the_first_one() -> None:
    body = record().model_dump(mode="json", exclude={"schema_version"})
    assert JobRecord.stored(json.dumps(body).encode()).schema_version == 1
