"""Leases: which worker holds a job, for how long, and who may announce it again."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import redis

from backends.storage import key_names

_IF_MINE = "if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end "
_RENEW = _IF_MINE + "return redis.call('pexpire', KEYS[1], ARGV[2])"
_RELEASE = _IF_MINE + "return redis.call('del', KEYS[1])"


class LeaseStore:
    """The leases of one deployment, in Redis alone: each ends by itself."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def take(self, analysis_id: str, owner: str, seconds: float) -> bool:
        """Whether `owner` now holds the job alone, for so long."""
        return bool(self._redis.set(key_names.lease(analysis_id), owner, nx=True, px=int(seconds * 1000)))

    def renew(self, analysis_id: str, owner: str, seconds: float) -> bool:
        """Whether `owner` still held the job; its time starts anew."""
        return bool(self._redis.eval(_RENEW, 1, key_names.lease(analysis_id), owner, str(int(seconds * 1000))))

    def release(self, analysis_id: str, owner: str) -> None:
        """Gives the job back, if `owner` still holds it."""
        self._redis.eval(_RELEASE, 1, key_names.lease(analysis_id), owner)

    def held(self, analysis_id: str) -> bool:
        """Whether some worker holds the job."""
        return bool(self._redis.exists(key_names.lease(analysis_id)))

    def note_turn(self, tenant: str) -> None:
        """Says that a worker has just begun a job of this tenant."""
        self._redis.hset(key_names.TURNS, tenant, time.time())

    def last_turns(self, tenants: Collection[str]) -> dict[str, float]:
        """When a worker last began a job of each, seconds since 1970; 0 where none has."""
        asked = sorted(tenants)
        found: Any = self._redis.hmget(key_names.TURNS, asked) if asked else []
        return {tenant: float(one or 0.0) for tenant, one in zip(asked, found, strict=True)}

    def claim_announcement(self, analysis_id: str, seconds: float) -> bool:
        """Whether the caller, alone of all workers, may announce the job again in the next so many seconds."""
        return bool(self._redis.set(key_names.announced(analysis_id), b"", nx=True, px=int(seconds * 1000)))
