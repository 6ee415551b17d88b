"""Job records: what was asked, and how far it has come. Redis holds them for speed, S3 for good.

A record changes only through `JobStore.update`, which repeats its change when another process came between, so that
the API (cancel) and a worker (progress) never overwrite each other.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict, Field
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError
from redis.retry import Retry

from layerdrift.backends import keys
from layerdrift.backends.blobs import BlobStore
from layerdrift.backends.settings import Settings
from layerdrift.backends.sources import Pins
from layerdrift.contract.analysis import Analysis, Links, Progress, Status
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError, Problem, UnavailableError
from layerdrift.contract.request import AnalysisRequest

_JSON = "application/json"
_IF_MINE = "if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end "
_RENEW = _IF_MINE + "return redis.call('pexpire', KEYS[1], ARGV[2])"
_RELEASE = _IF_MINE + "return redis.call('del', KEYS[1])"


def connect_redis(settings: Settings) -> redis.Redis:
    """A client that rides out short outages; sends nothing yet."""
    return redis.Redis.from_url(
        settings.redis_url,
        retry=Retry(ExponentialBackoff(cap=2.0, base=0.05), retries=6),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        socket_timeout=10,
        socket_connect_timeout=5,
        health_check_interval=30,
    )


class JobRecord(BaseModel):
    """The truth about one analysis."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: Status = Status.QUEUED
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    request: AnalysisRequest
    pins: Pins
    progress: Progress = Field(default_factory=Progress)
    error: Problem | None = None
    attempts: int = Field(default=0, description="how many workers have taken it")
    cancel_requested: bool = False

    def analysis(self) -> Analysis:
        """What the API shows of it."""
        path = f"/v1/analyses/{self.id}"
        return Analysis(
            id=self.id,
            name=self.request.name,
            tags=self.request.tags,
            status=self.status,
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            request=self.request,
            progress=self.progress,
            error=self.error,
            links=Links(self=path, report=f"{path}/report", cancel=f"{path}/cancel"),
        )

    def ended(self, status: Status, error: Problem | None = None) -> JobRecord:
        """The record in a final state."""
        return self.model_copy(update={"status": status, "error": error, "finished_at": datetime.now(UTC)})


class JobStore:
    """The job records of one deployment."""

    def __init__(self, client: redis.Redis, blobs: BlobStore) -> None:
        self._redis = client
        self._blobs = blobs

    def submit(self, record: JobRecord) -> tuple[JobRecord, bool]:
        """Stores a new record, unless there is one of its id that has not failed or been cancelled.

        Returns:
            The record that counts, and whether it is now to be run.

        Raises:
            ConflictError: it runs, and somebody has asked it to stop.
        """
        existing = self.find(record.id)
        if existing is None:
            if self._blobs.put_new(keys.job_object(record.id), record.model_dump_json().encode(), _JSON):
                self._insert(record)
                return record, True
            existing = self.get(record.id)
        if existing.cancel_requested and not existing.status.final:
            raise ConflictError(f"{existing.id} is being cancelled; post the request again once it has ended")
        if existing.status not in (Status.FAILED, Status.CANCELLED):
            return existing, False
        return self._reopen(record)

    def _insert(self, record: JobRecord) -> None:
        """Puts a record into Redis, unless there is one by now."""
        with self._redis.pipeline() as pipe:
            pipe.watch(keys.job(record.id))
            if pipe.exists(keys.job(record.id)):
                return
            pipe.multi()
            _queue_write(pipe, record)
            with suppress(WatchError):
                pipe.execute()

    def _reopen(self, record: JobRecord) -> tuple[JobRecord, bool]:
        reopened = False

        def reset(current: JobRecord) -> JobRecord:
            nonlocal reopened
            reopened = current.status in (Status.FAILED, Status.CANCELLED)
            return record if reopened else current

        return self.update(record.id, reset), reopened

    def find(self, analysis_id: str) -> JobRecord | None:
        """The record, or None. What Redis has lost is read from S3 and put back."""
        raw = self._redis.get(keys.job(analysis_id))
        if raw is not None:
            return JobRecord.model_validate_json(_bytes(raw))
        try:
            record = JobRecord.model_validate_json(self._blobs.get(keys.job_object(analysis_id)))
        except NotFoundError:
            return None
        self._insert(record)
        return record

    def get(self, analysis_id: str) -> JobRecord:
        """The record; NotFoundError where there is none."""
        record = self.find(analysis_id)
        if record is None:
            raise NotFoundError(f"there is no analysis {analysis_id}")
        return record

    def update(self, analysis_id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """Applies `change` to the record as it stands; `change` may run more than once.

        A record that ends, or is opened again, goes to S3 too, after Redis has taken it: a lost race leaves no trace.
        """
        while True:
            current = self.get(analysis_id)
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(keys.job(analysis_id))
                    raw = pipe.get(keys.job(analysis_id))
                    if raw is None:
                        continue
                    current = JobRecord.model_validate_json(_bytes(raw))
                    changed = change(current)
                    if changed == current:
                        return current
                    pipe.multi()
                    _queue_write(pipe, changed)
                    pipe.execute()
                except WatchError:
                    continue
            if changed.status.final != current.status.final:
                self._write_object(changed)
            return changed

    def cancel(self, analysis_id: str) -> JobRecord:
        """Asks for an end: a queued job is over at once, a running one stops at its next batch."""

        def request_cancel(record: JobRecord) -> JobRecord:
            if record.status.final:
                raise ConflictError(f"the analysis has already ended: {record.status}")
            if record.status is Status.QUEUED:
                return record.ended(Status.CANCELLED)
            return record.model_copy(update={"cancel_requested": True})

        return self.update(analysis_id, request_cancel)

    def page(self, limit: int, cursor: str | None, status: Status | None) -> tuple[list[JobRecord], str | None]:
        """Up to `limit` records, newest first, from `cursor` on; and the cursor of the next page."""
        found: list[tuple[int, JobRecord]] = []
        position = _decode_cursor(cursor) if cursor else None
        while len(found) <= limit:
            batch = self._ids_after(position, limit + 1)
            if not batch:
                break
            position = batch[-1]
            for score, analysis_id in batch:
                record = self.find(analysis_id)
                if record is not None and status in (None, record.status):
                    found.append((score, record))
        shown = found[:limit]
        more = _encode_cursor(shown[-1][0], shown[-1][1].id) if len(found) > limit else None
        return [record for _, record in shown], more

    def _ids_after(self, position: tuple[int, str] | None, count: int) -> list[tuple[int, str]]:
        """The next ids in falling order of (time, id), strictly after `position`."""
        highest: str | int = "+inf" if position is None else position[0]
        ties = 0 if position is None else int(self._redis.zcount(keys.JOBS_BY_TIME, position[0], position[0]))
        rows: Any = self._redis.zrevrangebyscore(
            keys.JOBS_BY_TIME, highest, "-inf", start=0, num=count + ties, withscores=True
        )
        ids = [(int(score), _bytes(member).decode()) for member, score in rows]
        return [entry for entry in ids if position is None or entry < position][:count]

    def open_ids(self) -> list[str]:
        """Ids of the jobs that are queued or running."""
        return sorted(_bytes(member).decode() for member in self._redis.smembers(keys.OPEN_JOBS))

    def restore(self) -> int:
        """Where Redis knows no job at all, brings the records back from S3; how many."""
        if self._redis.exists(keys.JOBS_BY_TIME):
            return 0
        found = [blob.key.removeprefix("jobs/").removesuffix(".json") for blob in self._blobs.list("jobs/")]
        return sum(self.find(analysis_id) is not None for analysis_id in found)

    def claim_announcement(self, analysis_id: str, seconds: float) -> bool:
        """Whether the caller, alone of all workers, may announce the job again in the next so many seconds."""
        return bool(self._redis.set(keys.announced(analysis_id), b"", nx=True, px=int(seconds * 1000)))

    def take_lease(self, analysis_id: str, owner: str, seconds: float) -> bool:
        """Whether `owner` now holds the job alone, for so long."""
        return bool(self._redis.set(keys.lease(analysis_id), owner, nx=True, px=int(seconds * 1000)))

    def renew_lease(self, analysis_id: str, owner: str, seconds: float) -> bool:
        """Whether `owner` still held the job; its time starts anew."""
        return bool(self._redis.eval(_RENEW, 1, keys.lease(analysis_id), owner, str(int(seconds * 1000))))

    def release_lease(self, analysis_id: str, owner: str) -> None:
        """Gives the job back, if `owner` still holds it."""
        self._redis.eval(_RELEASE, 1, keys.lease(analysis_id), owner)

    def leased(self, analysis_id: str) -> bool:
        """Whether some worker holds the job."""
        return bool(self._redis.exists(keys.lease(analysis_id)))

    def announce_worker(self, name: str, seconds: float) -> None:
        """Says that a worker listens, for so long."""
        self._redis.zadd(keys.WORKERS, {name: time.time() + seconds})

    def withdraw_worker(self, name: str) -> None:
        """Says that a worker has stopped."""
        self._redis.zrem(keys.WORKERS, name)

    def workers(self) -> int:
        """How many workers listen."""
        return int(self._redis.zcount(keys.WORKERS, time.time(), "+inf"))

    def check(self) -> None:
        """Raises UnavailableError unless Redis answers."""
        try:
            self._redis.ping()
        except redis.RedisError as error:
            raise UnavailableError(f"Redis could not be reached: {error}") from error

    def _write_object(self, record: JobRecord) -> None:
        self._blobs.put(keys.job_object(record.id), record.model_dump_json().encode(), _JSON)


def _queue_write(pipe: Pipeline, record: JobRecord) -> None:
    """The record and its places in the indexes, for one transaction."""
    pipe.set(keys.job(record.id), record.model_dump_json())
    pipe.zadd(keys.JOBS_BY_TIME, {record.id: int(record.created_at.timestamp() * 1_000_000)})
    if record.status.final:
        pipe.srem(keys.OPEN_JOBS, record.id)
    else:
        pipe.sadd(keys.OPEN_JOBS, record.id)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"Redis answered {type(value).__name__} where bytes were due")
    return value


def _encode_cursor(score: int, analysis_id: str) -> str:
    return base64.urlsafe_b64encode(f"{score}:{analysis_id}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[int, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        score, _, analysis_id = base64.urlsafe_b64decode(padded.encode()).decode().partition(":")
        return int(score), analysis_id
    except ValueError as error:
        raise InputError.at("/cursor", "this cursor is not one that a list has returned") from error
