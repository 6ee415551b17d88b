"""What is asked of the service, and how its answers are read, without a connection."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent

from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError, LayerdriftError, NotFoundError
from layerdrift.contract.key import KeyRequest
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Event, Retries, calls
from layerdrift.sdk.calls import Call
from tests.builders.analyses import ANALYSIS_ID, analysis
from tests.builders.http_service import problem

HTTP = httpx.Client(base_url="http://service")
PAIR: dict[str, Any] = {
    "base": {"uri": "s3://m/a"},
    "tuned": {"uri": "s3://m/b"},
    "dataset": {"uri": "s3://d/x.csv"},
}


def test_pauses_grow_have_jitter_and_keep_to_what_the_service_says() -> None:
    retries = Retries(tries=9, first=1.0, longest=8.0)
    call: Call[None] = Call("GET", "/", lambda _: None)
    away = httpx.Response(503)
    for made, most in ((1, 1.0), (2, 2.0), (4, 8.0), (8, 8.0)):
        pauses = [retries.pause(made, call, away) or 0.0 for _ in range(200)]
        assert max(pauses) <= most
        assert max(pauses) > 0.8 * most
        assert min(pauses) < 0.2 * most
    assert retries.pause(1, call, httpx.Response(503, headers={"Retry-After": "30"})) == 30
    assert retries.pause(10, call, away) is None
    assert retries.pause(1, call, httpx.Response(404)) is None


def url_of(call: Call[Any]) -> str:
    return str(call.request(HTTP).url)


def test_no_call_is_made_again_where_tries_are_used_up_or_it_may_have_been_done() -> None:
    once, twice = Call("POST", "/", lambda _: None, repeatable=False), Call("GET", "/", lambda _: None)
    retries = Retries(tries=2)
    assert retries.pause(2, twice, None) is not None
    assert retries.pause(3, twice, None) is None
    assert retries.pause(1, once, None) is None
    assert retries.pause(1, once, httpx.Response(503)) is None
    assert retries.pause(1, once, httpx.Response(429)) is not None
    assert Retries(tries=0).pause(1, twice, httpx.Response(429)) is None


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("latest", "/v1/analyses/latest"),
        ("my model", "/v1/analyses/my%20model"),
        ("50% → 60%?", "/v1/analyses/50%25%20%E2%86%92%2060%25%3F"),
        ("a#b", "/v1/analyses/a%23b"),
    ],
)
def test_a_name_reaches_the_service_as_it_is(reference: str, path: str) -> None:
    assert url_of(calls.get(reference)) == f"http://service{path}"
    assert url_of(calls.compare("latest", reference)) == f"http://service/v1/analyses/latest/compare/{path[13:]}"


@pytest.mark.parametrize("reference", ["", "a/b", "/", ".", ".."])
def test_what_no_path_can_hold_is_refused_before_it_is_sent(reference: str) -> None:
    for call in (calls.get, calls.delete, calls.cancel, calls.report, calls.artifacts, calls.events_path):
        with pytest.raises(InputError, match="is no reference to an analysis"):
            call(reference)


def test_a_page_is_asked_for_with_what_was_given_alone() -> None:
    assert url_of(calls.page(20, None, None, None, None)) == "http://service/v1/analyses?limit=20"
    whole = calls.page(5, "c/1", Status.FAILED, "a&b", "team:x")
    assert dict(whole.request(HTTP).url.params) == {
        "limit": "5",
        "cursor": "c/1",
        "status": "failed",
        "name": "a&b",
        "tag": "team:x",
    }


def test_a_body_is_json_and_a_stream_is_sent_in_its_place() -> None:
    posted = calls.submit(PAIR).request(HTTP)
    assert posted.headers["Content-Type"] == "application/json"
    assert AnalysisRequest.model_validate(json.loads(posted.content)) == AnalysisRequest.model_validate(PAIR)
    put = calls.put("up_x").request(HTTP, [b"ab", b"c"])
    assert put.headers["Transfer-Encoding"] == "chunked"
    assert put.read() == b"abc"


@pytest.mark.parametrize(("format", "media_type"), [("html", "text/html"), ("md", "text/markdown")])
def test_a_report_for_people_is_asked_for_by_its_media_type(format: calls.ReportFormat, media_type: str) -> None:
    assert calls.rendered("latest", format).request(HTTP).headers["Accept"] == media_type


def test_limits_of_a_key_that_were_not_set_are_left_to_the_service() -> None:
    assert calls.create_key(KeyRequest(name="ci")).body == {"name": "ci"}
    assert calls.create_key({"priority": 5}).body == {"priority": 5}


@pytest.mark.parametrize(
    ("made", "pointers"),
    [
        (lambda: calls.submit(PAIR | {"seed": -1, "sed": 2}), {"/seed", "/sed"}),
        (lambda: calls.estimate({}), {"/base", "/dataset"}),
        (lambda: calls.gate("latest", {"rules": [{"id": "a"}]}), {"/rules/0/message", "/rules/0/path"}),
        (lambda: calls.create_key({"priority": 10}), {"/priority"}),
        (lambda: calls.inspect("latest", [], 0), {"/texts"}),
        (lambda: calls.inspect("latest", ["a", ""], 0), {"/texts/1"}),
        (lambda: calls.submit(PAIR | {"finetune": {}}), {""}),
    ],
    ids=["submit", "estimate", "gate", "key", "no text", "empty text", "whole request"],
)
def test_a_mapping_that_is_no_request_is_refused_with_every_field_that_is_wrong(made: Any, pointers: set[str]) -> None:
    with pytest.raises(InputError) as raised:
        made()
    assert {one.pointer for one in raised.value.errors} == pointers
    for one in raised.value.errors:
        assert one.detail.startswith(one.pointer[1:].replace("/", "."))
        assert one.detail in raised.value.detail


def answered(call: Call[Any], answer: httpx.Response) -> Any:
    answer.request = call.request(HTTP)
    return call.result(answer)


def test_an_answer_is_read_as_what_was_asked_for() -> None:
    assert answered(calls.get("latest"), httpx.Response(200, text=analysis().model_dump_json())) == analysis()
    assert answered(calls.artifacts("latest"), httpx.Response(200, json={"items": []})) == []
    assert answered(calls.delete("latest"), httpx.Response(204)) is None


def test_an_answer_of_a_record_that_was_accepted_before_is_not_refused_for_its_name() -> None:
    body = analysis().model_dump(mode="json")
    body["request"]["name"] = "a\x1bb"
    assert answered(calls.get("latest"), httpx.Response(200, json=body)).request.name == "a\x1bb"


@pytest.mark.parametrize("body", ["", "<html>a proxy</html>", "{}"])
def test_an_answer_that_is_nothing_of_ours_is_an_error_that_names_where_it_came_from(body: str) -> None:
    with pytest.raises(LayerdriftError, match="http://service/v1/analyses/latest answered something that layerdrift"):
        answered(calls.get("latest"), httpx.Response(200, text=body))


def test_an_error_of_the_service_is_raised() -> None:
    with pytest.raises(NotFoundError, match="no such analysis"):
        answered(calls.get("latest"), problem(404, "no such analysis"))


def test_an_event_without_data_has_none() -> None:
    assert Event.of(ServerSentEvent("done", "", "3-0")) == Event("3-0", "done", {})
    assert Event.of(ServerSentEvent("log", '{"line": "x"}', "4-0")).data == {"line": "x"}


@pytest.mark.parametrize(
    ("url", "key", "base", "headers"),
    [
        ("http://given", "ld_given", "http://given", {"Authorization": "Bearer ld_given"}),
        (None, None, "http://variable", {"Authorization": "Bearer ld_variable"}),
        ("", "", "http://variable", {"Authorization": "Bearer ld_variable"}),
    ],
)
def test_what_is_given_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str | None, key: str | None, base: str, headers: dict[str, str]
) -> None:
    monkeypatch.setenv("LAYERDRIFT_URL", "http://variable")
    monkeypatch.setenv("LAYERDRIFT_API_KEY", "ld_variable")
    assert calls.connection(url, key, 5) == {"base_url": base, "headers": headers, "timeout": 5}


def test_without_either_the_service_of_this_machine_is_asked_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAYERDRIFT_URL", raising=False)
    monkeypatch.setenv("LAYERDRIFT_API_KEY", "")
    assert calls.connection(None, None, 5) == {"base_url": "http://127.0.0.1:8000", "headers": {}, "timeout": 5}


@pytest.mark.parametrize(
    ("pause", "answer", "said"),
    [
        (0.4, None, "http://s does not answer; trying again"),
        (30.4, httpx.Response(429), "http://s answers 429; trying again in 30 s"),
    ],
)
def test_why_a_call_is_made_again_is_told_with_a_pause_that_can_be_noticed(
    pause: float, answer: httpx.Response | None, said: str
) -> None:
    assert calls.retrying("http://s", pause, answer) == said


def test_time_is_over_only_where_some_was_given() -> None:
    calls.check(None, ANALYSIS_ID, None)
    calls.check(time.monotonic() + 60, ANALYSIS_ID, 60)
    with pytest.raises(TimeoutError, match=r"timed out after 0\.5 s; an_a+ is still running"):
        calls.check(time.monotonic() - 1, ANALYSIS_ID, 0.5)
