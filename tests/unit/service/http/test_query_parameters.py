from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import FastAPI, Query
from fastapi.testclient import TestClient

from service.http import problems
from service.http.query_parameters import ONLY_KNOWN_PARAMETERS


@pytest.fixture
def http() -> TestClient:
    app = FastAPI(dependencies=ONLY_KNOWN_PARAMETERS)
    problems.install(app)

    @app.get("/things")
    def things(limit: int = 20, since: Annotated[str, Query(alias="from")] = "") -> list[str]:
        return [str(limit), since]

    @app.get("/nothing/{name}")
    def nothing(name: str) -> str:
        return name

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("/things?limt=3", "there is no query parameter 'limt'; did you mean limit?"),
        ("/things?limit=3&LIMIT=4", "there is no query parameter 'LIMIT'; possible: limit, from"),
        ("/things?since=1", "there is no query parameter 'since'; possible: limit, from"),
        ("/things?=3", "there is no query parameter ''; possible: limit, from"),
        ("/nothing/x?name=y", "there is no query parameter 'name'"),
    ],
)
def test_an_unknown_query_parameter_is_refused_with_those_that_exist(http: TestClient, query: str, detail: str) -> None:
    answer = http.get(query)
    assert (answer.status_code, answer.json()["detail"]) == (422, detail)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("/things", ["20", ""]),
        ("/things?from=monday&limit=3", ["3", "monday"]),
        ("/things?limit=3&limit=4", ["4", ""]),
    ],
)
def test_known_query_parameters_go_by_the_names_that_clients_use(
    http: TestClient, query: str, expected: list[str]
) -> None:
    assert http.get(query).json() == expected


def test_a_path_without_a_route_is_not_found_whatever_its_query(http: TestClient) -> None:
    assert http.get("/nowhere?limit=3").status_code == 404
