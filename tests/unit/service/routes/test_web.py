from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.routes import web


@pytest.fixture(scope="module")
def http() -> TestClient:
    app = FastAPI()
    app.include_router(web.router)
    app.mount(web.PREFIX, web.WebFiles(directory=web.FOLDER))
    return TestClient(app)


def rules(policy: str) -> dict[str, list[str]]:
    """A Content-Security-Policy by directive."""
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


@pytest.mark.parametrize("path", ["/", f"{web.PREFIX}/index.html"])
def test_the_page_runs_its_own_scripts_alone_and_stands_in_no_frame(http: TestClient, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = rules(answer.headers["content-security-policy"])
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == ["'none'"]
    assert policy["script-src"] == policy["connect-src"] == policy["form-action"] == ["'self'"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"


def test_every_script_and_style_of_the_page_is_there(http: TestClient) -> None:
    page = http.get("/").text
    named = {part.split('"')[0] for part in page.split(f'"{web.PREFIX}')[1:]}
    assert {name.rpartition(".")[2] for name in named} >= {"js", "css"}
    assert {name: http.get(web.PREFIX + name).status_code for name in named} == dict.fromkeys(named, 200)


def test_the_frame_of_reports_has_no_origin_and_may_fetch_nothing(http: TestClient) -> None:
    policy = rules(http.get(f"{web.PREFIX}/frame.html").headers["content-security-policy"])
    assert "allow-same-origin" not in policy["sandbox"]
    assert policy["default-src"] == ["'none'"]
    assert "connect-src" not in policy
    assert policy["frame-ancestors"] == ["'self'"]


@pytest.mark.parametrize("path", ["/none.js", "/../routes/web.py", "/%2e%2e/routes/web.py", "/..%2f..%2fapp.py", "/"])
def test_nothing_else_is_served(http: TestClient, path: str) -> None:
    assert http.get(web.PREFIX + path).status_code == 404


def test_a_file_that_the_browser_has_is_not_sent_again(http: TestClient) -> None:
    path = f"{web.PREFIX}/frame.html"
    again = http.get(path, headers={"If-None-Match": http.get(path).headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "sandbox" in again.headers["content-security-policy"]
