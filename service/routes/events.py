"""GET /v1/analyses/{id}/events: what is told of a job, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import redis
import redis.asyncio
from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from backends.jobs.records import JobRecord
from backends.jobs.store import JobStore
from backends.storage import key_names
from layerdrift.contract.errors import UnavailableError
from service.http.access import AnalysisId, CurrentDeployment, Reader
from service.http.concurrency import ConcurrencyLimit
from service.http.problems import documented

KEEP_ALIVE_SECONDS = 10.0
"""A comment is sent after so long without an event: proxies close what is silent."""

STREAMS = ConcurrencyLimit("streams of events", of_client=64, in_all=256)
"""Each holds a connection to Redis."""

_EVENT_ID = re.compile(r"\d{1,18}-\d{1,18}")

router = APIRouter(tags=["analyses"])


@router.get(
    "/v1/analyses/{analysis_id}/events",
    summary="Follow an analysis",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "`stage`, `progress` and `log` events, `report` once the preliminary report can be "
            "read, then `done`; send `Last-Event-ID` to resume",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **documented(401, 403, 404, 422, 429, 503),
    },
)
async def follow_analysis(
    deployment: CurrentDeployment,
    key: Reader,
    analysis_id: AnalysisId,
    last_event_id: Annotated[str | None, Header(description="id of the last event received")] = None,
) -> StreamingResponse:
    """Follow an analysis as server-sent events until it ends."""
    record = await run_in_threadpool(deployment.jobs.get, analysis_id, key.tenant)
    start = last_event_id if last_event_id and _EVENT_ID.fullmatch(last_event_id) else "0"
    stream = _events(deployment.settings.redis_url, deployment.jobs, record, start)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return CountedStream(stream, key.tenant, headers)


class CountedStream(StreamingResponse):
    """A stream that counts as open while it is sent."""

    def __init__(self, stream: AsyncIterator[str], tenant: str, headers: dict[str, str]) -> None:
        super().__init__(stream, media_type="text/event-stream", headers=headers)
        self._tenant = tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with STREAMS.held(self._tenant):
            await super().__call__(scope, receive, send)


async def _events(url: str, jobs: JobStore, record: JobRecord, position: str) -> AsyncIterator[str]:
    """Events after a position; where Redis has lost them, the end of a job that has ended. Outages are waited out."""
    yield "retry: 2000\n\n"
    wait_ms = int(KEEP_ALIVE_SECONDS * 1000)
    # protocol 2 answers a stream's entries as a list; 3 would answer a mapping
    async with redis.asyncio.Redis.from_url(url, protocol=2, socket_timeout=KEEP_ALIVE_SECONDS + 5) as client:
        while True:
            try:
                answer: Any = await client.xread({key_names.events(record.id): position}, count=200, block=wait_ms)
                ended = None if answer else await run_in_threadpool(_end, jobs, record.id)
            except (redis.RedisError, UnavailableError):
                yield ": Redis or S3 is unavailable\n\n"
                await asyncio.sleep(1.0)
                continue
            if ended is not None:
                yield f"event: done\ndata: {ended}\n\n"
                return
            for event_id, fields in answer[0][1] if answer else ():
                position, name = event_id.decode(), fields[b"event"].decode()
                yield f"id: {position}\nevent: {name}\ndata: {fields[b'data'].decode()}\n\n"
                if name == "done":
                    return
            if not answer:
                yield ": still there\n\n"


def _end(jobs: JobStore, analysis_id: str) -> str | None:
    """What is told of a job whose last event is gone; None while it is open."""
    record = jobs.find(analysis_id)
    if record is not None and not record.status.final:
        return None
    return json.dumps({"status": record.status if record else "deleted", "error": None})
