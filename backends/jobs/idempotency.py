"""Idempotency-Key: a POST that is sent twice with the same key is carried out once."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import redis

from backends.storage import key_names
from layerdrift.contract.errors import ConflictError, InputError

IN_FLIGHT_SECONDS = 90
KEPT_SECONDS = 24 * 3600


class Answered(NamedTuple):
    """What the first of several equal requests was answered."""

    status: int
    id: str


class IdempotencyKeys:
    """Remembers for a day what a tenant's keys stood for."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def begin(self, tenant: str, key: str, body: str) -> Answered | None:
        """What the same request was answered before; None where it is to be carried out now.

        Raises:
            InputError: the key came with another body before.
            ConflictError: a request with this key is being carried out.
        """
        name, digest = _name(tenant, key), hashlib.sha256(body.encode()).hexdigest()
        claim = json.dumps({"body": digest})
        if self._redis.set(name, claim, nx=True, ex=IN_FLIGHT_SECONDS):
            return None
        raw: Any = self._redis.get(name)
        found = json.loads(raw) if raw else {"body": digest}
        if found["body"] != digest:
            raise InputError(
                "this Idempotency-Key was already used with a different body; use a new key for a new request"
            )
        if "id" not in found:
            raise ConflictError("a request with this Idempotency-Key is still in progress; try again in a moment")
        return Answered(int(found["status"]), str(found["id"]))

    def finish(self, tenant: str, key: str, body: str, answered: Answered) -> None:
        """Remembers the answer."""
        digest = hashlib.sha256(body.encode()).hexdigest()
        value = {"body": digest, "status": answered.status, "id": answered.id}
        self._redis.set(_name(tenant, key), json.dumps(value), ex=KEPT_SECONDS)

    def forget(self, tenant: str, key: str) -> None:
        """The request came to nothing: the key may be used again."""
        self._redis.delete(_name(tenant, key))


def _name(tenant: str, key: str) -> str:
    return key_names.idempotency(tenant, hashlib.sha256(key.encode()).hexdigest())
