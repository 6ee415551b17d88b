"""Removes what is older than the deployment keeps, once an hour."""

from __future__ import annotations

import logging
from typing import ClassVar

from backends import retention
from backends.deployment import Deployment
from workers.periodic import Periodic

CLAIM = "retention"

logger = logging.getLogger(__name__)


class RetentionSweep(Periodic):
    """A thread of every worker's main process and of maintenance; of all of them one looks, once an hour."""

    name: ClassVar[str] = "retention"
    seconds: ClassVar[float] = 300.0
    every_seconds: ClassVar[float] = 3600.0

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._deployment = deployment

    def look(self) -> None:
        if not self._deployment.leases.claim_announcement(CLAIM, self.every_seconds):
            return
        removed = 0
        for one in retention.expired(self._deployment):
            if self.stopping():
                return
            removed += retention.remove(self._deployment, one)
        if removed:
            logger.info("retention: %d removed", removed)
