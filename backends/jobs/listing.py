"""Lists of records: pages of a tenant's, counts, and what a name, a prefix or `latest` stands for."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterator
from typing import Any, Final, Generic

import redis

from backends.jobs.records import EVERY, JobRecord, NewerRecordError, Wanted
from backends.jobs.store import JobStore, RecordStore, RecordT, as_bytes, score_of
from backends.storage import key_names
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError, NotFoundError

logger = logging.getLogger(__name__)

SCANNED = 1000
"""Records that one page looks at, at most."""

PAGE_BYTES = 4 << 20
"""A page ends with the record that brings it beyond this: one may be megabytes long."""

_AT_ONCE = 20

ANALYSIS_ID: Final = re.compile(r"an_[a-z2-7]{26}")
LATEST: Final = "latest"
MAX_NAMESAKES: Final = 5
"""Records of one name that an error lists."""


class RecordListing(Generic[RecordT]):
    """The indexes of the records of one kind, which their store writes."""

    def __init__(self, client: redis.Redis, store: RecordStore[RecordT]) -> None:
        self._redis = client
        self._store = store
        self._id = re.compile(rf"{store.letters}_[a-z2-7]{{26}}")
        self._prefix = re.compile(rf"{store.letters}_[a-z2-7]{{3,25}}")

    def page(
        self, tenant: str, limit: int, cursor: str | None, wanted: Wanted = EVERY
    ) -> tuple[list[RecordT], str | None]:
        """Up to `limit` of a tenant's records, newest first, from `cursor` on; and the cursor of the next page.

        At most SCANNED records are looked at, and PAGE_BYTES of them are answered: a page may be short and still have a
        next one.
        """
        index = self._store.index_name(tenant, wanted.status)
        position = _decode_cursor(cursor) if cursor else None
        found: list[RecordT] = []
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

    def _records(self, ids: list[str]) -> Iterator[tuple[RecordT | None, int]]:
        """The records of these ids and their bytes, some in one trip; those that Redis has lost, from S3."""
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            raw: Any = self._redis.mget([key_names.record(self._store.kind, analysis_id) for analysis_id in some])
            for analysis_id, one in zip(some, raw, strict=True):
                try:
                    if one is not None:
                        yield self._store.record_type.stored(as_bytes(one)), len(one)
                        continue
                    record = self._store.find(analysis_id)
                except NewerRecordError as error:  # it is listed by processes of the version that wrote it
                    logger.warning("%s is left out of a list: %s", analysis_id, error.detail)
                    record = None
                yield record, len(record.model_dump_json()) if record else 0

    def _ids_after(self, index: str, position: tuple[int, str] | None, count: int) -> list[tuple[int, str]]:
        """The next ids of an index in falling order of (time, id), strictly after `position`."""
        highest: str | int = "+inf" if position is None else position[0]
        ties = 0 if position is None else int(self._redis.zcount(index, position[0], position[0]))
        rows: Any = self._redis.zrevrangebyscore(index, highest, "-inf", start=0, num=count + ties, withscores=True)
        ids = [(int(score), as_bytes(member).decode()) for member, score in rows]
        return [entry for entry in ids if position is None or entry < position][:count]

    def resolve(self, tenant: str, reference: str) -> str:
        """The id that a reference stands for: an id, the first characters of one, a name, or `latest`.

        Raises:
            NotFoundError: nothing of this tenant fits.
            InputError: several fit; it names them.
        """
        if self._id.fullmatch(reference):
            return reference
        if reference == LATEST:
            newest = self._ids_after(self._store.index_name(tenant, None), None, 1)
            if not newest:
                raise NotFoundError(f"there is no {self._store.noun} yet")
            return newest[0][1]
        if self._prefix.fullmatch(reference):
            found: Any = self._redis.zrange(self._store.index_name(tenant, None), 0, -1)
            ids = [one for one in (as_bytes(member).decode() for member in found) if one.startswith(reference)]
            fitting = [(one, "") for one in ids]
        else:
            records, _ = self.page(tenant, MAX_NAMESAKES, None, Wanted(title=reference))
            fitting = [(record.id, f" of {record.created_at:%Y-%m-%d %H:%M}") for record in records]
        if not fitting:
            raise NotFoundError(
                f"no {self._store.noun} has the id or name {reference!r}, and no id begins with it (3 characters after "
                f"{self._store.letters}_ at least); `{self._store.list_command}` and GET /v1/{self._store.nouns} "
                "show all"
            )
        if len(fitting) > 1:
            named = ", ".join(f"{one}{when}" for one, when in fitting[:MAX_NAMESAKES])
            raise InputError(f"{reference!r} matches several {self._store.nouns}: {named}; use one of these ids")
        return fitting[0][0]


class JobListing(RecordListing[JobRecord]):
    """The indexes of the job records."""

    def __init__(self, client: redis.Redis, jobs: JobStore) -> None:
        super().__init__(client, jobs)

    def count(self, status: Status) -> int:
        """How many jobs of all tenants have this status, as far as Redis knows."""
        tenants: Any = self._redis.smembers(key_names.KNOWN_TENANTS)
        with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.zcard(key_names.records_by_status(key_names.JOBS, as_bytes(tenant).decode(), status))
            return sum(int(found) for found in pipe.execute())

    def open_count(self, tenant: str) -> int:
        """How many of a tenant's jobs are queued or running."""
        return int(self._redis.scard(key_names.open_records_of(key_names.JOBS, tenant)))

    def queued_before(self, record: JobRecord) -> int:
        """About how many queued jobs of all tenants come before one: those that were made earlier."""
        tenants: Any = self._redis.smembers(key_names.KNOWN_TENANTS)
        with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                index = key_names.records_by_status(key_names.JOBS, as_bytes(tenant).decode(), Status.QUEUED)
                pipe.zcount(index, "-inf", f"({score_of(record)}")
            return sum(int(found) for found in pipe.execute())


def _encode_cursor(score: int, analysis_id: str) -> str:
    return base64.urlsafe_b64encode(f"{score}:{analysis_id}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[int, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        score, _, analysis_id = base64.urlsafe_b64decode(padded.encode()).decode().partition(":")
        return int(score), analysis_id
    except ValueError as error:
        raise InputError.at("/cursor", "invalid cursor; use one that a list has returned") from error
