"""API keys: who may do what, and how often. Only their sha256 is kept: in S3 for good, in Redis for speed."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import redis
from redis.lock import Lock

from backends.storage import key_names
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import (
    ConflictError,
    ForbiddenError,
    InputError,
    NotFoundError,
    RateError,
    UnauthorizedError,
)
from layerdrift.contract.key import Allowance, ApiKey, KeyRequest, Scope
from layerdrift.contract.plain import STORED

_PREFIX = "ld_"
LOCK_SECONDS = 30.0
_WHOLE = "whole"
"""The field of the hash that says that all keys are in it: OPEN or LOCKED."""

_OPEN, _LOCKED = b"open", b"locked"
"""No key was ever made, or the last one was taken back; there are keys, or there were."""

_LIMITS = ("requests_per_minute", "open_jobs", "priority")

logger = logging.getLogger(__name__)


def new_key(**fields: object) -> ApiKey:
    """A key's description with a random id; pydantic's ValidationError where a field is wrong."""
    given = {"id": "key_" + secrets.token_hex(4), "created_at": datetime.now(UTC)} | fields
    return ApiKey.model_validate(given)


def require(key: ApiKey, scope: Scope) -> None:
    """ForbiddenError unless the key has a scope."""
    if not {scope, Scope.ADMIN} & key.scopes:
        raise ForbiddenError(f"this key lacks the {scope} scope; its scopes are {', '.join(sorted(key.scopes))}")


def key_of_tenant(maker: ApiKey, asked: KeyRequest) -> ApiKey:
    """A key that another one of the same tenant makes: with no scope and no limit beyond its own.

    An operator sets any. Limits that were not asked for are the usual ones, or the maker's where these are lower.

    Raises:
        ForbiddenError: a scope or a limit is beyond the maker's.
    """
    fields = asked.model_dump()
    if Scope.OPERATOR in maker.scopes:
        return new_key(**fields, tenant=maker.tenant)
    if Scope.OPERATOR in asked.scopes:
        raise ForbiddenError("creating an operator key requires the operator scope, which this key lacks")
    for name in _LIMITS:
        own = getattr(maker, name)
        if name not in asked.model_fields_set:
            fields[name] = min(fields[name], own)
        elif fields[name] > own:
            raise ForbiddenError(
                f"{name} {fields[name]} exceeds this key's own limit of {own}; only the operator scope can set "
                "higher limits"
            )
    shared = maker.shared or Allowance(key=maker.id, requests_per_minute=maker.requests_per_minute)
    return new_key(**fields, tenant=maker.tenant, shared=shared)


ANYBODY = ApiKey(
    id="anybody",
    scopes=frozenset(Scope),
    open_jobs=1_000_000,
    created_at=datetime(1970, 1, 1, tzinfo=UTC),
)
"""Whoever asks while no key has been made: the API is on loopback then, and nothing is counted."""


class KeyStore:
    """The API keys of one deployment.

    Without a key anybody may do everything, but only while the API can be reached from this machine alone, and only
    where there never was a key or somebody took the last one back: keys that were lost let nobody in.
    """

    def __init__(self, client: redis.Redis, blobs: BlobStore, host: str) -> None:
        self._redis = client
        self._blobs = blobs
        self._host = host

    def create(self, key: ApiKey, secret: str | None = None, maker: ApiKey | None = None) -> str:
        """Makes a key; returns it, which is the only time that it is told.

        Args:
            secret: one that was chosen elsewhere, of 20 characters or more; else a random one.
            maker: who asks for it over HTTP; None: the operator, on the machine.

        Raises:
            InputError: it is the first, and could not make another.
            UnauthorizedError: ANYBODY asks, and another has made the first one meanwhile.
        """
        secret = secret or _PREFIX + secrets.token_urlsafe(32)
        digest = _digest(secret)
        body = key.model_dump_json().encode()
        with self._changing():
            if maker is ANYBODY and self.needed():
                raise UnauthorizedError("an API key is required: the first one has just been created")
            if maker is ANYBODY and Scope.ADMIN not in key.scopes:
                raise InputError.at(
                    "/scopes", "the first key needs the admin scope: without it, no further keys could be created"
                )
            self._blobs.put(key_names.KEYS_NEEDED, b"{}", "application/json")
            self._blobs.put(key_names.api_key_object(digest), body, "application/json")
            self._load()
        return secret

    def revoke(self, key_id: str, maker: ApiKey | None = None) -> None:
        """Makes a key useless at once. Once the last one is gone, none is asked for again: on loopback alone.

        Args:
            maker: who asks for it over HTTP, for a key of its own tenant; None: the operator, on the machine.

        Raises:
            NotFoundError: there is none of this id.
            ForbiddenError: it is an operator's, or the last one, and who asks is no operator.
            ConflictError: it is the last one, and others can reach the service.
        """
        operator = maker is None or Scope.OPERATOR in maker.scopes
        with self._changing():
            stored = self._stored()
            found = [
                digest
                for digest, key in stored.items()
                if key.id == key_id and (maker is None or maker.tenant == key.tenant)
            ]
            if not found:
                raise NotFoundError(f"there is no key {key_id}")
            last = len(found) == len(stored)
            if not operator and (last or any(Scope.OPERATOR in stored[digest].scopes for digest in found)):
                raise ForbiddenError("only the operator scope can revoke an operator's key or the last key")
            if last and not is_loopback(self._host):
                raise ConflictError("this is the last key, and others can reach the service: create another key first")
            for digest in found:
                self._blobs.delete(key_names.api_key_object(digest))
            if last:
                self._blobs.delete(key_names.KEYS_NEEDED)
            self._load()

    def all(self) -> list[ApiKey]:
        """Every key, oldest first."""
        return sorted(self._stored().values(), key=lambda key: key.created_at)

    def find(self, secret: str | None) -> ApiKey:
        """Whose key it is; ANYBODY where none is asked for.

        Raises:
            UnauthorizedError: there are keys, and this is none of them.
        """
        digest = _digest(secret) if secret else "none"
        whole, found = self._fields(digest)
        if whole is None:
            with self._changing():
                self._load()
            whole, found = self._fields(digest)
        if whole == _OPEN and is_loopback(self._host):
            return ANYBODY
        if found is None:
            raise UnauthorizedError(
                "unknown API key" if secret else "an API key is required: send Authorization: Bearer <key>"
            )
        return ApiKey.model_validate_json(found, context=STORED)

    def needed(self) -> bool:
        """Whether keys are asked for, also where all were lost."""
        return bool(self._blobs.list(key_names.API_KEY_OBJECTS)) or self._marked()

    def knows(self, secret: str) -> bool:
        """Whether there is this key."""
        return _digest(secret) in self._stored()

    def count_request(self, key: ApiKey) -> None:
        """RateError where a key has been used too often this minute."""
        if key is ANYBODY:
            return
        now = time.time()
        minute = int(now // 60)
        limits = [("with this key", key.id, key.requests_per_minute)]
        if key.shared is not None:
            limits.append(("with all keys of one creator", f"shared:{key.shared.key}", key.shared.requests_per_minute))
        with self._redis.pipeline(transaction=False) as pipe:
            for _, name, _ in limits:
                pipe.incr(key_names.rate(name, minute))
                pipe.expire(key_names.rate(name, minute), 120)
            used = [int(count) for count in pipe.execute()[::2]]
        for (whose, _, limit), count in zip(limits, used, strict=True):
            if count > limit:
                seconds = max(1, round(60 * (minute + 1) - now))
                raise RateError(f"more than {limit} requests per minute {whose}", seconds)

    def _fields(self, digest: str) -> tuple[bytes | None, bytes | None]:
        found: Any = self._redis.hmget(key_names.API_KEYS, [_WHOLE, digest])
        return found[0], found[1]

    def _marked(self) -> bool:
        return bool(self._blobs.list(key_names.KEYS_NEEDED))

    def _stored(self) -> dict[str, ApiKey]:
        found = {}
        for blob in self._blobs.list(key_names.API_KEY_OBJECTS):
            digest = blob.key.removeprefix(key_names.API_KEY_OBJECTS).removesuffix(".json")
            found[digest] = ApiKey.model_validate_json(self._blobs.get(blob.key), context=STORED)
        return found

    def _changing(self) -> Lock:
        """One at a time: a list of keys that was read before another's change must not be written after it."""
        return Lock(self._redis, key_names.API_KEYS_LOCK, timeout=LOCK_SECONDS, blocking_timeout=LOCK_SECONDS)

    def _load(self) -> None:
        """Puts all keys of S3, and no others, into Redis."""
        stored = self._stored()
        if stored and not self._marked():  # of a version that wrote no such object
            self._blobs.put(key_names.KEYS_NEEDED, b"{}", "application/json")
        locked = bool(stored) or self._marked()
        if locked and not stored:
            logger.error(
                "API keys were created, but the bucket has none: all requests are refused until one is created"
            )
        with self._redis.pipeline() as pipe:
            pipe.delete(key_names.API_KEYS)
            pipe.hset(key_names.API_KEYS, _WHOLE, _LOCKED if locked else _OPEN)
            for digest, key in stored.items():
                pipe.hset(key_names.API_KEYS, digest, key.model_dump_json())
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
        raise UnauthorizedError("send the key as Authorization: Bearer <key>")
    return secret.strip()


def is_loopback(host: str) -> bool:
    """Whether an address to bind to can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
