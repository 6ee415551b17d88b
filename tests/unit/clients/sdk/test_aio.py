"""The client for asyncio against a service in memory, with a clock that only its own pauses move."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from layerdrift.contract.artifact import Artifact
from layerdrift.contract.errors import (
    ConflictError,
    InputError,
    LayerdriftError,
    NotFoundError,
    TransportError,
    UnavailableError,
)
from layerdrift.sdk import AnalysisFailed, AsyncClient, Event, Retries, aio, calls
from tests.builders.analyses import ANALYSIS_ID, analysis
from tests.builders.http_service import HttpService, problem
from tests.builders.reports import preliminary, report

PLACE = f"/v1/analyses/{ANALYSIS_ID}"
ONCE = Retries(tries=0)
OUT_OF_MEMORY = {"type": "x", "title": "t", "status": 500, "detail": "out of memory", "stage": "sae"}


@pytest.fixture(autouse=True)
def clock(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes while a client pauses, and at no other time."""
    stopped = SimpleNamespace(monotonic=lambda: 1000.0 + sum(service.pauses))
    monkeypatch.setattr(aio, "time", stopped)
    monkeypatch.setattr(calls, "time", stopped)


def using(work: Callable[[AsyncClient], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """Runs some work with a client."""

    async def whole() -> Any:
        async with AsyncClient("http://service", **options) as client:
            return await work(client)

    return asyncio.run(whole())


def away(_: httpx.Request) -> httpx.Response:
    return problem(503, "Redis is unavailable")


def unreachable(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def stream(*lines: str) -> Callable[[httpx.Request], httpx.Response]:
    """Events as they come over the wire."""
    body = "".join(f"{line}\n" for line in lines)
    return lambda _: httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=body)


def test_an_analysis_is_polled_to_its_end_and_its_report_fetched(service: HttpService) -> None:
    service.answers = {
        f"GET {PLACE}": [analysis("queued"), analysis("running"), analysis()],
        f"GET {PLACE}/report": report(),
    }
    assert using(lambda client: client.wait(ANALYSIS_ID)) == report()
    assert service.asked == [f"GET {PLACE}"] * 3 + [f"GET {PLACE}/report"]
    assert service.pauses == [0.5, 0.5]


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (
            analysis("failed", error=OUT_OF_MEMORY),
            f"{ANALYSIS_ID} failed in stage sae: out of memory",
        ),
        (analysis("cancelled"), f"{ANALYSIS_ID} cancelled: somebody cancelled it"),
    ],
    ids=["failed", "cancelled"],
)
def test_an_analysis_without_a_report_is_an_error_with_its_reason(
    service: HttpService, ended: Any, reason: str
) -> None:
    service.answers[f"GET {PLACE}"] = ended
    with pytest.raises(AnalysisFailed) as raised:
        using(lambda client: client.wait(ANALYSIS_ID))
    assert raised.value.detail == reason
    assert service.asked == [f"GET {PLACE}"]


def test_who_waits_no_longer_than_given_is_told_how_to_go_on(service: HttpService) -> None:
    service.answers[f"GET {PLACE}"] = analysis("running")
    with pytest.raises(TimeoutError, match=f"timed out after 2 s; .* layerdrift watch {ANALYSIS_ID}"):
        using(lambda client: client.wait(ANALYSIS_ID, timeout=2))
    assert sum(service.pauses) == 2.5


def test_outages_of_less_than_a_minute_are_waited_out_one_after_another(service: HttpService) -> None:
    outage = [unreachable, away] * 40
    service.answers = {
        f"GET {PLACE}": [analysis("running"), *outage, analysis("running"), *outage, analysis()],
        f"GET {PLACE}/report": report(),
    }
    assert using(lambda client: client.wait(ANALYSIS_ID), retries=ONCE) == report()
    assert sum(service.pauses) > 80


def test_a_longer_outage_is_an_error(service: HttpService) -> None:
    service.answers[f"GET {PLACE}"] = [analysis("running"), away]
    with pytest.raises(UnavailableError, match="Redis is unavailable"):
        using(lambda client: client.wait(ANALYSIS_ID), retries=ONCE)
    assert 60 < sum(service.pauses) < 62


async def events_of(client: AsyncClient, **options: Any) -> list[Event]:
    return [event async for event in client.events(ANALYSIS_ID, **options)]


def test_a_stream_that_ends_early_is_taken_up_after_the_last_event(service: HttpService) -> None:
    service.answers[f"GET {PLACE}/events"] = [
        stream("id: 1-0", "event: stage", 'data: {"name": "resolve"}', "", ": still there", ""),
        unreachable,
        away,
        stream("id: 2-0", "event: done", "data: {}", ""),
    ]
    assert using(events_of) == [("1-0", "stage", {"name": "resolve"}), ("2-0", "done", {})]
    assert [request.headers.get("Last-Event-ID") for request in service.seen] == [None, "1-0", "1-0", "1-0"]


def test_a_stream_can_begin_after_an_event_that_was_seen(service: HttpService) -> None:
    service.answers[f"GET {PLACE}/events"] = stream("event: done", "data: {}", "")
    using(lambda client: events_of(client, after="7-0"))
    assert service.seen[0].headers["Last-Event-ID"] == "7-0"


def test_a_stream_of_an_analysis_that_is_not_there_is_an_error_at_once(service: HttpService) -> None:
    with pytest.raises(NotFoundError):
        using(events_of)
    assert len(service.seen) == 1


def test_a_stream_is_given_up_after_an_outage_of_a_minute(service: HttpService) -> None:
    service.answers[f"GET {PLACE}/events"] = away
    with pytest.raises(TransportError, match=r"http://service has been away for 60 s: Redis is unavailable"):
        using(events_of)
    assert 60 < sum(service.pauses) < 62


def test_a_stream_that_never_ends_is_left_at_the_given_time(service: HttpService) -> None:
    service.answers[f"GET {PLACE}/events"] = stream(": still there", "")
    with pytest.raises(TimeoutError, match="timed out after 3 s"):
        using(lambda client: events_of(client, timeout=3))


def test_before_a_call_is_made_again_the_reason_is_told_and_the_service_sets_the_pause(service: HttpService) -> None:
    service.answers[f"GET {PLACE}"] = [lambda _: problem(503, "full", headers={"Retry-After": "7"}), analysis()]
    told: list[str] = []
    assert using(lambda client: client.get(ANALYSIS_ID), on_retry=told.append) == analysis()
    assert told == ["http://service answers 503; trying again in 7 s"]
    assert service.pauses == [7.0]


def test_what_may_have_been_done_is_made_again_only_where_the_service_did_not_begin(service: HttpService) -> None:
    limited = problem(429, "slow down")
    service.answers[f"POST {PLACE}/cancel"] = [lambda _: limited, analysis("cancelled")]
    assert using(lambda client: client.cancel(ANALYSIS_ID)).status == "cancelled"
    service.answers[f"POST {PLACE}/cancel"] = [away, analysis("cancelled")]
    with pytest.raises(UnavailableError):
        using(lambda client: client.cancel(ANALYSIS_ID))
    assert len(service.seen) == 2 + 1


def test_a_service_that_nobody_answers_at_is_named_in_the_end(service: HttpService) -> None:
    service.answers[f"GET {PLACE}"] = unreachable
    with pytest.raises(TransportError, match="http://service could not be reached: refused"):
        using(lambda client: client.get(ANALYSIS_ID), retries=Retries(tries=2))
    assert len(service.seen) == 3


def test_a_request_that_is_none_is_not_sent(service: HttpService) -> None:
    with pytest.raises(InputError) as raised:
        using(lambda client: client.submit({"base": {"uri": "s3://a/b"}, "dataset": {"uri": "s3://d/x.csv"}}))
    assert raised.value.errors
    assert service.seen == []


def test_a_preliminary_report_is_taken_only_where_it_was_asked_for(service: HttpService) -> None:
    early = preliminary(("sae", None))
    service.answers[f"GET {PLACE}/report"] = lambda _: httpx.Response(
        200, headers={"Layerdrift-Report": "preliminary"}, text=early.model_dump_json()
    )
    with pytest.raises(ConflictError, match="its report is preliminary"):
        using(lambda client: client.report(ANALYSIS_ID))
    assert using(lambda client: client.report(ANALYSIS_ID, preliminary=True)) == early


def upload(status: str) -> dict[str, Any]:
    created = {"created_at": "2026-01-01T00:00:00Z"}
    return {"id": "up_x", "uri": "upload://up_x", "filename": "texts.csv", "status": status, **created}


def test_a_file_is_sent_only_where_the_service_does_not_have_it(service: HttpService, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_bytes(b"text\nfine\n")
    service.answers = {"POST /v1/uploads": upload("waiting"), "PUT /v1/uploads/up_x": upload("complete")}
    assert using(lambda client: client.upload(path)).status == "complete"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert service.sent(0) == {"filename": "texts.csv", "sha256": digest, "bytes": 10}
    assert service.seen[1].content == path.read_bytes()
    service.answers["POST /v1/uploads"] = upload("complete")
    assert using(lambda client: client.upload(path)).uri == "upload://up_x"
    assert service.asked[2:] == ["POST /v1/uploads"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> HttpService:
    """Where artifacts lie: beside the service, reached by links of their own."""
    made = HttpService({"GET /report.html": "<html>"})

    async def handle(_: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return made(request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    return made


def artifact(content: bytes, name: str = "report.html") -> Artifact:
    digest = hashlib.sha256(content).hexdigest()
    url = f"http://bucket/{name}?signed"
    return Artifact(name=name, media_type="text/html", bytes=len(content), sha256=digest, url=url)


def test_an_artifact_is_fetched_by_its_link_without_the_api_key(bucket: HttpService, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    using(lambda client: client.download(artifact(b"<html>"), target), api_key="ld_secret")
    assert target.read_text() == "<html>"
    assert "Authorization" not in bucket.seen[0].headers


def test_bytes_that_are_not_those_that_were_kept_are_an_error(bucket: HttpService, tmp_path: Path) -> None:
    with pytest.raises(LayerdriftError, match=r"report\.html came with the sha256 .*, not "):
        using(lambda client: client.download(artifact(b"<HTML>"), tmp_path / "page.html"))
    assert (len(bucket.seen), list(tmp_path.iterdir())) == (1, [])


def test_a_link_that_has_expired_is_an_error_and_leaves_no_file(bucket: HttpService, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"other\.html could not be fetched: .*404"):
        using(lambda client: client.download(artifact(b"", "other.html"), tmp_path / "page.html"))
    assert (len(bucket.seen), list(tmp_path.iterdir())) == (1, [])


def test_a_client_that_was_left_sends_nothing_more(service: HttpService) -> None:
    async def whole() -> None:
        async with AsyncClient("http://service/") as client:
            assert client.url == "http://service"
        with pytest.raises(RuntimeError, match="closed"):
            await client.get(ANALYSIS_ID)

    asyncio.run(whole())
    assert service.seen == []
