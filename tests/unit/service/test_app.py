from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from backends.observability.metrics import REQUESTS
from backends.settings import Settings
from layerdrift import __version__
from layerdrift.contract.analysis import Status
from service.app import ROUTERS, build_server
from tests.builders.records import record
from tests.builders.service import ServiceDeployment

ID = "an_" + "a" * 26
HOST = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def app() -> FastAPI:
    made: FastAPI = build_server(Settings(host="127.0.0.1", allowed_hosts=[])).app
    made.state.deployment = ServiceDeployment(
        record(analysis_id=ID).model_copy(update={"status": Status.RUNNING})
    ).given
    return made


@pytest.fixture
def http(app: FastAPI) -> TestClient:
    """A client of the app, whose lifespan has not begun: nothing is connected, and no process started."""
    return TestClient(app, base_url=HOST, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def schema(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def calls(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": call
        for path, methods in schema["paths"].items()
        for method, call in methods.items()
    }


def test_every_route_of_the_routers_is_documented_where_it_is_to_be(schema: dict[str, Any]) -> None:
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    shown = {f"{method} {route.path}" for route in routes if route.include_in_schema for method in route.methods or ()}
    ours = {name for name in calls(schema) if re.match(r"\w+ /(v1|health|ready)", name)}
    assert shown | {"POST /v1/analyses", "POST /v1/inspect"} == ours


def test_every_call_has_a_summary_and_an_id_of_its_own(schema: dict[str, Any]) -> None:
    documented = {name: call for name, call in calls(schema).items() if "/v1/" in name}
    assert [name for name, call in documented.items() if not call.get("summary")] == []
    ids = Counter(call["operationId"] for call in documented.values())
    assert [one for one, count in ids.items() if count > 1] == []


def test_every_reference_of_the_schema_leads_somewhere(schema: dict[str, Any]) -> None:
    named = set(re.findall(r"'\$ref': '#/components/schemas/([^']+)'", str(schema)))
    assert {"Problem", "FieldProblem", "Analysis", "Report", "Verdict"} <= named
    assert named <= set(schema["components"]["schemas"])
    assert "$defs" not in schema["components"]["schemas"]["Problem"]


def test_errors_are_documented_as_problems_alone(schema: dict[str, Any]) -> None:
    wrong = [
        f"{name} {status}"
        for name, call in calls(schema).items()
        for status, answer in call["responses"].items()
        if "/v1/" in name and int(status) >= 400 and set(answer["content"]) != {"application/problem+json"}
    ]
    assert wrong == []


def test_the_schema_has_our_name_and_version(schema: dict[str, Any]) -> None:
    assert (schema["info"]["title"], schema["info"]["version"]) == ("layerdrift", __version__)


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect", "/litserve/health", "/litserve/info", "/info"])
def test_pages_of_litserve_are_not_served(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "<title>layerdrift</title>"),
        ("/docs", "/static/docs/swagger-ui-bundle.js"),
        ("/static/web/app.js", "import"),
        ("/static/docs/swagger-ui.css", "swagger-ui"),
        ("/health", '"status":"ok"'),
    ],
)
def test_our_own_pages_are_served(http: TestClient, path: str, expected: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, expected in answer.text) == (200, True)


@pytest.mark.parametrize("path", ["/v1/analyses", "/v1/inspect"])
def test_a_post_meets_our_route_and_not_that_of_litserve(http: TestClient, path: str) -> None:
    answer = http.post(path, json={"no such field": 1})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "there is no field 'no such field'" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/analyses", "GET, POST"),
        ("GET", "/v1/inspect", "POST"),
        ("PUT", f"/v1/analyses/{ID}", "DELETE, GET"),
        ("DELETE", "/health", "GET"),
    ],
)
def test_a_method_that_is_not_allowed_gets_all_that_are(http: TestClient, method: str, path: str, allowed: str) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/v1/analyses", {"Host": "evil.example"}, b"", 421),
        ("POST", "/v1/analyses", {"Origin": "http://evil.example"}, b"{}", 403),
        ("POST", "/v1/keys", {}, b"x" * 70_000, 413),
        ("POST", "/v1/analyses", {}, b"[" * 40, 422),
        ("GET", "/v1/analyses?limt=1", {}, b"", 422),
        ("GET", "/nowhere", {}, b"", 404),
    ],
    ids=["host", "origin", "size", "levels", "query", "path"],
)
def test_every_refusal_is_a_problem_with_the_id_of_its_request(
    http: TestClient, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    given = {"Content-Type": "application/json", "X-Request-ID": "ci-1"} | headers
    answer = http.request(method, path, headers=given, content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.headers["x-request-id"] == "ci-1"


def test_a_foreign_host_is_refused_before_anything_is_looked_up(http: TestClient, app: FastAPI) -> None:
    kept = app.state.deployment
    del app.state.deployment
    try:
        assert http.get(f"/v1/analyses/{ID}", headers={"Host": "evil.example"}).status_code == 421
    finally:
        app.state.deployment = kept


def test_head_is_answered_on_every_get(http: TestClient) -> None:
    whole, head = http.get(f"/v1/analyses/{ID}"), http.head(f"/v1/analyses/{ID}")
    assert (head.status_code, head.content) == (200, b"")
    assert [head.headers[name] for name in ("etag", "content-length")] == [
        whole.headers[name] for name in ("etag", "content-length")
    ]


def test_head_is_counted_under_the_route_of_its_get(http: TestClient) -> None:
    counted = REQUESTS.labels("HEAD", "/v1/analyses/{analysis_id}", "200")._value
    before = counted.get()
    http.head(f"/v1/analyses/{ID}")
    assert counted.get() == before + 1
