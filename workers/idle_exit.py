"""Ends a worker that has had no job for a while, where workers are started by demand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import ClassVar

from workers.periodic import Periodic

logger = logging.getLogger(__name__)


class IdleExit(Periodic):
    """A thread of a worker's main process.

    Args:
        idle_seconds: without a job, after which the worker ends.
        busy: whether the worker has a job, or one that it is about to begin.
        end: asks the worker to end after what it has; called once.
    """

    name: ClassVar[str] = "idle-exit"
    seconds: ClassVar[float] = 1.0

    def __init__(
        self,
        idle_seconds: float,
        busy: Callable[[], bool],
        end: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._idle_seconds, self._busy, self._end, self._now = idle_seconds, busy, end, now
        self._since = now()

    def look(self) -> None:
        if self._busy():
            self._since = self._now()
        elif self._now() - self._since >= self._idle_seconds:
            logger.info("no job for %g s: this worker ends", self._idle_seconds)
            self._stopped.set()
            self._end()
