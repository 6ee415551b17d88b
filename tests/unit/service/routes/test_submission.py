from __future__ import annotations

from typing import Any

import pytest
import redis
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from backends.settings import Settings
from layerdrift.contract.errors import ConflictError, InputError, LayerdriftError, RateError, UnavailableError
from layerdrift.contract.key import Scope
from layerdrift.contract.request import AnalysisRequest
from service.routes import submission
from service.routes.submission import PATH, SubmitAPI, add_route
from service.use_cases.submit import Submission, Submitted
from tests.builders.records import record
from tests.builders.service import ServiceDeployment, api

ID = "an_" + "a" * 26
BODY: dict[str, Any] = {"base": {"uri": "file:///a"}, "tuned": {"uri": "file:///b"}, "dataset": {"uri": "s3://d/x.csv"}}


class Worker:
    """Stands for LitServe's endpoint: answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Submission] = []
        self.answer: Response | Exception = JSONResponse({}, 202, {"Location": f"/v1/analyses/{ID}"})

    async def __call__(self, asked: Submission) -> Response:
        self.asked.append(asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def deployment() -> ServiceDeployment:
    return ServiceDeployment(record(analysis_id=ID))


@pytest.fixture
def http(deployment: ServiceDeployment, worker: Worker) -> TestClient:
    made = api(deployment, APIRouter())
    assert isinstance(made.app, FastAPI)
    add_route(made.app, worker)
    return made


def test_a_request_reaches_the_worker_with_whose_it_is(
    deployment: ServiceDeployment, worker: Worker, http: TestClient
) -> None:
    key = deployment.sign_in(http, Scope.SUBMIT, tenant="ours", open_jobs=3, priority=7)
    answer = http.post(PATH, json=BODY)
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/analyses/{ID}")
    (asked,) = worker.asked
    assert (asked.tenant, asked.submitted_by, asked.open_jobs, asked.priority) == ("ours", key.id, 3, 7)
    assert asked.request == AnalysisRequest.model_validate(BODY)


def test_without_keys_nobody_in_particular_submits(worker: Worker, http: TestClient) -> None:
    http.post(PATH, json=BODY)
    assert (worker.asked[0].tenant, worker.asked[0].submitted_by) == ("default", "")


@pytest.mark.parametrize(
    ("body", "query", "status"),
    [
        (BODY | {"dataset": None}, "", 422),
        ({}, "", 422),
        ([], "", 422),
        (BODY, "?dry_run=1", 422),
    ],
)
def test_a_request_that_is_wrong_reaches_no_worker(
    worker: Worker, http: TestClient, body: Any, query: str, status: int
) -> None:
    assert (http.post(PATH + query, json=body).status_code, worker.asked) == (status, [])


def test_who_may_only_read_submits_nothing(deployment: ServiceDeployment, worker: Worker, http: TestClient) -> None:
    deployment.sign_in(http, Scope.READ)
    assert (http.post(PATH, json=BODY).status_code, worker.asked) == (403, [])


@pytest.mark.parametrize("status", [200, 202])
def test_a_request_with_the_same_idempotency_key_is_carried_out_once(
    worker: Worker, http: TestClient, status: int
) -> None:
    worker.answer = JSONResponse({}, status, {"Location": f"/v1/analyses/{ID}"})
    headers = {"Idempotency-Key": "k"}
    first, again = (http.post(PATH, json=BODY, headers=headers) for _ in range(2))
    assert len(worker.asked) == 1
    assert [first.status_code, again.status_code] == [status] * 2
    assert (again.headers["location"], again.json()["id"]) == (f"/v1/analyses/{ID}", ID)


def test_each_tenant_has_idempotency_keys_of_its_own(
    deployment: ServiceDeployment, worker: Worker, http: TestClient
) -> None:
    for tenant in ("ours", "theirs"):
        deployment.sign_in(http, Scope.SUBMIT, tenant=tenant)
        http.post(PATH, json=BODY, headers={"Idempotency-Key": "k"})
    assert [asked.tenant for asked in worker.asked] == ["ours", "theirs"]


@pytest.mark.parametrize(
    "failure",
    [JSONResponse({}, 422), JSONResponse({}, 503), ConflictError("it is being cancelled"), ZeroDivisionError()],
    ids=["refused", "unavailable", "conflict", "crash"],
)
def test_a_request_that_came_to_nothing_may_be_sent_again_with_its_key(
    deployment: ServiceDeployment, worker: Worker, http: TestClient, failure: Response | Exception
) -> None:
    good, worker.answer = worker.answer, failure
    assert http.post(PATH, json=BODY, headers={"Idempotency-Key": "k"}).status_code >= 409
    assert deployment.idempotency.claims == {}
    worker.answer = good
    assert http.post(PATH, json=BODY, headers={"Idempotency-Key": "k"}).status_code == 202


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_idempotency_key_that_cannot_be_kept_is_refused(worker: Worker, http: TestClient, key: str) -> None:
    answer = http.post(PATH, json=BODY, headers={"Idempotency-Key": key})
    assert (answer.status_code, worker.asked) == (422, [])
    assert "idempotency-key" in answer.json()["detail"]


def submitted() -> Submission:
    request = AnalysisRequest.model_validate(BODY)
    return Submission(tenant="default", submitted_by="", open_jobs=1, priority=5, trace=None, request=request)


def predicted(monkeypatch: pytest.MonkeyPatch, outcome: Submitted | Exception) -> JSONResponse:
    def submit(*_: object) -> Submitted:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(submission, "submit", submit)
    made = SubmitAPI(Settings())
    made._deployment = ServiceDeployment().given
    return made.predict(submitted())


@pytest.mark.parametrize(("new", "status"), [(True, 202), (False, 200)])
def test_a_new_analysis_is_accepted_and_one_that_was_there_is_ok(
    monkeypatch: pytest.MonkeyPatch, new: bool, status: int
) -> None:
    answer = predicted(monkeypatch, Submitted(record(analysis_id=ID), new))
    assert (answer.status_code, answer.headers["location"]) == (status, f"/v1/analyses/{ID}")
    assert ID.encode() in bytes(answer.body)


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (InputError("no such folder"), 422, None),
        (RateError("3 jobs are queued", 30), 429, "30"),
        (UnavailableError("S3 could not be reached"), 503, "5"),
        (redis.ConnectionError("secret host"), 503, "5"),
    ],
)
def test_an_error_in_a_worker_is_a_problem_document(
    monkeypatch: pytest.MonkeyPatch, error: LayerdriftError | redis.RedisError, status: int, header: str | None
) -> None:
    answer = predicted(monkeypatch, error)
    assert (answer.status_code, answer.media_type) == (status, "application/problem+json")
    assert answer.headers.get("retry-after") == header
    assert b"secret" not in bytes(answer.body)


def test_a_worker_that_was_not_set_up_says_so() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        SubmitAPI(Settings()).predict(submitted())
