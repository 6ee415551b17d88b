from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from layerdrift.contract.errors import ConflictError, NotFoundError
from layerdrift.contract.request import AnalysisRequest
from service.http import problems
from service.http.query_parameters import ONLY_KNOWN_PARAMETERS
from service.middleware.deadline import DeadlineMiddleware
from service.middleware.head import HeadMiddleware
from service.routes.analyses import negotiated


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "json"),
        ("application/json", "json"),
        ("", "json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),
        ("text/markdown, text/html;q=0.5", "md"),
        ("text/*;q=0.5, application/json;q=0.4", "html"),
        ("application/json;q=0, */*;q=0.1", "html"),
        ("text/html;q=nonsense, application/json", "json"),
    ],
)
def test_the_report_comes_as_what_is_accepted_most(accept: str, expected: str) -> None:
    assert negotiated(accept) == expected


def test_a_format_that_there_is_not_is_refused() -> None:
    with pytest.raises(HTTPException, match="406"):
        negotiated("application/pdf")


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()
    problems.install(made)

    @made.post("/analyses")
    def analyses(request: AnalysisRequest) -> str:
        return "ok"

    @made.get("/missing")
    def missing() -> None:
        raise NotFoundError("there is no analysis an_x")

    @made.get("/conflict")
    def conflict() -> None:
        raise ConflictError("it has ended")

    @made.get("/crash")
    def crash() -> None:
        raise ZeroDivisionError("secret detail")

    return made


@pytest.fixture
def http(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def test_bad_input_names_each_place_by_json_pointer(http: TestClient) -> None:
    answer = http.post("/analyses", json={"base": {"uri": ""}, "a/b~c": 1, "dataset": {"uri": "x", "max_examples": 1}})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:layerdrift:input"
    pointers = {error["pointer"]: error["detail"] for error in problem["errors"]}
    assert set(pointers) == {"/base/uri", "/dataset/max_examples", "/a~1b~0c"}
    possible = "analysis, base, dataset, finetune, name, seed, tags, tuned, webhook"
    assert pointers["/a~1b~0c"] == f"there is no field 'a/b~c'; possible: {possible}"


def test_a_body_of_a_thousand_errors_gets_a_short_answer(http: TestClient) -> None:
    answer = http.post("/analyses", json={f"k{index}": "v" * 5000 for index in range(1000)})
    errors = answer.json()["errors"]
    assert len(errors) == 21
    assert errors[-1]["detail"].startswith("and 9")
    assert len(answer.content) < 100_000


def test_what_is_not_allowed_says_what_is(http: TestClient) -> None:
    answer = http.put("/analyses")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_body_that_is_not_json_is_said_to_be_so(http: TestClient) -> None:
    answer = http.post("/analyses", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["detail"]
    untyped = http.post("/analyses", content=b"{}", headers={"Content-Type": "text/plain"})
    assert "Content-Type: application/json" in untyped.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status"), [("/missing", 404), ("/conflict", 409), ("/nowhere", 404), ("/crash", 500)]
)
def test_every_error_is_a_problem_document(http: TestClient, path: str, status: int) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert "secret" not in answer.text


def test_a_route_that_never_answers_is_ended_by_the_deadline() -> None:
    app = FastAPI()

    @app.post("/slow")
    async def slow() -> None:
        await asyncio.Event().wait()

    @app.post("/fast")
    async def fast() -> str:
        return "ok"

    app.add_middleware(DeadlineMiddleware, paths=("/slow", "/fast"), seconds=0.2)
    http = TestClient(app)
    assert http.post("/fast").json() == "ok"
    answer = http.post("/slow")
    assert answer.status_code == 504
    assert answer.json()["type"] == "urn:layerdrift:deadline"


@pytest.fixture
def strict() -> TestClient:
    app = FastAPI()
    problems.install(app)
    app.add_middleware(HeadMiddleware)

    @app.get("/things", dependencies=ONLY_KNOWN_PARAMETERS)
    def things(limit: int = 20, status: str | None = None) -> list[int]:
        return [limit]

    @app.post("/analyses", dependencies=ONLY_KNOWN_PARAMETERS)
    def analyses(request: AnalysisRequest) -> str:
        return "ok"

    return TestClient(app, raise_server_exceptions=False)


def test_head_is_get_without_its_body(strict: TestClient) -> None:
    answer, whole = strict.head("/things"), strict.get("/things")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == whole.headers["content-length"]


def test_unknown_query_parameters_are_refused(strict: TestClient) -> None:
    answer = strict.get("/things?limt=3")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "there is no query parameter 'limt'; did you mean limit?"
    assert strict.post("/analyses?dry_run=1", json={}).status_code == 422
    assert strict.get("/things?limit=3&status=x").json() == [3]


@pytest.mark.parametrize(
    ("content", "media_type", "status", "title"),
    [
        (b"{", "application/json", 400, "The body is not JSON"),
        (b"\xff", "application/json", 400, "The body is not JSON"),
        (b"base=x", "application/x-www-form-urlencoded", 415, "Unsupported media type"),
        (b"{}", "text/plain", 415, "Unsupported media type"),
        (b"[]", "application/json", 422, "Invalid input"),
        (b"{}", "application/json", 422, "Invalid input"),
    ],
)
def test_what_is_no_json_has_a_status_of_its_own(
    strict: TestClient, content: bytes, media_type: str, status: int, title: str
) -> None:
    answer = strict.post("/analyses", content=content, headers={"Content-Type": media_type})
    assert (answer.status_code, answer.json()["title"]) == (status, title)


def test_an_error_in_the_query_is_not_called_one_of_the_body(strict: TestClient) -> None:
    assert strict.get("/things?limit=x").json()["detail"] == "query parameter limit: must be a whole number; it is 'x'"
