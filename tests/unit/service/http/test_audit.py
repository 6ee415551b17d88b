"""The audit log: what is told of who did what, through the real routes."""

from __future__ import annotations

from typing import Any, cast

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from layerdrift.contract.analysis import Status
from layerdrift.contract.key import Scope
from service.http import audit
from service.middleware.request_logging import RequestLoggingMiddleware
from service.routes import analyses, api_keys, health, planning, sign_in, uploads, usage
from tests.builders.records import record
from tests.builders.service import ServiceDeployment, api

ID = "an_" + "a" * 26


class Lines(list[dict[str, Any]]):
    """The audit lines, with their fields."""

    def info(self, event: str) -> None:
        self.append({"event": event} | structlog.contextvars.get_contextvars())


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    made = Lines()
    monkeypatch.setattr(audit, "logger", made)
    return made


def served() -> tuple[ServiceDeployment, TestClient]:
    done = record(analysis_id=ID).model_copy(update={"status": Status.SUCCEEDED, "tenant": "search"})
    deployment = ServiceDeployment(done)
    modules = (analyses, api_keys, health, planning, sign_in, uploads, usage)
    http = api(deployment, *(module.router for module in modules))
    cast(FastAPI, http.app).add_middleware(RequestLoggingMiddleware)
    deployment.sign_in(http, Scope.ADMIN, tenant="search")
    return deployment, http


def test_a_line_says_who_did_what_to_what_and_how_it_ended(lines: Lines) -> None:
    deployment, http = served()
    key = deployment.keys.all()[0]
    http.delete(f"/v1/analyses/{ID}", headers={"X-Request-ID": "ci-1"})
    (line,) = lines
    assert line == {
        "event": "audit",
        "action": "DELETE /v1/analyses/{analysis_id}",
        "object": f"/v1/analyses/{ID}",
        "status": 204,
        "tenant": "search",
        "key": key.id,
        "key_name": key.name,
        "client": "testclient",
        "request_id": "ci-1",
    }


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [
        ("GET", "/v1/keys", True),
        ("GET", "/v1/usage", True),
        ("GET", f"/v1/analyses/{ID}/artifacts", True),
        ("POST", "/v1/uploads", True),
        ("GET", "/v1/analyses", False),
        ("GET", f"/v1/analyses/{ID}", False),
        ("POST", "/v1/estimates", False),
        ("GET", "/auth/callback", True),
        ("POST", "/auth/logout", True),
        ("GET", "/auth/session", False),
        ("GET", "/health", False),
        ("GET", "/metrics", False),
    ],
)
def test_what_reads_or_changes_is_told_and_polling_is_not(lines: Lines, method: str, path: str, told: bool) -> None:
    _, http = served()
    http.request(method, path, json={"filename": "a.csv"} if method == "POST" else None)
    assert bool(lines) is told


def test_what_was_made_is_named(lines: Lines) -> None:
    _, http = served()
    answer = http.post("/v1/uploads", json={"filename": "a.csv"})
    assert lines[0]["object"] == answer.headers["Location"]


@pytest.mark.parametrize(("authorization", "status"), [("Bearer wrong-key", 401), (None, 403)])
def test_who_was_kept_from_something_is_told_also_of_polling(
    lines: Lines, authorization: str | None, status: int
) -> None:
    deployment, http = served()
    if authorization is None:
        deployment.sign_in(http, Scope.SUBMIT, tenant="search")
    else:
        http.headers["Authorization"] = authorization
    assert http.get("/v1/analyses").status_code == status
    (line,) = lines
    assert (line["action"], line["status"]) == ("GET /v1/analyses", status)
    assert (line["key"] is None) == (status == 401)
    assert "wrong-key" not in str(line)
