"""`make bench-load`: 50 clients that poll, list, read, submit and stream events for three minutes, as a team does.

The last line printed is JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
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

SECONDS = 180.0
POLLERS, LISTERS, READERS, SUBMITTERS, STREAMERS = 25, 5, 10, 5, 5
PAUSE = {"poll": 0.5, "list": 2.0, "report": 1.0, "submit": 10.0, "events": 0.5}
"""Seconds between two requests of one client; the SDK polls twice a second."""

READS = ("poll", "list", "report")
WARM_SECONDS = 30.0
"""After so long the API has loaded what it needs: its memory then is compared with that at the end."""

MIB = 2**20


@dataclass
class Seen:
    """Milliseconds of every answer by what was asked, errors, and the API's memory in MiB over time."""

    times: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    events: int = 0

    @asynccontextmanager
    async def timed(self, what: str) -> AsyncIterator[None]:
        started = time.perf_counter()
        try:
            yield
        except (httpx.HTTPError, AssertionError) as error:
            self.errors.append(f"{what}: {error!r}")
        else:
            self.times.setdefault(what, []).append(1000 * (time.perf_counter() - started))


class Team:
    """The clients. ids: of analyses, the finished one first; what is submitted is added."""

    def __init__(self, http: httpx.AsyncClient, request: dict[str, Any], done: str, seconds: float) -> None:
        self._http = http
        self._request = request
        self._seeds = count(1)
        self._until = time.monotonic() + seconds
        self._done = done
        self.ids = [done]
        self.seen = Seen()

    async def run(self) -> Seen:
        """All clients until the time is over."""
        kinds: list[tuple[int, str, Callable[[], Awaitable[None]]]] = [
            (POLLERS, "poll", self._poll),
            (LISTERS, "list", self._list),
            (READERS, "report", self._read),
            (SUBMITTERS, "submit", self._submit),
            (STREAMERS, "events", self._stream),
        ]
        clients = [self._client(what, act, number) for many, what, act in kinds for number in range(many)]
        await asyncio.gather(*clients)
        return self.seen

    async def _client(self, what: str, act: Callable[[], Awaitable[None]], number: int) -> None:
        await asyncio.sleep(PAUSE[what] * number / 10)  # not all at the same moment
        while time.monotonic() < self._until:
            async with self.seen.timed(what):
                await act()
            await asyncio.sleep(PAUSE[what])

    async def _get(self, path: str, status: int = 200) -> httpx.Response:
        answer = await self._http.get(path)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[:200]}"
        return answer

    async def _poll(self) -> None:
        await self._get(f"/v1/analyses/{self.ids[-1]}")

    async def _list(self) -> None:
        await self._get("/v1/analyses?limit=20")

    async def _read(self) -> None:
        assert len((await self._get(f"/v1/analyses/{self._done}/report")).content) > 1000

    async def _submit(self) -> None:
        answer = await self._http.post("/v1/analyses", json=self._request | {"seed": next(self._seeds)})
        assert answer.status_code == 202, answer.text[:200]
        self.ids.append(answer.json()["id"])

    async def _stream(self) -> None:
        """Of the newest analysis, until it has ended or the time is over."""
        async with self._http.stream("GET", f"/v1/analyses/{self.ids[-1]}/events") as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                self.seen.events += line.startswith("data:")
                if time.monotonic() > self._until:
                    return


async def _watched(stack: Stack, request: dict[str, Any], done: str, seconds: float) -> Seen:
    process = psutil.Process(stack.pids()["api"])
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=stack.url, timeout=60, limits=limits) as http:
        team = Team(http, request, done, seconds)
        started = time.monotonic()

        async def memory() -> None:
            while True:
                team.seen.memory.append((time.monotonic() - started, _resident(process)))
                await asyncio.sleep(1)

        watching = asyncio.create_task(memory())
        try:
            return await team.run()
        finally:
            watching.cancel()


def _resident(process: psutil.Process) -> float:
    """MiB of a process and its children, pages that they share counted once."""
    return float(sum(one.memory_full_info().pss for one in (process, *process.children(recursive=True))) / MIB)


def main(seconds: float = SECONDS) -> None:
    """Prints and publishes the figures."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        base = save_model(tiny_bert(), home / "models" / "base")
        noised = tiny_bert()
        add_noise(noised, 2)
        tuned = save_model(noised, home / "models" / "tuned")
        request = {
            "base": {"uri": base.as_uri()},
            "tuned": {"uri": tuned.as_uri()},
            "dataset": {"inline": {"texts": make_texts(60)}},
            "analysis": {"sae": None},
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
        with Stack({**clean, "LAYERDRIFT_HOME": str(home)}) as stack, Client(stack.url) as client:
            done = client.submit(AnalysisRequest.model_validate(request))
            client.wait(done.id, timeout=300)
            seen = asyncio.run(_watched(stack, request, done.id, seconds))
    figures = _figures(seen)
    _publish(figures, seen, seconds)
    print(json.dumps(figures))


def _figures(seen: Seen) -> dict[str, float]:
    reads = sorted(value for what in READS for value in seen.times[what])
    warm = [mib for at, mib in seen.memory if at >= WARM_SECONDS] or [mib for _, mib in seen.memory]
    return {
        "requests": sum(map(len, seen.times.values())),
        "events": seen.events,
        "errors": len(seen.errors),
        "read_median_ms": round(statistics.median(reads), 1),
        "read_p99_ms": round(_quantile(reads, 0.99), 1),
        "submit_p99_ms": round(_quantile(sorted(seen.times["submit"]), 0.99), 1),
        "api_mib_after_30_s": round(statistics.median(warm[:10])),
        "api_mib_at_the_end": round(statistics.median(warm[-10:])),
    }


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _publish(figures: dict[str, float], seen: Seen, seconds: float) -> None:
    rows = "\n".join(
        f"| {what} | {len(times):,} | {statistics.median(times):.1f} | {_quantile(sorted(times), 0.99):.1f} | "
        f"{max(times):.1f} |"
        for what, times in seen.times.items()
        if what != "events"
    )
    median, slow = figures["read_median_ms"], figures["read_p99_ms"]
    before, after = figures["api_mib_after_30_s"], figures["api_mib_at_the_end"]
    clients = POLLERS + LISTERS + READERS + SUBMITTERS + STREAMERS
    publish(
        "A team at work (`make bench-load`)",
        f"""
{clients} clients for {seconds:.0f} s against the embedded stack on the same cores: {POLLERS} poll an analysis twice a
second, {LISTERS} list, {READERS} read a report every second, {SUBMITTERS} submit an analysis every ten seconds,
which the worker runs meanwhile, and {STREAMERS} stream events. All reads together: median {median} ms, 99th percentile
{slow} ms. Errors: {figures["errors"]:.0f}. Events that came: {figures["events"]:,.0f}.
Memory of the API's processes: {before:,.0f} MiB after 30 s, {after:,.0f} MiB at the end.

| | requests | median, ms | p99, ms | slowest, ms |
|---|---:|---:|---:|---:|
{rows}
""",
    )
    for error in seen.errors[:10]:
        print(error)


if __name__ == "__main__":
    main()
