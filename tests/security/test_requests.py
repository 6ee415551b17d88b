"""No request stops the service: bodies, policies, records and streams have bounds."""

from __future__ import annotations

import json
import random
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.deployment import Deployment
from backends.jobs.listing import PAGE_BYTES
from backends.jobs.records import JobRecord
from backends.storage import uploads
from deploy.embedded.stack import Stack
from layerdrift import gate, policies
from layerdrift.cli import inputs
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError, RateError
from layerdrift.contract.policy import Policy
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.upload import UploadRequest
from service.http.concurrency import ConcurrencyLimit
from service.middleware.json_structure import MAX_DEPTH, MAX_FIELDS, MAX_STRUCTURE_BYTES, JsonStructure
from tests.builders.jobs import WatchedSources, submitted
from tests.builders.texts import make_texts
from tests.security.requested import MIB, POST, request
from workers import lease_keeper
from workers.job import run_job


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    "body",
    [
        nested(1_300_000),
        b"[" * 4_000_000,
        b"[" + b",".join([b"[" * 20 + b"]" * 20] * 5_000) + b"]",
        json.dumps({f"field{number}": 1 for number in range(400_000)}).encode(),
        b"[" + b"1," * 3_900_000 + b"1]",
        b'"' * 8_000_000,
        b'\\"\\\\"' * 1_600_000,
        b'"' + b'\\"' * 1_600_000 + b'"',
        b'{"seed": ' + b"9" * 7_000_000 + b"}",
        ('{"\u0122":[' + "1," * 1_000_000 + "1]}").encode("utf-16-le"),
        "{}".encode("utf-32"),
    ],
    ids=[
        "objects",
        "arrays",
        "many arrays",
        "fields",
        "numbers",
        "quotes",
        "escapes",
        "escaped quotes",
        "digits",
        "utf-16",
        "utf-32",
    ],
)
def test_bodies_that_are_long_to_read_are_refused_before_they_are(stack: Stack, body: bytes) -> None:
    with pytest.raises(InputError):
        JsonStructure().feed(body)
    said = httpx.post(stack.url + POST, content=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert said.status_code == 422
    assert len(said.content) < 4_000


def structure(body: bytes) -> tuple[int, int]:
    """The naive count: bytes beside what stands in quotes, and the deepest level."""
    size = depth = deepest = 0
    in_string = escaped = False
    for byte in body:
        if in_string and escaped:
            escaped = False
        elif in_string and byte == 0x5C:
            escaped = True
        elif byte == 0x22:
            in_string = not in_string
            size += 1
        elif not in_string:
            size += 1
            depth += {0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}.get(byte, 0)
            deepest = max(deepest, depth)
    return size, deepest


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1_000_000])
def test_structure_is_counted_right_wherever_the_bytes_are_cut(piece: int) -> None:
    chosen = random.Random(piece)
    for _ in range(300):
        texts = ["".join(chosen.choices('\\"[]{}a,: é', k=chosen.randrange(12))) for _ in range(5)]
        levels = chosen.randrange(MAX_DEPTH - 3, MAX_DEPTH + 2)
        body = b"[" * levels + json.dumps({"x": texts, "y": [[1, None]]}, ensure_ascii=False).encode() + b"]" * levels
        size, deepest = structure(body)
        counted = JsonStructure()
        refused = False
        try:
            for start in range(0, len(body), piece):
                counted.feed(body[start : start + piece])
        except InputError:
            refused = True
        assert refused == (deepest > MAX_DEPTH)
        assert refused or counted._size == size


def test_as_much_structure_as_may_be_is_taken_and_no_more() -> None:
    text = json.dumps(['a "quoted" \\ [{,:}] text ' * 1_000] * 100).encode()
    free = MAX_STRUCTURE_BYTES - structure(text)[0]
    JsonStructure().feed(text + b" " * free)
    with pytest.raises(InputError, match="characters of JSON"):
        JsonStructure().feed(text + b" " * (free + 1))
    JsonStructure().feed(json.dumps({f"f{number}": ":" for number in range(MAX_FIELDS)}).encode())
    with pytest.raises(InputError, match="fields"):
        JsonStructure().feed(json.dumps({f"f{number}": 1 for number in range(MAX_FIELDS + 1)}).encode())
    for odd in (b"", b'"', b'"\\', b"\\", b"]]]]", b"\xff"):
        JsonStructure().feed(odd)


def test_each_route_takes_no_more_than_it_needs(stack: Stack) -> None:
    for path, size in (
        ("/v1/keys", 65 << 10),
        ("/v1/uploads", 65 << 10),
        (POST, 8 * MIB + 1),
        ("/v1/inspect", 3 * MIB),
    ):
        said = httpx.post(stack.url + path, content=b" " * size, headers={"Content-Type": "application/json"})
        assert (path, said.status_code, said.json()["type"]) == (path, 413, "urn:layerdrift:too-large")


def test_a_body_with_many_mistakes_is_answered_with_few(stack: Stack) -> None:
    said = httpx.post(stack.url + POST, json={f"f{number}": 1 for number in range(2_500)})
    assert said.status_code == 422
    assert len(said.json()["errors"]) <= 100
    assert len(said.content) < 10_000


def test_a_job_that_is_stuck_is_cancelled_with_its_process(
    deployment: Deployment, base_folder: Path, noised_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, go_on, stuck = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(lease_keeper, "end_process", ended.set)

    def hang() -> None:
        stuck.set()
        go_on.wait(60)

    hanging = deployment.__class__(
        **{
            **deployment.__dict__,
            "settings": deployment.settings.model_copy(update={"cancel_seconds": 1}),
            "sources": WatchedSources(deployment, hang),
        }
    )
    job = submitted(deployment, AnalysisRequest.model_validate(request(base_folder, noised_folder)))
    thread = threading.Thread(target=run_job, args=(hanging, job.id))
    thread.start()
    try:
        assert stuck.wait(60)
        deployment.jobs.cancel(job.id)
        assert ended.wait(20)
        assert deployment.jobs.get(job.id).status is Status.CANCELLED
        assert not deployment.leases.held(job.id)
    finally:
        go_on.set()
        thread.join()
    assert deployment.jobs.get(job.id).status is Status.CANCELLED


@pytest.mark.parametrize(
    "value", ["!!bool foo", "!!int ''", "!!float ''", "!!timestamp foo", "1" + ":0" * 600 + ".0", "2021-99-99", "!x 1"]
)
def test_values_of_yaml_that_have_no_value_are_errors(value: str, tmp_path: Path) -> None:
    with pytest.raises(policies.PolicyError):
        policies.load(f"rules: [{{id: a, message: m, path: layers.length, max: {value}}}]")
    with pytest.raises(policies.PolicyError):
        policies.load(f"{value}: 1\nrules: []")
    with pytest.raises(InputError, match="not YAML"):
        inputs._value(value, f"name={value}")
    path = tmp_path / "request.yaml"
    path.write_text(f"name: {value}")
    with pytest.raises(InputError, match="neither YAML nor JSON"):
        inputs.read_request(path, "request")


BOMB = "a: &a [x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)


RULE = "rules:\n  - id: a\n    message: m\n    path: layers[*].drift\n    max: {}\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (BOMB, 2, "aliases"),
        ("[" * 200_000, 1, "levels"),
        ("- " * 100_000, 1, "levels"),
        ("? [a]\n: 1\n", 1, "a key must be a string"),
        (RULE.format("9" * 5_000), 5, "unquoted value of 5000 characters"),
        (RULE.format('"' + "9" * 5_000 + '"'), 5, "must be a number"),
        ("rules: []\nx: !!python/object:os.system y\n", 2, "tags"),
        ("a: 1\n" * 90_000, 1, "the limit for policies"),
        ("a: 2001-13-45\n", 1, "month"),
        ("".join(f"f{number}: 1\n" for number in range(4_000)), 1, "rules: this field is required"),
    ],
    ids=["aliases", "arrays", "lists", "list key", "digits", "quoted digits", "object", "length", "date", "fields"],
)
def test_a_policy_that_is_none_is_an_error_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(policies.PolicyError, match=message) as raised:
        policies.load(text, "p.yaml")
    assert raised.value.errors[0].detail.startswith(f"p.yaml:{line}:") or f"p.yaml:{line}:" in raised.value.detail
    assert len(raised.value.errors) <= 100


def test_a_policy_over_every_token_is_bounded(pair_report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(number: int, path: str) -> dict[str, Any]:
        return {"id": f"r{number}", "message": "m", "path": path, "max": -1}

    every = "tokens.texts[*].drift[*][*]"
    verdict = gate.evaluate_policy(Policy.model_validate({"rules": [rule(0, every)]}), pair_report)
    (check,) = verdict.checks
    assert len(check.findings) == 100 < check.matched
    assert f"{check.matched} of {check.matched} above -1" in check.detail
    monkeypatch.setattr(gate, "MAX_MATCHES_IN_ALL", 2 * check.matched)
    with pytest.raises(InputError, match="rules match more than") as raised:
        gate.evaluate_policy(
            Policy.model_validate({"rules": [rule(number, every) for number in range(200)]}), pair_report
        )
    assert len(raised.value.errors) <= 101
    monkeypatch.setattr(gate, "MAX_MATCHES", 50)
    with pytest.raises(InputError, match="matches more than 50 numbers"):
        gate.evaluate_policy(Policy.model_validate({"rules": [rule(0, every)]}), pair_report)


@pytest.fixture(scope="module")
def pair_report(stack: Stack, base_folder: Path, noised_folder: Path) -> Report:
    from layerdrift.sdk import Client

    with Client(stack.url) as client:
        asked = request(base_folder, noised_folder)
        asked["analysis"]["texts"] = make_texts(8, length=40)
        analysis = client.submit(AnalysisRequest.model_validate(asked))
        return client.wait(analysis.id, timeout=120)


def test_a_page_of_long_records_ends_early_and_goes_on(deployment: Deployment, base_folder: Path) -> None:
    long = request(base_folder, base_folder)
    long["analysis"]["texts"] = ["x" * 9_000] * 100
    made = {submitted(deployment, AnalysisRequest.model_validate(long | {"seed": seed})).id for seed in range(12)}
    seen: list[JobRecord] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor:
        page, cursor = deployment.listing.page("default", 100, cursor)
        assert sum(len(one.model_dump_json()) for one in page) < 2 * PAGE_BYTES
        seen, pages = seen + page, pages + 1
    assert pages > 1
    assert made == {one.id for one in seen}
    assert len(seen) == len(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"tags": {"k": "x" * 501}},
        {"tags": {"k" * 101: "x"}},
        {"tags": {"": "x"}},
        {"tags": {str(number): "x" for number in range(51)}},
        {"name": "x" * 201},
        {"dataset": {"uri": "file:///x.csv", "text_column": "x" * 501}},
    ],
)
def test_strings_of_records_have_lengths(stack: Stack, base_folder: Path, changes: dict[str, Any]) -> None:
    said = httpx.post(stack.url + POST, json=request(base_folder, base_folder) | changes)
    assert said.status_code == 422


def test_long_requests_are_counted_for_each_tenant_and_given_back() -> None:
    limit = ConcurrencyLimit("streams", of_client=2, in_all=3)
    with limit.held("a"), limit.held("a"):
        with pytest.raises(RateError, match="this client already has 2 streams"), limit.held("a"):
            pass
        with limit.held("b"), pytest.raises(RateError, match="this server already has 3 streams"), limit.held("c"):
            pass
    with limit.held("a"), limit.held("c"):
        pass


def test_streams_of_events_are_bounded_for_each_client(stack: Stack, base_folder: Path) -> None:
    deployment = Deployment.connect(stack.settings)
    asked = AnalysisRequest.model_validate(request(base_folder, base_folder, seed=9))
    job = JobRecord(
        id="an_" + "b" * 26, created_at=datetime.now(UTC), request=asked, pins=deployment.sources.pin(asked)
    )
    deployment.jobs.submit(job)  # nobody is told of it yet
    path = f"{POST}/{job.id}/events"
    opened: list[httpx.Response] = []
    limit = httpx.Limits(max_connections=200)
    with httpx.Client(base_url=stack.url, limits=limit, timeout=30) as http:
        try:
            for _ in range(70):
                opened.append(http.send(http.build_request("GET", path), stream=True))
                if opened[-1].status_code != 200:
                    break
            assert [one.status_code for one in opened] == [200] * 64 + [429]
            assert opened[-1].headers["Retry-After"] == "5"
            assert int(deployment.jobs._redis.info("clients")["connected_clients"]) < 150
        finally:
            for one in opened:
                one.close()
        deadline = time.monotonic() + 30
        while http.send(http.build_request("GET", path), stream=True).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    deployment.jobs.cancel(job.id)


def test_uploads_that_never_come_are_bounded_and_forgotten(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_WAITING", 3)
    waiting = deployment.waiting_uploads
    made = []
    for _ in range(3):
        waiting.admit("t")
        made.append(deployment.uploads.announce("t", UploadRequest(filename="x.csv")))
        waiting.put("t", made[-1].id)
    with pytest.raises(RateError, match="3 uploads are still waiting"):
        waiting.admit("t")
    waiting.admit("other")
    receiver = deployment.uploads.receive("t", made[0].id)
    receiver.take(b"text\na\n")
    receiver.finish()
    waiting.forget("t", made[0].id)
    waiting.admit("t")
    monkeypatch.setattr(uploads, "WAITING_SECONDS", -1)
    waiting.admit("t")
    assert deployment.uploads.get("t", made[0].id).status == "complete"
    with pytest.raises(Exception, match="there is no upload"):
        deployment.uploads.get("t", made[1].id)


def test_a_stream_resumes_after_an_id_that_there_may_be(stack: Stack, pair_report: Report) -> None:
    path = f"{stack.url}{POST}/{pair_report.analysis_id}/events"
    for last in ("9" * 20 + "-" + "9" * 20, "9" * 25 + "-0", "nonsense"):
        said = httpx.get(path, headers={"Last-Event-ID": last}, timeout=10).text
        assert said.rstrip().split("event: ")[-1].startswith("done")
