from __future__ import annotations

import logging

import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from layerdrift.contract.errors import (
    ConflictError,
    LayerdriftError,
    NotFoundError,
    RateError,
    UnauthorizedError,
    UnavailableError,
)
from layerdrift.contract.policy import Policy
from layerdrift.contract.request import AnalysisRequest
from service.http import problems


@pytest.fixture
def http() -> TestClient:
    made = FastAPI()
    problems.install(made)
    raised: dict[str, Exception] = {
        "missing": NotFoundError("there is no analysis an_x"),
        "conflict": ConflictError("it has ended"),
        "crash": ZeroDivisionError("secret detail"),
        "redis": redis.ConnectionError("secret host"),
        "teapot": HTTPException(418, "short and stout", {"X-Pot": "tea"}),
    }

    @made.post("/analyses")
    def analyses(request: AnalysisRequest) -> str:
        return "ok"

    @made.post("/policies")
    def policies(request: Policy) -> str:
        return "ok"

    @made.get("/things")
    def things(limit: int = 20) -> int:
        return limit

    @made.delete("/things")
    def no_things() -> None:
        return None

    @made.get("/raised/{name}")
    def raise_it(name: str) -> None:
        raise raised[name]

    return TestClient(made, raise_server_exceptions=False)


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


@pytest.mark.parametrize(
    ("path", "body", "pointer", "detail"),
    [
        ("/analyses", {"datset": 1}, "/datset", "there is no field 'datset'; did you mean dataset?"),
        ("/policies", {"rule": 1}, "/rule", "there is no field 'rule'; did you mean rules?"),
        ("/policies", {"rules": [{"ide": 1}]}, "/rules/0/ide", "there is no field 'ide'; did you mean id?"),
        (
            "/analyses",
            {"dataset": {"max_example": 1}},
            "/dataset/max_example",
            "there is no field 'max_example'; did you mean max_examples?",
        ),
    ],
)
def test_a_mistyped_field_is_compared_with_those_of_its_place_in_its_kind_of_body(
    http: TestClient, path: str, body: dict[str, object], pointer: str, detail: str
) -> None:
    assert {"pointer": pointer, "detail": detail} in http.post(path, json=body).json()["errors"]


def test_a_body_of_a_thousand_errors_gets_a_short_answer(http: TestClient) -> None:
    answer = http.post("/analyses", json={f"k{index}": "v" * 5000 for index in range(1000)})
    errors = answer.json()["errors"]
    assert len(errors) == problems.MAX_ERRORS + 1
    assert errors[-1]["detail"].startswith("and 9")
    assert len(answer.content) < 100_000


def test_as_many_errors_as_are_named_are_all_of_them() -> None:
    wrong = [{"type": "missing", "loc": ("body", f"f{number}")} for number in range(problems.MAX_ERRORS)]
    assert [one.pointer for one in problems.field_problems(wrong)] == [f"/f{at}" for at in range(problems.MAX_ERRORS)]


def test_control_characters_of_a_field_name_are_shown_as_escapes(http: TestClient) -> None:
    errors = http.post("/analyses", json={"a\x1b[31m\u202e\n": 1}).json()["errors"]
    (error,) = [one for one in errors if one["pointer"].startswith("/a")]
    assert error["pointer"] == r"/a\x1b[31m\u202e\n"
    assert error["detail"].startswith(r"there is no field 'a\x1b[31m\u202e\n'")


@pytest.mark.parametrize("content", [b'{"\\ud800": 1}', b'{"name": "\\ud800"}'])
def test_half_a_surrogate_pair_is_said_to_be_one(http: TestClient, content: bytes) -> None:
    answer = http.post("/analyses", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, "half a surrogate pair" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [("/analyses", "PUT", "POST"), ("/things", "PATCH", "DELETE, GET"), ("/raised/missing", "DELETE", "GET")],
)
def test_what_is_not_allowed_says_what_is(http: TestClient, path: str, method: str, allowed: str) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/raised/missing", 404),
        ("/raised/conflict", 409),
        ("/nowhere", 404),
        ("/raised/crash", 500),
        ("/raised/redis", 503),
        ("/raised/teapot", 418),
    ],
)
def test_every_error_is_a_problem_document(http: TestClient, path: str, status: int) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert "secret" not in answer.text


def test_an_error_that_nobody_foresaw_is_told_to_the_log_alone(
    http: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        http.get("/raised/crash")
    (line,) = [one for one in caplog.records if one.name == problems.logger.name]
    assert line.getMessage() == "unforeseen error at GET /raised/crash"
    assert "secret detail" in str(line.exc_info and line.exc_info[1])


def test_headers_of_an_http_error_stay(http: TestClient) -> None:
    answer = http.get("/raised/teapot")
    assert (answer.headers["x-pot"], answer.json()["detail"]) == ("tea", "short and stout")


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (RateError("too many", 7), "Retry-After", "7"),
        (UnauthorizedError("no key"), "WWW-Authenticate", 'Bearer realm="layerdrift"'),
        (UnavailableError("away"), "Retry-After", str(problems.RETRY_AFTER_SECONDS)),
    ],
)
def test_an_error_says_in_a_header_what_to_do(error: LayerdriftError, name: str, value: str) -> None:
    answer = problems.problem_response(error, {"Connection": "close"})
    assert (answer.headers[name], answer.headers["Connection"]) == (value, "close")


@pytest.mark.parametrize(
    ("content", "media_type", "status", "title"),
    [
        (b"{", "application/json", 400, "The body is not JSON"),
        (b"\xff", "application/json", 400, "The body is not JSON"),
        (b"base=x", "application/x-www-form-urlencoded", 415, "Unsupported media type"),
        (b"{}", "text/plain", 415, "Unsupported media type"),
        (b"{}", None, 415, "Unsupported media type"),
        (b"[]", "application/json", 422, "Invalid input"),
        (b"{}", "application/json", 422, "Invalid input"),
        (b"[]", "APPLICATION/JSON; charset=utf-8", 422, "Invalid input"),
        (b"[]", "application/policy+json", 422, "Invalid input"),
        (b"", "application/json", 422, "Invalid input"),
    ],
)
def test_what_is_no_json_has_a_status_of_its_own(
    http: TestClient, content: bytes, media_type: str | None, status: int, title: str
) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    answer = http.post("/analyses", content=content, headers=headers)
    assert (answer.status_code, answer.json()["title"]) == (status, title)


def test_a_body_of_another_type_says_which_one_is_wanted(http: TestClient) -> None:
    detail = http.post("/analyses", content=b"{}", headers={"Content-Type": "text/plain"}).json()["detail"]
    assert detail == "send JSON with Content-Type: application/json; this is text/plain"
    assert "no Content-Type" in http.post("/analyses", content=b"{}").json()["detail"]


def test_a_body_that_is_a_list_is_said_to_be_no_object(http: TestClient) -> None:
    problem = http.post("/analyses", json=[1]).json()
    assert problem["errors"] == [{"pointer": "", "detail": "the body must be a JSON object"}]
    assert problem["detail"] == "the body must be a JSON object"


def test_an_error_in_the_query_is_not_called_one_of_the_body(http: TestClient) -> None:
    problem = http.get("/things?limit=x").json()
    assert problem["detail"] == "query parameter limit: must be a whole number; it is 'x'"
    assert problem["errors"][0]["pointer"] == ""


def test_documented_answers_are_problem_documents() -> None:
    described = problems.documented(404, 409)
    assert [one["description"] for one in described.values()] == ["Not Found", "Conflict"]
    assert list(described[404]["content"]) == ["application/problem+json"]
