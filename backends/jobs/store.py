"""Job records: what was asked, and how far it has come. Redis holds them for speed, S3 for good.

A record changes only through `JobStore.update`, which repeats its change when another process came between, so that
the API (cancel) and a worker (progress) never overwrite each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import LockError, WatchError
from redis.lock import Lock

from backends.jobs import events
from backends.jobs.records import JobRecord
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, NotFoundError, UnavailableError

_JSON = "application/json"


SUBMISSION_SECONDS, SUBMISSION_WAIT_SECONDS = 300.0, 60.0
"""How long one submission may hold its lock, and how long equal ones wait, where S3 has no conditional writes."""


class JobStore:
    """The job records of one deployment."""

    def __init__(self, client: redis.Redis, blobs: BlobStore) -> None:
        self._redis = client
        self._blobs = blobs

    def submit(self, record: JobRecord, admit: Callable[[], None] = lambda: None) -> tuple[JobRecord, bool]:
        """Stores a new record, unless there is one of its id that has not failed or been cancelled.

        Args:
            admit: called before a job is made or made again; what it raises keeps it from that.

        Returns:
            The record that counts, and whether it is now to be run.

        Raises:
            ConflictError: it runs, and somebody has asked it to stop.
        """
        existing = self._known(record.id)
        if existing is None:
            admit()
            # whether S3 has one that Redis has lost is told by the write itself
            if self._put_new(record):
                self._insert(record)
                return record, True
            existing = self.get(record.id, record.tenant)
        if existing.cancel_requested and not existing.status.final:
            raise ConflictError(f"{existing.id} is being cancelled; post the request again once it has ended")
        if existing.status not in (Status.FAILED, Status.CANCELLED):
            return existing, False
        admit()
        return self._reopen(record)

    def _put_new(self, record: JobRecord) -> bool:
        """Writes a record to S3 unless it is there; of equal submissions at once, one alone is told True.

        S3 decides which. Where it has no conditional writes, a lock in Redis lets one at a time look and write.
        """
        key, body = key_names.job_object(record.owned), record.model_dump_json().encode()
        if self._blobs.supports_conditional_writes():
            return self._blobs.put_new(key, body, _JSON)
        name = key_names.submission(record.id)
        lock = Lock(self._redis, name, timeout=SUBMISSION_SECONDS, blocking_timeout=SUBMISSION_WAIT_SECONDS)
        if not lock.acquire():
            raise UnavailableError("the same request is being stored right now; try again")
        try:
            return self._blobs.put_new(key, body, _JSON)
        finally:
            with suppress(LockError):  # it ran out by itself: what was written is written
                lock.release()

    def _insert(self, record: JobRecord) -> None:
        """Puts a record into Redis, unless there is one by now."""
        with self._redis.pipeline() as pipe:
            pipe.watch(key_names.job(record.id))
            if pipe.exists(key_names.job(record.id)):
                return
            pipe.multi()
            _queue_write(pipe, None, record)
            with suppress(WatchError):
                pipe.execute()

    def _reopen(self, record: JobRecord) -> tuple[JobRecord, bool]:
        reopened = False

        def reset(current: JobRecord) -> JobRecord:
            nonlocal reopened
            reopened = current.status in (Status.FAILED, Status.CANCELLED)
            return record if reopened else current

        return self.update(record.id, reset), reopened

    def find(self, analysis_id: str, tenant: str | None = None) -> JobRecord | None:
        """The record, or None; given a tenant, only where it is theirs. What Redis has lost is read from S3."""
        known = self._known(analysis_id)
        if known is not None:
            return known if tenant in (None, known.tenant) else None
        for owner in self.tenants() if tenant is None else [tenant]:
            stored = self._stored(key_names.Owned(owner, analysis_id))
            if stored is not None:
                self._insert(stored)
                return stored
        return None

    def get(self, analysis_id: str, tenant: str | None = None) -> JobRecord:
        """The record; NotFoundError where there is none, or it is another tenant's."""
        record = self.find(analysis_id, tenant)
        if record is None:
            raise NotFoundError(f"there is no analysis {analysis_id}")
        return record

    def _known(self, analysis_id: str) -> JobRecord | None:
        """The record as Redis has it."""
        raw = self._redis.get(key_names.job(analysis_id))
        return None if raw is None else JobRecord.stored(as_bytes(raw))

    def _stored(self, owned: key_names.Owned) -> JobRecord | None:
        try:
            return JobRecord.stored(self._blobs.get(key_names.job_object(owned)))
        except NotFoundError:
            return None

    def tenants(self) -> Sequence[str]:
        """Whose records S3 has."""
        return [prefix.removeprefix(key_names.TENANTS).rstrip("/") for prefix in self._blobs.folders(key_names.TENANTS)]

    def remove(self, record: JobRecord) -> None:
        """Forgets a job that has ended, in S3 first: what fails half-way can be done again.

        Raises:
            ConflictError: it has not ended.
        """
        if not record.status.final:
            raise ConflictError(f"the analysis is {record.status}; cancel it first")
        self._blobs.delete(key_names.job_object(record.owned))
        with self._redis.pipeline() as pipe:
            pipe.delete(key_names.job(record.id), key_names.events(record.id), key_names.announced(record.id))
            for index in _indexes(record.tenant):
                pipe.zrem(index, record.id)
            pipe.srem(key_names.OPEN_JOBS, record.id)
            pipe.srem(key_names.open_jobs_of(record.tenant), record.id)
            pipe.execute()

    def update(self, analysis_id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """Applies `change` to the record as it stands; `change` may run more than once.

        What an emptied Redis must not take with it goes to S3 too, after Redis has taken it: a lost race leaves no
        trace.
        """
        while True:
            current = self.get(analysis_id)
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(key_names.job(analysis_id))
                    raw = pipe.get(key_names.job(analysis_id))
                    if raw is None:
                        continue
                    current = JobRecord.stored(as_bytes(raw))
                    changed = change(current)
                    if changed == current:
                        return current
                    pipe.multi()
                    _queue_write(pipe, current, changed)
                    pipe.execute()
                except WatchError:
                    continue
            if _kept_for_good(current, changed):
                self._write_object(changed)
            return changed

    def cancel(self, analysis_id: str, tenant: str | None = None) -> JobRecord:
        """Asks for an end: a queued job is over at once, a running one stops at its next batch."""

        def request_cancel(record: JobRecord) -> JobRecord:
            if record.status.final:
                raise ConflictError(f"the analysis has already ended: {record.status}")
            if record.status is Status.QUEUED:
                return record.ended(Status.CANCELLED)
            return record.model_copy(update={"cancel_requested": True})

        self.get(analysis_id, tenant)
        return self.update(analysis_id, request_cancel)

    def open_ids(self) -> list[str]:
        """Ids of the jobs that are queued or running."""
        return sorted(as_bytes(member).decode() for member in self._redis.smembers(key_names.OPEN_JOBS))

    def restore(self) -> int:
        """Where Redis has been emptied since this was last done, brings the records back from S3; how many."""
        if self._redis.exists(key_names.RESTORED):
            return 0
        found = 0
        for tenant in self.tenants():
            prefix = key_names.job_prefix(tenant)
            ids = [blob.key.removeprefix(prefix).removesuffix(".json") for blob in self._blobs.list(prefix)]
            known: Any = self._redis.mget([key_names.job(id_) for id_ in ids]) if ids else []
            missing = [id_ for id_, raw in zip(ids, known, strict=True) if raw is None]
            found += sum(self.find(id_, tenant) is not None for id_ in missing)
        self._redis.set(key_names.RESTORED, b"")
        return found

    def check(self) -> None:
        """Raises UnavailableError unless Redis answers."""
        try:
            self._redis.ping()
        except redis.RedisError as error:
            raise UnavailableError(f"Redis could not be reached: {error}") from error

    def _write_object(self, record: JobRecord) -> None:
        self._blobs.put(key_names.job_object(record.owned), record.model_dump_json().encode(), _JSON)


def index_name(tenant: str, status: Status | None) -> str:
    """The index of a tenant's jobs, of all or of one status."""
    return key_names.jobs_by_time(tenant) if status is None else key_names.jobs_by_status(tenant, status)


def _indexes(tenant: str) -> list[str]:
    return [index_name(tenant, status) for status in (None, *Status)]


def _kept_for_good(before: JobRecord, after: JobRecord) -> bool:
    """Whether S3 is to have a change: of a job's end, of what was asked of it, of who is told; not of its progress."""
    if before.status.final or after.status.final:
        return True
    return (before.cancel_requested, before.deliveries) != (after.cancel_requested, after.deliveries)


def _queue_write(pipe: Pipeline, before: JobRecord | None, record: JobRecord) -> None:
    """The record, its places in the indexes and what is told of it, for one transaction."""
    pipe.set(key_names.job(record.id), record.model_dump_json())
    pipe.sadd(key_names.KNOWN_TENANTS, record.tenant)
    score = score_of(record)
    own = {index_name(record.tenant, None), index_name(record.tenant, record.status)}
    for index in _indexes(record.tenant):
        if index in own:
            pipe.zadd(index, {record.id: score})
        else:
            pipe.zrem(index, record.id)
    for index in (key_names.OPEN_JOBS, key_names.open_jobs_of(record.tenant)):
        if record.status.final:
            pipe.srem(index, record.id)
        else:
            pipe.sadd(index, record.id)
    if record.status.final and any(delivery.waiting for delivery in record.deliveries):
        pipe.zadd(key_names.WEBHOOKS, {record.id: time.time()}, nx=True)
    events.append_entries(pipe, before, record)


def score_of(record: JobRecord) -> int:
    """Its place in the indexes: when it was made, microseconds since 1970."""
    return int(record.created_at.timestamp() * 1_000_000)


def as_bytes(value: object) -> bytes:
    """What Redis answered, which its types do not tell."""
    if not isinstance(value, bytes):
        raise TypeError(f"Redis returned {type(value).__name__}, expected bytes")
    return value
