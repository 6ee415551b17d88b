"""From the service's answers to errors."""

from __future__ import annotations

import httpx
import pytest

from layerdrift.contract.errors import (
    ConflictError,
    DeadlineError,
    ForbiddenError,
    InputError,
    LayerdriftError,
    MalformedError,
    MediaTypeError,
    NotFoundError,
    QuotaError,
    RateError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from layerdrift.sdk import Retries, calls
from layerdrift.sdk.failures import AnalysisFailed, error_of, retry_after, worth_waiting
from tests.builders.analyses import ANALYSIS_ID, analysis
from tests.builders.http_service import problem

KINDS = [
    MalformedError,
    UnauthorizedError,
    ForbiddenError,
    NotFoundError,
    ConflictError,
    TooLargeError,
    MediaTypeError,
    InputError,
    UnsupportedError,
    UnavailableError,
    DeadlineError,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_an_error_of_the_service_comes_back_as_it_was_raised_there(kind: type[LayerdriftError]) -> None:
    sent = kind("too bad").problem()
    found = error_of(httpx.Response(sent.status, text=sent.model_dump_json()))
    assert type(found) is kind
    assert found.problem() == sent


def test_a_status_that_nobody_knows_is_still_told_in_the_services_words() -> None:
    found = error_of(problem(418, "I am a teapot"))
    assert (type(found), found.detail) == (LayerdriftError, "I am a teapot")


def test_every_field_that_is_wrong_comes_back() -> None:
    errors = [{"pointer": "/base/uri", "detail": "no such bucket"}, {"pointer": "/seed", "detail": "is negative"}]
    found = error_of(problem(422, "two mistakes", errors))
    assert isinstance(found, InputError)
    assert [one.model_dump() for one in found.errors] == errors


@pytest.mark.parametrize(
    ("body", "status"), [("<html>Bad Gateway</html>", 502), ("", 500), ('{"detail": "Not Found"}', 404), ("[]", 400)]
)
def test_an_answer_of_something_in_between_is_quoted_with_its_status(body: str, status: int) -> None:
    found = error_of(httpx.Response(status, text=body))
    assert (type(found), found.detail) == (LayerdriftError, f"the service answered {status}: {body}")


def test_of_a_long_page_the_beginning_is_quoted() -> None:
    assert error_of(httpx.Response(502, text="x" * 9_000)).detail.endswith(": " + "x" * 500)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30.0),
        ("0", 0.0),
        ("7200", 3600.0),
        ("9" * 400, 3600.0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("Fri, 01 Jan 2027 00:00:00 GMT", None),
    ],
)
def test_a_pause_is_asked_for_in_whole_seconds(header: str, seconds: float | None) -> None:
    assert retry_after(problem(503, "full", headers={"Retry-After": header})) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "30"}, 30), ({"Retry-After": "0"}, 1), ({"Retry-After": "9" * 400}, 3600), ({}, 1)],
)
def test_too_many_requests_say_when_to_come_back_a_second_at_least(headers: dict[str, str], seconds: int) -> None:
    found = error_of(problem(429, "slow down", headers=headers))
    assert isinstance(found, RateError)
    assert found.retry_after == seconds


def test_an_analysis_without_a_report_is_told_with_its_stage_if_one_failed() -> None:
    error = {"type": "x", "title": "t", "status": 422, "detail": "no texts"}
    failed = AnalysisFailed(analysis("failed", error=error))
    assert failed.detail == f"{ANALYSIS_ID} failed: no texts"
    assert failed.analysis.status == "failed"
    staged = AnalysisFailed(analysis("failed", error=error | {"stage": "resolve"}))
    assert staged.detail == f"{ANALYSIS_ID} failed in stage resolve: no texts"
    assert AnalysisFailed(analysis("cancelled")).detail == f"{ANALYSIS_ID} cancelled: somebody cancelled it"


def test_a_quota_is_an_error_of_its_own_which_no_client_waits_for() -> None:
    answer = httpx.Response(
        429,
        json={"type": "urn:layerdrift:quota", "title": "Quota used up", "status": 429, "detail": "until December"},
        headers={"Retry-After": "200000"},
    )
    found = error_of(answer)
    assert isinstance(found, QuotaError)
    assert (found.detail, found.kind) == ("until December", "quota")
    assert not worth_waiting(answer)
    assert worth_waiting(httpx.Response(429, text="a proxy's own words"))
    assert Retries().pause(1, calls.keys(), answer) is None
