"""`make bench-api`: a cached report beside a bare FastAPI route, POST /v1/analyses, and lists of many analyses.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from backends.api_keys import new_key
from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.storage import key_names
from deploy.embedded.ports import LOOPBACK, choose
from deploy.embedded.stack import Stack
from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.benchmarks.document import publish
from tests.benchmarks.load import Load, load
from tests.builders.models import add_noise, save_model, tiny_bert
from tests.builders.texts import make_texts

ROUNDS, SECONDS, CONNECTIONS = 5, 4.0, 16
POSTS = 60
FEW, MANY, LISTS = 100, 10_000, 100

BARE = """
import sys, uvicorn
from fastapi import FastAPI, Response
app, body = FastAPI(), open(sys.argv[1], "rb").read()
@app.get("/report")
async def report():
    return Response(body, media_type="application/json")
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
"""


def main() -> None:
    """Prints and publishes the figures."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        base = save_model(tiny_bert(), home / "models" / "base")
        noised = tiny_bert()
        add_noise(noised, 2)
        request = _request(base, save_model(noised, home / "models" / "tuned"))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
        with Stack({**clean, "LAYERDRIFT_HOME": str(home)}) as stack:
            figures = _measured(stack, request, home)
    _publish(figures)
    print(json.dumps({name: figures[name] for name in LAST_LINE}))


LAST_LINE = ("bare_rps", "report_rps", "report_p99_ms", "bare_p99_ms", "post_median_ms", "list_ratio")


def _request(base: Path, tuned: Path) -> dict[str, Any]:
    return {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": {"inline": {"texts": make_texts(400)}, "max_examples": 200},
        "analysis": {"sae": {"tokens": 20_000, "width": 4, "k": 8}, "texts": make_texts(20)},
    }


def _measured(stack: Stack, request: dict[str, Any], home: Path) -> dict[str, float]:
    with Client(stack.url) as client:
        done = client.submit(AnalysisRequest.model_validate(request))
        client.wait(done.id, timeout=300)
    os.killpg(stack.pids()["worker"], signal.SIGSTOP)  # nothing else runs while the API is measured
    try:
        return _reports(stack, done, home) | _posts(stack, request) | _lists(stack, done.id)
    finally:
        os.killpg(stack.pids()["worker"], signal.SIGCONT)


def _reports(stack: Stack, done: Analysis, home: Path) -> dict[str, float]:
    """Both routes in turn, so that a noisy moment meets both."""
    body = home / "report.json"
    body.write_bytes(httpx.get(stack.url + done.links.report).content)
    port = choose({"bare": 0})["bare"]
    bare = subprocess.Popen([sys.executable, "-c", BARE, str(body), str(port)])
    try:
        _wait_for(f"http://{LOOPBACK}:{port}/report")
        ours, theirs = [], []
        for _ in range(ROUNDS):
            theirs.append(load(LOOPBACK, port, "/report", CONNECTIONS, SECONDS))
            ours.append(load(LOOPBACK, stack.settings.port, done.links.report, CONNECTIONS, SECONDS))
    finally:
        bare.terminate()
        bare.wait()

    def medians(runs: list[Load]) -> tuple[float, float]:
        return statistics.median(run.per_second for run in runs), statistics.median(run.quantile(0.99) for run in runs)

    (bare_rps, bare_p99), (report_rps, report_p99) = medians(theirs), medians(ours)
    return {
        "report_bytes": body.stat().st_size,
        "bare_rps": round(bare_rps),
        "report_rps": round(report_rps),
        "bare_p99_ms": round(bare_p99, 2),
        "report_p99_ms": round(report_p99, 2),
    }


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{url} does not answer")


def _posts(stack: Stack, request: dict[str, Any]) -> dict[str, float]:
    """New analyses one after another; pinning, the record in S3 and Redis, and the announcement are in it."""
    seconds = []
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        for seed in range(POSTS):
            started = time.perf_counter()
            answer = http.post("/v1/analyses", json=request | {"seed": 1 + seed})
            seconds.append(time.perf_counter() - started)
            if answer.status_code != 202:
                raise RuntimeError(answer.text)
    return {"post_median_ms": round(1000 * statistics.median(seconds), 2)}


def _lists(stack: Stack, done: str) -> dict[str, float]:
    """A page of a tenant that has few finished analyses, and of one that has many, in turn."""
    deployment = Deployment.connect(stack.settings)
    template = deployment.jobs.get(done)

    def add(tenant: str) -> None:
        made = template.model_copy(
            update={"id": f"an_{uuid.uuid4().hex[:26]}", "tenant": tenant, "created_at": datetime.now(UTC)}
        )
        deployment.jobs.submit(JobRecord.model_validate(made.model_copy(update={"status": Status.SUCCEEDED})))

    secrets = {}
    for tenant, count in (("few", FEW), ("many", MANY)):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _, tenant=tenant: add(tenant), range(count)))
        secrets[tenant] = deployment.keys.create(new_key(tenant=tenant, scopes=["read"], requests_per_minute=10**6))
    seconds: dict[str, list[float]] = {"few": [], "many": []}
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        for _ in range(LISTS):
            for tenant, secret in secrets.items():
                started = time.perf_counter()
                answer = http.get("/v1/analyses", headers={"Authorization": f"Bearer {secret}"})
                seconds[tenant].append(time.perf_counter() - started)
                if len(answer.json()["items"]) != 20:
                    raise RuntimeError(answer.text)
    deployment.blobs.delete_all(key_names.API_KEY_OBJECTS)
    few, many = (statistics.median(seconds[tenant]) for tenant in ("few", "many"))
    return {
        "list_few_ms": round(1000 * few, 2),
        "list_many_ms": round(1000 * many, 2),
        "list_ratio": round(many / few, 2),
    }


def _publish(figures: dict[str, float]) -> None:
    publish(
        "The API (`make bench-api`)",
        f"""
One process of the API, {CONNECTIONS} connections that are kept open, each with one request in flight, {ROUNDS} runs of
{SECONDS:g} s of either route in turn, medians of the runs; the load runs on the same machine. The bare route is one of
FastAPI that returns the same {figures["report_bytes"]:,.0f} bytes from memory, under uvicorn's defaults, as LitServe
starts it. POSTs come one after another, each a new analysis of two checkpoints and 400 texts; no job runs meanwhile.

| | requests/s | p99, ms |
|---|---|---|
| bare route | {figures["bare_rps"]:,.0f} | {figures["bare_p99_ms"]:.2f} |
| cached report | {figures["report_rps"]:,.0f} | {figures["report_p99_ms"]:.2f} |

| | ms, median |
|---|---|
| POST /v1/analyses | {figures["post_median_ms"]:.2f} |
| a page of 20 of {FEW} finished analyses | {figures["list_few_ms"]:.2f} |
| a page of 20 of {MANY:,} | {figures["list_many_ms"]:.2f} |
""",
    )


if __name__ == "__main__":
    main()
