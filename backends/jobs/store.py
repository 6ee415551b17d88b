"""Job records: what was asked, and how far it has come. Redis holds them for speed, S3 for good.

A record changes only through `JobStore.update`, which repeats its change when another process came between, so that
the API (cancel) and a worker (progress) never overwrite each other.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.lock import Lock
from redis.retry import Retry

from backends.jobs import events
from backends.jobs.records import EVERY, JobRecord, Wanted
from backends.settings import Settings
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError, UnavailableError

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


SUBMISSION_SECONDS, SUBMISSION_WAIT_SECONDS = 300.0, 60.0
"""How long one submission may hold its lock, and how long equal ones wait, where S3 has no conditional writes."""

SCANNED = 1000
"""Records that one page looks at, at most."""

PAGE_BYTES = 4 << 20
"""A page ends with the record that brings it beyond this: one may be megabytes long."""

_AT_ONCE = 20

ANALYSIS_ID: Final = re.compile(r"an_[a-z2-7]{26}")
_PREFIX: Final = re.compile(r"an_[a-z2-7]{3,25}")
LATEST: Final = "latest"
MAX_NAMESAKES: Final = 5
"""Analyses of one name that an error lists."""


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

    def resolve(self, tenant: str, reference: str) -> str:
        """The id that a reference stands for: an id, the first characters of one, a name, or `latest`.

        Raises:
            NotFoundError: no analysis of this tenant fits.
            InputError: several fit; it names them.
        """
        if ANALYSIS_ID.fullmatch(reference):
            return reference
        if reference == LATEST:
            newest = self._ids_after(_index(tenant, None), None, 1)
            if not newest:
                raise NotFoundError("there is no analysis yet")
            return newest[0][1]
        if _PREFIX.fullmatch(reference):
            found: Any = self._redis.zrange(_index(tenant, None), 0, -1)
            ids = [one for one in (_bytes(member).decode() for member in found) if one.startswith(reference)]
            fitting = [(one, "") for one in ids]
        else:
            records, _ = self.page(tenant, MAX_NAMESAKES, None, Wanted(title=reference))
            fitting = [(record.id, f" of {record.created_at:%Y-%m-%d %H:%M}") for record in records]
        if not fitting:
            raise NotFoundError(
                f"no analysis has the id or name {reference!r}, and no id begins with it (3 characters after an_ at "
                "least); `layerdrift list` and GET /v1/analyses show all"
            )
        if len(fitting) > 1:
            named = ", ".join(f"{one}{when}" for one, when in fitting[:MAX_NAMESAKES])
            raise InputError(f"{reference!r} matches several analyses: {named}; use one of these ids")
        return fitting[0][0]

    def queued_before(self, record: JobRecord) -> int:
        """About how many queued jobs of all tenants come before one: those that were made earlier."""
        tenants: Any = self._redis.smembers(key_names.KNOWN_TENANTS)
        with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                index = key_names.jobs_by_status(_bytes(tenant).decode(), Status.QUEUED)
                pipe.zcount(index, "-inf", f"({_score(record)}")
            return sum(int(found) for found in pipe.execute())

    def _known(self, analysis_id: str) -> JobRecord | None:
        """The record as Redis has it."""
        raw = self._redis.get(key_names.job(analysis_id))
        return None if raw is None else JobRecord.stored(_bytes(raw))

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
                    current = JobRecord.stored(_bytes(raw))
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

    def page(
        self, tenant: str, limit: int, cursor: str | None, wanted: Wanted = EVERY
    ) -> tuple[list[JobRecord], str | None]:
        """Up to `limit` of a tenant's records, newest first, from `cursor` on; and the cursor of the next page.

        At most SCANNED records are looked at, and PAGE_BYTES of them are answered: a page may be short and still have a
        next one.
        """
        index = _index(tenant, wanted.status)
        position = _decode_cursor(cursor) if cursor else None
        found: list[JobRecord] = []
        size = 0
        for _ in range(0, SCANNED, limit):
            batch = self._ids_after(index, position, limit + 1)
            for place, (record, length) in zip(
                batch[:limit], self._records([id_ for _, id_ in batch[:limit]]), strict=False
            ):
                position = place
                if record is not None and wanted.admits(record):
                    found.append(record)
                    size += length
                if len(found) == limit or size > PAGE_BYTES:
                    more = batch[-1] != position
                    return found, _encode_cursor(*position) if more else None
            if len(batch) <= limit:
                return found, None
        return found, _encode_cursor(*position) if position else None

    def _records(self, ids: list[str]) -> Iterator[tuple[JobRecord | None, int]]:
        """The records of these ids and their bytes, some in one trip; those that Redis has lost, from S3."""
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            raw: Any = self._redis.mget([key_names.job(analysis_id) for analysis_id in some])
            for analysis_id, one in zip(some, raw, strict=True):
                if one is not None:
                    yield JobRecord.stored(_bytes(one)), len(one)
                else:
                    record = self.find(analysis_id)
                    yield record, len(record.model_dump_json()) if record else 0

    def _ids_after(self, index: str, position: tuple[int, str] | None, count: int) -> list[tuple[int, str]]:
        """The next ids of an index in falling order of (time, id), strictly after `position`."""
        highest: str | int = "+inf" if position is None else position[0]
        ties = 0 if position is None else int(self._redis.zcount(index, position[0], position[0]))
        rows: Any = self._redis.zrevrangebyscore(index, highest, "-inf", start=0, num=count + ties, withscores=True)
        ids = [(int(score), _bytes(member).decode()) for member, score in rows]
        return [entry for entry in ids if position is None or entry < position][:count]

    def count(self, status: Status) -> int:
        """How many jobs of all tenants stand so, as far as Redis knows."""
        tenants: Any = self._redis.smembers(key_names.KNOWN_TENANTS)
        with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.zcard(key_names.jobs_by_status(_bytes(tenant).decode(), status))
            return sum(int(found) for found in pipe.execute())

    def open_count(self, tenant: str) -> int:
        """How many of a tenant's jobs are queued or running."""
        return int(self._redis.scard(key_names.open_jobs_of(tenant)))

    def open_ids(self) -> list[str]:
        """Ids of the jobs that are queued or running."""
        return sorted(_bytes(member).decode() for member in self._redis.smembers(key_names.OPEN_JOBS))

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

    def claim_announcement(self, analysis_id: str, seconds: float) -> bool:
        """Whether the caller, alone of all workers, may announce the job again in the next so many seconds."""
        return bool(self._redis.set(key_names.announced(analysis_id), b"", nx=True, px=int(seconds * 1000)))

    def take_lease(self, analysis_id: str, owner: str, seconds: float) -> bool:
        """Whether `owner` now holds the job alone, for so long."""
        return bool(self._redis.set(key_names.lease(analysis_id), owner, nx=True, px=int(seconds * 1000)))

    def renew_lease(self, analysis_id: str, owner: str, seconds: float) -> bool:
        """Whether `owner` still held the job; its time starts anew."""
        return bool(self._redis.eval(_RENEW, 1, key_names.lease(analysis_id), owner, str(int(seconds * 1000))))

    def release_lease(self, analysis_id: str, owner: str) -> None:
        """Gives the job back, if `owner` still holds it."""
        self._redis.eval(_RELEASE, 1, key_names.lease(analysis_id), owner)

    def leased(self, analysis_id: str) -> bool:
        """Whether some worker holds the job."""
        return bool(self._redis.exists(key_names.lease(analysis_id)))

    def announce_worker(self, name: str, queues: Iterable[str], seconds: float) -> None:
        """Says that a worker listens to some queues, for so long."""
        for queue in queues:
            self._redis.zadd(key_names.workers(queue), {name: time.time() + seconds})

    def withdraw_worker(self, name: str, queues: Iterable[str]) -> None:
        """Says that a worker has stopped."""
        for queue in queues:
            self._redis.zrem(key_names.workers(queue), name)

    def workers(self, queue: str) -> int:
        """How many workers listen to a queue."""
        return int(self._redis.zcount(key_names.workers(queue), time.time(), "+inf"))

    def check(self) -> None:
        """Raises UnavailableError unless Redis answers."""
        try:
            self._redis.ping()
        except redis.RedisError as error:
            raise UnavailableError(f"Redis could not be reached: {error}") from error

    def _write_object(self, record: JobRecord) -> None:
        self._blobs.put(key_names.job_object(record.owned), record.model_dump_json().encode(), _JSON)


def _index(tenant: str, status: Status | None) -> str:
    return key_names.jobs_by_time(tenant) if status is None else key_names.jobs_by_status(tenant, status)


def _indexes(tenant: str) -> list[str]:
    return [_index(tenant, status) for status in (None, *Status)]


def _kept_for_good(before: JobRecord, after: JobRecord) -> bool:
    """Whether S3 is to have a change: of a job's end, of what was asked of it, of who is told; not of its progress."""
    if before.status.final or after.status.final:
        return True
    return (before.cancel_requested, before.deliveries) != (after.cancel_requested, after.deliveries)


def _queue_write(pipe: Pipeline, before: JobRecord | None, record: JobRecord) -> None:
    """The record, its places in the indexes and what is told of it, for one transaction."""
    pipe.set(key_names.job(record.id), record.model_dump_json())
    pipe.sadd(key_names.KNOWN_TENANTS, record.tenant)
    score = _score(record)
    own = {_index(record.tenant, None), _index(record.tenant, record.status)}
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
    events.tell(pipe, before, record)


def _score(record: JobRecord) -> int:
    """Its place in the indexes: when it was made, microseconds since 1970."""
    return int(record.created_at.timestamp() * 1_000_000)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"Redis returned {type(value).__name__}, expected bytes")
    return value


def _encode_cursor(score: int, analysis_id: str) -> str:
    return base64.urlsafe_b64encode(f"{score}:{analysis_id}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[int, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        score, _, analysis_id = base64.urlsafe_b64decode(padded.encode()).decode().partition(":")
        return int(score), analysis_id
    except ValueError as error:
        raise InputError.at("/cursor", "invalid cursor; use one that a list has returned") from error
