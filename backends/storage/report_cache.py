"""Reports: finished ones are stored in S3 and cached in Redis; preliminary ones are in Redis alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

import redis

from backends.storage import key_names
from backends.storage.blobs import BlobStore
from backends.storage.key_names import Owned

ReportFormat = Literal["json", "html", "md"]
MEDIA_TYPES: dict[ReportFormat, str] = {
    "json": "application/json",
    "html": "text/html; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
}

PRELIMINARY_SECONDS = 7 * 24 * 3600
"""Longer than any analysis runs; a finished one takes its preliminary report away."""


class CachedReport(NamedTuple):
    """A report's bytes, and whether they came from Redis."""

    body: bytes
    hit: bool


class ReportCache:
    """Reports by analysis and format."""

    def __init__(self, client: redis.Redis, blobs: BlobStore, seconds: int) -> None:
        self._redis = client
        self._blobs = blobs
        self._seconds = seconds

    def put(self, owned: Owned, format: ReportFormat, body: bytes) -> None:
        """Writes a report to S3, then to Redis."""
        self._blobs.put(key_names.report_object(owned, format), body, MEDIA_TYPES[format])
        self._redis.set(key_names.cached_report(owned.id, format), body, ex=self._seconds)

    def put_preliminary(self, owned: Owned, format: ReportFormat, body: bytes) -> None:
        """Writes a report of an analysis that still runs, to Redis alone."""
        self._redis.set(key_names.preliminary_report(owned.id, format), body, ex=PRELIMINARY_SECONDS)

    def preliminary(self, owned: Owned, format: ReportFormat) -> bytes | None:
        """The report as it stood after `compare`; None where there is none."""
        found = self._redis.get(key_names.preliminary_report(owned.id, format))
        return found if isinstance(found, bytes) else None

    def forget_preliminary(self, owned: Owned) -> None:
        """Removes it in every format."""
        self._redis.delete(*(key_names.preliminary_report(owned.id, format) for format in MEDIA_TYPES))

    def forget(self, owned: Owned) -> None:
        """Removes a report in every format."""
        self._blobs.delete_all(key_names.report_prefix(owned))
        self._redis.delete(*(key_names.cached_report(owned.id, format) for format in MEDIA_TYPES))
        self.forget_preliminary(owned)

    def get(self, owned: Owned, format: ReportFormat) -> CachedReport:
        """The report from Redis, else from S3 and back into Redis; NotFoundError where there is none."""
        key = key_names.cached_report(owned.id, format)
        cached = self._redis.get(key)
        if isinstance(cached, bytes):
            return CachedReport(cached, hit=True)
        body = self._blobs.get(key_names.report_object(owned, format))
        self._redis.set(key, body, ex=self._seconds)
        return CachedReport(body, hit=False)
