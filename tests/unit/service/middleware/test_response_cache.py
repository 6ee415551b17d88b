from __future__ import annotations

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.responses import Response

from service.http.conditional import conditional
from service.middleware.response_cache import CachedResponses, ResponseCacheMiddleware

PATH = "/v1/analyses/an_" + "a" * 26 + "/report"


class Service:
    """An app that counts how often it is asked; keys other than `good` are refused."""

    def __init__(self, **limits: float) -> None:
        self.asked = 0
        app = FastAPI()

        @app.get("/v1/analyses/{analysis_id}/report")
        def report(request: Request) -> Response:
            self.asked += 1
            if request.headers.get("authorization") == "Bearer bad":
                return Response(status_code=401)
            accept = request.headers.get("accept", "")
            body = f"{accept} {self.asked}".encode()
            return conditional(body, "text/plain", request.headers.get("if-none-match"), {"Vary": "Accept"})

        app.add_middleware(ResponseCacheMiddleware, reports=CachedResponses(**limits))  # type: ignore[arg-type]
        self.http = TestClient(app)


def test_a_report_is_asked_for_once_while_it_counts() -> None:
    service = Service(seconds=60)
    first, second = (service.http.get(PATH) for _ in range(2))
    assert service.asked == 1
    assert (first.content, first.headers["etag"]) == (second.content, second.headers["etag"])
    assert second.headers["cache-status"] == "layerdrift-process; hit"
    assert second.headers["vary"] == "Accept"
    assert int(second.headers["content-length"]) == len(second.content)


def test_each_key_and_format_is_asked_for_by_itself() -> None:
    service = Service(seconds=60)
    for headers in ({"accept": "text/html"}, {"accept": "text/markdown"}, {"authorization": "Bearer good"}):
        assert service.http.get(PATH, headers=headers).content == service.http.get(PATH, headers=headers).content
    assert service.asked == 3
    assert service.http.get(PATH, headers={"authorization": "Bearer bad"}).status_code == 401
    assert service.http.get(PATH, headers={"authorization": "Bearer bad"}).status_code == 401
    assert service.asked == 5


def test_what_the_client_has_is_answered_without_a_body() -> None:
    service = Service(seconds=60)
    tag = service.http.get(PATH).headers["etag"]
    answer = service.http.get(PATH, headers={"if-none-match": tag})
    assert (answer.status_code, answer.content, answer.headers["etag"], service.asked) == (304, b"", tag, 1)


def test_what_no_longer_counts_is_asked_for_again() -> None:
    service = Service(seconds=-1)
    assert service.http.get(PATH).content != service.http.get(PATH).content


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_other_methods_and_paths_go_through(method: str) -> None:
    service = Service(seconds=60)
    service.http.get(PATH)
    assert service.http.request(method, PATH).status_code == 405
    assert service.http.get(PATH + "/more").status_code == 404


def test_memory_has_a_limit() -> None:
    reports = CachedResponses(max_bytes=100, seconds=60)
    for number in range(20):
        reports.put((str(number),), [], '"x"', b"x" * 30)
    assert [number for number in range(20) if reports.get((str(number),)) is not None] == [17, 18, 19]
    reports.put(("large",), [], '"x"', b"x" * 101)
    assert reports.get(("large",)) is None
    assert reports.get(("19",)) is not None
