"""Keeps the usage of tenants: counted seconds go to S3, and their objects are measured."""

from __future__ import annotations

from typing import ClassVar

from backends.deployment import Deployment
from workers.periodic import Periodic


class UsageKeeper(Periodic):
    """A thread of every worker's main process and of maintenance; two of them do no harm."""

    name: ClassVar[str] = "usage-keeper"
    seconds: ClassVar[float] = 30.0

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._usage = deployment.usage

    def look(self) -> None:
        self._usage.save()
        self._usage.measure()
