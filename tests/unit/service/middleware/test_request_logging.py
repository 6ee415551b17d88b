from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import structlog
from starlette.types import Receive, Scope, Send

from backends.observability.metrics import REQUEST_SECONDS, REQUESTS
from service.middleware.request_logging import RequestLoggingMiddleware
from tests.builders.asgi import Echo, Sent, answer, scope

ROUTE = SimpleNamespace(path="/things/{id}")


def counted(method: str, route: str, status: int) -> float:
    return float(REQUESTS.labels(method, route, str(status))._value.get())


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "service.middleware.request_logging")
    return caplog


def asked(app: Any = None, path: str = "/things/1", **headers: str) -> Sent:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(RequestLoggingMiddleware(app or Echo(ROUTE)), scope("GET", path, given))


@pytest.mark.parametrize("given", ["a", "ci-42.retry_1", "A" * 64])
def test_an_id_that_the_client_gives_comes_back(given: str) -> None:
    assert asked(x_request_id=given).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "A" * 65, "two words", "a\nb", "a\n", "é", 'x"', "../x"])
def test_an_id_that_could_spoil_a_log_is_replaced(given: str) -> None:
    made = asked(x_request_id=given).headers["x-request-id"]
    assert made != given
    assert len(made) == 16
    assert int(made, 16) >= 0


def test_requests_without_an_id_get_different_ones() -> None:
    assert len({asked().headers["x-request-id"] for _ in range(5)}) == 5


def test_a_request_has_one_line_with_its_status(lines: pytest.LogCaptureFixture) -> None:
    asked()
    (line,) = lines.messages
    assert line.startswith("GET /things/1 -> 200 in ")


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_are_counted_but_not_logged(lines: pytest.LogCaptureFixture, path: str) -> None:
    before = counted("GET", path, 200)
    asked(Echo(SimpleNamespace(path=path)), path)
    assert (lines.messages, counted("GET", path, 200)) == ([], before + 1)


def test_an_answer_out_of_the_cache_is_counted_but_not_logged(lines: pytest.LogCaptureFixture) -> None:
    async def cached(scope: Scope, receive: Receive, send: Send) -> None:
        scope["from_cache"] = True
        await Echo(ROUTE)(scope, receive, send)

    before = counted("GET", ROUTE.path, 200)
    asked(cached)
    assert (lines.messages, counted("GET", ROUTE.path, 200)) == ([], before + 1)


def test_requests_are_counted_by_route_and_not_by_path() -> None:
    before, timed = counted("GET", ROUTE.path, 200), REQUEST_SECONDS.labels(ROUTE.path)._sum.get()
    for number in range(3):
        asked(path=f"/things/{number}")
    assert counted("GET", ROUTE.path, 200) == before + 3
    assert REQUEST_SECONDS.labels(ROUTE.path)._sum.get() > timed


def test_a_path_without_a_route_makes_no_series_of_its_own() -> None:
    before = counted("GET", "none", 200)
    asked(Echo(), "/wp-admin.php")
    assert counted("GET", "none", 200) == before + 1


def test_an_app_that_fails_before_it_answers_counts_as_500(lines: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> NoReturn:
        raise ZeroDivisionError

    before = counted("GET", "none", 500)
    with pytest.raises(ZeroDivisionError):
        asked(broken)
    assert counted("GET", "none", 500) == before + 1
    assert [line.split(" in ")[0] for line in lines.messages] == ["GET /things/1 -> 500"]


def test_what_is_logged_meanwhile_has_the_id_and_what_comes_after_has_not() -> None:
    bound: list[object] = []

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        bound.append(structlog.contextvars.get_contextvars().get("request_id"))
        await Echo()(scope, receive, send)

    asked(looking, x_request_id="ci-1")
    assert (bound, structlog.contextvars.get_contextvars()) == (["ci-1"], {})


def test_what_is_no_request_goes_through() -> None:
    app = Echo()
    answer(RequestLoggingMiddleware(app), {"type": "lifespan"})
    assert app.asked == [{"type": "lifespan"}]
