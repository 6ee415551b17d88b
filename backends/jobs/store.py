"""Records: what was asked, and how far it has come. Redis holds them for speed, S3 for good.

A record changes only through `RecordStore.update`, which repeats its change when another process came between, so that
the API (cancel) and a worker (progress) never overwrite each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Generic, TypeVar

import redis
from redis.client import Pipeline
from redis.exceptions import LockError, WatchError
from redis.lock import Lock

from backends.jobs import events
from backends.jobs.records import JobRecord, NewerRecordError, Record, StudyRecord
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, NotFoundError, UnavailableError

_JSON = "application/json"


SUBMISSION_SECONDS, SUBMISSION_WAIT_SECONDS = 300.0, 60.0
"""How long one submission may hold its lock, and how long equal ones wait, where S3 has no conditional writes."""


RecordT = TypeVar("RecordT", bound=Record)


class RecordStore(Generic[RecordT]):
    """The records of one kind of one deployment."""

    kind: ClassVar[key_names.Kind]
    record_type: type[RecordT]
    noun: ClassVar[str]
    """What a client calls one: `analysis`."""
    nouns: ClassVar[str]
    letters: ClassVar[str]
    """What its ids begin with: `an`."""
    list_command: ClassVar[str]

    def __init__(self, client: redis.Redis, blobs: BlobStore) -> None:
        self._redis = client
        self._blobs = blobs

    def submit(self, record: RecordT, admit: Callable[[], None] = lambda: None) -> tuple[RecordT, bool]:
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

    def _put_new(self, record: RecordT) -> bool:
        """Writes a record to S3 unless it is there; of equal submissions at once, one alone is told True.

        S3 decides which. Where it has no conditional writes, a lock in Redis lets one at a time look and write.
        """
        key, body = key_names.record_object(self.kind, record.owned), record.model_dump_json().encode()
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

    def _insert(self, record: RecordT) -> None:
        """Puts a record into Redis, unless there is one by now."""
        with self._redis.pipeline() as pipe:
            pipe.watch(key_names.record(self.kind, record.id))
            if pipe.exists(key_names.record(self.kind, record.id)):
                return
            pipe.multi()
            self._queue_write(pipe, None, record)
            with suppress(WatchError):
                pipe.execute()

    def _reopen(self, record: RecordT) -> tuple[RecordT, bool]:
        reopened = False

        def reset(current: RecordT) -> RecordT:
            nonlocal reopened
            reopened = current.status in (Status.FAILED, Status.CANCELLED)
            return record if reopened else current

        return self.update(record.id, reset), reopened

    def find(self, id_: str, tenant: str | None = None) -> RecordT | None:
        """The record, or None; given a tenant, only where it is theirs. What Redis has lost is read from S3."""
        known = self._known(id_)
        if known is not None:
            return known if tenant in (None, known.tenant) else None
        for owner in self.tenants() if tenant is None else [tenant]:
            stored = self._stored(key_names.Owned(owner, id_))
            if stored is not None:
                self._insert(stored)
                return stored
        return None

    def get(self, id_: str, tenant: str | None = None) -> RecordT:
        """The record; NotFoundError where there is none, or it is another tenant's."""
        record = self.find(id_, tenant)
        if record is None:
            raise NotFoundError(f"there is no {self.noun} {id_}")
        return record

    def readable(self, id_: str) -> RecordT | None:
        """The record, or None also where a later version wrote it: that version's processes look after it."""
        try:
            return self.find(id_)
        except NewerRecordError:
            return None

    def find_all(self, ids: Sequence[str], tenant: str) -> list[RecordT | None]:
        """The tenant's records of these ids, in one trip where Redis has them."""
        raw: Any = self._redis.mget([key_names.record(self.kind, id_) for id_ in ids]) if ids else []
        found: list[RecordT | None] = []
        for id_, one in zip(ids, raw, strict=True):
            record = self.record_type.stored(as_bytes(one)) if one is not None else self.find(id_, tenant)
            found.append(record if record is not None and record.tenant == tenant else None)
        return found

    def _known(self, id_: str) -> RecordT | None:
        """The record as Redis has it."""
        raw = self._redis.get(key_names.record(self.kind, id_))
        return None if raw is None else self.record_type.stored(as_bytes(raw))

    def _stored(self, owned: key_names.Owned) -> RecordT | None:
        try:
            return self.record_type.stored(self._blobs.get(key_names.record_object(self.kind, owned)))
        except NotFoundError:
            return None

    def tenants(self) -> Sequence[str]:
        """Whose records S3 has."""
        return [prefix.removeprefix(key_names.TENANTS).rstrip("/") for prefix in self._blobs.folders(key_names.TENANTS)]

    def remove(self, record: RecordT) -> None:
        """Forgets a job that has ended, in S3 first: what fails half-way can be done again.

        Raises:
            ConflictError: it has not ended.
        """
        if not record.status.final:
            raise ConflictError(f"the {self.noun} is {record.status}; cancel it first")
        self._blobs.delete(key_names.record_object(self.kind, record.owned))
        with self._redis.pipeline() as pipe:
            pipe.delete(
                key_names.record(self.kind, record.id), key_names.events(record.id), key_names.announced(record.id)
            )
            for index in self._indexes(record.tenant):
                pipe.zrem(index, record.id)
            pipe.srem(key_names.open_records(self.kind), record.id)
            pipe.srem(key_names.open_records_of(self.kind, record.tenant), record.id)
            pipe.execute()

    def update(self, id_: str, change: Callable[[RecordT], RecordT]) -> RecordT:
        """Applies `change` to the record as it stands; `change` may run more than once.

        What an emptied Redis must not take with it goes to S3 too, after Redis has taken it: a lost race leaves no
        trace.
        """
        while True:
            current = self.get(id_)
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(key_names.record(self.kind, id_))
                    raw = pipe.get(key_names.record(self.kind, id_))
                    if raw is None:
                        continue
                    current = self.record_type.stored(as_bytes(raw))
                    changed = change(current)
                    if changed == current:
                        return current
                    pipe.multi()
                    self._queue_write(pipe, current, changed)
                    pipe.execute()
                except WatchError:
                    continue
            if _kept_for_good(current, changed):
                self._write_object(changed)
            return changed

    def cancel(self, id_: str, tenant: str | None = None) -> RecordT:
        """Asks for an end: a queued job is over at once, a running one stops at its next batch."""

        def request_cancel(record: RecordT) -> RecordT:
            if record.status.final:
                raise ConflictError(f"the {self.noun} has already ended: {record.status}")
            if record.status is Status.QUEUED:
                return record.ended(Status.CANCELLED)
            return record.model_copy(update={"cancel_requested": True})

        self.get(id_, tenant)
        return self.update(id_, request_cancel)

    def open_ids(self) -> list[str]:
        """Ids of the jobs that are queued or running."""
        return sorted(as_bytes(member).decode() for member in self._redis.smembers(key_names.open_records(self.kind)))

    def restore(self) -> int:
        """Where Redis has been emptied since this was last done, brings the records back from S3; how many."""
        if self._redis.exists(key_names.restored(self.kind)):
            return 0
        found, newer = 0, False
        for tenant in self.tenants():
            prefix = key_names.record_prefix(self.kind, tenant)
            ids = [blob.key.removeprefix(prefix).removesuffix(".json") for blob in self._blobs.list(prefix)]
            known: Any = self._redis.mget([key_names.record(self.kind, id_) for id_ in ids]) if ids else []
            missing = [id_ for id_, raw in zip(ids, known, strict=True) if raw is None]
            for id_ in missing:
                try:
                    found += self.find(id_, tenant) is not None
                except NewerRecordError:
                    newer = True
        if not newer:  # else a process of the later version brings back what this one cannot read
            self._redis.set(key_names.restored(self.kind), b"")
        return found

    def look_again(self) -> None:
        """Has `restore` look through S3 once more, where other records have come."""
        self._redis.delete(key_names.restored(self.kind))

    def check(self) -> None:
        """Raises UnavailableError unless Redis answers."""
        try:
            self._redis.ping()
        except redis.RedisError as error:
            raise UnavailableError(f"Redis could not be reached: {error}") from error

    def _write_object(self, record: RecordT) -> None:
        self._blobs.put(key_names.record_object(self.kind, record.owned), record.model_dump_json().encode(), _JSON)

    def index_name(self, tenant: str, status: Status | None) -> str:
        """The index of a tenant's records, of all or of one status."""
        if status is None:
            return key_names.records_by_time(self.kind, tenant)
        return key_names.records_by_status(self.kind, tenant, status)

    def _indexes(self, tenant: str) -> list[str]:
        return [self.index_name(tenant, status) for status in (None, *Status)]

    def _queue_write(self, pipe: Pipeline, before: RecordT | None, record: RecordT) -> None:
        """The record, its places in the indexes and what is told of it, for one transaction."""
        pipe.set(key_names.record(self.kind, record.id), record.model_dump_json())
        pipe.sadd(key_names.KNOWN_TENANTS, record.tenant)
        score = score_of(record)
        own = {self.index_name(record.tenant, None), self.index_name(record.tenant, record.status)}
        for index in self._indexes(record.tenant):
            if index in own:
                pipe.zadd(index, {record.id: score})
            else:
                pipe.zrem(index, record.id)
        for index in (key_names.open_records(self.kind), key_names.open_records_of(self.kind, record.tenant)):
            if record.status.final:
                pipe.srem(index, record.id)
            else:
                pipe.sadd(index, record.id)
        self._tell(pipe, before, record)

    def _tell(self, pipe: Pipeline, before: RecordT | None, record: RecordT) -> None:
        """Adds to a transaction what whoever follows the record is told of its change."""


class JobStore(RecordStore[JobRecord]):
    """The job records of one deployment."""

    kind = key_names.JOBS
    record_type = JobRecord
    noun, nouns, letters = "analysis", "analyses", "an"
    list_command = "layerdrift list"

    def _tell(self, pipe: Pipeline, before: JobRecord | None, record: JobRecord) -> None:
        if record.status.final and any(delivery.waiting for delivery in record.deliveries):
            pipe.zadd(key_names.WEBHOOKS, {record.id: time.time()}, nx=True)
        events.append_entries(pipe, before, record)


class StudyStore(RecordStore[StudyRecord]):
    """The study records of one deployment."""

    kind = key_names.STUDIES
    record_type = StudyRecord
    noun, nouns, letters = "study", "studies", "st"
    list_command = "layerdrift study list"


def _kept_for_good(before: Record, after: Record) -> bool:
    """Whether S3 is to have a change: of an end, of what was asked of it, of who is told; not of its progress."""
    return before.status.final or after.status.final or before.durable != after.durable


def score_of(record: Record) -> int:
    """Its place in the indexes: when it was made, microseconds since 1970."""
    return int(record.created_at.timestamp() * 1_000_000)


def as_bytes(value: object) -> bytes:
    """What Redis answered, which its types do not tell."""
    if not isinstance(value, bytes):
        raise TypeError(f"Redis returned {type(value).__name__}, expected bytes")
    return value
