"""A model version's way through MLflow: the registry tells of it, it is reviewed, and the verdict stands beside it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.embedded.ports import LOOPBACK, choose
from deploy.embedded.stack import Stack
from deploy.embedded.supervisor import Program, Supervisor
from layerdrift.integrations.mlflow import ANALYSIS_TAG, VERDICT_TAG
from mlflow import MlflowClient
from tests.builders.texts import make_texts
from tests.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow

SECRET = "a-secret-of-the-webhook"
SECONDS = 120
POLICY = """
rules:
  - {id: late-layers, path: "layers[3].drift", max: 0.000001, message: the last layer moved}
"""


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Iterator[MlflowServer]:
    """A registry whose `reviews` has a champion."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        server.alias("reviews", "champion", server.register("reviews", base_folder))
        yield server


@pytest.fixture(scope="module")
def reviewing(
    mlflow: MlflowServer, start_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack that reads the registry's models."""
    with start_stack(tmp_path_factory.mktemp("home"), LAYERDRIFT_MLFLOW_URL=mlflow.url) as stack:
        yield stack


@pytest.fixture
def receiver(mlflow: MlflowServer, reviewing: Stack, tmp_path: Path) -> Program:
    """The receiver as a program, not running yet."""
    request: dict[str, Any] = {
        "base": {"uri": "mlflow://reviews@champion"},
        "dataset": {"inline": {"texts": make_texts(60)}},
        "analysis": {"sae": None},
    }
    (tmp_path / "policy.yaml").write_text(POLICY)
    reviews = {"models": {"reviews": {"request": request, "policy": "policy.yaml"}}}
    (tmp_path / "reviews.yaml").write_text(json.dumps(reviews))
    port = choose({"receiver": 0})["receiver"]
    argv = [sys.executable, "-m", "layerdrift", "publish", "mlflow-receiver", str(tmp_path / "reviews.yaml")]
    env = environment(mlflow, reviewing) | {"LAYERDRIFT_MLFLOW_WEBHOOK_SECRET": SECRET, "PORT": str(port)}

    def ready() -> bool:
        try:
            return httpx.get(f"http://{LOOPBACK}:{port}/health").is_success
        except httpx.TransportError:
            return False

    return Program("receiver", [*argv, "--port", str(port)], env, tmp_path / "receiver.log", ready)


def environment(mlflow: MlflowServer, stack: Stack) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LAYERDRIFT_", "MLFLOW_"))}
    path = os.pathsep.join(sys.path)
    return env | {"LAYERDRIFT_URL": stack.url, "MLFLOW_TRACKING_URI": mlflow.url, "PYTHONPATH": path, "NO_COLOR": "1"}


def tags(mlflow: MlflowServer, version: str, wanted: str) -> dict[str, str]:
    """Of a version of `reviews`, once one of them is there."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = {tag["key"]: tag["value"] for tag in mlflow.version("reviews", version).get("tags", [])}
        if wanted in found:
            return found
        time.sleep(0.3)
    raise TimeoutError(f"version {version} has no tag {wanted} after {SECONDS} s: {found}")


def test_a_new_version_is_reviewed_and_the_verdict_comes_back(
    mlflow: MlflowServer, receiver: Program, noised_folder: Path, tmp_path: Path
) -> None:
    hook = {"name": "layerdrift", "url": f"http://{LOOPBACK}:{receiver.env['PORT']}/", "secret": SECRET}
    mlflow.post("webhooks", hook | {"events": [{"entity": "MODEL_VERSION", "action": "CREATED"}]})
    supervisor = Supervisor()
    try:
        supervisor.start(receiver, 60)
        version = mlflow.register("reviews", noised_folder)
        found = tags(mlflow, version, VERDICT_TAG)
    finally:
        supervisor.stop()
    assert found[VERDICT_TAG] == "fail"
    assert found["layerdrift.report_url"].endswith(f"/v1/analyses/{found[ANALYSIS_TAG]}/report")
    client = MlflowClient(mlflow.url)
    run = client.get_model_version("reviews", version).run_id
    assert run is not None
    curve = sorted((point.step, point.value) for point in client.get_metric_history(run, "layerdrift.drift"))
    assert [step for step, _ in curve] == [0, 1, 2, 3]
    assert curve[0][1] < 1e-6 < curve[2][1]
    names = {artifact.path for artifact in client.list_artifacts(run, "layerdrift")}
    assert names == {f"layerdrift/{name}" for name in ("report.json", "report.html", "report.md", "verdict.json")}
    verdict = json.loads(Path(client.download_artifacts(run, "layerdrift/verdict.json", str(tmp_path))).read_text())
    assert verdict["checks"][0]["findings"][0]["path"] == "layers[3].drift"


def test_a_receiver_that_was_stopped_in_between_goes_on(
    mlflow: MlflowServer, receiver: Program, noised_folder: Path
) -> None:
    version = mlflow.register("reviews", noised_folder)
    tag = {"name": "reviews", "version": version, "key": ANALYSIS_TAG, "value": "an_begun"}
    mlflow.post("model-versions/set-tag", tag)
    supervisor = Supervisor()
    try:
        supervisor.start(receiver, 60)
        assert tags(mlflow, version, VERDICT_TAG)[VERDICT_TAG] == "fail"
    finally:
        supervisor.stop()


def test_only_what_mlflow_signed_lately_is_heard(receiver: Program) -> None:
    supervisor = Supervisor()
    url = f"http://{LOOPBACK}:{receiver.env['PORT']}/"
    told = {"entity": "model_version", "action": "created", "data": {"name": "others", "version": "1"}}
    try:
        supervisor.start(receiver, 60)
        assert post(url, told).status_code == 200
        assert post(url, told, secret="another secret, not this one").status_code == 401
        assert post(url, told, at=time.time() - 3600).status_code == 401
        assert httpx.post(url, json=told).status_code == 401
        assert post(url, told | {"data": []}).status_code == 422
        assert httpx.post(url, json=told, headers=[(b"X-MLflow-Signature", "v1,é".encode())]).status_code == 401
        assert httpx.get(f"{url}health").json() == {"status": "ok"}
        assert post(url, {"entity": "prompt", "action": "created", "data": {}}).status_code == 200
    finally:
        supervisor.stop()


def post(url: str, told: Any, secret: str = SECRET, at: float | None = None) -> httpx.Response:
    body, stamp = json.dumps(told), str(int(at or time.time()))
    signed = hmac.new(secret.encode(), f"d1.{stamp}.{body}".encode(), hashlib.sha256).digest()
    headers = {
        "X-MLflow-Delivery-Id": "d1",
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": "v1," + base64.b64encode(signed).decode(),
    }
    return httpx.post(url, content=body, headers=headers)


def test_a_review_is_published_by_hand(
    mlflow: MlflowServer, reviewing: Stack, base_folder: Path, noised_folder: Path, tmp_path: Path
) -> None:
    def layerdrift(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "layerdrift", *arguments]
        env = environment(mlflow, reviewing) | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=SECONDS)

    mlflow.register("by-hand", base_folder)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(make_texts(60)) + "\n")
    given = ["--base", base_folder.as_uri(), "--tuned", "models:/by-hand/1", "--dataset", str(texts), "--no-sae"]
    analysis = layerdrift("submit", *given).stdout.strip()
    assert layerdrift("wait", analysis).returncode == 0
    published = layerdrift("publish", "mlflow", analysis, "--version", "models:/by-hand/1")
    assert published.returncode == 0, published.stderr
    assert published.stdout.startswith("mlflow://by-hand/1, run ")
    assert MlflowClient(mlflow.url).get_model_version("by-hand", "1").tags[VERDICT_TAG] == "warn"
    absent = layerdrift("publish", "mlflow", analysis, "--version", "models:/by-hand/9")
    assert (absent.returncode, "was not found in MLflow" in absent.stderr) == (2, True)
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: apache-2.0\n---\n# A model\n\nIts own words.\n")
    for _ in range(2):
        assert (
            layerdrift("publish", "card", analysis, "--file", str(card), "--policy", str(policy(tmp_path))).returncode
            == 0
        )
    assert card.read_text().count("## Layer drift") == 1
    assert card.read_text().startswith("---\nlicense: apache-2.0\n---\n# A model\n\nIts own words.\n")
    assert "Review: Policy passed." in card.read_text()
    logged = layerdrift("publish", "wandb", analysis, "--project", "reviews")
    assert logged.returncode == 0, logged.stderr
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"layerdrift/drift" in run.read_bytes()


def policy(folder: Path) -> Path:
    path = folder / "policy.yaml"
    path.write_text(POLICY)
    return path
