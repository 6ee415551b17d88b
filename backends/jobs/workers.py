"""Registry of live workers: the queues that they listen to, and what they have. Entries expire."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import redis
from pydantic import ValidationError

from backends.estimates.capacity import Capacity
from backends.storage import key_names


class WorkerRegistry:
    """The workers of one deployment, in Redis alone."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def announce(self, name: str, queues: Iterable[str], seconds: float, capacity: Capacity | None = None) -> None:
        """Says that a worker listens to some queues, for so long, and what it has."""
        for queue in queues:
            self._redis.zadd(key_names.workers(queue), {name: time.time() + seconds})
        if capacity is not None:
            self._redis.hset(key_names.CAPACITIES, name, capacity.model_dump_json())

    def withdraw(self, name: str, queues: Iterable[str]) -> None:
        """Says that a worker has stopped."""
        for queue in queues:
            self._redis.zrem(key_names.workers(queue), name)
        self._redis.hdel(key_names.CAPACITIES, name)

    def listening(self, queue: str) -> int:
        """How many workers listen to a queue."""
        return int(self._redis.zcount(key_names.workers(queue), time.time(), "+inf"))

    def capacities(self, queue: str) -> list[Capacity]:
        """What the live workers of a queue have told of themselves; those of dead ones are removed on the way."""
        live: Any = self._redis.zrangebyscore(key_names.workers(queue), time.time(), "+inf")
        told: Any = self._redis.hgetall(key_names.CAPACITIES)
        names = {_text(name) for name in live}
        found, dead = [], []
        for name, value in told.items():
            if _text(name) not in names:
                dead.append(name)
                continue
            try:
                found.append(Capacity.model_validate_json(value))
            except ValidationError:  # of another version
                dead.append(name)
        if dead:
            self._redis.hdel(key_names.CAPACITIES, *dead)
        return found


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
