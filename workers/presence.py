"""Tells the deployment that this worker listens and what it has, and sweeps away what killed jobs left on its disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from backends.deployment import Deployment
from backends.queue import QueueName
from workers import scratch_folders
from workers.capacity import capacity
from workers.periodic import Periodic

ALIVE_SECONDS = 20.0


class Presence(Periodic):
    """A thread of a worker's main process."""

    name: ClassVar[str] = "presence"
    seconds: ClassVar[float] = 5.0

    def __init__(self, deployment: Deployment, worker: str, queues: Sequence[QueueName] = ("cpu",)) -> None:
        super().__init__()
        self._deployment = deployment
        self._worker = worker
        self._queues = queues

    def stop(self) -> None:
        """Says that this worker is gone."""
        super().stop()
        self._deployment.workers.withdraw(self._worker, self._queues)

    def look(self) -> None:
        own = capacity(self._deployment.settings.scratch)
        self._deployment.workers.announce(self._worker, self._queues, ALIVE_SECONDS, own)
        self._sweep()

    def _sweep(self) -> None:
        """Takes away the scratch that a killed worker left: of a job that nobody holds or works on, and old."""
        scratch = self._deployment.settings.scratch
        oldest = time.time() - 4 * self._deployment.settings.lease_seconds
        for folder in scratch_folders.left_behind(scratch, oldest):
            if not self._deployment.leases.held(folder.name.partition(".")[0]):
                scratch_folders.remove(folder)
