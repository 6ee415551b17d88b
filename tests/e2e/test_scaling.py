"""Workers from zero and back: a job waits, a worker is started for it, and ends when there is no more to do.

The part of KEDA is played by the rule of its ScaledJob, asked of the API's real metric (deploy/helm).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from backends.settings import Settings
from backends.storage.blobs import BlobStore
from deploy.embedded.ports import LOOPBACK, choose
from layerdrift.contract.analysis import Status
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.builders.calls import WAIT_SECONDS, body

pytestmark = pytest.mark.slow  # an API, maintenance and a worker of its own

SECONDS = 60.0


@pytest.fixture
def environment(settings: Settings, roots: Path, tmp_path: Path) -> dict[str, str]:
    """Of processes on a Redis and a bucket that no other worker uses."""
    BlobStore.connect(settings.model_copy(update={"s3_bucket": "scaling"})).ensure_bucket()
    assert settings.s3_access_key is not None
    assert settings.s3_secret_key is not None
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
    return clean | {
        "LAYERDRIFT_HOME": str(tmp_path),
        "LAYERDRIFT_MODEL_ROOTS": str(roots),
        "LAYERDRIFT_REDIS_URL": settings.redis_url.removesuffix("/1") + "/9",
        "LAYERDRIFT_S3_ENDPOINT": str(settings.s3_endpoint),
        "LAYERDRIFT_S3_ACCESS_KEY": settings.s3_access_key.get_secret_value(),
        "LAYERDRIFT_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "LAYERDRIFT_S3_BUCKET": "scaling",
        "LAYERDRIFT_PORT": str(choose({"api": 0})["api"]),
        "LAYERDRIFT_SCALED_QUEUES": "gpu,cpu",
        "LAYERDRIFT_IDLE_SECONDS": "2",
        "LAYERDRIFT_DEVICES": "1",
    }


@contextmanager
def running(environment: dict[str, str], *module: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", *module], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(timeout=SECONDS) == 0


def wait_for(http: httpx.Client) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if http.get("/health").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the API does not answer")


def waits(http: httpx.Client) -> dict[str, int]:
    return {name: queue["waiting"] for name, queue in http.get("/metrics/queues").json().items()}


def started(http: httpx.Client, pending: int, most: int = 4) -> int:
    """Jobs that KEDA starts now, by its strategy `accurate`: what waits, less what starts, up to a bound."""
    return max(0, min(waits(http)["gpu"], most) - pending)


def test_a_job_starts_a_worker_which_ends_when_nothing_waits(
    environment: dict[str, str], base_folder: Path, noised_folder: Path
) -> None:
    url = f"http://{LOOPBACK}:{environment['LAYERDRIFT_PORT']}"
    request = AnalysisRequest.model_validate(body(base_folder, noised_folder))
    with (
        running(environment, "service.main"),
        running(environment, "workers.maintenance"),
        httpx.Client(base_url=url) as http,
        Client(url) as client,
    ):
        wait_for(http)
        assert http.get("/ready").json()["ready"]
        assert started(http, 0) == 0
        made = client.submit(request)
        assert waits(http) == {"gpu": 1, "cpu": 0}
        assert started(http, 0) == 1
        argv = [sys.executable, "-m", "celery", "-A", "workers.main", "worker"]
        worker = subprocess.Popen([*argv, "--without-gossip", "--without-mingle"], env=environment)
        assert started(http, 1) == 0
        assert client.wait(made.id, WAIT_SECONDS).layers
        assert client.get(made.id).status is Status.SUCCEEDED
        assert worker.wait(timeout=SECONDS) == 0
        assert waits(http) == {"gpu": 0, "cpu": 0}
        assert http.get("/metrics/queues").json()["gpu"]["workers"] == 0
