"""Before an analysis: estimates, previews and sources; and how a finished one is named in later calls."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.embedded.stack import Stack
from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.errors import InputError, NotFoundError
from layerdrift.contract.estimate import Estimate, Sources
from layerdrift.sdk import Client
from tests.builders.calls import WAIT_SECONDS, body, uploaded
from tests.builders.texts import make_texts

NAME = "the one that has a name of its own"
RULE = {"id": "same", "path": "layers[*].drift", "of_baseline": "difference", "max": 0.5, "message": "it drifts more"}


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=60) as connected:
        yield connected


@pytest.fixture(scope="module")
def named(client: Client, base_folder: Path, noised_folder: Path) -> Analysis:
    analysis = client.submit(body(base_folder, noised_folder, name=NAME, seed=91))
    *_, last = client.watch(analysis.id, timeout=WAIT_SECONDS)
    assert last.status is Status.SUCCEEDED
    return last


def estimated(http: httpx.Client, request: dict[str, Any]) -> Estimate:
    answer = http.post("/v1/estimates", json=request)
    assert answer.status_code == 200, answer.text
    return Estimate.model_validate(answer.json())


def test_an_estimate_grows_with_the_work_and_submits_nothing(
    http: httpx.Client, named: Analysis, base_folder: Path, noised_folder: Path
) -> None:
    before = len(http.get("/v1/analyses", params={"limit": 100}).json()["items"])
    small = estimated(http, body(base_folder, noised_folder))
    large = estimated(http, body(base_folder, noised_folder, analysis={"sae": {"tokens": 3_000_000}}))
    assert small.basis == "measured"  # `named` has finished here
    assert 0 < small.first_curve_seconds <= small.seconds < large.seconds
    assert small.seconds == pytest.approx(sum(stage.seconds for stage in small.stages), abs=0.5)  # each is rounded
    assert [stage.stage for stage in small.stages] == ["resolve", "extract", "compare", "causal", "report"]
    assert [stage.stage for stage in large.stages] == ["resolve", "extract", "compare", "sae", "causal", "report"]
    assert large.scratch_bytes > small.scratch_bytes
    assert small.memory_bytes > 2**20
    assert len(http.get("/v1/analyses", params={"limit": 100}).json()["items"]) == before


def test_what_cannot_be_submitted_cannot_be_estimated(
    http: httpx.Client, base_folder: Path, noised_folder: Path
) -> None:
    request = body(base_folder, noised_folder)
    for path in ("/v1/analyses", "/v1/estimates"):
        answer = http.post(path, json=request | {"dataset": {"uri": "file:///etc/passwd"}})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/dataset/uri")


def test_a_preview_shows_the_rows_as_they_will_be_read_or_why_not(http: httpx.Client) -> None:
    lines = [f"{text}\t{index % 2}" for index, text in enumerate(make_texts(30))]
    data = uploaded(http, "reviews.tsv", "\n".join(["body\tstars", *lines]).encode())
    chosen = {"uri": data["uri"], "text_column": "body", "label_column": "stars"}
    answer = http.post("/v1/datasets/preview", json={"dataset": chosen, "labelled": True})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["columns"], found["problems"]) == (["body", "stars"], [])
    assert [row["label"] for row in found["rows"][:4]] == ["0", "1", "0", "1"]
    assert found["rows"][0]["text"] == make_texts(30)[0]
    wrong = http.post("/v1/datasets/preview", json={"dataset": chosen | {"text_column": "bodi"}}).json()
    assert wrong["columns"] == ["body", "stars"]
    assert "bodi" in wrong["problems"][0]["detail"]
    assert wrong["problems"][0]["pointer"] == "/dataset/text_column"


def test_sources_are_what_requests_can_name(
    http: httpx.Client, client: Client, named: Analysis, base_folder: Path
) -> None:
    uploaded(http, "seen.csv", b"text\nhello\n")
    sources = Sources.model_validate(http.get("/v1/sources").json())
    assert base_folder.as_uri() in [one.uri for one in sources.models]
    (seen,) = [one for one in sources.datasets if one.name == "seen.csv"]
    assert (seen.kind, seen.uri.startswith("upload://up_")) == ("upload", True)
    offered = next(one for one in sources.models if one.uri == base_folder.as_uri())
    request = body(base_folder, base_folder) | {"base": {"uri": offered.uri}, "dataset": {"uri": seen.uri}}
    assert estimated(http, request).seconds > 0


def test_an_analysis_goes_by_its_id_its_start_its_name_and_latest(
    http: httpx.Client, client: Client, named: Analysis, base_folder: Path, noised_folder: Path
) -> None:
    newest = client.submit(body(base_folder, noised_folder, seed=92))
    *_, last = client.watch(newest.id, timeout=WAIT_SECONDS)
    assert last.name == f"{base_folder.name} → {noised_folder.name} on inline texts"
    for reference, id_ in ((named.id[:12], named.id), (NAME, named.id), ("latest", newest.id), (newest.id, newest.id)):
        assert client.get(reference).id == id_
        assert client.report(reference).analysis_id == id_
    assert client.compare(NAME, "latest").other == newest.id
    assert client.inspect(NAME, "a film").analysis_id == named.id
    verdict = client.gate("latest", {"rules": [RULE], "baseline": NAME})
    assert (verdict.decision, verdict.baseline) == ("warn", named.id)  # another seed
    for reference in ("no such name", "an_zzzz"):
        with pytest.raises(NotFoundError, match="no analysis has the id or name"):
            client.get(reference)
    client.submit(body(base_folder, noised_folder, name=NAME, seed=93))
    with pytest.raises(InputError, match=f"matches several analyses: .*{named.id}"):
        client.get(NAME)


def test_the_time_that_is_left_is_told_while_an_analysis_runs(
    client: Client, named: Analysis, base_folder: Path, noised_folder: Path
) -> None:
    sae = {"tokens": 3_000_000, "early_stop": False}
    running = client.submit(body(base_folder, noised_folder, seed=94, analysis={"sae": sae}))
    queued = client.submit(body(base_folder, noised_folder, seed=95))
    left = []
    for state in client.watch(running.id, timeout=WAIT_SECONDS):
        left.append(state.progress.seconds_left)
        if state.report == "preliminary":
            break
    assert client.get(queued.id).queued_before == 0
    client.cancel(queued.id)
    client.cancel(running.id)
    known = [seconds for seconds in left if seconds is not None]
    assert known
    assert all(seconds > 0 for seconds in known)


def test_a_pair_that_no_worker_can_hold_is_refused_with_what_would_help(
    http: httpx.Client, roots: Path, base_folder: Path
) -> None:
    """The configuration of a large model: an estimate is all that is asked of it before any work."""
    folders = []
    for name in ("huge", "huge-tuned"):
        folder = roots / name
        shutil.copytree(base_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        large = {"hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 32768, "num_attention_heads": 64}
        (folder / "config.json").write_text(json.dumps(config | large))
        folders.append(folder)
    request = body(*folders, analysis={"sae": None})
    before = len(http.get("/v1/analyses", params={"limit": 100}).json()["items"])
    answer = http.post("/v1/analyses", json=request)
    assert answer.status_code == 422
    assert "no worker can hold this analysis: it needs about" in answer.text
    assert answer.json()["errors"][0]["pointer"] == "/base/uri"
    assert estimated(http, request).memory_bytes > 2**38
    assert len(http.get("/v1/analyses", params={"limit": 100}).json()["items"]) == before
