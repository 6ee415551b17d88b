"""Announces jobs that no worker holds, and refills an emptied Redis."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import ClassVar

from backends.deployment import Deployment
from backends.jobs.records import NewerRecordError, Record, StudyRecord
from backends.jobs.studies import ready
from layerdrift.contract.analysis import Status
from workers.periodic import Periodic

ANNOUNCE_EVERY_SECONDS = 60.0
PATIENCE = 3
"""A job is announced again when it was open and held by nobody at so many looks in a row."""

logger = logging.getLogger(__name__)


class Reconciler(Periodic):
    """A thread of every worker's main process and of maintenance; announcing a job twice does no harm."""

    name: ClassVar[str] = "reconciler"
    seconds: ClassVar[float] = 5.0

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._deployment = deployment
        self._idle: dict[str, int] = {}

    def look(self) -> list[str]:
        """One look at the open jobs; the ids that were announced again."""
        leases = self._deployment.leases
        self._restore()
        unheld = {record.id: record for record in self._forgotten(self._deployment.queue.waiting())}
        self._idle = {id_: self._idle.get(id_, 0) + 1 for id_ in unheld}
        patient = [id_ for id_, looks in self._idle.items() if looks >= PATIENCE]
        due = [id_ for id_ in patient if leases.claim_announcement(id_, ANNOUNCE_EVERY_SECONDS)]
        for id_ in due:
            logger.warning("%s: no worker has it; announced again", id_)
            self._deployment.queue.announce(unheld[id_])
        return due

    def _restore(self) -> None:
        restored = self._deployment.jobs.restore() + self._deployment.studies.restore()
        if restored:
            logger.warning("Redis had no jobs; %d records were restored from S3", restored)

    def _forgotten(self, waiting: int) -> Iterator[Record]:
        """Open jobs that nobody holds and that do not just wait for their turn in the queue; studies that can be
        finished and that nobody holds."""
        jobs, studies, held = self._deployment.jobs, self._deployment.studies, self._deployment.leases.held
        for job in map(jobs.readable, jobs.open_ids()):
            if job is not None and not held(job.id) and (waiting == 0 or job.status is Status.RUNNING):
                yield job
        for study in map(studies.readable, studies.open_ids()):
            if study is not None and not held(study.id) and self._ready(study):
                yield study

    def _ready(self, study: StudyRecord) -> bool:
        """Whether all that it waits for has ended; not where a later version runs one of its members."""
        try:
            return ready(self._deployment.jobs, study)
        except NewerRecordError:
            return False
