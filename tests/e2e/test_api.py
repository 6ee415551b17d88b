"""The routes around an analysis, on the running service: uploads, events, artifacts, comparison, ETags."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.storage.blobs import BlobStore
from deploy.embedded.stack import Stack
from layerdrift import policies
from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.errors import ConflictError
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.builders.calls import WAIT_SECONDS, body, uploaded
from tests.builders.texts import make_texts


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=60) as connected:
        yield connected


@pytest.fixture(scope="module")
def done(client: Client, base_folder: Path, noised_folder: Path) -> Analysis:
    """A pair with tags that has been compared."""
    request = body(base_folder, noised_folder, name="Reviews v7", tags={"team": "search"})
    analysis = client.submit(AnalysisRequest.model_validate(request))
    *_, last = client.watch(analysis.id, timeout=WAIT_SECONDS)
    assert last.status is Status.SUCCEEDED
    return last


@pytest.fixture(scope="module")
def other(client: Client, base_folder: Path) -> Analysis:
    """The base against itself."""
    analysis = client.submit(AnalysisRequest.model_validate(body(base_folder, base_folder)))
    *_, last = client.watch(analysis.id, timeout=WAIT_SECONDS)
    assert last.status is Status.SUCCEEDED
    return last


def zipped(folder: Path, inside: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"{inside}{path.name}")
    return buffer.getvalue()


def test_a_running_analysis_answers_with_a_preliminary_report(
    http: httpx.Client, client: Client, base_folder: Path, noised_folder: Path
) -> None:
    request = body(base_folder, noised_folder, seed=77, analysis={"sae": {"tokens": 3_000_000, "early_stop": False}})
    made = client.submit(AnalysisRequest.model_validate(request))
    path, names = f"/v1/analyses/{made.id}/report", []
    assert http.get(path).status_code == 409
    for event in client.events(made.id, timeout=WAIT_SECONDS):
        names.append(event.name)
        if event.name == "report":
            break
    assert names[-1] == "report"
    early = http.get(path)
    assert (early.status_code, early.headers["Layerdrift-Report"]) == (200, "preliminary")
    assert early.headers["Cache-Control"] == "no-store"
    assert "ETag" not in early.headers
    assert early.json()["status"] == "preliminary"
    assert [stage["stage"] for stage in early.json()["pending"]] == ["sae", "causal"]
    page = http.get(path, headers={"Accept": "text/html"})
    assert "Preliminary report" in page.text
    assert "Content-Security-Policy" in page.headers
    assert http.get(f"/v1/analyses/{made.id}").json()["report"] == "preliminary"
    with pytest.raises(ConflictError, match="preliminary"):
        client.report(made.id)
    assert client.report(made.id, preliminary=True).layers
    with pytest.raises(ConflictError, match="preliminary"):
        client.gate(made.id, policies.load(policies.starter()))
    assert http.get(f"/v1/analyses/{made.id}/artifacts").status_code == 409
    client.cancel(made.id)
    *_, last = client.watch(made.id, timeout=WAIT_SECONDS)
    assert (last.status, last.report) == (Status.CANCELLED, "none")
    assert http.get(path).status_code == 409


def test_uploaded_checkpoints_and_texts_give_the_report_of_the_folders(
    http: httpx.Client, client: Client, done: Analysis, base_folder: Path, noised_folder: Path
) -> None:
    table = "".join(json.dumps({"text": text}) + "\n" for text in make_texts(60)).encode()
    data = uploaded(http, "texts.jsonl", table, bytes=len(table), sha256=hashlib.sha256(table).hexdigest())
    assert (data["status"], data["bytes"], data["uri"]) == ("complete", len(table), f"upload://{data['id']}")
    base = uploaded(http, "base.zip", zipped(base_folder))
    tuned = uploaded(http, "tuned.zip", zipped(noised_folder, "checkpoint/"))
    request = body(base_folder, noised_folder, dataset={"uri": data["uri"]})
    request |= {"base": {"uri": base["uri"]}, "tuned": {"uri": tuned["uri"]}}
    analysis = client.submit(AnalysisRequest.model_validate(request))
    *_, last = client.watch(analysis.id, timeout=WAIT_SECONDS)
    assert last.error is None
    assert (last.name, last.compared) == ("base → tuned on texts.jsonl", "base → tuned on texts.jsonl")
    from_uploads, from_folders = client.report(last.id), client.report(done.id)
    assert from_uploads.layers == from_folders.layers
    assert from_uploads.models["base"].fingerprint == from_folders.models["base"].fingerprint


def test_an_upload_of_many_parts_arrives_whole(http: httpx.Client, stack: Stack) -> None:
    content = bytes(range(256)) * 80_000  # 20 MB: three parts
    found = uploaded(http, "large.csv", content)
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    stored = BlobStore.connect(stack.settings).get(f"tenants/default/uploads/{found['id']}/data")
    assert stored == content
    again = http.put(f"/v1/uploads/{found['id']}", content=content)
    assert (again.status_code, again.json()) == (200, found)
    others = http.put(f"/v1/uploads/{found['id']}", content=b"others")
    assert (others.status_code, others.json()["title"]) == (409, "Not possible in this state")


@pytest.mark.parametrize(
    ("declared", "status", "message"),
    [
        ({"bytes": 4}, 413, "more than the announced 4 bytes"),
        ({"bytes": 6}, 422, "received 5 bytes, but 6 were announced"),
        ({"sha256": "0" * 64}, 422, "not the one announced"),
    ],
)
def test_bytes_that_are_not_those_announced_are_refused_and_may_be_sent_again(
    http: httpx.Client, declared: dict[str, Any], status: int, message: str
) -> None:
    location = http.post("/v1/uploads", json={"filename": "a.csv", **declared}).headers["Location"]
    answer = http.put(location, content=b"a,b\n1")
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert http.get(location).json()["status"] == "waiting"
    request = {"base": {"uri": "file:///x"}, "tuned": {"uri": "file:///y"}}
    named = http.post("/v1/analyses", json=request | {"dataset": {"uri": f"upload://{location.rpartition('/')[2]}"}})
    assert "has no bytes yet" in named.text


def test_uploads_that_cannot_be_are_refused_at_once(http: httpx.Client) -> None:
    large = http.post("/v1/uploads", json={"filename": "a.csv", "bytes": 2**50})
    assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")
    assert http.post("/v1/uploads", json={"filename": "../a.csv"}).status_code == 422
    missing = "/v1/uploads/up_" + "a" * 26
    assert http.put(missing, content=b"x").status_code == 404
    assert http.get(missing).status_code == 404


def test_a_removed_upload_is_gone(http: httpx.Client) -> None:
    found = uploaded(http, "a.csv", b"text\n")
    assert http.delete(f"/v1/uploads/{found['id']}").status_code == 204
    assert http.get(f"/v1/uploads/{found['id']}").status_code == 404


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: b"no zip at all", "not a readable zip file"),
        (lambda folder: zipped(folder)[:-40], "not a readable zip file"),
        (lambda folder: linked(folder), "contains links"),
        (lambda folder: padded(folder), "model.safetensors"),
    ],
)
def test_archives_that_are_not_plain_checkpoints_are_refused(
    http: httpx.Client, base_folder: Path, noised_folder: Path, make: Any, message: str
) -> None:
    found = uploaded(http, "model.zip", make(noised_folder))
    answer = http.post("/v1/analyses", json=body(base_folder, noised_folder) | {"tuned": {"uri": found["uri"]}})
    assert answer.status_code == 422
    assert message in answer.json()["errors"][0]["detail"]


def linked(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("config.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.write(folder / "model.safetensors", "model.safetensors")
    return buffer.getvalue()


def padded(folder: Path) -> bytes:
    """Only files in a folder above the archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.write(folder / "config.json", "config.json")
        archive.write(folder / "model.safetensors", "../model.safetensors")
    return buffer.getvalue()


def events_of(answer: httpx.Response) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, name and data of every server-sent event."""
    event: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if line and name in ("id", "event", "data"):
            event[name] = value
        elif not line and "event" in event:
            yield event.get("id", ""), event["event"], json.loads(event["data"])
            event = {}


def test_events_tell_a_job_from_its_start_to_its_end(
    http: httpx.Client, base_folder: Path, noised_folder: Path
) -> None:
    request = body(base_folder, noised_folder, name=uuid.uuid4().hex)
    links = http.post("/v1/analyses", json=request).json()["links"]
    with http.stream("GET", links["events"]) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        heard = list(events_of(answer))
    names = [name for _, name, _ in heard]
    assert names[-1] == "done"
    assert heard[-1][2] == {"status": "succeeded", "error": None}
    ended = [data["name"] for _, name, data in heard if name == "stage" and data["status"] == "succeeded"]
    assert ended == ["resolve", "extract", "compare", "causal", "report"]
    assert ("log", {"message": "a worker picked up the job (attempt 1)"}) in [(name, data) for _, name, data in heard]
    fractions = [data["fraction"] for _, name, data in heard if name == "progress"]
    assert fractions == sorted(fractions)
    middle = len(heard) // 2
    with http.stream("GET", links["events"], headers={"Last-Event-ID": heard[middle][0]}) as answer:
        assert list(events_of(answer)) == heard[middle + 1 :]
    with http.stream("GET", links["events"], headers={"Last-Event-ID": heard[-1][0]}) as answer:
        assert [name for _, name, _ in events_of(answer)] == ["done"]


def test_artifacts_can_be_fetched_by_their_links_without_a_key(http: httpx.Client, done: Analysis) -> None:
    listed = http.get(done.links.artifacts).json()["items"]
    assert [artifact["name"] for artifact in listed] == [
        "centres.safetensors",
        "report.html",
        "report.json",
        "report.md",
    ]
    for artifact in listed:
        content = httpx.get(artifact["url"]).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (artifact["bytes"], artifact["sha256"])
    tampered = listed[1]["url"].replace("report.html", "report.json")
    assert httpx.get(tampered).status_code == 403


def test_what_the_client_has_is_not_sent_again(http: httpx.Client, done: Analysis) -> None:
    for path in (done.links.self, done.links.report):
        first = http.get(path)
        tag = first.headers["ETag"]
        same = http.get(path, headers={"If-None-Match": f'"another", W/{tag}'})
        assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", tag)
        assert http.get(path, headers={"If-None-Match": '"another"'}).status_code == 200
    html = http.get(done.links.report, headers={"Accept": "text/html"})
    assert html.headers["ETag"] != first.headers["ETag"]


def test_two_reports_are_compared_layer_by_layer(
    http: httpx.Client, client: Client, done: Analysis, other: Analysis
) -> None:
    found = http.get(f"/v1/analyses/{done.id}/compare/{other.id}").json()
    assert (found["one"], found["other"], found["same_base"], found["same_settings"]) == (done.id, other.id, True, True)
    reports = [client.report(done.id), client.report(other.id)]
    for layer, first, second in zip(found["layers"], reports[0].layers, reports[1].layers, strict=True):
        assert layer["drift"]["difference"] == pytest.approx(second.drift - first.drift)
        assert layer["drifted"] == [first.drifted, second.drifted]
        assert layer["transfer_excess"] == {"one": None, "other": None, "difference": None, "incomparable": None}
    assert found["layers"][-1]["drift"]["difference"] < 0
    itself = http.get(f"/v1/analyses/{done.id}/compare/{done.id}").json()
    assert {layer["drift"]["difference"] for layer in itself["layers"]} == {0.0}


def test_lists_can_be_of_a_name_or_a_tag(http: httpx.Client, done: Analysis, other: Analysis) -> None:
    def ids(**query: str) -> list[str]:
        return [item["id"] for item in http.get("/v1/analyses", params={"limit": 100, **query}).json()["items"]]

    assert {done.id, other.id} <= set(ids())
    assert ids(name="reviews V7") == [done.id] == ids(tag="team:search")
    assert ids(name="reviews v8") == [] == ids(tag="team:ads")
    assert ids(name="reviews v7", status="failed") == []
    assert http.get("/v1/analyses", params={"tag": "nothing"}).status_code == 422


def test_an_idempotency_key_is_carried_out_once(http: httpx.Client, base_folder: Path, noised_folder: Path) -> None:
    request = body(base_folder, noised_folder, seed=5)
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = http.post("/v1/analyses", json=request, headers=key)
    again = http.post("/v1/analyses", json=request, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Location"] == first.headers["Location"]
    another = http.post("/v1/analyses", json=request | {"seed": 6}, headers=key)
    assert another.status_code == 422
    assert "a different body" in another.json()["detail"]
    wrong = http.post(
        "/v1/analyses", json=request | {"base": {"uri": "file:///nowhere"}}, headers={"Idempotency-Key": "k"}
    )
    right = http.post("/v1/analyses", json=request, headers={"Idempotency-Key": "k"})
    assert (wrong.status_code, right.status_code) == (422, 200)


def test_equal_posts_at_once_with_one_key_make_one_job_and_tell_the_others_to_wait(
    http: httpx.Client, base_folder: Path, noised_folder: Path
) -> None:
    request, key = body(base_folder, noised_folder, seed=7), {"Idempotency-Key": uuid.uuid4().hex}
    answers: list[httpx.Response] = []

    def post() -> None:
        answers.append(httpx.post(f"{http.base_url}/v1/analyses", json=request, headers=key, timeout=60))

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1


def test_a_deleted_analysis_leaves_nothing_and_can_be_made_again(
    http: httpx.Client, client: Client, stack: Stack, base_folder: Path, noised_folder: Path
) -> None:
    request = body(base_folder, noised_folder, seed=11)
    made = http.post("/v1/analyses", json=request).json()
    running = http.delete(made["links"]["self"])
    assert running.status_code == 409
    *_, last = client.watch(made["id"], timeout=WAIT_SECONDS)
    assert last.status is Status.SUCCEEDED
    assert http.delete(made["links"]["self"]).status_code == 204
    for path in made["links"].values():
        assert http.request("POST" if "cancel" in path else "GET", path).status_code == 404
    assert [blob.key for blob in BlobStore.connect(stack.settings).list("tenants/") if made["id"] in blob.key] == []
    assert http.post("/v1/analyses", json=request).status_code == 202


def test_texts_are_inspected_through_both_models(
    http: httpx.Client, client: Client, done: Analysis, base_folder: Path, noised_folder: Path
) -> None:
    """Drift of a text that the report shows is the report's; latents are those of the kept autoencoders."""
    request = body(base_folder, noised_folder, analysis={"sae": {"tokens": 20_000, "width": 2, "k": 4}})
    request["dataset"] = {"inline": {"texts": make_texts(400)}, "max_examples": 100}
    analysis = client.submit(AnalysisRequest.model_validate(request))
    report = client.wait(analysis.id, timeout=WAIT_SECONDS)
    shown = report.tokens.texts[0]
    answer = http.post("/v1/inspect", json={"analysis_id": analysis.id, "texts": ["good", shown.text]})
    assert answer.status_code == 200, answer.text
    short, found = answer.json()["texts"]
    assert short["tokens"] == ["[CLS]", "good", "[SEP]"]
    assert found["tokens"] == shown.tokens
    for index, layer in enumerate(found["layers"]):
        real = [place for place, special in enumerate(shown.special) if not special]
        assert [layer["drift"][place] for place in real] == pytest.approx(
            [shown.drift[index][place] for place in real], abs=2e-4
        )
        assert all(layer["drift"][place] is None for place in range(len(shown.tokens)) if place not in real)
        assert all(norm > 0 for norm in layer["base_norm"])
        for latents in (layer["base_latents"], layer["tuned_latents"]):
            assert len(latents) == len(found["tokens"])
            values = [[one["activation"] for one in of_token] for of_token in latents]
            assert all(of_token == sorted(of_token, reverse=True) for of_token in values)
            assert any(values)
    assert found["layers"][0]["base_latents"] != found["layers"][-1]["base_latents"]
    without = http.post("/v1/inspect", json={"analysis_id": done.id, "texts": ["good"]})
    assert without.json()["texts"][0]["layers"][0]["base_latents"] is None


def test_one_wrong_inspection_spoils_no_other(http: httpx.Client, done: Analysis) -> None:
    """Asked at once, so that they share a batch."""
    missing = "an_" + "a" * 26
    questions = [{"analysis_id": id_, "texts": ["good", "bad film"]} for id_ in (done.id, missing, done.id, missing)]

    def ask(question: dict[str, Any]) -> tuple[int, str]:
        answer = httpx.post(f"{http.base_url}/v1/inspect", json=question, timeout=60)
        return answer.status_code, answer.text

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, questions))
    assert [status for status, _ in answers] == [200, 404, 200, 404]
    assert answers[0][1] == answers[2][1]
    assert http.post("/v1/inspect", json={"analysis_id": done.id, "texts": []}).status_code == 422
    assert http.post("/v1/inspect", json={"analysis_id": done.id, "texts": ["x"] * 17}).status_code == 422


def test_every_request_has_an_id_and_is_logged_and_counted(stack: Stack, http: httpx.Client, done: Analysis) -> None:
    given = http.get(done.links.self, headers={"X-Request-ID": "review-7"})
    assert given.headers["X-Request-ID"] == "review-7"
    missing = http.get("/v1/analyses/an_" + "a" * 26, headers={"X-Request-ID": "no id!"})
    assert len(missing.headers["X-Request-ID"]) == 16
    api, worker = (
        [json.loads(line) for line in (stack.home / "logs" / f"{name}.log").read_text().splitlines() if line[:1] == "{"]
        for name in ("api", "worker")
    )
    (line,) = [line for line in api if line.get("request_id") == "review-7"]
    assert line["event"].startswith(f"GET {done.links.self} -> 200 in ")
    assert (line["level"], line["logger"]) == ("info", "service.middleware.request_logging")
    assert [line["event"] for line in worker if line.get("job_id") == done.id][-1] == f"{done.id}: succeeded"
    told = http.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    samples = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in told.text.splitlines() if line[0] != "#"
    }
    route = 'route="/v1/analyses/{analysis_id}"'
    assert samples[f'layerdrift_http_requests_total{{method="GET",{route},status="404"}}'] >= 1
    assert samples[f"layerdrift_http_request_seconds_count{{{route}}}"] >= 2
    assert samples['layerdrift_jobs{status="succeeded"}'] >= 1
    assert samples['layerdrift_workers{queue="cpu"}'] == 1
    assert not [name for name in samples if done.id in name]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(http: httpx.Client) -> None:
    answer = http.post("/v1/analyses", content=b"x" * (9 << 20), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")

    def endless() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * (1 << 20)

    streamed = http.post("/v1/analyses", content=endless(), headers={"Content-Type": "application/json"})
    assert streamed.status_code == 413
