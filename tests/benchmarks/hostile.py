"""`make bench-hostile`: `/health` and honest requests of one client while others send 200 hostile requests.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy.embedded.stack import Stack
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.benchmarks.document import publish
from tests.builders.models import add_noise, save_model, tiny_bert
from tests.builders.texts import make_texts

REQUESTS, ATTACKERS = 200, 8
IDLE_SECONDS = 10.0
EVERY_SECONDS = 0.05
NICENESS = 19


class Asked:
    """Asks for a path again and again from a process of its own; seconds that each answer took."""

    def __init__(self, url: str) -> None:
        self.seconds: list[float] = []
        context = multiprocessing.get_context("spawn")
        self._stopped = context.Event()
        self._found = context.SimpleQueue()
        self._process = context.Process(target=_ask, args=(url, self._stopped, self._found))

    def __enter__(self) -> Asked:
        self._process.start()
        self._found.get()  # it has begun
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.seconds = self._found.get()
        self._process.join()

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the answers stayed below."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _ask(url: str, stopped: Any, found: Any) -> None:
    seconds = []
    with httpx.Client(timeout=60) as http:
        http.get(url)
        found.put(None)
        while not stopped.wait(EVERY_SECONDS):
            started = time.perf_counter()
            http.get(url).raise_for_status()
            seconds.append(time.perf_counter() - started)
    found.put(seconds)


NESTED = b'{"a":' * 1_300_000 + b"1" + b"}" * 1_300_000
FIELDS = json.dumps({f"field{index}": 1 for index in range(500_000)}).encode()[: 8 << 20]
QUOTES = b'"' + b'\\"' * 4_000_000
LISTS = b"[" * 8_000_000


def hostile(number: int, finished: str) -> tuple[str, str, dict[str, Any]]:
    """One of the kinds, in turn: a method, a path and what httpx is given."""
    kind = number % 8
    json_type = {"Content-Type": "application/json"}
    analyses = "/v1/analyses"
    if kind == 0:
        return "POST", analyses, {"content": NESTED, "headers": json_type}
    if kind == 1:
        return "POST", analyses, {"content": FIELDS, "headers": json_type}
    if kind == 2:
        return "POST", analyses, {"content": QUOTES, "headers": json_type}
    if kind == 3:
        return "POST", analyses, {"json": {f"f{index}": 1 for index in range(2_400)}}
    if kind == 4:
        rules = [
            {"id": f"r{index}", "message": "m", "path": "tokens.texts[*].drift[*][*]", "max": -1}
            for index in range(200)
        ]
        return "POST", f"{analyses}/{finished}/gate", {"json": {"rules": rules}}
    if kind == 5:
        return "GET", f"{analyses}?limit=100", {}
    if kind == 6:
        return "POST", "/v1/uploads", {"json": {"filename": "x" * 60_000}}
    return "POST", analyses, {"content": LISTS, "headers": json_type}


def _go_last() -> None:
    """The attackers take what is left of the cores: theirs would be another machine."""
    os.setsid()
    os.nice(NICENESS)
    with suppress(OSError), open("/proc/self/autogroup", "w") as share:
        share.write(str(NICENESS))


def _attack(url: str, finished: str) -> list[int]:
    """The status of each answer."""

    def one(number: int) -> int:
        method, path, given = hostile(number, finished)
        return httpx.request(method, url + path, timeout=120, **given).status_code

    with ThreadPoolExecutor(ATTACKERS) as pool:
        return list(pool.map(one, range(REQUESTS)))


def main() -> None:
    """Prints and publishes the figures."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        base = save_model(tiny_bert(), home / "models" / "base")
        changed = tiny_bert()
        add_noise(changed, 2)
        tuned = save_model(changed, home / "models" / "tuned")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
        with Stack(clean | {"LAYERDRIFT_HOME": folder}) as stack, Client(stack.url) as client:
            found = _measured(stack, client, _request(base, tuned))
    body = (
        f"{REQUESTS} requests of eight kinds by {ATTACKERS} clients: 8 MB of nesting, of 500,000 fields and of escaped "
        "quotes, thousands of unknown fields, a policy of 200 rules over every token, lists, long names. "
        "`/health` is asked every 50 ms meanwhile, and an honest analysis is submitted and waited for. "
        "All of it runs on these cores; the attackers go last where they want the same one.\n\n"
        "| | idle | under attack |\n|---|---:|---:|\n"
        f"| `/health`, median, ms | {found['idle_median_ms']} | {found['median_ms']} |\n"
        f"| `/health`, 99th percentile, ms | {found['idle_p99_ms']} | {found['p99_ms']} |\n"
        f"| `/health`, slowest, ms | {found['idle_max_ms']} | {found['max_ms']} |\n"
        f"| an honest analysis, s | {found['idle_honest_s']} | {found['honest_s']} |\n\n"
        f"Answers: {found['statuses']}. Memory of the worker: {found['worker_mib']} MiB, of the API: "
        f"{found['api_mib']} MiB, at their largest."
    )
    publish("Hostile requests", body)
    print(json.dumps(found))


def _measured(stack: Stack, client: Client, request: dict[str, Any]) -> dict[str, Any]:
    finished = client.submit(AnalysisRequest.model_validate(request)).id
    client.wait(finished, timeout=300)
    largest = {"worker": 0, "api": 0}
    with Asked(f"{stack.url}/health") as idle:
        idle_honest = _honest(client, request, 1)
        time.sleep(IDLE_SECONDS)
    attacked = multiprocessing.get_context("spawn").Pool(1, _go_last)
    with Asked(f"{stack.url}/health") as health, attacked as process:
        attack = process.apply_async(_attack, (stack.url, finished))
        honest = _honest(client, request, 2)
        while not attack.ready():
            largest = {name: max(size, _resident(stack.pids()[name])) for name, size in largest.items()}
            attack.wait(0.5)
        statuses = attack.get()
    return {
        "idle_median_ms": round(1000 * statistics.median(idle.seconds), 1),
        "idle_p99_ms": round(idle.quantile(0.99), 1),
        "idle_max_ms": round(idle.quantile(1.0), 1),
        "median_ms": round(1000 * statistics.median(health.seconds), 1),
        "p99_ms": round(health.quantile(0.99), 1),
        "max_ms": round(health.quantile(1.0), 1),
        "asked": len(health.seconds),
        "idle_honest_s": round(idle_honest, 1),
        "honest_s": round(honest, 1),
        "statuses": ", ".join(f"{statuses.count(one)} times {one}" for one in sorted(set(statuses))),
        "worker_mib": largest["worker"] >> 20,
        "api_mib": largest["api"] >> 20,
    }


def _request(base: Path, tuned: Path) -> dict[str, Any]:
    return {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": {"inline": {"texts": make_texts(100)}},
        "analysis": {"sae": None, "texts": make_texts(50, length=60)},
    }


def _honest(client: Client, request: dict[str, Any], seed: int) -> float:
    """Seconds from the POST of an analysis to its report."""
    started = time.perf_counter()
    analysis = client.submit(AnalysisRequest.model_validate(request | {"seed": seed}))
    client.wait(analysis.id, timeout=300)
    return time.perf_counter() - started


def _resident(pid: int) -> int:
    """Bytes of a program and its children."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])


if __name__ == "__main__":
    main()
