"""Registry of live workers and the queues that they listen to. Entries expire."""

from __future__ import annotations

import time
from collections.abc import Iterable

import redis

from backends.storage import key_names


class WorkerRegistry:
    """The workers of one deployment, in Redis alone."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def announce(self, name: str, queues: Iterable[str], seconds: float) -> None:
        """Says that a worker listens to some queues, for so long."""
        for queue in queues:
            self._redis.zadd(key_names.workers(queue), {name: time.time() + seconds})

    def withdraw(self, name: str, queues: Iterable[str]) -> None:
        """Says that a worker has stopped."""
        for queue in queues:
            self._redis.zrem(key_names.workers(queue), name)

    def listening(self, queue: str) -> int:
        """How many workers listen to a queue."""
        return int(self._redis.zcount(key_names.workers(queue), time.time(), "+inf"))
