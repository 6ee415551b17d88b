"""What tenants use: seconds of workers by month, and bytes in the bucket. Counted in Redis, kept in S3."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import redis
from redis.lock import Lock

from backends.storage import key_names
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import NotFoundError

Device = Literal["cpu", "gpu"]
DEVICES: tuple[Device, ...] = ("cpu", "gpu")

MEASURED_EVERY_SECONDS = 600.0
"""How often a tenant's objects are counted: each time all of them are listed."""

LOCK_SECONDS = 30.0
_LOADED = "loaded"


class Seconds(NamedTuple):
    """That workers worked for a tenant in a month."""

    cpu: float
    gpu: float


class UsageStore:
    """The usage of one deployment.

    Redis counts. What it has counted is written to S3 from time to time (`save`), and read back where Redis was
    emptied: at most what was counted since the last `save` is lost.
    """

    def __init__(self, client: redis.Redis, blobs: BlobStore) -> None:
        self._redis = client
        self._blobs = blobs

    def add(self, tenant: str, device: Device, seconds: float, now: float | None = None) -> None:
        """Counts time that a worker has worked for a tenant. Asks Redis alone: S3 may be slow, and a lease runs out."""
        month = month_of(now)
        with self._redis.pipeline() as pipe:
            pipe.hincrbyfloat(key_names.usage(tenant, month), device, seconds)
            pipe.sadd(key_names.CHANGED_USAGE, f"{tenant} {month}")
            pipe.execute()

    def seconds(self, tenant: str, month: str) -> Seconds:
        """What was counted in a month; UnavailableError where Redis was emptied and S3 cannot be asked."""
        self._load(tenant, month)
        found: Any = self._redis.hmget(key_names.usage(tenant, month), list(DEVICES))
        return Seconds(*(float(one or 0.0) for one in found))

    def save(self) -> int:
        """Writes to S3 what has changed since the last time; how many tenants' months that was."""
        changed: Any = self._redis.smembers(key_names.CHANGED_USAGE)
        for entry in changed:
            tenant, _, month = _text(entry).partition(" ")
            # taken out before it is read: what is counted meanwhile is written the next time
            self._redis.srem(key_names.CHANGED_USAGE, entry)
            try:
                body = json.dumps(self.seconds(tenant, month)._asdict()).encode()
                self._blobs.put(key_names.usage_object(tenant, month), body, "application/json")
            except BaseException:
                self._redis.sadd(key_names.CHANGED_USAGE, entry)
                raise
        return len(changed)

    def stored_bytes(self, tenant: str) -> int | None:
        """Of a tenant's objects, as last measured; None: there were none, or it was not measured yet."""
        found: Any = self._redis.hget(key_names.STORED_BYTES, tenant)
        return None if found is None else int(found)

    def measure(self) -> bool:
        """Counts the bytes of every tenant, unless some process has done so lately; whether it did."""
        due = self._redis.set(key_names.STORAGE_MEASURED, b"", nx=True, px=int(MEASURED_EVERY_SECONDS * 1000))
        if not due:
            return False
        found = {}
        for prefix in self._blobs.folders(key_names.TENANTS):
            if total := sum(blob.size for blob in self._blobs.list(prefix)):
                found[prefix.removeprefix(key_names.TENANTS).rstrip("/")] = total
        with self._redis.pipeline() as pipe:  # also who has nothing any more is told
            pipe.delete(key_names.STORED_BYTES)
            for tenant, total in found.items():
                pipe.hset(key_names.STORED_BYTES, tenant, total)
            pipe.execute()
        return True

    def tenants(self) -> list[str]:
        """Who has objects, as last measured."""
        known: Any = self._redis.hkeys(key_names.STORED_BYTES)
        return sorted(_text(name) for name in known)

    def _load(self, tenant: str, month: str) -> None:
        """Adds what S3 has where Redis was emptied; one process does it, and the others wait for it."""
        name = key_names.usage(tenant, month)
        if self._redis.hexists(name, _LOADED):
            return
        with Lock(self._redis, f"{name}:lock", timeout=LOCK_SECONDS, blocking_timeout=LOCK_SECONDS):
            if self._redis.hexists(name, _LOADED):
                return
            try:
                kept = json.loads(self._blobs.get(key_names.usage_object(tenant, month)))
            except NotFoundError:
                kept = {}
            with self._redis.pipeline() as pipe:
                for device in DEVICES:
                    pipe.hincrbyfloat(name, device, float(kept.get(device, 0.0)))
                pipe.hset(name, _LOADED, "1")
                pipe.execute()


def month_of(now: float | None = None) -> str:
    """The calendar month of a time in seconds since 1970, by default of now, in UTC."""
    return datetime.fromtimestamp(time.time() if now is None else now, UTC).strftime("%Y-%m")


def next_month(month: str) -> datetime:
    """When a month has ended."""
    year, number = map(int, month.split("-"))
    return datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
