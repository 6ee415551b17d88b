"""The running service over HTTP: real API, queue, worker, Redis and S3; tiny models, and one real one."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as parquet
import pytest
from safetensors.torch import load_file, save_file

from backends.storage.blobs import BlobStore
from deploy.embedded.demo_inputs import fetch
from deploy.embedded.ports import choose
from deploy.embedded.stack import Stack
from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError, TransportError
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import AnalysisFailed, Client
from tests.builders.models import BLOCKS, HIDDEN, save_model, tiny_bert
from tests.builders.texts import make_texts

WAIT_SECONDS = 240.0
TEXTS = make_texts(60)


def body(base: Path, tuned: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": {"inline": {"texts": TEXTS}},
        "analysis": {"sae": None},
    } | changes


def finished(client: Client, request: dict[str, Any]) -> Analysis:
    analysis = client.submit(AnalysisRequest.model_validate(request))
    *_, last = client.watch(analysis.id, timeout=WAIT_SECONDS)
    return last


@pytest.fixture(scope="module")
def reviews(roots: Path) -> Path:
    """A CSV of 800 labelled texts."""
    path = roots / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["review", "stars"])
        writer.writerows([text, "5" if "good" in text else "1"] for text in make_texts(800, seed=3))
    return path


def expect_autoencoders_are_kept(report: Report, blobs: BlobStore) -> None:
    root = f"tenants/default/artifacts/{report.analysis_id}/"
    prefix, table = root + "saes/", root + "latents.parquet"
    assert (report.autoencoders, report.latent_table) == (f"s3://layerdrift/{prefix}", f"s3://layerdrift/{table}")
    assert parquet.read_table(io.BytesIO(blobs.get(table))).num_rows == 3 * (BLOCKS + 1) * 2 * HIDDEN
    assert {blob.key.removeprefix(prefix) for blob in blobs.list(prefix)} == {
        f"{kind}/layer-{layer:02d}/{name}"
        for kind in ("base", "tuned", "warm-start")
        for layer in range(BLOCKS + 1)
        for name in ("cfg.json", "sae_weights.safetensors")
    }


def test_a_fine_tune_goes_from_the_post_to_the_report(
    stack: Stack, client: Client, base_folder: Path, reviews: Path
) -> None:
    """The main path once: HTTP, queue, worker, S3 and cache, with every stage."""
    request = {
        "name": "tiny",
        "base": {"uri": base_folder.as_uri()},
        "finetune": {"train_examples": 200, "epochs": 1, "batch_size": 16, "learning_rate": 1e-3},
        "dataset": {
            "uri": reviews.as_uri(),
            "text_column": "review",
            "label_column": "stars",
            "max_examples": 100,
        },
        "analysis": {"sae": {"tokens": 20_000, "width": 2, "k": 8}, "texts": ["the good film"]},
    }
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        first = http.post("/v1/analyses", json=request)
        assert first.status_code == 202
        analysis = Analysis.model_validate_json(first.content)
        assert first.headers["Location"] == analysis.links.self == f"/v1/analyses/{analysis.id}"
        early = http.get(analysis.links.report)
        assert early.status_code in (200, 409)
        *_, last = client.watch(analysis.id, timeout=WAIT_SECONDS)
        assert last.error is None
        assert last.status is Status.SUCCEEDED
        assert [stage.name.value for stage in last.progress.stages] == [
            "resolve",
            "finetune",
            "extract",
            "compare",
            "sae",
            "causal",
            "report",
        ]
        assert all(stage.fraction == 1 and stage.started_at for stage in last.progress.stages)

        again = http.post("/v1/analyses", json=request)
        assert (again.status_code, again.json()["id"]) == (200, analysis.id)
        answer = http.get(analysis.links.report)
        assert answer.headers["Cache-Status"] == "layerdrift-redis; hit"
        report = Report.model_validate_json(answer.content)
        page = http.get(analysis.links.report, headers={"Accept": "text/html"})
        assert page.headers["Content-Type"].startswith("text/html")
        assert all(f'id="{figure}"' in page.text for figure in ("drift", "grafts", "sae", "density", "turnover"))
        text = http.get(analysis.links.report, headers={"Accept": "text/markdown"})
        assert text.text.startswith("# tiny\n")
        assert http.get(analysis.links.report, headers={"Accept": "image/png"}).status_code == 406

    assert len(report.layers) == BLOCKS + 1
    drift = [layer.drift for layer in report.layers]
    assert 0 < drift[0] < drift[-1]
    assert report.outputs is not None
    assert report.finetune is not None
    assert (report.outputs.examples, report.finetune.steps, report.outputs.labels) == (100, 13, ["1", "5"])
    assert report.causal.graft is not None
    assert report.causal.graft.measure == "accuracy"
    assert [null.name for null in report.noise_floors] == ["numerical"]
    assert all(layer.graft is not None and layer.probe is not None for layer in report.layers)
    assert (report.dataset.analysed_texts, report.dataset.train_texts) == (100, 200)
    assert all(layer.sae is not None and layer.sae.base.fvu > 0 for layer in report.layers)
    assert all(layer.sae is not None and layer.sae.tuned.loss_recovered is not None for layer in report.layers)
    assert report.causal.splice is not None
    assert (report.causal.splice.loss, report.causal.splice.examples) == ("cross_entropy", 100)
    expect_autoencoders_are_kept(report, BlobStore.connect(stack.settings))
    assert report.models["tuned"].uri == f"s3://layerdrift/tenants/default/checkpoints/{analysis.id}/"

    again_as_pair = {
        "base": request["base"],
        "tuned": {"uri": report.models["tuned"].uri},
        "dataset": request["dataset"],
        "analysis": {"sae": None},
    }
    pair = client.report(finished(client, again_as_pair).id)
    assert pair.models["tuned"].fingerprint == report.models["tuned"].fingerprint
    assert pair.layers[-1].drift > 0


@pytest.mark.slow
def test_every_control_at_once_ends_in_one_report(
    stack: Stack, client: Client, base_folder: Path, reviews: Path
) -> None:
    """LoRA, snapshots, all nulls and the freeze sweep through the service; each is in the report and drawn."""
    request = {
        "base": {"uri": base_folder.as_uri()},
        "finetune": {
            "method": "lora",
            "lora": {"rank": 2},
            "train_examples": 150,
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 1e-2,
            "checkpoints": 2,
        },
        "dataset": {"uri": reviews.as_uri(), "text_column": "review", "label_column": "stars", "max_examples": 100},
        "analysis": {
            "sae": None,
            "noise_floors": ["numerical", "reseed", "label_shuffle"],
            "freeze_sweep": {"depths": [1], "seeds": 2, "examples": 100},
        },
    }
    analysis = finished(client, request)
    assert analysis.error is None
    report = client.report(analysis.id)
    assert [null.name for null in report.noise_floors] == ["numerical", "reseed", "label_shuffle"]
    assert all(layer.task_consistency is not None for layer in report.layers)
    assert report.causal.sweep is not None
    assert [point.freeze_first for point in report.causal.sweep.points] == [0, 1]
    assert {strategy.name for strategy in report.causal.sweep.strategies} == {
        "recommended",
        "nothing",
        "half",
        "gradient_norm",
    }
    assert report.finetune is not None
    assert report.finetune.method == "lora"
    assert report.trajectory is not None
    stored = BlobStore.connect(stack.settings)
    steps = report.trajectory.steps
    assert steps == sorted(set(steps))
    for step in steps[:-1]:
        key = f"tenants/default/checkpoints/{analysis.id}/step-{step:06d}/model.safetensors"
        assert stored.get(key)
    page = client.rendered_report(analysis.id, "html")
    for figure in (
        "drift",
        "measures",
        "trajectory",
        "consistency",
        "grafts",
        "sweep",
        "probes",
        "training",
        "weights",
    ):
        assert f'id="{figure}"' in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"analysis": {"noise_floors": ["reseed"]}}, "reseed retrains the model, which requires finetune"),
        ({"analysis": {"freeze_sweep": {}}}, "freeze_sweep retrains the model, which requires finetune"),
        ({"tuned": None, "finetune": {"lora": {"rank": 4}}}, "set method to 'lora' or omit lora"),
    ],
)
def test_controls_that_cannot_be_run_are_refused_at_once(
    stack: Stack, base_folder: Path, noised_folder: Path, changes: dict[str, Any], message: str
) -> None:
    answer = httpx.post(f"{stack.url}/v1/analyses", json=body(base_folder, noised_folder) | changes, timeout=60)
    assert answer.status_code == 422
    assert message in answer.text


def test_noise_in_a_block_is_found_in_a_pair(client: Client, base_folder: Path, noised_folder: Path) -> None:
    report = client.wait(
        client.submit(AnalysisRequest.model_validate(body(base_folder, noised_folder))).id, timeout=WAIT_SECONDS
    )
    drift = [layer.drift for layer in report.layers]
    assert drift[:2] == [0.0, 0.0]
    assert min(drift[2:]) > 0.01
    assert report.outputs is None
    assert set(report.timings.estimated_stages) == {*report.timings.stages, "report"}
    assert report.timings.estimated_memory_bytes is not None


def test_autoencoders_of_the_base_model_are_trained_once_for_all_that_is_compared_with_it(
    client: Client, base_folder: Path, noised_folder: Path
) -> None:
    asked = body(base_folder, noised_folder) | {"seed": 41, "analysis": {"sae": {"tokens": 20_000}, "grafts": False}}
    reports = [
        client.wait(client.submit(AnalysisRequest.model_validate(one)).id, timeout=WAIT_SECONDS)
        for one in (asked, asked | {"tuned": asked["base"]})
    ]
    assert [report.timings.reused for report in reports] == [[], ["sae"]]
    of_base = [[layer.sae.base for layer in report.layers if layer.sae is not None] for report in reports]
    assert of_base[0]
    assert of_base[0] == of_base[1]


def test_a_report_of_this_engine_is_not_made_twice(client: Client, base_folder: Path, noised_folder: Path) -> None:
    made = client.submit(AnalysisRequest.model_validate(body(base_folder, noised_folder)))
    client.wait(made.id, timeout=WAIT_SECONDS)
    again = client.rerun(made.id)
    assert (again.id, again.status, again.older_engine) == (made.id, "succeeded", False)


@pytest.mark.slow
def test_a_real_model_tuned_above_a_frozen_bottom_drifts_from_there_on(client: Client, roots: Path) -> None:
    """Embeddings and first three blocks frozen: exactly nothing up to layer 3, a zone boundary there, drift above.

    The last layer drifts farther than under shuffled labels, and the fine-tune is better than the commonest label.
    """
    inputs = fetch(roots / "real")
    request = {
        "base": {"uri": inputs.model.as_uri()},
        "finetune": {
            "freeze_first": 3,
            "train_examples": 800,
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 1e-4,
            "checkpoints": 2,
        },
        "dataset": {"uri": inputs.reviews.as_uri(), "max_examples": 200},
        "analysis": {"sae": None, "max_length": 64, "noise_floors": ["numerical", "label_shuffle"]},
    }
    report = client.report(finished(client, request).id)
    drift = [layer.drift for layer in report.layers]
    assert drift[:4] == [0.0] * 4
    assert all(layer.similarity["token"].relative_l2.value == 0.0 for layer in report.layers[:4])
    assert all(value > 0 for value in drift[4:])
    assert [layer.drifted for layer in report.layers[:4]] == [False] * 4
    assert report.layers[-1].drifted
    assert report.layers[-1].noise_floors["label_shuffle"] < drift[-1]
    assert (report.zones[0].first, report.zones[0].last) == (0, 3)
    assert report.zones[0].support is not None
    assert report.trajectory is not None
    assert [step[:4] for step in report.trajectory.drift] == [[0.0] * 4] * len(report.trajectory.steps)
    assert report.outputs is not None
    assert report.outputs.tuned is not None
    assert report.outputs.tuned.accuracy is not None
    assert report.outputs.tuned.accuracy.low is not None
    assert report.outputs.majority_accuracy is not None
    assert report.outputs.tuned.accuracy.low > report.outputs.majority_accuracy
    grafts = [layer.graft for layer in report.layers]
    assert report.causal.graft is not None
    assert all(graft is not None and graft.prefix.value == report.causal.graft.ungrafted for graft in grafts[:4])


@pytest.mark.slow
def test_a_real_model_and_itself_show_exactly_nothing(client: Client, roots: Path) -> None:
    inputs = fetch(roots / "real")
    request = {
        "base": {"uri": inputs.model.as_uri()},
        "tuned": {"uri": inputs.model.as_uri()},
        "dataset": {"uri": inputs.reviews.as_uri(), "max_examples": 100},
        "analysis": {"sae": None},
    }
    report = client.report(finished(client, request).id)
    assert len(report.layers) == 7
    for layer in report.layers:
        token = layer.similarity["token"]
        assert (token.relative_l2.value, token.cka.value) == (0.0, 1.0)
    codes = {warning.code for warning in report.warnings}
    assert codes == {"repeated_texts", "identical_models", "identical_bodies", "answers_not_evaluated", "texts_cut"}
    assert len(report.zones) == 1


def test_models_and_data_come_from_s3(stack: Stack, client: Client, base_folder: Path, noised_folder: Path) -> None:
    bucket = BlobStore.connect(stack.settings).of_bucket("sources")
    bucket.ensure_bucket()
    for name, folder in (("base", base_folder), ("noised", noised_folder)):
        for path in folder.iterdir():
            bucket.put_file(f"models/{name}/{path.name}", path)
    lines = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS)
    bucket.put("texts.jsonl", lines.encode(), "application/jsonl")
    request = {
        "base": {"uri": "s3://sources/models/base/"},
        "tuned": {"uri": "s3://sources/models/noised"},
        "dataset": {"uri": "s3://sources/texts.jsonl", "text_column": "body"},
        "analysis": {"sae": None},
    }
    from_s3 = client.report(finished(client, request).id)
    from_files = client.report(finished(client, body(base_folder, noised_folder)).id)
    assert from_s3.models["base"].fingerprint == from_files.models["base"].fingerprint
    assert [layer.similarity for layer in from_s3.layers] == [layer.similarity for layer in from_files.layers]


def test_the_same_question_has_the_same_answer(client: Client, base_folder: Path, noised_folder: Path) -> None:
    reports = [
        client.report(finished(client, body(base_folder, noised_folder, name=name)).id).model_dump()
        for name in ("once", "twice")
    ]
    for report in reports:
        for name in ("analysis_id", "name", "created_at", "request", "timings"):
            del report[name]
    assert reports[0] == reports[1]


@pytest.fixture
def broken(base_folder: Path, roots: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a copy of the base model with something wrong."""

    def make(name: str, change: Callable[[Path], object]) -> Path:
        folder = save_model(tiny_bert(0), roots / f"broken-{name}")
        change(folder)
        return folder

    return make


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown field": ({"tunned": {}}, "/tunned", "there is no field 'tunned'; did you mean tuned?"),
    "both": ({"finetune": {}}, "", "exactly one of tuned"),
    "neither": ({"tuned": None}, "", "exactly one of tuned"),
    "empty": ({"dataset": {"inline": {"texts": []}}}, "/dataset/inline/texts", "must not be empty"),
    "NUL byte": ({"base": {"uri": "file:///x%00y"}}, "/base/uri", "cannot be read"),
    "long name": ({"base": {"uri": "file:///" + "x" * 1500}}, "/base/uri", "outside the folders"),
    "no URI": ({"base": {"uri": "file://[x"}}, "/base/uri", "cannot be read"),
    "outside": ({"base": {"uri": "file:///etc"}}, "/base/uri", "outside the folders that this service may read"),
    "no such key": ({"dataset": {"uri": "s3://sources/none.csv"}}, "/dataset/uri", "does not exist"),
    "no such prefix": ({"tuned": {"uri": "s3://sources/none/"}}, "/tuned/uri", "contains no objects"),
    "no such bucket": ({"tuned": {"uri": "s3://no-such-bucket/x/"}}, "/tuned/uri", "does not exist"),
    "scheme": ({"base": {"uri": "ftp://x/y"}}, "/base/uri", "the scheme must be file:, s3:, upload:, hf: or mlflow:"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_what_can_be_seen_at_once_is_422(stack: Stack, base_folder: Path, noised_folder: Path, case: str) -> None:
    changes, pointer, message = BAD_REQUESTS[case]
    answer = httpx.post(f"{stack.url}/v1/analyses", json=body(base_folder, noised_folder) | changes, timeout=60)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert message in error["detail"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("no-config", lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        ("pickles", only_pickles, "only pickled weights"),
        ("depth", lambda folder: save_model(tiny_bert(0, blocks=2), folder), "differ in blocks: base 3, tuned 2"),
        ("width", lambda folder: save_model(tiny_bert(0, hidden=16), folder), "differ in hidden width: base 32"),
    ],
)
def test_an_unusable_folder_is_422(
    client: Client, base_folder: Path, broken: Callable[..., Path], name: str, change: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        client.submit(AnalysisRequest.model_validate(body(base_folder, broken(name, change))))
    assert [problem.pointer for problem in caught.value.errors] == ["/tuned/uri"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("body,label\na,1\n", "no column 'text'"), ("text,label\n", "has no rows"), ("", "is empty")],
)
def test_an_unusable_table_is_422(
    client: Client, roots: Path, base_folder: Path, noised_folder: Path, content: str, message: str
) -> None:
    path = roots / "bad.csv"
    path.write_text(content)
    request = body(base_folder, noised_folder, dataset={"uri": path.as_uri()})
    with pytest.raises(InputError, match=message):
        client.submit(AnalysisRequest.model_validate(request))


def nan_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def huge_norm(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.LayerNorm.weight"][:] = 3e38
    weights["encoder.layer.1.output.LayerNorm.bias"][:] = 3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("name", "change", "stage", "message"),
    [
        ("nan", nan_weights, "extract", "the weight encoder.layer.0.output.dense.bias contains NaN or infinite values"),
        ("inf", huge_norm, "extract", "the activations of the tuned model are NaN or infinite at layer 2"),
        ("truncated", truncated, "resolve", "the weights could not be loaded"),
    ],
)
def test_what_shows_later_fails_the_job_with_stage_and_reason(
    client: Client, base_folder: Path, broken: Callable[..., Path], name: str, change: Any, stage: str, message: str
) -> None:
    last = finished(client, body(base_folder, broken(name, change)))
    assert last.status is Status.FAILED
    assert last.error is not None
    assert (last.error.stage, last.error.status) == (stage, 422)
    assert message in last.error.detail
    assert last.error.errors[0].pointer == "/tuned/uri"
    with pytest.raises(ConflictError, match="the analysis is failed: it has no report"):
        client.report(last.id)
    with pytest.raises(AnalysisFailed, match=f"failed in stage {stage}"):
        client.wait(last.id, timeout=WAIT_SECONDS)


def test_too_few_texts_fail_the_job(client: Client, base_folder: Path, noised_folder: Path) -> None:
    last = finished(client, body(base_folder, noised_folder, dataset={"inline": {"texts": TEXTS[:5]}}))
    assert last.error is not None
    assert "5 usable rows; at least 20 are needed" in last.error.detail


def long_request(base: Path, reviews: Path, name: str) -> dict[str, Any]:
    """An analysis that would run for many minutes."""
    return {
        "name": name,
        "base": {"uri": base.as_uri()},
        "finetune": {"epochs": 100, "batch_size": 1},
        "dataset": {"uri": reviews.as_uri(), "text_column": "review", "label_column": "stars", "max_examples": 100},
        "analysis": {"sae": None},
    }


def running(client: Client, request: dict[str, Any]) -> Analysis:
    """The analysis, once its fine-tune makes progress."""
    analysis = client.submit(AnalysisRequest.model_validate(request))
    for current in client.watch(analysis.id, timeout=60):
        if current.progress.stage == "finetune" and "step" in current.progress.stages[1].detail:
            return current
    raise AssertionError("it ended before it could be looked at")


def test_a_running_job_shows_progress_and_stops_when_cancelled(
    client: Client, base_folder: Path, reviews: Path
) -> None:
    analysis = running(client, long_request(base_folder, reviews, "to cancel"))
    assert analysis.status is Status.RUNNING
    assert 0 < analysis.progress.stages[1].fraction < 1
    started = time.monotonic()
    client.cancel(analysis.id)
    *_, last = client.watch(analysis.id, timeout=30)
    assert last.status is Status.CANCELLED
    assert time.monotonic() - started < 3
    with pytest.raises(ConflictError, match="already ended"):
        client.cancel(analysis.id)


def test_an_unknown_analysis_is_404(client: Client) -> None:
    for call in (client.get, client.cancel, client.report):
        with pytest.raises(NotFoundError):
            call("an_" + "a" * 26)


def test_the_list_is_newest_first_and_pages(client: Client, base_folder: Path, noised_folder: Path) -> None:
    last = finished(client, body(base_folder, noised_folder, name="listed", tags={"team": "search"}))
    page = client.list(limit=2)
    assert page.items[0].id == last.id
    assert (page.items[0].name, page.items[0].tags) == ("listed", {"team": "search"})
    assert page.next_cursor is not None
    following = client.list(limit=2, cursor=page.next_cursor)
    assert not {item.id for item in page.items} & {item.id for item in following.items}
    assert all(item.status is Status.FAILED for item in client.list(status=Status.FAILED).items)
    with pytest.raises(InputError):
        client.list(limit=0)


def test_health_readiness_and_docs_answer_without_the_internet(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url, timeout=30) as http:
        assert http.get("/health").json()["status"] == "ok"
        assert http.get("/ready").json() == {
            "ready": True,
            "redis": "ok",
            "s3": "ok",
            "s3_conditional_writes": True,
            "workers": 1,
        }
        docs = http.get("/docs").text
        assert "https://" not in docs
        assert http.get("/static/docs/swagger-ui-bundle.js").status_code == 200
        schema = http.get("/openapi.json").json()
        posted = schema["paths"]["/v1/analyses"]["post"]["responses"]
        assert set(posted) == {"200", "202", "400", "401", "403", "409", "413", "415", "422", "429", "503", "504"}
        assert "Problem" in schema["components"]["schemas"]


@pytest.mark.slow
def test_programs_that_die_are_started_again_and_the_job_goes_on(
    stack: Stack, client: Client, base_folder: Path, reviews: Path
) -> None:
    analysis = running(client, long_request(base_folder, reviews, "survives"))
    before = stack.pids()
    for name in ("worker", "api"):
        os.killpg(before[name], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            again = stack.pids()["worker"] != before["worker"]
            if again and httpx.get(f"{stack.url}/ready", timeout=5).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.2)
    for current in client.watch(analysis.id, timeout=120):
        if current.status is Status.RUNNING and client.get(analysis.id).progress.fraction < analysis.progress.fraction:
            break
        assert not current.status.final
    client.cancel(analysis.id)
    *_, last = client.watch(analysis.id, timeout=90)
    assert last.status is Status.CANCELLED


@pytest.mark.slow
def test_data_survive_a_restart_and_nothing_is_left_running(
    start_stack: Callable[[Path], Stack], tmp_path: Path, base_folder: Path, noised_folder: Path
) -> None:
    with start_stack(tmp_path) as stack, Client(stack.url) as client:
        analysis = finished(client, body(base_folder, noised_folder))
        report = client.report(analysis.id)
        pids = list(stack.pids().values())
        url = stack.url
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with Client(url) as client, pytest.raises(TransportError):
        client.get(analysis.id)
    with start_stack(tmp_path) as stack, Client(stack.url) as client:
        assert client.get(analysis.id) == analysis
        assert client.report(analysis.id) == report
        assert client.submit(AnalysisRequest.model_validate(body(base_folder, noised_folder))).status == "succeeded"


@pytest.mark.slow
def test_servers_that_the_environment_names_are_used_and_not_started(
    stack: Stack, roots: Path, tmp_path: Path, base_folder: Path, noised_folder: Path
) -> None:
    theirs = stack.settings
    assert theirs.s3_access_key is not None
    assert theirs.s3_secret_key is not None
    named = {
        "LAYERDRIFT_REDIS_URL": theirs.redis_url.removesuffix("/0") + "/2",
        "LAYERDRIFT_S3_ENDPOINT": str(theirs.s3_endpoint),
        "LAYERDRIFT_S3_ACCESS_KEY": theirs.s3_access_key.get_secret_value(),
        "LAYERDRIFT_S3_SECRET_KEY": theirs.s3_secret_key.get_secret_value(),
        "LAYERDRIFT_S3_BUCKET": "another",
        "LAYERDRIFT_MODEL_ROOTS": str(roots),
        "LAYERDRIFT_HOME": str(tmp_path),
        "LAYERDRIFT_PORT": str(choose({"api": 0})["api"]),
    }
    with Stack({**os.environ, **named}) as second, Client(second.url) as client:
        assert second.url.endswith(":" + named["LAYERDRIFT_PORT"])
        assert set(second.pids()) == {"api", "worker"}
        analysis = finished(client, body(base_folder, noised_folder))
        assert analysis.status is Status.SUCCEEDED
    kept = BlobStore.connect(theirs).of_bucket("another").list(f"tenants/default/reports/{analysis.id}/")
    assert [blob.key.rpartition("/")[2] for blob in kept] == ["report.html", "report.json", "report.md"]


@pytest.mark.parametrize("port", ["80", "banana"])
def test_make_up_says_which_setting_is_wrong(tmp_path: Path, port: str) -> None:
    environ = {**os.environ, "LAYERDRIFT_HOME": str(tmp_path), "LAYERDRIFT_PORT": port}
    command = [sys.executable, "-m", "deploy.embedded"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("layerdrift could not start: LAYERDRIFT_PORT: Input should be")


def test_a_port_that_is_asked_for_and_taken_is_an_error(stack: Stack, tmp_path: Path) -> None:
    environ = {**os.environ, "LAYERDRIFT_HOME": str(tmp_path), "LAYERDRIFT_PORT": str(stack.settings.port)}
    with pytest.raises(RuntimeError, match="is taken"):
        Stack(environ).__enter__()


@pytest.mark.slow
def test_a_killed_stack_leaves_nothing_running(tmp_path: Path) -> None:
    """Even SIGKILL, which no handler sees: the servers end with their supervisor, the worker without its Redis too."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
    command = [sys.executable, "-m", "deploy.embedded"]
    environ = {**clean, "LAYERDRIFT_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        assert up.stdout.readline().startswith("ready http://127.0.0.1:")
        programs = psutil.Process(up.pid).children(recursive=True)
        assert len(programs) >= 6
        up.kill()
    gone, alive = psutil.wait_procs(programs, timeout=20)
    assert alive == []
    assert len(gone) == len(programs)


def test_two_stacks_do_not_share_a_folder(stack: Stack, start_stack: Callable[[Path], Stack]) -> None:
    with pytest.raises(RuntimeError, match="another stack is running on"):
        start_stack(stack.home).__enter__()
