"""API keys: who may do what, and how often. Only their sha256 is kept: in S3 for good, in Redis for speed."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import redis
from redis.lock import Lock

from layerdrift.backends import keys
from layerdrift.backends.blobs import BlobStore
from layerdrift.contract.errors import ForbiddenError, NotFoundError, RateError, UnauthorizedError
from layerdrift.contract.key import ApiKey, Scope

_PREFIX = "ld_"
LOCK_SECONDS = 30.0
_COUNT = "count"
"""The field of the hash that says that it is whole, and how many keys it has."""


def new_key(**fields: object) -> ApiKey:
    """A key's description with a random id; pydantic's ValidationError where a field is wrong."""
    given = {"id": "key_" + secrets.token_hex(4), "created_at": datetime.now(UTC)} | fields
    return ApiKey.model_validate(given)


def require(key: ApiKey, scope: Scope) -> None:
    """ForbiddenError unless the key has a scope."""
    if not {scope, Scope.ADMIN} & key.scopes:
        raise ForbiddenError(f"this key may not {scope}; its scopes are {', '.join(sorted(key.scopes))}")


ANYBODY = ApiKey(
    id="anybody",
    scopes=frozenset(Scope),
    open_jobs=1_000_000,
    created_at=datetime(1970, 1, 1, tzinfo=UTC),
)
"""Whoever asks while no key has been made: the API is on loopback then, and nothing is counted."""


class KeyStore:
    """The API keys of one deployment."""

    def __init__(self, client: redis.Redis, blobs: BlobStore) -> None:
        self._redis = client
        self._blobs = blobs

    def create(self, key: ApiKey, secret: str | None = None) -> str:
        """Makes a key; returns it, which is the only time that it is told.

        Args:
            secret: one that was chosen elsewhere, of 20 characters or more; else a random one.
        """
        secret = secret or _PREFIX + secrets.token_urlsafe(32)
        digest = _digest(secret)
        body = key.model_dump_json().encode()
        with self._changing():
            self._blobs.put(keys.api_key_object(digest), body, "application/json")
            self._load()
        return secret

    def revoke(self, key_id: str) -> None:
        """Makes a key useless at once. NotFoundError where there is none of this id."""
        with self._changing():
            found = [digest for digest, key in self._stored().items() if key.id == key_id]
            if not found:
                raise NotFoundError(f"there is no key {key_id}")
            for digest in found:
                self._blobs.delete(keys.api_key_object(digest))
            self._load()

    def all(self) -> list[ApiKey]:
        """Every key, oldest first."""
        return sorted(self._stored().values(), key=lambda key: key.created_at)

    def find(self, secret: str | None) -> ApiKey:
        """Whose key it is; ANYBODY while there are no keys at all.

        Raises:
            UnauthorizedError: there are keys, and this is none of them.
        """
        digest = _digest(secret) if secret else "none"
        whole, found = self._fields(digest)
        if whole is None:
            with self._changing():
                self._load()
            whole, found = self._fields(digest)
        if whole == b"0":
            return ANYBODY
        if found is None:
            raise UnauthorizedError(
                "this API key is not known" if secret else "an API key is needed: send Authorization: Bearer <key>"
            )
        return ApiKey.model_validate_json(found)

    def exist(self) -> bool:
        """Whether any key has been made."""
        return bool(self._blobs.list(keys.API_KEY_OBJECTS))

    def knows(self, secret: str) -> bool:
        """Whether there is this key."""
        return _digest(secret) in self._stored()

    def count_request(self, key: ApiKey) -> None:
        """RateError where a key has been used too often this minute."""
        if key is ANYBODY:
            return
        now = time.time()
        minute = int(now // 60)
        counter = keys.rate(key.id, minute)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.incr(counter)
            pipe.expire(counter, 120)
            used = int(pipe.execute()[0])
        if used > key.requests_per_minute:
            seconds = max(1, round(60 * (minute + 1) - now))
            raise RateError(f"more than {key.requests_per_minute} requests in a minute with this key", seconds)

    def _fields(self, digest: str) -> tuple[bytes | None, bytes | None]:
        found: Any = self._redis.hmget(keys.API_KEYS, [_COUNT, digest])
        return found[0], found[1]

    def _stored(self) -> dict[str, ApiKey]:
        found = {}
        for blob in self._blobs.list(keys.API_KEY_OBJECTS):
            digest = blob.key.removeprefix(keys.API_KEY_OBJECTS).removesuffix(".json")
            found[digest] = ApiKey.model_validate_json(self._blobs.get(blob.key))
        return found

    def _changing(self) -> Lock:
        """One at a time: a list of keys that was read before another's change must not be written after it."""
        return Lock(self._redis, keys.API_KEYS_LOCK, timeout=LOCK_SECONDS, blocking_timeout=LOCK_SECONDS)

    def _load(self) -> None:
        """Puts all keys of S3, and no others, into Redis."""
        stored = self._stored()
        with self._redis.pipeline() as pipe:
            pipe.delete(keys.API_KEYS)
            pipe.hset(keys.API_KEYS, _COUNT, str(len(stored)))
            for digest, key in stored.items():
                pipe.hset(keys.API_KEYS, digest, key.model_dump_json())
            pipe.execute()


def _digest(secret: str) -> str:
    """Keys are random and long: a fast hash keeps them as safe as a slow one would."""
    return hashlib.sha256(secret.encode()).hexdigest()


def bearer(header: str | None) -> str | None:
    """The key in an Authorization header; None without one.

    Raises:
        UnauthorizedError: the header holds something else.
    """
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise UnauthorizedError("write the key as Authorization: Bearer <key>")
    return secret.strip()


def is_loopback(host: str) -> bool:
    """Whether an address to bind to can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
